//! Killed, cut off, and the server gone, at one point after the other: nothing that is left is
//! called complete, and the next run begins anew.

use std::{fs, path::Path};

use harness::kubelet::RunningPod;
use rustix::process::{Pid, Signal, kill_process};

use super::environment::{Environment, SOON, STEP, WHOLE, ends, until};

/// Large enough for several moments in the middle of it.
const MEGABYTES: u32 = 120;

/// When something happens to a run.
enum Moment {
    /// It says this.
    Says(&'static str),
    /// A file of it has so many megabytes.
    Has(&'static str, u64),
}

impl Moment {
    async fn comes(&self, running: &RunningPod, folder: &Path) {
        match self {
            Self::Says(text) => drop(running.wait_for_line(text, SOON).await.unwrap()),
            Self::Has(name, megabytes) => {
                let large = || {
                    fs::metadata(folder.join(name))
                        .is_ok_and(|file| file.len() >= megabytes * 1_000_000)
                };
                until(&format!("{name} of {megabytes} MB"), large).await;
            }
        }
    }
}

const BASE: &str = "base.tar.zst.partial";

const MOMENTS: [Moment; 10] = [
    Moment::Says("is running (primary)"),
    Moment::Says("asking mastodon-postgresql-0"),
    Moment::Says("base backup begun"),
    Moment::Has(BASE, 1),
    Moment::Has("pg_wal.tar.partial", 1),
    Moment::Has(BASE, 20),
    Moment::Has(BASE, 40),
    Moment::Has("base.tar.zst", 1),
    Moment::Says("copied"),
    Moment::Says("reading"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_run_leaves_nothing_that_looks_finished() {
    let environment = Environment::filled().await;
    environment.add(MEGABYTES).await;
    let folder = environment.volume.join("final");
    for (number, moment) in MOMENTS.iter().enumerate() {
        let running = environment.step().start().await.unwrap();
        moment.comes(&running, &folder).await;
        running.kill();
        ends(&running.wait(SOON).await.unwrap(), 137, &[]);
        assert!(!folder.join("complete.json").exists(), "moment {number}");
    }
    // What is left is no hindrance, and SIGTERM leaves nothing at all.
    let running = environment.step().start().await.unwrap();
    Moment::Has(BASE, 10).comes(&running, &folder).await;
    let ended = running.delete().await.unwrap();
    ends(
        &ended,
        1,
        &[
            "removing what an unfinished run has left",
            "asked to end (SIGTERM)",
            "is removed",
        ],
    );
    assert!(!folder.exists());
    environment
        .run(environment.step(), 0, &["backup complete"])
        .await;
    assert_eq!(environment.names(), WHOLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_is_no_end_of_a_backup() {
    let environment = Environment::filled().await;
    environment.add(MEGABYTES).await;
    let folder = environment.volume.join("final");
    // The server ends the session, and says so; or its process is killed, says nothing, and the
    // whole server restarts.
    for (moment, killed) in [
        (Moment::Says("base backup begun"), false),
        (Moment::Has(BASE, 1), false),
        (Moment::Has(BASE, 5), true),
        (Moment::Has(BASE, 20), false),
        (Moment::Has(BASE, 40), true),
    ] {
        let running = environment.step().start().await.unwrap();
        moment.comes(&running, &folder).await;
        cut(&environment, &running, killed).await;
        let ended = running.wait(SOON).await.unwrap();
        ends(
            &ended,
            1,
            &["copying mastodon-postgresql-0", "what was written to"],
        );
        assert!(!folder.exists(), "{ended}");
        environment.source.healthy().await.unwrap();
    }
    // The Job starts pod after pod: the one after the cut finishes.
    let (ended, pods) = environment
        .step()
        .to_the_end(SOON, async |pod, running| {
            if pod == 1 {
                Moment::Has(BASE, 5).comes(running, &folder).await;
                cut(&environment, running, false).await;
            }
        })
        .await
        .unwrap();
    ends(&ended, 0, &["backup complete"]);
    assert_eq!(pods, 2);
    assert_eq!(environment.names(), WHOLE);
}

/// Ends the connection that sends the archive. The program is frozen meanwhile: it shall not come
/// to its end before.
async fn cut(environment: &Environment, running: &RunningPod, killed: bool) {
    running.suspend();
    let session = environment.source.connect("postgres").await.unwrap();
    let sql = format!(
        "select pid from pg_stat_progress_basebackup join pg_stat_activity using (pid) where \
         application_name like '%{STEP}'"
    );
    let pid: i32 = session.query_one(&sql, &[]).await.unwrap().get(0);
    if killed {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    } else {
        session
            .execute("select pg_terminate_backend($1)", &[&pid])
            .await
            .unwrap();
    }
    running.resume();
}
