//! The verdict as lines for the terminal.

use super::{
    Report,
    budget::{Cost, OWN_TIME_GOAL, RestartGap},
    numbers::{grouped, ms, percent},
};

/// Width of the name column; a longer name shifts its number to the right.
const NAME_WIDTH: usize = 46;
const NUMBER_WIDTH: usize = 10;

/// The verdict as plain text: the promises, the gaps, the time budget.
pub fn verdict_lines(report: &Report) -> Vec<String> {
    let mut lines = vec![format!("{}  {}", word(report), report.summary())];
    section(&mut lines, "WRITES", promises(report));
    section(
        &mut lines,
        "WRITE GAP  last acknowledged on the source to first acknowledged on the target",
        gaps(report),
    );
    section(
        &mut lines,
        "TIME BUDGET  and each step's share of the time from the block to the first write",
        budget(report),
    );
    lines
}

/// PASS or FAIL.
pub fn word(report: &Report) -> &'static str {
    if report.passed() { "PASS" } else { "FAIL" }
}

fn section(lines: &mut Vec<String>, title: &str, rows: Vec<String>) {
    if !rows.is_empty() {
        lines.extend([String::new(), title.to_owned()]);
        lines.extend(
            rows.into_iter()
                .map(|row| format!("  {row}").trim_end().to_owned()),
        );
    }
}

fn row(name: &str, number: &str, remark: &str) -> String {
    format!("{name:<NAME_WIDTH$} {number:>NUMBER_WIDTH$}  {remark}")
}

fn promises(report: &Report) -> Vec<String> {
    if !report.judged() {
        return vec!["no write was judged".to_owned()];
    }
    let verdict = &report.verdict;
    let always = [
        ("acknowledged", verdict.acknowledged),
        ("found", verdict.found),
        ("lost", verdict.lost.len()),
        ("duplicated", verdict.duplicated.len()),
        (
            "accepted by the source after the fence",
            verdict.after_fence.len(),
        ),
    ];
    let sometimes = [
        ("on the source only", verdict.only_on_source.len()),
        (
            "refused, but found on the target",
            verdict.refused_but_found.len(),
        ),
        ("not sent by any client", verdict.unexplained.len()),
    ];
    let mut rows: Vec<String> = always
        .into_iter()
        .chain(sometimes.into_iter().filter(|(_, count)| *count > 0))
        .map(|(name, count)| row(name, &grouped(count), ""))
        .collect();
    if let Some(errors) = report.errors {
        rows.push(row(
            "errors seen by the application's clients",
            &grouped(errors),
            "",
        ));
    }
    if let Some(writer) = &report.unmanaged {
        let (acknowledged, found) = (grouped(writer.acknowledged), grouped(writer.found));
        let remark = format!(
            "{}: acknowledged {acknowledged}, found {found}",
            writer.name
        );
        rows.push(row(
            "lost by the unmanaged writer",
            &grouped(writer.lost),
            &remark,
        ));
    }
    rows
}

fn gaps(report: &Report) -> Vec<String> {
    let over_all = report.verdict.gap.map(|gap| ("over all clients", gap));
    let by_client = report
        .verdict
        .gap_by_client
        .iter()
        .map(|(client, gap)| (client.as_str(), *gap));
    let mut rows: Vec<String> = over_all
        .into_iter()
        .chain(by_client)
        .map(|(name, gap)| row(name, &ms(gap.length()), ""))
        .collect();
    let restart = report.restart_gap();
    rows.push(row(
        "caused by the target's restart",
        &ms(restart.length()),
        restart_remark(&restart),
    ));
    rows
}

/// Explains the effect of the restart.
pub fn restart_remark(restart: &RestartGap) -> &'static str {
    match restart {
        RestartGap::NoRestart => "no restart",
        RestartGap::WithinCutover => "it ended before clients were accepted",
        RestartGap::SecondWait(_) => "clients were already connected and waited a second time",
        RestartGap::Unnoticed => "no client noticed it",
    }
}

fn budget(report: &Report) -> Vec<String> {
    let cost = |cost: Cost| {
        let length = cost.length.map_or_else(|| "not finished".to_owned(), ms);
        row(
            &cost.name,
            &length,
            &cost.share.map(percent).unwrap_or_default(),
        )
    };
    let target = report.target_budget().into_iter().map(|mut own| {
        own.name = format!("of which the target was {}", own.name);
        own
    });
    let mut rows: Vec<String> = report
        .budget()
        .into_iter()
        .chain(target)
        .map(cost)
        .collect();
    if let Some(own) = report.own_time() {
        let goal = format!(
            "block to first write, less the target's own time; goal: {} or less{}",
            ms(OWN_TIME_GOAL),
            if own > OWN_TIME_GOAL { ", missed" } else { "" }
        );
        rows.push(row("added by the programs", &ms(own), &goal));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::{super::example::*, *};

    #[test]
    fn the_numbers_are_in_one_column() {
        let lines = verdict_lines(&passed());
        let end = |name: &str, number: &str| {
            let line = lines
                .iter()
                .find(|line| line.trim_start().starts_with(name))
                .expect(name);
            let at = line
                .find(number)
                .unwrap_or_else(|| panic!("{number} in {line:?}"));
            line[..at].chars().count() + number.chars().count()
        };
        let ends = [
            end("acknowledged ", "4,812"),
            end("found", "4,812"),
            end("lost", "0"),
            end("duplicated", "0"),
            end("accepted by the source", "0"),
            end("lost by the unmanaged writer", "0"),
            end("over all clients", "3,680 ms"),
            end("mastodon-web-1", "4,290 ms"),
            end("caused by", "0 ms"),
            end("fence the source", "278 ms"),
            end("added by", "715 ms"),
        ];
        assert!(
            ends.iter().all(|end| *end == ends[0]),
            "{ends:?}\n{}",
            lines.join("\n")
        );
    }

    #[test]
    fn a_failure_is_the_first_word() {
        let lines = verdict_lines(&failed());
        assert!(
            lines[0].starts_with("FAIL  3 of 4,812 acknowledged writes lost"),
            "{}",
            lines[0]
        );
        assert!(
            lines
                .iter()
                .any(|line| line.trim() == row("lost", "3", "").trim()),
            "{lines:#?}"
        );
        assert!(lines.iter().any(|line| line.contains("on the source only")));
        assert!(
            verdict_lines(&passed())
                .iter()
                .all(|line| !line.contains("on the source only"))
        );
    }

    #[test]
    fn a_run_without_a_write_still_has_a_verdict() {
        let lines = verdict_lines(&Report::default());
        assert!(
            lines[0].starts_with("FAIL  no write was acknowledged"),
            "{}",
            lines[0]
        );
        assert!(
            lines.iter().all(|line| !line.contains("TIME BUDGET")),
            "{lines:#?}"
        );
        assert!(
            lines.iter().all(|line| !line.contains("lost")),
            "not even a zero: {lines:#?}"
        );
    }
}
