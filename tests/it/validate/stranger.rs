//! A PostgreSQL server that is no copy of the source, where the target should be.

use std::process::Command;

use harness::{authority::Authority, control_plane::ControlPlane, process::Process};

/// Host number of the stranger.
const HOST: u8 = 61;

/// A running server; ends on drop.
pub struct Stranger {
    /// Its address.
    pub address: String,
    _process: Process,
}

impl Stranger {
    /// A fresh cluster with the same superuser's password and a database of the same name.
    pub async fn start(plane: &ControlPlane, password: &str) -> Self {
        let (setup, instance) = (plane.setup(), plane.instance());
        let (home, address) = (
            instance.subdirectory(setup, "stranger").unwrap(),
            instance.address(HOST).to_string(),
        );
        let data = home.join("data");
        let private = |name: &str, text: &str| setup.user.write_private(&home.join(name), text).unwrap();
        private("password", password);
        let mut initdb = setup.postgres("initdb");
        initdb
            .args(["--no-locale", "--no-sync", "-U", "postgres", "-A", "scram-sha-256", "--pwfile"])
            .arg(home.join("password"));
        run(initdb.arg("-D").arg(&data), &home);
        let mut single = setup.postgres("postgres");
        single.args(["--single", "-D"]).arg(&data).arg("postgres");
        single.stdin(std::fs::File::open(statement(setup, &home, "create database mastodon")).unwrap());
        run(&mut single, &home);
        let pair = Authority::root("stranger").unwrap().server("stranger", &[], &[]).unwrap();
        private("data/server.crt", &pair.certificate);
        private("data/server.key", &pair.key);
        private("data/pg_hba.conf", "hostssl all all all scram-sha-256\n");
        let mut server = setup.postgres("postgres");
        server
            .args(["-D"])
            .arg(&data)
            .args(["-c", "ssl=on", "-c", &format!("listen_addresses={address}"), "-c"]);
        server.arg(format!("unix_socket_directories={}", home.display()));
        let process = Process::start("stranger", server, &home.join("log")).unwrap();
        super::stage::until("the stranger listens", async || {
            std::net::TcpStream::connect((address.as_str(), 5432)).is_ok()
        })
        .await;
        Self {
            address,
            _process: process,
        }
    }
}

fn statement(setup: &harness::setup::Setup, home: &std::path::Path, sql: &str) -> std::path::PathBuf {
    let file = home.join("statement");
    setup.user.write_private(&file, &format!("{sql}\n")).unwrap();
    file
}

fn run(command: &mut Command, home: &std::path::Path) {
    let output = command.current_dir(home).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
