//! The effects on a source as Spilo creates it, of a first and a second run, and the target that
//! the manifest creates.

use std::{sync::Arc, time::Duration};

use harness::{
    kubelet,
    source::SourceOptions,
    target::{Options, Target},
};
use kube::api::{Patch, PatchParams, ValidationDirective};
use serde_json::{Value, json};

use super::environment::{Environment, NAMESPACE, SECRETS, SOON};

/// Objects that a physical copy does not include, or that behave differently at the target.
const NOT_COPIED: &str = "create unlogged table cache (key text);
    create function nothing() returns event_trigger language plpgsql as 'begin end';
    create event trigger watcher on ddl_command_end execute function nothing();";

#[tokio::test]
async fn a_source_is_prepared_and_a_second_run_changes_nothing() {
    let environment = Environment::start(SourceOptions::default()).await;
    environment.sql("mastodon", NOT_COPIED).await;
    environment
        .sql("postgres", "alter role mastodon set work_mem = '8MB'")
        .await;

    let untouched = environment.state().await;
    let planned = environment
        .job()
        .env("DRY_RUN", "true")
        .run(SOON)
        .await
        .unwrap();
    assert_eq!(planned.exit_code, 0, "{planned}");
    assert!(
        planned.text().contains("kind: Pooler")
            && planned
                .text()
                .contains("would do: role streaming_replica created"),
        "{planned}"
    );
    assert_eq!(
        environment.state().await,
        untouched,
        "a dry run changes nothing"
    );
    let uses = environment.plane.audit().unwrap();
    let by_this_step = uses
        .iter()
        .filter(|used| used.service_account() == Some("replica-migration-prepare-zalando"));
    let verbs: Vec<(&str, bool)> = by_this_step
        .map(|used| (used.verb.as_str(), used.dry_run))
        .collect();
    assert!(
        verbs
            .iter()
            .all(|(verb, dry_run)| matches!(*verb, "get" | "list") || *dry_run),
        "{verbs:?}"
    );
    let tried = verbs.iter().filter(|(_, dry_run)| *dry_run).count();
    assert_eq!(tried, 3, "the Cluster and its poolers: {verbs:?}");

    let first = environment.run().await;
    assert_eq!(first.exit_code, 0, "{first}");
    for text in [
        "password stored in secret zalando-streaming-replica",
        "role streaming_replica created with login and replication",
        "role standby has replication and login: the source answered it over tls (verify-full",
        "ready for replication setup",
        "a dry run shows that the API server accepts the manifest",
        "target patch: configmap target-patch changes spec.plugins",
        "kubectl get configmap database-cluster-replica -n mastodon",
        "unlogged tables will be empty at the target: 1 in mastodon (public.cache)",
        "event triggers fire at the target, too: watcher in mastodon",
        "passwords are stored as md5: mastodon, pooler",
        "data checksums are off",
    ] {
        assert!(first.text().contains(text), "{text:?} is not in {first}");
    }
    assert_eq!(first.termination_json()["verdict"], "done");
    assert!(
        first.cost.memory_peak_bytes < 40 << 20,
        "{} bytes of memory",
        first.cost.memory_peak_bytes
    );
    secrets_hold_what_the_source_has(&environment).await;
    roles_are_there(&environment).await;
    schemas_accept_the_manifest(&environment).await;
    nothing_leaked(&environment, &[planned.text(), first.text()]).await;

    let state = environment.state().await;
    let second = environment.run().await;
    assert_eq!(second.exit_code, 0, "{second}");
    assert!(
        second
            .text()
            .contains("the roles that CloudNativePG needs are up to date"),
        "{second}"
    );
    assert_eq!(
        environment.state().await,
        state,
        "a second run changes nothing"
    );

    // A password that the operator has changed is updated, and nothing else.
    let rotated = format!("md5{}", "0".repeat(32));
    environment
        .sql(
            "postgres",
            &format!("alter role mastodon password '{rotated}'"),
        )
        .await;
    let third = environment.run().await;
    assert!(
        third.text().contains("secret database-owner changed"),
        "{third}"
    );
    assert_eq!(
        environment.secret_text("database-owner", "password").await,
        rotated
    );

    // A host name that the certificate does not cover.
    let address = environment
        .services
        .resolve("mastodon-postgresql.mastodon.svc")
        .unwrap()
        .to_string();
    let elsewhere = environment
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
    let external = &environment.manifest().await[0]["spec"]["externalClusters"][0];
    assert_eq!(external["connectionParameters"]["sslmode"], "verify-ca");
    assert_eq!(external["sslRootCert"]["name"], "zalando-replication-ca");
}

async fn secrets_hold_what_the_source_has(environment: &Environment) {
    let credentials = environment.source.credentials();
    let hash: String = environment
        .ask("select rolpassword from pg_authid where rolname = 'mastodon'")
        .await;
    for (name, username, password) in [
        (SECRETS[0], "standby", credentials.standby.as_str()),
        (SECRETS[1], "mastodon", hash.as_str()),
        (SECRETS[2], "postgres", credentials.postgres.as_str()),
    ] {
        assert_eq!(environment.secret_text(name, "username").await, username);
        assert_eq!(
            environment.secret_text(name, "password").await,
            password,
            "{name}"
        );
        assert_eq!(
            environment.secret(name).await.unwrap().type_.as_deref(),
            Some("kubernetes.io/basic-auth")
        );
    }
}

async fn roles_are_there(environment: &Environment) {
    for (what, question) in [
        (
            "the role of the replicas",
            "select rolcanlogin and rolreplication and not rolsuper and rolpassword is null from \
             pg_authid where rolname = 'streaming_replica'",
        ),
        (
            "the functions of pg_rewind",
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
            "the lookup function",
            "select has_function_privilege('cnpg_pooler_pgbouncer', 'public.user_search(text)', \
             'execute')",
        ),
        (
            "the lookup function is closed to other roles",
            "select not has_function_privilege('mastodon', 'public.user_search(text)', 'execute')",
        ),
        (
            "the comments on the roles",
            "select count(*) = 3 from pg_authid where shobj_description(oid, 'pg_authid') like \
             'made by replica-migration%'",
        ),
    ] {
        assert!(environment.ask::<bool>(question).await, "{what}");
    }
    let session = environment.source.connect("postgres").await.unwrap();
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

/// The operator's schemas accept the manifest, and refuse unknown fields.
async fn schemas_accept_the_manifest(environment: &Environment) {
    let documents = environment.manifest().await;
    assert_eq!(documents.len(), 3);
    for document in &documents {
        let (kind, name) = (
            document["kind"].as_str().unwrap(),
            document["metadata"]["name"].as_str().unwrap(),
        );
        let api = environment.of_kind(
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
        let value: String = environment
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

/// The step's log contains no secret, and the server's log contains none of its statements,
/// although it contains every other DDL statement (log_statement = ddl).
async fn nothing_leaked(environment: &Environment, texts: &[String]) {
    for name in SECRETS {
        let secret = environment.secret_text(name, "password").await;
        assert!(
            texts.iter().all(|text| !text.contains(&secret)),
            "the password of secret {name}"
        );
    }
    let logged = environment.server_log().await;
    assert!(
        logged.contains("create unlogged table cache"),
        "the server logs no DDL, so the next check would prove nothing"
    );
    assert!(
        !logged.contains("create role streaming_replica"),
        "the statements for the roles are in the server's log"
    );
}

#[tokio::test]
async fn the_rendered_manifest_creates_a_target_that_streams() {
    let environment = Environment::start(SourceOptions::default()).await;
    let done = environment.run().await;
    assert_eq!(done.exit_code, 0, "{done}");
    // As extract-certs writes it.
    let root = environment
        .secret_text("mastodon-postgresql-ca", "ca.crt")
        .await;
    let ca = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "zalando-replication-ca"}, "stringData": {"ca.crt": root},
    });
    environment.plane.apply(NAMESPACE, &[ca]).await.unwrap();
    let target = Target::start(Options {
        setup: environment.plane.setup(),
        instance: Arc::clone(environment.plane.instance()),
        client: environment.plane.admin(),
        services: Arc::clone(&environment.services),
        programs: kubelet::built().await.unwrap(),
        hidden: environment
            .source
            .members()
            .iter()
            .map(|member| member.layout().home.clone())
            .collect(),
    });
    environment
        .plane
        .apply(NAMESPACE, &environment.manifest().await)
        .await
        .unwrap();
    let instance = target.instance("database", SOON).await.unwrap();
    let session = environment.source.connect("postgres").await.unwrap();
    let mut streams = false;
    for _ in 0..600 {
        // The copy begins with a checkpoint, which the source would spread over minutes.
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

    let again = environment.run().await;
    assert_eq!(again.exit_code, 0, "{again}");
    assert!(
        again
            .text()
            .contains("cluster database exists already and follows the source"),
        "{again}"
    );
}
