//! A pod of one of the Zalando operator's poolers: a real PgBouncer, configured as by the
//! operator's image (postgres-operator 2.0.1, pooler/pgbouncer.ini.tmpl), at its own address.
//!
//! Differences from the real one: it is Debian's version, and the one of Debian 12 supports neither
//! `auth_dbname` (the lookup function is called in the client's database, where the operator also
//! creates it) nor `SHOW STATE` (nor do the operator's older images); and it reaches the Service in
//! front of PostgreSQL by address, because there is no DNS.
//!
//! In place of that Service stands a forwarder of its own: the pod's node follows changes of the
//! Service by itself. A NetworkPolicy that refuses the pod is imitated there, too: connections that
//! exist stay, as with most network plugins. A real policy drops packets, so that a login waits for
//! server_connect_timeout instead of being refused.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, api::DeleteParams};
use tokio::{net::TcpStream, sync::watch, task::JoinHandle};
use tokio_postgres::SimpleQueryMessage;

use super::{Services, View, delay::Backends, forwarder::Forwarder, pooler};
use crate::{
    application::login::Login, authority::Authority, control_plane::ControlPlane, process::Process,
    session::Session, setup::Setup,
};

const PORT: u16 = 5432;
/// Port of the forwarder, at the pod's address.
const UPSTREAM_PORT: u16 = 6543;
const UPSTREAM_LIMIT: Duration = Duration::from_secs(30);
const START_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Name, Services and address of a pooler pod.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The Service in front of the pod; its selector provides the pod's labels.
    pub service: String,
    /// The Service that the pooler connects to.
    pub upstream: String,
    /// Name of the pod.
    pub pod: String,
    /// Host number in the instance's network.
    pub host: u8,
}

/// A running PgBouncer; it ends on drop.
pub struct PgBouncer {
    placement: Placement,
    address: Ipv4Addr,
    client: Client,
    namespace: String,
    setup: &'static Setup,
    directory: PathBuf,
    password: String,
    process: Process,
    path: UpstreamPath,
}

impl PgBouncer {
    /// Starts PgBouncer and creates its ready Pod object.
    ///
    /// # Errors
    /// A Service or the role's Secret is missing, or PgBouncer does not listen.
    pub async fn start(
        plane: &ControlPlane,
        services: &Arc<Services>,
        placement: Placement,
        secret: &str,
    ) -> Result<Self> {
        let (client, setup, instance) = (plane.admin(), plane.setup(), plane.instance());
        let namespace = services.namespace().to_owned();
        let upstream = services
            .wait_for(&placement.upstream, UPSTREAM_LIMIT)
            .await?;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        let data = secrets.get(secret).await?.data.unwrap_or_default();
        let password = data
            .get("password")
            .context("the pooler's Secret has no password")?;
        let password = String::from_utf8(password.0.clone())?;
        let directory = instance.subdirectory(setup, &placement.pod)?;
        let address = instance.address(placement.host);
        let path = UpstreamPath::open(address, services.view((upstream, PORT).into()));
        configure(setup, &directory, address, &password)?;
        let process = run(setup, &directory, &placement.pod, address).await?;
        let this = Self {
            address,
            client,
            namespace,
            setup,
            directory,
            password,
            process,
            path,
            placement,
        };
        this.announce().await?;
        Ok(this)
    }

    /// Name of the pod.
    pub fn pod(&self) -> &str {
        &self.placement.pod
    }

    /// Whether its new connections to the Service in front of PostgreSQL are accepted.
    pub fn reaches_upstream(&self, reaches: bool) {
        self.path.set(reaches);
    }

    /// Runs one command on the console.
    ///
    /// # Errors
    /// The console refuses.
    pub async fn console(&self, command: &str) -> Result<Vec<SimpleQueryMessage>> {
        let session = self.session("pgbouncer").await?;
        Ok(session.simple_query(command).await?)
    }

    /// A session through the pooler.
    ///
    /// # Errors
    /// The login is refused.
    pub async fn session(&self, dbname: &str) -> Result<Session> {
        let login = Login {
            host: "pooler".into(),
            port: PORT,
            dbname: dbname.into(),
            user: "pooler".into(),
            password: self.password.clone(),
        };
        login.connect_to(self.address.into(), "a person").await
    }

    /// Deletes the pod with its grace period, in which PgBouncer goes on serving its clients. It
    /// accepts new connections in that time, which the real one no longer does.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn terminate(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        pods.delete(&self.placement.pod, &DeleteParams::default())
            .await?;
        Ok(())
    }

    /// Replaces the pod, as the Deployment does: a PAUSE is lost.
    ///
    /// # Errors
    /// The new process does not start.
    pub async fn replace(&mut self) -> Result<()> {
        self.process.kill().await;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        pods.delete(&self.placement.pod, &now).await?;
        self.process = run(
            self.setup,
            &self.directory,
            &self.placement.pod,
            self.address,
        )
        .await?;
        self.announce().await
    }

    /// Creates the ready Pod object.
    async fn announce(&self) -> Result<()> {
        // The loopback address itself, because consoles are reached at the pod's own address.
        let ip = self.address.to_string();
        pooler::make_pod(
            &self.client,
            &self.namespace,
            &self.placement.service,
            &self.placement.pod,
            &ip,
        )
        .await
    }
}

/// The way from a pooler to the servers behind the Service in front of PostgreSQL.
struct UpstreamPath {
    /// No policy refuses the pod.
    open: watch::Sender<bool>,
    /// The node's kube-proxy, and the policy.
    tasks: [JoinHandle<()>; 2],
    _forwarder: Forwarder,
}

impl Drop for UpstreamPath {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl UpstreamPath {
    fn open(pod: Ipv4Addr, view: View) -> Self {
        let (backends, known) = Backends::new();
        let (open, is_open) = watch::channel(true);
        let (admitted, receiver) = watch::channel(Vec::new());
        let tasks = [
            tokio::spawn(view.follow(backends)),
            tokio::spawn(admit(known, is_open, admitted)),
        ];
        Self {
            open,
            tasks,
            _forwarder: Forwarder::start(SocketAddr::from((pod, UPSTREAM_PORT)), receiver),
        }
    }

    fn set(&self, open: bool) {
        self.open.send_replace(open);
    }
}

/// Passes on what the node knows while the policy admits the pod.
async fn admit(
    mut known: watch::Receiver<Vec<SocketAddr>>,
    mut open: watch::Receiver<bool>,
    admitted: watch::Sender<Vec<SocketAddr>>,
) {
    loop {
        let backends = known.borrow_and_update().clone();
        let is_open = *open.borrow_and_update();
        admitted.send_replace(if is_open { backends } else { Vec::new() });
        let changed = tokio::select! {
            changed = known.changed() => changed,
            changed = open.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn configure(setup: &Setup, directory: &Path, address: Ipv4Addr, password: &str) -> Result<()> {
    let own = Authority::root("pooler")?.server("pooler", &["pooler".into()], &[])?;
    let file = |name: &str| directory.join(name).display().to_string();
    for (name, text) in [
        ("tls.crt", own.certificate.as_str()),
        ("tls.key", own.key.as_str()),
        ("userlist.txt", &format!("\"pooler\" \"{password}\"\n")),
    ] {
        setup.user.write_private(&directory.join(name), text)?;
    }
    let text = format!(
        "[databases]\n* = host={address} port={UPSTREAM_PORT} auth_user=pooler\n\
         [pgbouncer]\npool_mode = transaction\nlisten_addr = {address}\nlisten_port = \
         {PORT}\nunix_socket_dir =\n\
         admin_users = pooler\nauth_file = {users}\nauth_query = SELECT * FROM \
         pooler.user_lookup($1)\nauth_type = md5\n\
         server_tls_sslmode = require\nclient_tls_sslmode = require\nclient_tls_cert_file = \
         {certificate}\nclient_tls_key_file = {key}\n\
         log_connections = 0\nlog_disconnections = 0\ndefault_pool_size = 20\nmax_client_conn = \
         1000\nserver_login_retry = 5\n\
         ignore_startup_parameters = extra_float_digits,options\n",
        users = file("userlist.txt"),
        certificate = file("tls.crt"),
        key = file("tls.key"),
    );
    setup
        .user
        .write_private(&directory.join("pgbouncer.ini"), &text)
}

async fn run(setup: &Setup, directory: &Path, name: &str, address: Ipv4Addr) -> Result<Process> {
    let mut command = setup.server(&setup.pgbouncer);
    command
        .arg(directory.join("pgbouncer.ini"))
        .current_dir("/");
    let process = Process::start(name, command, &directory.join("log"))?;
    let listens = async {
        while TcpStream::connect((address, PORT)).await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(START_LIMIT, listens)
        .await
        .map_err(|_| process.error_with_log("does not listen"))?;
    Ok(process)
}
