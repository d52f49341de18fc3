//! A PostgreSQL server that is not a copy of the source, in place of the target.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use openssl::ssl::{Ssl, SslAcceptor, SslMethod};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_openssl::SslStream;

use crate::{authority::Authority, control_plane::ControlPlane, process::Process, setup::Setup};

/// Host numbers of the server, and of the one behind a TLS proxy.
const HOST: u8 = 61;
const HIDDEN_HOST: u8 = 62;
const PORT: u16 = 5432;
const START_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Major version of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Major {
    /// The source's version, with another system identifier.
    Same,
    /// Version 16, with another system identifier.
    Other,
}

/// A running server; ends on drop.
pub struct UnrelatedServer {
    /// The server's address.
    pub address: String,
    _process: Process,
    tls: Option<JoinHandle<()>>,
}

impl Drop for UnrelatedServer {
    fn drop(&mut self) {
        if let Some(tls) = &self.tls {
            tls.abort();
        }
    }
}

impl UnrelatedServer {
    /// Starts a fresh cluster with the given superuser password and a database of the source's
    /// name.
    ///
    /// # Errors
    /// The server does not start.
    pub async fn start(plane: &ControlPlane, password: &str, major: Major) -> Result<Self> {
        let (setup, instance) = (plane.setup(), plane.instance());
        let home = instance.subdirectory(setup, &format!("unrelated-{major:?}"))?;
        let bin = match major {
            Major::Same => setup.postgres_bin.clone(),
            Major::Other => setup.postgres_16_bin.clone(),
        };
        initialize(setup, &bin, &home, password)?;
        let pair = Authority::root("unrelated")?.server("unrelated", &[], &[])?;
        let public = instance.address(HOST);
        let (address, tls) = match major {
            Major::Same => (public, None),
            // This build has no OpenSSL, so a proxy adds TLS.
            Major::Other => {
                let hidden = instance.address(HIDDEN_HOST);
                (
                    hidden,
                    Some(encrypted(public, hidden, &pair.certificate, &pair.key).await?),
                )
            }
        };
        let mut server = setup.server(bin.join("postgres"));
        server
            .arg("-D")
            .arg(home.join("data"))
            .args(["-c", &format!("listen_addresses={address}")]);
        server.args(["-c", &format!("unix_socket_directories={}", home.display())]);
        if tls.is_none() {
            for (name, text) in [("server.crt", &pair.certificate), ("server.key", &pair.key)] {
                setup
                    .user
                    .write_private(&home.join("data").join(name), text)?;
            }
            server.args(["-c", "ssl=on"]);
        }
        let process = Process::start("unrelated", server, &home.join("log"))?;
        listens(address, &process).await?;
        Ok(Self {
            address: public.to_string(),
            _process: process,
            tls,
        })
    }
}

fn initialize(setup: &Setup, bin: &Path, home: &Path, password: &str) -> Result<()> {
    let (data, file) = (home.join("data"), home.join("password"));
    setup.user.write_private(&file, password)?;
    let mut initdb = setup.server(bin.join("initdb"));
    initdb.args([
        "--no-locale",
        "--no-sync",
        "-U",
        "postgres",
        "-A",
        "scram-sha-256",
        "--pwfile",
    ]);
    run(initdb.arg(file).arg("-D").arg(&data), home)?;
    let statement: PathBuf = home.join("statement");
    setup
        .user
        .write_private(&statement, "create database mastodon\n")?;
    let mut single = setup.server(bin.join("postgres"));
    single.args(["--single", "-D"]).arg(&data).arg("postgres");
    run(single.stdin(std::fs::File::open(statement)?), home)?;
    setup.user.write_private(
        &data.join("pg_hba.conf"),
        "host all all all scram-sha-256\n",
    )
}

fn run(command: &mut Command, home: &Path) -> Result<()> {
    let output = command.current_dir(home).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

async fn listens(address: Ipv4Addr, process: &Process) -> Result<()> {
    let waits = async {
        while TcpStream::connect((address, PORT)).await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    };
    timeout(START_LIMIT, waits)
        .await
        .map_err(|_| process.error_with_log("does not listen"))
}

/// Adds TLS to a server without it: answers the SSLRequest and forwards the connection.
async fn encrypted(
    public: Ipv4Addr,
    hidden: Ipv4Addr,
    certificate: &str,
    key: &str,
) -> Result<JoinHandle<()>> {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    acceptor.set_certificate(openssl::x509::X509::from_pem(certificate.as_bytes())?.as_ref())?;
    acceptor
        .set_private_key(openssl::pkey::PKey::private_key_from_pem(key.as_bytes())?.as_ref())?;
    let acceptor = acceptor.build();
    let listener = TcpListener::bind(SocketAddr::from((public, PORT)))
        .await
        .context("listening for the TLS proxy")?;
    Ok(tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            // A client that disconnects is not an error.
            tokio::spawn(async move { pass_on(client, &acceptor, hidden).await.ok() });
        }
    }))
}

async fn pass_on(mut client: TcpStream, acceptor: &SslAcceptor, hidden: Ipv4Addr) -> Result<()> {
    // SSLRequest: its length, 8, and 80877103 (PostgreSQL's documentation, *Message Formats*).
    let mut request = [0; 8];
    client.read_exact(&mut request).await?;
    ensure!(
        request == [0, 0, 0, 8, 4, 210, 22, 47],
        "not a request for TLS"
    );
    client.write_all(b"S").await?;
    let mut stream = SslStream::new(Ssl::new(acceptor.context())?, client)?;
    Pin::new(&mut stream).accept().await?;
    let mut server = TcpStream::connect((hidden, PORT)).await?;
    copy_bidirectional(&mut stream, &mut server).await?;
    Ok(())
}
