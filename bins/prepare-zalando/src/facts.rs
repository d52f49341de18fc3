//! What was seen of the source, and of the target if there is one already, before anything is
//! changed. No secrets in here.

use std::collections::BTreeMap;

use job::config::SslMode;
use protocol::wal::Identity;
use serde_json::Value;

use crate::{hba::Rule, roles, scram::Kind};

/// Everything that the findings and the manifest are made from.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Namespace of both sides.
    pub namespace: String,
    /// Where the target will connect to.
    pub host: String,
    /// And the port.
    pub port: u16,
    /// Whom this step has logged in as.
    pub user: String,
    /// From the `postgresql` resource.
    pub resource: Resource,
    /// From the leader's pod.
    pub pod: Pod,
    /// Members that Patroni knows, the leader included.
    pub members: u32,
    /// Patroni's dynamic configuration.
    pub patroni: Value,
    /// What the certificate allows.
    pub tls: Tls,
    /// The server itself.
    pub server: Server,
    /// GUCs by name.
    pub settings: BTreeMap<String, Setting>,
    /// What `ALTER SYSTEM` has left in postgresql.auto.conf.
    pub auto_conf: BTreeMap<String, String>,
    /// pg_hba as the server reads it.
    pub hba: Vec<Rule>,
    /// Roles other than PostgreSQL's own.
    pub roles: Vec<Role>,
    /// Databases that can be connected to, template1 among them.
    pub databases: Vec<Database>,
    /// What CloudNativePG's own roles have already.
    pub cnpg_roles: roles::Seen,
    /// The role that the target will log in as.
    pub login: Login,
    /// The target, when it exists.
    pub target: Option<Target>,
}

/// The part of the `postgresql` resource that matters here.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// Its own pg_hba list.
    pub pg_hba: Option<Vec<String>>,
    /// The operator leaves it alone.
    pub frozen: bool,
    /// Mode, instances and connections of the operator's poolers.
    pub pooler: Pooler,
}

/// The operator's pooler, with its defaults (postgres-operator pkg/util/config/config.go).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooler {
    /// session or transaction.
    pub mode: String,
    /// Pods of each.
    pub instances: u32,
    /// Server connections of all pods of a pooler together.
    pub max_db_connections: u32,
}

impl Default for Pooler {
    fn default() -> Self {
        Self {
            mode: "transaction".into(),
            instances: 2,
            max_db_connections: 60,
        }
    }
}

/// The leader's pod.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Requests and limits of its container `postgres`, as JSON; None when it has none.
    pub resources: Option<Value>,
    /// USE_OLD_LOCALES: sorts as glibc 2.27 does, whatever version it reports.
    pub old_locales: bool,
}

/// How the source can be checked over TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The strongest mode that works for the host.
    pub sslmode: SslMode,
    /// Why that one.
    pub reason: String,
    /// `spec.tls` names a certificate.
    pub given: bool,
    /// The mode that the settings of the other steps ask for.
    pub asked: SslMode,
}

/// Facts of the server that are no GUCs.
#[derive(Clone, Debug)]
pub struct Server {
    /// System identifier, timeline, version.
    pub identity: Identity,
    /// Tablespaces other than PostgreSQL's own two.
    pub tablespaces: Vec<String>,
    /// Logical replication slots.
    pub logical_slots: Vec<String>,
    /// Slots of all kinds.
    pub slots: u32,
    /// Walsenders at work.
    pub senders: u32,
    /// The target is among them.
    pub target_streams: bool,
    /// Transactions prepared and not finished.
    pub prepared_transactions: u32,
    /// Transactions open for more than five minutes: role, database, minutes.
    pub long_transactions: Vec<(String, String, i64)>,
    /// WAL written per second since the statistics were reset; None when they are too young to
    /// tell.
    pub wal_bytes_per_second: Option<u64>,
    /// Libraries loaded into sessions by settings of single roles or databases.
    pub session_libraries: Vec<(String, String)>,
}

/// A GUC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// As SHOW prints it, with a unit.
    pub value: String,
    /// In the GUC's own unit.
    pub raw: String,
    /// What it is when nobody sets it.
    pub boot: String,
    /// Where it comes from (pg_settings.source).
    pub source: String,
    /// A new value waits for a restart.
    pub pending_restart: bool,
}

/// A role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// LOGIN.
    pub login: bool,
    /// SUPERUSER.
    pub superuser: bool,
    /// REPLICATION.
    pub replication: bool,
    /// Its password may no longer be used.
    pub expired: bool,
    /// How its password is stored; None when it has none.
    pub hash: Option<Kind>,
}

/// A database and what was found in it.
#[derive(Clone, Debug, Default)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: String,
    /// Size in bytes.
    pub bytes: u64,
    /// `c` libc, `i` ICU, `b` builtin.
    pub provider: char,
    /// LC_COLLATE.
    pub collate: String,
    /// Version recorded when it was created.
    pub recorded_version: Option<String>,
    /// Version that the source's operating system provides.
    pub actual_version: Option<String>,
    /// Indexes whose order depends on the operating system's collations.
    pub collated_indexes: u32,
    /// Extensions.
    pub extensions: Vec<String>,
    /// Unlogged tables, at most five of them named.
    pub unlogged: (u32, Vec<String>),
    /// Event triggers.
    pub event_triggers: Vec<String>,
    /// Active jobs of pg_cron.
    pub cron_jobs: u32,
}

/// The role that replicates, and whether its password is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Its name.
    pub role: String,
    /// Compared with what the Secret holds.
    pub password: Password,
}

/// What the Secret's password is to the role's stored hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Password {
    /// It is the one.
    Matches,
    /// The role has another.
    Differs,
    /// The role does not exist, or has no password.
    Unset,
    /// There is no such Secret, or it is of another role.
    NoSecret,
}

/// The target as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// It follows a source.
    pub follows: bool,
    /// Its system identifier, once it has data.
    pub system_identifier: String,
    /// Its timeline, which CNPG reports of a primary only.
    pub timeline: Option<u32>,
}

impl Facts {
    /// A GUC's value as SHOW prints it; empty when the server does not know it.
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", |setting| &setting.value)
    }
    /// A GUC that is a number, in its own unit.
    pub fn number(&self, name: &str) -> u64 {
        self.settings
            .get(name)
            .and_then(|setting| setting.raw.parse().ok())
            .unwrap_or(0)
    }
    /// A role by name.
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.iter().find(|role| role.name == name)
    }
    /// A database by name.
    pub fn database(&self, name: &str) -> Option<&Database> {
        self.databases.iter().find(|database| database.name == name)
    }
    /// Bytes of all databases.
    pub fn bytes(&self) -> u64 {
        self.databases.iter().map(|database| database.bytes).sum()
    }
    /// Roles that may log in with an md5 hash.
    pub fn md5_roles(&self) -> Vec<&str> {
        let md5 = self
            .roles
            .iter()
            .filter(|role| role.login && role.hash == Some(Kind::Md5));
        md5.map(|role| role.name.as_str()).collect()
    }
}
