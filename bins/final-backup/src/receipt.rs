//! The state of the cutover: the receipt with the end of the source's WAL, or that there is none.

use jiff::Timestamp;
use job::{
    error::{Context as _, Error, Result},
    kubernetes,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use protocol::{
    record::{name as of_cut, receipt_name as receipt_of_cut},
    wal::{Identity, Lsn, Timeline},
};
use serde::Deserialize;

/// How far the cutover has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutoverState {
    /// None has begun, or it was rolled back.
    NotDone,
    /// It has blocked writes, and has neither completed nor rolled back.
    InProgress,
    /// It has completed.
    Completed(Box<Receipt>),
}

/// The part of the receipt that this program reads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Receipt {
    /// Both sides before the cutover.
    pub started: Started,
    /// The point of no return, and the positions that allowed it.
    pub promotion: Promotion,
    /// The target as a primary.
    pub promoted: Promoted,
    /// When the application was ready on the target.
    pub serving: Timestamp,
}

/// Both sides before the cutover.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Started {
    /// The source.
    pub source: Identity,
    /// The member that was the leader, and was stopped.
    pub leader: String,
    /// The target.
    pub target: Identity,
}

/// Where the source's WAL ends.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Promotion {
    /// Start of its last record, the shutdown checkpoint.
    pub shutdown_checkpoint: Lsn,
    /// End of that record.
    pub replayed: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
}

/// The target's promotion.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Promoted {
    /// The timeline that it began.
    pub timeline: Timeline,
}

/// Reads the record and the receipt of the cutover to `target`.
///
/// # Errors
/// Unsafe if the receipt cannot be parsed.
pub async fn read(client: &Client, namespace: &str, target: &str) -> Result<CutoverState> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let (record, receipt) = (of_cut(target), receipt_of_cut(target));
    if let Some(map) = kubernetes::get(&maps, &receipt).await? {
        return parsed(map)
            .context(format!("reading the receipt {receipt}"))
            .map(|receipt| CutoverState::Completed(Box::new(receipt)));
    }
    let facts = kubernetes::get(&maps, &record)
        .await?
        .and_then(|map| map.data)
        .unwrap_or_default();
    let recorded = |key: &str| facts.contains_key(key);
    Ok(without_receipt(recorded("blocked"), recorded("returned")))
}

/// The state of a cutover that has left no receipt.
fn without_receipt(blocked: bool, rolled_back: bool) -> CutoverState {
    if blocked && !rolled_back {
        CutoverState::InProgress
    } else {
        CutoverState::NotDone
    }
}

fn parsed(map: ConfigMap) -> Result<Receipt> {
    let journal = map.data.unwrap_or_default().remove("journal.json");
    let journal = journal.ok_or_else(|| {
        Error::manual_intervention("it has no journal.json")
            .hint("the ConfigMap was not written by cutover")
    })?;
    serde_json::from_str(&journal).map_err(|error| {
        Error::manual_intervention("its journal.json does not have the form that cutover writes")
            .caused_by(error)
            .hint("a receipt is immutable: find out how it was changed before you continue")
    })
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A receipt in the form that cutover writes.
    pub fn journal() -> Value {
        let identity = json!({
            "system_identifier": "7500000000000000123", "timeline": 1, "version": 170010,
        });
        json!({
            "started": {
                "at": "2026-01-01T00:00:00Z", "source": identity, "leader": "pg-0",
                "target": identity, "target_pending_restart": true, "replicas": {"web": 2},
                "config": {"name": "c", "values": {}}, "controller": null, "paused": null,
                "read_only": null,
            },
            "blocked": "2026-01-01T00:00:01Z",
            "promotion": {
                "at": "2026-01-01T00:00:02Z", "shutdown_checkpoint": "0/4000028",
                "replayed": "0/40000A0", "timeline": 1, "target_clock": "2026-01-01T00:00:02Z",
            },
            "promoted": {"at": "2026-01-01T00:00:03Z", "timeline": 2},
            "serving": "2026-01-01T00:00:04Z",
        })
    }

    pub fn receipt() -> Receipt {
        serde_json::from_value(journal()).unwrap()
    }

    #[test]
    fn a_receipt_holds_the_end_of_the_sources_wal() {
        let map = ConfigMap {
            data: Some([("journal.json".to_owned(), journal().to_string())].into()),
            ..ConfigMap::default()
        };
        assert_eq!(
            parsed(map).unwrap().promotion.replayed,
            "0/40000A0".parse().unwrap()
        );
        assert!(
            parsed(ConfigMap::default())
                .unwrap_err()
                .to_string()
                .contains("no journal.json")
        );
    }

    #[test]
    fn a_cutover_is_in_progress_from_the_block_until_it_has_rolled_back() {
        assert_eq!(without_receipt(false, false), CutoverState::NotDone);
        assert_eq!(without_receipt(true, false), CutoverState::InProgress);
        assert_eq!(without_receipt(true, true), CutoverState::NotDone);
    }
}
