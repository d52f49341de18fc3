//! The loop: look, decide, act, look again. It knows no order of things (that is `decide`) and no
//! servers (that is a [`World`]).

#![allow(
    clippy::result_large_err,
    reason = "a run ends once, and why it ends is carried whole"
)]

use std::time::Duration;

use crate::{
    checks,
    failure::{ErrorKind, Failure},
    finding::worst,
};

use crate::{
    decide::{Health, decide},
    decision::{Action, Decision, Limits},
    reason::{Contradiction, Stopped, Wait},
    record::{Fact, Record, Start},
    rollback::{self as back, RollbackAvailability},
    snapshot::Snapshot,
};

/// Everything outside the program. Two implementations: `LiveWorld`, and `Model` in the tests.
#[allow(
    async_fn_in_trait,
    reason = "both worlds run on one thread, so that no bound on the futures is missing"
)]
pub trait World {
    /// Reads the record, and looks at everything.
    async fn observe(&mut self) -> Result<(Record, Snapshot), Failure>;
    /// What must succeed before the start is recorded: the changes that come past the point of no
    /// return are tried as server-side dry runs, and the replica counts are copied to where a
    /// person finds them. It may be repeated, and it changes nothing that a rollback would have to
    /// restore; no decision depends on it, so it is no action of the protocol.
    async fn prepare_start(&mut self, start: &Start) -> Result<(), Failure>;
    /// Adds a fact to the record as it was last read or written, and returns the record. None:
    /// somebody else wrote first; look again.
    async fn record(&mut self, fact: Fact) -> Result<Option<Record>, Failure>;
    /// Performs an action; returns the fact that it leaves, if that cannot be observed.
    async fn perform(&mut self, action: &Action, start: &Start) -> Result<Option<Fact>, Failure>;
    /// Waits before the next look, and says for what.
    async fn pause(&mut self, missing: &Wait, pace: PollInterval);
    /// SIGTERM has arrived.
    fn stop_asked(&self) -> bool;
    /// Where to.
    fn direction(&self) -> Direction;
}

/// Where a program is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the target; back only when it must.
    Forward,
    /// Back to the source, and never forward.
    Back,
}

/// How soon to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollInterval {
    /// Something is on its way.
    Close,
    /// A look or an effect failed.
    Failed,
}

/// Observations or effects that may fail in a row, [`PollInterval::Failed`] apart (0.5 s): the API
/// server may be away for some minutes.
const FAILURES_MAX: u32 = 600;
/// The same for errors that a person must mend, such as a missing verb.
const LASTING_FAILURES_MAX: u32 = 30;
/// Failures in a row that are retried at once.
const QUICK_RETRIES: u32 = 5;
/// Past the point of no return clients wait for the end, and the next pod starts only after the
/// Job's back-off: one that is asked to end still lets them through, if that takes no longer than
/// this. Its pod has ten times as much for its end (manifests/base).
const SHUTDOWN_GRACE: Duration = Duration::from_secs(60);
/// An effect that has not shown after so many times is waited for like anything else.
const REPEATS: u32 = 50;
/// Looks in all: no run is endless, whatever the world does.
const LOOKS_MAX: u32 = 100_000;

/// Drives the cut to one of its ends.
///
/// # Errors
/// Why it has come to another end.
pub async fn drive(world: &mut impl World, limits: &Limits) -> Result<(), Stopped> {
    let mut failures = Failures::default();
    let mut first_look: Option<jiff::Timestamp> = None;
    let mut asked_at: Option<jiff::Timestamp> = None;
    let mut health = Health::Ok;
    let mut past_point_of_no_return = false;
    let mut repeated = Repeated::default();
    for _ in 0..LOOKS_MAX {
        let (record, seen) = match world.observe().await {
            Ok(look) => look,
            Err(failure) => {
                failures.add(&failure);
                let failure = past(past_point_of_no_return, failure);
                give_up(failure, failures, first_look.is_some(), world).await?;
                continue;
            }
        };
        past_point_of_no_return |= record.past_point_of_no_return();
        let waited = seen
            .now
            .duration_since(*first_look.get_or_insert(seen.now))
            .unsigned_abs();
        if record.past_point_of_no_return() && record.finished.is_none() && world.stop_asked() {
            let asked = seen
                .now
                .duration_since(*asked_at.get_or_insert(seen.now))
                .unsigned_abs();
            if record.serving.is_some() || asked >= SHUTDOWN_GRACE {
                return Err(Stopped::Terminated);
            }
        }
        if world.direction() == Direction::Back
            && let RollbackAvailability::TooLate(refusal) = back::rollback_availability(&record)
        {
            return Err(Stopped::Refused(refusal));
        }
        let untouched = record.started.is_none();
        let outcome = match follow(world, record, &seen, &health, limits).await {
            Ok(Next::Look(action)) => {
                if let Some(wait) = repeated.ineffective(action) {
                    check_deadline(untouched, waited, limits, &wait)?;
                    world.pause(&wait, PollInterval::Close).await;
                }
                Ok(())
            }
            Ok(Next::Pause(wait)) => {
                repeated = Repeated::default();
                check_deadline(untouched, waited, limits, &wait)?;
                world.pause(&wait, PollInterval::Close).await;
                Ok(())
            }
            Ok(Next::End(end)) => return end,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = outcome {
            failures.add(&failure);
            if failures.lasting > QUICK_RETRIES && health == Health::Ok {
                health = Health::Failing(failure.clone());
            }
            give_up(
                past(past_point_of_no_return, failure),
                failures,
                true,
                world,
            )
            .await?;
        } else {
            failures = Failures::default();
        }
    }
    Err(Stopped::TooManyObservations)
}

/// What follows a look.
enum Next {
    /// After this effect, if there was one.
    Look(Option<Action>),
    Pause(Wait),
    End(Result<(), Stopped>),
}

/// Decides and acts on one look. What is recorded leads to the next decision at once: its effect is
/// as safe on this look as on a stale one, and clients are waiting.
async fn follow(
    world: &mut impl World,
    mut record: Record,
    seen: &Snapshot,
    health: &Health,
    limits: &Limits,
) -> Result<Next, Failure> {
    let mut fresh = true;
    loop {
        let decision = decide(&record, seen, health, limits);
        let fact = match decision {
            Decision::Record(fact) => fact,
            Decision::Do(action) => {
                let Some(start) = &record.started else {
                    return Err(Contradiction::EffectBeforeStart.into());
                };
                if let Some(fact) = world.perform(&action, start).await? {
                    world.record(fact).await?;
                }
                return Ok(Next::Look(Some(action)));
            }
            Decision::Wait(wait) => return Ok(Next::Pause(wait)),
            // Another cutover may have acted since: only a look that is newer than the record may
            // be the last.
            _ if !fresh => return Ok(Next::Look(None)),
            end => return Ok(Next::End(ended(end, seen, limits))),
        };
        fresh = false;
        if let Fact::Started(start) = &fact {
            world.prepare_start(start).await?;
        }
        // Each fact is recorded once, so this comes to an end: a decision is never to record what
        // is recorded.
        match world.record(fact).await? {
            Some(recorded) if recorded != record => record = recorded,
            _ => return Ok(Next::Look(None)),
        }
    }
}

/// The same effect again and again, because what it is to change does not: somebody else changes it
/// back, or a look cannot show it.
#[derive(Default)]
struct Repeated {
    action: Option<Action>,
    times: u32,
}

impl Repeated {
    /// What is done in vain, after [`REPEATS`].
    fn ineffective(&mut self, action: Option<Action>) -> Option<Wait> {
        if action.is_none() || action != self.action {
            *self = Self { action, times: 0 };
        }
        self.times += 1;
        let action = self.action.as_ref().filter(|_| self.times > REPEATS)?;
        Some(Wait::EffectNotObserved {
            action: action.name(),
        })
    }
}

/// What cannot be refused any more is for a person to look at: "nothing irreversible was done" is
/// no longer true.
fn past(past_point_of_no_return: bool, failure: Failure) -> Failure {
    match failure.kind {
        ErrorKind::Refused if past_point_of_no_return => failure.of_kind(ErrorKind::Unsafe),
        _ => failure,
    }
}

/// The four ends.
fn ended(end: Decision, seen: &Snapshot, limits: &Limits) -> Result<(), Stopped> {
    match end {
        Decision::NotReady(_) => worst(&checks::all(seen, limits)).map_err(Stopped::NotReady),
        Decision::Refuse(refusal) => Err(Stopped::Refused(refusal)),
        Decision::Alarm(contradiction) => Err(Stopped::Contradiction(contradiction)),
        _ => Ok(()),
    }
}

/// Failures in a row. A lasting one between others may pass, too: an API server that has just come
/// back forbids what it will allow.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    any: u32,
    lasting: u32,
}

impl Failures {
    fn add(&mut self, failure: &Failure) {
        self.any += 1;
        self.lasting = if failure.kind == ErrorKind::Transient {
            0
        } else {
            self.lasting + 1
        };
    }
}

/// A failed look or effect is repeated after a pause; what a person must mend ends the program at
/// once while nothing was touched.
async fn give_up(
    failure: Failure,
    failures: Failures,
    has_looked: bool,
    world: &mut impl World,
) -> Result<(), Stopped> {
    let lasting_max = if has_looked { LASTING_FAILURES_MAX } else { 0 };
    if failures.any <= FAILURES_MAX && failures.lasting <= lasting_max {
        // What moves under a look, such as a server that is just ending, is often over at the next
        // one.
        let pace = if failures.any <= QUICK_RETRIES {
            PollInterval::Close
        } else {
            PollInterval::Failed
        };
        world.pause(&Wait::Failed(failure), pace).await;
        return Ok(());
    }
    Err(Stopped::Failed(failure))
}

/// Before anything was changed and past the point of no return a wait has no other end; in between
/// `decide` goes back by itself.
fn check_deadline(
    untouched: bool,
    waited: Duration,
    limits: &Limits,
    wait: &Wait,
) -> Result<(), Stopped> {
    if untouched && waited >= limits.cutover_max {
        return Err(Stopped::NotReadyInTime(wait.clone()));
    }
    // Past the return and on the way back the person must learn of it, and a rerun waits on.
    if waited >= limits.cutover_max * 10 {
        return Err(Stopped::WaitedTooLong(wait.clone()));
    }
    Ok(())
}
