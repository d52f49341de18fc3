//! The program is killed, its connection is terminated, or the server crashes, at several points of
//! a run: no backup counts as complete afterwards, and the next run starts again.

use std::{fs, path::Path};

use harness::kubelet::RunningPod;
use rustix::process::{Pid, Signal, kill_process};

use super::environment::{Environment, SOON, STEP, WHOLE, ends, until};

/// Large enough for several moments in the middle of the copy.
const MEGABYTES: u32 = 120;

/// A moment of a run.
enum Moment {
    /// It has logged this text.
    Logged(&'static str),
    /// A file has reached a size in megabytes.
    Reached(&'static str, u64),
}

impl Moment {
    async fn wait(&self, running: &RunningPod, folder: &Path) {
        match self {
            Self::Logged(text) => drop(running.wait_for_line(text, SOON).await.unwrap()),
            Self::Reached(name, megabytes) => {
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
    Moment::Logged("is running (primary)"),
    Moment::Logged("asking mastodon-postgresql-0"),
    Moment::Logged("base backup begun"),
    Moment::Reached(BASE, 1),
    Moment::Reached("pg_wal.tar.partial", 1),
    Moment::Reached(BASE, 20),
    Moment::Reached(BASE, 40),
    Moment::Reached("base.tar.zst", 1),
    Moment::Logged("copied"),
    Moment::Logged("reading"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_run_leaves_nothing_that_looks_finished() {
    let environment = Environment::filled().await;
    environment.add(MEGABYTES).await;
    let folder = environment.volume.join("final");
    for (number, moment) in MOMENTS.iter().enumerate() {
        let running = environment.step().start().await.unwrap();
        moment.wait(&running, &folder).await;
        running.kill();
        ends(&running.wait(SOON).await.unwrap(), 137, &[]);
        assert!(!folder.join("complete.json").exists(), "moment {number}");
    }
    // Leftover files do not stop the next run, and SIGTERM leaves nothing at all.
    let running = environment.step().start().await.unwrap();
    Moment::Reached(BASE, 10).wait(&running, &folder).await;
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
async fn a_lost_connection_is_not_mistaken_for_the_end_of_a_backup() {
    let environment = Environment::filled().await;
    environment.add(MEGABYTES).await;
    let folder = environment.volume.join("final");
    // Either the server ends the session with a message, or its process is killed without one, and
    // the whole server restarts.
    for (moment, killed) in [
        (Moment::Logged("base backup begun"), false),
        (Moment::Reached(BASE, 1), false),
        (Moment::Reached(BASE, 5), true),
        (Moment::Reached(BASE, 20), false),
        (Moment::Reached(BASE, 40), true),
    ] {
        let running = environment.step().start().await.unwrap();
        moment.wait(&running, &folder).await;
        end_connection(&environment, &running, killed).await;
        let ended = running.wait(SOON).await.unwrap();
        ends(
            &ended,
            1,
            &["copying mastodon-postgresql-0", "what was written to"],
        );
        assert!(!folder.exists(), "{ended}");
        environment.source.healthy().await.unwrap();
    }
    // The Job starts another pod, which finishes.
    let (ended, pods) = environment
        .step()
        .to_the_end(SOON, async |pod, running| {
            if pod == 1 {
                Moment::Reached(BASE, 5).wait(running, &folder).await;
                end_connection(&environment, running, false).await;
            }
        })
        .await
        .unwrap();
    ends(&ended, 0, &["backup complete"]);
    assert_eq!(pods, 2);
    assert_eq!(environment.names(), WHOLE);
}

/// Ends the connection that sends the archive. The program is stopped meanwhile (SIGSTOP), so that
/// it cannot finish first.
async fn end_connection(environment: &Environment, running: &RunningPod, killed: bool) {
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
