//! Invalid input: each case ends with the documented exit code and one line that says what is wrong
//! and what to do, and changes nothing. Then the negative control: in the same environment a script
//! without a fence makes the cutover, and the same ledger counts the writes that it loses.

use std::time::Duration;

use harness::{
    application::DEPLOYMENTS,
    authority::Authority,
    kubelet::Ended,
    migration::{CLUSTER, NAMESPACE, UNMANAGED},
    unrelated_server::{Major, UnrelatedServer},
};
use k8s_openapi::api::{admissionregistration::v1::ValidatingAdmissionPolicy, core::v1::Secret};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::environment::{
    CNPG, CONFIG_MAP, DEPLOYMENT, Environment, ROLE, SOON, SOURCE, assert_same,
};

/// Host number that nothing listens on.
const UNUSED_HOST: u8 = 252;
/// The step's Role and ServiceAccount.
const CUTOVER_ROLE: &str = "replica-migration-cutover";

/// Variables that differ, the exit code, and the text that the last line must contain.
type Case<'a> = (&'a [(&'a str, Option<&'a str>)], i32, &'a str);

const CASES: &[Case] = &[
    (
        &[("SOURCE_CLUSTER", None)],
        2,
        "the variable SOURCE_CLUSTER is missing",
    ),
    (
        &[("TARGET_CLUSTER", Some(""))],
        2,
        "a Kubernetes name is empty",
    ),
    (
        &[("DATABASE", Some(" "))],
        2,
        "the variable DATABASE cannot be used: it is empty",
    ),
    (
        &[("TARGET_HOST", None)],
        2,
        "the variable TARGET_HOST is missing",
    ),
    (&[("SOURCE_SSLMODE", Some("prefer"))], 2, "SOURCE_SSLMODE"),
    (
        &[("CUTOVER_MAX_SECONDS", Some("soon"))],
        2,
        "CUTOVER_MAX_SECONDS",
    ),
    (&[("LAG_BYTES_MAX", Some("-1"))], 2, "LAG_BYTES_MAX"),
    (
        &[("ACCEPT", Some("appsup"))],
        2,
        "there is no check \"appsup\"; the checks are superuser, ",
    ),
    (&[("DRY_RUN", Some("perhaps"))], 2, "DRY_RUN"),
    (
        &[("ROUTE", Some("dns"))],
        2,
        "none of auto, service, config",
    ),
    (
        &[("PAUSE_MAX_SECONDS", Some("soon"))],
        2,
        "PAUSE_MAX_SECONDS",
    ),
    (&[("POOLER_USER", Some(""))], 2, "POOLER_USER"),
    (
        &[("APP_CRONJOBS", Some("nightly"))],
        2,
        "cronjobs.batch \"nightly\" is forbidden",
    ),
    (
        &[("APP_CONFIG_TARGET", Some("DB_HOST"))],
        2,
        "\"DB_HOST\" is not KEY=value",
    ),
    (
        &[("APP_CONFIG_TARGET", Some("NO_SUCH_KEY=x"))],
        2,
        "NO_SUCH_KEY",
    ),
    // The Role names the objects, so a get of any other name is forbidden.
    (
        &[("SOURCE_CLUSTER", Some("absent"))],
        2,
        "postgresqls.acid.zalan.do \"absent\" is forbidden",
    ),
    (
        &[("TARGET_CLUSTER", Some("absent"))],
        2,
        "\"cutover-absent\" is forbidden",
    ),
    (
        &[("APPS", Some("mastodon-web,absent"))],
        2,
        "deployments.apps \"absent\" is forbidden",
    ),
    (&[("APPS", Some(","))], 2, "APPS is empty"),
    (
        &[("APP_CONFIGMAP", Some("nowhere"))],
        2,
        "configmaps \"nowhere\" is forbidden",
    ),
    (
        &[("SOURCE_USER", Some("absent"))],
        2,
        "password authentication failed",
    ),
    (
        &[("SOURCE_PASSWORD_FILE", Some("/nowhere"))],
        2,
        "reading /nowhere",
    ),
    (
        &[("SOURCE_SSLROOTCERT", Some(""))],
        2,
        "sslmode verify-full needs a CA",
    ),
    (
        &[("DATABASE", Some("nowhere"))],
        2,
        "database \"nowhere\" does not exist",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_input_changes_nothing_and_a_script_without_a_fence_loses_writes() {
    let environment = Environment::ready().await;
    let before = environment.snapshot().await;
    for (changes, code, words) in CASES {
        refused(&environment, changes, *code, words).await;
    }
    refuses_wrong_files_and_addresses(&environment).await;
    refuses_other_servers(&environment).await;
    refuses_paused_poolers(&environment).await;
    refuses_missing_objects(&environment).await;
    refuses_after_an_earlier_receipt(&environment).await;
    refuses_under_an_admission_policy(&environment).await;
    refuses_without_a_permission(&environment).await;
    refuses_without_replication(&environment).await;
    assert_same(&before, &environment.snapshot().await);
    assert!(environment.fact("started").await.is_null());
    environment.runs_on_the_source().await;

    refuses_without_a_leader(&environment).await;
    script_without_a_fence(&environment).await;
    refused(&environment, &[], 3, "has been promoted").await;
    let verdict = environment.judged().await;
    // Pods that are still ending when the script promotes may lose writes as well; the unmanaged
    // client always does.
    let unmanaged = verdict
        .lost
        .iter()
        .filter(|key| key.client.starts_with(UNMANAGED))
        .count();
    assert!(unmanaged > 0, "the ledger finds no loss: {verdict:?}");
    println!(
        "the script lost {} acknowledged writes, {unmanaged} of them the unmanaged client's",
        verdict.lost.len()
    );
}

/// Asserts the exit code, and that the last line says what is wrong and what to do.
async fn refused(
    environment: &Environment,
    changes: &[(&str, Option<&str>)],
    code: i32,
    words: &str,
) -> Ended {
    let launch = environment.by_config().env("CUTOVER_MAX_SECONDS", "2");
    let launch = changes
        .iter()
        .fold(launch, |launch, (name, value)| match value {
            Some(value) => launch.env(name, value),
            None => launch.without(name),
        });
    let ended = launch.run(SOON).await.unwrap();
    assert_eq!(ended.exit_code, code, "{changes:?} {words}: {ended}");
    let last = &ended
        .log
        .last()
        .unwrap_or_else(|| panic!("{changes:?}: nothing was logged"))
        .text;
    assert!(
        last.contains('✗') && last.contains(words) && last.contains('→'),
        "{changes:?}: {words:?} is not the last line of {ended}"
    );
    assert!(!ended.text().contains("DOWNTIME"), "{ended}");
    ended
}

async fn refuses_wrong_files_and_addresses(environment: &Environment) {
    let (setup, instance) = (
        environment.migration.plane.setup(),
        environment.migration.plane.instance(),
    );
    let given = instance.subdirectory(setup, "given").unwrap();
    let file = |name: &str, text: &str| {
        let file = given.join(name);
        setup.user.write_private(&file, text).unwrap();
        file.display().to_string()
    };
    let wrong = file("password", "not-the-password");
    let foreign = file(
        "ca.crt",
        Authority::root("another CA").unwrap().certificate(),
    );
    for key in ["SOURCE_PASSWORD_FILE", "TARGET_PASSWORD_FILE"] {
        let ended = refused(
            environment,
            &[(key, Some(&wrong))],
            2,
            "password authentication failed for user \"postgres\"",
        )
        .await;
        assert!(
            !ended.text().contains("not-the-password"),
            "a password in the log"
        );
    }
    for key in ["SOURCE_SSLROOTCERT", "TARGET_SSLROOTCERT"] {
        refused(
            environment,
            &[(key, Some(&foreign))],
            2,
            "certificate verify failed",
        )
        .await;
    }
    let expired = file("expired.crt", &expired_ca(environment).await);
    refused(
        environment,
        &[("TARGET_SSLROOTCERT", Some(&expired))],
        2,
        "certificate has expired",
    )
    .await;
    for key in ["POOLER_PASSWORD_FILE", "OWNER_HASH_FILE"] {
        let (code, words) = match key {
            "POOLER_PASSWORD_FILE" => (2, "password authentication failed"),
            _ => (
                3,
                "owner-password: wanted the same in the database and in the Secret",
            ),
        };
        let ended = refused(
            environment,
            &[("ROUTE", Some("service")), (key, Some(&wrong))],
            code,
            words,
        )
        .await;
        assert!(
            !ended.text().contains("not-the-password"),
            "a password in the log"
        );
    }
    let leader = environment
        .migration
        .source
        .leader()
        .await
        .unwrap()
        .address()
        .to_string();
    let misnamed = format!("{SOURCE}-rw.{NAMESPACE}.svc");
    let changes = [
        ("SOURCE_HOST", Some(misnamed.as_str())),
        ("SOURCE_HOSTADDR", Some(leader.as_str())),
    ];
    refused(environment, &changes, 2, "hostname mismatch").await;
    let unused = instance.address(UNUSED_HOST).to_string();
    for key in ["SOURCE_HOSTADDR", "TARGET_HOSTADDR"] {
        refused(environment, &[(key, Some(&unused))], 1, "connecting to").await;
    }
}

/// The target's CA certificate, expired.
async fn expired_ca(environment: &Environment) -> String {
    let secrets: Api<Secret> = Api::namespaced(environment.migration.plane.admin(), NAMESPACE);
    let data = secrets
        .get(&format!("{CLUSTER}-ca"))
        .await
        .unwrap()
        .data
        .unwrap();
    let text = |key: &str| String::from_utf8(data[key].0.clone()).unwrap();
    harness::authority::expired(&text("ca.crt"), &text("ca.key")).unwrap()
}

/// The target is a server of another cluster.
async fn refuses_other_servers(environment: &Environment) {
    let password = environment.migration.source.credentials().postgres.clone();
    for (major, words) in [
        (Major::Same, "system-identifier: wanted the source's"),
        (
            Major::Other,
            "found 17.10 at the source, 16.2 at the target",
        ),
    ] {
        let unrelated_server =
            UnrelatedServer::start(&environment.migration.plane, &password, major)
                .await
                .unwrap();
        let changes = [
            ("TARGET_HOSTADDR", Some(unrelated_server.address.as_str())),
            ("TARGET_SSLMODE", Some("require")),
            ("TARGET_SSLROOTCERT", Some("")),
        ];
        refused(environment, &changes, 3, words).await;
    }
    let session = environment
        .migration
        .source
        .connect("postgres")
        .await
        .unwrap();
    let make = "set allow_in_place_tablespaces = on";
    session.batch_execute(make).await.unwrap();
    session
        .batch_execute("create tablespace attic location ''")
        .await
        .unwrap();
    refused(
        environment,
        &[],
        3,
        "tablespaces: wanted none beside the default ones, found attic",
    )
    .await;
    session
        .batch_execute("drop tablespace attic")
        .await
        .unwrap();
}

/// A user has paused a pooler, which blocks the cutover with ROUTE=service only.
async fn refuses_paused_poolers(environment: &Environment) {
    let pooler = &environment.migration.poolers[1];
    pooler.console("pause").await.unwrap();
    let words = format!(
        "poolers: wanted every console answers, none is paused, found paused: {}",
        pooler.pod()
    );
    refused(environment, &[("ROUTE", Some("auto"))], 3, &words).await;
    pooler.console("resume").await.unwrap();
}

/// Names that the Role permits and that no object has.
async fn refuses_missing_objects(environment: &Environment) {
    let rule = |group: &str, resource: &str, verbs: Value| {
        let (groups, resources) = (json!([group]), json!([resource]));
        json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
    };
    let rules = json!([
        rule("acid.zalan.do", "postgresqls", json!(["get"])),
        rule("postgresql.cnpg.io", "clusters", json!(["get"])),
        rule("apps", "deployments", json!(["get"])),
        rule("", "configmaps", json!(["get", "list"])),
        rule("coordination.k8s.io", "leases", json!(["get", "update"])),
    ]);
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "more"}, "rules": rules,
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "more"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "more"},
        "subjects": [{"kind": "ServiceAccount", "name": CUTOVER_ROLE, "namespace": NAMESPACE}],
    });
    let fixed = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fixed"}, "immutable": true,
        "data": environment.object(CONFIG_MAP, "mastodon-database").await["data"],
    });
    environment
        .migration
        .plane
        .apply(NAMESPACE, &[role, binding, fixed])
        .await
        .unwrap();
    for (key, value, words) in [
        ("SOURCE_CLUSTER", "absent", "absent does not exist"),
        ("TARGET_CLUSTER", "absent", "absent does not exist"),
        (
            "APPS",
            "mastodon-web,absent",
            "apps: wanted all of APPS, found no absent",
        ),
        (
            "APP_CONFIGMAP",
            "nowhere",
            "the ConfigMap nowhere does not exist",
        ),
        ("APP_CONFIGMAP", "fixed", "the ConfigMap fixed is immutable"),
    ] {
        refused(environment, &[(key, Some(value))], 2, words).await;
    }
    environment.remove(CONFIG_MAP, "fixed").await;
    environment.remove(ROLE, "more").await;
    environment
        .remove(("rbac.authorization.k8s.io", "v1", "RoleBinding"), "more")
        .await;
}

/// The record of an earlier cutover was removed, and its receipt was left.
async fn refuses_after_an_earlier_receipt(environment: &Environment) {
    let name = "cutover-database-receipt";
    let receipt = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "immutable": true,
    });
    environment
        .migration
        .plane
        .apply(NAMESPACE, &[receipt])
        .await
        .unwrap();
    refused(
        environment,
        &[],
        3,
        "the receipt cutover-database-receipt is of another cutover",
    )
    .await;
    environment.remove(CONFIG_MAP, name).await;
}

/// A policy that would refuse the promotion is found by a server-side dry run, before any change.
async fn refuses_under_an_admission_policy(environment: &Environment) {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(environment.migration.plane.admin());
    let name = "no-promotion-on-fridays";
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["postgresql.cnpg.io"], "apiVersions": ["v1"],
                "operations": ["UPDATE"], "resources": ["clusters"],
            }]},
            "validations": [{"expression": "object.spec.replica.enabled == true", "message": "not \
                before monday"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    environment
        .migration
        .plane
        .apply(NAMESPACE, &[policy, binding])
        .await
        .unwrap();
    promotion_is_accepted(environment, false).await;
    let error = "checking that the late changes of the cutover would be admitted: trying to patch \
        Cluster database: kubernetes api: ";
    let expected = [error, "not before monday"];
    environment
        .run(environment.by_config().env("DRY_RUN", "true"), 3, &expected)
        .await;
    let ended = refused(environment, &[], 3, expected[0]).await;
    assert!(ended.text().contains(expected[1]), "{ended}");
    policies
        .delete(name, &DeleteParams::default())
        .await
        .unwrap();
    promotion_is_accepted(environment, true).await;
}

/// Polls until the API server accepts the promotion, or refuses it.
async fn promotion_is_accepted(environment: &Environment, wanted: bool) {
    let clusters = environment.migration.objects().api(CNPG);
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let promotion = Patch::Merge(json!({"spec": {"replica": {"enabled": false}}}));
    let waits = async {
        while clusters.patch(CLUSTER, &params, &promotion).await.is_ok() != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, waits).await.unwrap();
}

/// A missing permission is named by the first observation, before the first effect.
async fn refuses_without_a_permission(environment: &Environment) {
    let rules = environment.object(ROLE, CUTOVER_ROLE).await["rules"].clone();
    let pods = "pods is forbidden: User \
        \"system:serviceaccount:mastodon:replica-migration-cutover\" cannot list resource \"pods\"";
    for (resource, words) in [
        ("pods", pods),
        ("clusters", "cannot get resource \"clusters\""),
    ] {
        let mut fewer = rules.clone();
        fewer
            .as_array_mut()
            .unwrap()
            .retain(|rule| rule["resources"][0] != resource);
        environment
            .patch(ROLE, CUTOVER_ROLE, json!({"rules": fewer}))
            .await;
        refused(environment, &[], 2, words).await;
    }
    environment
        .patch(ROLE, CUTOVER_ROLE, json!({"rules": rules}))
        .await;
}

async fn refuses_without_replication(environment: &Environment) {
    let external = environment.object(CNPG, CLUSTER).await["spec"]["externalClusters"].clone();
    let mut astray = external.clone();
    astray[0]["connectionParameters"]["host"] = json!("nowhere.mastodon.svc");
    environment
        .patch(CNPG, CLUSTER, json!({"spec": {"externalClusters": astray}}))
        .await;
    environment.streams(false).await;
    refused(environment, &[], 1, "wal-receiver: wanted streaming").await;
    environment
        .patch(
            CNPG,
            CLUSTER,
            json!({"spec": {"externalClusters": external}}),
        )
        .await;
    environment.streams(true).await;
}

/// Patroni is killed and the label of the leader removed; the servers keep running.
async fn refuses_without_a_leader(environment: &Environment) {
    for member in environment.migration.source.members() {
        member.kill_patroni().await.unwrap();
        environment
            .patch(
                ("", "v1", "Pod"),
                member.name(),
                json!({"metadata": {"labels": {"spilo-role": null}}}),
            )
            .await;
    }
    refused(
        environment,
        &[],
        1,
        "patroni: wanted a leader, every member's REST API answers, not paused",
    )
    .await;
}

/// A naive cutover without a fence: scale to zero, check the time since the last replayed
/// transaction, promote, change the configuration, scale up.
async fn script_without_a_fence(environment: &Environment) {
    let scale = async |count: Option<u32>| {
        for (name, before) in DEPLOYMENTS {
            environment
                .patch(
                    DEPLOYMENT,
                    name,
                    json!({"spec": {"replicas": count.unwrap_or(before)}}),
                )
                .await;
        }
    };
    scale(Some(0)).await;
    let session = environment.target.admin("mastodon").await.unwrap();
    let lag = "select coalesce(extract(epoch from now() - pg_last_xact_replay_timestamp()), 0) < 5";
    while !session.query_one(lag, &[]).await.unwrap().get::<_, bool>(0) {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    environment
        .patch(
            CNPG,
            CLUSTER,
            json!({"spec": {"replica": {"enabled": false}}}),
        )
        .await;
    environment.target.promoted(SOON).await.unwrap();
    let hosts =
        json!({"data": {"DB_HOST": "database-pooler-rw", "REPLICA_DB_HOST": "database-pooler-ro"}});
    environment
        .patch(CONFIG_MAP, "mastodon-database", hosts)
        .await;
    scale(None).await;
    environment.migration.application.ready(SOON).await.unwrap();
}
