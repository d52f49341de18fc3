//! A reader of change data: a client of a logical replication slot, as Debezium is.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Member, POSTGRES_PORT, Source};
use crate::process::{Process, tail};

/// psycopg2's replication cursor answers every keepalive with the position that was confirmed last,
/// and without `send_feedback` that is the one where it began: the server waits for its
/// confirmation for ever. It connects again as soon as it is disconnected.
const SCRIPT: &str = r#"
import os, sys, time
import psycopg2, psycopg2.extras
while True:
    try:
        session = psycopg2.connect(
            os.environ["DSN"], connection_factory=psycopg2.extras.LogicalReplicationConnection)
        cursor = session.cursor()
        cursor.start_replication(slot_name=sys.argv[1], decode=False)
        print("reading", flush=True)
        cursor.consume_stream(lambda message: None)
    except psycopg2.Error as error:
        print(error, flush=True)
        time.sleep(0.05)
"#;

/// A reader that never confirms what it has read.
#[derive(Debug)]
pub struct LogicalReader {
    process: Process,
}

impl Source {
    /// Creates a logical slot of this name in the application's database, and starts its reader.
    /// The source needs [`wal_level`](super::SourceOptions::wal_level) `logical`.
    ///
    /// # Errors
    /// The slot cannot be created, or the reader does not start to read in time.
    pub async fn start_logical_reader(&self, slot: &str, limit: Duration) -> Result<LogicalReader> {
        let leader = self.leader().await?;
        self.connect_to(leader, &self.options.database)
            .await?
            .execute(
                "select pg_create_logical_replication_slot($1, 'test_decoding')",
                &[&slot],
            )
            .await?;
        let reader = LogicalReader {
            process: self.reader(leader, slot)?,
        };
        let reads = async {
            while !tail(reader.process.log(), 100).contains("reading") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(limit, reads)
            .await
            .with_context(|| format!("the reader of {slot} does not start"))?;
        Ok(reader)
    }

    fn reader(&self, leader: &Member, slot: &str) -> Result<Process> {
        let mut command = self.setup.server(&self.setup.python);
        command.args(["-c", SCRIPT, slot]);
        command.env(
            "DSN",
            format!(
                "host={} port={POSTGRES_PORT} user=postgres password={} dbname={} sslmode=require",
                leader.address(),
                self.credentials.postgres,
                self.options.database
            ),
        );
        let log = leader.layout().home.join(format!("reader-{slot}.log"));
        Process::start(slot, command, &log)
    }
}

impl LogicalReader {
    /// Suspends it (SIGSTOP): its connection stays open, and nothing is read.
    pub fn suspend(&self) {
        self.process.suspend();
    }

    /// Ends it.
    pub async fn end(self) {
        self.process.kill().await;
    }
}
