//! The small world: what is true, what can happen in it, and what a look shows.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use shared::{
    kubernetes::{workloads::Replicas, zalando::FROZEN},
    postgres::{
        Identity, Lsn, SystemIdentifier, Timeline,
        source::Incarnation,
        target::{ControlCheckpoint, Replay, Running},
    },
};

use crate::{
    decision::{Action, Limits},
    journal::{AppConfig, Fact, Journal, Marker, Promoted, Start},
    observation::{Observation, PatroniSeen, Sight, SourceSeen, TargetSeen},
};

/// A WAL record. Each takes 120 bytes here, so that positions are exact and none crosses a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wal {
    /// A commit that its client was told of.
    Write,
    /// A clean stop.
    Shutdown,
}

const FIRST: u64 = 0x100_0028;
const RECORD_BYTES: u64 = 120;
const WRITES_MAX: usize = 2;
/// Patroni starts a stopped server again and again while nobody pauses it; so often is enough to see what that breaks.
const STARTS_MAX: u8 = 3;

/// How often each disturbance may still happen, and how many of all kinds together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fuel {
    pub together: u8,
    pub writes: u8,
    pub stubborn: u8,
    pub lifts: u8,
    pub operator: u8,
    pub failovers: u8,
    pub cuts: u8,
    pub crashes: u8,
    pub lost_answers: u8,
    pub ticks: u8,
    pub aborts: u8,
}

/// Everything that is true.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// Number of the journal in the table of all journals seen.
    pub journal: usize,
    pub version: u32,
    pub wal: Vec<Wal>,
    pub source_up: bool,
    pub incarnation: u8,
    pub timeline: u32,
    pub paused: bool,
    pub read_only: bool,
    pub frozen: bool,
    pub connected: bool,
    pub replayed: usize,
    pub control: Option<usize>,
    pub follows: bool,
    pub primary: bool,
    pub restarted: bool,
    pub target_wrote: bool,
    pub scaled: bool,
    /// The Deployment's resourceVersion.
    pub app_version: u8,
    pub routed: bool,
    /// How often a time as long as the deadline has passed.
    pub clock: u8,
    pub aborted: bool,
    pub fuel: Fuel,
}

thread_local! {
    /// Few journals exist; a state holds only its number, which keeps millions of states small.
    static JOURNALS: RefCell<Vec<Journal>> = const { RefCell::new(Vec::new()) };
}

fn number_of(journal: Journal) -> usize {
    JOURNALS.with_borrow_mut(|journals| {
        journals.iter().position(|known| *known == journal).unwrap_or_else(|| {
            journals.push(journal);
            journals.len() - 1
        })
    })
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn start_of(record: usize) -> Lsn {
    Lsn((FIRST + record as u64 * RECORD_BYTES).into())
}

impl World {
    /// Before the cut: two clients may write, everything serves.
    pub fn new(fuel: Fuel) -> Self {
        Self {
            journal: number_of(Journal::default()),
            version: 0,
            wal: vec![Wal::Write],
            source_up: true,
            incarnation: 0,
            timeline: 1,
            paused: false,
            read_only: false,
            frozen: false,
            connected: true,
            replayed: 1,
            control: None,
            follows: true,
            primary: false,
            restarted: false,
            target_wrote: false,
            scaled: true,
            app_version: 0,
            routed: false,
            clock: 0,
            aborted: false,
            fuel,
        }
    }

    pub fn journal(&self) -> Journal {
        Self::journal_of(self.journal)
    }

    pub fn journal_of(number: usize) -> Journal {
        JOURNALS.with_borrow(|journals| journals[number].clone())
    }

    /// A look at everything, as `Live` would have it.
    pub fn look(&self) -> Observation {
        let identity = |timeline: u32| Identity {
            system_identifier: SystemIdentifier(7),
            timeline: Timeline(timeline),
            version: 170_010,
        };
        let silent = || "connection refused".to_owned();
        Observation {
            now: at(i64::from(self.clock) * 1_000),
            source: if self.source_up {
                Sight::Answers(SourceSeen {
                    identity: identity(self.timeline),
                    primary: true,
                    read_only: self.read_only,
                    insert: Some(start_of(self.wal.len())),
                    incarnation: Incarnation(i64::from(self.incarnation)),
                    clients: Vec::new(),
                })
            } else {
                Sight::Silent(silent())
            },
            patroni: Sight::Answers(PatroniSeen {
                paused: self.paused.then_some(true),
                read_only: self.read_only.then(|| "on".to_owned()),
                leader: Some(if self.timeline == 1 { "a" } else { "b" }.to_owned()),
                primaries: if self.source_up { vec!["a".into()] } else { Vec::new() },
                silent: Vec::new(),
            }),
            controller: self.frozen.then(|| FROZEN.to_owned()),
            target: Sight::Answers(self.target(identity(if self.primary { 2 } else { 1 }))),
            follows: self.follows,
            apps: [(
                "web".to_owned(),
                Replicas {
                    wanted: i32::from(self.scaled),
                    ready: i32::from(self.scaled),
                    existing: 1,
                    version: String::new(),
                },
            )]
            .into(),
            config: self.config(),
            readiness: Vec::new(),
            abort: self.aborted.then(|| "abort asked".to_owned()),
        }
    }

    fn target(&self, identity: Identity) -> TargetSeen {
        // A shutdown checkpoint has redo = itself; before any, pg_control tells of an online one.
        let control = match self.control {
            Some(record) => ControlCheckpoint {
                checkpoint: start_of(record),
                redo: start_of(record),
                timeline: Timeline(self.timeline_of(record)),
            },
            None => ControlCheckpoint {
                checkpoint: start_of(0),
                redo: Lsn((FIRST - RECORD_BYTES).into()),
                timeline: Timeline(1),
            },
        };
        let done = self.primary && self.restarted;
        TargetSeen {
            identity,
            in_recovery: !self.primary,
            replay: Replay {
                receive: None,
                replay: Some(start_of(self.replayed)),
                streaming: self.connected,
                paused: false,
            },
            control,
            running: Running {
                archive_mode: if done { "on" } else { "always" }.into(),
                pending_restart: 0,
                postmaster_start: at(if done { 500 } else { -500 }),
                now: at(0),
            },
            segment_bytes: 16 << 20,
        }
    }

    fn timeline_of(&self, _record: usize) -> u32 {
        self.timeline
    }

    fn config(&self) -> AppConfig {
        let host = if self.routed { "target" } else { "source" };
        AppConfig {
            name: "app".into(),
            values: [("DB_HOST".to_owned(), Some(host.to_owned()))].into(),
        }
    }

    /// The limits that the drivers are given.
    pub fn limits() -> Limits {
        Limits {
            cutover_max: Duration::from_secs(100),
            config: BTreeMap::from([("DB_HOST".to_owned(), "target".to_owned())]),
        }
    }

    /// Compare-and-swap, as the API server does it.
    pub fn record(&mut self, fact: Fact, read: u32, checked: bool) -> bool {
        if checked && read != self.version {
            return false;
        }
        self.journal = number_of(self.journal().with(fact));
        self.version += 1;
        true
    }

    /// An effect; returns the fact that it leaves.
    pub fn perform(&mut self, action: &Action, start: &Start, app_version: u8) -> Option<Fact> {
        match action {
            Action::FreezeOperator => self.frozen = true,
            Action::UnfreezeOperator => self.frozen = start.controller.is_some(),
            Action::Checkpoint => return Some(Fact::Checkpointed(at(0))),
            Action::Hold => (self.paused, self.read_only) = (true, true),
            Action::Block => {
                (self.paused, self.read_only) = (true, true);
                self.scale(false, app_version);
            }
            Action::EndSessions if self.source_up => {
                return Some(Fact::Marker(Marker {
                    at: at(0),
                    lsn: start_of(self.wal.len()),
                    sessions_ended: 0,
                }));
            }
            Action::Fence(run) if self.source_up && run.0 == i64::from(self.incarnation) => {
                self.wal.push(Wal::Shutdown);
                self.source_up = false;
            }
            Action::EndSessions | Action::Fence(_) => {}
            Action::Restartpoint => self.control = self.wal[..self.replayed].iter().rposition(|r| *r == Wal::Shutdown).or(self.control),
            Action::Promote => self.follows = false,
            Action::ProveWrite if self.primary => {
                self.target_wrote = true;
                return Some(Fact::Promoted(Promoted {
                    at: at(0),
                    timeline: Timeline(2),
                }));
            }
            Action::ProveWrite => {}
            Action::Route => self.routed = true,
            Action::Unroute => self.routed = false,
            Action::ScaleUp => self.scale(true, app_version),
            Action::WriteReceipt => return Some(Fact::Finished(at(0))),
            Action::RestartSource if self.paused && !self.source_up => self.start(),
            Action::RestartSource => {}
            Action::Unblock => (self.paused, self.read_only) = (start.paused == Some(true), start.read_only.is_some()),
        }
        None
    }

    fn scale(&mut self, up: bool, seen: u8) {
        if self.app_version == seen && self.scaled != up {
            self.scaled = up;
            self.app_version += 1;
        }
    }

    fn start(&mut self) {
        self.source_up = true;
        self.incarnation += 1;
    }

    /// Everything that can happen without the drivers.
    pub fn events(&self, disturbed: bool) -> Vec<(&'static str, Self)> {
        let mut next = Vec::new();
        let mut add = |name: &'static str, possible: bool, change: &dyn Fn(&mut Self)| {
            if possible {
                let mut world = self.clone();
                change(&mut world);
                next.push((name, world));
            }
        };
        add(
            "the target replays a record",
            self.connected && !self.primary && self.follows && self.replayed < self.wal.len(),
            &|w| w.replayed += 1,
        );
        add("the target promotes", !self.follows && !self.primary, &|w| w.primary = true);
        add("the target is restarted", self.primary && !self.restarted, &|w| w.restarted = true);
        // What Patroni and the operator do by themselves whenever they are let.
        add(
            "patroni starts its server",
            !self.source_up && !self.paused && self.incarnation < STARTS_MAX,
            &|w| w.start(),
        );
        add("the stream comes back", !self.connected && self.source_up, &|w| w.connected = true);
        let fuel = self.fuel;
        if !disturbed || fuel.together == 0 {
            return next;
        }
        let room = self.wal.iter().filter(|r| **r == Wal::Write).count() <= WRITES_MAX;
        add(
            "a client writes",
            fuel.writes > 0 && room && self.source_up && !self.read_only,
            &|w| {
                w.fuel.writes -= 1;
                w.fuel.together -= 1;
                w.wal.push(Wal::Write);
            },
        );
        add(
            "a client overrides read-only and writes",
            fuel.stubborn > 0 && room && self.source_up && self.read_only,
            &|w| {
                w.fuel.stubborn -= 1;
                w.fuel.together -= 1;
                w.wal.push(Wal::Write);
            },
        );
        // Once the server is stopped, lifting the pause starts it: no order of steps helps against that hand (design.md §4).
        add("somebody lifts the block", fuel.lifts > 0 && self.paused && self.source_up, &|w| {
            w.fuel.lifts -= 1;
            w.fuel.together -= 1;
            (w.paused, w.read_only) = (false, false);
        });
        add(
            "the operator restarts the source",
            fuel.operator > 0 && !self.source_up && !self.frozen,
            &|w| {
                w.fuel.operator -= 1;
                w.fuel.together -= 1;
                w.start();
            },
        );
        add(
            "the source fails over",
            fuel.failovers > 0 && !self.paused && self.timeline == 1,
            &|w| {
                w.fuel.failovers -= 1;
                w.fuel.together -= 1;
                (w.timeline, w.connected) = (2, false);
                w.start();
            },
        );
        add("the stream to the target is cut", fuel.cuts > 0 && self.connected, &|w| {
            w.fuel.cuts -= 1;
            w.fuel.together -= 1;
            w.connected = false;
        });
        add("the deadline passes", fuel.ticks > 0, &|w| {
            w.fuel.ticks -= 1;
            w.fuel.together -= 1;
            w.clock += 1;
        });
        add("an abort is asked for", fuel.aborts > 0 && !self.aborted, &|w| {
            w.fuel.aborts -= 1;
            w.fuel.together -= 1;
            w.aborted = true;
        });
        next
    }

    /// The first invariant that does not hold.
    pub fn broken(&self) -> Option<String> {
        let journal = self.journal();
        if self.primary && self.source_up && !self.read_only {
            return Some("S1: source and target both accept writes".into());
        }
        let written = self.wal.iter().filter(|r| **r == Wal::Write).count();
        let survived = self.wal[..self.replayed].iter().filter(|r| **r == Wal::Write).count();
        if self.primary && survived < written {
            return Some(format!("S2: {} acknowledged writes are missing on the target", written - survived));
        }
        if self.routed && self.scaled && !(self.primary && self.restarted) {
            return Some("S7: traffic goes to a target that is no restarted primary".into());
        }
        if self.follows && self.paused && journal.started.is_none() {
            return Some("S3: the source is blocked and nothing is recorded".into());
        }
        None
    }

    /// What must hold when a driver has ended without a cut.
    pub fn restored(&self) -> Option<String> {
        let ok = self.source_up && !self.paused && !self.read_only && !self.frozen && self.scaled && !self.routed;
        (!ok).then(|| format!("S3: an end without a cut leaves {}", self.shown()))
    }

    /// What must hold when a driver says that the cut is done.
    pub fn cut(&self) -> Option<String> {
        let ok = self.primary && self.restarted && self.routed && self.scaled && self.target_wrote && !self.source_up && self.frozen;
        (!ok).then(|| format!("S4: a finished cut leaves {}", self.shown()))
    }

    fn shown(&self) -> String {
        format!("{self:?}")
    }
}
