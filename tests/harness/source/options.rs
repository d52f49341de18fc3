//! What a test chooses about the source; the default is the scenario of the guide on operator 1.15.

/// How Patroni keeps its state in Kubernetes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dcs {
    /// Endpoints `CL`, `CL-config`: operator 1.x.
    #[default]
    Endpoints,
    /// ConfigMaps `CL-leader`, `CL-config`: operator 2.x.
    ConfigMaps,
}

/// The server's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// `spec.tls` names a Secret with a certificate for servers only, for the names of the Service,
    /// signed by an intermediate CA, and a CA Secret that holds the intermediate with its key
    /// (`tls.crt`, `tls.key`) and the root (`ca.crt`).
    #[default]
    Server,
    /// As [`Tls::Server`], but the CA Secret holds the root's certificate only: no client
    /// certificate can be made.
    ServerWithoutCaKey,
    /// As [`Tls::Server`], for these names instead of the Service's.
    ServerNamed(Vec<String>),
    /// As [`Tls::Server`], but the certificate ended an hour ago.
    Expired,
    /// As [`Tls::Server`], but the CA Secret holds another CA than the one that signed.
    ForeignCa,
    /// No `spec.tls`: Spilo makes a self-signed certificate in each pod, for `spilo.example.org`.
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
    /// Off: what a resource without `patroni.initdb` gives.
    #[default]
    Off,
    /// On: the resource asked for them.
    On,
}

/// All choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOptions {
    /// Namespace of everything.
    pub namespace: String,
    /// Name of the `postgresql` resource.
    pub cluster: String,
    /// Name of the application's database and of its owner.
    pub database: String,
    /// Patroni's state.
    pub dcs: Dcs,
    /// Certificates.
    pub tls: Tls,
    /// Password hashes.
    pub hashes: Hashes,
    /// Data checksums.
    pub checksums: Checksums,
    /// What pg_database says of the collations' version in all databases, when it is not this
    /// machine's glibc: Spilo 4.0 has 2.35.
    pub collation_version: Option<String>,
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
            dcs: Dcs::default(),
            tls: Tls::default(),
            hashes: Hashes::default(),
            checksums: Checksums::default(),
            collation_version: None,
            members: 2,
            rows: 8000,
        }
    }
}
