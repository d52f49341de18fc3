//! The page: what a change request needs, in the order in which its reader needs it. One
//! self-contained file.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    Report, appendix,
    numbers::{grouped, minutes, ms, seconds, wait},
    tables, text,
};
use crate::chart;

/// The page as one self-contained HTML file.
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
                title {
                    (word) " – cutover rehearsal " (names.source_cluster) " → "
                    (names.target_cluster)
                }
                style { (PreEscaped(include_str!("page.css"))) (PreEscaped(chart::style())) }
            }
            body class=(class) {
                (header(report))
                main {
                    (verdict(report, word))
                    (tiles(report))
                    (figure(report)?)
                    div.columns {
                        (tables::promises(report))
                        (tables::waits(report))
                    }
                    (tables::budget(report))
                    (appendix::receipt(report))
                    (appendix::programs(report))
                }
                (appendix::footer())
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
            p.kicker { "Cutover rehearsal, Zalando postgres-operator to CloudNativePG" }
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
    let second_wait = if restart.length().is_zero() {
        "not at all".to_owned()
    } else {
        seconds(restart.length())
    };
    let judged = |count: usize| {
        if report.judged() {
            grouped(count)
        } else {
            "–".to_owned()
        }
    };
    html! {
        section.tiles aria-label="Key figures" {
            (tile(
                "Writes lost",
                &judged(verdict.lost.len()),
                &format!("of {} acknowledged", grouped(verdict.acknowledged)),
                report.judged() && verdict.lost.is_empty(),
            ))
            (tile(
                "Accepted after the fence",
                &judged(verdict.after_fence.len()),
                match (report.judged(), verdict.after_fence.is_empty()) {
                    (false, _) => "not judged",
                    (true, true) => "the source accepted no write",
                    (true, false) => "the source accepted writes",
                },
                report.judged() && verdict.after_fence.is_empty(),
            ))
            (tile(
                "Clients waited",
                &report.client_waits().map_or_else(
                    || "–".to_owned(), |(least, most)| wait(least, most)
                ),
                &if target_time.is_empty() { String::new() } else { format!("of which the target: \
                    {}", target_time.join(", ")) },
                report.client_waits().is_some(),
            ))
            (tile(
                "Waited again for the restart",
                &second_wait,
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
    let per = report
        .slice_width()
        .map_or_else(String::new, |width| format!("per {}", ms(width)));
    let described = format!(
        "Steps of the cutover and acknowledged writes {per}. {}",
        report.summary()
    );
    Ok(html! {
        figure {
            figcaption {
                h2 { "The cutover" }
                ul.legend {
                    li { span.swatch.source {} "acknowledged by the source" }
                    li { span.swatch.target {} "by the target; its own work" }
                    li { span.swatch.step {} "steps of the cutover" }
                    li { span.swatch.wait {} "no write acknowledged" }
                }
            }
            div.chart role="img" tabindex="0" aria-label=(described) {
                (PreEscaped(chart::draw(report)?))
            }
        }
    })
}

#[cfg(test)]
mod tests;
