//! Records of each schema, as fixtures: the present one is compared with what the code writes.
//!
//! `fixtures/` holds the data of ConfigMaps. Schema 1 is what version 0.1 wrote.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{keys::Unusable, *};
use crate::{
    controllers::{
        owners::GitOpsManaged,
        suspension::{Object, Suspension},
    },
    receipt::{self, Receipt},
    route::Route,
    snapshot::{kubernetes::StoredManifest, source::PostmasterStart},
    wal::{Identity, SystemIdentifier, Timeline},
};

type Keys = BTreeMap<String, String>;

fn at(second: u8) -> Timestamp {
    format!("2026-01-01T12:00:{second:02}Z").parse().unwrap()
}

fn start() -> Start {
    let identity = Identity {
        system_identifier: SystemIdentifier(7_500_000_000_000_000_123),
        timeline: Timeline(1),
        version: 170_010,
    };
    let nightly = Object::of("batch", "v1", "CronJob", "cronjobs", "nightly");
    Start {
        at: at(0),
        source: identity,
        leader: "pg-0".into(),
        target: identity,
        target_pending_restart: true,
        route: Route::Service,
        replicas: [("web".to_owned(), 2)].into(),
        config: AppConfig {
            name: "app-abc".into(),
            values: [
                ("DB_HOST".to_owned(), Some("pg".to_owned())),
                ("REPLICA_DB_HOST".to_owned(), None),
            ]
            .into(),
        },
        services: [
            ("pg".to_owned(), None),
            (
                "pg-repl".to_owned(),
                Some([("spilo-role".to_owned(), "replica".to_owned())].into()),
            ),
        ]
        .into(),
        suspensions: vec![
            Suspension::zalando_operator("pg", None),
            Suspension::field(nightly, &["spec", "suspend"], json!(true), json!(false))
                .because("its Jobs would write"),
        ],
        managed: vec![GitOpsManaged {
            object: Object::of(
                "postgresql.cnpg.io",
                "v1",
                "Cluster",
                "clusters",
                "database",
            ),
            by: "Application argocd/shop".into(),
        }],
        paused: None,
        read_only: None,
        restart_after_crash: None,
        accepted: Vec::new(),
    }
}

/// As a version with this schema recorded it.
fn start_of(schema: u32) -> Start {
    let mut start = start();
    if schema < 3 {
        start.managed = Vec::new();
    }
    start
}

/// A finished cutover, every fact of it.
pub fn complete() -> Record {
    [
        Fact::Started(Box::new(start())),
        Fact::Suspended(at(0)),
        Fact::Checkpointed(at(0)),
        Fact::Blocked(at(1)),
        Fact::Marker(Marker {
            at: at(2),
            lsn: "0/4000000".parse().unwrap(),
            sessions_ended: vec!["app web 10.0.0.7".into()],
        }),
        Fact::Fenced(Fenced {
            at: at(3),
            lsn: "0/4000010".parse().unwrap(),
            postmaster_start: PostmasterStart(1_767_200_000_000_000),
            reconnected: vec!["batch 10.0.0.9".into()],
        }),
        Fact::Promotion(Promotion {
            at: at(4),
            shutdown_checkpoint: "0/4000028".parse().unwrap(),
            replayed: "0/40000A0".parse().unwrap(),
            timeline: Timeline(1),
            target_clock: at(4),
        }),
        Fact::Promoted(Promoted {
            at: at(5),
            timeline: Timeline(2),
        }),
        Fact::Routed(at(6)),
        Fact::Serving(at(7)),
        Fact::Manifest(Manifest {
            at: at(8),
            config_map: "database-cluster-replica".into(),
            found: StoredManifest::Promoted,
        }),
        Fact::Readers(Readers {
            at: at(8),
            ended: vec!["app report 10.0.0.8".into()],
            left: vec!["app search 10.0.0.9".into()],
        }),
        Fact::Finished(at(9)),
    ]
    .into_iter()
    .fold(Record::default(), |record, fact| record.with(fact))
}

fn blocked() -> Record {
    let record = Record::default().with(Fact::Started(Box::new(start())));
    record.with(Fact::Blocked(at(1)))
}

/// A cutover that was rolled back after the block.
pub fn rolled_back() -> Record {
    let reason = "asked to end (SIGTERM)".to_owned();
    blocked()
        .with(Fact::RollbackStarted(RollbackStarted { at: at(2), reason }))
        .with(Fact::RolledBack(at(3)))
}

/// The receipt is written before the cutover is finished.
fn receipt() -> Keys {
    let record = Record {
        finished: None,
        ..complete()
    };
    receipt::data(&start(), &record, "cutover 0.2.0")
}

fn fixture(text: &str) -> Keys {
    serde_json::from_str(text).unwrap()
}

macro_rules! fixture {
    ($name:literal) => {
        fixture(include_str!(concat!("fixtures/", $name)))
    };
}

#[test]
fn the_fixtures_of_the_present_schema_are_what_the_code_writes() {
    for (name, held, written) in [
        (
            "record-3-finished.json",
            fixture!("record-3-finished.json"),
            complete().keys(),
        ),
        (
            "record-3-rolled-back.json",
            fixture!("record-3-rolled-back.json"),
            rolled_back().keys(),
        ),
        (
            "record-3-unfinished.json",
            fixture!("record-3-unfinished.json"),
            blocked().keys(),
        ),
        ("receipt-3.json", fixture!("receipt-3.json"), receipt()),
    ] {
        let text = serde_json::to_string_pretty(&written).unwrap();
        assert_eq!(
            held, written,
            "the fixture {name} should hold, if the schema has not to be raised:\n{text}"
        );
        assert_eq!(held[keys::SCHEMA_KEY], SCHEMA.to_string());
    }
}

#[test]
fn a_finished_or_rolled_back_record_of_each_schema_is_read() {
    for (schema, finished, returned) in [
        (
            1,
            fixture!("record-1-finished.json"),
            fixture!("record-1-rolled-back.json"),
        ),
        (
            2,
            fixture!("record-2-finished.json"),
            fixture!("record-2-rolled-back.json"),
        ),
        (
            3,
            fixture!("record-3-finished.json"),
            fixture!("record-3-rolled-back.json"),
        ),
    ] {
        let record = Record {
            schema,
            started: Some(start_of(schema)),
            // Schema 1 did not record it.
            suspended: complete().suspended.filter(|_| schema > 1),
            // Nor did schema 2 these.
            manifest: complete().manifest.filter(|_| schema > 2),
            readers: complete().readers.map(|readers| Readers {
                left: readers.left.into_iter().filter(|_| schema > 2).collect(),
                ..readers
            }),
            ..complete()
        };
        assert_eq!(Record::parse(&finished), Ok(record));
        let record = Record {
            schema,
            started: Some(start_of(schema)),
            ..rolled_back()
        };
        assert_eq!(Record::parse(&returned), Ok(record));
    }
}

#[test]
fn an_unfinished_record_is_read_in_its_own_schema_only() {
    let present = fixture!("record-3-unfinished.json");
    assert_eq!(Record::parse(&present), Ok(blocked()));
    let before = Record::parse(&fixture!("record-2-unfinished.json")).unwrap_err();
    assert_eq!(before, Unusable::UnfinishedOfEarlierSchema { schema: 2 });
    let earlier = Record::parse(&fixture!("record-1-unfinished.json")).unwrap_err();
    assert_eq!(earlier, Unusable::UnfinishedOfEarlierSchema { schema: 1 });
    let failure = crate::failure::Failure::from(earlier);
    assert_eq!(failure.kind, crate::failure::ErrorKind::Refused);
    assert_eq!(
        failure.hint.as_deref(),
        Some("finish it or roll it back with version 0.1.x")
    );
}

#[test]
fn a_receipt_of_each_schema_is_read() {
    for (schema, data) in [
        (1, fixture!("receipt-1.json")),
        (2, fixture!("receipt-2.json")),
        (3, fixture!("receipt-3.json")),
    ] {
        let record = complete();
        let receipt = Receipt {
            schema,
            started: start_of(schema),
            promotion: record.promotion.unwrap(),
            promoted: record.promoted.unwrap(),
            serving: record.serving.unwrap(),
        };
        assert_eq!(Receipt::parse(&data), Ok(receipt));
    }
}

#[test]
fn a_receipt_without_the_record_or_of_no_finished_cutover_is_none() {
    assert!(Receipt::parse(&Keys::new()).is_err());
    let data = receipt::data(&start(), &blocked(), "cutover 0.2.0");
    assert!(matches!(Receipt::parse(&data), Err(Unusable::Contents(_))));
}

#[test]
fn a_new_attempt_after_one_of_an_earlier_schema_has_the_present_one() {
    let record = Record::parse(&fixture!("record-1-rolled-back.json")).unwrap();
    assert_eq!(record.schema, 1);
    assert_eq!(record.with(Fact::StartOver).schema, SCHEMA);
}

#[test]
fn the_receipts_summary_has_the_time_of_each_milestone() {
    let summary: Value = serde_json::from_str(&receipt()["summary.json"]).unwrap();
    assert_eq!(
        summary["ms_since_block"],
        json!({"marker": 1000, "caught_up": 2000, "source_stopped": 3000, "write_verified": 4000,
            "routed": 5000, "serving": 6000})
    );
}
