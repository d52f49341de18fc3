use std::collections::BTreeSet;

use super::{resume::position, *};
use crate::{
    record::tests::{complete, rolled_back},
    rollback::{RollbackAvailability, rollback_availability},
    simulation::{course, every_journal},
};

/// Longest headline: main.rs has each on one line.
const HEADLINE_CHARACTERS_MAX: usize = 88;

/// README's table: facts from which the same is true share a row.
fn table() -> Vec<String> {
    let facts = steps().map(|(fact, _)| Some(fact));
    let mut rows: Vec<(Vec<&str>, resume::Position)> = Vec::new();
    for fact in std::iter::once(None).chain(facts) {
        for route in [Route::Service, Route::Config] {
            let here = position(fact, route);
            match rows.last_mut() {
                Some((keys, row)) if (row.then, row.resume) == (here.then, here.resume) => {
                    if keys.last() != Some(&here.key) {
                        keys.push(here.key);
                    }
                }
                _ => rows.push((vec![here.key], here)),
            }
        }
    }
    let head = [
        "| recorded last | what is true then | rollback | what to do |".to_owned(),
        "|---|---|---|---|".to_owned(),
    ];
    let rows = rows.into_iter().map(|(keys, row)| {
        let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        let (then, resume) = (row.then, row.resume);
        format!(
            "| {} | {then} | {} | {resume} |",
            keys.join(", "),
            resume.rollback()
        )
    });
    head.into_iter().chain(rows).collect()
}

#[test]
fn readme_holds_the_table_of_what_to_do() {
    let readme = include_str!("../../../../README.md");
    let lines: Vec<&str> = readme.lines().collect();
    let line_of = |marker: &str| {
        let found = lines.iter().position(|line| line.starts_with(marker));
        found.unwrap_or_else(|| panic!("README has no line {marker}"))
    };
    let held = &lines[line_of("<!-- stops: begin") + 1..line_of("<!-- stops: end")];
    let table = table();
    assert_eq!(
        held,
        table,
        "README should hold between its markers:\n{}",
        table.join("\n")
    );
}

#[test]
fn main_lists_the_steps_of_the_plan() {
    let main = include_str!("../../../../bins/cutover/src/main.rs");
    let headlines = steps().flat_map(|(_, step)| step.plan);
    let list: Vec<String> = (1..)
        .zip(headlines)
        .map(|(number, line)| {
            assert!(
                line.headline.chars().count() <= HEADLINE_CHARACTERS_MAX,
                "too long: {}",
                line.headline
            );
            format!("//! {number}. {}", line.headline)
        })
        .collect();
    let is_item = |line: &&str| {
        let item = line.strip_prefix("//! ");
        item.is_some_and(|item| item.starts_with(|first: char| first.is_ascii_digit()))
    };
    let held: Vec<&str> = main.lines().filter(is_item).collect();
    assert_eq!(
        held,
        list,
        "bins/cutover/src/main.rs should list:\n{}",
        list.join("\n")
    );
}

#[test]
fn each_action_belongs_to_a_step_or_is_a_repair() {
    let of_steps = steps().flat_map(|(_, step)| step.actions);
    let listed: Vec<ActionKind> = of_steps.chain(REPAIRS).copied().collect();
    for action in ActionKind::ALL {
        assert!(listed.contains(action), "{action:?} is in no row");
    }
}

#[test]
fn a_cutover_that_nothing_disturbs_takes_each_step_by_the_actions_of_its_row() {
    for route in [Route::Service, Route::Config] {
        let course = course(route);
        for (fact, actions) in &course {
            let step = fact.step().unwrap();
            for action in actions {
                assert!(
                    step.actions.contains(action),
                    "{action:?} before {fact:?} on {route:?}"
                );
            }
        }
        let order: Vec<FactKind> = course.iter().map(|(fact, _)| *fact).collect();
        assert!(order.is_sorted(), "{order:?}");
    }
}

#[test]
fn the_key_of_a_row_is_the_key_of_the_record() {
    let mut before = BTreeSet::new();
    for record in [complete(), rolled_back()] {
        let keys: BTreeSet<String> = record.keys().into_keys().collect();
        for (fact, step) in steps() {
            let established = record.instant(fact).is_some();
            assert_eq!(established, keys.contains(step.key), "{fact:?}");
            if established {
                before.insert(fact);
            }
        }
    }
    assert_eq!(before.len(), steps().count(), "a fact is in no example");
}

#[test]
fn the_lines_of_a_row_post_its_events() {
    for record in [complete(), rolled_back()] {
        for (fact, step) in steps().filter(|(fact, _)| record.instant(*fact).is_some()) {
            let progress = Progress {
                record: &record,
                fact,
            };
            let lines = progress.lines();
            let posted = lines.iter().filter_map(|line| match line {
                Line::Step { event, .. } | Line::Warning { event, .. } => Some(*event),
                Line::Info(_) | Line::Value(..) => None,
            });
            assert_eq!(posted.collect::<Vec<_>>(), step.events, "{fact:?}");
        }
    }
}

#[test]
fn a_row_offers_a_rollback_where_the_protocol_does() {
    for record in every_journal() {
        let resume = record
            .last()
            .and_then(FactKind::step)
            .map_or(Resume::StartAgain, |step| step.resume);
        let expected = match rollback_availability(&record) {
            RollbackAvailability::Nothing => vec![Resume::StartAgain],
            RollbackAvailability::Possible => vec![Resume::Either],
            RollbackAvailability::TooLate(_) => vec![Resume::Forward, Resume::Nothing],
        };
        assert!(expected.contains(&resume), "{resume:?} at {record:?}");
    }
}

#[test]
fn the_annotation_is_one_sentence_on_where_the_cutover_stands() {
    let mut blocked = complete();
    (blocked.marker, blocked.fenced, blocked.promotion) = (None, None, None);
    (blocked.promoted, blocked.routed, blocked.serving) = (None, None, None);
    (blocked.manifest, blocked.readers, blocked.finished) = (None, None, None);
    assert_eq!(
        state(&blocked),
        "block of writes recorded at 2026-01-01T12:00:01Z; downtime running since \
         2026-01-01T12:00:01Z; if no Job runs: start cutover again, it goes on or rolls back; or \
         start rollback"
    );
    assert_eq!(
        state(&complete()),
        "cutover finished at 2026-01-01T12:00:09Z; keep the source as it is: stopped, paused, its \
         operator suspended"
    );
    assert_eq!(
        state(&rolled_back()),
        "rolled back at 2026-01-01T12:00:03Z; the application runs on the source as before"
    );
    assert_eq!(state(&Record::default()), "no cutover has begun");
}

#[test]
fn the_plan_numbers_its_lines_and_names_the_point_of_no_return() {
    let lines = plan(&Plan {
        source: "pg".into(),
        target: "database".into(),
        route: Route::Config,
        leader: "pg-0".into(),
        replicas: "web 2".into(),
        suspensions: "CronJob nightly suspend".into(),
        poolers: String::new(),
        sessions: 3,
        target_pending_restart: false,
        repoint: "app: DB_HOST pg → database-rw".into(),
        receipt: "cutover-database-receipt".into(),
        block_max_seconds: 300,
    });
    assert_eq!(
        lines[0],
        "1. record the identities, the settings and the replica counts: web 2"
    );
    assert_eq!(lines[3].find(": "), None, "{}", lines[3]);
    let last = lines.last().unwrap();
    let number = lines
        .iter()
        .find(|line| line.contains("POINT OF NO RETURN"))
        .and_then(|line| line.split_once('.'))
        .unwrap()
        .0;
    assert!(last.contains(&format!("until {number}, at the latest 300 s")));
    assert!(
        lines
            .iter()
            .any(|line| line.ends_with("standbys: they are named")),
        "{lines:?}"
    );
}
