//! A further instance (pkg/management/postgres/join.go): a copy of the designated primary, which it
//! follows by the Service `-rw` with the client certificate of streaming_replica.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use tokio::time::sleep;

use super::{
    cluster::Cluster, configuration::override_conf, manager::Manager, objects, server::PGDATA,
    status::Phase,
};
use crate::process::Process;

/// Pause between two attempts.
const AGAIN: Duration = Duration::from_secs(1);
const DIRECTORY: &str = "certificates";

impl Manager {
    /// Waits for the first instance, then copies the primary.
    pub(super) async fn join(&mut self) -> Result<()> {
        while !self.status.is_ready(&self.leadership.now().current) {
            sleep(AGAIN).await;
        }
        let cluster = self.current();
        self.status.phase(Phase::CreatingReplica).await?;
        self.create(&objects::job(&cluster, &self.name, "join"))
            .await?;
        self.install_certificates().await?;
        self.copy_primary(&cluster).await
    }

    /// Replaces the instance's files by a copy of the primary; CNPG rewinds a former primary, which
    /// has the same outcome.
    pub(super) async fn copy_primary(&mut self, cluster: &Cluster) -> Result<()> {
        let volume = self.server.volume().clone();
        let pgdata = volume.path(PGDATA);
        if pgdata.exists() {
            fs::remove_dir_all(&pgdata)
                .with_context(|| format!("removing {}", pgdata.display()))?;
        }
        volume.directory("data")?;
        let name = &self.name;
        let conninfo = self.primary_conninfo(cluster, &format!("{name}-join"))?;
        let conninfo = format!("{conninfo} options='-c wal_sender_timeout=0s'");
        let mut command = self.shared.setup.postgres("pg_basebackup");
        command
            .arg("-D")
            .arg(&pgdata)
            .args(["-v", "-w", "--no-sync", "-d", &conninfo]);
        let log = volume.path("pg_basebackup.out");
        let backup = Process::start(&format!("{name}-join"), command, &log)?;
        if !backup.wait().await.success() {
            return Err(backup.error_with_log("the copy of the primary failed"));
        }
        volume.write(&format!("{PGDATA}/standby.signal"), b"")?;
        Ok(())
    }

    /// override.conf of a standby of the primary.
    pub(super) fn follow_primary(&self, cluster: &Cluster) -> Result<String> {
        Ok(override_conf(&self.primary_conninfo(cluster, &self.name)?))
    }

    /// The connection to the primary (pkg/management/postgres/conninfo.go); `hostaddr`
    /// replaces DNS.
    fn primary_conninfo(&self, cluster: &Cluster, application: &str) -> Result<String> {
        let service = format!("{}-rw", cluster.name_any());
        let services = &self.shared.services;
        let address = services
            .resolve(&service)
            .with_context(|| format!("no Service {service}"))?;
        let file = |name: &str| {
            let path = self.server.volume().path(DIRECTORY).join(name);
            path.display().to_string()
        };
        Ok(format!(
            "host={service} hostaddr={address} user=streaming_replica port=5432 sslkey={} \
             sslcert={} sslrootcert={} application_name={application} sslmode=verify-ca \
             dbname=postgres connect_timeout=5",
            file("streaming_replica.key"),
            file("streaming_replica.crt"),
            file("client-ca.crt"),
        ))
    }

    /// Installs the certificates of server and replication and the CA of both from the Secrets.
    pub(super) async fn install_certificates(&self) -> Result<()> {
        let name = self.cluster.borrow().name_any();
        let secrets: Api<Secret> =
            Api::namespaced(self.shared.client.clone(), &self.shared.namespace);
        for (secret, key, file) in [
            ("ca", "ca.crt", "client-ca.crt"),
            ("server", "tls.crt", "server.crt"),
            ("server", "tls.key", "server.key"),
            ("replication", "tls.crt", "streaming_replica.crt"),
            ("replication", "tls.key", "streaming_replica.key"),
        ] {
            let object = secrets.get(&format!("{name}-{secret}")).await?;
            let text = objects::text(object.data.as_ref(), key)
                .with_context(|| format!("no key {key} in {name}-{secret}"))?;
            self.server
                .volume()
                .write(&format!("{DIRECTORY}/{file}"), text.as_bytes())?;
        }
        Ok(())
    }
}
