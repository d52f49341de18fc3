//! Observes the source and the target: reads everything that the findings and the manifest need,
//! and changes nothing.

use job::pods::Pod as KubePod;
use job::{
    config::{Connection, SslMode},
    context::JobContext,
    error::{Context as _, Error, Result},
    kubernetes,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::ListParams};
use platform::{
    kubernetes::{
        cnpg,
        source_tls::{self, SourceTls},
        zalando::{self, Postgresql},
    },
    patroni::{self, Patroni},
    postgres::{self, Credentials, Source, in_recovery, read_secret},
};
use secrecy::SecretString;
use serde_json::{Map, Value};

use crate::{
    cnpg_roles,
    facts::{Database, Facts, Login, Password, Pod, Pooler, Resource, Target, Tls},
    findings::{self, access as access_findings},
    queries,
    settings::Settings,
    stored_password, target_patch,
};

/// The application_name of this program's sessions.
pub const APPLICATION: &str = "replica-migration-prepare-zalando";

const UNREACHABLE: &str = "check that SOURCE_HOST is the Service of the leader, that it has \
    endpoints, and that no NetworkPolicy blocks the connection";

/// What was observed, and how to connect again.
pub struct Observation {
    /// Facts without secrets, for the findings and the manifest.
    pub facts: Facts,
    /// Passwords and hashes.
    pub secrets: Secrets,
    /// Access to the source's leader.
    pub source: SourceAccess,
}

/// Passwords and hashes, which never access a log.
pub struct Secrets {
    /// The superuser's password, from its mounted file.
    pub superuser: SecretString,
    /// The replication role's password; None when no Secret holds it yet.
    pub replication: Option<SecretString>,
    /// The database owner's hash as the source stores it; None when the owner has no password.
    pub owner_hash: Option<SecretString>,
}

/// Access to the source's leader as a superuser.
pub struct SourceAccess {
    /// How to connect, with the strongest sslmode that the certificate allows rather than the
    /// requested one.
    pub connection: Connection,
    /// The CA that verifies the server's certificate, in PEM; None when it is not verified.
    pub ca_pem: Option<String>,
    password: SecretString,
}

impl SourceAccess {
    /// Opens a session in a database of the leader.
    ///
    /// # Errors
    /// Those of [`postgres::connect_with`].
    pub async fn open(&self, database: &str) -> Result<Source> {
        let session = postgres::connect_with(
            &self.connection,
            &self.credentials(&self.password),
            database,
            APPLICATION,
        )
        .await?;
        Ok(Source(session))
    }

    /// Credentials with this password and the source's CA.
    pub fn credentials(&self, password: &SecretString) -> Credentials {
        Credentials {
            password: password.clone(),
            ca: self.ca_pem.clone().map(String::into_bytes),
            client: None,
        }
    }
}

/// Observes the source and the target.
///
/// # Errors
/// Config when a named object does not exist; Refused when the source has no leader, SOURCE_HOST
/// leads to a standby, the certificate fails verification, or SOURCE_USER is not a superuser.
pub async fn observe(
    run: &JobContext,
    settings: &Settings,
    connection: &Connection,
    cr: &Postgresql,
) -> Result<Observation> {
    let target_patch = target_patch::read(run, settings).await?;
    let (pod, members) = pods(run, settings).await?;
    let patroni = dynamic_configuration(run, settings).await?;
    let source_tls = source_tls::read(&run.client, &run.namespace, cr).await?;
    let tls = tls(&source_tls, connection);
    if let Some(blocker) = access_findings::unverified(&tls) {
        findings::refuse(&[blocker])?;
    }
    let target = target(run, settings).await?;
    let password = read_secret(&connection.password_file)?;
    let connection = Connection {
        sslmode: tls.sslmode,
        ..connection.clone()
    };
    let ca_pem = source_tls
        .ca_pem()?
        .filter(|_| tls.sslmode != SslMode::Require);
    let access = SourceAccess {
        connection,
        ca_pem,
        password: password.clone(),
    };
    let source = access
        .open("postgres")
        .await
        .map_err(|error| error.hint(UNREACHABLE))?;
    check_is_leader(&source, &access).await?;
    let replication = replication_password(run, settings).await?;
    let databases = databases(&source, &access).await?;
    let owner = databases
        .iter()
        .find(|database| database.name == settings.database.as_str())
        .map(|database| database.owner.clone());
    let role = settings.source_auth.role();
    let stored = queries::stored_hash(&source, role).await?;
    let facts = Facts {
        namespace: run.namespace.clone(),
        host: access.connection.host.to_string(),
        port: access.connection.port,
        user: access.connection.user.to_string(),
        resource: facts_of(cr),
        pod,
        members,
        patroni,
        tls,
        server: queries::server(&source, &settings.target_cluster).await?,
        settings: queries::settings(&source).await?,
        auto_conf: queries::auto_conf(&source).await?,
        hba: queries::hba_rules(&source).await?,
        roles: queries::roles(&source).await?,
        databases,
        cnpg_roles: cnpg_roles::database::existing(&source).await?,
        login: Login {
            role: role.into(),
            password: compare(stored.as_ref(), replication.as_ref(), role),
        },
        target,
        target_patch,
    };
    let owner_hash = match owner {
        Some(owner) => queries::stored_hash(&source, &owner).await?,
        None => None,
    };
    let secrets = Secrets {
        superuser: password,
        replication,
        owner_hash,
    };
    Ok(Observation {
        facts,
        secrets,
        source: access,
    })
}

/// Reads the `postgresql` resource.
///
/// # Errors
/// Config when it does not exist.
pub async fn resource(run: &JobContext, settings: &Settings) -> Result<Postgresql> {
    let name = &settings.source_cluster;
    kubernetes::get(&zalando::postgresqls(&run.client, &run.namespace), name)
        .await?
        .ok_or_else(|| {
            Error::config(format!(
                "postgresql {name} does not exist in namespace {}",
                run.namespace
            ))
            .hint(
                "correct SOURCE_CLUSTER in the ConfigMap replica-migration, or run this in \
                    the namespace of the source",
            )
        })
}

fn facts_of(cr: &Postgresql) -> Resource {
    let (asked, defaults) = (
        cr.spec.connection_pooler.clone().unwrap_or_default(),
        Pooler::default(),
    );
    Resource {
        pg_hba: cr
            .spec
            .patroni
            .as_ref()
            .and_then(|patroni| patroni.pg_hba.clone())
            .filter(|list| !list.is_empty()),
        suspended: cr.is_suspended(),
        pooler: Pooler {
            mode: asked.mode.unwrap_or(defaults.mode),
            instances: asked.number_of_instances.unwrap_or(defaults.instances),
            max_db_connections: asked
                .max_db_connections
                .unwrap_or(defaults.max_db_connections),
        },
        affinity: affinity(cr),
        priority_class: given(cr.spec.pod_priority_class_name.as_ref()),
        scheduler: given(cr.spec.scheduler_name.as_ref()),
    }
}

fn given(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

/// Tolerations and node affinity have the same form in both resources.
fn affinity(cr: &Postgresql) -> Option<Value> {
    let parts = [
        ("tolerations", &cr.spec.tolerations),
        ("nodeAffinity", &cr.spec.node_affinity),
    ];
    let parts: Map<String, Value> = parts
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)))
        .collect();
    (!parts.is_empty()).then_some(Value::Object(parts))
}

/// The leader's pod, and the number of members.
async fn pods(run: &JobContext, settings: &Settings) -> Result<(Pod, u32)> {
    let pods: Api<KubePod> = Api::namespaced(run.client.clone(), &run.namespace);
    let selector =
        ListParams::default().labels(&zalando::member_selector(&settings.source_cluster));
    let list = pods
        .list(&selector)
        .await
        .context("listing the members of the source")?;
    let leader = list.iter().find(|pod| {
        matches!(
            pod.labels().get("spilo-role").map(String::as_str),
            Some("master" | "primary")
        )
    });
    let leader = leader.ok_or_else(|| {
        Error::refused(format!(
            "postgresql {} has no leader: none of its {} pods carries the label spilo-role=master",
            settings.source_cluster,
            list.items.len()
        ))
        .hint("bring the source up first; patronictl list in one of its pods shows its state")
    })?;
    let container = leader.container("postgres");
    let resources = container.and_then(|container| container.resources.clone());
    let pod = Pod {
        name: leader.name_any(),
        resources: resources.filter(|resources| {
            resources.get("limits").is_some() || resources.get("requests").is_some()
        }),
        old_locales: container.and_then(|container| container.value("USE_OLD_LOCALES"))
            == Some("true"),
    };
    Ok((pod, list.items.len() as u32))
}

async fn dynamic_configuration(run: &JobContext, settings: &Settings) -> Result<Value> {
    let members = patroni::members(&run.client, &run.namespace, &settings.source_cluster).await?;
    let leader = members.first().filter(|member| member.leader);
    let leader = leader.ok_or_else(|| {
        Error::transient(
            "the leader of the source is not registered yet (its pod has no Patroni annotation \
             status)",
        )
    })?;
    let answer = Patroni::default().config(leader).await;
    answer.map_err(|error| {
        error.hint(
            "every step needs Patroni's REST API: check that no NetworkPolicy blocks port 8008",
        )
    })
}

fn tls(source: &SourceTls, connection: &Connection) -> Tls {
    let (sslmode, reason) = source.best_sslmode(&connection.host);
    Tls {
        sslmode,
        reason,
        given: matches!(source, SourceTls::Given(_)),
        asked: connection.sslmode,
    }
}

async fn target(run: &JobContext, settings: &Settings) -> Result<Option<Target>> {
    let found = kubernetes::get(
        &cnpg::clusters(&run.client, &run.namespace),
        &settings.target_cluster,
    )
    .await?;
    Ok(found.map(|cluster| {
        let status = cluster.status.clone().unwrap_or_default();
        Target {
            follows: cluster.follows(),
            system_identifier: status.system_id,
            timeline: status.timeline_id,
        }
    }))
}

async fn check_is_leader(source: &Source, access: &SourceAccess) -> Result<()> {
    let endpoint = postgres::endpoint(&access.connection);
    if in_recovery(source).await? {
        return Err(
            Error::refused(format!("{endpoint} leads to a standby, not to the leader")).hint(
                "set SOURCE_HOST to the Service of the leader, which has the name of the \
                postgresql resource",
            ),
        );
    }
    if !queries::is_superuser(source).await? {
        return Err(Error::refused(format!(
            "{} is not a superuser at {endpoint}",
            access.connection.user
        ))
        .hint("set SOURCE_USER=postgres and mount its Secret"));
    }
    Ok(())
}

/// Reads the replication role's password; None when the Secret does not exist, belongs to another
/// role, or holds no password.
pub async fn replication_password(
    run: &JobContext,
    settings: &Settings,
) -> Result<Option<SecretString>> {
    let secrets: Api<Secret> = Api::namespaced(run.client.clone(), &run.namespace);
    let Some(secret) = kubernetes::get(&secrets, &access_findings::secret(settings)).await? else {
        return Ok(None);
    };
    let text = |key: &str| {
        Some(
            String::from_utf8_lossy(&secret.data.as_ref()?.get(key)?.0)
                .trim_end()
                .to_owned(),
        )
    };
    let is_of_role = text("username").as_deref() == Some(settings.source_auth.role());
    Ok(text("password")
        .filter(|password| is_of_role && !password.is_empty())
        .map(SecretString::from))
}

/// Compares a password with a stored hash.
pub fn compare(
    stored: Option<&SecretString>,
    password: Option<&SecretString>,
    role: &str,
) -> Password {
    match (stored, password) {
        (_, None) => Password::NoSecret,
        (None, Some(_)) => Password::Unset,
        (Some(stored), Some(password)) if stored_password::matches(stored, password, role) => {
            Password::Matches
        }
        (Some(_), Some(_)) => Password::Differs,
    }
}

async fn databases(source: &Source, access: &SourceAccess) -> Result<Vec<Database>> {
    let mut databases = queries::databases(source).await?;
    for database in &mut databases {
        let session = access.open(&database.name).await?;
        queries::contents(&session, database).await?;
    }
    Ok(databases)
}
