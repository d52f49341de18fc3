//! The environment of these tests: a source before its cutover, an API server with the manifests, a
//! volume and a bucket.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use harness::{
    control_plane::ControlPlane,
    kubelet::{self, Ended, Kubelet, Launch},
    manifests,
    s3::S3,
    service::Services,
    source::{Source, SourceOptions},
};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

pub const NAMESPACE: &str = "mastodon";
pub const SOURCE: &str = "mastodon-postgresql";
pub const STEP: &str = "final-backup";
pub const BUCKET: &str = "backups";
/// Limit of resident memory, whatever the size of the database: 64 MB for a release build. A debug
/// build is some 15 MB larger.
pub const MEMORY_BYTES_MAX: u64 = if cfg!(debug_assertions) {
    80_000_000
} else {
    64_000_000
};
/// The files of a finished backup.
pub const WHOLE: [&str; 4] = [
    "backup_manifest",
    "base.tar.zst",
    "complete.json",
    "pg_wal.tar",
];
/// Longer than anything here takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(180);

/// A source, and an API server with the manifests.
pub struct Environment {
    pub plane: Arc<ControlPlane>,
    pub source: Source,
    pub kubelet: Kubelet,
    /// The volume that components/backup-volume mounts.
    pub volume: PathBuf,
}

impl Environment {
    pub async fn start(options: SourceOptions) -> Self {
        let plane = Arc::new(ControlPlane::start().await.unwrap());
        apply_manifests(&plane).await;
        let source = Source::start(&plane, options).await.unwrap();
        let services = Services::follow(plane.admin(), Arc::clone(plane.instance()), NAMESPACE)
            .await
            .unwrap();
        let services = Arc::new(services);
        services.wait_for(SOURCE, SOON).await.unwrap();
        let kubelet = Kubelet::with_programs(
            &plane,
            &services,
            NAMESPACE,
            kubelet::built().await.unwrap(),
        );
        let volume = plane
            .instance()
            .subdirectory(plane.setup(), "claims/zalando-backup")
            .unwrap();
        let environment = Self {
            plane,
            source,
            kubelet,
            volume,
        };
        let ca =
            std::fs::read_to_string(environment.source.members()[0].layout().tls.join("ca.crt"))
                .unwrap();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "zalando-replication-ca"},
            "stringData": {"ca.crt": ca},
        });
        environment.apply(secret).await;
        environment
    }

    /// A source of some megabytes.
    pub async fn filled() -> Self {
        Self::start(SourceOptions {
            rows: 40_000,
            ..SourceOptions::default()
        })
        .await
    }

    /// Adds megabytes that hardly compress, so that a copy takes a moment.
    pub async fn add(&self, megabytes: u32) {
        let sql = format!(
            "create table filler (n int, text text); alter table filler alter column text set \
             storage external;
             insert into filler select n, (select string_agg(md5(random()::text || n || m), '') \
             from generate_series(1, 250) m)
               from generate_series(1, {}) n; checkpoint",
            megabytes * 125
        );
        let session = self.source.connect(NAMESPACE).await.unwrap();
        session.batch_execute(&sql).await.unwrap();
    }

    pub async fn apply(&self, object: Value) {
        self.plane.apply(NAMESPACE, &[object]).await.unwrap();
    }

    /// The step, with the volume as its storage. Unpacks on a nearly full disk, too, because that
    /// of a machine that runs tests may be.
    pub fn step(&self) -> Launch<'_> {
        self.kubelet
            .step(STEP)
            .env("SCRATCH_KEEP_FREE_PERCENT", "0")
    }

    /// A bucket, and the Secret with its keys.
    pub async fn bucket(&self) -> S3 {
        let s3 = S3::start(self.plane.setup(), self.plane.instance(), BUCKET)
            .await
            .unwrap();
        let (id, secret) = s3.keys();
        let keys = json!({"ACCESS_KEY_ID": id, "ACCESS_SECRET_KEY": secret, "ca.crt": s3.ca()});
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "zalando-backup-s3"},
            "stringData": keys,
        });
        self.apply(secret).await;
        s3
    }

    /// The step, with the bucket as its storage.
    pub fn step_to(&self, s3: &S3) -> Launch<'_> {
        self.step()
            .env("BACKUP_TO", &format!("s3://{BUCKET}/zalando/mastodon"))
            .env("S3_ENDPOINT", &s3.endpoint())
            .env("S3_PATH_STYLE", "true")
    }

    /// Runs the step, and asserts its exit code and texts of its log.
    pub async fn run(&self, launch: Launch<'_>, code: i32, texts: &[&str]) -> Ended {
        let ended = launch.run(SOON).await.unwrap();
        ends(&ended, code, texts);
        ended
    }

    /// The names in the folder of the backup; none if there is no folder.
    pub fn names(&self) -> Vec<String> {
        names_in(&self.volume.join("final"))
    }
}

/// The example with all components for the backup.
pub fn manifests(plane: &ControlPlane) -> Vec<Value> {
    manifests::example_with(plane.setup(), &["backup-volume", "s3", "decommission"]).unwrap()
}

/// Applies them.
pub async fn apply_manifests(plane: &ControlPlane) {
    plane.namespace(NAMESPACE).await.unwrap();
    plane.apply(NAMESPACE, &manifests(plane)).await.unwrap();
}

/// Removes an object.
pub async fn remove(plane: &ControlPlane, kind: (&str, &str, &str), name: &str) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(kind.0, kind.1, kind.2));
    let api: Api<DynamicObject> = Api::namespaced_with(plane.admin(), NAMESPACE, &resource);
    api.delete(name, &DeleteParams::background()).await.unwrap();
}

/// Polls until a condition holds.
pub async fn until(condition: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, waiting)
        .await
        .unwrap_or_else(|_| panic!("timed out: {condition}"));
}

/// Names in a folder; none if it does not exist.
pub fn names_in(folder: &Path) -> Vec<String> {
    let Ok(list) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = list
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Asserts the exit code and texts of the log.
#[track_caller]
pub fn ends(ended: &Ended, code: i32, texts: &[&str]) {
    assert_eq!(ended.exit_code, code, "{ended}");
    for text in texts {
        assert!(ended.text().contains(text), "{text:?} is missing: {ended}");
    }
}
