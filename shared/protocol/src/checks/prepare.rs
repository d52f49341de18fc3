//! The ids of prepare-zalando's findings. That program judges the source before a target exists,
//! so its checks are not in the list of all checks; but ACCEPT is one setting for all programs, so
//! each of them knows these ids.

use strum::{IntoStaticStr, VariantArray};

/// What a finding of prepare-zalando is about; its name in kebab-case is what ACCEPT names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Id {
    /// `postgresql.auto.conf` sets a parameter.
    AlterSystem,
    /// A role that CloudNativePG needs exists and was not created by prepare-zalando.
    CnpgRoleConflict,
    /// The two sides sort text with different library versions.
    CollationVersion,
    /// The source's collations have changed since the database was created.
    CollationVersionStale,
    /// Jobs of pg_cron end with the cutover.
    CronJobs,
    /// The resource has its own pg_hba list, which the target does not inherit.
    CustomPgHba,
    /// The source has no data checksums.
    DataChecksums,
    /// The source lacks the application's database.
    DatabaseMissing,
    /// Event triggers are copied.
    EventTriggers,
    /// The target's image lacks an extension.
    ExtensionMissing,
    /// Whether the target's image has an extension is unknown.
    ExtensionUnknown,
    /// The source has too few free replication slots.
    FreeReplicationSlots,
    /// The source has too few free WAL senders.
    FreeWalSenders,
    /// The tag of the target's image moves.
    ImageNotPinned,
    /// The target's image lacks a locale.
    LocaleMissing,
    /// A logical slot is not copied.
    LogicalSlot,
    /// Transactions have been open for long.
    LongTransactions,
    /// Source and target image have different major versions.
    MajorVersion,
    /// Passwords are stored as md5.
    Md5Passwords,
    /// The source requests less memory than CloudNativePG accepts.
    MemoryRequest,
    /// The target's image is older than the source.
    MinorVersion,
    /// A change of the resource is needed, and the operator is suspended.
    OperatorSuspended,
    /// The owner of the database has no password.
    OwnerWithoutPassword,
    /// The source would store new passwords as md5.
    PasswordEncryption,
    /// Patroni is paused.
    PatroniPaused,
    /// A parameter changes at the source's next restart.
    PendingRestart,
    /// pg_hba admits the replication role from some addresses only.
    PgHbaAddress,
    /// The server cannot use its pg_hba.
    PgHbaInvalid,
    /// pg_hba asks for SCRAM, and the password is stored as md5.
    PgHbaMethod,
    /// pg_hba has no line for the replication role.
    PgHbaMissing,
    /// pg_hba rejects the replication role.
    PgHbaRejects,
    /// The source preloads a library that the target does not.
    PreloadedLibrary,
    /// Prepared transactions are open.
    PreparedTransactions,
    /// The Secret does not hold the replication role's password.
    ReplicationPasswordDiffers,
    /// The replication role has no password.
    ReplicationPasswordUnset,
    /// The replication role lacks attributes.
    ReplicationRoleAttributes,
    /// The replication role's password has expired.
    ReplicationRoleExpired,
    /// The replication role does not exist.
    ReplicationRoleMissing,
    /// The replication role's Secret does not exist.
    ReplicationSecretMissing,
    /// A change of pg_hba restarts the source's pods.
    RollingUpdate,
    /// Every session loads a library that the target lacks.
    SessionLibraries,
    /// SOURCE_HOST leads to another cluster.
    SourceHostOtherCluster,
    /// SOURCE_USER is not `postgres`.
    SourceUser,
    /// Extensions that only Spilo uses are copied.
    SpiloExtensions,
    /// Libraries that only Spilo preloads are left out.
    SpiloLibraries,
    /// The copy begins with a slow checkpoint.
    SpreadCheckpoint,
    /// The source is itself a standby cluster.
    StandbyCluster,
    /// The source has no superuser `postgres`.
    SuperuserMissing,
    /// Commits at the source wait for a standby.
    SynchronousMode,
    /// A tablespace cannot be copied.
    Tablespace,
    /// The target exists already and follows the source.
    TargetExists,
    /// Source and target have the same name.
    TargetNameCollision,
    /// The target's name is not valid.
    TargetNameInvalid,
    /// The target exists and holds other data.
    TargetOtherData,
    /// The target exists and follows no source.
    TargetPromoted,
    /// The source's certificate fails verification.
    TlsUnverified,
    /// The manifest gets a weaker `sslmode` than `verify-full`.
    TlsWeaker,
    /// Unlogged tables will be empty.
    UnloggedTables,
    /// The target's volume has no room for a second clone.
    VolumeTight,
    /// The target's volume is too small.
    VolumeTooSmall,
    /// The Cluster archives no WAL and takes no backups.
    WalArchive,
    /// The source keeps too little WAL for an outage of the target.
    WalKeepSize,
    /// `wal_level` is `minimal`.
    WalLevel,
}

/// All ids of prepare-zalando's findings.
pub fn ids() -> impl Iterator<Item = &'static str> {
    Id::VARIANTS.iter().map(|id| id.into())
}
