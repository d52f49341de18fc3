//! The manifests that users apply: accepted by a real API server, with the promised restrictions,
//! and without settings that no program reads.

mod alerts;
mod components;
mod elsewhere;
mod keep_promoted;
mod names;
mod variables;

use std::collections::BTreeSet;

use harness::{
    control_plane::ControlPlane,
    kubelet::object_name,
    manifests::{self, of_kind},
    setup::Setup,
};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Discovery,
    api::{DynamicObject, Patch, PatchParams, PostParams, ValidationDirective},
    core::GroupVersionKind,
    discovery::Scope,
};
use serde_json::{Value, json};

/// The steps in the order of use. Each has a folder, a CronJob, a Job, a ServiceAccount, a Role and
/// a RoleBinding.
const STEPS: [&str; 6] = [
    "prepare-zalando",
    "extract-certs",
    "validate-replication",
    "cutover",
    "rollback",
    "final-backup",
];

async fn example() -> Vec<Value> {
    manifests::example(Setup::ready().await.unwrap()).unwrap()
}

fn named<'a>(objects: &'a [Value], kind: &'a str, name: &str) -> &'a Value {
    let found = of_kind(objects, kind).find(|object| object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The Job specs of a step: the one in the CronJob, and the suspended Job's.
fn specs<'a>(objects: &'a [Value], step: &str) -> [&'a Value; 2] {
    let name = object_name(step);
    [
        &named(objects, "CronJob", &name)["spec"]["jobTemplate"]["spec"],
        &named(objects, "Job", &name)["spec"],
    ]
}

#[tokio::test]
async fn the_api_server_accepts_everything_and_admits_the_pods_as_restricted() {
    let plane = ControlPlane::start().await.unwrap();
    let example = example().await;
    let namespace = manifests::namespace(&example).unwrap();
    plane.namespace(namespace).await.unwrap();
    // Before the Jobs exist, because the pod template of a Job is immutable.
    for component in components::all() {
        dry_run(
            &plane.admin(),
            namespace,
            &components::rendered(&component).await,
        )
        .await;
    }
    let objects = manifests::apply_example(&plane).await.unwrap();
    dry_run(&plane.admin(), namespace, &objects).await;
    assert_eq!(
        manifests::apply_example(&plane).await.unwrap(),
        objects,
        "a second apply"
    );

    let restricted =
        json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let namespaces: Api<Namespace> = Api::all(plane.admin());
    namespaces
        .patch(
            namespace,
            &PatchParams::default(),
            &Patch::Merge(restricted),
        )
        .await
        .unwrap();
    let prioritized = components::rendered("priority-class").await;
    let class = named(&prioritized, "PriorityClass", "replica-migration").clone();
    plane.apply(namespace, &[class]).await.unwrap();
    for step in STEPS {
        for spec in [specs(&objects, step), specs(&prioritized, step)].concat() {
            admit(&plane.admin(), namespace, &spec["template"])
                .await
                .unwrap_or_else(|error| panic!("{step}: {error}"));
        }
    }
    // Negative control: a pod without these fields is refused.
    for removed in [
        "/spec/securityContext/runAsNonRoot",
        "/spec/securityContext/seccompProfile",
        "/spec/containers/0/securityContext",
    ] {
        let mut template = specs(&objects, "cutover")[0]["template"].clone();
        *template.pointer_mut(removed).unwrap() = Value::Null;
        let error = admit(&plane.admin(), namespace, &template)
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("violates PodSecurity \"restricted:latest\""),
            "{removed}: {error}"
        );
    }
}

/// Applies every object server-side with `dryRun=All`. A field that the API server does not know is
/// an error.
async fn dry_run(client: &Client, namespace: &str, objects: &[Value]) {
    let known = Discovery::new(client.clone())
        .run_aggregated()
        .await
        .unwrap();
    let mut params = PatchParams::apply("another-manager").force();
    params.dry_run = true;
    params.field_validation = Some(ValidationDirective::Strict);
    for object in objects {
        let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let (types, name) = (
            object.types.clone().unwrap(),
            object.metadata.name.clone().unwrap(),
        );
        let (resource, capabilities) = known
            .resolve_gvk(&GroupVersionKind::try_from(&types).unwrap())
            .unwrap();
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(client.clone(), &resource),
            Scope::Namespaced => Api::namespaced_with(client.clone(), namespace, &resource),
        };
        api.patch(&name, &params, &Patch::Apply(&object))
            .await
            .unwrap_or_else(|error| panic!("{} {name}: {error}", types.kind));
    }
}

async fn admit(client: &Client, namespace: &str, template: &Value) -> kube::Result<Pod> {
    let mut pod: Pod =
        serde_json::from_value(json!({"metadata": template["metadata"], "spec": template["spec"]}))
            .unwrap();
    pod.metadata.generate_name = Some("try-".into());
    Api::namespaced(client.clone(), namespace)
        .create(
            &PostParams {
                dry_run: true,
                ..PostParams::default()
            },
            &pod,
        )
        .await
}

#[tokio::test]
async fn there_is_one_of_each_kind_for_every_step_and_nothing_else() {
    let objects = example().await;
    let maps = ["replica-migration", "target-patch"];
    let mut expected: BTreeSet<(String, String)> = maps
        .map(|name| ("ConfigMap".to_owned(), name.to_owned()))
        .into();
    for step in STEPS {
        let access = ["ServiceAccount", "Role", "RoleBinding"];
        expected.extend(access.map(|kind| (kind.to_owned(), format!("replica-migration-{step}"))));
        expected.extend(["CronJob", "Job"].map(|kind| (kind.to_owned(), object_name(step))));
    }
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found: BTreeSet<_> = objects
        .iter()
        .map(|object| (text(&object["kind"]), text(&object["metadata"]["name"])))
        .collect();
    assert_eq!(found, expected);
    for step in STEPS {
        assert_eq!(manifests::of_step(&objects, step).len(), 5, "{step}");
    }
    let folder = manifests::folder().join("base");
    let folders = std::fs::read_dir(folder)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.path().is_dir());
    let folders: BTreeSet<String> = folders
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(folders, STEPS.map(str::to_owned).into());
}

#[tokio::test]
async fn nothing_starts_by_itself_and_cron_job_and_job_have_the_same_spec() {
    let objects = example().await;
    for step in STEPS {
        let cron_job = named(&objects, "CronJob", &object_name(step));
        assert_eq!(cron_job["spec"]["suspend"], true);
        assert_eq!(cron_job["spec"]["schedule"], "0 0 31 2 *");
        assert_eq!(cron_job["spec"]["concurrencyPolicy"], "Forbid");
        let [of_cron_job, of_job] = specs(&objects, step);
        assert_eq!(of_job["suspend"], true);
        let mut resumed = of_job.clone();
        resumed.as_object_mut().unwrap().remove("suspend");
        assert_eq!(&resumed, of_cron_job, "{step}");
    }
}

#[tokio::test]
async fn every_job_is_retried_and_cleaned_up_as_promised() {
    let objects = example().await;
    // A unit test of `ErrorKind` compares its codes with the manifest.
    let not_retried = [2, 3, 4];
    for step in STEPS {
        for spec in specs(&objects, step) {
            let rules = &spec["podFailurePolicy"]["rules"];
            let ignored = json!({
                "action": "Ignore",
                "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
            });
            let failed = json!({
                "action": "FailJob",
                "onExitCodes": {"containerName": "step", "operator": "In", "values": not_retried},
            });
            // The first rule that fits counts: a refused cutover is not begun again by an eviction.
            assert_eq!(rules, &json!([failed, ignored]), "{step}");
            assert!(
                (1..=5).contains(&spec["backoffLimit"].as_i64().unwrap()),
                "{step}"
            );
            assert_eq!(spec["ttlSecondsAfterFinished"], 7 * 24 * 3600, "{step}");
            let pod = &spec["template"]["spec"];
            assert_eq!(pod["restartPolicy"], "Never", "{step}");
            assert_eq!(
                pod["containers"][0]["terminationMessagePolicy"], "FallbackToLogsOnError",
                "{step}"
            );
            assert!(
                pod["terminationGracePeriodSeconds"].as_i64().unwrap() >= 60,
                "{step}"
            );
        }
    }
    for spec in specs(&objects, "cutover") {
        assert_eq!(
            spec["activeDeadlineSeconds"],
            Value::Null,
            "a cutover is never killed in the middle"
        );
        let settings = &named(&objects, "ConfigMap", "replica-migration")["data"];
        let longest: i64 = settings["CUTOVER_MAX_SECONDS"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            spec["template"]["spec"]["terminationGracePeriodSeconds"]
                .as_i64()
                .unwrap()
                > 2 * longest
        );
    }
}

/// Restrictions beyond those of Pod Security.
#[tokio::test]
async fn pods_are_hardened() {
    let objects = example().await;
    for step in STEPS {
        for spec in specs(&objects, step) {
            let pod = &spec["template"]["spec"];
            assert_eq!(pod["enableServiceLinks"], false, "{step}");
            assert_eq!(
                pod["serviceAccountName"],
                format!("replica-migration-{step}")
            );
            assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
            let container = &pod["containers"][0];
            assert_eq!(
                container["securityContext"]["readOnlyRootFilesystem"], true,
                "{step}"
            );
            assert_eq!(container["command"], json!([format!("/{step}")]));
            assert!(
                container["resources"]["limits"]["memory"].is_string()
                    && container["resources"]["limits"]["cpu"].is_null()
            );
            // The scratch volume is the only writable one, and is deleted with its pod.
            let scratch = |volume: &&Value| volume["name"] == "scratch";
            for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                assert_eq!(
                    mount["readOnly"].as_bool().unwrap_or(false),
                    !scratch(&mount),
                    "{step}: {mount}"
                );
            }
            for volume in pod["volumes"].as_array().into_iter().flatten() {
                if scratch(&volume) {
                    assert!(
                        volume["emptyDir"].is_object() && step == "final-backup",
                        "{step}: {volume}"
                    );
                    continue;
                }
                let secret = &volume["secret"];
                // Only the needed keys of a Secret are mounted, readable only by the pod's group. A
                // missing Secret is reported by the program.
                let items = secret["items"].as_array().unwrap();
                let keys: Vec<&Value> = items.iter().map(|item| &item["key"]).collect();
                assert!(
                    keys.len() == 1 || keys == ["tls.crt", "tls.key"],
                    "{step}: {volume}"
                );
                assert_eq!(
                    (&secret["defaultMode"], &secret["optional"]),
                    (&json!(0o440), &json!(true)),
                    "{step}: {volume}"
                );
            }
        }
        let account = named(
            &objects,
            "ServiceAccount",
            &format!("replica-migration-{step}"),
        );
        assert_eq!(account["automountServiceAccountToken"], false);
    }
}

/// No step has permissions with which it could act as another identity.
#[tokio::test]
async fn roles_are_narrow() {
    let objects = example().await;
    for grant in manifests::access::grants(&objects).unwrap() {
        let all = [&grant.verb, &grant.api_group, &grant.resource];
        assert!(!all.iter().any(|word| word.as_str() == "*"), "{grant}");
        assert!(
            ![
                "pods/exec",
                "pods/attach",
                "pods/portforward",
                "serviceaccounts/token"
            ]
            .contains(&grant.resource.as_str()),
            "{grant}"
        );
        assert_ne!(grant.api_group, "rbac.authorization.k8s.io", "{grant}");
        assert!(
            grant.resource != "secrets" || grant.name.is_some(),
            "{grant}"
        );
        // Kubernetes generates the names of these, and recreates those that are needed.
        let slices = grant.verb == "deletecollection" && grant.resource == "endpointslices";
        assert!(
            ["create", "list"].contains(&grant.verb.as_str())
                || grant.resource == "events"
                || slices
                || grant.name.is_some(),
            "{grant}"
        );
    }
    for binding in of_kind(&objects, "RoleBinding") {
        assert_eq!(binding["roleRef"]["kind"], "Role");
        assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
        assert_eq!(binding["subjects"][0]["name"], binding["metadata"]["name"]);
    }
}
