//! The instants of a promotion as the target observed them; the rehearsal subtracts the target's
//! own time from the programs' time.

use std::time::Duration;

use tokio::time::Instant;

/// The instants of the latest promotion; None for what has not happened yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromotionTimes {
    /// The operator observed `spec.replica.enabled: false`.
    pub requested: Option<Instant>,
    /// `pg_ctl promote` begins.
    pub promoting: Option<Instant>,
    /// The server is out of recovery.
    pub primary: Option<Instant>,
    /// The restart for archive_mode begins; new connections are refused.
    pub restart_began: Option<Instant>,
    /// The server answers again.
    pub restart_ended: Option<Instant>,
    /// The pod is ready again and in its Service.
    pub serving: Option<Instant>,
    /// No restart is needed after the promotion.
    pub settled: Option<Instant>,
    /// The phase is healthy.
    pub healthy: Option<Instant>,
}

impl PromotionTimes {
    /// When the promotion was complete: back in its Service after a restart, or known to need none.
    pub fn over(&self) -> Option<Instant> {
        self.serving.or(self.settled)
    }

    /// The target's own time from the request until it serves permanently: to its promotion if no
    /// restart follows, otherwise to the end of the restart. None while that is unknown.
    pub fn own(&self) -> Option<Duration> {
        let over = self.over()?;
        let end = if self.restart_began.is_some() {
            over
        } else {
            self.primary?
        };
        Some(end.duration_since(self.requested?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_belongs_to_the_targets_own_time() {
        let requested = Instant::now();
        let at = |ms| Some(requested + Duration::from_millis(ms));
        let mut promotion_times = PromotionTimes {
            requested: Some(requested),
            primary: at(900),
            ..PromotionTimes::default()
        };
        assert_eq!(promotion_times.own(), None, "a restart may follow");
        promotion_times.settled = at(1_500);
        assert_eq!(promotion_times.own(), Some(Duration::from_millis(900)));
        promotion_times.settled = None;
        promotion_times.restart_began = at(1_600);
        assert_eq!(promotion_times.own(), None, "not before it is over");
        promotion_times.serving = at(2_900);
        assert_eq!(promotion_times.own(), Some(Duration::from_millis(2_900)));
    }
}
