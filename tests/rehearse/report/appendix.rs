//! The end of the page: the receipt, the programs' output, and a glossary.

use maud::{Markup, html};

use super::{Program, Report, numbers::counted};

/// Texts in log lines that are highlighted.
const LANDMARKS: [&str; 4] = [
    "DOWNTIME BEGINS",
    "POINT OF NO RETURN",
    "DOWNTIME ENDS",
    "ROLLING BACK",
];

/// The receipt: its explanation, its single values, then its documents.
pub fn receipt(report: &Report) -> Markup {
    let is_prose = |key: &&String| key.ends_with(".txt");
    let (facts, documents): (Vec<_>, Vec<_>) = report
        .receipt
        .iter()
        .filter(|(key, _)| !is_prose(key))
        .partition(|(_, text)| !text.trim().contains('\n'));
    html! {
        section.receipt {
            h2 { "Receipt" }
            @if report.receipt.is_empty() {
                p { "There is none: the cutover did not finish." }
            } @else {
                p.note {
                    "Immutable ConfigMap "
                    code { "cutover-" (report.names.target_cluster) "-receipt" } " in "
                    code { (report.names.namespace) }
                    @for (key, text) in facts { "; " (key) ": " (text.trim()) } "."
                }
            }
            @for (_, text) in report.receipt.iter().filter(|(key, _)| is_prose(key)) {
                blockquote { @for paragraph in text.trim().split("\n\n") { p { (paragraph) } } }
            }
            @for (key, text) in documents {
                h3 { (key) }
                pre tabindex="0" { (text.trim_end()) }
            }
        }
    }
}

/// The output of each program, collapsed unless it failed.
pub fn programs(report: &Report) -> Markup {
    html! {
        section.programs {
            h2 { "Output of the programs" }
            @for program in &report.programs {
                details open[program.exit != Some(0)] {
                    summary {
                        span.program { (program.name) }
                        " " (exit(program))
                        " " span.lines { (counted(program.lines.len(), "line", "lines")) }
                    }
                    pre tabindex="0" { @for line in &program.lines { (log_line(line)) "\n" } }
                }
            }
            @if report.programs.is_empty() { p { "No program ran." } }
        }
    }
}

fn exit(program: &Program) -> Markup {
    html! {
        @match program.exit {
            Some(0) => span.exit { "exit 0" },
            Some(code) => span.exit.bad { "exit " (code) },
            None => span.exit.bad { "ended by a signal" },
        }
    }
}

fn log_line(line: &str) -> Markup {
    let failed = line.split_whitespace().nth(1) == Some("✗");
    html! {
        @if failed { span.failed { (line) } }
        @else if LANDMARKS.iter().any(|words| line.contains(words)) { strong { (line) } }
        @else { (line) }
    }
}

/// Explains the terms, and the limits of a rehearsal.
pub fn footer() -> Markup {
    html! {
        footer {
            h2 { "How to read this" }
            p {
                "Each client wrote numbered rows and recorded every answer; \
                 afterwards all rows were read back from both servers. "
                b { "Acknowledged" } " is a confirmed commit: that row must exist exactly once. "
                "The " b { "block" } " makes the source's sessions unable to write and can be \
                    undone. "
                "The " b { "fence" } " stops the source's server, which stays stopped. "
                "The " b { "point of no return" } " is the recorded request to promote: until then \
                    the cutover can roll back to the source."
            }
            p {
                "A rehearsal runs on one machine: a real API server, a real Patroni and real \
                 PostgreSQL servers; the operators are imitated by the test "
                "harness. Its result on lost writes tests the protocol; the times \
                 are those of this machine."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::example::passed, *};

    #[test]
    fn only_a_failed_program_is_expanded() {
        let mut report = passed();
        assert!(!programs(&report).into_string().contains("<details open"));
        report.programs[1].exit = Some(2);
        let page = programs(&report).into_string();
        assert_eq!(page.matches("<details open").count(), 1);
        assert!(page.contains("exit 2"));
    }

    #[test]
    fn landmarks_and_failures_stand_out() {
        assert!(
            log_line("00:01.000 · DOWNTIME BEGINS: blocking")
                .into_string()
                .starts_with("<strong>")
        );
        assert!(
            log_line("00:01.000 ✗ no <leader>")
                .into_string()
                .contains("no &lt;leader&gt;</span>")
        );
        assert_eq!(
            log_line("00:01.000 ✓ done").into_string(),
            "00:01.000 ✓ done"
        );
    }

    #[test]
    fn the_receipts_explanation_comes_before_its_documents() {
        let page = receipt(&passed()).into_string();
        let place = |text: &str| page.find(text).expect(text);
        assert!(place("was stopped cleanly") < place("ms_since_block"));
        assert!(page.contains("program: cutover 0.1.0"));
        assert!(
            receipt(&Report::default())
                .into_string()
                .contains("There is none")
        );
    }
}
