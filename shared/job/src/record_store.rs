//! Typed facts in a ConfigMap, one key each, saved by compare-and-swap on its resourceVersion.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    error::{Context as _, Error, Result, is_conflict, is_not_found},
    kubernetes::FIELD_MANAGER,
};

/// A record as it was last read or written. A field of `T` that is `None` has no key; a present key
/// means that its step is done.
#[derive(Clone, Debug)]
pub struct StoredRecord<T> {
    name: String,
    /// None until the ConfigMap exists.
    version: Option<String>,
    /// The facts.
    pub facts: T,
}

/// The outcome of a save.
#[derive(Debug, PartialEq, Eq)]
pub enum Saved {
    /// The API server holds these facts.
    Yes,
    /// Another writer saved since the record was read: load it again, then decide again.
    Conflict,
}

impl<T: Serialize + DeserializeOwned + Default> StoredRecord<T> {
    /// Reads the record; a missing ConfigMap is an empty record.
    ///
    /// # Errors
    /// Unsafe when a key holds what this program would not have written.
    pub async fn load(client: &Client, namespace: &str, name: &str) -> Result<Self> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        match maps.get(name).await {
            Ok(map) => {
                let facts = from_keys(map.data.unwrap_or_default())
                    .context(format!("reading the record {name}"))
                    .map_err(|e| {
                        e.hint(
                            "a key of it was changed by hand or by another version; compare it \
                             with the documentation before going on",
                        )
                    })?;
                Ok(Self {
                    name: name.into(),
                    version: map.metadata.resource_version,
                    facts,
                })
            }
            Err(error) if is_not_found(&error) => Ok(Self {
                name: name.into(),
                version: None,
                facts: T::default(),
            }),
            Err(error) => Err(error).context(format!("reading the record {name}")),
        }
    }

    /// Writes `facts` if no other writer has saved since this record was read.
    ///
    /// After an error the outcome is unknown, because the write may have arrived: load the record
    /// again.
    ///
    /// # Errors
    /// A conflict is not an error, but [`Saved::Conflict`].
    pub async fn save(&mut self, client: &Client, namespace: &str, facts: T) -> Result<Saved> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: self.version.clone(),
                labels: Some(protocol::record::labels()),
                ..ObjectMeta::default()
            },
            data: Some(to_keys(&facts)?),
            ..ConfigMap::default()
        };
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let answer = match &self.version {
            None => maps.create(&params, &map).await,
            Some(_) => maps.replace(&self.name, &params, &map).await,
        };
        match answer {
            Ok(written) => {
                self.version = written.metadata.resource_version;
                self.facts = facts;
                Ok(Saved::Yes)
            }
            Err(error) if is_conflict(&error) => Ok(Saved::Conflict),
            Err(error) => Err(error).context(format!("writing the record {}", self.name)),
        }
    }
}

/// Refuses to run a step that prepares a cutover after the cutover has promoted the target: the
/// source stays stopped then, and the step's findings about it would mislead.
///
/// # Errors
/// Refused when the target's promotion is on record.
pub async fn refuse_after_cutover(client: &Client, namespace: &str, target: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let name = protocol::record::name(target);
    let record = crate::kubernetes::get(&maps, &name).await?;
    let promoted = record
        .and_then(|record| record.data)
        .is_some_and(|data| data.contains_key("promotion"));
    if promoted {
        return Err(Error::refused(format!(
            "{target} has been promoted by a cutover (ConfigMap {name}): there is nothing left to \
             prepare, and the source must stay stopped"
        ))
        .hint(
            "start no server of the source; if the cutover has not finished, start it again: it \
             continues",
        ));
    }
    Ok(())
}

fn to_keys<T: Serialize>(facts: &T) -> Result<BTreeMap<String, String>> {
    let Value::Object(fields) = serde_json::to_value(facts)? else {
        return Err(Error::manual_intervention("a record must be a struct"));
    };
    let keys = fields.into_iter().filter(|(_, value)| !value.is_null());
    Ok(keys.map(|(key, value)| (key, plain(&value))).collect())
}

/// A string is stored as it is, so that `kubectl get -o yaml` is readable, unless it would be read
/// back as JSON; every other value is stored as JSON.
fn plain(value: &Value) -> String {
    match value.as_str() {
        Some(text) if serde_json::from_str::<Value>(text).is_err() => text.to_owned(),
        _ => value.to_string(),
    }
}

fn from_keys<T: DeserializeOwned>(keys: BTreeMap<String, String>) -> Result<T> {
    let fields: Map<String, Value> = keys
        .into_iter()
        .map(|(key, text)| {
            (
                key,
                serde_json::from_str(&text).unwrap_or(Value::String(text)),
            )
        })
        .collect();
    Ok(serde_json::from_value(Value::Object(fields))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Facts {
        marker: Option<String>,
        count: Option<u32>,
        digits: Option<String>,
        replicas: BTreeMap<String, u32>,
    }

    #[test]
    fn facts_are_read_back_as_they_were_written() {
        let facts = Facts {
            marker: Some("0/5A2E4F8".into()),
            count: None,
            replicas: [("web".into(), 2)].into(),
            digits: Some("12".into()),
        };
        let keys = to_keys(&facts).unwrap();
        assert_eq!(keys.get("marker").unwrap(), "0/5A2E4F8");
        assert!(!keys.contains_key("count"));
        assert_eq!(from_keys::<Facts>(keys).unwrap(), facts);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(from_keys::<Facts>([("phase".to_owned(), "1".to_owned())].into()).is_err());
    }
}
