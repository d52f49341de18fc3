//! Controllers that would revert the cutover: each is detected by its traces in the objects,
//! suspended, and resumed. One that cannot be suspended keeps acting until the end, and no write is
//! lost.

use std::collections::BTreeMap;

use harness::{
    conflicting_controllers::{
        self, APPLICATION, ConflictingController, HELM_RELEASE, PauseSetting, RunningController,
        SCALED_OBJECT,
    },
    manifests,
    migration::{CLUSTER, MANIFEST, NAMESPACE},
    objects::Objects,
};
use serde_json::{Value, json};

use super::environment::{
    CNPG, CONFIG_MAP, DEPLOYMENT, Environment, SOON, assert_ended, assert_same,
};

const ARGO: &str = "argocd";
const CRON_JOB: (&str, &str, &str) = ("batch", "v1", "CronJob");
const HPA: (&str, &str, &str) = ("autoscaling", "v2", "HorizontalPodAutoscaler");
const TRACKING: &str = "argocd.argoproj.io/tracking-id";
const RECONCILE: &str = "kustomize.toolkit.fluxcd.io/reconcile";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_that_would_revert_the_cutover_are_suspended_and_resumed() {
    let environment = Environment::ready().await;
    conflicting_controllers::install(&environment.migration.plane)
        .await
        .unwrap();
    create(&environment).await;
    for forbidden in [
        "scaledobjects.keda.sh is forbidden",
        "helmreleases.helm.toolkit.fluxcd.io \"mastodon\" is forbidden",
        "applications.argoproj.io \"data\" is forbidden",
    ] {
        let words = [
            "manages",
            forbidden,
            "apply manifests/gitops/argo in Argo CD's namespace",
        ];
        let ended = environment.run(environment.by_config(), 2, &words).await;
        assert!(!ended.text().contains("DOWNTIME"), "{ended}");
    }
    grant(&environment).await;
    generated_applications_are_refused(&environment).await;
    let _running = start(&environment);
    let (before, controllers_before) = (
        environment.snapshot().await,
        controllers(&environment).await,
    );

    let running = environment
        .until_failpoint(environment.by_config(), "before EndSessions")
        .await;
    let scaled_object = environment.object(SCALED_OBJECT, "web").await;
    assert_eq!(
        scaled_object["metadata"]["annotations"]["autoscaling.keda.sh/paused"],
        "true"
    );
    assert_eq!(
        environment.object(HELM_RELEASE, "mastodon").await["spec"]["suspend"],
        true
    );
    assert_eq!(
        environment.object(CRON_JOB, "nightly").await["spec"]["suspend"],
        true
    );
    for application in ["mastodon", "data", "apps"] {
        assert_eq!(automated(&environment, application).await, Value::Null);
    }
    running.terminate();
    running.release_failpoint();
    assert_ended(
        &running.wait(SOON).await.unwrap(),
        3,
        &["resuming ScaledObject web", "runs on the source as before"],
    );
    assert_same(&before, &environment.snapshot().await);
    assert_same(&controllers_before, &controllers(&environment).await);
    assert_eq!(automated(&environment, "data").await, json!({}));
    assert_eq!(
        automated(&environment, "apps").await,
        json!({"selfHeal": true})
    );
    environment.runs_on_the_source().await;

    let running = environment
        .until_failpoint(environment.by_config(), "before EndSessions")
        .await;
    running.kill();
    running.wait(SOON).await.unwrap();
    let words = [
        "resuming Application argocd/mastodon automated",
        "resuming Application argocd/apps automated",
        "resuming Cluster database kustomize.toolkit.fluxcd.io/reconcile",
        "runs on the source as before",
    ];
    environment.run(environment.rollback(), 0, &words).await;
    assert_same(&before, &environment.snapshot().await);
    assert_same(&controllers_before, &controllers(&environment).await);
    environment.runs_on_the_source().await;

    waits_for_a_running_job(&environment).await;
    let edited = edit_the_manifest(&environment).await;
    let words = [
        "DOWNTIME ENDS",
        "resuming CronJob nightly suspend",
        "resuming HelmRelease mastodon/mastodon suspend",
        "ConfigMap mastodon-database kustomize.toolkit.fluxcd.io/reconcile stays suspended, \
         because Flux's Kustomization apps would put",
        "Application argocd/data automated stays suspended, because Application argocd/data would \
         put back Cluster database",
        "ConfigMap database-cluster-replica was not left as prepare-zalando wrote it",
    ];
    let ended = environment.run(environment.by_config(), 0, &words).await;
    says_what_to_change_in_git(&ended.text());
    assert!(
        ended
            .text()
            .contains("also scaled by the field manager robot"),
        "{ended}"
    );
    // The permanent change, and the annotation that keeps Flux from reverting it.
    let map = environment.object(CONFIG_MAP, "mastodon-database").await;
    assert_eq!(
        (
            &map["data"]["DB_HOST"],
            &map["metadata"]["annotations"][RECONCILE]
        ),
        (&json!("database-pooler-rw"), &json!("disabled"))
    );
    assert_same(&controllers_before, &controllers(&environment).await);
    for application in ["data", "apps"] {
        assert_eq!(automated(&environment, application).await, Value::Null);
    }
    // What a person has edited is left as it is.
    let map = environment.object(CONFIG_MAP, MANIFEST).await;
    assert_eq!(map["data"], edited);
    // Several Events with the same reason, each with its own note.
    let events = environment.objects(("events.k8s.io", "v1", "Event")).await;
    let permanent = events
        .iter()
        .filter(|event| event["reason"] == "StaysSuspended");
    let notes: Vec<&str> = permanent
        .filter_map(|event| event["note"].as_str())
        .collect();
    let noted = |kind: &str| notes.iter().any(|note| note.starts_with(kind));
    assert_eq!(notes.len(), 4, "{notes:?}");
    for kind in [
        "ConfigMap mastodon-database",
        "Cluster database",
        "Application argocd/data",
        "Application argocd/apps",
    ] {
        assert!(noted(kind), "{notes:?}");
    }
    environment.nothing_is_lost().await;
}

/// The last lines name every object that is kept in git, what applies it, and what must be there.
fn says_what_to_change_in_git(log: &str) {
    let (_, closing) = log
        .split_once("receipt: kubectl get configmap cutover-database-receipt")
        .expect("the receipt is named");
    for words in [
        "the ConfigMap database-cluster-replica still holds a manifest that was edited by hand",
        "before the next sync of Kustomization flux-system/apps, set in git: \
         spec.replica.enabled: false in Cluster database",
        "before the next sync of Application argocd/data, set in git: spec.replica.enabled: false \
         in Cluster database",
        "before the next sync of Kustomization flux-system/apps, set in git: \
         DB_HOST=database-pooler-rw, REPLICA_DB_HOST=database-pooler-ro in ConfigMap \
         mastodon-database",
    ] {
        assert!(closing.contains(words), "{words:?} is not in {closing}");
    }
}

/// The field of an Application by which it syncs by itself.
async fn automated(environment: &Environment, application: &str) -> Value {
    let found = environment.object_in(APPLICATION, ARGO, application).await;
    found["spec"]["syncPolicy"]["automated"].clone()
}

/// An ApplicationSet would put back what it has generated, and has no field that pauses it.
async fn generated_applications_are_refused(environment: &Environment) {
    let applications = Objects::new(environment.migration.plane.admin(), ARGO);
    let generated = json!([{
        "apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet", "name": "shops",
        "uid": "0b0c5c1c-2f3c-4a53-9a0e-6b6f2e5b7a11", "controller": true,
    }]);
    let owned_by = async |references: Value| {
        let change = json!({"metadata": {"ownerReferences": references}});
        applications
            .patch(APPLICATION, "data", change)
            .await
            .unwrap();
    };
    owned_by(generated).await;
    let words = [
        "generated-owner:shops: wanted owners that stay suspended, found Application argocd/data, \
         which manages Cluster database, is generated by the ApplicationSet shops",
        "spec.ignoreApplicationDifferences",
        "ACCEPT=generated-owner:shops",
    ];
    let ended = environment.run(environment.by_config(), 3, &words).await;
    assert!(!ended.text().contains("DOWNTIME"), "{ended}");
    let accepted = environment
        .by_config()
        .env("ACCEPT", "generated-owner:shops")
        .env("DRY_RUN", "true");
    environment
        .run(
            accepted,
            0,
            &["Application argocd/data automated (permanently)"],
        )
        .await;
    owned_by(Value::Null).await;
}

/// Adds a comment to the stored manifest, as a person would; returns what the ConfigMap holds.
async fn edit_the_manifest(environment: &Environment) -> Value {
    let map = environment.object(CONFIG_MAP, MANIFEST).await;
    let key = format!("{MANIFEST}.yaml");
    let text = map["data"][&key].as_str().unwrap();
    let edited = json!({key: format!("# larger volumes, see the ticket\n{text}")});
    environment
        .patch(CONFIG_MAP, MANIFEST, json!({"data": edited.clone()}))
        .await;
    edited
}

/// The controllers' objects, and the workloads that they manage.
async fn controllers(environment: &Environment) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (kind, name) in [
        (SCALED_OBJECT, "web"),
        (HELM_RELEASE, "mastodon"),
        (CRON_JOB, "nightly"),
        (HPA, "keda-hpa-web"),
    ] {
        let object = environment.object(kind, name).await;
        all.insert(
            format!("{} {name}", kind.2),
            json!([object["metadata"]["annotations"], object["spec"]]),
        );
    }
    for object in environment.objects(DEPLOYMENT).await {
        let name = format!("Deployment {}", object["metadata"]["name"]);
        all.insert(
            name,
            json!([object["metadata"]["annotations"], object["spec"]]),
        );
    }
    let application = environment.object_in(APPLICATION, ARGO, "mastodon").await;
    all.insert("Application mastodon".into(), application["spec"].clone());
    all
}

/// Creates the objects of KEDA, Flux, Argo CD and the application's CronJob, and the traces that
/// these controllers leave in the application's objects.
async fn create(environment: &Environment) {
    let plane = &environment.migration.plane;
    plane.namespace(ARGO).await.unwrap();
    let deployment =
        |name: &str| json!({"kind": "Deployment", "name": name, "apiVersion": "apps/v1"});
    let (scaled, streaming) = (deployment("mastodon-web"), deployment("mastodon-streaming"));
    let object = |kind: (&str, &str, &str), name: &str, spec: Value| {
        json!({
            "apiVersion": format!("{}/{}", kind.0, kind.1), "kind": kind.2,
            "metadata": {"name": name}, "spec": spec,
        })
    };
    let containers = json!([{"name": "c", "image": "i"}]);
    let job = json!({
        "template": {"spec": {"restartPolicy": "Never", "containers": containers}},
    });
    let objects = [
        object(
            SCALED_OBJECT,
            "web",
            json!({"scaleTargetRef": {"name": "mastodon-web"}, "triggers": [{"type": "cpu"}]}),
        ),
        object(HELM_RELEASE, "mastodon", json!({"interval": "5m"})),
        object(
            CRON_JOB,
            "nightly",
            json!({"schedule": "0 3 * * *", "jobTemplate": {"spec": job}}),
        ),
        object(
            HPA,
            "keda-hpa-web",
            json!({"scaleTargetRef": scaled, "maxReplicas": 4, "minReplicas": 1}),
        ),
        object(
            HPA,
            "streaming",
            json!({"scaleTargetRef": streaming, "maxReplicas": 4}),
        ),
    ];
    plane.apply(NAMESPACE, &objects).await.unwrap();
    // `data` acts at the next commit only; `apps` manages `data`, and itself.
    let application = |name: &str, automated: Value, parent: Option<&str>| {
        let spec = json!({"syncPolicy": {"automated": automated}});
        let mut application = object(APPLICATION, name, spec);
        application["metadata"]["namespace"] = ARGO.into();
        if let Some(parent) = parent {
            let id = format!("{parent}:argoproj.io/Application:{ARGO}/{name}");
            application["metadata"]["annotations"] = json!({TRACKING: id});
        }
        application
    };
    let applications = [
        application("mastodon", json!({"selfHeal": true}), None),
        application("data", json!({}), Some("apps")),
        application("apps", json!({"selfHeal": true}), Some("apps")),
    ];
    plane.apply(ARGO, &applications).await.unwrap();
    let uid = environment.object(SCALED_OBJECT, "web").await["metadata"]["uid"].clone();
    let owner = json!([{
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "web", "uid": uid,
        "controller": true,
    }]);
    environment
        .patch(
            HPA,
            "keda-hpa-web",
            json!({"metadata": {"ownerReferences": owner}}),
        )
        .await;
    let flux = json!({"metadata": {"labels": {
        "kustomize.toolkit.fluxcd.io/name": "apps",
        "kustomize.toolkit.fluxcd.io/namespace": "flux-system",
    }}});
    environment
        .patch(DEPLOYMENT, "mastodon-sidekiq-default", flux.clone())
        .await;
    environment
        .patch(CONFIG_MAP, "mastodon-database", flux.clone())
        .await;
    environment.patch(CNPG, CLUSTER, flux).await;
    let id = format!("data:postgresql.cnpg.io/Cluster:{NAMESPACE}/{CLUSTER}");
    let tracked = json!({"metadata": {"annotations": {TRACKING: id}}});
    environment.patch(CNPG, CLUSTER, tracked).await;
    let helm = json!({
        "helm.toolkit.fluxcd.io/name": "mastodon",
        "helm.toolkit.fluxcd.io/namespace": NAMESPACE,
    });
    environment
        .patch(
            DEPLOYMENT,
            "mastodon-sidekiq-federation",
            json!({"metadata": {"labels": helm}}),
        )
        .await;
    let tracking = json!({
        TRACKING: "mastodon:apps/Deployment:mastodon/mastodon-sidekiq-background",
    });
    environment
        .patch(
            DEPLOYMENT,
            "mastodon-sidekiq-background",
            json!({"metadata": {"annotations": tracking}}),
        )
        .await;
    environment
        .patch_as(
            "robot",
            DEPLOYMENT,
            "mastodon-sidekiq-scheduler",
            json!({"spec": {"replicas": 1}}),
        )
        .await;
}

/// Grants the permissions of manifests/components/keda, flux and cron-jobs, and those of
/// manifests/gitops/argo in Argo CD's namespace, with the names of all Applications.
async fn grant(environment: &Environment) {
    let plane = &environment.migration.plane;
    let components = ["keda", "flux", "cron-jobs"];
    let objects =
        manifests::example_set(plane.setup(), &components, &["APP_CRONJOBS=nightly"]).unwrap();
    for kind in ["Role", "RoleBinding", "ConfigMap"] {
        let objects: Vec<Value> = manifests::of_kind(&objects, kind).cloned().collect();
        plane.apply(NAMESPACE, &objects).await.unwrap();
    }
    let mut argo =
        manifests::render(plane.setup(), &manifests::folder().join("gitops/argo")).unwrap();
    for role in argo.iter_mut().filter(|object| object["kind"] == "Role") {
        role["rules"][0]["resourceNames"] = json!(["mastodon", "data", "apps"]);
    }
    plane.apply(ARGO, &argo).await.unwrap();
}

/// Starts the controllers. Each restores the replicas of its Deployment, and Flux the ConfigMap,
/// unless it is suspended; `robot` cannot be suspended.
fn start(environment: &Environment) -> Vec<RunningController> {
    let in_namespace = |kind, name: &str| (kind, NAMESPACE.to_owned(), name.to_owned());
    let pause_setting = |object, field: &str, paused_value: Value| {
        Some(PauseSetting {
            object,
            field: field.into(),
            paused_value,
        })
    };
    let reconcile = "/metadata/annotations/kustomize.toolkit.fluxcd.io~1reconcile";
    let replicas = |manager, name: &str, count: u32, pause_setting: Option<PauseSetting>| {
        ConflictingController {
            manager,
            pause_setting,
            object: (DEPLOYMENT, name.into()),
            desired: json!({"spec": {"replicas": count}}),
        }
    };
    let web = pause_setting(
        in_namespace(SCALED_OBJECT, "web"),
        "/metadata/annotations/autoscaling.keda.sh~1paused",
        json!("true"),
    );
    let default = pause_setting(
        in_namespace(DEPLOYMENT, "mastodon-sidekiq-default"),
        reconcile,
        json!("disabled"),
    );
    let federation = pause_setting(
        in_namespace(HELM_RELEASE, "mastodon"),
        "/spec/suspend",
        json!(true),
    );
    let syncing = |application: &str| {
        let object = (APPLICATION, ARGO.to_owned(), application.to_owned());
        pause_setting(object, "/spec/syncPolicy/automated", Value::Null)
    };
    // The parent of `data` puts back the field that is removed there, and a commit that `data` then
    // applies makes the Cluster follow again.
    let parent = ConflictingController {
        manager: "argocd-application-controller",
        pause_setting: syncing("apps"),
        object: (APPLICATION, "data".into()),
        desired: json!({"spec": {"syncPolicy": {"automated": {}}}}),
    };
    let cluster = ConflictingController {
        manager: "argocd-application-controller",
        pause_setting: syncing("data"),
        object: (CNPG, CLUSTER.into()),
        desired: json!({"spec": {"replica": {"enabled": true}}}),
    };
    let map = ConflictingController {
        manager: "kustomize-controller",
        pause_setting: pause_setting(
            in_namespace(CONFIG_MAP, "mastodon-database"),
            reconcile,
            json!("disabled"),
        ),
        object: (CONFIG_MAP, "mastodon-database".into()),
        desired: json!({"data": {
            "DB_HOST": "mastodon-postgresql-pooler", "REPLICA_DB_HOST": "mastodon-postgresql-repl",
        }}),
    };
    let all = [
        replicas("keda-operator", "mastodon-web", 2, web),
        replicas(
            "kustomize-controller",
            "mastodon-sidekiq-default",
            1,
            default,
        ),
        replicas(
            "helm-controller",
            "mastodon-sidekiq-federation",
            1,
            federation,
        ),
        replicas(
            "argocd-controller",
            "mastodon-sidekiq-background",
            1,
            syncing("mastodon"),
        ),
        replicas("robot", "mastodon-sidekiq-scheduler", 1, None),
        map,
        cluster,
    ];
    let plane = &environment.migration.plane;
    let started = all.into_iter().map(|one| one.start(plane, NAMESPACE));
    started.chain([parent.start(plane, ARGO)]).collect()
}

/// The CronJob's status lists a running Job; writes are blocked only after it has ended.
async fn waits_for_a_running_job(environment: &Environment) {
    let active = json!([{"kind": "Job", "name": "nightly-1", "namespace": NAMESPACE}]);
    environment
        .patch_status(CRON_JOB, "nightly", json!({"status": {"active": active}}))
        .await;
    let running = environment
        .by_config()
        .env("FAILPOINT", "before record Blocked")
        .start()
        .await
        .unwrap();
    running
        .wait_for_line("jobs of the application still run: nightly-1", SOON)
        .await
        .unwrap();
    environment
        .patch_status(CRON_JOB, "nightly", json!({"status": {"active": null}}))
        .await;
    running
        .wait_for_line("failpoint before record Blocked: waiting", SOON)
        .await
        .unwrap();
    running.terminate();
    running.release_failpoint();
    assert_ended(
        &running.wait(SOON).await.unwrap(),
        3,
        &["ROLLING BACK: asked to end"],
    );
}
