//! Tests of the harness's kubelet, on which other tests rely: it runs a program that prints what
//! it was given.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    time::Duration,
};

use harness::{
    control_plane::ControlPlane,
    kubelet::{Kubelet, Next},
    manifests,
    service::Services,
};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use openssl::x509::X509;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "mastodon";
const SUPERUSER: &str = "postgres.mastodon-postgresql.credentials.postgresql.acid.zalan.do";

/// Prints its environment and files, and ends as DRY_RUN selects; any variable of the step would
/// do for that.
const PROBE: &str = r#"#!/bin/sh
tr '\0' '\n' </proc/$$/environ | sed 's/^/environment: /'
for file in "$SOURCE_PASSWORD_FILE" "$TARGET_SSLROOTCERT"; do
  [ -e "$file" ] && echo "file: $(stat -c %a "$file") $(cat "$file")" || echo "no file"
done
case "$DRY_RUN" in
  refused) printf 'the reason' >"$TERMINATION_LOG"; exit 3 ;;
  transient) echo to standard error >&2; exit 1 ;;
  slow) echo ready; while :; do sleep 0.1; done ;;
  deaf) trap '' TERM; echo ready; while :; do sleep 0.1; done ;;
esac
"#;

struct Environment {
    plane: Arc<ControlPlane>,
    kubelet: Kubelet,
    _programs: tempfile::TempDir,
}

async fn start_environment() -> Environment {
    let plane = Arc::new(ControlPlane::start().await.unwrap());
    manifests::apply_example(&plane).await.unwrap();
    let secret = |name: &str, data: serde_json::Value| {
        let metadata = json!({"name": name});
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})
    };
    let secrets = [
        secret(
            SUPERUSER,
            json!({"username": "postgres", "password": "of the superuser"}),
        ),
        secret(
            "database-ca",
            json!({"ca.crt": "a CA", "ca.key": "its key"}),
        ),
    ];
    plane.apply(NAMESPACE, &secrets).await.unwrap();
    let programs = tempfile::tempdir().unwrap();
    for step in ["cutover", "extract-certs"] {
        let file = programs.path().join(step);
        fs::write(&file, PROBE).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let services = Arc::new(
        Services::follow(plane.admin(), Arc::clone(plane.instance()), NAMESPACE)
            .await
            .unwrap(),
    );
    let kubelet = Kubelet::with_programs(&plane, &services, NAMESPACE, programs.path().to_owned());
    Environment {
        plane,
        kubelet,
        _programs: programs,
    }
}

fn variables_in(text: &str) -> std::collections::BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("environment: ")?.split_once('='))
        .collect()
}

#[tokio::test]
async fn a_program_gets_what_its_manifest_declares_and_nothing_else() {
    let environment = start_environment().await;
    let ended = environment
        .kubelet
        .step("cutover")
        .run(LIMIT)
        .await
        .unwrap();
    assert_eq!(
        (ended.exit_code, ended.next),
        (0, Next::Complete),
        "{ended}"
    );
    let text = ended.text();
    let given = variables_in(&text);

    let maps: Api<ConfigMap> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    let settings = maps.get("replica-migration").await.unwrap().data.unwrap();
    let mut wanted: BTreeSet<&str> = settings.keys().map(String::as_str).collect();
    wanted.extend([
        "SOURCE_PASSWORD_FILE",
        "SOURCE_SSLROOTCERT",
        "TARGET_PASSWORD_FILE",
        "TARGET_SSLROOTCERT",
        "POOLER_PASSWORD_FILE",
        "OWNER_HASH_FILE",
    ]);
    wanted.extend([
        "SOURCE_HOSTADDR",
        "TARGET_HOSTADDR",
        "SERVICE_ACCOUNT_DIRECTORY",
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_SERVICE_PORT",
        "PATH",
        "HOME",
        "HOSTNAME",
        "HARNESS_MARK",
    ]);
    assert_eq!(given.keys().copied().collect::<BTreeSet<_>>(), wanted);
    for (key, value) in settings.iter().filter(|(key, _)| *key != "TERMINATION_LOG") {
        assert_eq!(given[key.as_str()], value, "{key}");
    }
    // The superuser's password for both sides; of the target's CA the certificate and not the key.
    assert!(
        text.contains("file: 440 of the superuser\nfile: 440 a CA"),
        "{text}"
    );
    let ca = std::path::Path::new(given["TARGET_SSLROOTCERT"]);
    assert_eq!(fs::read_dir(ca.parent().unwrap()).unwrap().count(), 1);

    services_created_later_are_reachable_by_name(
        &environment,
        given["SOURCE_HOSTADDR"],
        given["TARGET_HOSTADDR"],
    )
    .await;
    assert!(ended.cost.memory_peak_bytes > 0 && ended.elapsed < LIMIT);
    token_is_of_the_service_account(&given).await;

    let jobs: Api<Job> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    let created = jobs.list(&ListParams::default()).await.unwrap().items;
    let owned: Vec<&Job> = created
        .iter()
        .filter(|job| job.metadata.owner_references.is_some())
        .collect();
    assert_eq!(owned.len(), 1);
    assert_eq!(
        owned[0].metadata.owner_references.as_ref().unwrap()[0].name,
        "replica-migration-cutover"
    );
}

/// A Service that is created after the pod's start is reachable by its name.
async fn services_created_later_are_reachable_by_name(
    environment: &Environment,
    source: &str,
    target: &str,
) {
    assert_ne!(source, target);
    let refused = TcpStream::connect((target, 5432)).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    let behind = TcpListener::bind((environment.plane.instance().address(99), 5432))
        .await
        .unwrap();
    let ports = json!([{"name": "postgres", "port": 5432}]);
    let addresses = json!([{"ip": environment.plane.instance().kubernetes_address(99)}]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "database-rw"},
        "spec": {"ports": ports},
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "database-rw"},
        "subsets": [{"addresses": addresses, "ports": ports}],
    });
    environment
        .plane
        .apply(NAMESPACE, &[service, endpoints])
        .await
        .unwrap();
    let arrives = async {
        // Either of the two listeners may be the first; a client connects again, as the programs
        // do.
        loop {
            let client = TcpStream::connect((target, 5432)).await;
            if let (Ok(_client), Ok(Ok(_))) = (
                client,
                timeout(Duration::from_millis(100), behind.accept()).await,
            ) {
                return;
            }
        }
    };
    timeout(LIMIT, arrives).await.unwrap();
    assert!(TcpStream::connect((source, 5432)).await.is_err());
}

async fn token_is_of_the_service_account(given: &BTreeMap<&str, &str>) {
    let file = |name| fs::read(format!("{}/{name}", given["SERVICE_ACCOUNT_DIRECTORY"])).unwrap();
    assert_eq!(file("namespace"), NAMESPACE.as_bytes());
    let url = format!(
        "https://{}:{}",
        given["KUBERNETES_SERVICE_HOST"], given["KUBERNETES_SERVICE_PORT"]
    );
    let mut config = Config::new(url.parse().unwrap());
    config.default_namespace = NAMESPACE.to_owned();
    config.root_cert = Some(vec![
        X509::from_pem(&file("ca.crt")).unwrap().to_der().unwrap(),
    ]);
    config.auth_info.token = Some(String::from_utf8(file("token")).unwrap().into());
    let client = Client::try_from(config).unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    assert_eq!(maps.get_opt("mastodon-database").await.unwrap(), None);
    let secrets: Api<Secret> = Api::default_namespaced(client);
    let error = secrets.get(SUPERUSER).await.unwrap_err().to_string();
    assert!(
        error.contains("system:serviceaccount:mastodon:replica-migration-cutover"),
        "{error}"
    );
}

#[tokio::test]
async fn a_pod_ends_as_the_kubelet_and_the_job_controller_report_it() {
    let environment = start_environment().await;
    let refused = environment
        .kubelet
        .step("cutover")
        .env("DRY_RUN", "refused")
        .run(LIMIT)
        .await
        .unwrap();
    assert_eq!(
        (refused.exit_code, refused.next),
        (3, Next::Failed),
        "{refused}"
    );
    assert_eq!(refused.termination_message, "the reason");

    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    let step = environment
        .kubelet
        .step("cutover")
        .env("DRY_RUN", "transient")
        .on_line(move |line| hears.lock().unwrap().push(line.text.clone()));
    let (last, pods) = step.to_the_end(LIMIT, async |_, _| ()).await.unwrap();
    assert_eq!(
        (last.exit_code, last.next, pods),
        (1, Next::Again, 4),
        "backoffLimit 3 is used up: {last}"
    );
    assert!(
        last.termination_message.ends_with("to standard error"),
        "{last}"
    );
    assert_eq!(
        heard
            .lock()
            .unwrap()
            .iter()
            .filter(|line| *line == "to standard error")
            .count(),
        4
    );

    let running = environment
        .kubelet
        .step("cutover")
        .env("DRY_RUN", "slow")
        .start()
        .await
        .unwrap();
    running.wait_for_line("ready", LIMIT).await.unwrap();
    assert!(
        running
            .wait_for_line("a text that it never logs", Duration::from_millis(50))
            .await
            .is_err()
    );
    assert!(running.wait(Duration::from_millis(50)).await.is_err());
    running.kill();
    let killed = running.wait(LIMIT).await.unwrap();
    assert_eq!(
        (killed.exit_code, killed.next),
        (137, Next::Again),
        "{killed}"
    );
    assert!(
        running
            .wait_for_line("a text that it never logs", LIMIT)
            .await
            .unwrap_err()
            .to_string()
            .contains("ended without logging")
    );
}

#[tokio::test]
async fn a_deleted_pod_is_killed_after_its_grace_period() {
    let environment = start_environment().await;
    let running = environment
        .kubelet
        .step("cutover")
        .env("DRY_RUN", "slow")
        .start()
        .await
        .unwrap();
    running.wait_for_line("ready", LIMIT).await.unwrap();
    assert_eq!(running.delete().await.unwrap().exit_code, 143);

    let jobs: Api<Job> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    jobs.delete(
        "replica-migration-extract-certs",
        &DeleteParams::background(),
    )
    .await
    .unwrap();
    let mut job = manifests::example(environment.plane.setup()).unwrap();
    job.retain(|object| {
        object["kind"] == "Job" && object["metadata"]["name"] == "replica-migration-extract-certs"
    });
    job[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1.into();
    environment.plane.apply(NAMESPACE, &job).await.unwrap();
    let deaf = environment
        .kubelet
        .step("extract-certs")
        .suspended_job()
        .env("DRY_RUN", "deaf")
        .start()
        .await
        .unwrap();
    deaf.wait_for_line("ready", LIMIT).await.unwrap();
    assert_eq!(deaf.delete().await.unwrap().exit_code, 137);
    assert_eq!(
        jobs.get("replica-migration-extract-certs")
            .await
            .unwrap()
            .spec
            .unwrap()
            .suspend,
        Some(false)
    );
}

#[tokio::test]
async fn a_missing_secret_or_config_map_prevents_the_start_unless_it_is_optional() {
    let environment = start_environment().await;
    let secrets: Api<Secret> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    secrets
        .delete(SUPERUSER, &DeleteParams::default())
        .await
        .unwrap();
    let ended = environment
        .kubelet
        .step("cutover")
        .without("DRY_RUN")
        .run(LIMIT)
        .await
        .unwrap();
    assert!(
        ended.text().contains("no file") && !ended.text().contains("DRY_RUN"),
        "{ended}"
    );

    let cron_jobs: Api<k8s_openapi::api::batch::v1::CronJob> =
        Api::namespaced(environment.plane.admin(), NAMESPACE);
    let volume =
        json!({"name": "superuser", "secret": {"secretName": SUPERUSER, "optional": false}});
    let change =
        json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {"volumes": [volume]}}}}}});
    cron_jobs
        .patch(
            "replica-migration-cutover",
            &PatchParams::default(),
            &Patch::Strategic(change),
        )
        .await
        .unwrap();
    let error = environment
        .kubelet
        .step("cutover")
        .start()
        .await
        .err()
        .unwrap();
    let wanted = format!(
        "FailedMount: MountVolume.SetUp failed for volume \"superuser\" : secret {SUPERUSER:?} not \
         found"
    );
    assert_eq!(format!("{error:#}"), wanted);
}
