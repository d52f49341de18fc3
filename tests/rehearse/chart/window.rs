//! The part of the run that the chart shows: the cutover with a margin on both sides.

use std::time::Duration;

use crate::report::{Report, numbers::since};

/// Bounds of the axis in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    zero: Duration,
    /// The axis begins here.
    pub from: f64,
    /// The axis ends here.
    pub to: f64,
}

impl Window {
    /// From before the last write on the source to after everything that clients could notice.
    /// Steps outside of it are named but not drawn.
    pub fn for_report(report: &Report) -> Self {
        let zero = report.zero();
        let gaps = report.verdict.gap.iter().chain(&report.verdict.later_gaps);
        let noticed: Vec<f64> = gaps
            .flat_map(|gap| [gap.from, gap.to])
            .chain(report.marks.iter().map(|mark| mark.at))
            .chain(
                report
                    .restarting
                    .iter()
                    .chain(&report.promoting)
                    .flat_map(|span| [span.from, span.to]),
            )
            .chain(report.block)
            .map(|at| since(zero, at))
            .collect();
        if noticed.is_empty() {
            return Self::whole(report, zero);
        }
        let (from, to) = noticed.iter().fold((f64::MAX, f64::MIN), |(from, to), at| {
            (from.min(*at), to.max(*at))
        });
        let margin = ((to - from) / 4.0).clamp(1.0, 5.0);
        Self {
            zero,
            from: from - margin,
            to: to + margin,
        }
    }

    /// A run without a cutover is shown completely.
    fn whole(report: &Report, zero: Duration) -> Self {
        let ends = report.steps.iter().map(|step| step.to.unwrap_or(step.from));
        let last = report
            .series
            .iter()
            .map(|bucket| bucket.start)
            .chain(ends)
            .max();
        Self {
            zero,
            from: 0.0,
            to: last.map_or(0.0, |last| since(zero, last)).max(1.0),
        }
    }

    /// Position of an instant of the ledger on the axis, in seconds.
    pub fn position(&self, at: Duration) -> f64 {
        since(self.zero, at)
    }
}
