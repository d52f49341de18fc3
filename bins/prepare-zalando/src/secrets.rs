//! Writes the Secrets that the Cluster will refer to. What is right already is not touched.

use std::collections::BTreeMap;

use job::{
    context::Run,
    error::{Error, Result},
    kubernetes,
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, api::ObjectMeta};
use protocol::record::labels;

use crate::hidden::Hidden;

/// CloudNativePG reads the keys username and password only; the type is for people.
const TYPE: &str = "kubernetes.io/basic-auth";
/// Tells CloudNativePG to read a Secret again when it changes.
const RELOAD: &str = "cnpg.io/reload";

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was not there.
    Created,
    /// It was there, and different.
    Changed,
    /// It was right.
    Unchanged,
}

impl Written {
    /// For a sentence that begins with the object's name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "is right already",
        }
    }
}

/// A Secret of a role and its password, or its hash.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Name of the Secret.
    pub name: String,
    /// The role.
    pub username: String,
    /// What to log in with, or what the server stores.
    pub password: Hidden,
}

/// Says what [`write`] would do.
///
/// # Errors
/// The API's.
pub async fn compare(run: &Run, wanted: &Credentials) -> Result<Written> {
    let found = kubernetes::get(&secrets(run), &wanted.name).await?;
    Ok(judge(found.as_ref(), &data(wanted)))
}

/// Makes sure that the Secret holds exactly this.
///
/// # Errors
/// The API's; Unsafe when the API server holds something else afterwards.
pub async fn write(run: &Run, wanted: &Credentials) -> Result<Written> {
    let (secrets, data) = (secrets(run), data(wanted));
    let found = kubernetes::get(&secrets, &wanted.name).await?;
    let written = judge(found.as_ref(), &data);
    if written == Written::Unchanged {
        return Ok(written);
    }
    // The type of a Secret cannot be changed: one that somebody made by hand keeps its own.
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
    match judge(Some(&held), &data) {
        Written::Unchanged => Ok(written),
        _ => Err(Error::contradiction(format!(
            "secret {} holds something else than was just written",
            wanted.name
        ))
        .hint("something changes it as soon as it is written: find out what")),
    }
}

fn secrets(run: &Run) -> Api<Secret> {
    Api::namespaced(run.client.clone(), &run.namespace)
}

fn data(wanted: &Credentials) -> BTreeMap<String, ByteString> {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    [
        ("username".to_owned(), bytes(&wanted.username)),
        ("password".to_owned(), bytes(wanted.password.reveal())),
    ]
    .into()
}

fn judge(found: Option<&Secret>, data: &BTreeMap<String, ByteString>) -> Written {
    let Some(secret) = found else {
        return Written::Created;
    };
    let held = |key: &String| secret.data.as_ref().and_then(|data| data.get(key));
    match data.iter().all(|(key, value)| held(key) == Some(value)) {
        true => Written::Unchanged,
        false => Written::Changed,
    }
}
