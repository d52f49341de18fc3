//! Why a program ends without having reached its goal.

use crate::failure::{ErrorKind, Failure};

use super::{Contradiction, Refusal, Wait};

/// The end of a run that has not completed the cutover. It turns into the [`Failure`] that the log,
/// the termination message and the exit code show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// A check does not pass, waiting does not help, and nothing was changed.
    NotReady(Failure),
    /// The cutover is refused or rolled back, or a rollback is refused.
    Refused(Refusal),
    /// Manual intervention is required.
    Contradiction(Contradiction),
    /// SIGTERM past the point of no return: another run completes the cutover.
    Terminated,
    /// The checks did not pass in time, and nothing was changed.
    NotReadyInTime(Wait),
    /// Past the point of no return, or during a rollback: another run goes on.
    WaitedTooLong(Wait),
    /// The limit of observations in one run is reached.
    TooManyObservations,
    /// An observation or an effect failed for too long.
    Failed(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::NotReady(failure) => failure,
            Stopped::Refused(refusal) => {
                Self::new(refusal.kind(), refusal.to_string()).hint(refusal.hint())
            }
            Stopped::Contradiction(contradiction) => contradiction.into(),
            Stopped::Terminated => Self::transient(
                "asked to end (SIGTERM) past the point of no return; every step so far is recorded",
            )
            .hint("start the cutover again: it goes on from here"),
            Stopped::NotReadyInTime(wait) => waited("not ready", &wait)
                .hint("nothing was changed; run validate-replication to see all that is missing"),
            Stopped::WaitedTooLong(wait) => waited("gave up waiting", &wait)
                .hint("every step so far is recorded; start the cutover again to go on from here"),
            Stopped::TooManyObservations => Self::transient("the cutover did not come to an end")
                .hint("start it again: it goes on from what is recorded"),
            Stopped::Failed(failure) => failure.hint(
                "start the cutover again when this is fixed: it goes on from what is recorded",
            ),
        }
    }
}

impl From<Contradiction> for Failure {
    fn from(contradiction: Contradiction) -> Self {
        Self::new(ErrorKind::Unsafe, contradiction.to_string()).hint(contradiction.hint())
    }
}

/// Another run may see the end of a wait; a hint of its cause comes first.
fn waited(outcome: &str, wait: &Wait) -> Failure {
    Failure {
        hint: wait.hint().map(str::to_owned),
        ..Failure::transient(format!("{outcome}: {wait}"))
    }
}
