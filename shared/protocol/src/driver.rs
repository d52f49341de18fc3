//! The loop that observes, decides and acts. The order of the steps is in
//! [`decide`](crate::decide); access to servers and to the API is in a [`World`].

#![allow(
    clippy::result_large_err,
    reason = "a run returns its error once, with all of its data"
)]

use std::time::Duration;

use crate::{
    checks,
    decide::{Health, decide},
    decision::{Action, Decision, Limits},
    failure::{ErrorKind, Failure},
    finding::worst,
    quantity::elapsed,
    reason::{Contradiction, Stopped, Wait, WaitKind},
    record::{Fact, FactKind, Record, Start},
    rollback::{RollbackAvailability, rollback_availability},
    snapshot::Snapshot,
};

/// Everything outside the program. Two implementations: `LiveWorld`, and `Model` in the tests.
#[allow(
    async_fn_in_trait,
    reason = "both worlds run on one thread, so the futures need no bounds"
)]
pub trait World {
    /// Reads the record and takes a snapshot of both sides.
    async fn observe(&mut self) -> Result<(Record, Snapshot), Failure>;
    /// Does what must succeed before the start is recorded: tries the changes past the point of no
    /// return as server-side dry runs, and copies the replica counts to where an administrator
    /// finds them. It may be repeated, and it changes nothing that a rollback has to restore. No
    /// decision depends on it, so it is not an action of the protocol.
    async fn prepare_start(&mut self, start: &Start) -> Result<(), Failure>;
    /// Tries the changes past the point of no return once more immediately before the block, which
    /// may be long after the start: a webhook that is away is met while clients are still served.
    async fn prepare_block(&mut self) -> Result<(), Failure>;
    /// Adds a fact to the record as it was last read or written, and returns the record. None:
    /// another writer came first, and the caller has to observe again.
    async fn record(&mut self, fact: Fact) -> Result<Option<Record>, Failure>;
    /// Performs an action. Returns the fact to record, if its result cannot be observed.
    async fn perform(&mut self, action: &Action, start: &Start) -> Result<Option<Fact>, Failure>;
    /// Waits before the next observation, and reports for what.
    async fn pause(&mut self, missing: &Wait, interval: PollInterval);
    /// Whether SIGTERM was received.
    fn stop_asked(&self) -> bool;
    /// The direction of this program.
    fn direction(&self) -> Direction;
}

/// Which side a program moves the application to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the target, with a rollback if that is necessary.
    Forward,
    /// To the source only.
    Back,
}

/// How soon to observe again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollInterval {
    /// A change is in progress.
    Close,
    /// An observation or an effect failed.
    Failed,
}

/// How many observations or effects may fail in a row, [`PollInterval::Failed`] (0.5 s) apart: the
/// API server may be unavailable for some minutes.
const FAILURES_MAX: u32 = 600;
/// The same for errors that only an administrator can fix, such as a missing verb.
const LASTING_FAILURES_MAX: u32 = 30;
/// How many failures in a row are retried at once.
const QUICK_RETRIES: u32 = 5;
/// How long a program that received SIGTERM past the point of no return still tries to resume
/// client traffic. Clients wait for that, and the next pod starts only after the Job's back-off.
/// The pod's termination grace period is ten times as long (manifests/base).
const SHUTDOWN_GRACE: Duration = Duration::from_secs(60);
/// After this number of repetitions without a visible effect, an action is reported as a wait.
const REPEATS: u32 = 50;
/// The most observations of one run, so that every run ends.
const OBSERVATIONS_MAX: u32 = 100_000;

/// Drives the cutover, or its rollback, to an end.
///
/// # Errors
/// The reason why the application does not run on the target.
pub async fn drive(world: &mut impl World, limits: &Limits) -> Result<(), Stopped> {
    let mut failures = Failures::default();
    let mut first_observation: Option<jiff::Timestamp> = None;
    let mut last_observation: Option<jiff::Timestamp> = None;
    let mut unobserved = false;
    let mut asked_at: Option<jiff::Timestamp> = None;
    let mut health = Health::default();
    let mut past_point_of_no_return = false;
    let mut known: Option<Record> = None;
    let mut repeated = Repeated::default();
    for _ in 0..OBSERVATIONS_MAX {
        let (record, seen) = match world.observe().await {
            Ok(observed) => observed,
            Err(failure) => {
                unobserved = true;
                failures.add(&failure);
                let failure = refused_too_late(past_point_of_no_return, failure);
                give_up(failure, failures, first_observation.is_some(), world).await?;
                continue;
            }
        };
        // An observation that succeeds after others have failed ends an interruption.
        let before = last_observation.replace(seen.now);
        health.interrupted = before
            .filter(|_| std::mem::take(&mut unobserved))
            .map(|before| elapsed(before, seen.now));
        remember(&mut known, &record).map_err(Stopped::Contradiction)?;
        past_point_of_no_return |= record.past_point_of_no_return();
        let waited = elapsed(*first_observation.get_or_insert(seen.now), seen.now);
        if record.past_point_of_no_return() && record.finished.is_none() && world.stop_asked() {
            let asked = elapsed(*asked_at.get_or_insert(seen.now), seen.now);
            if record.serving.is_some() || asked >= SHUTDOWN_GRACE {
                return Err(Stopped::Terminated);
            }
        }
        if world.direction() == Direction::Back
            && let RollbackAvailability::TooLate(refusal) = rollback_availability(&record)
        {
            return Err(Stopped::Refused(refusal));
        }
        let untouched = record.started.is_none();
        let outcome = match follow(world, record, &seen, &health, limits, &mut known).await {
            Ok(Next::Observe(action)) => {
                health.waiting = None;
                if let Some(wait) = repeated.ineffective(action) {
                    check_deadline(untouched, waited, limits, &wait)?;
                    world.pause(&wait, PollInterval::Close).await;
                }
                Ok(())
            }
            Ok(Next::Pause(wait)) => {
                let kind = WaitKind::from(&wait);
                if health.waiting.is_none_or(|(before, _)| before != kind) {
                    health.waiting = Some((kind, seen.now));
                }
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
            if failures.lasting > QUICK_RETRIES && health.failure.is_none() {
                health.failure = Some(failure.clone());
            }
            give_up(
                refused_too_late(past_point_of_no_return, failure),
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

/// Remembers the record.
///
/// # Errors
/// It was removed while the cutover was under way.
fn remember(known: &mut Option<Record>, record: &Record) -> Result<(), Contradiction> {
    if let Some(before) = known
        && before.under_way()
        && record.started.is_none()
    {
        let last = before.last().unwrap_or(FactKind::Started);
        return Err(Contradiction::RecordLost { last });
    }
    *known = Some(record.clone());
    Ok(())
}

/// What follows an observation.
enum Next {
    /// Observe again, after this action if there was one.
    Observe(Option<Action>),
    Pause(Wait),
    End(Result<(), Stopped>),
}

/// Decides and acts on one snapshot. A recorded fact leads to the next decision at once, because
/// clients are waiting and every action is safe on a stale snapshot.
async fn follow(
    world: &mut impl World,
    mut record: Record,
    seen: &Snapshot,
    health: &Health,
    limits: &Limits,
    known: &mut Option<Record>,
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
                if let Some(fact) = world.perform(&action, start).await?
                    && let Some(recorded) = world.record(fact).await?
                {
                    *known = Some(recorded);
                }
                return Ok(Next::Observe(Some(action)));
            }
            Decision::Wait(wait) => return Ok(Next::Pause(wait)),
            // Another cutover run may have acted since, so the run ends only on a snapshot that is
            // newer than the record.
            _ if !fresh => return Ok(Next::Observe(None)),
            end => return Ok(Next::End(ended(end, seen, limits))),
        };
        fresh = false;
        if let Fact::Started(start) = &fact {
            world.prepare_start(start).await?;
        }
        if let Fact::Blocked(_) = &fact {
            world.prepare_block().await?;
        }
        // Each fact is recorded once, and no decision records the same fact again: the loop ends.
        match world.record(fact).await? {
            Some(recorded) if recorded != record => {
                *known = Some(recorded.clone());
                record = recorded;
            }
            _ => return Ok(Next::Observe(None)),
        }
    }
}

/// Counts repetitions of the same action. An action repeats without end if another actor reverts
/// its effect, or if no observation can show the effect.
#[derive(Default)]
struct Repeated {
    action: Option<Action>,
    times: u32,
}

impl Repeated {
    /// The wait to report when an action was repeated more than [`REPEATS`] times.
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

/// Makes a refusal past the point of no return a failure that requires manual intervention:
/// "nothing irreversible was done" is no longer true there.
fn refused_too_late(past_point_of_no_return: bool, failure: Failure) -> Failure {
    match failure.kind {
        ErrorKind::Refused if past_point_of_no_return => failure.of_kind(ErrorKind::Unsafe),
        _ => failure,
    }
}

/// The run's result for each of the four ends.
fn ended(end: Decision, seen: &Snapshot, limits: &Limits) -> Result<(), Stopped> {
    match end {
        Decision::NotReady(_) => worst(&checks::all(seen, limits)).map_err(Stopped::NotReady),
        Decision::Refuse(refusal) => Err(Stopped::Refused(refusal)),
        Decision::Alarm(contradiction) => Err(Stopped::Contradiction(contradiction)),
        _ => Ok(()),
    }
}

/// Counts failures in a row. Even a lasting failure may pass: an API server that has just restarted
/// can forbid what it allows later.
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

/// Pauses before a failed observation or effect is repeated. An error that only an administrator
/// can fix ends the program at once if it comes before the first snapshot.
async fn give_up(
    failure: Failure,
    failures: Failures,
    has_observed: bool,
    world: &mut impl World,
) -> Result<(), Stopped> {
    let lasting_max = if has_observed {
        LASTING_FAILURES_MAX
    } else {
        0
    };
    if failures.any <= FAILURES_MAX && failures.lasting <= lasting_max {
        // A transition during an observation, such as a server that is shutting down, is often over
        // at the next one.
        let interval = if failures.any <= QUICK_RETRIES {
            PollInterval::Close
        } else {
            PollInterval::Failed
        };
        world.pause(&Wait::Failed(failure), interval).await;
        return Ok(());
    }
    Err(Stopped::Failed(failure))
}

/// Ends a wait that takes too long. Between the start and the point of no return `decide` rolls
/// back by itself; before and after, and during a rollback, only this ends the wait.
fn check_deadline(
    untouched: bool,
    waited: Duration,
    limits: &Limits,
    wait: &Wait,
) -> Result<(), Stopped> {
    if untouched && waited >= limits.cutover_max {
        return Err(Stopped::NotReadyInTime(wait.clone()));
    }
    // Past the point of no return and during a rollback: the failure is reported, and a rerun
    // continues to wait.
    if waited >= limits.cutover_max * 10 {
        return Err(Stopped::WaitedTooLong(wait.clone()));
    }
    Ok(())
}
