//! The record of a cutover in its ConfigMap, saved by compare-and-swap on its resourceVersion.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use protocol::{
    failure::Failure,
    record::{FactKind, Record},
};

use crate::{
    error::{Context as _, Error, Result, is_conflict, is_not_found},
    kubernetes::FIELD_MANAGER,
};

/// The annotation that holds one sentence on where the cutover stands.
pub const STATE_ANNOTATION: &str = "replica-migration/state";

/// Keeps the record while a cutover is under way: a deletion waits until it has ended, and reading
/// and writing work meanwhile. docs/operations.md#a-lost-record says how to remove it by hand.
pub const FINALIZER: &str = "replica-migration/cutover-under-way";

/// The record as it was last read or written.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    name: String,
    /// None until the ConfigMap exists.
    version: Option<String>,
    /// Those of others are kept.
    annotations: BTreeMap<String, String>,
    /// Those of others are kept.
    finalizers: Vec<String>,
    /// An actor has asked for its deletion, which waits for [`FINALIZER`].
    pub deletion_requested: bool,
    /// The facts.
    pub facts: Record,
}

/// The result of a save.
#[derive(Debug, PartialEq, Eq)]
pub enum Saved {
    /// The API server holds these facts.
    Yes,
    /// Another program wrote since the record was read: read again, then decide again.
    Conflict,
}

impl StoredRecord {
    /// Reads the record; a missing ConfigMap is an empty record.
    ///
    /// # Errors
    /// Refused when an unfinished record has an earlier schema, or any record a newer one; Unsafe
    /// when a key does not hold what the programs write.
    pub async fn load(client: &Client, namespace: &str, name: &str) -> Result<Self> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        match maps.get(name).await {
            Ok(map) => {
                let facts = Record::parse(&map.data.unwrap_or_default())
                    .map_err(Failure::from)
                    .context(format!("reading the record {name}"))?;
                Ok(Self {
                    name: name.into(),
                    version: map.metadata.resource_version,
                    annotations: map.metadata.annotations.unwrap_or_default(),
                    finalizers: map.metadata.finalizers.unwrap_or_default(),
                    deletion_requested: map.metadata.deletion_timestamp.is_some(),
                    facts,
                })
            }
            Err(error) if is_not_found(&error) => Ok(Self {
                name: name.into(),
                version: None,
                annotations: BTreeMap::new(),
                finalizers: Vec::new(),
                deletion_requested: false,
                facts: Record::default(),
            }),
            Err(error) => Err(error).context(format!("reading the record {name}")),
        }
    }

    /// Writes `facts` if no other program has written since this record was read, and `state` into
    /// the annotation [`STATE_ANNOTATION`].
    ///
    /// After an error the outcome is unknown, because the write may have arrived: load the record
    /// again.
    ///
    /// # Errors
    /// Those of the API, other than a conflict.
    pub async fn save(
        &mut self,
        client: &Client,
        namespace: &str,
        facts: Record,
        state: String,
    ) -> Result<Saved> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let mut annotations = self.annotations.clone();
        annotations.insert(STATE_ANNOTATION.to_owned(), state);
        let mut finalizers = self.finalizers.clone();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if facts.under_way() {
            finalizers.push(FINALIZER.to_owned());
        }
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: self.version.clone(),
                labels: Some(protocol::record::labels()),
                annotations: Some(annotations.clone()),
                finalizers: Some(finalizers.clone()),
                ..ObjectMeta::default()
            },
            data: Some(facts.keys()),
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
                (self.annotations, self.finalizers, self.facts) = (annotations, finalizers, facts);
                Ok(Saved::Yes)
            }
            Err(error) if is_conflict(&error) => Ok(Saved::Conflict),
            Err(error) => Err(error).context(format!("writing the record {}", self.name)),
        }
    }
}

/// For steps that prepare a cutover: after one the source stays stopped, and whatever they would
/// report about it misleads. The key is the same in every schema. A receipt alone shows a cutover,
/// too: the record may have been removed since.
///
/// # Errors
/// Refused when the promotion of the target is on record, or there is a receipt.
pub async fn refuse_after_cutover(client: &Client, namespace: &str, target: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let (name, receipt_name) = (
        protocol::record::name(target),
        protocol::record::receipt_name(target),
    );
    let (record, receipt) = futures::join!(
        crate::kubernetes::get(&maps, &name),
        crate::kubernetes::get(&maps, &receipt_name)
    );
    let (record, receipt) = (record?, receipt?);
    let promotion = FactKind::Promotion.step().map(|step| step.key);
    let promoted = record
        .and_then(|record| record.data)
        .zip(promotion)
        .is_some_and(|(data, key)| data.contains_key(key));
    let shown_by = match (promoted, receipt) {
        (true, _) => name,
        (false, Some(_)) => receipt_name,
        (false, None) => return Ok(()),
    };
    Err(Error::refused(format!(
        "{target} has been promoted by a cutover (ConfigMap {shown_by}): there is nothing left to \
         prepare or to validate, and the source must stay stopped"
    ))
    .hint(
        "start no server of the source, and apply no manifest that says replica.enabled: true; if \
         the cutover has not finished, start it again: it goes on; for another migration choose \
         another TARGET_CLUSTER",
    ))
}
