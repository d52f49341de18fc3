//! The stage that the clone of the target has reached, derived from what the source, the Cluster
//! and its pods show.
//!
//! CNPG reports nothing when a clone cannot begin: its Job retries for ever and the phase stays the
//! same (docs/operators/cloudnative-pg.md#clone-job). So the likely cause is named here.

use std::time::Duration;

use job::quantity::{duration, size};

/// Longer than a clone's first login takes once its pod runs.
const LOGIN_SECONDS_MAX: u64 = 30;
/// The Cluster's phase until the clone is done (api/v1/cluster_types.go:699).
const SETTING_UP: &str = "Setting up primary";

/// A row of pg_stat_progress_basebackup at the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseBackup {
    /// `phase`, as PostgreSQL words it.
    pub phase: String,
    /// `backup_total`; None before it is estimated, or when the estimate is switched off.
    pub bytes_total: Option<u64>,
    /// `backup_streamed`.
    pub bytes_streamed: u64,
}

/// A pod of the Cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodState {
    /// Its name.
    pub name: String,
    /// It belongs to the clone's Job (label cnpg.io/jobRole=pgbasebackup).
    pub clones: bool,
    /// `status.phase`.
    pub phase: String,
    /// First container that waits for something other than its start: its name and the reason,
    /// such as CrashLoopBackOff.
    pub stuck: Option<(String, String)>,
}

/// What was observed of a target that does not answer yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloneState {
    /// The Cluster's phase and reason.
    pub phase: String,
    /// The Cluster's phaseReason.
    pub phase_reason: String,
    /// The Cluster has the annotation cnpg.io/podPatch.
    pub patched: bool,
    /// Its pods.
    pub pods: Vec<PodState>,
    /// The base backup that the source is giving, the youngest if there are several.
    pub backup: Option<BaseBackup>,
    /// Name of the clone's Job.
    pub job: String,
    /// How long the Job has been connecting ([`CloneState::is_connecting`]).
    pub connecting: Duration,
    /// Why the target could not be connected to.
    pub refusal: String,
}

/// The stage of a clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// CNPG has given up; waiting does not help.
    GivenUp(String),
    /// The copy is being made.
    Copying(BaseBackup),
    /// The clone does not advance and probably needs manual intervention, although a later attempt
    /// may succeed.
    Stuck {
        /// What was observed.
        what: String,
        /// The likely cause and its cure.
        cure: String,
    },
    /// The clone has not begun yet.
    Pending(String),
}

/// The stage of the clone; the gravest that applies.
pub fn stage(state: &CloneState) -> Stage {
    if state.phase.contains("unrecoverable") {
        return Stage::GivenUp(format!("phase {:?}: {}", state.phase, state.phase_reason));
    }
    if let Some(backup) = &state.backup {
        return Stage::Copying(backup.clone());
    }
    if let Some((pod, (container, reason))) = state
        .pods
        .iter()
        .find_map(|pod| Some((pod, pod.stuck.as_ref()?)))
    {
        return Stage::Stuck {
            what: format!("pod {}, container {container}: {reason}", pod.name),
            cure: cure(state, container, reason),
        };
    }
    if !state.is_connecting() {
        return Stage::Pending(format!("phase {:?}, {}", state.phase, state.refusal));
    }
    let job = &state.job;
    if state.connecting < Duration::from_secs(LOGIN_SECONDS_MAX) {
        return Stage::Pending(format!("the Job {job} logs in to the source"));
    }
    Stage::Stuck {
        what: format!(
            "the Job {job} has not begun to copy for {} s",
            state.connecting.as_secs()
        ),
        cure: format!(
            "it repeats \"DB not available, will retry\" for ever when it cannot log in: kubectl \
             logs job/{job} shows why (host name, pg_hba, password or certificate); run \
             extract-certs and prepare-zalando again, delete the Cluster and apply its manifest \
             again, because the Job keeps what it began with"
        ),
    }
}

impl CloneState {
    /// The clone's pod runs, or cannot be observed, and the source gives no base backup.
    pub fn is_connecting(&self) -> bool {
        let runs = self
            .pods
            .iter()
            .filter(|pod| pod.clones)
            .all(|pod| pod.phase == "Running");
        self.phase == SETTING_UP && runs && self.backup.is_none()
    }
}

fn cure(state: &CloneState, container: &str, reason: &str) -> String {
    match reason {
        "CrashLoopBackOff" | "Error" if !state.patched => {
            "the Cluster lacks the annotation cnpg.io/podPatch: PostgreSQL cannot start with \
             Patroni's hba_file and ident_file; apply the manifest of prepare-zalando again"
                .into()
        }
        "CrashLoopBackOff" | "Error" => format!(
            "kubectl logs of the container {container} shows \
            why; a \"could not load …/pg_hba.conf\" means that adopt-pgdata has not run"
        ),
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" => "the image cannot be pulled: \
            correct TARGET_IMAGE or ADOPT_IMAGE and apply the manifest again"
            .into(),
        "Unschedulable" => {
            "no node or volume fits: kubectl describe shows what it waits for".into()
        }
        _ => "kubectl describe of the pod shows what it waits for".into(),
    }
}

/// What to do about a refusal of the target that waiting cannot change; None for any other refusal.
pub fn permanent_error(refusal: &str) -> Option<&'static str> {
    refusal.contains("locale is incompatible").then_some(
        "the target's image has not the locale of the database: set TARGET_IMAGE to a standard \
         image (the minimal ones have no en_US), run prepare-zalando and clone again",
    )
}

/// Computes the rate and the time left, from one line to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyProgress {
    first: Option<(Duration, u64)>,
    last: Option<(Duration, u64)>,
}

impl CopyProgress {
    /// The line for a backup observed at `at` (since any fixed instant): percent, MB/s since the
    /// line before, time left at the mean rate.
    pub fn line(&mut self, at: Duration, backup: &BaseBackup) -> String {
        if backup.phase != "streaming database files" {
            *self = Self::default();
            return format!("the clone: {}", backup.phase);
        }
        let streamed = backup.bytes_streamed;
        let first = *self.first.get_or_insert((at, streamed));
        let last = self.last.replace((at, streamed));
        let rate = last.map_or(0.0, |last| rate(last, (at, streamed)));
        let Some(total) = backup.bytes_total.filter(|total| *total > 0) else {
            return format!(
                "the clone: {} copied, {:.1} MB/s",
                size(streamed),
                rate / 1e6
            );
        };
        // The estimate was made at the beginning; the data may have grown since.
        let percent = (streamed.saturating_mul(100) / total).min(100);
        let mean = self::rate(first, (at, streamed));
        let left = match total.saturating_sub(streamed) {
            0 => "finishing".to_owned(),
            remaining if mean > 0.0 => format!(
                "about {} left",
                duration(Duration::from_secs_f64((remaining as f64 / mean).ceil()))
            ),
            _ => "time left not known yet".to_owned(),
        };
        format!(
            "the clone: {percent} % of {}, {:.1} MB/s, {left}",
            size(total),
            rate / 1e6
        )
    }
}

/// Bytes per second between two moments.
fn rate(from: (Duration, u64), to: (Duration, u64)) -> f64 {
    let seconds = to.0.saturating_sub(from.0).as_secs_f64();
    if seconds > 0.0 {
        to.1.saturating_sub(from.1) as f64 / seconds
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(clones: bool, stuck: Option<(&str, &str)>) -> PodState {
        let stuck = stuck.map(|(container, reason)| (container.to_owned(), reason.to_owned()));
        PodState {
            name: "database-1".into(),
            clones,
            phase: "Running".into(),
            stuck,
        }
    }

    fn observed() -> CloneState {
        CloneState {
            phase: SETTING_UP.into(),
            job: "database-1-pgbasebackup".into(),
            refusal: "connection refused".into(),
            ..CloneState::default()
        }
    }

    fn streaming(bytes_streamed: u64) -> BaseBackup {
        BaseBackup {
            phase: "streaming database files".into(),
            bytes_total: Some(1_000_000_000),
            bytes_streamed,
        }
    }

    fn cure_of(state: &CloneState) -> String {
        match stage(state) {
            Stage::Stuck { cure, .. } => cure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_clone_that_connects_for_long_is_stuck_and_a_young_one_is_pending() {
        let young = CloneState {
            pods: vec![pod(true, None)],
            connecting: Duration::from_secs(29),
            ..observed()
        };
        assert_eq!(
            stage(&young),
            Stage::Pending("the Job database-1-pgbasebackup logs in to the source".into())
        );
        assert!(
            cure_of(&CloneState {
                connecting: Duration::from_secs(30),
                ..young.clone()
            })
            .contains("will retry")
        );
        // Without permission to list pods, or before there is one, only the phase is known.
        let unseen = CloneState {
            pods: vec![],
            connecting: Duration::from_secs(31),
            ..observed()
        };
        assert!(cure_of(&unseen).contains("job/database-1-pgbasebackup"));
        let pulling = PodState {
            phase: "Pending".into(),
            ..pod(true, None)
        };
        assert!(
            !CloneState {
                pods: vec![pulling],
                ..observed()
            }
            .is_connecting()
        );
        // A backup at the source counts, however long the Job has been connecting.
        let copying = CloneState {
            connecting: Duration::from_secs(99),
            backup: Some(streaming(1)),
            ..young
        };
        assert_eq!(stage(&copying), Stage::Copying(streaming(1)));
    }

    #[test]
    fn a_crash_loop_without_the_patch_names_the_patch() {
        let crashing = CloneState {
            pods: vec![pod(false, Some(("postgres", "CrashLoopBackOff")))],
            ..observed()
        };
        assert!(cure_of(&crashing).contains("cnpg.io/podPatch"));
        assert!(
            cure_of(&CloneState {
                patched: true,
                ..crashing
            })
            .contains("adopt-pgdata")
        );
        let image = CloneState {
            pods: vec![pod(false, Some(("adopt-pgdata", "ImagePullBackOff")))],
            ..observed()
        };
        assert!(cure_of(&image).contains("ADOPT_IMAGE"));
    }

    #[test]
    fn what_cnpg_calls_unrecoverable_is_given_up() {
        let phase = "Cluster is unrecoverable and needs manual intervention".to_owned();
        assert!(matches!(
            stage(&CloneState {
                phase,
                ..observed()
            }),
            Stage::GivenUp(_)
        ));
        let waiting = CloneState {
            phase: "Waiting for the instances to become active".into(),
            ..observed()
        };
        assert_eq!(
            stage(&waiting),
            Stage::Pending(
                "phase \"Waiting for the instances to become active\", connection refused".into()
            )
        );
        assert!(
            permanent_error("FATAL: database locale is incompatible with operating system")
                .is_some()
        );
        assert!(permanent_error("the database system is starting up").is_none());
    }

    #[test]
    fn the_line_shows_percent_rate_and_time_left() {
        let mut progress = CopyProgress::default();
        let at = Duration::from_secs;
        assert_eq!(
            progress.line(at(100), &streaming(0)),
            "the clone: 0 % of 1.0 GB, 0.0 MB/s, time left not known yet"
        );
        assert_eq!(
            progress.line(at(110), &streaming(200_000_000)),
            "the clone: 20 % of 1.0 GB, 20.0 MB/s, about 40 s left"
        );
        // 30 MB/s in the last ten seconds, 25 MB/s in the mean.
        assert_eq!(
            progress.line(at(120), &streaming(500_000_000)),
            "the clone: 50 % of 1.0 GB, 30.0 MB/s, about 20 s left"
        );
        assert_eq!(
            progress.line(at(130), &streaming(1_200_000_000)),
            "the clone: 100 % of 1.0 GB, 70.0 MB/s, finishing"
        );
        assert_eq!(
            progress.line(
                at(140),
                &BaseBackup {
                    bytes_total: None,
                    ..streaming(1_300_000_000)
                }
            ),
            "the clone: 1.3 GB copied, 10.0 MB/s"
        );
    }

    #[test]
    fn another_phase_is_logged_as_postgresql_words_it_and_restarts_the_clock() {
        let mut progress = CopyProgress::default();
        progress.line(Duration::from_secs(1), &streaming(5));
        let waiting = BaseBackup {
            phase: "waiting for checkpoint to finish".into(),
            ..BaseBackup::default()
        };
        assert_eq!(
            progress.line(Duration::from_secs(2), &waiting),
            "the clone: waiting for checkpoint to finish"
        );
        assert!(progress.first.is_none());
    }
}
