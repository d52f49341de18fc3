//! Facts about the source, and about the target if it exists already, as observed before anything
//! is changed. They contain no secrets.

use std::collections::BTreeMap;

use job::config::SslMode;
use protocol::wal::Identity;
use serde_json::Value;

use crate::{
    cnpg_roles::ExistingRoles,
    hba::{
        Rule,
        clients::{Clients, clients},
    },
    stored_password::Kind,
    target_patch::TargetPatch,
};

/// Everything that the findings and the manifest are computed from.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Namespace of the source and the target.
    pub namespace: String,
    /// Host that the target will connect to: SOURCE_HOST.
    pub host: String,
    /// Port that the target will connect to: SOURCE_PORT.
    pub port: u16,
    /// Role that this program has logged in as: SOURCE_USER.
    pub user: String,
    /// The `postgresql` resource.
    pub resource: Resource,
    /// The leader's pod.
    pub pod: Pod,
    /// Number of the source's members, including the leader.
    pub members: u32,
    /// Patroni's dynamic configuration.
    pub patroni: Value,
    /// How the source's certificate can be verified.
    pub tls: Tls,
    /// State of the server that is not a parameter.
    pub server: Server,
    /// Parameters by name.
    pub settings: BTreeMap<String, Setting>,
    /// Parameters that `ALTER SYSTEM` has written into postgresql.auto.conf.
    pub auto_conf: BTreeMap<String, String>,
    /// pg_hba.conf as the server has parsed it.
    pub hba: Vec<Rule>,
    /// Roles other than PostgreSQL's own.
    pub roles: Vec<Role>,
    /// Databases that accept connections, including template1.
    pub databases: Vec<Database>,
    /// CloudNativePG's own roles, as far as they exist.
    pub cnpg_roles: ExistingRoles,
    /// The role that the target will log in as.
    pub login: Login,
    /// The target; None until its Cluster exists.
    pub target: Option<Target>,
    /// What the user adds to the rendered Cluster.
    pub target_patch: TargetPatch,
}

/// The relevant part of the `postgresql` resource.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// The resource's own pg_hba list; None when it has none, so that Spilo's applies.
    pub pg_hba: Option<Vec<String>>,
    /// The annotation acid.zalan.do/controller makes the operator ignore the resource.
    pub suspended: bool,
    /// The operator's connection pooler.
    pub pooler: Pooler,
    /// Where the members' pods run, as `spec.affinity` of the Cluster; None where nothing is said.
    pub affinity: Option<Value>,
    /// Their priority class.
    pub priority_class: Option<String>,
    /// Their scheduler.
    pub scheduler: Option<String>,
}

/// The operator's connection pooler, with the defaults of postgres-operator's
/// pkg/util/config/config.go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooler {
    /// pgbouncer's pool_mode: session or transaction.
    pub mode: String,
    /// Number of pods of each pooler.
    pub instances: u32,
    /// Server connections of all pods of one pooler together.
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
    /// USE_OLD_LOCALES is set: the server sorts as glibc 2.27 does, whatever version it reports.
    pub old_locales: bool,
}

/// How the source's certificate can be verified.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The strongest mode that works for the host.
    pub sslmode: SslMode,
    /// Why it is the strongest.
    pub reason: String,
    /// `spec.tls` of the resource names a certificate.
    pub given: bool,
    /// The mode that SOURCE_SSLMODE requests.
    pub asked: SslMode,
}

/// State of the server that is not a parameter.
#[derive(Clone, Debug)]
pub struct Server {
    /// System identifier, timeline, version.
    pub identity: Identity,
    /// Tablespaces other than pg_default and pg_global.
    pub tablespaces: Vec<String>,
    /// Names of the logical replication slots.
    pub logical_slots: Vec<String>,
    /// Number of replication slots of all kinds.
    pub slots: u32,
    /// Number of active WAL senders.
    pub senders: u32,
    /// One of these WAL senders serves the target.
    pub target_streams: bool,
    /// Number of prepared transactions that are neither committed nor rolled back.
    pub prepared_transactions: u32,
    /// Transactions open for more than five minutes: role, database, minutes.
    pub long_transactions: Vec<(String, String, i64)>,
    /// Average bytes of WAL per second since the statistics were reset; None when that was too
    /// recently.
    pub wal_bytes_per_second: Option<u64>,
    /// Libraries that sessions load: the scope of the setting (a role, a database, the
    /// configuration) and its comma-separated list.
    pub session_libraries: Vec<(String, String)>,
}

/// A parameter of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// As SHOW prints it, with its unit.
    pub value: String,
    /// In the parameter's base unit (pg_settings.setting).
    pub raw: String,
    /// The built-in default (pg_settings.boot_val).
    pub boot: String,
    /// Where the value comes from (pg_settings.source).
    pub source: String,
    /// A new value takes effect at the next restart.
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
    /// VALID UNTIL has passed, so the password is not accepted.
    pub expired: bool,
    /// How its password is stored; None when it has no password.
    pub hash: Option<Kind>,
}

/// A database and the relevant part of its contents.
#[derive(Clone, Debug, Default)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Locale provider: `c` libc, `i` ICU, `b` builtin.
    pub provider: char,
    /// LC_COLLATE.
    pub collate: String,
    /// Collation version recorded in the catalog; None where the collation has none.
    pub recorded_version: Option<String>,
    /// Collation version that the source's operating system provides now.
    pub actual_version: Option<String>,
    /// Number of indexes whose order depends on the operating system's collations.
    pub collated_indexes: u32,
    /// Names of the installed extensions.
    pub extensions: Vec<String>,
    /// Number of unlogged tables, and the names of at most five of them.
    pub unlogged: (u32, Vec<String>),
    /// Names of the enabled event triggers.
    pub event_triggers: Vec<String>,
    /// Number of active jobs of pg_cron.
    pub cron_jobs: u32,
}

/// The replication role, and whether its password is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Its name.
    pub role: String,
    /// How its Secret compares with the password that the source stores.
    pub password: Password,
}

/// How the password in a Secret compares with a role's stored hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Password {
    /// The Secret holds the role's password.
    Matches,
    /// The Secret holds another password.
    Differs,
    /// The role does not exist, or has no password.
    Unset,
    /// The Secret does not exist, or belongs to another role.
    NoSecret,
}

/// The existing target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// It is a replica cluster that follows a source.
    pub follows: bool,
    /// Its system identifier; empty until it has data.
    pub system_identifier: String,
    /// Its timeline, which CloudNativePG reports of a primary only.
    pub timeline: Option<u32>,
}

impl Facts {
    /// A parameter's value as SHOW prints it; empty when the server does not know it.
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", |setting| &setting.value)
    }
    /// A parameter's numeric value in its base unit; 0 when it is not a number.
    pub fn number(&self, name: &str) -> u64 {
        self.settings
            .get(name)
            .and_then(|setting| setting.raw.parse().ok())
            .unwrap_or(0)
    }
    /// Finds a role by name.
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.iter().find(|role| role.name == name)
    }
    /// Finds a database by name.
    pub fn database(&self, name: &str) -> Option<&Database> {
        self.databases.iter().find(|database| database.name == name)
    }
    /// Size of all databases in bytes.
    pub fn bytes(&self) -> u64 {
        self.databases.iter().map(|database| database.bytes).sum()
    }
    /// What the target gets of the source's pg_hba.
    pub fn clients(&self) -> Clients {
        clients(&self.hba, !self.md5_roles().is_empty())
    }
    /// Roles that may log in and have an md5 hash.
    pub fn md5_roles(&self) -> Vec<&str> {
        let md5 = self
            .roles
            .iter()
            .filter(|role| role.login && role.hash == Some(Kind::Md5));
        md5.map(|role| role.name.as_str()).collect()
    }
}
