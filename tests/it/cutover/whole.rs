//! The whole migration under load, and the permissions that it needs.

use std::{collections::BTreeSet, time::Duration};

use harness::{
    audit::Use,
    manifests::{self, access::rbac_is_exact, of_step},
    migration::{CLUSTER, MANIFEST, Migration, NAMESPACE, succeeded},
};
use k8s_openapi::api::{core::v1::ConfigMap, events::v1::Event};
use kube::{Api, api::ListParams};
use protocol::{
    record::{FactKind, SCHEMA},
    steps,
};
use serde_json::{Value, json};

use super::environment::{self, Environment, SERVICE, SOON, SOURCE, assert_ended, assert_same};

const STEPS: [&str; 5] = [
    "prepare-zalando",
    "extract-certs",
    "validate-replication",
    "cutover",
    "rollback",
];
/// Resident memory of a program: at most 40 MB.
const MEMORY_BYTES_MAX: u64 = 40_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_write_is_lost_and_every_granted_permission_is_used() {
    let (migration, epoch) = environment::set_up().await;
    prepare_with_more_wal(&migration).await;
    add_a_secret_without_a_client_certificate(&migration).await;
    let target = migration.until_ready().await.unwrap();
    let environment = Environment::new(migration, target, epoch);

    dry_run(&environment).await;
    rolled_back_on_sigterm(&environment).await;
    rolled_back_by_the_config_map(&environment).await;
    rolled_back_by_the_services(&environment).await;
    environment
        .migration
        .application
        .acknowledges(200, SOON)
        .await
        .unwrap();

    let source = &environment.migration.source;
    let replica = source.replica().await.unwrap();
    let reader = source.connect_to(replica, "postgres").await.unwrap();
    let words = [
        "starting from scratch",
        "DOWNTIME BEGINS",
        "POINT OF NO RETURN",
        "DOWNTIME ENDS",
        "sessions are left at the source's standbys, where no new row arrives: 127.0.0.1 \
         postgres harness",
    ];
    let ended = environment.run(environment.by_config(), 0, &words).await;
    assert!(
        ended.cost.memory_peak_bytes < MEMORY_BYTES_MAX,
        "{} bytes resident",
        ended.cost.memory_peak_bytes
    );
    reader.query_one("select 1", &[]).await.unwrap();
    let last = ended.termination_json();
    assert_eq!(
        (&last["verdict"], &last["timeline"]),
        (&json!("done"), &json!(2)),
        "{last}"
    );
    let downtime_ms = last["downtime_ms"]
        .as_u64()
        .unwrap_or_else(|| panic!("no downtime in {last}"));
    assert!(
        (1..u64::try_from(ended.elapsed.as_millis()).unwrap()).contains(&downtime_ms),
        "{last}"
    );
    records(&environment).await;
    events(&environment).await;

    let (before, uses) = (objects(&environment).await, changes(&environment));
    let again = environment
        .run(
            environment.by_config(),
            0,
            &[
                "receipt: kubectl get configmap cutover-database-receipt",
                "wherever the manifest of Cluster database is kept, set spec.replica.enabled: \
                 false",
            ],
        )
        .await;
    assert!(
        again.elapsed < Duration::from_secs(20),
        "{:?}",
        again.elapsed
    );
    assert_eq!(
        objects(&environment).await,
        before,
        "the second run has changed something"
    );
    assert_eq!(changes(&environment), uses);

    let late = environment
        .run(
            environment.rollback(),
            3,
            &["a rollback is no longer possible: the promotion was recorded at"],
        )
        .await;
    assert!(
        late.text().contains("fix the cause on the target"),
        "{late}"
    );

    for step in ["prepare-zalando", "extract-certs", "validate-replication"] {
        let words = [
            "database has been promoted by a cutover",
            "start no server of the source, and apply no manifest that says",
        ];
        let refused = environment
            .run(environment.migration.step(step), 3, &words)
            .await;
        assert!(!refused.text().contains("apply the manifest"), "{refused}");
    }
    assert_eq!(
        objects(&environment).await,
        before,
        "a refused step has changed something"
    );

    // Everything that the Roles grant has been used by now, and nothing was refused.
    let example = manifests::example(environment.migration.plane.setup()).unwrap();
    let of_steps: Vec<Value> = STEPS
        .iter()
        .flat_map(|step| of_step(&example, step))
        .collect();
    rbac_is_exact(&environment.migration.plane.audit().unwrap(), &of_steps).unwrap();
    without_its_records_no_hint_undoes_the_promotion(&environment).await;
    environment.nothing_is_lost().await;
}

/// A person has cleaned up after the cutover, first the record, then the receipt.
async fn without_its_records_no_hint_undoes_the_promotion(environment: &Environment) {
    let (record_name, receipt) = ("cutover-database", "cutover-database-receipt");
    let record = environment
        .object(environment::CONFIG_MAP, record_name)
        .await;
    environment
        .remove(environment::CONFIG_MAP, record_name)
        .await;
    let validate = environment.migration.step("validate-replication");
    let words = ["database has been promoted by a cutover (ConfigMap cutover-database-receipt)"];
    environment.run(validate, 3, &words).await;
    let words = [
        "the receipt cutover-database-receipt is of another cutover",
        "its manifest must not be applied with replica.enabled: true",
    ];
    environment.run(environment.by_config(), 3, &words).await;
    environment.remove(environment::CONFIG_MAP, receipt).await;
    let validate = environment.migration.step("validate-replication");
    let words = [
        "replica-mode: wanted the Cluster in replica mode",
        "do not apply the manifest of prepare-zalando to it",
    ];
    let validated = environment.run(validate, 3, &words).await;
    let words = ["no cutover is on record"];
    let ended = environment.run(environment.by_config(), 4, &words).await;
    for advice in ["→ apply", ": apply", "; apply", "delete the Cluster"] {
        for log in [&validated, &ended] {
            assert!(!log.text().contains(advice), "{advice:?} in {log}");
        }
    }
    let record = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": record_name},
        "data": record["data"],
    });
    let plane = &environment.migration.plane;
    plane.apply(NAMESPACE, &[record]).await.unwrap();
}

/// Uses the verb that not every source needs. No operator runs here, so Patroni's configuration is
/// changed in its place.
async fn prepare_with_more_wal(migration: &Migration) {
    let preparing = migration
        .step("prepare-zalando")
        .env("WAL_KEEP_MB", "1024")
        .start()
        .await
        .unwrap();
    preparing
        .wait_for_line("waiting for the operator", SOON)
        .await
        .unwrap();
    let parameters = json!({"postgresql": {"parameters": {"wal_keep_size": "1GB"}}});
    migration
        .source
        .patch_configuration(&parameters)
        .await
        .unwrap();
    succeeded("prepare-zalando", &preparing.wait(SOON).await.unwrap()).unwrap();
}

/// Creates the Secret of an earlier run of extract-certs. Its type has to change, which needs the
/// permission to delete it.
async fn add_a_secret_without_a_client_certificate(migration: &Migration) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "zalando-replication-tls"},
        "type": "Opaque", "stringData": {"reason": "the CA's key was not at hand"},
    });
    migration.plane.apply(NAMESPACE, &[secret]).await.unwrap();
}

/// A dry run logs the plan and makes no mutating call, not even for an Event or a Lease.
async fn dry_run(environment: &Environment) {
    environment
        .run(environment.rollback(), 0, &["no cutover has begun"])
        .await;
    let before = environment.snapshot().await;
    let words = [
        "would 5. DOWNTIME BEGINS",
        "mastodon-web 2",
        "DB_HOST mastodon-postgresql-pooler → database-pooler-rw",
        "would 9. POINT OF NO RETURN",
        "would roll back by itself, where it must, until 9",
    ];
    environment
        .run(environment.by_config().env("DRY_RUN", "true"), 0, &words)
        .await;
    let words = [
        "PAUSE at mastodon-postgresql-pooler-0, mastodon-postgresql-pooler-1, \
         mastodon-postgresql-pooler-repl-0",
        "repoint the application to the target: the Services mastodon-postgresql → \
         cnpg.io/cluster=database,cnpg.io/instanceRole=primary",
    ];
    environment
        .run(environment.cutover().env("DRY_RUN", "true"), 0, &words)
        .await;
    assert_same(&before, &environment.snapshot().await);
    assert!(environment.fact("started").await.is_null());
    assert!(
        uses_of_cutover(environment)
            .iter()
            .any(|one| one.resource == "pods"),
        "nothing was read"
    );
    let uses = uses_of_cutover(environment);
    assert!(uses.iter().all(|one| reads(one) || one.dry_run), "{uses:?}");
    let tried = |resource: &str| {
        uses.iter()
            .any(|one| one.dry_run && one.resource == resource)
    };
    assert!(
        ["clusters", "configmaps", "services"]
            .into_iter()
            .all(tried),
        "{uses:?}"
    );
}

/// With ROUTE=service, and a user has repointed a Service meanwhile: it selects the source again,
/// and no EndpointSlice of the other selector is left.
async fn rolled_back_on_sigterm(environment: &Environment) {
    let before = environment.snapshot().await;
    let running = environment
        .until_failpoint(environment.cutover(), "before EndSessions")
        .await;
    let selector = json!({"cnpg.io/cluster": CLUSTER, "cnpg.io/instanceRole": "primary"});
    environment
        .patch(SERVICE, SOURCE, json!({"spec": {"selector": selector}}))
        .await;
    environment.has_slices(SOURCE).await;
    running.terminate();
    running.release_failpoint();
    let ended = running.wait(SOON).await.unwrap();
    assert_ended(
        &ended,
        3,
        &[
            "ROLLING BACK: asked to end (SIGTERM)",
            "rolling back: repointing the Services of mastodon-postgresql to it",
            "the application runs on the source as before",
            "start a new cutover",
        ],
    );
    assert!(
        environment.slices(SOURCE).await.is_empty(),
        "an EndpointSlice has addresses of the target"
    );
    assert_same(&before, &environment.snapshot().await);
    environment.runs_on_the_source().await;
}

/// With ROUTE=config. While a cutover is running, rollback refuses and logs how to abort it. Once
/// the pod is gone, rollback restores everything, including the ConfigMap that a user has edited.
async fn rolled_back_by_the_config_map(environment: &Environment) {
    let before = environment.snapshot().await;
    let running = environment
        .until_failpoint(environment.by_config(), "before record Marker")
        .await;
    let words = [
        "another cutover is running",
        "kubectl annotate cronjob/replica-migration-cutover replica-migration/abort=true",
    ];
    environment.run(environment.rollback(), 3, &words).await;
    running.kill();
    running.wait(SOON).await.unwrap();
    environment
        .patch(
            environment::CONFIG_MAP,
            "mastodon-database",
            json!({"data": {"DB_HOST": "database-pooler-rw"}}),
        )
        .await;
    let dry = environment
        .run(
            environment.rollback().env("DRY_RUN", "true"),
            0,
            &["can be rolled back"],
        )
        .await;
    assert!(!dry.text().contains("rolling back"), "{dry}");
    let words = [
        "ROLLING BACK: rollback was started",
        "repointing the application to the source",
        "runs on the source as before",
    ];
    environment.run(environment.rollback(), 0, &words).await;
    assert_same(&before, &environment.snapshot().await);
    environment.runs_on_the_source().await;
    let again = environment.run(environment.rollback(), 0, &[]).await;
    assert!(!again.text().contains("rolling back:"), "{again}");
    assert_same(&before, &environment.snapshot().await);
}

/// With ROUTE=service, right before the point of no return: the source's server is stopped, clients
/// wait at paused poolers, and a user has repointed a Service.
async fn rolled_back_by_the_services(environment: &Environment) {
    let before = environment.snapshot().await;
    let running = environment
        .until_failpoint(environment.cutover(), "before record Promotion")
        .await;
    running.kill();
    running.wait(SOON).await.unwrap();
    let selector = json!({"cnpg.io/cluster": CLUSTER});
    environment
        .patch(SERVICE, SOURCE, json!({"spec": {"selector": selector}}))
        .await;
    environment.has_slices(SOURCE).await;
    let words = [
        "rolling back: starting the source's server",
        "rolling back: restoring patroni's pause and settings",
        "rolling back: repointing the Services of mastodon-postgresql to it",
        "resuming client traffic on the source's poolers",
        "runs on the source as before",
    ];
    environment.run(environment.rollback(), 0, &words).await;
    assert!(
        environment.slices(SOURCE).await.is_empty(),
        "an EndpointSlice has addresses of the target"
    );
    assert_same(&before, &environment.snapshot().await);
    environment.runs_on_the_source().await;
}

/// The receipt is immutable and complete, and the replica counts are recorded.
async fn records(environment: &Environment) {
    let maps: Api<ConfigMap> = Api::namespaced(environment.migration.plane.admin(), NAMESPACE);
    let receipt = maps
        .get(&format!("cutover-{CLUSTER}-receipt"))
        .await
        .unwrap();
    assert_eq!(receipt.immutable, Some(true));
    let data = receipt.data.unwrap();
    let summary: Value = serde_json::from_str(&data["summary.json"]).unwrap();
    assert!(
        summary["ms_since_block"]["serving"].as_u64().is_some(),
        "{summary}"
    );
    assert_eq!(
        summary["source"]["system_identifier"], summary["target"]["system_identifier"],
        "{summary}"
    );
    assert_eq!(
        summary["suspended_permanently"],
        json!([format!("postgresql {SOURCE} acid.zalan.do/controller")]),
        "{summary}"
    );
    assert!(
        summary["write_gap_ms"]["clients"].as_u64() >= summary["write_gap_ms"]["verified"].as_u64(),
        "{summary}"
    );
    assert!(
        data["proof.txt"].contains("was stopped cleanly"),
        "{data:?}"
    );
    assert!(data["program"].starts_with("cutover "), "{data:?}");
    let journal: Value = serde_json::from_str(&data["journal.json"]).unwrap();
    for fact in [
        "started",
        "checkpointed",
        "blocked",
        "marker",
        "fenced",
        "promotion",
        "promoted",
        "routed",
        "serving",
        "manifest",
    ] {
        assert!(!journal[fact].is_null(), "{fact} is missing in {journal}");
    }
    assert_eq!(data["schema"], SCHEMA.to_string());
    let record = maps.get(&format!("cutover-{CLUSTER}")).await.unwrap();
    assert_eq!(record.data.unwrap()["schema"], SCHEMA.to_string());
    let state = &record.metadata.annotations.unwrap()["replica-migration/state"];
    assert!(state.starts_with("cutover finished at "), "{state}");
    the_stored_manifest_is_rewritten(environment).await;
    let counts = maps
        .get("cutover-replica-counts")
        .await
        .unwrap()
        .data
        .unwrap();
    let wanted =
        harness::application::DEPLOYMENTS.map(|(name, count)| (name.to_owned(), count.to_string()));
    assert_eq!(counts, wanted.into());
    let config = maps.get("mastodon-database").await.unwrap().data.unwrap();
    assert_eq!(
        (
            config["DB_HOST"].as_str(),
            config["REPLICA_DB_HOST"].as_str()
        ),
        ("database-pooler-rw", "database-pooler-ro")
    );
}

/// It differs from the Cluster's own `spec.replica` in nothing, and carries its own digest.
async fn the_stored_manifest_is_rewritten(environment: &Environment) {
    let rendered = environment.migration.rendered().await.unwrap();
    let cluster = environment.object(environment::CNPG, CLUSTER).await;
    assert_eq!(rendered[0]["spec"]["replica"], cluster["spec"]["replica"]);
    assert_eq!(rendered[0]["spec"]["replica"]["enabled"], false);
    let map = environment.object(environment::CONFIG_MAP, MANIFEST).await;
    let text = map["data"][format!("{MANIFEST}.yaml")].as_str().unwrap();
    let digest: String = openssl::sha::sha256(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        map["metadata"]["annotations"]["replica-migration/manifest-sha256"],
        digest
    );
    assert_eq!(environment.fact("manifest").await["found"], "promoted");
}

async fn events(environment: &Environment) {
    let api: Api<Event> = Api::namespaced(environment.migration.plane.admin(), NAMESPACE);
    let events = api.list(&ListParams::default()).await.unwrap().items;
    let of_target = events.iter().filter(|event| {
        let regarding = event.regarding.clone().unwrap_or_default();
        event.reporting_controller.as_deref() == Some("cutover")
            && (regarding.kind.as_deref(), regarding.name.as_deref())
                == (Some("Cluster"), Some(CLUSTER))
    });
    let reasons: BTreeSet<&str> = of_target
        .filter_map(|event| event.reason.as_deref())
        .collect();
    let rollback = [FactKind::RollbackStarted, FactKind::RolledBack]
        .into_iter()
        .filter_map(FactKind::step)
        .flat_map(|step| step.events.to_vec());
    for reason in steps::events().into_iter().chain(rollback) {
        assert!(reasons.contains(reason), "no Event {reason}: {reasons:?}");
    }
}

/// The objects after a finished cutover, its records included.
async fn objects(environment: &Environment) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for kind in [
        environment::CONFIG_MAP,
        environment::DEPLOYMENT,
        environment::POSTGRESQL,
        environment::CNPG,
    ] {
        for mut object in environment.objects(kind).await {
            object.as_object_mut().unwrap().remove("status");
            let (name, metadata) = (
                object["metadata"]["name"].to_string(),
                object["metadata"].as_object_mut().unwrap(),
            );
            // Other controllers keep writing status; a change of the object itself raises its
            // generation.
            metadata
                .retain(|key, _| ["annotations", "labels", "generation"].contains(&key.as_str()));
            all.push((format!("{} {name}", kind.2), object));
        }
    }
    all
}

fn uses_of_cutover(environment: &Environment) -> BTreeSet<Use> {
    let mut uses = environment.migration.plane.audit().unwrap();
    uses.retain(|one| one.service_account() == Some("replica-migration-cutover"));
    uses
}

/// The changes that cutover has made so far, except to its Lease.
fn changes(environment: &Environment) -> BTreeSet<Use> {
    let mut uses = uses_of_cutover(environment);
    uses.retain(|one| !reads(one) && one.resource != "leases");
    uses
}

fn reads(one: &Use) -> bool {
    one.verb == "get" || one.verb == "list"
}
