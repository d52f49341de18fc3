//! The state of the cutover: the receipt with the end of the source's WAL, or that there is none.

use job::{
    error::{Context as _, Result},
    kubernetes,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
pub use protocol::receipt::Receipt;
use protocol::{
    failure::Failure,
    record::{FactKind, name as of_cut, receipt_name as receipt_of_cut},
};

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
    let recorded = |fact: FactKind| fact.step().is_some_and(|step| facts.contains_key(step.key));
    Ok(without_receipt(
        recorded(FactKind::Blocked),
        recorded(FactKind::RolledBack),
    ))
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
    let receipt = Receipt::parse(&map.data.unwrap_or_default());
    Ok(receipt.map_err(Failure::from)?)
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use protocol::{
        receipt,
        record::{AppConfig, Fact, Promoted, Promotion, Record, Start},
        route::Route,
        wal::{Identity, SystemIdentifier, Timeline},
    };

    use super::*;

    fn at(second: u8) -> Timestamp {
        format!("2026-01-01T00:00:{second:02}Z").parse().unwrap()
    }

    /// What cutover's own code writes.
    fn written() -> BTreeMap<String, String> {
        let identity = Identity {
            system_identifier: SystemIdentifier(7_500_000_000_000_000_123),
            timeline: Timeline(1),
            version: 170_010,
        };
        let start = Start {
            at: at(0),
            source: identity,
            leader: "pg-0".into(),
            target: identity,
            target_pending_restart: true,
            route: Route::Config,
            replicas: [("web".to_owned(), 2)].into(),
            config: AppConfig::default(),
            services: BTreeMap::new(),
            suspensions: Vec::new(),
            managed: Vec::new(),
            paused: None,
            read_only: None,
            restart_after_crash: None,
            accepted: Vec::new(),
        };
        let record = [
            Fact::Started(Box::new(start.clone())),
            Fact::Blocked(at(1)),
            Fact::Promotion(Promotion {
                at: at(2),
                shutdown_checkpoint: "0/4000028".parse().unwrap(),
                replayed: "0/40000A0".parse().unwrap(),
                timeline: Timeline(1),
                target_clock: at(2),
            }),
            Fact::Promoted(Promoted {
                at: at(3),
                timeline: Timeline(2),
            }),
            Fact::Serving(at(4)),
        ]
        .into_iter()
        .fold(Record::default(), |record, fact| record.with(fact));
        receipt::data(&start, &record, "cutover 0.0.0")
    }

    pub fn receipt() -> Receipt {
        Receipt::parse(&written()).unwrap()
    }

    #[test]
    fn a_receipt_holds_the_end_of_the_sources_wal() {
        let map = ConfigMap {
            data: Some(written()),
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
