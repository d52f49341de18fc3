//! The failpoints at which a cutover can be disturbed, as the program logs them with `FAILPOINT=*`.
//! None is listed here: new actions and facts appear by themselves.

use crate::kubelet::Line;

const NAMED: &str = "failpoint ";
const WAITING: &str = ": waiting";

/// The phase of a cutover at a failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Clients are not affected yet.
    BeforeBlock,
    /// Writes are blocked; lifting the block accepts them again.
    Blocked,
    /// The source's server is stopped.
    Fenced,
    /// Past the point of no return.
    PastPointOfNoReturn,
}

/// Failpoints in the order in which they were first reached.
#[derive(Clone, Debug, Default)]
pub struct Failpoints(Vec<String>);

impl Failpoints {
    /// The failpoints in a log.
    pub fn from_log(log: &[Line]) -> Self {
        let mut all: Vec<String> = Vec::new();
        for failpoint in log.iter().filter_map(|line| failpoint_in(&line.text)) {
            if !all.contains(&failpoint) {
                all.push(failpoint);
            }
        }
        Self(all)
    }

    /// All failpoints.
    pub fn all(&self) -> &[String] {
        &self.0
    }

    /// The failpoints from one phase to another, both included.
    pub fn between(&self, from: Phase, to: Phase) -> Vec<&str> {
        let in_phases = |failpoint: &&String| (from..=to).contains(&self.phase(failpoint));
        self.0
            .iter()
            .filter(in_phases)
            .map(String::as_str)
            .collect()
    }

    /// The failpoints from this one on.
    pub fn from(&self, failpoint: &str) -> Vec<&str> {
        self.0
            .iter()
            .map(String::as_str)
            .skip_while(|known| *known != failpoint)
            .collect()
    }

    /// The phase of a failpoint.
    pub fn phase(&self, failpoint: &str) -> Phase {
        let index = |failpoint: &str| {
            self.0
                .iter()
                .position(|known| known == failpoint)
                .unwrap_or(usize::MAX)
        };
        let is_behind = |landmark: &str| index(failpoint) >= index(landmark);
        if is_behind("after record Promotion") {
            Phase::PastPointOfNoReturn
        } else if is_behind("after Fence") {
            Phase::Fenced
        } else if is_behind("after record Blocked") {
            Phase::Blocked
        } else {
            Phase::BeforeBlock
        }
    }
}

/// The failpoint that a log line names.
pub fn failpoint_in(line: &str) -> Option<String> {
    let (_, failpoint) = line.split_once(NAMED)?;
    Some(failpoint.trim_end_matches(WAITING).trim().to_owned())
}

/// The text that the program logs when it waits at a failpoint; at any failpoint, if None.
pub fn waiting_line(failpoint: Option<&str>) -> String {
    failpoint.map_or_else(
        || NAMED.to_owned(),
        |failpoint| format!("{NAMED}{failpoint}{WAITING}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failpoints() -> Failpoints {
        let lines = [
            "before SuspendController",
            "before SuspendController",
            "after record Blocked",
            "before Fence",
            "after Fence",
            "after record Promotion",
        ];
        let line = |text: &str| Line {
            at: jiff::Timestamp::UNIX_EPOCH,
            text: format!("+00:01.2 failpoint {text}"),
        };
        Failpoints::from_log(&lines.map(line))
    }

    #[test]
    fn each_is_listed_once_and_belongs_to_a_phase() {
        let failpoints = failpoints();
        assert_eq!(failpoints.all().len(), 5);
        assert_eq!(
            failpoints.between(Phase::BeforeBlock, Phase::BeforeBlock),
            ["before SuspendController"]
        );
        assert_eq!(
            failpoints.between(Phase::Blocked, Phase::Fenced),
            ["after record Blocked", "before Fence", "after Fence"]
        );
        assert_eq!(
            failpoints.phase("after record Promotion"),
            Phase::PastPointOfNoReturn
        );
    }

    #[test]
    fn a_waiting_line_names_the_same_failpoint() {
        let line = format!("x {}", waiting_line(Some("after record Marker")));
        assert_eq!(failpoint_in(&line).as_deref(), Some("after record Marker"));
        assert_eq!(failpoint_in("blocking writes"), None);
    }
}
