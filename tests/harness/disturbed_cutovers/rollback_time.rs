//! How long rollbacks take, and what may make one slow.

use std::{fmt, time::Duration};

use super::fault::Fault;

/// The source takes writes again within this time after the decision to roll back.
pub const ROLLBACK_MAX: Duration = Duration::from_secs(10);

/// One rollback after the block.
#[derive(Clone, Debug, PartialEq)]
pub struct RollbackTime {
    /// From the decision to the first write that the source acknowledged after it.
    pub took: Duration,
    /// Why it rolled back, as the record says.
    pub reason: String,
    /// What was injected since the attempt began, in order.
    pub faults: Vec<Fault>,
}

impl RollbackTime {
    /// True if it took longer than [`ROLLBACK_MAX`].
    pub fn is_slow(&self) -> bool {
        self.took > ROLLBACK_MAX
    }

    /// The fault that allows it to take longer, if one was injected.
    pub fn cause(&self) -> Option<&'static str> {
        self.faults
            .iter()
            .find_map(|fault| fault.slows_the_rollback())
    }
}

impl fmt::Display for RollbackTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
        write!(
            f,
            "a rollback took {:.1} s after {}: {} ({})",
            self.took.as_secs_f64(),
            faults.join(", "),
            self.reason,
            self.cause().unwrap_or("no cause that allows this")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollback(seconds: u64, faults: &[Fault]) -> RollbackTime {
        RollbackTime {
            took: Duration::from_secs(seconds),
            reason: "the source failed over".to_owned(),
            faults: faults.to_vec(),
        }
    }

    #[test]
    fn only_listed_faults_allow_a_slow_rollback() {
        assert!(!rollback(10, &[Fault::Kill]).is_slow());
        assert!(rollback(11, &[Fault::Kill]).is_slow());
        assert_eq!(rollback(11, &[Fault::Kill, Fault::Abort]).cause(), None);
        let away = rollback(51, &[Fault::Kill, Fault::ApiServerAway(30)]);
        assert_eq!(away.cause(), Some("API server away"));
        assert_eq!(
            rollback(20, &[Fault::LeaderLost]).cause(),
            Some("leader's node lost")
        );
    }
}
