//! A user with other names sets each of them in one place.

use std::{collections::BTreeSet, fs, path::Path};

use harness::{
    manifests::{self, of_kind},
    setup::Setup,
};
use serde_json::{Value, json};

use super::named;

/// Names of the example and their replacements. Longer ones come first, so that none is part of
/// another. None of the replacements occurs in the manifests otherwise.
const NAMES: [(&str, &str); 11] = [
    ("mastodon-sidekiq-background", "crawler"),
    ("mastodon-sidekiq-federation", "mailer"),
    ("mastodon-sidekiq-scheduler", "cron.daily"),
    ("mastodon-sidekiq-default", "worker"),
    ("mastodon-streaming", "shop-events"),
    ("mastodon-postgresql", "acid-shop-db"),
    ("mastodon-database", "shop-config"),
    ("mastodon-web", "shop-front-end"),
    ("mastodon", "shop"),
    ("database", "shop-pg-17"),
    ("accounts,statuses,users", "orders"),
];

fn renamed(text: &str) -> String {
    NAMES
        .iter()
        .fold(text.to_owned(), |text, (example, other)| {
            text.replace(example, other)
        })
}

/// Renders a copy of the manifests with another overlay beside the example.
pub(super) async fn render_with(overlay: &str) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    copy(&manifests::folder(), folder.path());
    let other = folder.path().join("overlays/other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("kustomization.yaml"), overlay).unwrap();
    let patch = "target-patch.yaml";
    fs::copy(
        folder.path().join("overlays/example").join(patch),
        other.join(patch),
    )
    .unwrap();
    manifests::render(Setup::ready().await.unwrap(), &other).unwrap()
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let copied = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &copied);
        } else {
            fs::copy(entry.path(), copied).unwrap();
        }
    }
}

pub(super) fn example_overlay() -> String {
    fs::read_to_string(manifests::folder().join("overlays/example/kustomization.yaml")).unwrap()
}

#[tokio::test]
async fn a_name_is_set_once_and_reaches_all_objects() {
    let example = super::example().await;
    let expected: Vec<Value> =
        serde_json::from_str(&renamed(&serde_json::to_string(&example).unwrap())).unwrap();
    let found = render_with(&renamed(&example_overlay())).await;
    // kustomize sorts by kind and by names that do not change.
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn the_image_is_set_once_and_reaches_all_objects() {
    let overlay = example_overlay().replace(
        "newTag: 0.1.0",
        "newName: registry.test/tools/migration\n  newTag: 2.3.4",
    );
    let objects = render_with(&overlay).await;
    let image = "registry.test/tools/migration:2.3.4";
    assert_eq!(
        named(&objects, "ConfigMap", "replica-migration")["data"]["ADOPT_IMAGE"],
        image
    );
    for step in super::STEPS {
        for spec in super::specs(&objects, step) {
            assert_eq!(
                spec["template"]["spec"]["containers"][0]["image"], image,
                "{step}"
            );
        }
    }
}

/// An overlay in the application's repository may contain the application, too.
#[tokio::test]
async fn the_applications_own_jobs_are_not_changed() {
    let containers = json!([{"name": "c", "image": "own:1"}]);
    let pod = json!({"template": {"spec": {"restartPolicy": "Never", "containers": containers}}});
    let metadata = |name: &str| json!({"name": name, "namespace": "mastodon"});
    let own = [
        json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata("nightly"),
            "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": pod}},
        }),
        json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata("migrate"), "spec": pod,
        }),
    ];
    let folder = tempfile::tempdir().unwrap();
    copy(&manifests::folder(), folder.path());
    let overlay = folder.path().join("overlays/example");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": own});
    fs::write(overlay.join("own.yaml"), list.to_string()).unwrap();
    for component in super::components::all() {
        let with = super::components::with(&component);
        assert!(with.contains("resources: [../../base]"), "{with}");
        let with = with.replace(
            "resources: [../../base]",
            "resources: [../../base, own.yaml]",
        );
        fs::write(overlay.join("kustomization.yaml"), with).unwrap();
        let objects = manifests::render(Setup::ready().await.unwrap(), &overlay).unwrap();
        assert_eq!(
            named(&objects, "CronJob", "nightly"),
            &own[0],
            "{component}"
        );
        assert_eq!(named(&objects, "Job", "migrate"), &own[1], "{component}");
    }
}

/// The Roles name exactly the workloads of APPS, however many there are.
#[tokio::test]
async fn the_number_of_deployments_may_differ() {
    let example = example_overlay();
    let line = example.lines().find(|line| line.contains("APPS=")).unwrap();
    for count in [1, 5, 16] {
        let apps: Vec<String> = (0..count).map(|n| format!("app-{n}")).collect();
        let objects =
            render_with(&example.replace(line, &format!("  - APPS={}", apps.join(",")))).await;
        let granted: BTreeSet<String> = manifests::access::grants(&objects)
            .unwrap()
            .into_iter()
            .filter(|grant| grant.resource.starts_with("deployments"))
            .filter_map(|grant| grant.name)
            .collect();
        assert_eq!(granted, apps.into_iter().collect(), "{count}");
    }
}

/// The Role names exactly the CronJobs of APP_CRONJOBS, with components/names and without.
#[tokio::test]
async fn only_the_cron_jobs_of_the_setting_are_granted() {
    let with = super::components::with("cron-jobs");
    for overlay in [with.replace("../../components/names, ", ""), with] {
        for count in [1, 3, 8] {
            let names: Vec<String> = (0..count).map(|n| format!("nightly-{n}")).collect();
            let objects =
                render_with(&format!("{overlay}  - APP_CRONJOBS={}\n", names.join(","))).await;
            let grants = manifests::access::grants(&objects).unwrap().into_iter();
            let patched =
                grants.filter(|grant| grant.resource == "cronjobs" && grant.verb == "patch");
            let granted: BTreeSet<(String, String)> = patched
                .map(|grant| (grant.account, grant.name.unwrap()))
                .collect();
            let accounts = ["replica-migration-cutover", "replica-migration-rollback"].into_iter();
            let wanted = accounts.flat_map(|account| {
                names
                    .iter()
                    .map(move |name| (account.to_owned(), name.clone()))
            });
            assert_eq!(granted, wanted.collect(), "{count}");
        }
    }
}

#[tokio::test]
async fn the_poolers_secret_follows_pooler_user() {
    let objects = render_with(&format!("{}  - POOLER_USER=bouncer\n", example_overlay())).await;
    for step in ["validate-replication", "cutover", "rollback"] {
        for spec in super::specs(&objects, step) {
            let volumes = spec["template"]["spec"]["volumes"].as_array().unwrap();
            let pooler = volumes
                .iter()
                .find(|volume| volume["name"] == "pooler")
                .unwrap();
            let secret = "bouncer.mastodon-postgresql.credentials.postgresql.acid.zalan.do";
            assert_eq!(pooler["secret"]["secretName"], secret, "{step}");
        }
    }
}

/// The patch that the example shows works once its comment signs are removed.
#[tokio::test]
async fn the_certificates_secrets_may_have_other_names() {
    let overlay = [
        ("\n#patches", "\npatches"),
        ("\n#-", "\n-"),
        ("\n#  ", "\n  "),
    ]
    .iter()
    .fold(example_overlay(), |text, (commented, active)| {
        text.replace(commented, active)
    });
    let grants = manifests::access::grants(&render_with(&overlay).await).unwrap();
    let more: Vec<String> = grants
        .difference(&manifests::access::grants(&super::example().await).unwrap())
        .map(ToString::to_string)
        .collect();
    let wanted = [
        "replica-migration-extract-certs: get secrets our-ca",
        "replica-migration-extract-certs: get secrets our-certificate",
        "replica-migration-prepare-zalando: get secrets our-ca",
        "replica-migration-prepare-zalando: get secrets our-certificate",
    ];
    assert_eq!(more, wanted);
}

/// A Role cannot contain a name with a hash.
#[tokio::test]
async fn a_hashed_name_is_granted_only_by_its_component() {
    let overlay = example_overlay().replace(
        "components: [../../components/names]",
        "components: [../../components/names, ../../components/hashed-config]",
    );
    let grants = manifests::access::grants(&render_with(&overlay).await).unwrap();
    let more: Vec<String> = grants
        .difference(&manifests::access::grants(&super::example().await).unwrap())
        .map(ToString::to_string)
        .collect();
    let wanted = [
        "replica-migration-cutover: get configmaps (any name)",
        "replica-migration-cutover: list configmaps (any name)",
        "replica-migration-cutover: patch configmaps (any name)",
        "replica-migration-rollback: get configmaps (any name)",
        "replica-migration-rollback: list configmaps (any name)",
        "replica-migration-rollback: patch configmaps (any name)",
        "replica-migration-validate-replication: get configmaps (any name)",
        "replica-migration-validate-replication: list configmaps (any name)",
    ];
    assert_eq!(more, wanted);
}

/// base has the names of the example, too: its lists and its settings must not drift apart.
#[tokio::test]
async fn base_is_the_example_without_a_namespace() {
    let base = manifests::render(
        Setup::ready().await.unwrap(),
        &manifests::folder().join("base"),
    )
    .unwrap();
    let example = super::example().await;
    assert_eq!(
        named(&base, "ConfigMap", "replica-migration")["data"],
        named(&example, "ConfigMap", "replica-migration")["data"]
    );
    assert_eq!(
        manifests::access::grants(&base).unwrap(),
        manifests::access::grants(&example).unwrap()
    );
    for kind in ["CronJob", "Job"] {
        let specs = |objects| -> Vec<Value> {
            of_kind(objects, kind)
                .map(|object| object["spec"].clone())
                .collect()
        };
        assert_eq!(specs(&base), specs(&example));
    }
}
