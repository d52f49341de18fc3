//! Writes the Secrets that the Cluster refers to. A Secret that is up to date is left unchanged.

use std::collections::BTreeMap;

use job::{
    context::JobContext,
    error::{Error, Result},
    kubernetes,
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, api::ObjectMeta};
use protocol::record::labels;
use secrecy::{ExposeSecret as _, SecretString};

/// CloudNativePG only needs the keys username and password; the type describes
/// them to users.
const TYPE: &str = "kubernetes.io/basic-auth";
/// Label that makes CloudNativePG read a Secret again when it changes.
const RELOAD: &str = "cnpg.io/reload";

/// What writing an object did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The object did not exist.
    Created,
    /// The object existed with other contents.
    Changed,
    /// The object was up to date.
    Unchanged,
}

impl Outcome {
    /// Completes a sentence that begins with the object's name.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "is up to date",
        }
    }
}

/// Contents of a Secret with a role's login.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Name of the Secret.
    pub name: String,
    /// Name of the role.
    pub username: String,
    /// The password, or its hash as the source stores it.
    pub password: SecretString,
}

/// What [`write()`] would do.
pub async fn compare(run: &JobContext, wanted: &Credentials) -> Result<Outcome> {
    let found = kubernetes::get(&secrets(run), &wanted.name).await?;
    Ok(compared(found.as_ref(), &data(wanted)))
}

/// Creates or changes the Secret, unless it is up to date.
///
/// # Errors
/// Unsafe when the API server holds other contents afterwards.
pub async fn write(run: &JobContext, wanted: &Credentials) -> Result<Outcome> {
    let (secrets, data) = (secrets(run), data(wanted));
    let found = kubernetes::get(&secrets, &wanted.name).await?;
    let outcome = compared(found.as_ref(), &data);
    if outcome == Outcome::Unchanged {
        return Ok(outcome);
    }
    // The type of a Secret is immutable: a Secret created by another client keeps its type.
    let kind = found
        .and_then(|secret| secret.type_)
        .unwrap_or_else(|| TYPE.into());
    let mut labels = labels();
    labels.insert(RELOAD.into(), "true".into());
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(wanted.name.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        data: Some(data.clone()),
        type_: Some(kind),
        ..Secret::default()
    };
    let held = kubernetes::apply(&secrets, &wanted.name, &secret).await?;
    if compared(Some(&held), &data) == Outcome::Unchanged {
        return Ok(outcome);
    }
    Err(Error::manual_intervention(format!(
        "secret {} has other contents than were just written",
        wanted.name
    ))
    .hint("find the controller that changes this Secret, stop it, and run this step again"))
}

fn secrets(run: &JobContext) -> Api<Secret> {
    Api::namespaced(run.client.clone(), &run.namespace)
}

fn data(wanted: &Credentials) -> BTreeMap<String, ByteString> {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    [
        ("username".to_owned(), bytes(&wanted.username)),
        (
            "password".to_owned(),
            bytes(wanted.password.expose_secret()),
        ),
    ]
    .into()
}

fn compared(found: Option<&Secret>, data: &BTreeMap<String, ByteString>) -> Outcome {
    let Some(secret) = found else {
        return Outcome::Created;
    };
    let held = |key: &String| secret.data.as_ref().and_then(|data| data.get(key));
    if data.iter().all(|(key, value)| held(key) == Some(value)) {
        Outcome::Unchanged
    } else {
        Outcome::Changed
    }
}
