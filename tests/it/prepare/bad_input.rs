//! Invalid input: each case ends with its exit code and one line that says what is wrong and what
//! to do, and changes nothing.

use harness::{authority::Authority, source::SourceOptions};
use k8s_openapi::api::{admissionregistration::v1::ValidatingAdmissionPolicy, rbac::v1::Role};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};
use serde_json::json;

use super::environment::{CLUSTER, Environment, NAMESPACE, SOON};

/// The changed variables, the exit code, and a text of the last line.
type Case<'a> = (&'a [(&'a str, Option<&'a str>)], i32, &'a str);

const CASES: &[Case] = &[
    (
        &[("SOURCE_CLUSTER", None)],
        2,
        "the variable SOURCE_CLUSTER is missing",
    ),
    (&[("TARGET_IMAGE", Some(""))], 2, "it is empty"),
    (&[("SOURCE_HOST", Some(" "))], 2, "it is empty"),
    (
        &[("SOURCE_HOST", None)],
        2,
        "the variable SOURCE_HOST is missing",
    ),
    (
        &[("TARGET_CLUSTER", Some("Data_Base"))],
        2,
        "is not a Kubernetes name",
    ),
    (
        &[("TARGET_STORAGE", Some("40GB"))],
        2,
        "is not a size such as 40Gi",
    ),
    (
        &[("TARGET_IMAGE", Some("postgresql:latest"))],
        2,
        "does not begin with a version of PostgreSQL",
    ),
    (
        &[("SOURCE_PASSWORD_FILE", Some("/nowhere"))],
        2,
        "reading /nowhere",
    ),
    (
        &[("DATABASE", Some("nope"))],
        3,
        "the source has no database nope",
    ),
    (
        &[("TARGET_CLUSTER", Some(CLUSTER))],
        3,
        "TARGET_CLUSTER and SOURCE_CLUSTER are both mastodon-postgresql",
    ),
    (
        &[("TARGET_IMAGE", Some("postgresql:18.1-standard-trixie"))],
        3,
        "the source is PostgreSQL 17",
    ),
    (
        &[("TARGET_STORAGE", Some("1Mi"))],
        3,
        "raise TARGET_STORAGE",
    ),
    (
        &[("SOURCE_PORT", Some("1"))],
        1,
        "connecting to mastodon-postgresql.mastodon.svc:1",
    ),
    (
        &[("SOURCE_HOST", Some("nowhere.mastodon.svc"))],
        1,
        "connecting to nowhere.mastodon.svc:5432",
    ),
    (
        &[("TARGET_PATCH", Some("database-cluster"))],
        2,
        "the Role of this step lacks the verb named above, or does not name the object",
    ),
    (
        &[("SOURCE_USER", Some("absent"))],
        2,
        "password authentication failed",
    ),
];

#[tokio::test]
async fn wrong_settings_and_certificates_are_refused_and_nothing_changes() {
    let environment = Environment::start(SourceOptions::default()).await;
    let untouched = environment.state().await;
    for (changes, exit_code, says) in CASES {
        let job = changes
            .iter()
            .fold(environment.job(), |job, (name, value)| match value {
                Some(value) => job.env(name, value),
                None => job.without(name),
            });
        let ended = job.run(SOON).await.unwrap();
        expect(&ended, *exit_code, says);
    }
    refuses_what_the_target_is_not_given(&environment).await;
    gives_no_password_in_clear_text(&environment).await;
    for (certificate, ca, says) in certificates() {
        environment
            .overwrite(&format!("{CLUSTER}-server"), &[("tls.crt", &certificate)])
            .await;
        environment
            .overwrite(&format!("{CLUSTER}-ca"), &[("ca.crt", &ca)])
            .await;
        // Before a password is sent to a server that cannot be verified.
        expect(&environment.run().await, 3, says);
    }
    assert_eq!(environment.state().await, untouched);
    let unverified = environment
        .job()
        .env("SOURCE_SSLMODE", "require")
        .run(SOON)
        .await
        .unwrap();
    assert_eq!(unverified.exit_code, 0, "{unverified}");
    let external = &environment.manifest().await[0]["spec"]["externalClusters"][0];
    assert_eq!(external["connectionParameters"]["sslmode"], "require");
}

/// Pairs of a server certificate and a CA that fail verification: signed by another CA, and
/// expired.
fn certificates() -> [(String, String, &'static str); 2] {
    let (one, other) = (
        Authority::root("one").unwrap(),
        Authority::root("other").unwrap(),
    );
    let names = vec!["mastodon-postgresql.mastodon.svc".to_owned()];
    let foreign = one.server("source", &names, &[]).unwrap();
    let mut old = CertificateParams::new(names).unwrap();
    (old.not_before, old.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(2025, 1, 1));
    old.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let expired = one.sign(old).unwrap();
    [
        (
            foreign.certificate,
            other.certificate().into(),
            "was not signed by this CA, but by CN=one",
        ),
        (
            expired.certificate,
            one.certificate().into(),
            "expired at 2025-01-01",
        ),
    ]
}

fn expect(ended: &harness::kubelet::Ended, exit_code: i32, says: &str) {
    assert_eq!(ended.exit_code, exit_code, "{says}: {ended}");
    let last = &ended
        .log
        .last()
        .unwrap_or_else(|| panic!("{says}: the log is empty"))
        .text;
    assert!(
        last.contains('✗') && last.contains(says) && last.contains('→'),
        "{says:?} is not the last line of {ended}"
    );
    // Without valid settings there is no termination message, only the log.
    assert!(
        ended
            .termination_message
            .contains(&says.replace('"', "\\\""))
            || ended.termination_message.contains(says),
        "{ended}"
    );
}

#[tokio::test]
async fn clusters_that_cannot_be_migrated_are_refused_and_nothing_changes() {
    let environment = Environment::start(SourceOptions::default()).await;
    let untouched = environment.state().await;

    environment
        .overwrite(
            &format!("postgres.{CLUSTER}.credentials.postgresql.acid.zalan.do"),
            &[("password", "wrong")],
        )
        .await;
    expect(
        &environment.run().await,
        2,
        "password authentication failed",
    );
    let right = environment.source.credentials().postgres.clone();
    environment
        .overwrite(
            &format!("postgres.{CLUSTER}.credentials.postgresql.acid.zalan.do"),
            &[("password", &right)],
        )
        .await;

    let standby = format!("standby.{CLUSTER}.credentials.postgresql.acid.zalan.do");
    environment
        .overwrite(&standby, &[("password", "wrong")])
        .await;
    expect(
        &environment.run().await,
        3,
        "does not hold the password of role standby",
    );
    environment
        .overwrite(
            &standby,
            &[("password", &environment.source.credentials().standby)],
        )
        .await;

    let changes = [
        (
            "set allow_in_place_tablespaces = on; create tablespace fast location ''",
            "drop tablespace fast",
            "tablespace fast cannot be copied",
        ),
        (
            "alter system set default_transaction_read_only = off",
            "alter system reset default_transaction_read_only",
            "postgresql.auto.conf sets default_transaction_read_only",
        ),
        (
            "alter role standby noreplication",
            "alter role standby replication",
            "role standby lacks replication",
        ),
        (
            "create role streaming_replica",
            "drop role streaming_replica",
            "role streaming_replica exists, was not created by this program",
        ),
        (
            "alter role mastodon set session_preload_libraries = 'set_user'",
            "alter role mastodon reset session_preload_libraries",
            "no login would succeed",
        ),
    ];
    for (change, revert, says) in changes {
        // One by one: a tablespace cannot be created in a transaction.
        let session = environment.source.connect("postgres").await.unwrap();
        for statement in change.split("; ") {
            session.batch_execute(statement).await.unwrap();
        }
        expect(&environment.run().await, 3, says);
        environment.sql("postgres", revert).await;
    }
    let other = environment.source.connect("postgres").await.unwrap();
    other
        .batch_execute("select pg_advisory_lock(8243118303898460416)")
        .await
        .unwrap();
    expect(
        &environment.run().await,
        1,
        "another run of prepare-zalando is in progress",
    );
    drop(other);
    // Everything but the roles, which this test itself has altered and restored.
    assert_eq!(environment.state().await[..5], untouched[..5]);

    target(&environment).await;
    without_a_leader(&environment).await;
    without_a_verb(&environment).await;
}

/// A Cluster that exists already: with other data, or promoted.
async fn target(environment: &Environment) {
    let clusters = environment.of_kind("postgresql.cnpg.io", "Cluster", "clusters");
    let identity: String = environment
        .ask("select system_identifier::text from pg_control_system()")
        .await;
    for (enabled, system, says) in [
        (true, "1", "cluster database exists and holds other data"),
        (
            false,
            identity.as_str(),
            "cluster database exists and follows no source",
        ),
    ] {
        let cluster = json!({
            "apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster",
            "metadata": {"name": "database"},
            "spec": {
                "instances": 1,
                "imageName": "p:17.10",
                "storage": {"size": "1Gi"},
                "replica": {"enabled": enabled, "source": "zalando"},
                "externalClusters": [{"name": "zalando", "connectionParameters": {"host": "h"}}],
            },
            "status": {"systemID": system},
        });
        environment
            .plane
            .apply(NAMESPACE, &[cluster])
            .await
            .unwrap();
        expect(&environment.run().await, 3, says);
    }
    clusters
        .delete("database", &DeleteParams::default())
        .await
        .unwrap();
}

async fn without_a_leader(environment: &Environment) {
    let mut other = environment.postgresqls().get(CLUSTER).await.unwrap();
    other.metadata = kube::api::ObjectMeta {
        name: Some("empty".into()),
        ..Default::default()
    };
    environment
        .postgresqls()
        .create(&PostParams::default(), &other)
        .await
        .unwrap();
    allow(
        environment,
        json!({"apiGroups": ["acid.zalan.do"], "resources": ["postgresqls"], "verbs": ["get"]}),
    )
    .await;
    let ended = environment
        .job()
        .env("SOURCE_CLUSTER", "empty")
        .run(SOON)
        .await
        .unwrap();
    expect(&ended, 3, "postgresql empty has no leader");
    // Without a server: by the resource alone.
    for (version, says) in [
        ("13", "the source is PostgreSQL 13; supported are 15 to 18"),
        ("16", "the source is PostgreSQL 16, TARGET_IMAGE"),
    ] {
        let change = json!({"spec": {"postgresql": {"version": version}}});
        environment
            .postgresqls()
            .patch("empty", &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap();
        let job = environment.job().env("SOURCE_CLUSTER", "empty");
        expect(&job.run(SOON).await.unwrap(), 3, says);
    }
    let ended = environment
        .job()
        .env("SOURCE_CLUSTER", "unknown")
        .run(SOON)
        .await
        .unwrap();
    expect(
        &ended,
        2,
        "postgresql unknown does not exist in namespace mastodon",
    );
}

/// Grants more than the manifests do, for a name that they do not contain.
async fn allow(environment: &Environment, rule: serde_json::Value) {
    let account = "replica-migration-prepare-zalando";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "more"}, "rules": [rule],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "more"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "more"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
    });
    environment
        .plane
        .apply(NAMESPACE, &[role, binding])
        .await
        .unwrap();
}

async fn without_a_verb(environment: &Environment) {
    let roles: Api<Role> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    let name = "replica-migration-prepare-zalando";
    let before = roles.get(name).await.unwrap().rules;
    let fewer: Vec<_> = before
        .iter()
        .flatten()
        .filter(|rule| rule.resources.as_deref() != Some(&["pods".into()]))
        .cloned()
        .collect();
    let set = async |rules: serde_json::Value| {
        roles
            .patch(
                name,
                &PatchParams::default(),
                &Patch::Merge(json!({"rules": rules})),
            )
            .await
            .unwrap()
    };
    set(json!(fewer)).await;
    let ended = environment.run().await;
    expect(&ended, 2, "cannot list resource \"pods\"");
    set(json!(before)).await;
}

/// A patch that changes what the migration needs, one that the schema refuses, and a manifest that
/// a policy refuses.
async fn refuses_what_the_target_is_not_given(environment: &Environment) {
    let before = environment.target_patch().await;
    for (patch, exit_code, says) in [
        (
            "spec: {instances: 3}",
            2,
            "it must not change spec.instances",
        ),
        (
            "spec: {postgresql: {pg_hba: [local all all trust]}}",
            2,
            "must repeat \"hostssl replication standby all md5\"",
        ),
        ("spec: [", 2, "TARGET_PATCH: configmap target-patch"),
        (
            "spec: {storage: {resizeInUseVolumes: sometimes}}",
            3,
            "resizeInUseVolumes",
        ),
    ] {
        environment.set_target_patch(patch).await;
        expect(&environment.run().await, exit_code, says);
    }
    environment.set_target_patch(&before).await;

    let policies: Api<ValidatingAdmissionPolicy> = Api::all(environment.plane.admin());
    let name = "poolers-need-an-owner";
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["postgresql.cnpg.io"], "apiVersions": ["v1"],
                "operations": ["CREATE"], "resources": ["poolers"],
            }]},
            "validations": [{"expression": "has(object.metadata.labels)", "message": "no owner"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    environment
        .plane
        .apply(NAMESPACE, &[policy, binding])
        .await
        .unwrap();
    // A policy is in force a moment after it was made.
    let refused = async {
        loop {
            let ended = environment.job().env("DRY_RUN", "true").run(SOON).await;
            let ended = ended.unwrap();
            if ended.exit_code != 0 {
                return ended;
            }
        }
    };
    let ended = tokio::time::timeout(SOON, refused).await.unwrap();
    expect(&ended, 3, "no owner");
    expect(&environment.run().await, 3, "nothing was changed");
    policies
        .delete(name, &DeleteParams::default())
        .await
        .unwrap();
}

/// The server that answers may be any other one where its certificate is not verified.
async fn gives_no_password_in_clear_text(environment: &Environment) {
    let list = environment.hba_file();
    let session = environment.source.connect("postgres").await.unwrap();
    let reload = async |text: &str| {
        environment.set_hba_file(text);
        session
            .batch_execute("select pg_reload_conf()")
            .await
            .unwrap();
    };
    reload(&format!("hostssl all postgres all password\n{list}")).await;
    let refused = async {
        loop {
            let ended = environment.job().env("DRY_RUN", "true").run(SOON).await;
            let ended = ended.unwrap();
            if ended.exit_code != 0 {
                return ended;
            }
        }
    };
    let ended = tokio::time::timeout(SOON, refused).await.unwrap();
    expect(
        &ended,
        2,
        "the server asks for the password in clear text, and gets none",
    );
    reload(&list).await;
}
