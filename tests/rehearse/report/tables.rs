//! The tables of the page: the writes, the clients, the steps.

use harness::ledger::{Gap, Key};
use maud::{Markup, html};

use super::{
    Report,
    budget::{Cost, OWN_TIME_GOAL},
    numbers::{counted, grouped, instant, percent, whole_ms},
    text,
};

/// The most rows that are named.
const KEYS_SHOWN_MAX: usize = 12;

/// Each promise about the writes, and how often it was broken.
pub fn promises(report: &Report) -> Markup {
    let verdict = &report.verdict;
    if !report.judged() {
        // A table of zeros with check marks would look like success.
        return html! { section { h2 { "The account of every write" } p { "There is none: no \
        acknowledged write was judged." } } };
    }
    html! {
        section {
            h2 { "The account of every write" }
            table.promises {
                tbody {
                    tr {
                        th scope="row" { "Acknowledged to a client" }
                        td.number { (grouped(verdict.acknowledged)) } td {}
                    }
                    tr.bad[verdict.found != verdict.acknowledged] {
                        th scope="row" { "Found on the target" }
                        td.number { (grouped(verdict.found)) }
                        (mark(verdict.found == verdict.acknowledged))
                    }
                    (promise("Lost", &verdict.lost))
                    (promise("On the target more than once", &verdict.duplicated))
                    (promise("Accepted by the source after the fence", &verdict.after_fence))
                    (promise("On the source only", &verdict.only_on_source))
                    (promise("Refused, but found on the target", &verdict.refused_but_found))
                    (promise("Found, but not sent by any client", &verdict.unexplained))
                    @if let Some(errors) = report.errors {
                        tr {
                            th scope="row" { "Errors seen by the application's clients" }
                            td.number { (grouped(errors)) } td {}
                        }
                    }
                    @if let Some(writer) = &report.unmanaged {
                        tr.bad[writer.lost > 0] {
                            th scope="row" {
                                "Lost by the unmanaged writer"
                                small {
                                    (writer.name) ": " (grouped(writer.acknowledged))
                                    " acknowledged, " (grouped(writer.found)) " found"
                                }
                            }
                            td.number { (grouped(writer.lost)) }
                            (mark(writer.lost == 0))
                        }
                    }
                }
            }
            p.note {
                (counted(verdict.refused, "write was", "writes were"))
                " refused during the cutover; \
                    none of them may exist. "
                (counted(verdict.unknown_found + verdict.unknown_missing, "write", "writes"))
                " got no answer because the connection ended: "
                (grouped(verdict.unknown_found)) " of them were committed, "
                (grouped(verdict.unknown_missing)) " were not; both \
                    are allowed."
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
                        @for key in broken.iter().take(KEYS_SHOWN_MAX) {
                            code { (key.client) " #" (key.sequence) } " "
                        }
                        @if broken.len() > KEYS_SHOWN_MAX {
                            "and " (grouped(broken.len() - KEYS_SHOWN_MAX)) " more"
                        }
                    }
                }
            }
            td.number { (grouped(broken.len())) }
            (mark(broken.is_empty()))
        }
    }
}

fn mark(kept: bool) -> Markup {
    html! { td.mark { @if kept { span title="as promised" { "✓" } } @else { span title="promise \
    broken" { "✗" } } } }
}

/// The table of each client's wait.
pub fn waits(report: &Report) -> Markup {
    let restart = report.restart_gap();
    let row = |name: &str, gap: &Gap| {
        html! {
            tr {
                th scope="row" { (name) }
                td.number { (instant(report.zero(), gap.from)) }
                td.number { (instant(report.zero(), gap.to)) }
                td.number { (whole_ms(gap.length())) }
            }
        }
    };
    html! {
        section {
            h2 { "Wait of each client" }
            table.waits {
                thead { tr {
                    th scope="col" { "Client" } th.number scope="col" { "last on source" }
                    th.number scope="col" { "first on target" }
                    th.number scope="col" { "ms" }
                } }
                tbody {
                    @for (client, gap) in &report.verdict.gap_by_client { (row(client, gap)) }
                }
                tfoot {
                    @if let Some(gap) = &report.verdict.gap { (row("Over all clients", gap)) }
                    tr {
                        th scope="row" colspan="3" {
                            "Caused by the target's restart"
                            small { (text::restart_remark(&restart)) }
                        }
                        td.number { (whole_ms(restart.length())) }
                    }
                }
            }
            p.note { "From a client's last acknowledged write on the source to its first on the \
                target; instants since the block." }
        }
    }
}

fn bar(share: f64) -> Markup {
    html! { td.bar { span style=(format!("width: {:.1}%", (share * 100.0).clamp(0.0, 100.0))) {} } }
}

/// The table of each step's cost.
pub fn budget(report: &Report) -> Markup {
    let row = |cost: &Cost, class: &str| {
        html! {
            tr class=(class) {
                th scope="row" { (cost.name) }
                td.number { (instant(report.zero(), cost.from)) }
                td.number {
                    @match cost.length {
                        Some(length) => (whole_ms(length)), None => "not finished"
                    }
                }
                td.number { @match cost.share { Some(share) => (percent(share)), None => "–" } }
                (bar(cost.share.unwrap_or_default()))
            }
        }
    };
    html! {
        section {
            h2 { "Time budget" }
            table.budget {
                thead { tr {
                    th scope="col" { "Step" } th.number scope="col" { "began" }
                    th.number scope="col" { "ms" }
                    th.number scope="col" { "share" } td {}
                } }
                tbody { @for cost in &report.budget() { (row(cost, "step")) } }
                tbody {
                    @for cost in &report.target_budget() {
                        (
                            row(
                                &Cost {
                                    name: format!("Of which the target: {}", cost.name),
                                    ..cost.clone()
                                },
                                "target"
                            )
                        )
                    }
                }
                @if let Some(rest) = report.between_steps() {
                    tbody {
                        tr {
                            th scope="row" { "Between the steps" } td {}
                            td.number { (whole_ms(rest)) } td {} td {}
                        }
                    }
                }
                @if let Some(own) = report.own_time() {
                    tfoot { tr { th scope="row" colspan="2" {
                        "Added by the programs"
                        small { "block to the target's first write, less the target's own time; \
                            goal: " (whole_ms(OWN_TIME_GOAL)) " or less"
                            @if own > OWN_TIME_GOAL { ", missed" } }
                    } td.number { (whole_ms(own)) } td.number {} td {} } }
                }
            }
            p.note {
                "Shares are of the time from the block to the first acknowledged write on the \
                 target"
                @if let Some(outage) = report.outage() { " (" (whole_ms(outage.length())) " ms)" }
                "; steps may overlap. Began: since the block."
            }
        }
    }
}
