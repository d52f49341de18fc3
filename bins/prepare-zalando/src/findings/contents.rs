//! What the databases hold that a copy cannot bring along, or brings along changed.

use std::collections::BTreeSet;

use super::{Finding, some};
use crate::{
    facts::{Database, Facts},
    image::{Image, SPILO_OWN},
    settings::Settings,
};

pub(super) fn findings(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    [
        owner(facts, settings),
        files(facts),
        unlogged(facts),
        collations(facts, settings, image),
        extensions(facts, settings, image),
        triggers(facts),
    ]
    .concat()
}

fn owner(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let Some(database) = facts.database(&settings.database) else {
        return vec![Finding::blocker(
            "DatabaseMissing",
            format!("the source has no database {}", settings.database),
            "correct DATABASE in the ConfigMap replica-migration",
        )];
    };
    let owner = facts.role(&database.owner);
    if owner.is_none_or(|role| role.hash.is_none()) {
        let what = format!(
            "{}, who owns {}, has no password; CloudNativePG gives it a random one at the \
             promotion",
            database.owner, database.name
        );
        return vec![Finding::warning(
            "OwnerWithoutPassword",
            what,
            "nothing, if nobody logs in as the owner",
        )];
    }
    vec![]
}

fn files(facts: &Facts) -> Vec<Finding> {
    let tablespaces = &facts.server.tablespaces;
    if tablespaces.is_empty() {
        return vec![];
    }
    let what = format!(
        "tablespaces cannot be copied this way: {}",
        some(tablespaces)
    );
    vec![Finding::blocker(
        "Tablespaces",
        what,
        "move what lies in them to pg_default and drop them",
    )]
}

fn unlogged(facts: &Facts) -> Vec<Finding> {
    let with = facts
        .databases
        .iter()
        .filter(|database| database.unlogged.0 > 0);
    let each: Vec<String> = with
        .map(|database| {
            format!(
                "{} in {} ({})",
                database.unlogged.0,
                database.name,
                some(&database.unlogged.1)
            )
        })
        .collect();
    if each.is_empty() {
        return vec![];
    }
    let what = format!(
        "unlogged tables will be empty at the target: {}",
        some(&each)
    );
    vec![Finding::warning(
        "Unlogged",
        what,
        "alter table … set logged where that matters, or fill them anew",
    )]
}

/// Sort orders come from the operating system: an index built in one order and searched in another
/// hides rows.
fn collations(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    let mut found = vec![];
    let touched: Vec<&Database> = facts
        .databases
        .iter()
        .filter(|database| database.collated_indexes > 0)
        .collect();
    let each: Vec<String> = touched
        .iter()
        .map(|database| format!("{} in {}", database.collated_indexes, database.name))
        .collect();
    let versions: BTreeSet<&str> = touched
        .iter()
        .filter(|d| d.provider == 'c')
        .filter_map(|d| d.actual_version.as_deref())
        .collect();
    let versions: Vec<&str> = versions.into_iter().collect();
    let remedy = "after the cutover reindex them, then alter database … refresh collation version; \
        validate-replication compares the real orders";
    if facts.pod.old_locales && !touched.is_empty() {
        let what = format!(
            "USE_OLD_LOCALES is set: the source sorts as glibc 2.27, whatever version it reports; \
             indexes that depend on it: {}",
            some(&each)
        );
        found.push(Finding::warning("Collations", what, remedy));
    } else if !touched.is_empty() && versions.as_slice() != image.glibc.as_slice() {
        let target = image
            .glibc
            .map_or("one that its name does not tell".to_owned(), |glibc| {
                format!("glibc {glibc}")
            });
        let what = format!(
            "the source sorts by glibc {}, the target by {target}; indexes that depend on it: {}",
            versions.join(" and "),
            some(&each)
        );
        found.push(Finding::warning("Collations", what, remedy));
    }
    let stale: Vec<&str> = facts
        .databases
        .iter()
        .filter(|d| d.recorded_version != d.actual_version)
        .map(|d| d.name.as_str())
        .collect();
    if !stale.is_empty() {
        let what = format!(
            "the source itself has changed its collations since these databases were made: {}",
            some(&stale)
        );
        found.push(Finding::warning(
            "CollationsStale",
            what,
            "its own indexes may be wrong already: reindex before the copy",
        ));
    }
    let plain = |name: &str| {
        matches!(
            name.to_ascii_lowercase().as_str(),
            "c" | "posix" | "c.utf-8" | "c.utf8"
        )
    };
    let unknown: BTreeSet<&str> = facts
        .databases
        .iter()
        .map(|d| d.collate.as_str())
        .filter(|name| !plain(name))
        .collect();
    if !image.has_locales() && !unknown.is_empty() {
        let names: Vec<&str> = unknown.into_iter().collect();
        let what = format!(
            "TARGET_IMAGE {} has no locale {}: such databases refuse every connection",
            settings.target_image,
            some(&names)
        );
        found.push(Finding::blocker("Locales", what, "choose a standard image"));
    }
    found
}

fn extensions(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    let installed: BTreeSet<&str> = facts
        .databases
        .iter()
        .flat_map(|d| d.extensions.iter().map(String::as_str))
        .collect();
    let (spilos, others): (Vec<&str>, Vec<&str>) = installed
        .into_iter()
        .partition(|name| SPILO_OWN.contains(name));
    let spilos: Vec<&str> = spilos
        .into_iter()
        .filter(|name| image.has_extension(name) != Some(true))
        .collect();
    let lacking: Vec<&str> = others
        .iter()
        .copied()
        .filter(|name| image.has_extension(name) == Some(false))
        .collect();
    let unknown: Vec<&str> = others
        .iter()
        .copied()
        .filter(|name| image.has_extension(name).is_none())
        .collect();
    let mut found = vec![];
    if !lacking.is_empty() {
        let what = format!(
            "TARGET_IMAGE {} lacks extensions that are in use: {}",
            settings.target_image,
            some(&lacking)
        );
        found.push(Finding::warning(
            "Extensions",
            what,
            "choose an image that has them, unless their functions are never called",
        ));
    }
    if !unknown.is_empty() {
        let what = format!(
            "whether TARGET_IMAGE {} has these extensions, its name does not tell: {}",
            settings.target_image,
            some(&unknown)
        );
        found.push(Finding::warning(
            "ExtensionsUnknown",
            what,
            "make sure that it has",
        ));
    }
    if !spilos.is_empty() {
        let what = format!(
            "Spilo's own extensions come along and cannot be called at the target: {}",
            some(&spilos)
        );
        found.push(Finding::warning(
            "SpiloExtensions",
            what,
            "drop them after the cutover, the views of metric_helpers first",
        ));
    }
    let jobs: u32 = facts
        .databases
        .iter()
        .map(|database| database.cron_jobs)
        .sum();
    if jobs > 0 {
        let what = format!("{jobs} active jobs of pg_cron stop with the cutover");
        found.push(Finding::warning(
            "CronJobs",
            what,
            "move them to CronJobs, or use an image that has pg_cron",
        ));
    }
    found
}

fn triggers(facts: &Facts) -> Vec<Finding> {
    let with = facts
        .databases
        .iter()
        .filter(|database| !database.event_triggers.is_empty());
    let each: Vec<String> = with
        .map(|database| format!("{} in {}", some(&database.event_triggers), database.name))
        .collect();
    if each.is_empty() {
        return vec![];
    }
    let what = format!("event triggers fire at the target, too: {}", some(&each));
    vec![Finding::warning(
        "EventTriggers",
        what,
        "drop those whose library the target lacks: with them no ddl would succeed",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        example,
        findings::{Weight, reasons},
    };

    fn found(change: impl FnOnce(&mut Facts, &mut Settings)) -> Vec<(Weight, &'static str)> {
        let (mut facts, mut settings) = (example::facts(), example::settings());
        change(&mut facts, &mut settings);
        reasons(&facts, &settings)
    }

    #[test]
    fn tablespaces_a_missing_database_and_missing_locales_block() {
        assert!(
            found(|f, _| f.server.tablespaces = vec!["fast".into()])
                .contains(&(Weight::Blocker, "Tablespaces"))
        );
        assert!(found(|f, _| f.databases.clear()).contains(&(Weight::Blocker, "DatabaseMissing")));
        let minimal = |_: &mut Facts, s: &mut Settings| {
            s.target_image =
                serde_json::from_value("postgresql:17.10-minimal-trixie".into()).unwrap()
        };
        assert!(found(minimal).contains(&(Weight::Blocker, "Locales")));
    }

    #[test]
    fn other_collations_warn_and_equal_ones_do_not() {
        assert!(found(|_, _| {}).contains(&(Weight::Warning, "Collations")));
        let same = |f: &mut Facts, _: &mut Settings| {
            for database in &mut f.databases {
                (database.recorded_version, database.actual_version) =
                    (Some("2.41".into()), Some("2.41".into()));
            }
        };
        assert!(!found(same).contains(&(Weight::Warning, "Collations")));
        let old = |f: &mut Facts, s: &mut Settings| {
            same(f, s);
            f.pod.old_locales = true;
        };
        assert!(found(old).contains(&(Weight::Warning, "Collations")));
        assert!(
            found(|f, _| f.databases[0].actual_version = Some("2.36".into()))
                .contains(&(Weight::Warning, "CollationsStale"))
        );
    }

    #[test]
    fn what_the_image_lacks_is_told_apart_from_what_only_spilo_wants() {
        let with = |name: &str| found(|f, _| f.databases[0].extensions.push(name.into()));
        assert!(with("timescaledb").contains(&(Weight::Warning, "Extensions")));
        assert!(with("pg_cron").contains(&(Weight::Warning, "SpiloExtensions")));
        assert!(
            !with("pg_trgm")
                .iter()
                .any(|(_, reason)| reason.contains("xtensions"))
        );
    }

    #[test]
    fn what_a_copy_does_not_bring_along_warns() {
        assert!(
            found(|f, _| f.databases[0].unlogged = (1, vec!["public.t".into()]))
                .contains(&(Weight::Warning, "Unlogged"))
        );
        assert!(
            found(|f, _| f.databases[0].cron_jobs = 2).contains(&(Weight::Warning, "CronJobs"))
        );
        assert!(
            found(|f, _| f.databases[0].event_triggers = vec!["e".into()])
                .contains(&(Weight::Warning, "EventTriggers"))
        );
        assert!(
            found(|f, _| f.roles[2].hash = None)
                .contains(&(Weight::Warning, "OwnerWithoutPassword"))
        );
    }
}
