//! The keys of the settings are the variables of the programs: none is missing, and none is unused.

use std::collections::{BTreeMap, BTreeSet};

use harness::manifests;
use serde_json::Value;
use variables::{EVERY_JOB, table};

use super::{STEPS, named, specs};

/// Keys of settings.env, set or shown as a comment (`#KEY=`), each with the comment above it.
fn explained() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(manifests::folder().join("base/settings.env")).unwrap();
    let mut keys = BTreeMap::new();
    let mut comment = String::new();
    for line in text.lines() {
        let key = line
            .strip_prefix('#')
            .unwrap_or(line)
            .split_once('=')
            .map(|(key, _)| key);
        match key.filter(|key| {
            key.chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        }) {
            Some(key) => {
                let before = keys.insert(key.to_owned(), std::mem::take(&mut comment));
                assert_eq!(before, None, "{key} is there twice");
            }
            None if line.starts_with("# ") => comment.push_str(line),
            None => comment.clear(),
        }
    }
    keys
}

fn of_container(objects: &[Value], step: &str) -> BTreeSet<String> {
    let container = &specs(objects, step)[0]["template"]["spec"]["containers"][0];
    let variables = container["env"].as_array().into_iter().flatten();
    variables
        .map(|variable| variable["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn settings_and_programs_agree() {
    let objects = super::example().await;
    let settings = named(&objects, "ConfigMap", "replica-migration")["data"]
        .as_object()
        .unwrap();
    let settings: BTreeSet<String> = settings.keys().cloned().collect();
    let shown: BTreeSet<String> = explained().into_keys().collect();
    assert!(
        settings.is_subset(&shown),
        "an overlay has a key that settings.env does not explain: {settings:?}"
    );

    let mut read = BTreeSet::new();
    for step in STEPS {
        let variables = table(step).and(table(EVERY_JOB));
        let own = of_container(&objects, step);
        let given: BTreeSet<String> = settings.union(&own).cloned().collect();
        let missing: Vec<_> = variables.required.difference(&given).collect();
        assert!(missing.is_empty(), "{step} needs {missing:?}");
        let unread: Vec<_> = own
            .iter()
            .filter(|key| !variables.all().contains(*key))
            .collect();
        assert!(
            unread.is_empty(),
            "{step} does not read {unread:?} of its own manifest"
        );
        let both: Vec<_> = own.intersection(&shown).collect();
        assert!(
            both.is_empty(),
            "{step} sets {both:?}, so settings.env cannot"
        );
        read.extend(variables.all().difference(&own).cloned());
    }
    // A file that one step mounts may be an optional variable of a step that does not mount it.
    let mounted: BTreeSet<String> = STEPS
        .iter()
        .flat_map(|step| of_container(&objects, step))
        .collect();
    let read: BTreeSet<String> = read.difference(&mounted).cloned().collect();
    assert_eq!(
        shown.difference(&read).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "no program reads these keys of settings.env"
    );
    assert_eq!(
        read.difference(&shown).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "settings.env does not show these variables"
    );
}

#[test]
fn every_key_is_explained() {
    for (key, comment) in explained() {
        assert!(comment.len() > 10, "no comment above {key}");
    }
}

#[test]
fn the_table_has_every_program_and_both_kinds() {
    assert!(table("cutover").required.contains("DRY_RUN"));
    assert!(table("cutover").optional.contains("SOURCE_HOSTADDR"));
    for step in STEPS {
        assert!(!table(step).all().is_empty(), "{step}");
    }
}
