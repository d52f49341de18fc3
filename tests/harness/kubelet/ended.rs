//! A pod that has ended.

use std::{fmt, os::unix::process::ExitStatusExt, path::Path, process::ExitStatus, time::Duration};

use k8s_openapi::api::batch::v1::JobSpec;
use serde_json::Value;

use super::{
    Line, only_container,
    policy::{Next, next},
};
use crate::cost::Cost;

/// The kubelet's limits for a termination message and for the log that replaces it.
const MESSAGE_BYTES_MAX: usize = 4096;
const FALLBACK_BYTES_MAX: usize = 2048;
const FALLBACK_LINES_MAX: usize = 80;

/// A pod that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit code as in the container's status: 137 for SIGKILL.
    pub exit_code: i32,
    /// What the Job controller does next.
    pub next: Next,
    /// The message that `kubectl describe pod` shows.
    pub termination_message: String,
    /// Memory and processor time.
    pub cost: Cost,
    /// Time from start to end.
    pub elapsed: Duration,
    /// The log.
    pub log: Vec<Line>,
}

impl Ended {
    pub(super) fn new(
        spec: &JobSpec,
        status: ExitStatus,
        termination_log: &Path,
        log: Vec<Line>,
        elapsed: Duration,
        cost: Cost,
    ) -> Self {
        // As in a container's status.
        let exit_code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let written = std::fs::read(termination_log).unwrap_or_default();
        let termination_message = message(spec, exit_code, &written, &log);
        Self {
            exit_code,
            next: next(spec, exit_code),
            termination_message,
            cost,
            elapsed,
            log,
        }
    }

    /// The termination message parsed as JSON; null if it is not JSON.
    pub fn termination_json(&self) -> Value {
        serde_json::from_str(&self.termination_message).unwrap_or(Value::Null)
    }

    /// The whole log as text.
    pub fn text(&self) -> String {
        joined(&self.log)
    }
}

impl fmt::Display for Ended {
    /// The text for a failing test.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            exit_code,
            next,
            termination_message,
            log,
            ..
        } = self;
        write!(
            f,
            "exit code {exit_code} ({next:?}), message {termination_message}, log:\n{}",
            joined(log)
        )
    }
}

/// The termination message as the kubelet determines it (kubernetes.io, *Determine the Reason for
/// Pod Failure*).
fn message(spec: &JobSpec, exit_code: i32, written: &[u8], log: &[Line]) -> String {
    let policy =
        only_container(spec).and_then(|container| container.termination_message_policy.as_deref());
    if !written.is_empty() || exit_code == 0 || policy != Some("FallbackToLogsOnError") {
        return String::from_utf8_lossy(&written[..written.len().min(MESSAGE_BYTES_MAX)])
            .into_owned();
    }
    let last = joined(&log[log.len().saturating_sub(FALLBACK_LINES_MAX)..]);
    let from = last.len().saturating_sub(FALLBACK_BYTES_MAX);
    String::from_utf8_lossy(&last.as_bytes()[from..]).into_owned()
}

fn joined(lines: &[Line]) -> String {
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    texts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use serde_json::json;

    fn message_of(policy: &str, exit_code: i32, written: &str) -> String {
        let container = json!({"name": "step", "terminationMessagePolicy": policy});
        let spec =
            serde_json::from_value(json!({"template": {"spec": {"containers": [container]}}}))
                .unwrap();
        let line = |text: &str| Line {
            at: Timestamp::now(),
            text: text.to_owned(),
        };
        message(
            &spec,
            exit_code,
            written.as_bytes(),
            &[line("one"), line("two")],
        )
    }

    #[test]
    fn the_log_replaces_a_missing_termination_message_of_a_failed_program() {
        assert_eq!(message_of("FallbackToLogsOnError", 137, ""), "one\ntwo");
        assert_eq!(message_of("FallbackToLogsOnError", 3, "refused"), "refused");
        assert_eq!(message_of("FallbackToLogsOnError", 0, ""), "");
        assert_eq!(message_of("File", 137, ""), "");
    }
}
