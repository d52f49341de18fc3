//! The form of the record in its ConfigMap, and the schema by which another version reads it.

use std::{collections::BTreeMap, fmt};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::Record;
use crate::failure::{ErrorKind, Failure};

/// The schema of the records and receipts that this version writes. Any change of what a key holds
/// raises it, adds a fixture of the previous one (`record/fixtures`), and gets a line in CHANGELOG.
///
/// | schema | written by |
/// |---|---|
/// | 1 (no key `schema`) | 0.1.x |
/// | 2 | versions between 0.1.x and this one |
/// | 3 | this version |
pub const SCHEMA: u32 = 3;

/// The key that holds the schema, in the record and in the receipt.
pub const SCHEMA_KEY: &str = "schema";

/// Records and receipts of schema 1 have no key for it.
pub(super) fn schema_without_a_key() -> u32 {
    1
}

/// The version of the programs that wrote a schema; None for one that is newer than this version.
fn version_of(schema: u32) -> Option<&'static str> {
    match schema {
        1 => Some("0.1.x"),
        _ => None,
    }
}

/// Why a record or a receipt cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The cutover was begun by a version with an earlier schema, and is not finished.
    UnfinishedOfEarlierSchema {
        /// Its schema.
        schema: u32,
    },
    /// It was written by a newer version.
    NewerSchema {
        /// Its schema.
        schema: u32,
    },
    /// A key does not hold what the programs write.
    Contents(String),
}

impl Unusable {
    /// Every case means that nothing was changed by the program that meets it; contents that no
    /// program has written need manual intervention.
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnfinishedOfEarlierSchema { .. } | Self::NewerSchema { .. } => ErrorKind::Refused,
            Self::Contents(_) => ErrorKind::Unsafe,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::UnfinishedOfEarlierSchema { schema } => {
                let version = version_of(*schema).map_or_else(
                    || "the version that wrote it".to_owned(),
                    |version| format!("version {version}"),
                );
                format!("finish it or roll it back with {version}")
            }
            Self::NewerSchema { .. } => "use the version that wrote it, or a later one".to_owned(),
            Self::Contents(_) => "it was changed by hand or not written by cutover: compare it \
                with docs/protocol.md before you go on"
                .to_owned(),
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnfinishedOfEarlierSchema { schema } => write!(
                f,
                "an unfinished cutover has a record of schema {schema}, this version writes \
                 {SCHEMA}"
            ),
            Self::NewerSchema { schema } => write!(
                f,
                "it has schema {schema}, this version reads at most {SCHEMA}"
            ),
            Self::Contents(why) => f.write_str(why),
        }
    }
}

impl From<Unusable> for Failure {
    fn from(unusable: Unusable) -> Self {
        Self::new(unusable.kind(), unusable.to_string()).hint(unusable.hint())
    }
}

impl Record {
    /// The keys of the ConfigMap. A fact that is not established has no key.
    pub fn keys(&self) -> BTreeMap<String, String> {
        // A struct of texts, numbers, lists and maps with text keys is always an object.
        to_keys(self).unwrap_or_default()
    }

    /// Reads the keys of the ConfigMap. A finished or rolled-back record of any earlier schema is
    /// read; where nothing is recorded yet, the present schema begins.
    ///
    /// # Errors
    /// See [`Unusable`].
    pub fn parse(keys: &BTreeMap<String, String>) -> Result<Self, Unusable> {
        schema(keys)?;
        let mut record: Self =
            from_keys(keys).map_err(|error| Unusable::Contents(error.to_string()))?;
        if record.started.is_none() {
            record.schema = SCHEMA;
        } else if record.schema < SCHEMA && record.under_way() {
            return Err(Unusable::UnfinishedOfEarlierSchema {
                schema: record.schema,
            });
        }
        Ok(record)
    }
}

/// The schema of a record's or a receipt's keys.
///
/// # Errors
/// The key is no number, or the schema is newer than this version's.
pub fn schema(keys: &BTreeMap<String, String>) -> Result<u32, Unusable> {
    let Some(text) = keys.get(SCHEMA_KEY) else {
        return Ok(schema_without_a_key());
    };
    match text.parse() {
        Ok(schema) if schema > SCHEMA => Err(Unusable::NewerSchema { schema }),
        Ok(schema) => Ok(schema),
        Err(_) => Err(Unusable::Contents(format!("the key schema holds {text}"))),
    }
}

fn to_keys<T: Serialize>(facts: &T) -> Option<BTreeMap<String, String>> {
    let Ok(Value::Object(fields)) = serde_json::to_value(facts) else {
        return None;
    };
    let established = fields.into_iter().filter(|(_, value)| !value.is_null());
    Some(
        established
            .map(|(key, value)| (key, plain(&value)))
            .collect(),
    )
}

/// A text stays plain, so that `kubectl get -o yaml` reads well, unless it would read as JSON; all
/// else is JSON.
fn plain(value: &Value) -> String {
    match value.as_str() {
        Some(text) if serde_json::from_str::<Value>(text).is_err() => text.to_owned(),
        _ => value.to_string(),
    }
}

fn from_keys<T: DeserializeOwned>(keys: &BTreeMap<String, String>) -> serde_json::Result<T> {
    let fields: Map<String, Value> = keys
        .iter()
        .map(|(key, text)| {
            let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
            (key.clone(), value)
        })
        .collect();
    serde_json::from_value(Value::Object(fields))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Facts {
        marker: Option<String>,
        count: Option<u32>,
        digits: Option<String>,
        replicas: BTreeMap<String, u32>,
    }

    #[test]
    fn facts_survive_the_conversion_to_text() {
        let facts = Facts {
            marker: Some("0/5A2E4F8".into()),
            count: None,
            replicas: [("web".into(), 2)].into(),
            digits: Some("12".into()),
        };
        let keys = to_keys(&facts).unwrap();
        assert_eq!(keys.get("marker").unwrap(), "0/5A2E4F8");
        assert!(!keys.contains_key("count"));
        assert_eq!(from_keys::<Facts>(&keys).unwrap(), facts);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let keys = [("phase".to_owned(), "1".to_owned())].into();
        let failure = Failure::from(Record::parse(&keys).unwrap_err());
        assert_eq!(failure.kind, ErrorKind::Unsafe);
    }

    #[test]
    fn an_abort_before_the_start_leaves_the_present_schema() {
        let keys = [("abort".to_owned(), "true".to_owned())].into();
        let record = Record::parse(&keys).unwrap();
        assert_eq!(
            (record.schema, record.abort.as_deref()),
            (SCHEMA, Some("true"))
        );
    }

    #[test]
    fn a_newer_record_is_left_to_the_version_that_wrote_it() {
        let keys = [
            (SCHEMA_KEY.to_owned(), (SCHEMA + 1).to_string()),
            ("unheard-of".to_owned(), "1".to_owned()),
        ]
        .into();
        assert_eq!(
            Record::parse(&keys),
            Err(Unusable::NewerSchema { schema: SCHEMA + 1 })
        );
    }
}
