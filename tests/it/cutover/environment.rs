//! A migration that is ready for its cutover: its objects, its record, its state before and after,
//! and the verdict of the ledger.

use std::time::Duration;

use harness::{
    application::Epoch,
    kubelet::{Ended, Launch, RunningPod},
    ledger::{self, Outcome, Verdict},
    migration::{Migration, UNMANAGED},
    objects::Objects,
    snapshot::{self, ACTIVE_WRITES},
    source::SourceOptions,
    target::InstanceHandle,
};
pub use harness::{
    objects::{CNPG, CONFIG_MAP, DEPLOYMENT, Kind, POD, POSTGRESQL, ROLE, SERVICE, SLICE},
    snapshot::Snapshot,
};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use serde_json::Value;

/// Longer than anything here takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(120);
pub const SOURCE: &str = "mastodon-postgresql";

/// Source, application under load, and a target that streams.
pub struct Environment {
    pub migration: Migration,
    pub target: InstanceHandle,
    epoch: Epoch,
}

impl Environment {
    /// Everything is done but the cutover.
    pub async fn ready() -> Self {
        let (migration, epoch) = set_up().await;
        let target = migration.until_ready().await.unwrap();
        Self::new(migration, target, epoch)
    }

    /// An environment of its parts.
    pub fn new(migration: Migration, target: InstanceHandle, epoch: Epoch) -> Self {
        Self {
            migration,
            target,
            epoch,
        }
    }

    /// A pod of the step.
    pub fn cutover(&self) -> Launch<'_> {
        self.migration.step("cutover")
    }

    /// A pod of the step with ROUTE=config.
    pub fn by_config(&self) -> Launch<'_> {
        self.cutover().env("ROUTE", "config")
    }

    /// A pod of the step rollback.
    pub fn rollback(&self) -> Launch<'_> {
        self.migration.step("rollback")
    }

    /// Starts the step, and waits until it waits at a failpoint.
    pub async fn until_failpoint(&self, launch: Launch<'_>, moment: &str) -> RunningPod {
        let running = launch.env("FAILPOINT", moment).start().await.unwrap();
        let line = format!("failpoint {moment}: waiting");
        running.wait_for_line(&line, SOON).await.unwrap();
        running
    }

    /// Runs the step and asserts its exit code and texts of its log.
    pub async fn run(&self, launch: Launch<'_>, code: i32, words: &[&str]) -> Ended {
        let ended = launch.run(SOON).await.unwrap();
        assert_ended(&ended, code, words);
        ended
    }

    /// Reads an object.
    pub async fn object(&self, kind: Kind, name: &str) -> Value {
        self.migration.objects().get(kind, name).await.unwrap()
    }

    /// Reads an object of another namespace.
    pub async fn object_in(&self, kind: Kind, namespace: &str, name: &str) -> Value {
        let objects = Objects::new(self.migration.plane.admin(), namespace);
        objects.get(kind, name).await.unwrap()
    }

    /// Merges into the status of an object.
    pub async fn patch_status(&self, kind: Kind, name: &str, change: Value) {
        let api = self.migration.objects().api(kind);
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap();
    }

    /// As [`Environment::patch`], under a field manager's name.
    pub async fn patch_as(&self, manager: &str, kind: Kind, name: &str, change: Value) {
        let params = PatchParams {
            field_manager: Some(manager.into()),
            ..PatchParams::default()
        };
        let api = self.migration.objects().api(kind);
        api.patch(name, &params, &Patch::Merge(change))
            .await
            .unwrap();
    }

    /// Objects of a kind.
    pub async fn objects(&self, kind: Kind) -> Vec<Value> {
        self.migration.objects().list(kind, "").await.unwrap()
    }

    /// Merges into an object; null removes a key.
    pub async fn patch(&self, kind: Kind, name: &str, change: Value) {
        self.migration
            .objects()
            .patch(kind, name, change)
            .await
            .unwrap();
    }

    /// Removes an object.
    pub async fn remove(&self, kind: Kind, name: &str) {
        self.migration.objects().remove(kind, name).await.unwrap();
    }

    /// Polls until the target's receiver streams, or does not.
    pub async fn streams(&self, wanted: bool) {
        let session = self.target.admin("mastodon").await.unwrap();
        let waits = async {
            let sql = "select count(*) = 1 from pg_stat_wal_receiver where status = 'streaming'";
            while session.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, waits).await.unwrap();
    }

    /// The EndpointSlices of a Service.
    pub async fn slices(&self, service: &str) -> Vec<Value> {
        let mut all = self.objects(SLICE).await;
        all.retain(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service);
        all
    }

    /// Waits until a Service has a slice.
    pub async fn has_slices(&self, service: &str) {
        let waits = async {
            while self.slices(service).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, waits).await.unwrap();
    }

    /// The state of everything but the cutover's own objects.
    pub async fn snapshot(&self) -> Snapshot {
        snapshot::take(&self.migration).await.unwrap()
    }

    /// Asserts that the application writes to the source.
    pub async fn runs_on_the_source(&self) {
        let Migration {
            application,
            source,
            ..
        } = &self.migration;
        snapshot::runs_on_the_source(application, source, SOON)
            .await
            .unwrap();
    }

    /// A fact of the record; null if it is not recorded.
    pub async fn fact(&self, key: &str) -> Value {
        self.migration
            .journal()
            .await
            .unwrap()
            .remove(key)
            .unwrap_or_default()
    }

    /// After a finished cutover: the application writes to the target, then all clients stop, and
    /// the ledger is judged.
    pub async fn judged(self) -> Verdict {
        self.migration
            .application
            .acknowledges(ACTIVE_WRITES, SOON)
            .await
            .unwrap();
        let recorded: Option<Timestamp> = self.fact("promotion").await["at"]
            .as_str()
            .map(|at| at.parse().unwrap());
        let fenced = recorded.map(|at| {
            self.epoch
                .elapsed()
                .saturating_sub(Timestamp::now().duration_since(at).unsigned_abs())
        });
        let topology = self.migration.topology(&self.target, fenced);
        let Migration {
            mut application,
            source,
            ..
        } = self.migration;
        let attempts = application.stop().await.unwrap();
        let (on_target, on_source) = harness::migration::rows(&source, &self.target)
            .await
            .unwrap();
        let unmanaged = |attempt: &&ledger::Attempt| {
            attempt.key.client.starts_with(UNMANAGED)
                && matches!(attempt.outcome, Outcome::Acknowledged(_))
        };
        assert!(
            attempts.iter().filter(unmanaged).count() > ACTIVE_WRITES,
            "the unmanaged client has not written"
        );
        let verdict = ledger::judge(
            &attempts,
            &on_target,
            &on_source,
            &topology,
            Duration::from_millis(500),
        );
        println!(
            "acknowledged {}, found {}, lost {}, duplicated {}, unknown {} found and {} missing, \
             accepted by the source after the fence {}",
            verdict.acknowledged,
            verdict.found,
            verdict.lost.len(),
            verdict.duplicated.len(),
            verdict.unknown_found,
            verdict.unknown_missing,
            verdict.after_fence.len()
        );
        verdict
    }

    /// As [`Environment::judged`]; asserts that no write is lost or duplicated.
    pub async fn nothing_is_lost(self) {
        assert!(
            !self.fact("finished").await.is_null(),
            "the cutover is not finished"
        );
        let verdict = self.judged().await;
        assert!(verdict.holds() && verdict.gap.is_some(), "{verdict:?}");
    }
}

/// Source, application and manifests, before any step.
pub async fn set_up() -> (Migration, Epoch) {
    let epoch = Epoch::now();
    let migration = Migration::set_up(SourceOptions::default(), epoch, |_| {})
        .await
        .unwrap();
    (migration, epoch)
}

/// Asserts the exit code, and texts of the log.
#[track_caller]
pub fn assert_ended(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.exit_code, code, "{ended}");
    for word in words {
        assert!(ended.text().contains(word), "{word:?} is missing: {ended}");
    }
}

/// Asserts that two snapshots are equal.
#[track_caller]
pub fn assert_same(before: &Snapshot, after: &Snapshot) {
    let differences = snapshot::differences(before, after, &[]);
    assert!(differences.is_empty(), "{differences:#?}");
}
