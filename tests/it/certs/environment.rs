//! The environment of extract-certs: a source with TLS, its Secrets, and the login that
//! prepare-zalando writes.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Output,
    sync::Arc,
    time::{Duration, SystemTime},
};

use harness::{
    authority::Authority,
    control_plane::ControlPlane,
    kubelet::{Ended, Kubelet, Launch},
    manifests,
    service::Services,
    source::{Source, SourceOptions},
};
use k8s_openapi::api::{core::v1::Secret, events::v1::Event};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use serde_json::{Value, json};

pub const NAMESPACE: &str = "mastodon";
pub const HOST: &str = "mastodon-postgresql.mastodon.svc";
pub const CA_OF_SOURCE: &str = "mastodon-postgresql-ca";
/// Longer than anything here takes.
pub const SOON: Duration = Duration::from_secs(60);

pub struct Environment {
    pub plane: Arc<ControlPlane>,
    pub source: Source,
    services: Arc<Services>,
    kubelet: Kubelet,
}

impl Environment {
    /// The state after prepare-zalando, as far as extract-certs reads it.
    pub async fn start(options: SourceOptions) -> Self {
        let plane = Arc::new(ControlPlane::start().await.unwrap());
        manifests::apply_example(&plane).await.unwrap();
        let source = Source::start(&plane, SourceOptions { rows: 8, ..options })
            .await
            .unwrap();
        let services = Arc::new(
            Services::follow(plane.admin(), Arc::clone(plane.instance()), NAMESPACE)
                .await
                .unwrap(),
        );
        for host in [HOST, "mastodon-postgresql-repl.mastodon.svc"] {
            services.wait_for(host, SOON).await.unwrap();
        }
        let kubelet = Kubelet::new(&plane, &services, NAMESPACE).await.unwrap();
        let environment = Self {
            plane,
            source,
            services,
            kubelet,
        };
        let login = [
            ("username", "standby"),
            (
                "password",
                environment.source.credentials().standby.as_str(),
            ),
        ];
        environment
            .create("zalando-streaming-replica", "Opaque", &login)
            .await;
        environment
    }

    pub fn job(&self) -> Launch<'_> {
        self.kubelet.step("extract-certs")
    }

    pub async fn run(&self) -> Ended {
        self.job().run(SOON).await.unwrap()
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.plane.admin(), NAMESPACE)
    }

    pub async fn secret(&self, name: &str) -> Secret {
        self.secrets().get(name).await.unwrap()
    }

    /// Keys and values as text.
    pub async fn data(&self, name: &str) -> BTreeMap<String, String> {
        let data = self.secret(name).await.data.unwrap_or_default();
        data.into_iter()
            .map(|(key, value)| (key, String::from_utf8(value.0).unwrap()))
            .collect()
    }

    pub async fn keys(&self, name: &str) -> Vec<String> {
        self.data(name).await.into_keys().collect()
    }

    pub async fn create(&self, name: &str, type_: &str, data: &[(&str, &str)]) {
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": type_, "stringData": data,
        });
        self.plane.apply(NAMESPACE, &[secret]).await.unwrap();
    }

    /// Sets some keys, regardless of their field manager.
    pub async fn overwrite(&self, name: &str, data: &[(&str, &str)]) {
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        let patch = Patch::Merge(json!({"stringData": data}));
        self.secrets()
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    pub async fn delete(&self, name: &str) {
        self.secrets()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// The version of every Secret. A run that fails or has nothing to do must not change it.
    pub async fn state(&self) -> BTreeMap<String, String> {
        let list = self.secrets().list(&ListParams::default()).await.unwrap();
        list.iter()
            .map(|one| (one.name_any(), one.resource_version().unwrap()))
            .collect()
    }

    /// Real libpq with the files of the Secrets, as the target's WAL receiver has them.
    pub async fn psql(&self, words: &str, query: &str) -> Output {
        let tls = self.data("zalando-replication-tls").await;
        let files: Vec<(&str, &str)> = words
            .split(' ')
            .filter_map(|word| word.split_once('='))
            .map(|(key, value)| (key, tls.get(value).map_or(value, String::as_str)))
            .collect();
        self.psql_with(&files, query).await
    }

    /// As [`Environment::psql`]; a value that is PEM becomes a file.
    pub async fn psql_with(&self, words: &[(&str, &str)], query: &str) -> Output {
        let ca = self.data("zalando-replication-ca").await["ca.crt"].clone();
        let address = self.services.resolve(HOST).unwrap();
        let mut conninfo = format!(
            "host={HOST} hostaddr={address} user=standby dbname=postgres sslmode=verify-full \
             connect_timeout=5"
        );
        for (key, value) in words.iter().copied().chain([("sslrootcert", ca.as_str())]) {
            let value = if value.starts_with("-----BEGIN") {
                self.file(key, value).display().to_string()
            } else {
                value.to_owned()
            };
            conninfo.push_str(&format!(" {key}={value}"));
        }
        let mut command = self.plane.setup().postgres("psql");
        command.args(["-X", "-A", "-t", "-c", query, &conninfo]);
        command.env("PGPASSWORD", &self.source.credentials().standby);
        // The Service's forwarder runs on this thread, so the call must not block it.
        tokio::process::Command::from(command)
            .output()
            .await
            .unwrap()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let setup = self.plane.setup();
        let file = self
            .plane
            .instance()
            .subdirectory(setup, "psql")
            .unwrap()
            .join(name);
        setup.user.write_private(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file
    }

    /// Asserts that the log, the termination message and the Events contain no password and no key.
    pub async fn leaks_no_secret(&self, ended: &Ended) {
        let events: Api<Event> = Api::namespaced(self.plane.admin(), NAMESPACE);
        let events =
            serde_json::to_string(&events.list(&ListParams::default()).await.unwrap().items)
                .unwrap();
        let said = format!("{}{}{events}", ended.text(), ended.termination_message);
        let mut secret = vec![self.source.credentials().standby.clone()];
        for name in [CA_OF_SOURCE, "zalando-replication-tls"] {
            let key = self.data(name).await["tls.key"].clone();
            secret.extend(
                key.lines()
                    .filter(|line| !line.starts_with('-'))
                    .map(str::to_owned),
            );
        }
        for text in secret {
            assert!(!said.contains(&text), "a secret is in {said}");
        }
    }

    /// Asserts that there is an Event with each of these reasons.
    pub async fn events_have_reasons(&self, reasons: &[&str]) {
        let events: Api<Event> = Api::namespaced(self.plane.admin(), NAMESPACE);
        let list = events.list(&ListParams::default()).await.unwrap();
        for reason in reasons {
            assert!(
                list.iter()
                    .any(|event| event.reason.as_deref() == Some(reason)),
                "no Event {reason}"
            );
        }
    }

    /// Makes every member trust an additional root CA for clients. Returns both roots'
    /// certificates, and the key of the new one.
    pub async fn a_root_that_the_source_trusts(&self) -> (String, String) {
        let root = authority("for clients");
        let own =
            std::fs::read_to_string(self.source.members()[0].layout().tls.join("ca.crt")).unwrap();
        let both = own + root.certificate();
        for member in self.source.members() {
            self.plane
                .setup()
                .user
                .write_private(&member.layout().tls.join("ca.crt"), &both)
                .unwrap();
            let session = self.source.connect_to(member, "postgres").await.unwrap();
            session
                .batch_execute("select pg_reload_conf()")
                .await
                .unwrap();
        }
        (both, root.key().to_owned())
    }
}

pub fn authority(name: &str) -> Authority {
    Authority::root(name).unwrap()
}

/// A certificate for the source's host that expires in this number of days.
pub fn server_for(authority: &Authority, days: i64) -> String {
    let day = Duration::from_secs(86_400);
    let distance = day * u32::try_from(days.abs()).unwrap();
    let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = (SystemTime::now() - day * 30).into();
    params.not_after = if days < 0 {
        SystemTime::now() - distance
    } else {
        SystemTime::now() + distance
    }
    .into();
    authority.sign(params).unwrap().certificate
}

#[track_caller]
pub fn ends(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.exit_code, code, "{ended}");
    for word in words {
        assert!(ended.text().contains(word), "{word:?} is missing: {ended}");
    }
    // Without settings there is no termination message, only the log.
    if code > 1 && !ended.termination_json().is_null() {
        assert_eq!(
            ended.termination_json()["exit"],
            Value::from(code),
            "{ended}"
        );
    }
}
