//! A source, its Services, and the Job of the step.

use std::{fs, path::Path, sync::Arc, time::Duration};

use harness::{
    control_plane::ControlPlane,
    kubelet::{Ended, Kubelet, Launch},
    manifests,
    service::Services,
    source::{Source, SourceOptions},
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde::Deserialize as _;
use serde_json::{Value, json};

pub(super) const NAMESPACE: &str = "mastodon";
pub(super) const CLUSTER: &str = "mastodon-postgresql";
pub(super) const STEP: &str = "prepare-zalando";
pub(super) const SECRETS: [&str; 3] = [
    "zalando-streaming-replica",
    "database-owner",
    "database-superuser-source",
];
pub(super) const MANIFEST: &str = "database-cluster-replica";
/// Time in which a step that waits for nothing ends.
pub(super) const SOON: Duration = Duration::from_secs(60);

pub(super) struct Environment {
    pub(super) plane: Arc<ControlPlane>,
    pub(super) source: Arc<Source>,
    pub(super) services: Arc<Services>,
    pub(super) kubelet: Kubelet,
}

impl Environment {
    pub(super) async fn start(options: SourceOptions) -> Self {
        let plane = Arc::new(ControlPlane::start().await.unwrap());
        let options = SourceOptions {
            rows: 800,
            ..options
        };
        let source = Arc::new(Source::start(&plane, options).await.unwrap());
        let services = Services::follow(plane.admin(), Arc::clone(plane.instance()), NAMESPACE)
            .await
            .unwrap();
        let services = Arc::new(services);
        services
            .wait_for("mastodon-postgresql.mastodon.svc", SOON)
            .await
            .unwrap();
        manifests::apply_example(&plane).await.unwrap();
        let kubelet = Kubelet::new(&plane, &services, NAMESPACE).await.unwrap();
        Self {
            plane,
            source,
            services,
            kubelet,
        }
    }

    /// The Job, with an image of the source's minor version, so that there is no finding about it.
    pub(super) fn job(&self) -> Launch<'_> {
        self.kubelet.step(STEP).env(
            "TARGET_IMAGE",
            "ghcr.io/cloudnative-pg/postgresql:17.10-standard-trixie",
        )
    }

    pub(super) async fn run(&self) -> Ended {
        self.job().run(SOON).await.unwrap()
    }

    pub(super) async fn sql(&self, database: &str, statement: &str) {
        self.source
            .connect(database)
            .await
            .unwrap()
            .batch_execute(statement)
            .await
            .unwrap();
    }

    /// The first column of the first row.
    pub(super) async fn ask<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        question: &str,
    ) -> T {
        self.source
            .connect("postgres")
            .await
            .unwrap()
            .query_one(question, &[])
            .await
            .unwrap()
            .get(0)
    }

    pub(super) async fn secret(&self, name: &str) -> Option<Secret> {
        Api::namespaced(self.plane.admin(), NAMESPACE)
            .get_opt(name)
            .await
            .unwrap()
    }

    /// A key of a Secret as text.
    pub(super) async fn secret_text(&self, name: &str, key: &str) -> String {
        let secret = self
            .secret(name)
            .await
            .unwrap_or_else(|| panic!("no secret {name}"));
        String::from_utf8(secret.data.unwrap()[key].0.clone()).unwrap()
    }

    /// The leader's pg_hba.conf.
    pub(super) fn hba_file(&self) -> String {
        fs::read_to_string(self.leader_data().join("pg_hba.conf")).unwrap()
    }

    /// Writes the leader's pg_hba.conf, which its server reads when it is told to.
    pub(super) fn set_hba_file(&self, text: &str) {
        let file = self.leader_data().join("pg_hba.conf");
        fs::write(file, format!("{text}\n")).unwrap();
    }

    fn leader_data(&self) -> &Path {
        &self.source.members()[0].layout().data
    }

    /// What the user adds to the Cluster.
    pub(super) async fn target_patch(&self) -> String {
        let maps: Api<ConfigMap> = Api::namespaced(self.plane.admin(), NAMESPACE);
        let map = maps.get("target-patch").await.unwrap();
        map.data.unwrap()["target-patch.yaml"].clone()
    }

    pub(super) async fn set_target_patch(&self, text: &str) {
        let maps: Api<ConfigMap> = Api::namespaced(self.plane.admin(), NAMESPACE);
        let change = json!({"data": {"target-patch.yaml": text}});
        let params = PatchParams::default();
        maps.patch("target-patch", &params, &Patch::Merge(change))
            .await
            .unwrap();
    }

    pub(super) async fn config_map(&self) -> Option<ConfigMap> {
        Api::namespaced(self.plane.admin(), NAMESPACE)
            .get_opt(MANIFEST)
            .await
            .unwrap()
    }

    /// The documents of the rendered manifest.
    pub(super) async fn manifest(&self) -> Vec<Value> {
        let text = &self.config_map().await.expect("no manifest").data.unwrap()
            [&format!("{MANIFEST}.yaml")];
        serde_yaml_ng::Deserializer::from_str(text)
            .map(|document| Value::deserialize(document).unwrap())
            .collect()
    }

    pub(super) fn of_kind(&self, group: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
        Api::namespaced_with(self.plane.admin(), NAMESPACE, &resource)
    }

    pub(super) fn postgresqls(&self) -> Api<DynamicObject> {
        self.of_kind("acid.zalan.do", "postgresql", "postgresqls")
    }

    /// Replaces keys of a Secret.
    pub(super) async fn overwrite(&self, secret: &str, keys: &[(&str, &str)]) {
        let data: serde_json::Map<String, Value> = keys
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        let secrets: Api<Secret> = Api::namespaced(self.plane.admin(), NAMESPACE);
        secrets
            .patch(
                secret,
                &PatchParams::default(),
                &Patch::Merge(json!({"stringData": data})),
            )
            .await
            .unwrap();
    }

    /// The log of the leader's server.
    pub(super) async fn server_log(&self) -> String {
        let files = "select string_agg(pg_read_file(current_setting('log_directory') || '/' || \
            name), '') from pg_ls_logdir()";
        self.ask(files).await
    }

    /// Everything that the step can change: the versions of its objects, of the resource and of the
    /// roles.
    pub(super) async fn state(&self) -> Vec<String> {
        let mut state = vec![];
        for name in SECRETS {
            state.push(format!(
                "{name} {:?}",
                self.secret(name)
                    .await
                    .and_then(|secret| secret.resource_version())
            ));
        }
        state.push(format!(
            "{MANIFEST} {:?}",
            self.config_map()
                .await
                .and_then(|map| map.resource_version())
        ));
        let spec = self.postgresqls().get(CLUSTER).await.unwrap();
        state.push(format!(
            "{CLUSTER} {:?} {}",
            spec.metadata.generation, spec.data["spec"]
        ));
        state.push(
            self.ask::<String>(
                "select string_agg(rolname || xmin::text, ' ' order by rolname) from pg_authid",
            )
            .await,
        );
        state.push(
            self.ask::<String>(
                "select coalesce(string_agg(oid::regprocedure || xmin::text, ' '), '') from \
                 pg_proc where proname = 'user_search'",
            )
            .await,
        );
        state
    }
}
