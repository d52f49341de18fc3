//! What cutover has left: where the source's WAL ends, or that there was no cut yet.

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

/// How far the cut is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nobody has begun one, or it went back.
    NotYet,
    /// It has begun and is not over.
    UnderWay,
    /// It is over.
    Over(Box<Receipt>),
}

/// The facts of the receipt that matter here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Receipt {
    /// How things stood before.
    pub started: Started,
    /// The point of no return, and the proof that allowed it.
    pub promotion: Promotion,
    /// The target as a primary.
    pub promoted: Promoted,
    /// When the application was ready there.
    pub serving: Timestamp,
}

/// Both sides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Started {
    /// The source.
    pub source: Identity,
    /// The member that was leader, and was stopped.
    pub leader: String,
    /// The target.
    pub target: Identity,
}

/// Where the source has ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Promotion {
    /// Its last record.
    pub shutdown_checkpoint: Lsn,
    /// The end of it.
    pub replayed: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
}

/// Where the target has begun.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Promoted {
    /// Its timeline.
    pub timeline: Timeline,
}

/// Reads the record and the receipt of the cut to `target`.
///
/// # Errors
/// The API's; Unsafe when the receipt cannot be read.
pub async fn read(client: &Client, namespace: &str, target: &str) -> Result<Cut> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let (record, receipt) = (of_cut(target), receipt_of_cut(target));
    if let Some(map) = kubernetes::get(&maps, &receipt).await? {
        return parsed(map)
            .context(format!("reading the receipt {receipt}"))
            .map(|receipt| Cut::Over(Box::new(receipt)));
    }
    let facts = kubernetes::get(&maps, &record)
        .await?
        .and_then(|map| map.data)
        .unwrap_or_default();
    let is = |key: &str| facts.contains_key(key);
    Ok(state(is("blocked"), is("returned")))
}

/// A record that was blocked and has neither been returned nor left a receipt.
fn state(blocked: bool, returned: bool) -> Cut {
    if blocked && !returned {
        Cut::UnderWay
    } else {
        Cut::NotYet
    }
}

fn parsed(map: ConfigMap) -> Result<Receipt> {
    let journal = map.data.unwrap_or_default().remove("journal.json");
    let journal = journal.ok_or_else(|| {
        Error::contradiction("it has no journal.json").hint("it was not written by cutover")
    })?;
    serde_json::from_str(&journal).map_err(|error| {
        Error::contradiction("its journal.json is not what cutover writes")
            .caused_by(error)
            .hint(
                "was it changed? a receipt is immutable; compare it with the documentation \
                before going on",
            )
    })
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// As cutover writes it.
    pub fn journal() -> Value {
        let identity =
            json!({"system_identifier": "7500000000000000123", "timeline": 1, "version": 170010});
        json!({
            "started": {"at": "2026-01-01T00:00:00Z", "source": identity, "leader": "pg-0", "target": identity, "target_owes_restart": true,
                "replicas": {"web": 2}, "config": {"name": "c", "values": {}}, "controller": null, "paused": null, "read_only": null},
            "blocked": "2026-01-01T00:00:01Z",
            "promotion": {"at": "2026-01-01T00:00:02Z", "shutdown_checkpoint": "0/4000028", "replayed": "0/40000A0", "timeline": 1,
                "target_clock": "2026-01-01T00:00:02Z"},
            "promoted": {"at": "2026-01-01T00:00:03Z", "timeline": 2}, "serving": "2026-01-01T00:00:04Z",
        })
    }

    pub fn receipt() -> Receipt {
        serde_json::from_value(journal()).unwrap()
    }

    #[test]
    fn a_receipt_says_where_the_source_has_ended() {
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
    fn a_cut_is_under_way_from_the_block_until_it_went_back() {
        assert_eq!(state(false, false), Cut::NotYet);
        assert_eq!(state(true, false), Cut::UnderWay);
        assert_eq!(state(true, true), Cut::NotYet);
    }
}
