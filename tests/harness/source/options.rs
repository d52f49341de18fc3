//! Options of the source; the default is the example on operator 1.15.

use crate::setup::POSTGRES_MAJOR;

/// How Patroni keeps its state in Kubernetes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dcs {
    /// Endpoints `CL`, `CL-config`: operator 1.x.
    #[default]
    Endpoints,
    /// ConfigMaps `CL-leader`, `CL-config`: operator 2.x.
    ConfigMaps,
}

/// The source's certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// `spec.tls` names a Secret with a server certificate for the Service's names, signed by an
    /// intermediate CA, and a CA Secret with the intermediate, its key (`tls.crt`, `tls.key`) and
    /// the root (`ca.crt`).
    #[default]
    Server,
    /// Like [`Tls::Server`], but the CA Secret has only the root's certificate, so no client
    /// certificate can be signed.
    ServerWithoutCaKey,
    /// Like [`Tls::Server`], for these names instead of the Service's.
    ServerNamed(Vec<String>),
    /// Like [`Tls::Server`], but the certificate expired an hour ago.
    Expired,
    /// Like [`Tls::Server`], but the CA Secret has another CA than the one that signed the
    /// certificate.
    ForeignCa,
    /// No `spec.tls`: Spilo creates a self-signed certificate in each pod, for `spilo.example.org`.
    SelfSigned,
}

/// How passwords are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hashes {
    /// md5, and `password_encryption = md5` in postgresql.base.conf: operator 1.x.
    #[default]
    Md5,
    /// SCRAM-SHA-256: operator 2.x.
    Scram,
}

/// Data checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksums {
    /// Off, the default of a resource without `patroni.initdb`.
    #[default]
    Off,
    /// On: requested by the resource.
    On,
}

/// Options of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOptions {
    /// Namespace of all objects.
    pub namespace: String,
    /// Name of the `postgresql` resource.
    pub cluster: String,
    /// Name of the application's database and of its owner.
    pub database: String,
    /// Major version of PostgreSQL.
    pub postgres: u32,
    /// Patroni's state.
    pub dcs: Dcs,
    /// Certificates.
    pub tls: Tls,
    /// Password hashes.
    pub hashes: Hashes,
    /// Data checksums.
    pub checksums: Checksums,
    /// The collation version recorded in pg_database, if it is to differ from this machine's glibc:
    /// Spilo 4.0 has 2.35.
    pub collation_version: Option<String>,
    /// `wal_level`; Spilo's is `hot_standby`, and `logical` where logical slots are used.
    pub wal_level: &'static str,
    /// Members, 1 or 2.
    pub members: u8,
    /// Rows of `statuses`; `accounts` has a quarter and `users` an eighth of it.
    pub rows: u32,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            namespace: "mastodon".into(),
            cluster: "mastodon-postgresql".into(),
            database: "mastodon".into(),
            postgres: POSTGRES_MAJOR,
            dcs: Dcs::default(),
            tls: Tls::default(),
            hashes: Hashes::default(),
            checksums: Checksums::default(),
            collation_version: None,
            wal_level: "hot_standby",
            members: 2,
            rows: 8000,
        }
    }
}
