//! The environment of validate-replication: the source, the results of the steps before it, an idle
//! application, and the target as far as a test needs it. The steps before it are not run; their
//! results are created here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use harness::{
    control_plane::ControlPlane,
    kubelet::{self, Ended, Kubelet, Launch},
    manifests,
    process::Process,
    service::Services,
    session::Session,
    source::{Source, SourceOptions, secret_name},
    target::{InstanceHandle, Options, Target},
};
use k8s_openapi::api::{core::v1::Secret, rbac::v1::Role};
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
    runtime::wait::await_condition,
};
use serde_json::{Value, json};

pub const NAMESPACE: &str = "mastodon";
pub const CLUSTER: &str = "database";
pub const SOURCE: &str = "mastodon-postgresql";
pub const STEP: &str = "validate-replication";
/// Host number of the source's first member, which leads at the start.
pub const LEADER: u8 = harness::source::FIRST_HOST;
/// Host number that nothing listens on.
pub const UNUSED_HOST: u8 = 252;
/// Longer than anything here takes.
pub const SOON: Duration = Duration::from_secs(60);
const APPS: [&str; 6] = [
    "mastodon-web",
    "mastodon-sidekiq-default",
    "mastodon-sidekiq-federation",
    "mastodon-sidekiq-background",
    "mastodon-sidekiq-scheduler",
    "mastodon-streaming",
];

/// A namespace in the middle of a migration.
pub struct Environment {
    pub plane: Arc<ControlPlane>,
    pub source: Source,
    pub target: Target,
    pub kubelet: Kubelet,
}

impl Environment {
    /// Waits for the Secret of the target's CA, which the step's pod mounts.
    pub async fn target_authority(&self) {
        let secrets: Api<Secret> = Api::namespaced(self.plane.admin(), NAMESPACE);
        let name = format!("{CLUSTER}-ca");
        let made = await_condition(secrets, &name, |secret: Option<&Secret>| secret.is_some());
        tokio::time::timeout(SOON, made).await.unwrap().unwrap();
    }

    /// Everything but the Cluster.
    pub async fn without_a_cluster(rows: u32) -> Self {
        let plane = Arc::new(ControlPlane::start().await.unwrap());
        manifests::apply_example(&plane).await.unwrap();
        let source = Source::start(
            &plane,
            SourceOptions {
                rows,
                ..SourceOptions::default()
            },
        )
        .await
        .unwrap();
        let services = Arc::new(
            Services::follow(plane.admin(), Arc::clone(plane.instance()), NAMESPACE)
                .await
                .unwrap(),
        );
        services.wait_for(SOURCE, SOON).await.unwrap();
        let programs = kubelet::built().await.unwrap();
        let target = Target::start(Options {
            setup: plane.setup(),
            instance: Arc::clone(plane.instance()),
            client: plane.admin(),
            services: Arc::clone(&services),
            programs: programs.clone(),
            hidden: source
                .members()
                .iter()
                .map(|member| member.layout().home.clone())
                .collect(),
        });
        let kubelet = Kubelet::with_programs(&plane, &services, NAMESPACE, programs);
        let environment = Self {
            plane,
            source,
            target,
            kubelet,
        };
        environment.create_the_results_of_earlier_steps().await;
        environment
    }

    /// With a target that streams.
    pub async fn streaming(rows: u32) -> (Self, InstanceHandle) {
        let environment = Self::without_a_cluster(rows).await;
        environment.apply(cluster()).await;
        let instance = environment.target.instance(CLUSTER, SOON).await.unwrap();
        environment.speed_up_the_clone().await;
        environment
            .target
            .phase(CLUSTER, "Cluster in healthy state", SOON)
            .await
            .unwrap();
        (environment, instance)
    }

    async fn create_the_results_of_earlier_steps(&self) {
        let secret = |name: &str, data: Value| {
            let metadata = json!({"name": name});
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})
        };
        let ca = self.source.members()[0].layout().tls.join("ca.crt");
        let superuser =
            json!({"username": "postgres", "password": self.source.credentials().postgres});
        self.apply(secret(
            "zalando-replication-ca",
            json!({"ca.crt": std::fs::read_to_string(ca).unwrap()}),
        ))
        .await;
        self.apply(secret("database-superuser-source", superuser))
            .await;
        self.apply(application_config("mastodon-database")).await;
        for app in APPS {
            self.apply(deployment(app)).await;
        }
        let roles = "create role streaming_replica login replication; create role \
            cnpg_pooler_pgbouncer login; create role cnpg_metrics_exporter login";
        self.source
            .connect("postgres")
            .await
            .unwrap()
            .batch_execute(roles)
            .await
            .unwrap();
    }

    /// Checkpoints the source as soon as a base backup begins, for tests that are not about that.
    pub async fn speed_up_the_clone(&self) {
        let session = self.source.connect("postgres").await.unwrap();
        until("a base backup begins", async || {
            number(&session, "select count(*) from pg_stat_progress_basebackup").await == 1
        })
        .await;
        session.batch_execute("checkpoint").await.unwrap();
    }

    pub async fn apply(&self, object: Value) {
        self.plane.apply(NAMESPACE, &[object]).await.unwrap();
    }

    /// Merges into an object; null removes a key.
    pub async fn patch(&self, kind: (&str, &str, &str), name: &str, change: Value) {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(kind.0, kind.1, kind.2));
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.plane.admin(), NAMESPACE, &resource);
        api.patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap();
    }

    pub async fn patch_cluster(&self, change: Value) {
        self.patch(("postgresql.cnpg.io", "v1", "Cluster"), CLUSTER, change)
            .await;
    }

    /// Removes an object.
    pub async fn remove(&self, kind: (&str, &str, &str), name: &str) {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(kind.0, kind.1, kind.2));
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.plane.admin(), NAMESPACE, &resource);
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// The rules of the step's Role without those for a resource.
    pub async fn rules_without(&self, resource: &str) -> Value {
        let api: Api<Role> = Api::namespaced(self.plane.admin(), NAMESPACE);
        let mut rules = api
            .get("replica-migration-validate-replication")
            .await
            .unwrap()
            .rules
            .unwrap();
        rules.retain(|rule| !rule.resources.iter().flatten().any(|one| one == resource));
        json!(rules)
    }

    pub async fn patch_role(&self, change: Value) {
        self.patch(
            ("rbac.authorization.k8s.io", "v1", "Role"),
            "replica-migration-validate-replication",
            change,
        )
        .await;
    }

    /// Every object's spec, data and annotations, without values that the servers change by
    /// themselves.
    pub async fn everything(&self) -> BTreeMap<String, Value> {
        let kinds = [
            ("", "v1", "ConfigMap"),
            ("", "v1", "Secret"),
            ("", "v1", "Service"),
            ("apps", "v1", "Deployment"),
            ("rbac.authorization.k8s.io", "v1", "Role"),
            ("postgresql.cnpg.io", "v1", "Cluster"),
            ("acid.zalan.do", "v1", "postgresql"),
        ];
        let mut all = BTreeMap::new();
        for (group, version, kind) in kinds {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.plane.admin(), NAMESPACE, &resource);
            for mut object in api.list(&ListParams::default()).await.unwrap() {
                object.data.as_object_mut().unwrap().remove("status");
                let written = json!([object.labels(), object.annotations(), object.data]);
                all.insert(format!("{kind} {}", object.name_any()), written);
            }
        }
        let settings = "select json_agg(s order by name) from (select name, setting from \
            pg_settings where context <> 'internal') s";
        let session = self.source.connect("postgres").await.unwrap();
        all.insert(
            "settings of the source".into(),
            session.query_one(settings, &[]).await.unwrap().get(0),
        );
        all
    }

    /// The step with a short deadline, which most tests need.
    pub fn step(&self) -> Launch<'_> {
        self.kubelet.step(STEP).env("VALIDATE_MAX_SECONDS", "5")
    }

    /// A file that the step's user can read, to stand in for a mounted one.
    pub fn file(&self, name: &str, text: &str) -> String {
        let (setup, instance) = (self.plane.setup(), self.plane.instance());
        let file = instance.subdirectory(setup, "given").unwrap().join(name);
        setup.user.write_private(&file, text).unwrap();
        file.display().to_string()
    }

    /// A base backup of the source that takes half a minute; ends on drop.
    pub fn slow_base_backup(&self) -> Process {
        let setup = self.plane.setup();
        let directory = self.plane.instance().subdirectory(setup, "copy").unwrap();
        let password = self.file(
            "pgpass",
            &format!("*:*:*:standby:{}", self.source.credentials().standby),
        );
        let member = &self.source.members()[0];
        let mut command = setup.postgres("pg_basebackup");
        let conninfo = format!(
            "host={} user=standby sslmode=require passfile={password}",
            member.address()
        );
        command
            .args([
                "-d",
                &conninfo,
                "-c",
                "fast",
                "--max-rate=1M",
                "-X",
                "none",
                "-D",
            ])
            .arg(directory.join("data"));
        Process::start("pg_basebackup", command, &directory.join("log")).unwrap()
    }

    /// Points the Cluster's connection to a host; the target's receiver follows at once.
    pub async fn follow(&self, host: &str) {
        let mut external = cluster()["spec"]["externalClusters"].clone();
        external[0]["connectionParameters"]["host"] = json!(host);
        self.patch_cluster(json!({"spec": {"externalClusters": external}}))
            .await;
    }

    /// Waits until the source serves the target, or does not.
    pub async fn streams(&self, wanted: bool) {
        let sql = format!(
            "select count(*) from pg_stat_replication where application_name = '{CLUSTER}' and \
             state = 'streaming'"
        );
        until(&format!("streaming: {wanted}"), async || {
            // During a failover no server answers for a moment.
            let Ok(session) = self.source.connect("postgres").await else {
                return false;
            };
            let row = session.query_one(&sql, &[]).await;
            row.is_ok_and(|row| (row.get::<_, i64>(0) == 1) == wanted)
        })
        .await;
    }

    /// Runs the step with one variable changed.
    pub async fn run_with(&self, key: &str, value: &str) -> Ended {
        self.step().env(key, value).run(SOON).await.unwrap()
    }

    /// Runs the step.
    pub async fn run(&self) -> Ended {
        self.step().run(SOON).await.unwrap()
    }
}

/// The Cluster as prepare-zalando renders it, as far as it matters here.
pub fn cluster() -> Value {
    let adopt = json!({
        "name": "adopt-pgdata", "image": "programs", "command": ["/adopt-pgdata"],
        "env": [{"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"}],
        "volumeMounts": [{"name": "pgdata", "mountPath": "/var/lib/postgresql/data"}],
    });
    let patch =
        json!([{"op": "add", "path": "/spec/initContainers/-", "value": adopt}]).to_string();
    json!({
        "apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster",
        "metadata": {"name": CLUSTER, "annotations": {"cnpg.io/podPatch": patch}},
        "spec": {
            "instances": 1, "storage": {"size": "1Gi"},
            "imageName": "ghcr.io/cloudnative-pg/postgresql:17.6-standard-trixie",
            "smartShutdownTimeout": 1, "enableSuperuserAccess": true,
            "superuserSecret": {"name": "database-superuser-source"},
            "plugins": [{"name": "barman-cloud.cloudnative-pg.io", "isWALArchiver": true}],
            "bootstrap": {"pg_basebackup": {
                "source": "zalando", "database": "mastodon", "owner": "mastodon",
            }},
            "replica": {"enabled": true, "source": "zalando"},
            "externalClusters": [{
                "name": "zalando",
                "connectionParameters": {
                    "host": format!("{SOURCE}.{NAMESPACE}.svc"), "port": "5432",
                    "user": "standby", "dbname": "postgres", "sslmode": "verify-full",
                },
                "password": {"name": secret_name(SOURCE, "standby"), "key": "password"},
                "sslRootCert": {"name": "zalando-replication-ca", "key": "ca.crt"},
            }],
            "postgresql": {
                "parameters": {
                    "max_connections": "136", "max_worker_processes": "8", "max_wal_senders": "10",
                    "max_prepared_transactions": "0", "max_locks_per_transaction": "64",
                    "pg_stat_statements.track": "top",
                },
                "pg_hba": ["hostssl replication standby all md5", "hostssl all all all md5"],
            },
        },
    })
}

/// The application's ConfigMap, pointing to the source.
pub fn application_config(name: &str) -> Value {
    let data = json!({
        "DB_HOST": "mastodon-postgresql-pooler", "REPLICA_DB_HOST": "mastodon-postgresql-repl",
        "DB_NAME": "mastodon",
    });
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A Deployment that is up.
pub fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "app", "image": "app"}]},
            },
        },
        "status": {"replicas": 1, "readyReplicas": 1},
    })
}

/// The first column of the first row.
pub async fn number(session: &tokio_postgres::Client, query: &str) -> i64 {
    session.query_one(query, &[]).await.unwrap().get(0)
}

/// Runs statements at the target over its Unix socket.
pub async fn at_target(instance: &InstanceHandle, sql: &str) {
    let session: Session = instance.admin("mastodon").await.unwrap();
    session.batch_execute(sql).await.unwrap();
}

/// Polls until a condition holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waits = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, waits)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}
