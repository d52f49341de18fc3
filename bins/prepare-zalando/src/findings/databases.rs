//! Findings about the contents of the databases: what a physical copy does not bring along, and
//! what behaves differently at the target.

use std::collections::BTreeSet;

use protocol::{
    checks::prepare::Id,
    finding::{Finding, listed},
};

use super::{blocker, decide, handled};
use crate::{
    facts::{Database, Facts},
    image::{Image, SPILO_EXTENSIONS},
    settings::Settings,
};

pub(super) fn findings(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    [
        owner(facts, settings),
        tablespaces(facts),
        unlogged(facts),
        collations(facts, image),
        locales(facts, settings, image),
        extensions(facts, settings, image),
        cron_jobs(facts),
        event_triggers(facts),
    ]
    .concat()
}

fn owner(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let name = settings.database.as_str();
    let Some(database) = facts.database(name) else {
        return vec![blocker(
            Id::DatabaseMissing,
            name,
            format!("the source has no database {name}"),
            "correct DATABASE in the ConfigMap replica-migration",
        )];
    };
    let owner = facts.role(&database.owner);
    if owner.is_some_and(|role| role.hash.is_some()) {
        return vec![];
    }
    vec![decide(
        Id::OwnerWithoutPassword,
        &database.owner,
        format!(
            "role {}, the owner of {name}, has no password, and CloudNativePG sets a random one \
             at the promotion",
            database.owner
        ),
        "nothing, unless something logs in as the owner: then set a password at the source first",
    )]
}

fn tablespaces(facts: &Facts) -> Vec<Finding> {
    let tablespaces = facts.server.tablespaces.iter();
    tablespaces
        .map(|name| {
            blocker(
                Id::Tablespace,
                name,
                format!("tablespace {name} cannot be copied to the target"),
                "move its contents to pg_default and drop it",
            )
        })
        .collect()
}

fn unlogged(facts: &Facts) -> Vec<Finding> {
    let affected = facts
        .databases
        .iter()
        .filter(|database| database.unlogged.0 > 0);
    affected
        .map(|database| {
            let (count, names) = &database.unlogged;
            decide(
                Id::UnloggedTables,
                &database.name,
                format!(
                    "unlogged tables will be empty at the target: {count} in {} ({})",
                    database.name,
                    listed(names)
                ),
                "alter table … set logged where their contents matter, or fill them again",
            )
        })
        .collect()
}

/// Sort orders come from the operating system's libraries: an index built with one version and read
/// with another does not find all rows.
fn collations(facts: &Facts, image: &Image) -> Vec<Finding> {
    let target = image
        .glibc
        .map_or("an unknown version".to_owned(), |glibc| {
            format!("glibc {glibc}")
        });
    let hint = "after the cutover reindex, then alter database … refresh collation version; \
        validate-replication compares the actual sort orders";
    let mut found = vec![];
    for database in &facts.databases {
        let name = database.name.as_str();
        if database.collated_indexes > 0 && (facts.pod.old_locales || differs(database, image)) {
            let source = collation_source(facts, database);
            found.push(decide(
                Id::CollationVersion,
                name,
                format!(
                    "the source sorts with {source}, the target with {target}; indexes of {name} \
                     that depend on it: {}",
                    database.collated_indexes
                ),
                hint,
            ));
        }
        if database.recorded_version != database.actual_version {
            found.push(decide(
                Id::CollationVersionStale,
                name,
                format!("the collations of the source have changed since {name} was created"),
                "indexes of the source itself may be wrong already: reindex before the copy",
            ));
        }
    }
    found
}

/// Anything but the same version of glibc on both sides, where both are known.
fn differs(database: &Database, image: &Image) -> bool {
    database.provider != 'c' || database.actual_version.as_deref() != image.glibc
}

fn collation_source(facts: &Facts, database: &Database) -> String {
    if facts.pod.old_locales {
        return "glibc 2.27, whatever version it reports (USE_OLD_LOCALES)".to_owned();
    }
    let library = match database.provider {
        'c' => "glibc",
        'i' => "ICU",
        _ => "the builtin provider,",
    };
    let version = database.actual_version.as_deref();
    format!("{library} {}", version.unwrap_or("version unknown"))
}

fn locales(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    if image.has_locales() {
        return vec![];
    }
    let in_every_image = |name: &str| {
        matches!(
            name.to_ascii_lowercase().as_str(),
            "c" | "posix" | "c.utf-8" | "c.utf8"
        )
    };
    let missing: BTreeSet<&str> = facts
        .databases
        .iter()
        .map(|database| database.collate.as_str())
        .filter(|name| !in_every_image(name))
        .collect();
    missing
        .into_iter()
        .map(|locale| {
            blocker(
                Id::LocaleMissing,
                locale,
                format!(
                    "TARGET_IMAGE {} has no locale {locale}: databases that use it refuse every \
                     connection",
                    settings.target_image
                ),
                "choose a standard image",
            )
        })
        .collect()
}

fn extensions(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    let installed: BTreeSet<&str> = facts
        .databases
        .iter()
        .flat_map(|database| database.extensions.iter().map(String::as_str))
        .collect();
    let (spilos, others): (Vec<&str>, Vec<&str>) = installed
        .into_iter()
        .partition(|name| SPILO_EXTENSIONS.contains(name));
    let spilos: Vec<&str> = spilos
        .into_iter()
        .filter(|name| image.has_extension(name) != Some(true))
        .collect();
    let mut found = vec![];
    for name in others {
        match image.has_extension(name) {
            Some(true) => {}
            Some(false) => found.push(decide(
                Id::ExtensionMissing,
                name,
                format!(
                    "TARGET_IMAGE {} lacks the extension {name}, which is installed",
                    settings.target_image
                ),
                "choose an image that has it, unless its functions are never called",
            )),
            None => found.push(decide(
                Id::ExtensionUnknown,
                name,
                format!(
                    "the name of TARGET_IMAGE {} does not tell whether it has the extension {name}",
                    settings.target_image
                ),
                "make sure that it does",
            )),
        }
    }
    if !spilos.is_empty() {
        found.push(handled(
            Id::SpiloExtensions,
            "",
            format!(
                "extensions that only Spilo uses are copied and cannot be called: {}",
                listed(&spilos)
            ),
            "drop them after the cutover, the views of metric_helpers first",
        ));
    }
    found
}

fn cron_jobs(facts: &Facts) -> Vec<Finding> {
    let affected = facts
        .databases
        .iter()
        .filter(|database| database.cron_jobs > 0);
    affected
        .map(|database| {
            decide(
                Id::CronJobs,
                &database.name,
                format!(
                    "{} active jobs of pg_cron in {} stop with the cutover",
                    database.cron_jobs, database.name
                ),
                "move them to CronJobs, or use an image that has pg_cron",
            )
        })
        .collect()
}

fn event_triggers(facts: &Facts) -> Vec<Finding> {
    let affected = facts
        .databases
        .iter()
        .filter(|database| !database.event_triggers.is_empty());
    affected
        .map(|database| {
            decide(
                Id::EventTriggers,
                &database.name,
                format!(
                    "event triggers fire at the target, too: {} in {}",
                    listed(&database.event_triggers),
                    database.name
                ),
                "drop those whose library the target lacks: with them no DDL succeeds",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        findings::{Verdict, labels},
        fixture,
    };

    fn found(change: impl FnOnce(&mut Facts, &mut Settings)) -> Vec<(Verdict, String)> {
        let (mut facts, mut settings) = (fixture::facts(), fixture::settings());
        change(&mut facts, &mut settings);
        labels(&facts, &settings)
    }

    #[track_caller]
    fn expect(
        change: impl FnOnce(&mut Facts, &mut Settings),
        verdict: Verdict,
        label: &'static str,
    ) {
        let found = found(change);
        assert!(
            found.contains(&(verdict, label.to_owned())),
            "{label} is not in {found:?}"
        );
    }

    #[test]
    fn tablespaces_a_missing_database_and_missing_locales_block() {
        expect(
            |f, _| f.server.tablespaces = vec!["fast".into()],
            Verdict::Blocker,
            "tablespace:fast",
        );
        expect(
            |f, _| f.databases.clear(),
            Verdict::Blocker,
            "database-missing:mastodon",
        );
        expect(
            |_, s| {
                s.target_image =
                    serde_json::from_value("postgresql:17.10-minimal-trixie".into()).unwrap();
            },
            Verdict::Blocker,
            "locale-missing:en_US.utf-8",
        );
    }

    #[test]
    fn different_collation_versions_are_a_decision_and_equal_ones_are_no_finding() {
        expect(|_, _| {}, Verdict::Decide, "collation-version:mastodon");
        let same = |f: &mut Facts, _: &mut Settings| {
            for database in &mut f.databases {
                (database.recorded_version, database.actual_version) =
                    (Some("2.41".into()), Some("2.41".into()));
            }
        };
        assert!(
            !found(same)
                .iter()
                .any(|(_, label)| label.starts_with("collation"))
        );
        expect(
            |f, s| {
                same(f, s);
                f.pod.old_locales = true;
            },
            Verdict::Decide,
            "collation-version:mastodon",
        );
        expect(
            |f, _| f.databases[0].actual_version = Some("2.36".into()),
            Verdict::Decide,
            "collation-version-stale:mastodon",
        );
    }

    #[test]
    fn extensions_that_the_image_lacks_are_decisions_and_spilos_own_are_handled() {
        let with = |name: &'static str| {
            move |f: &mut Facts, _: &mut Settings| f.databases[0].extensions.push(name.into())
        };
        expect(
            with("timescaledb"),
            Verdict::Decide,
            "extension-missing:timescaledb",
        );
        expect(with("pg_cron"), Verdict::Handled, "spilo-extensions");
        assert!(
            !found(with("pg_trgm"))
                .iter()
                .any(|(_, label)| label.contains("extension"))
        );
    }

    #[test]
    fn whatever_a_copy_does_not_bring_along_is_a_decision() {
        expect(
            |f, _| f.databases[0].unlogged = (1, vec!["public.t".into()]),
            Verdict::Decide,
            "unlogged-tables:mastodon",
        );
        expect(
            |f, _| f.databases[0].cron_jobs = 2,
            Verdict::Decide,
            "cron-jobs:mastodon",
        );
        expect(
            |f, _| f.databases[0].event_triggers = vec!["e".into()],
            Verdict::Decide,
            "event-triggers:mastodon",
        );
        expect(
            |f, _| f.roles[2].hash = None,
            Verdict::Decide,
            "owner-without-password:mastodon",
        );
    }
}
