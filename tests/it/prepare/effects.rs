//! What it does to a source as Spilo leaves it, once and twice, and what the target makes of it.

use std::{sync::Arc, time::Duration};

use harness::{
    kubelet,
    source::SourceOptions,
    target::{Options, Target},
};
use kube::api::{Patch, PatchParams, ValidationDirective};
use serde_json::{Value, json};

use super::stage::{NAMESPACE, SECRETS, SOON, Stage};

/// Things that a copy does not bring along, or brings along changed.
const ODDITIES: &str = "create unlogged table cache (key text);
    create function nothing() returns event_trigger language plpgsql as 'begin end';
    create event trigger watcher on ddl_command_end execute function nothing();";

#[tokio::test]
async fn a_source_is_prepared_and_a_second_run_changes_nothing() {
    let stage = Stage::set(SourceOptions::default()).await;
    stage.sql("mastodon", ODDITIES).await;
    stage
        .sql("postgres", "alter role mastodon set work_mem = '8MB'")
        .await;

    let untouched = stage.state().await;
    let planned = stage.job().env("DRY_RUN", "true").run(SOON).await.unwrap();
    assert_eq!(planned.exit_code, 0, "{planned}");
    assert!(
        planned.text().contains("kind: Pooler")
            && planned
                .text()
                .contains("would do: role streaming_replica created"),
        "{planned}"
    );
    assert_eq!(stage.state().await, untouched, "a dry run changes nothing");
    let uses = stage.plane.audit().unwrap();
    let ours = uses
        .iter()
        .filter(|used| used.service_account() == Some("replica-migration-prepare-zalando"));
    let verbs: Vec<&str> = ours.map(|used| used.verb.as_str()).collect();
    assert!(
        verbs.contains(&"list") && verbs.iter().all(|verb| matches!(*verb, "get" | "list")),
        "{verbs:?}"
    );

    let first = stage.run().await;
    assert_eq!(first.exit_code, 0, "{first}");
    for said in [
        "password stored in secret zalando-streaming-replica",
        "role streaming_replica created with login and replication",
        "role standby has replication and login: the source answered it over tls (verify-full",
        "ready for replication setup",
        "kubectl get configmap database-cluster-replica -n mastodon",
        "unlogged tables will be empty at the target: 1 in mastodon (public.cache)",
        "event triggers fire at the target, too: watcher in mastodon",
        "passwords are stored as md5: mastodon, pooler",
        "data checksums are off",
    ] {
        assert!(first.text().contains(said), "{said:?} is not in {first}");
    }
    assert_eq!(first.termination_json()["verdict"], "done");
    assert!(
        first.cost.memory_peak_bytes < 40 << 20,
        "{} bytes of memory",
        first.cost.memory_peak_bytes
    );
    secrets_hold_what_the_source_has(&stage).await;
    roles_are_there(&stage).await;
    accepted(&stage).await;
    nothing_leaked(&stage, &[planned.text(), first.text()]).await;

    let state = stage.state().await;
    let second = stage.run().await;
    assert_eq!(second.exit_code, 0, "{second}");
    assert!(
        second
            .text()
            .contains("the roles that CloudNativePG needs are right already"),
        "{second}"
    );
    assert_eq!(stage.state().await, state, "a second run changes nothing");

    // What the operator changes is followed, and only that.
    let rotated = format!("md5{}", "0".repeat(32));
    stage
        .sql(
            "postgres",
            &format!("alter role mastodon password '{rotated}'"),
        )
        .await;
    let third = stage.run().await;
    assert!(
        third.text().contains("secret database-owner changed"),
        "{third}"
    );
    assert_eq!(
        stage.secret_text("database-owner", "password").await,
        rotated
    );

    // Reached by a name that is not in its certificate.
    let address = stage
        .services
        .resolve("mastodon-postgresql.mastodon.svc")
        .unwrap()
        .to_string();
    let elsewhere = stage
        .job()
        .env("SOURCE_HOST", "elsewhere.mastodon.svc")
        .env("SOURCE_HOSTADDR", &address);
    let fourth = elsewhere.run(SOON).await.unwrap();
    assert_eq!(fourth.exit_code, 0, "{fourth}");
    let weaker = "the manifest gets sslmode verify-ca → set SOURCE_SSLMODE=verify-ca";
    assert!(
        fourth.text().contains(weaker) && fourth.text().contains("it covers mastodon-postgresql"),
        "{fourth}"
    );
    let external = &stage.manifest().await[0]["spec"]["externalClusters"][0];
    assert_eq!(external["connectionParameters"]["sslmode"], "verify-ca");
    assert_eq!(external["sslRootCert"]["name"], "zalando-replication-ca");
}

async fn secrets_hold_what_the_source_has(stage: &Stage) {
    let credentials = stage.source.credentials();
    let hash: String = stage
        .ask("select rolpassword from pg_authid where rolname = 'mastodon'")
        .await;
    for (name, username, password) in [
        (SECRETS[0], "standby", credentials.standby.as_str()),
        (SECRETS[1], "mastodon", hash.as_str()),
        (SECRETS[2], "postgres", credentials.postgres.as_str()),
    ] {
        assert_eq!(stage.secret_text(name, "username").await, username);
        assert_eq!(
            stage.secret_text(name, "password").await,
            password,
            "{name}"
        );
        assert_eq!(
            stage.secret(name).await.unwrap().type_.as_deref(),
            Some("kubernetes.io/basic-auth")
        );
    }
}

async fn roles_are_there(stage: &Stage) {
    for (what, question) in [
        (
            "the role of the replicas",
            "select rolcanlogin and rolreplication and not rolsuper and rolpassword is null from \
             pg_authid where rolname = 'streaming_replica'",
        ),
        (
            "what pg_rewind needs",
            "select has_function_privilege('streaming_replica', 'pg_read_binary_file(text, bigint, \
             bigint, boolean)', 'execute')",
        ),
        (
            "the role of the metrics",
            "select rolcanlogin and pg_has_role('cnpg_metrics_exporter', 'pg_monitor', 'usage') \
             from pg_roles where rolname = 'cnpg_metrics_exporter'",
        ),
        (
            "the role of the poolers",
            "select rolcanlogin and not rolsuper from pg_roles where rolname = \
             'cnpg_pooler_pgbouncer'",
        ),
        (
            "the lookup",
            "select has_function_privilege('cnpg_pooler_pgbouncer', 'public.user_search(text)', \
             'execute')",
        ),
        (
            "nobody else's lookup",
            "select not has_function_privilege('mastodon', 'public.user_search(text)', 'execute')",
        ),
        (
            "the marks",
            "select count(*) = 3 from pg_authid where shobj_description(oid, 'pg_authid') like \
             'made by replica-migration%'",
        ),
    ] {
        assert!(stage.ask::<bool>(question).await, "{what}");
    }
    let session = stage.source.connect("postgres").await.unwrap();
    session
        .batch_execute("set role cnpg_pooler_pgbouncer")
        .await
        .unwrap();
    let found = session
        .query_one("select passwd from public.user_search('mastodon')", &[])
        .await
        .unwrap();
    assert!(found.get::<_, String>(0).starts_with("md5"));
}

/// The real schemas, with unknown fields refused.
async fn accepted(stage: &Stage) {
    let documents = stage.manifest().await;
    assert_eq!(documents.len(), 3);
    for document in &documents {
        let (kind, name) = (
            document["kind"].as_str().unwrap(),
            document["metadata"]["name"].as_str().unwrap(),
        );
        let api = stage.of_kind(
            "postgresql.cnpg.io",
            kind,
            &format!("{}s", kind.to_lowercase()),
        );
        let params = PatchParams {
            dry_run: true,
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::apply("test")
        };
        api.patch(name, &params, &Patch::Apply(document))
            .await
            .unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
    }
    let spec = &documents[0]["spec"];
    let external = &spec["externalClusters"][0];
    assert_eq!(external["connectionParameters"]["sslmode"], "verify-full");
    assert_eq!(
        external["connectionParameters"]["host"],
        "mastodon-postgresql.mastodon.svc"
    );
    let parameters = &spec["postgresql"]["parameters"];
    for name in [
        "max_connections",
        "max_worker_processes",
        "max_wal_senders",
        "max_prepared_transactions",
        "max_locks_per_transaction",
    ] {
        let value: String = stage
            .ask(&format!("select current_setting('{name}')"))
            .await;
        assert_eq!(parameters[name], value.as_str(), "{name}");
    }
    assert_eq!(parameters["password_encryption"], "scram-sha-256");
    assert_eq!(parameters["autovacuum_max_workers"], "5");
    let hba: Vec<&str> = spec["postgresql"]["pg_hba"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(
        hba,
        [
            "hostssl replication standby all md5",
            "hostnossl all all all reject",
            "hostssl all all all md5"
        ]
    );
}

/// Secrets are not in the step's log, and its statements are not in the server's, which has every
/// other DDL (log_statement = ddl).
async fn nothing_leaked(stage: &Stage, texts: &[String]) {
    for name in SECRETS {
        let secret = stage.secret_text(name, "password").await;
        assert!(
            texts.iter().all(|text| !text.contains(&secret)),
            "the password of secret {name}"
        );
    }
    let logged = stage.server_log().await;
    assert!(
        logged.contains("create unlogged table cache"),
        "the server writes no ddl into its log: this proves nothing"
    );
    assert!(
        !logged.contains("create role streaming_replica"),
        "the statements for the roles are in the server's log"
    );
}

#[tokio::test]
async fn the_manifest_makes_a_target_that_streams() {
    let stage = Stage::set(SourceOptions::default()).await;
    let done = stage.run().await;
    assert_eq!(done.exit_code, 0, "{done}");
    // What extract-certs will have made.
    let root = stage.secret_text("mastodon-postgresql-ca", "ca.crt").await;
    let ca = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "zalando-replication-ca"}, "stringData": {"ca.crt": root}});
    stage.plane.apply(NAMESPACE, &[ca]).await.unwrap();
    let target = Target::start(Options {
        setup: stage.plane.setup(),
        instance: Arc::clone(stage.plane.instance()),
        client: stage.plane.admin(),
        services: Arc::clone(&stage.services),
        programs: kubelet::built().await.unwrap(),
        hidden: stage
            .source
            .members()
            .iter()
            .map(|member| member.layout().home.clone())
            .collect(),
    });
    stage
        .plane
        .apply(NAMESPACE, &stage.manifest().await)
        .await
        .unwrap();
    let instance = target.instance("database", SOON).await.unwrap();
    let session = stage.source.connect("postgres").await.unwrap();
    let mut streams = false;
    for _ in 0..600 {
        // The copy begins with a checkpoint that the source would spread over minutes.
        session.batch_execute("checkpoint").await.unwrap();
        let question = "select exists (select from pg_stat_replication where application_name = \
            'database' and state = 'streaming')";
        streams = session.query_one(question, &[]).await.unwrap().get(0);
        if streams {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(streams, "{}", instance.logs());

    let again = stage.run().await;
    assert_eq!(again.exit_code, 0, "{again}");
    assert!(
        again
            .text()
            .contains("cluster database exists already and follows the source"),
        "{again}"
    );
}
