//! Backups of a source before its cutover, on a volume.

use std::fs;

use serde_json::{Value, json};

use super::{
    environment::{Environment, MEMORY_BYTES_MAX, NAMESPACE, SOON, WHOLE, ends, names_in},
    restored::Restored,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_the_leader_is_whole_and_can_be_started() {
    let environment = Environment::filled().await;
    dry_run(&environment).await;

    let words = [
        "compressed by the server with zstd",
        "each agrees with the manifest",
        "unpacked, every file on disk compared",
        "backup complete",
        "not ready to delete: there is no receipt of a cutover: the application runs on this \
         source",
    ];
    let ended = environment.run(environment.step(), 0, &words).await;
    assert!(
        ended.cost.memory_peak_bytes < MEMORY_BYTES_MAX,
        "{} bytes resident",
        ended.cost.memory_peak_bytes
    );
    let last = ended.termination_json();
    assert_eq!(
        (&last["verdict"], &last["ready_to_delete"]),
        (&Value::from("done"), &Value::from(false)),
        "{last}"
    );
    assert_eq!(environment.names(), WHOLE);
    complete(&environment);

    let folder = environment.volume.join("final");
    let restored = Restored::unpack(
        environment.plane.setup(),
        environment.plane.instance(),
        &folder,
        "restored",
    );
    assert!(!restored.has("standby.signal"));
    restored.verify();
    let session = restored.start().await;
    let session = session.connect(NAMESPACE).await;
    let rows: i64 = session
        .query_one("select count(*) from statuses", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(rows, 40_000);

    again(&environment).await;
    of_a_member(&environment).await;
}

/// A dry run only reads. It creates not even a folder or a Lease.
async fn dry_run(environment: &Environment) {
    let words = [
        "mastodon-postgresql-0 is running (primary)",
        "would copy mastodon-postgresql-0",
        "deleting the postgresql resource",
    ];
    environment
        .run(environment.step().env("DRY_RUN", "true"), 0, &words)
        .await;
    assert_eq!(names_in(&environment.volume), Vec::<String>::new());
    let mut uses = environment.plane.audit().unwrap();
    uses.retain(|one| {
        one.service_account() == Some("replica-migration-final-backup")
            && !["get", "list"].contains(&one.verb.as_str())
    });
    assert!(uses.is_empty(), "{uses:?}");
}

/// complete.json lists the other files with their sizes and checksums.
fn complete(environment: &Environment) {
    let folder = environment.volume.join("final");
    let complete: Value =
        serde_json::from_slice(&fs::read(folder.join("complete.json")).unwrap()).unwrap();
    assert_eq!(
        (&complete["from"], &complete["verified"]),
        (&Value::from("source"), &Value::from("restore"))
    );
    assert_eq!(complete["objects"].as_array().unwrap().len(), 3);
    for object in complete["objects"].as_array().unwrap() {
        let content = fs::read(folder.join(object["name"].as_str().unwrap())).unwrap();
        let sum = format!("{:08x}", crc32c::crc32c(&content));
        assert_eq!(
            (&object["bytes"], &object["crc32c"]),
            (&Value::from(content.len()), &Value::from(sum)),
            "{object}"
        );
    }
}

/// A finished backup is verified again, and not changed.
async fn again(environment: &Environment) {
    let before = contents(environment);
    let words = [
        "a backup is complete already",
        "verified: read back and unpacked",
    ];
    environment.run(environment.step(), 0, &words).await;
    assert!(
        contents(environment) == before,
        "the second run has changed something"
    );
}

fn contents(environment: &Environment) -> Vec<(String, Vec<u8>, std::time::SystemTime)> {
    let file = |name: String| {
        let path = environment.volume.join("final").join(&name);
        (
            name,
            fs::read(&path).unwrap(),
            fs::metadata(&path).unwrap().modified().unwrap(),
        )
    };
    environment.names().into_iter().map(file).collect()
}

/// A backup of another member, on request and under another name. The server accepts the client
/// certificate that extract-certs has issued.
async fn of_a_member(environment: &Environment) {
    let login =
        json!({"username": "standby", "password": environment.source.credentials().standby});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "zalando-streaming-replica"},
        "stringData": login,
    });
    environment.apply(secret).await;
    let step = environment.kubelet.step("extract-certs");
    environment
        .run(step, 0, &["client certificate: minted"])
        .await;
    let member = environment.source.replica().await.unwrap();
    let replica = member.name();
    let step = environment
        .step()
        .env("BACKUP_MEMBER", replica)
        .env("BACKUP_NAME", "of-a-member")
        .env("VERIFY", "stream");
    let running = step.start().await.unwrap();
    running
        .wait_for_line("base backup begun", SOON)
        .await
        .unwrap();
    running.suspend();
    let session = environment
        .source
        .connect_to(member, "postgres")
        .await
        .unwrap();
    let certificates =
        "select count(*), min(client_dn) from pg_stat_ssl join pg_stat_activity using (pid)
                   where application_name = 'replica-migration-final-backup'";
    let row = session.query_one(certificates, &[]).await.unwrap();
    assert_eq!(
        (row.get(0), row.get(1)),
        (2_i64, Some("/CN=standby")),
        "the copy and its WAL"
    );
    running.resume();
    ends(
        &running.wait(SOON).await.unwrap(),
        0,
        &[replica, "backup complete"],
    );
    let folder = environment.volume.join("of-a-member");
    assert_eq!(names_in(&folder), WHOLE);
    let restored = Restored::unpack(
        environment.plane.setup(),
        environment.plane.instance(),
        &folder,
        "of-a-member",
    );
    assert!(restored.has("standby.signal"), "a standby's copy");
    restored.verify();
    let session = restored.start().await;
    session.connect(NAMESPACE).await;
}
