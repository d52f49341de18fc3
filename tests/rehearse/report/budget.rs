//! The time budget: how long each step took.

use std::time::Duration;

use harness::ledger::Gap;

use super::{Report, Span, Step};

/// Goal for the time that the programs add to the target's own time, from the block to the first
/// write.
pub const OWN_TIME_GOAL: Duration = Duration::from_millis(500);

/// The cost of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// The step.
    pub name: String,
    /// When it began.
    pub from: Duration,
    /// How long it took; None if it never ended.
    pub length: Option<Duration>,
    /// The share of the clients' wait that fell into the step; None if it was outside of the wait.
    /// Steps overlap, so shares need not add up to one.
    pub share: Option<f64>,
}

/// The effect of the target's restart on clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartGap {
    /// There was no restart.
    NoRestart,
    /// The restart ended before clients were accepted: it is part of the one wait.
    WithinCutover,
    /// Clients were already connected and waited a second time.
    SecondWait(Gap),
    /// Clients were already connected, and none noticed.
    Unnoticed,
}

impl RestartGap {
    /// The clients' second wait.
    pub fn length(&self) -> Duration {
        match self {
            Self::SecondWait(gap) => gap.length(),
            Self::NoRestart | Self::WithinCutover | Self::Unnoticed => Duration::ZERO,
        }
    }
}

impl Span {
    /// The interval's length.
    pub fn length(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }

    fn overlap(&self, other: &Self) -> Duration {
        self.to
            .min(other.to)
            .saturating_sub(self.from.max(other.from))
    }
}

impl Step {
    fn span(&self) -> Option<Span> {
        Some(Span {
            from: self.from,
            to: self.to?,
        })
    }
}

impl Report {
    /// The zero of the page's axis: the block, or the epoch if there was none.
    pub fn zero(&self) -> Duration {
        self.block.unwrap_or_default()
    }

    /// From the block to the first acknowledged write on the target.
    pub fn outage(&self) -> Option<Span> {
        let gap = self.verdict.gap?;
        Some(Span {
            from: self.block.unwrap_or(gap.from),
            to: gap.to,
        })
    }

    /// The width of a slice of the series; None for fewer than two slices.
    pub fn slice_width(&self) -> Option<Duration> {
        match self.series.as_slice() {
            [first, second, ..] => Some(second.start.saturating_sub(first.start)),
            _ => None,
        }
    }

    /// The shortest and the longest wait of a client; the wait over all clients if none wrote on
    /// both servers.
    pub fn client_waits(&self) -> Option<(Duration, Duration)> {
        let waits = || self.verdict.gap_by_client.values().map(Gap::length);
        let over_all = self.verdict.gap.map(|gap| gap.length());
        Some((waits().min().or(over_all)?, waits().max().or(over_all)?))
    }

    /// The time from the block to the target's first write, without the target's own time.
    pub fn own_time(&self) -> Option<Duration> {
        let ready = Span {
            from: self.block?,
            to: self.first_write.or(self.verdict.gap.map(|gap| gap.to))?,
        };
        Some(ready.length().saturating_sub(covered(
            &ready,
            self.promoting.iter().chain(&self.restarting).copied(),
        )))
    }

    /// The cost of each step, in order.
    pub fn budget(&self) -> Vec<Cost> {
        self.steps
            .iter()
            .map(|step| self.cost(&step.name, step.from, step.span()))
            .collect()
    }

    /// The cost of the target's own work.
    pub fn target_budget(&self) -> Vec<Cost> {
        [
            ("promoting", self.promoting),
            ("restarting", self.restarting),
        ]
        .into_iter()
        .filter_map(|(name, span)| Some(self.cost(name, span?.from, span)))
        .collect()
    }

    /// The part of the outage outside of all steps.
    pub fn between_steps(&self) -> Option<Duration> {
        let outage = self.outage()?;
        Some(
            outage
                .length()
                .saturating_sub(covered(&outage, self.steps.iter().filter_map(Step::span))),
        )
    }

    fn cost(&self, name: &str, from: Duration, span: Option<Span>) -> Cost {
        let share = span.zip(self.outage()).and_then(|(span, outage)| {
            let inside = span.overlap(&outage);
            (inside > Duration::ZERO).then(|| inside.as_secs_f64() / outage.length().as_secs_f64())
        });
        Cost {
            name: name.into(),
            from,
            length: span.map(|span| span.length()),
            share,
        }
    }

    /// The effect of the target's restart on clients.
    pub fn restart_gap(&self) -> RestartGap {
        let Some(restart) = self.restarting else {
            return RestartGap::NoRestart;
        };
        let touches = |gap: &&Gap| gap.from < restart.to && restart.from < gap.to;
        let longest = self
            .verdict
            .later_gaps
            .iter()
            .filter(touches)
            .max_by_key(|gap| gap.length());
        match (longest, self.verdict.gap) {
            (Some(gap), _) => RestartGap::SecondWait(*gap),
            (None, Some(gap)) if restart.to <= gap.to => RestartGap::WithinCutover,
            (None, _) => RestartGap::Unnoticed,
        }
    }
}

/// How much of `whole` is covered by at least one part.
fn covered(whole: &Span, parts: impl Iterator<Item = Span>) -> Duration {
    let mut parts: Vec<_> = parts.collect();
    parts.sort_by_key(|part| part.from);
    let (mut sum, mut reached) = (Duration::ZERO, whole.from);
    for part in parts {
        let rest = Span {
            from: part.from.max(reached),
            to: part.to,
        };
        sum += rest.overlap(whole);
        reached = reached.max(part.to);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::{super::example::*, *};

    fn span(from: u64, to: u64) -> Span {
        Span {
            from: at(from),
            to: at(to),
        }
    }

    #[test]
    fn overlapping_parts_are_counted_once_and_only_inside_the_whole() {
        let parts = [
            span(0, 1_500),
            span(1_200, 1_400),
            span(1_800, 1_900),
            span(2_900, 9_000),
        ];
        assert_eq!(
            covered(&span(1_000, 3_000), parts.into_iter()),
            at(500 + 100 + 100)
        );
        assert_eq!(covered(&span(1_000, 3_000), [].into_iter()), Duration::ZERO);
    }

    #[test]
    fn own_time_leaves_out_what_the_target_needs_for_itself() {
        let report = Report {
            block: Some(at(1_000)),
            first_write: Some(at(4_000)),
            promoting: Some(span(1_300, 2_300)),
            restarting: Some(span(2_300, 3_900)),
            ..Report::default()
        };
        assert_eq!(report.own_time(), Some(at(400)));
        assert_eq!(Report::default().own_time(), None);
    }

    #[test]
    fn a_share_is_that_of_the_outage() {
        let report = passed();
        let outage = report.outage().unwrap().length();
        let costs = report.budget();
        assert_eq!(costs[0].share, None, "{costs:?}");
        let promote = costs
            .iter()
            .find(|cost| cost.name.starts_with("promote"))
            .unwrap();
        assert_eq!(
            promote.share.unwrap(),
            promote.length.unwrap().as_secs_f64() / outage.as_secs_f64()
        );
        assert!(report.between_steps().unwrap() < outage);
    }

    #[test]
    fn a_step_that_never_ended_has_no_length() {
        let mut report = passed();
        report.steps[3].to = None;
        let cost = &report.budget()[3];
        assert_eq!((cost.length, cost.share), (None, None));
    }

    #[test]
    fn the_restart_is_part_of_the_wait_or_a_second_wait_or_unnoticed() {
        let mut report = passed();
        assert_eq!(report.restart_gap(), RestartGap::WithinCutover);
        let later = Gap {
            from: at(20_000),
            to: at(21_400),
        };
        report.verdict.later_gaps = vec![later];
        assert_eq!(
            report.restart_gap(),
            RestartGap::WithinCutover,
            "another gap is not the restart's"
        );
        report.restarting = Some(span(20_100, 21_100));
        assert_eq!(report.restart_gap(), RestartGap::SecondWait(later));
        assert_eq!(report.restart_gap().length(), at(1_400));
        report.verdict.later_gaps.clear();
        assert_eq!(report.restart_gap(), RestartGap::Unnoticed);
        report.restarting = None;
        assert_eq!(report.restart_gap(), RestartGap::NoRestart);
    }

    #[test]
    fn without_clients_on_both_servers_the_wait_is_that_over_all() {
        let mut report = passed();
        report.verdict.gap_by_client.clear();
        let gap = report.verdict.gap.unwrap().length();
        assert_eq!(report.client_waits(), Some((gap, gap)));
    }
}
