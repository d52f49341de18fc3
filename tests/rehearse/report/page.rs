//! The page: what a change request needs in the order in which its reader asks for it. One file, nothing fetched.

use anyhow::Result;
use harness::ledger::{Gap, Key};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    Report, annex,
    budget::{Cost, OWN_TIME_GOAL},
    numbers::{counted, grouped, instant, minutes, percent, seconds, wait, whole_ms},
    text,
};
use crate::chart;

/// So many rows are named; the ledger's log has them all.
const KEYS_SHOWN_MAX: usize = 12;

/// The page as one self-contained HTML file.
///
/// # Errors
/// The chart's.
pub fn page(report: &Report) -> Result<String> {
    let word = text::word(report);
    let names = &report.names;
    let class = if report.passed() { "pass" } else { "fail" };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (word) " – cutover rehearsal " (names.source_cluster) " → " (names.target_cluster) }
                style { (PreEscaped(include_str!("page.css"))) (PreEscaped(chart::style())) }
            }
            body class=(class) {
                (header(report))
                main {
                    (verdict(report, word))
                    (tiles(report))
                    (figure(report)?)
                    div.columns {
                        (promises(report))
                        (waits(report))
                    }
                    (budget(report))
                    (annex::receipt(report))
                    (annex::programs(report))
                }
                (annex::footer())
            }
        }
    };
    Ok(page.into_string())
}

fn header(report: &Report) -> Markup {
    let names = &report.names;
    let postgres = if names.source_postgres == names.target_postgres {
        names.source_postgres.clone()
    } else {
        format!("{} → {}", names.source_postgres, names.target_postgres)
    };
    html! {
        header {
            p.kicker { "Rehearsal of a cutover, Zalando postgres-operator to CloudNativePG" }
            h1 { (names.source_cluster) " " span.arrow { "→" } " " (names.target_cluster) }
            dl.facts {
                div { dt { "Namespace" } dd { (names.namespace) } }
                div { dt { "PostgreSQL" } dd { (postgres) } }
                div { dt { "Patroni" } dd { (names.patroni) } }
                div { dt { "Kubernetes" } dd { (names.kubernetes) } }
                div { dt { "Run" } dd { (report.began.strftime("%-d %B %Y, %H:%M:%S UTC")) } }
                div { dt { "Took" } dd { (minutes(report.took)) } }
            }
        }
    }
}

fn verdict(report: &Report, word: &str) -> Markup {
    let failures = report.failures();
    html! {
        section.verdict aria-label="Verdict" {
            p.word { (word) }
            div {
                @if failures.is_empty() {
                    p.summary { (report.summary()) }
                } @else {
                    ul.summary { @for failure in &failures { li { (failure) } } }
                }
            }
        }
    }
}

fn tiles(report: &Report) -> Markup {
    let verdict = &report.verdict;
    let own = report.target_budget();
    let target_time: Vec<String> = own
        .iter()
        .filter_map(|cost| Some(format!("{} {}", cost.name, seconds(cost.length?))))
        .collect();
    let restart = report.restart_gap();
    html! {
        section.tiles aria-label="Key figures" {
            (tile("Writes lost", &grouped(verdict.lost.len()), &format!("of {} acknowledged", grouped(verdict.acknowledged)), verdict.lost.is_empty()))
            (tile(
                "Accepted by the source after the fence",
                &grouped(verdict.after_fence.len()),
                "the old side cannot take a write",
                verdict.after_fence.is_empty(),
            ))
            (tile(
                "Clients waited",
                &report.client_waits().map_or_else(|| "–".to_owned(), |(least, most)| wait(least, most)),
                &if target_time.is_empty() { String::new() } else { format!("the target alone: {}", target_time.join(", ")) },
                report.client_waits().is_some(),
            ))
            (tile(
                "Second wait, by the target's restart",
                &seconds(restart.length()),
                text::restart_remark(&restart),
                true,
            ))
        }
    }
}

fn tile(name: &str, value: &str, remark: &str, good: bool) -> Markup {
    html! {
        div.tile.bad[!good] {
            p.name { (name) }
            p.value { (value) }
            p.remark { (remark) }
        }
    }
}

fn figure(report: &Report) -> Result<Markup> {
    let width = match report.series.as_slice() {
        [first, second, ..] => whole_ms(second.start.saturating_sub(first.start)),
        _ => "100".to_owned(),
    };
    let described = format!("Steps of the cut and acknowledged writes per {width} ms. {}", report.summary());
    Ok(html! {
        figure {
            figcaption {
                h2 { "The cut" }
                ul.legend {
                    li { span.swatch.source {} "acknowledged by the source" }
                    li { span.swatch.target {} "by the target; its own work" }
                    li { span.swatch.step {} "steps of the cutover" }
                    li { span.swatch.wait {} "no write acknowledged" }
                }
                p.unit { "Acknowledged writes per " (width) " ms" }
            }
            div.chart.on-page role="img" aria-label=(described) { (PreEscaped(chart::draw(report, chart::Format::Page)?)) }
            div.chart.on-phone role="img" aria-label=(described) { (PreEscaped(chart::draw(report, chart::Format::Phone)?)) }
        }
    })
}

fn promises(report: &Report) -> Markup {
    let verdict = &report.verdict;
    html! {
        section {
            h2 { "Every write accounted for" }
            table.promises {
                tbody {
                    tr { th scope="row" { "Acknowledged to a client" } td.number { (grouped(verdict.acknowledged)) } td {} }
                    tr { th scope="row" { "Found on the target" } td.number { (grouped(verdict.found)) }
                        (mark(verdict.found == verdict.acknowledged)) }
                    (promise("Lost", &verdict.lost))
                    (promise("On the target more than once", &verdict.duplicated))
                    (promise("Accepted by the source after the fence", &verdict.after_fence))
                    (promise("On the source only", &verdict.only_on_source))
                    (promise("Refused to the client, and yet there", &verdict.refused_but_found))
                    (promise("There, but sent by nobody", &verdict.unexplained))
                    @if let Some(writer) = &report.forgotten {
                        tr.bad[writer.lost > 0] {
                            th scope="row" {
                                "Forgotten writer " (writer.name)
                                small { (grouped(writer.acknowledged)) " acknowledged, " (grouped(writer.found)) " found, lost:" }
                            }
                            td.number { (grouped(writer.lost)) }
                            (mark(writer.lost == 0))
                        }
                    }
                }
            }
            p.note {
                (counted(verdict.refused, "write was", "writes were")) " refused during the cut and are not there, as they must not be. "
                (counted(verdict.unknown_found + verdict.unknown_missing, "write", "writes")) " got no answer because the connection ended: "
                (grouped(verdict.unknown_found)) " of them were committed, " (grouped(verdict.unknown_missing)) " were not; both are correct."
            }
        }
    }
}

fn promise(name: &str, broken: &[Key]) -> Markup {
    html! {
        tr.bad[!broken.is_empty()] {
            th scope="row" {
                (name)
                @if !broken.is_empty() {
                    small {
                        @for key in broken.iter().take(KEYS_SHOWN_MAX) { code { (key.client) " #" (key.sequence) } " " }
                        @if broken.len() > KEYS_SHOWN_MAX { "and " (grouped(broken.len() - KEYS_SHOWN_MAX)) " more" }
                    }
                }
            }
            td.number { (grouped(broken.len())) }
            (mark(broken.is_empty()))
        }
    }
}

fn mark(kept: bool) -> Markup {
    html! { td.mark { @if kept { span title="as promised" { "✓" } } @else { span title="promise broken" { "✗" } } } }
}

fn waits(report: &Report) -> Markup {
    let longest = report.verdict.gap_by_client.values().map(Gap::length).max().unwrap_or_default();
    let restart = report.restart_gap();
    let row = |name: &str, gap: &Gap| {
        html! {
            tr {
                th scope="row" { (name) }
                td.number { (instant(report.zero(), gap.from)) }
                td.number { (instant(report.zero(), gap.to)) }
                td.number { (whole_ms(gap.length())) }
                (bar(gap.length().as_secs_f64() / longest.as_secs_f64().max(f64::MIN_POSITIVE)))
            }
        }
    };
    html! {
        section {
            h2 { "How long each client waited" }
            table.waits {
                thead { tr {
                    th scope="col" { "Client" } th.number scope="col" { "last on source" } th.number scope="col" { "first on target" }
                    th.number scope="col" { "ms" } td {}
                } }
                tbody {
                    @for (client, gap) in &report.verdict.gap_by_client { (row(client, gap)) }
                }
                tfoot {
                    @if let Some(gap) = &report.verdict.gap { (row("Over all clients", gap)) }
                    tr { th scope="row" colspan="3" { "Caused by the target's restart" small { (text::restart_remark(&restart)) } }
                        td.number { (whole_ms(restart.length())) } td {} }
                }
            }
            p.note { "From a client's last acknowledged write on the source to its first on the target; instants since the block." }
        }
    }
}

fn bar(share: f64) -> Markup {
    html! { td.bar { span style=(format!("width: {:.1}%", (share * 100.0).clamp(0.0, 100.0))) {} } }
}

fn budget(report: &Report) -> Markup {
    let row = |cost: &Cost, class: &str| {
        html! {
            tr class=(class) {
                th scope="row" { (cost.name) }
                td.number { (instant(report.zero(), cost.from)) }
                td.number { @match cost.length { Some(length) => (whole_ms(length)), None => "never done" } }
                td.number { @match cost.share { Some(share) => (percent(share)), None => "–" } }
                (bar(cost.share.unwrap_or_default()))
            }
        }
    };
    html! {
        section {
            h2 { "Where the time went" }
            table.budget {
                thead { tr {
                    th scope="col" { "Step" } th.number scope="col" { "began" } th.number scope="col" { "ms" }
                    th.number scope="col" { "share" } td {}
                } }
                tbody { @for cost in &report.budget() { (row(cost, "step")) } }
                tbody { @for cost in &report.target_budget() { (row(&Cost { name: format!("Meanwhile, the target: {}", cost.name), ..cost.clone() }, "target")) } }
                @if let Some(rest) = report.between_steps() {
                    tbody { tr { th scope="row" { "Between the steps" } td {} td.number { (whole_ms(rest)) } td {} td {} } }
                }
                @if let Some(own) = report.own_time() {
                    tfoot { tr { th scope="row" colspan="2" {
                        "Added by the programs"
                        small { "block to the target's first write, less the target's own time; goal: " (whole_ms(OWN_TIME_GOAL)) " or less" }
                    } td.number { (whole_ms(own)) } td.number {} td {} } }
                }
            }
            p.note {
                "Shares are of the time from the block to the first acknowledged write on the target"
                @if let Some(outage) = report.outage() { " (" (whole_ms(outage.length())) " ms)" }
                "; steps may overlap. Began: since the block."
            }
        }
    }
}

#[cfg(test)]
mod tests;
