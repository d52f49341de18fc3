//! A migration that is ready for its cut, and what can be asked about it: how things stand, what the record says, what the ledger proves.

use std::{collections::BTreeMap, time::Duration};

use harness::{
    application::Origin,
    contenders,
    kubelet::{Ended, Launch, Running},
    ledger::{self, Outcome, Verdict},
    migration::{CLUSTER, FORGOTTEN, Migration, NAMESPACE},
    source::{SourceOptions, rest},
    target::InstanceHandle,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

/// Longer than anything here takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(120);
pub const SOURCE: &str = "mastodon-postgresql";
/// Acknowledged writes that show that the application is at work.
const AT_WORK: usize = 100;
/// Kinds, as [`Stage::patch`] wants them.
pub const DEPLOYMENT: (&str, &str, &str) = ("apps", "v1", "Deployment");
pub const CONFIG_MAP: (&str, &str, &str) = ("", "v1", "ConfigMap");
pub const POSTGRESQL: (&str, &str, &str) = ("acid.zalan.do", "v1", "postgresql");
pub const CNPG: (&str, &str, &str) = ("postgresql.cnpg.io", "v1", "Cluster");
pub const SERVICE: (&str, &str, &str) = ("", "v1", "Service");
const SLICE: (&str, &str, &str) = ("discovery.k8s.io", "v1", "EndpointSlice");
pub const ROLE: (&str, &str, &str) = ("rbac.authorization.k8s.io", "v1", "Role");

/// Source, application under load, and a target that streams.
pub struct Stage {
    pub migration: Migration,
    pub target: InstanceHandle,
    origin: Origin,
}

impl Stage {
    /// Everything is done but the cut.
    pub async fn ready() -> Self {
        let (migration, origin) = set().await;
        let target = migration.until_ready().await.unwrap();
        Self::of(migration, target, origin)
    }

    pub fn of(migration: Migration, target: InstanceHandle, origin: Origin) -> Self {
        Self { migration, target, origin }
    }

    /// A pod of the step.
    pub fn cutover(&self) -> Launch<'_> {
        self.migration.step("cutover")
    }

    /// A pod of the step that goes the guide's way, by the application's ConfigMap.
    pub fn by_config(&self) -> Launch<'_> {
        self.cutover().env("ROUTE", "config")
    }

    /// A pod of the step that goes back from outside.
    pub fn rollback(&self) -> Launch<'_> {
        self.migration.step("rollback")
    }

    /// Runs the step and demands its exit code and words.
    pub async fn cut(&self, launch: Launch<'_>, code: i32, words: &[&str]) -> Ended {
        let ended = launch.run(SOON).await.unwrap();
        ends(&ended, code, words);
        ended
    }

    fn api(&self, kind: (&str, &str, &str)) -> Api<DynamicObject> {
        Api::namespaced_with(self.migration.plane.admin(), NAMESPACE, &contenders::resource(kind))
    }

    /// Reads an object.
    pub async fn object(&self, kind: (&str, &str, &str), name: &str) -> Value {
        serde_json::to_value(self.api(kind).get(name).await.unwrap()).unwrap()
    }

    /// Reads an object of another namespace.
    pub async fn object_in(&self, kind: (&str, &str, &str), namespace: &str, name: &str) -> Value {
        let api: Api<DynamicObject> = Api::namespaced_with(self.migration.plane.admin(), namespace, &contenders::resource(kind));
        serde_json::to_value(api.get(name).await.unwrap()).unwrap()
    }

    /// Merges into the status of an object.
    pub async fn patch_status(&self, kind: (&str, &str, &str), name: &str, change: Value) {
        let api = self.api(kind);
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap();
    }

    /// As [`Stage::patch`], under a field manager's name.
    pub async fn patch_as(&self, manager: &str, kind: (&str, &str, &str), name: &str, change: Value) {
        let params = PatchParams {
            field_manager: Some(manager.into()),
            ..PatchParams::default()
        };
        self.api(kind).patch(name, &params, &Patch::Merge(change)).await.unwrap();
    }

    /// Objects of a kind.
    pub async fn objects(&self, kind: (&str, &str, &str)) -> Vec<Value> {
        let list = self.api(kind).list(&ListParams::default()).await.unwrap();
        list.into_iter().map(|object| serde_json::to_value(object).unwrap()).collect()
    }

    /// Merges into an object; null removes a key.
    pub async fn patch(&self, kind: (&str, &str, &str), name: &str, change: Value) {
        self.api(kind)
            .patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap();
    }

    /// Removes an object.
    pub async fn remove(&self, kind: (&str, &str, &str), name: &str) {
        self.api(kind).delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until the target's receiver streams, or does not: it offers no event for that.
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

    /// How things stand for everybody but the cutover itself: what people have written into the objects, Patroni's configuration, and
    /// the source's server. Its own records and the Lease are left out, and the Jobs that the kubelet makes.
    pub async fn standing(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for kind in [
            CONFIG_MAP,
            ("", "v1", "Secret"),
            SERVICE,
            DEPLOYMENT,
            ROLE,
            CNPG,
            ("postgresql.cnpg.io", "v1", "Pooler"),
            POSTGRESQL,
        ] {
            for mut object in self.api(kind).list(&ListParams::default()).await.unwrap() {
                object.data.as_object_mut().unwrap().remove("status");
                let written = json!([object.labels(), object.annotations(), object.data]);
                all.insert(format!("{} {}", kind.2, object.name_any()), written);
            }
        }
        all.retain(|name, _| !name.starts_with("ConfigMap cutover-"));
        let source = &self.migration.source;
        let leader = source.leader().await.unwrap();
        all.insert("leader".into(), leader.name().into());
        all.insert("patroni".into(), rest::get(&format!("{}/config", leader.rest_url())).await.unwrap());
        let session = source.connect("postgres").await.unwrap();
        let server = "select json_build_object('timeline', timeline_id, 'read_only', current_setting('default_transaction_read_only'))
            from pg_control_checkpoint()";
        all.insert("server".into(), session.query_one(server, &[]).await.unwrap().get(0));
        all
    }

    /// The application writes, and it is the source that takes it.
    pub async fn runs_on_the_source(&self) {
        self.migration.application.ready(SOON).await.unwrap();
        let before = self.migration.application.attempts().len();
        self.migration.application.acknowledges(AT_WORK, SOON).await.unwrap();
        let source = self.migration.cut(&self.target, None).source;
        for attempt in &self.migration.application.attempts()[before..] {
            if let Outcome::Acknowledged(server) = &attempt.outcome {
                assert!(source.contains(&server.address), "{attempt:?}");
            }
        }
    }

    /// A fact of the journal; null when it is not there.
    pub async fn fact(&self, key: &str) -> Value {
        let maps: Api<ConfigMap> = Api::namespaced(self.migration.plane.admin(), NAMESPACE);
        let map = maps.get_opt(&format!("cutover-{CLUSTER}")).await.unwrap();
        let text = map.and_then(|map| map.data?.remove(key));
        text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Statements at the target, over its Unix socket.
    pub async fn at_target(&self, sql: &str) {
        self.target.admin("mastodon").await.unwrap().batch_execute(sql).await.unwrap();
    }

    /// A cut that has begun, whose target cannot catch up: replay is paused as soon as the block is announced.
    pub async fn stuck(&self, launch: Launch<'_>) -> Running {
        // Opened before: between the announcement and the marker lies no more than Patroni's answer.
        let session = self.target.admin("mastodon").await.unwrap();
        let running = launch.start().await.unwrap();
        running.says("DOWNTIME BEGINS", SOON).await.unwrap();
        session.batch_execute("select pg_wal_replay_pause()").await.unwrap();
        running
    }

    /// After a finished cut: the application writes on the target, then everybody stops and the ledger is judged.
    pub async fn judged(self) -> Verdict {
        self.migration.application.acknowledges(AT_WORK, SOON).await.unwrap();
        let recorded: Option<Timestamp> = self.fact("promotion").await["at"].as_str().map(|at| at.parse().unwrap());
        let fenced = recorded.map(|at| {
            self.origin
                .elapsed()
                .saturating_sub(Timestamp::now().duration_since(at).unsigned_abs())
        });
        let cut = self.migration.cut(&self.target, fenced);
        let Migration { application, source, .. } = self.migration;
        let attempts = application.stop().await;
        let (on_target, on_source) = harness::migration::rows(&source, &self.target).await.unwrap();
        let forgotten =
            |attempt: &&ledger::Attempt| attempt.key.client.starts_with(FORGOTTEN) && matches!(attempt.outcome, Outcome::Acknowledged(_));
        assert!(
            attempts.iter().filter(forgotten).count() > AT_WORK,
            "the forgotten writer was not at work"
        );
        let verdict = ledger::judge(&attempts, &on_target, &on_source, &cut, Duration::from_millis(500));
        println!(
            "acknowledged {}, found {}, lost {}, duplicated {}, unknown {} found and {} missing, accepted by the source after the fence {}",
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

    /// As [`Stage::judged`], and every promise was kept.
    pub async fn nothing_is_lost(self) {
        assert!(!self.fact("finished").await.is_null(), "the cut is not finished");
        let verdict = self.judged().await;
        assert!(verdict.holds() && verdict.gap.is_some(), "{verdict:?}");
    }
}

/// Source, application and manifests; no step was run yet.
pub async fn set() -> (Migration, Origin) {
    let origin = Origin::now();
    let migration = Migration::stage(SourceOptions::default(), origin, |_| {}).await.unwrap();
    (migration, origin)
}

/// The exit code, and words of the log.
#[track_caller]
pub fn ends(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.exit_code, code, "{ended}");
    for word in words {
        assert!(ended.text().contains(word), "{word:?} is missing: {ended}");
    }
}

/// The difference of two looks, in words.
#[track_caller]
pub fn same(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) {
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for name in names {
        assert_eq!(before.get(name), after.get(name), "{name} has changed");
    }
}
