//! Each bad input ends with its exit code and one line with the problem and the next step, and
//! leaves nothing that looks like a backup.

use std::{fs, os::unix::fs::FileExt as _};

use harness::{
    kubelet::Launch,
    source::{Checksums, SourceOptions, secret_name},
};
use k8s_openapi::api::{core::v1::Secret, rbac::v1::Role};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::environment::{BUCKET, Environment, NAMESPACE, SOURCE, names_in};

const MEGABYTE: u64 = 1_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_reported_and_leaves_no_files() {
    let environment = Environment::start(SourceOptions {
        checksums: Checksums::On,
        ..SourceOptions::default()
    })
    .await;
    environment.add(60).await;
    settings(&environment).await;
    storage(&environment).await;
    access(&environment).await;
    tablespace(&environment).await;
    tampered(&environment).await;
    damaged_page(&environment).await;
}

async fn refused(environment: &Environment, step: Launch<'_>, code: i32, texts: &[&str]) {
    environment.run(step, code, texts).await;
    assert_eq!(
        names_in(&environment.volume),
        Vec::<String>::new(),
        "{texts:?}"
    );
}

async fn settings(environment: &Environment) {
    for (key, value, code, words) in [
        (
            "BACKUP_TO",
            "",
            2,
            "BACKUP_TO cannot be used: it is empty; set it to /directory",
        ),
        (
            "BACKUP_TO",
            "backup",
            2,
            "is neither /directory nor s3://bucket/prefix",
        ),
        (
            "BACKUP_TO",
            "/nowhere",
            2,
            "/nowhere is not a directory → mount a volume there",
        ),
        ("BACKUP_TO", "/etc", 2, "using /etc/final"),
        ("BACKUP_TO", "/proc", 3, "/proc has only 0 bytes free"),
        ("BACKUP_NAME", "no/path", 2, "is not a Kubernetes name"),
        ("FROM", "both", 2, "FROM cannot be used"),
        (
            "FROM",
            "target",
            3,
            "there is no receipt of a cutover, so the target is not the primary yet → set \
             FROM=source",
        ),
        (
            "BACKUP_MEMBER",
            "mastodon-postgresql-7",
            2,
            "the source has no member mastodon-postgresql-7; it has mastodon-postgresql-0",
        ),
        (
            "SOURCE_CLUSTER",
            "other",
            3,
            "the source has no leader: none",
        ),
        ("SCRATCH_DIR", "/nowhere", 2, "reading the size of /nowhere"),
        (
            "RETENTION_DAYS",
            "a week",
            2,
            "RETENTION_DAYS cannot be used",
        ),
    ] {
        refused(
            environment,
            environment.step().env(key, value),
            code,
            &[words],
        )
        .await;
    }
    refused(
        environment,
        environment.step().without("VERIFY"),
        2,
        &["the variable VERIFY is missing"],
    )
    .await;
}

async fn storage(environment: &Environment) {
    no_space(environment).await;
    let folder = environment.volume.join("final");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("photos.zip"), "").unwrap();
    environment
        .run(
            environment.step(),
            3,
            &[
                "holds something else: photos.zip",
                "choose another BACKUP_NAME",
            ],
        )
        .await;
    assert_eq!(environment.names(), ["photos.zip"]);
    fs::remove_file(folder.join("photos.zip")).unwrap();
    // pg_basebackup -Ft writes files of the same names.
    for name in ["backup_manifest", "base.tar", "pg_wal.tar"] {
        fs::write(folder.join(name), "").unwrap();
    }
    environment
        .run(
            environment.step(),
            3,
            &["holds something else: backup_manifest"],
        )
        .await;
    assert_eq!(
        environment.names(),
        ["backup_manifest", "base.tar", "pg_wal.tar"]
    );
    fs::remove_dir_all(&folder).unwrap();

    let s3 = environment.bucket().await;
    let missing = environment
        .step_to(&s3)
        .env("BACKUP_TO", "s3://no-such-bucket/a");
    refused(
        environment,
        missing,
        2,
        &["no-such-bucket", "create the bucket"],
    )
    .await;
    let wrong = json!({"stringData": {"ACCESS_SECRET_KEY": "wrong"}});
    secrets(environment)
        .patch(
            "zalando-backup-s3",
            &PatchParams::default(),
            &Patch::Merge(wrong),
        )
        .await
        .unwrap();
    refused(
        environment,
        environment.step_to(&s3),
        2,
        &["the bucket backups denies access", "zalando-backup-s3"],
    )
    .await;
    secrets(environment)
        .delete("zalando-backup-s3", &DeleteParams::default())
        .await
        .unwrap();
    refused(
        environment,
        environment.step_to(&s3),
        2,
        &["s3/ACCESS_KEY_ID", "the Secret behind this file is missing"],
    )
    .await;
    assert_eq!(
        names_in(&s3.directory(BUCKET).join("zalando")),
        Vec::<String>::new()
    );
}

/// Too little space from the beginning, and running out of space in the middle. In memory, where no
/// other program writes at the same time.
async fn no_space(environment: &Environment) {
    let small = tempfile::tempdir_in("/dev/shm").unwrap();
    environment.plane.setup().user.own(small.path()).unwrap();
    let found = rustix::fs::statvfs(small.path()).unwrap();
    let free = found.f_bavail * found.f_frsize / MEGABYTE;
    let keep = |megabytes: u64| {
        environment
            .step()
            .env("BACKUP_TO", &small.path().display().to_string())
            .env("BACKUP_KEEP_FREE_MB", &megabytes.to_string())
    };
    let words = ["must stay free", "enlarge the volume"];
    environment.run(keep(free + 1000), 3, &words).await;
    assert_eq!(names_in(small.path()), Vec::<String>::new());
    let words = ["base backup begun", "is removed", words[0], words[1]];
    environment
        .run(keep(free.saturating_sub(20)), 3, &words)
        .await;
    assert_eq!(names_in(small.path()), Vec::<String>::new());
}

fn secrets(environment: &Environment) -> Api<Secret> {
    Api::namespaced(environment.plane.admin(), NAMESPACE)
}

async fn access(environment: &Environment) {
    let name = secret_name(SOURCE, "standby");
    let right = secrets(environment).get(&name).await.unwrap().data.unwrap()["password"].clone();
    let password = async |value: Value| {
        let change = json!({"data": {"password": value}});
        secrets(environment)
            .patch(&name, &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap();
    };
    password(json!("d3Jvbmc=")).await;
    refused(
        environment,
        environment.step(),
        2,
        &["28P01", "does not hold this role's password"],
    )
    .await;
    password(Value::Null).await;
    refused(
        environment,
        environment.step(),
        2,
        &["standby/password", "the Secret behind this file is missing"],
    )
    .await;
    password(serde_json::to_value(right).unwrap()).await;

    let host = environment
        .step()
        .env("SOURCE_HOST", "elsewhere.mastodon.svc")
        .env("SOURCE_HOSTADDR", "127.0.0.1");
    refused(
        environment,
        host,
        2,
        &[
            "tls handshake",
            "does not fit the CA, the host name or the sslmode",
        ],
    )
    .await;
    let ca = secrets(environment)
        .get("zalando-replication-ca")
        .await
        .unwrap();
    secrets(environment)
        .delete("zalando-replication-ca", &DeleteParams::default())
        .await
        .unwrap();
    refused(
        environment,
        environment.step(),
        2,
        &["source-ca/ca.crt", "its step has not run yet"],
    )
    .await;
    environment
        .apply(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "zalando-replication-ca"},
            "data": ca.data,
        }))
        .await;

    let roles: Api<Role> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    let role = "replica-migration-final-backup";
    let whole = roles.get(role).await.unwrap().rules.unwrap();
    let narrowed: Vec<_> = whole
        .iter()
        .filter(|rule| rule.resources.as_deref() != Some(&["leases".to_owned()]))
        .collect();
    let rules = async |rules: Value| {
        let change = json!({"rules": rules});
        roles
            .patch(role, &PatchParams::default(), &Patch::Merge(change))
            .await
            .unwrap();
    };
    rules(json!(narrowed)).await;
    refused(
        environment,
        environment.step(),
        2,
        &[
            "cannot get resource \"leases\"",
            "apply the step's manifests again",
        ],
    )
    .await;
    rules(json!(whole)).await;
}

async fn tablespace(environment: &Environment) {
    // Its directory must exist on every member.
    let location = environment
        .plane
        .instance()
        .subdirectory(environment.plane.setup(), "elsewhere")
        .unwrap();
    let session = environment.source.connect("postgres").await.unwrap();
    session
        .batch_execute("set allow_in_place_tablespaces = on")
        .await
        .unwrap();
    session
        .batch_execute(&format!(
            "create tablespace elsewhere location '{}'",
            location.display()
        ))
        .await
        .unwrap();
    let words = [
        "the server has tablespaces outside of its data directory: ",
        "alter table … set tablespace pg_default",
    ];
    refused(environment, environment.step(), 3, &words).await;
    session
        .batch_execute("drop tablespace elsewhere")
        .await
        .unwrap();
}

/// A finished backup that was changed is neither accepted nor overwritten.
async fn tampered(environment: &Environment) {
    let scratch = environment.step().env("SCRATCH_DIR", "/proc");
    let words = [
        "not unpacked: ",
        "read back from the storage, every file compared",
    ];
    environment.run(scratch, 0, &words).await;
    let folder = environment.volume.join("final");
    for (name, from, to, code, words) in [
        ("backup_manifest", "\"Size\": ", "\"Size\": ", 0, "verified"),
        ("backup_manifest", "CRC32C", "CRC32X", 4, "not CRC32C"),
        (
            "backup_manifest",
            " GMT\"",
            " UTC\"",
            4,
            "its own checksum is wrong",
        ),
        ("complete.json", "\"bytes\"", "\"Bytes\"", 4, "is not whole"),
    ] {
        let file = folder.join(name);
        let before = fs::read(&file).unwrap();
        let changed = String::from_utf8(before.clone())
            .unwrap()
            .replacen(from, to, 1);
        fs::write(&file, &changed).unwrap();
        environment.run(environment.step(), code, &[words]).await;
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            changed,
            "nothing is repaired silently"
        );
        fs::write(&file, before).unwrap();
    }
    let archive = folder.join("base.tar.zst");
    let bytes = fs::read(&archive).unwrap();
    fs::File::options()
        .write(true)
        .open(&archive)
        .unwrap()
        .write_all_at(&[!bytes[bytes.len() / 2]], bytes.len() as u64 / 2)
        .unwrap();
    environment
        .run(environment.step(), 4, &["base.tar.zst"])
        .await;
    fs::write(&archive, &bytes[..bytes.len() - 1]).unwrap();
    environment
        .run(
            environment.step(),
            4,
            &["the backup in", "is not whole: base.tar.zst has"],
        )
        .await;
    fs::remove_file(&archive).unwrap();
    environment
        .run(environment.step(), 4, &["base.tar.zst is missing"])
        .await;
    fs::remove_dir_all(&folder).unwrap();
}

/// The server's warning about a page checksum is an error here.
async fn damaged_page(environment: &Environment) {
    let session = environment.source.connect(NAMESPACE).await.unwrap();
    session.batch_execute("checkpoint").await.unwrap();
    let path: String = session
        .query_one("select pg_relation_filepath('statuses')", &[])
        .await
        .unwrap()
        .get(0);
    let file = environment
        .source
        .leader()
        .await
        .unwrap()
        .layout()
        .data
        .join(path);
    let open = fs::File::options()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, 3 * 8192 + 5000).unwrap();
    open.write_all_at(&[!byte[0]], 3 * 8192 + 5000).unwrap();
    let words = [
        "the server has found a damaged page: checksum verification failed in file",
        "block 3",
        "back up another member",
    ];
    refused(environment, environment.step(), 4, &words).await;
    // The other member's page is whole.
    let replica = environment.source.replica().await.unwrap().name();
    environment
        .run(
            environment.step().env("BACKUP_MEMBER", replica),
            0,
            &["backup complete"],
        )
        .await;
}
