//! The Secrets that this program reads and writes.

use std::collections::BTreeMap;

use job::{
    config::NonEmptyString,
    context::JobContext,
    error::{Context as _, Error, Result, is_not_found},
    kubernetes,
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ObjectMeta, Preconditions},
};
use platform::postgres::ClientCertificate;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use crate::client_certificate::PresentedCertificate;

/// The login of the target's WAL receiver; prepare-zalando writes it.
const LOGIN: &str = "zalando-streaming-replica";
/// The CA of the source.
const CA: &str = "zalando-replication-ca";
/// The target's client certificate.
const CLIENT: &str = "zalando-replication-tls";
/// The type of a Secret that must hold tls.crt and tls.key.
const TLS_TYPE: &str = "kubernetes.io/tls";
/// The type of a Secret that may hold anything.
const OPAQUE: &str = "Opaque";
/// CloudNativePG reads a Secret with this label again when it changes (its
/// api/v1/cluster_types.go, WatchedLabelName).
const WATCHED: &str = "cnpg.io/reload";

/// The replication role and its password.
pub(crate) struct Login {
    pub(crate) role: NonEmptyString,
    pub(crate) password: SecretString,
}

/// Reads the login.
///
/// # Errors
/// Refused when prepare-zalando has not written it.
pub(crate) async fn login(run: &JobContext) -> Result<Login> {
    let hint = "run prepare-zalando first: it writes this secret";
    let secret = kubernetes::get(&api(run), LOGIN).await?;
    let secret = secret
        .ok_or_else(|| Error::refused(format!("secret {LOGIN} does not exist")).hint(hint))?;
    let text = |key: &str| -> Result<NonEmptyString> {
        let bytes = secret
            .data
            .as_ref()
            .and_then(|data| data.get(key))
            .map(|value| value.0.clone());
        let text = bytes
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.parse().ok());
        text.ok_or_else(|| {
            Error::refused(format!("secret {LOGIN} has no text under {key}")).hint(hint)
        })
    };
    Ok(Login {
        role: text("username")?,
        password: text("password")?.as_str().into(),
    })
}

/// Reads the client certificate of an earlier run; None when there is none.
pub(crate) async fn client_certificate(run: &JobContext) -> Result<Option<ClientCertificate>> {
    let Some(secret) = kubernetes::get(&api(run), CLIENT).await? else {
        return Ok(None);
    };
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    Ok(text("tls.crt")
        .zip(text("tls.key"))
        .map(|(chain, key)| ClientCertificate {
            chain,
            key: key.into(),
        }))
}

/// A Secret to be written, and how it is reported.
struct Wanted {
    secret: Secret,
    /// Description of the contents, for the log.
    content: String,
    /// Reason of the Event.
    event: &'static str,
}

/// Writes both Secrets. A Secret without a certificate holds the reason instead.
///
/// # Errors
/// Refused when a Secret of another type, which this program did not create, has to be deleted
/// first; Transient when another client changes a Secret at the same time.
pub(crate) async fn write(
    run: &JobContext,
    ca: std::result::Result<&str, &str>,
    presented: &PresentedCertificate,
) -> Result<()> {
    put(run, &client_secret(presented)).await?;
    put(run, &ca_secret(ca)).await
}

fn client_secret(presented: &PresentedCertificate) -> Wanted {
    let (secret, content) = match presented {
        PresentedCertificate::Reused(ClientCertificate { chain, key })
        | PresentedCertificate::Issued(ClientCertificate { chain, key }) => (
            secret(
                CLIENT,
                TLS_TYPE,
                &[("tls.crt", chain), ("tls.key", key.expose_secret())],
            ),
            "client cert + key".to_owned(),
        ),
        PresentedCertificate::Absent(reason) => (
            secret(CLIENT, OPAQUE, &[("reason", reason)]),
            format!("no client cert: {reason}"),
        ),
    };
    Wanted {
        secret,
        content,
        event: "ClientSecretWritten",
    }
}

fn ca_secret(ca: std::result::Result<&str, &str>) -> Wanted {
    let (secret, content) = match ca {
        Ok(pem) => (
            secret(CA, OPAQUE, &[("ca.crt", pem)]),
            "CA certificate".to_owned(),
        ),
        Err(reason) => (
            secret(CA, OPAQUE, &[("reason", reason)]),
            format!("no CA certificate: {reason}"),
        ),
    };
    Wanted {
        secret,
        content,
        event: "CaSecretWritten",
    }
}

fn secret(name: &str, type_: &str, data: &[(&str, &str)]) -> Secret {
    let mut labels = protocol::record::labels();
    labels.insert(WATCHED.into(), "true".into());
    let data: BTreeMap<_, _> = data
        .iter()
        .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())))
        .collect();
    Secret {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        type_: Some(type_.into()),
        data: Some(data),
        ..Secret::default()
    }
}

/// Creates the Secret, or replaces its contents.
async fn put(
    run: &JobContext,
    Wanted {
        secret,
        content,
        event,
    }: &Wanted,
) -> Result<()> {
    let (secrets, name) = (api(run), secret.name_any());
    let existing = kubernetes::get(&secrets, &name).await?;
    if existing
        .as_ref()
        .is_some_and(|existing| holds(existing, secret))
    {
        run.report
            .info(format!("Unchanged secret: {name} ({content})"));
        return Ok(());
    }
    let verb = if existing.is_some() {
        "Replaced"
    } else {
        "Created"
    };
    if let Some(existing) = existing.filter(|existing| existing.type_ != secret.type_) {
        delete(&secrets, &existing).await?;
    }
    let mut written = kubernetes::apply(&secrets, &name, secret).await?;
    let extra = extra_keys(&written, secret);
    if !extra.is_empty() {
        // Server-side apply keeps the keys of other field managers. A certificate that another
        // client has written must not remain beside this program's.
        let removed: serde_json::Map<_, _> =
            extra.into_iter().map(|key| (key, Value::Null)).collect();
        written = kubernetes::merge(&secrets, &name, json!({"data": removed})).await?;
    }
    if !holds(&written, secret) {
        return Err(Error::transient(format!(
            "secret {name} has other contents than were just written"
        ))
        .hint("find the client that changes this Secret, stop it, and run this step again"));
    }
    run.report
        .step(event, format!("{verb} secret: {name} ({content})"));
    Ok(())
}

/// Deletes the Secret of the client certificate, so that it can be created with another type: the
/// type of a Secret is immutable, and it changes when a certificate becomes possible or impossible.
/// The preconditions keep a Secret that another client has created since.
async fn delete(secrets: &Api<Secret>, existing: &Secret) -> Result<()> {
    let name = existing.name_any();
    if name != CLIENT {
        return Err(Error::refused(format!(
            "secret {name} has another type than Opaque, and was not created by this program"
        ))
        .hint(format!(
            "delete it (kubectl delete secret {name}) and run this step again"
        )));
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: existing.metadata.uid.clone(),
            resource_version: existing.metadata.resource_version.clone(),
        }),
        ..DeleteParams::default()
    };
    match secrets.delete(&name, &params).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error).context(format!("deleting secret {name}, whose type must change")),
    }
}

fn holds(existing: &Secret, wanted: &Secret) -> bool {
    let has_labels = wanted
        .labels()
        .iter()
        .all(|(key, value)| existing.labels().get(key) == Some(value));
    existing.type_ == wanted.type_ && existing.data == wanted.data && has_labels
}

/// Keys of the written Secret that are not wanted.
fn extra_keys(written: &Secret, wanted: &Secret) -> Vec<String> {
    let wanted = wanted.data.clone().unwrap_or_default();
    let keys = written.data.iter().flat_map(BTreeMap::keys);
    keys.filter(|key| !wanted.contains_key(*key))
        .cloned()
        .collect()
}

fn api(run: &JobContext) -> Api<Secret> {
    Api::namespaced(run.client.clone(), &run.namespace)
}
