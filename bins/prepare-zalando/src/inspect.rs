//! Reads everything that the findings and the manifest need, and changes nothing.

use job::pods::Pod as KubePod;
use job::{
    config::{Connection, SslMode},
    context::Run,
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
use secrecy::ExposeSecret as _;

use crate::{
    cnpg_roles,
    facts::{Database, Facts, Login, Password, Pod, Pooler, Resource, Target, Tls},
    findings::access,
    hidden::Hidden,
    queries, scram,
    settings::Settings,
};

/// What the sessions of this step are called in pg_stat_activity.
pub const APPLICATION: &str = "replica-migration-prepare-zalando";

const UNREACHED: &str = "is SOURCE_HOST the Service of the leader, has it endpoints, and does no \
    NetworkPolicy stand in the way?";

/// What was read: facts without secrets, the secrets apart, and how to ask for more.
pub struct Seen {
    /// For findings and manifest.
    pub facts: Facts,
    /// Passwords and hashes.
    pub secrets: Secrets,
    /// How the leader is reached, with the sslmode that its certificate allows.
    pub reach: Reach,
}

/// Passwords and hashes, which never leave for a log.
pub struct Secrets {
    /// Of the superuser, as mounted.
    pub superuser: Hidden,
    /// Of the role that will replicate; None when no Secret holds one yet.
    pub replication: Option<Hidden>,
    /// What the source stores of the owner; None when the owner has no password.
    pub owner_hash: Option<Hidden>,
}

/// The leader, as a superuser.
pub struct Reach {
    /// With the mode that works, not the one that was asked for.
    pub connection: Connection,
    /// The CA to check it with.
    pub ca_pem: Option<String>,
    password: Hidden,
}

impl Reach {
    /// Opens a session to a database of the leader.
    ///
    /// # Errors
    /// As [`postgres::connect`].
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

    /// What a login with this password needs.
    pub fn credentials(&self, password: &Hidden) -> Credentials {
        Credentials {
            password: password.reveal().into(),
            ca: self.ca_pem.clone().map(String::into_bytes),
            client: None,
        }
    }
}

/// Looks at both sides.
///
/// # Errors
/// Config for names that lead nowhere; Refused when there is nobody to ask: no leader, a standby, a
/// certificate that cannot be checked, no superuser.
pub async fn everything(run: &Run, settings: &Settings, connection: &Connection) -> Result<Seen> {
    let cr = resource(run, settings).await?;
    let (pod, members) = pods(run, settings).await?;
    let patroni = dynamic_configuration(run, settings).await?;
    let source_tls = source_tls::read(&run.client, &run.namespace, &cr).await?;
    let tls = tls(&source_tls, connection);
    if let Some(blocker) = access::unverified(&tls) {
        return Err(Error::refused(blocker.what).hint(blocker.remedy));
    }
    let target = target(run, settings).await?;
    let password = Hidden::new(read_secret(&connection.password_file)?.expose_secret());
    let connection = Connection {
        sslmode: tls.sslmode,
        ..connection.clone()
    };
    let ca_pem = source_tls
        .ca_pem()?
        .filter(|_| tls.sslmode != SslMode::Require);
    let reach = Reach {
        connection,
        ca_pem,
        password: password.clone(),
    };
    let source = reach
        .open("postgres")
        .await
        .map_err(|error| error.hint(UNREACHED))?;
    leads(&source, &reach).await?;
    let replication = replication_password(run, settings).await?;
    let databases = databases(&source, &reach).await?;
    let owner = databases
        .iter()
        .find(|database| database.name == settings.database.as_str())
        .map(|database| database.owner.clone());
    let role = settings.source_auth.role();
    let stored = queries::stored_hash(&source, role).await?;
    let facts = Facts {
        namespace: run.namespace.clone(),
        host: reach.connection.host.to_string(),
        port: reach.connection.port,
        user: reach.connection.user.to_string(),
        resource: facts_of(&cr),
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
        cnpg_roles: cnpg_roles::seen(&source).await?,
        login: Login {
            role: role.into(),
            password: compare(stored.as_ref(), replication.as_ref(), role),
        },
        target,
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
    Ok(Seen {
        facts,
        secrets,
        reach,
    })
}

/// The `postgresql` resource.
///
/// # Errors
/// Config when it does not exist.
pub async fn resource(run: &Run, settings: &Settings) -> Result<Postgresql> {
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
        frozen: cr.frozen(),
        pooler: Pooler {
            mode: asked.mode.unwrap_or(defaults.mode),
            instances: asked.number_of_instances.unwrap_or(defaults.instances),
            max_db_connections: asked
                .max_db_connections
                .unwrap_or(defaults.max_db_connections),
        },
    }
}

/// The leader's pod, and how many members there are.
async fn pods(run: &Run, settings: &Settings) -> Result<(Pod, u32)> {
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
        .hint("bring the source up first; patronictl list in one of its pods says what is wrong")
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

async fn dynamic_configuration(run: &Run, settings: &Settings) -> Result<serde_json::Value> {
    let members = patroni::members(&run.client, &run.namespace, &settings.source_cluster).await?;
    let leader = members.first().filter(|member| member.leader);
    let leader = leader.ok_or_else(|| {
        Error::transient(
            "the leader of the source has not written its address into its pod's annotation yet",
        )
    })?;
    let answer = Patroni::default().config(leader).await;
    answer.map_err(|error| {
        error.hint(
            "every step needs Patroni's REST API: is a NetworkPolicy in the way of port 8008?",
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

async fn target(run: &Run, settings: &Settings) -> Result<Option<Target>> {
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

async fn leads(source: &Source, reach: &Reach) -> Result<()> {
    let endpoint = postgres::endpoint(&reach.connection);
    if in_recovery(source).await? {
        return Err(
            Error::refused(format!("{endpoint} leads to a standby, not to the leader")).hint(
                "let SOURCE_HOST name the Service of the leader, which has the name of the \
                postgresql resource",
            ),
        );
    }
    if !queries::is_superuser(source).await? {
        return Err(Error::refused(format!(
            "{} is no superuser at {endpoint}",
            reach.connection.user
        ))
        .hint("set SOURCE_USER=postgres and mount its Secret"));
    }
    Ok(())
}

/// What a Secret at hand says about the role that will replicate.
///
/// # Errors
/// The API's.
pub async fn replication_password(run: &Run, settings: &Settings) -> Result<Option<Hidden>> {
    let secrets: Api<Secret> = Api::namespaced(run.client.clone(), &run.namespace);
    let Some(secret) = kubernetes::get(&secrets, &access::secret(settings)).await? else {
        return Ok(None);
    };
    let text = |key: &str| {
        Some(
            String::from_utf8_lossy(&secret.data.as_ref()?.get(key)?.0)
                .trim_end()
                .to_owned(),
        )
    };
    let fits = text("username").as_deref() == Some(settings.source_auth.role());
    Ok(text("password")
        .filter(|password| fits && !password.is_empty())
        .map(Hidden::new))
}

/// What a password is to a stored hash.
pub fn compare(stored: Option<&Hidden>, password: Option<&Hidden>, role: &str) -> Password {
    match (stored, password) {
        (_, None) => Password::NoSecret,
        (None, Some(_)) => Password::Unset,
        (Some(stored), Some(password)) if scram::matches(stored, password, role) => {
            Password::Matches
        }
        (Some(_), Some(_)) => Password::Differs,
    }
}

async fn databases(source: &Source, reach: &Reach) -> Result<Vec<Database>> {
    let mut databases = queries::databases(source).await?;
    for database in &mut databases {
        let session = reach.open(&database.name).await?;
        queries::contents(&session, database).await?;
    }
    Ok(databases)
}
