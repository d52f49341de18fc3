//! The target: its name, its image, its volume, and what is there already.

use super::Finding;
use crate::{facts::Facts, image::Image, settings::Settings};

/// CloudNativePG's own limit for a Cluster's name (facts/cnpg.md §1.3).
const NAME_CHARS_MAX: usize = 50;

pub(super) fn findings(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    [
        name(settings),
        existing(facts, settings),
        version(facts, image, settings),
        volume(facts, settings),
    ]
    .concat()
}

/// What can be said before anything is asked.
pub fn name(settings: &Settings) -> Vec<Finding> {
    let (target, remedy) = (
        settings.target_cluster.as_str(),
        "choose another TARGET_CLUSTER in the ConfigMap replica-migration",
    );
    let mut found = vec![];
    if settings.target_cluster == settings.source_cluster {
        let what = format!(
            "TARGET_CLUSTER and SOURCE_CLUSTER are both {target}: pods and secrets of the two \
             operators would have the same names"
        );
        found.push(Finding::blocker("NameCollision", what, remedy));
    }
    if target.len() > NAME_CHARS_MAX
        || target.contains('.')
        || !target.starts_with(|c: char| c.is_ascii_lowercase())
    {
        let what = format!(
            "TARGET_CLUSTER {target} is no name for a Cluster: at most {NAME_CHARS_MAX} letters, \
             digits and '-', beginning with a letter"
        );
        found.push(Finding::blocker("NameUnusable", what, remedy));
    }
    found
}

fn existing(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let (Some(target), name) = (&facts.target, &settings.target_cluster) else {
        return vec![];
    };
    let source = facts.server.identity.system_identifier.to_string();
    if !target.system_identifier.is_empty() && target.system_identifier != source {
        let what = format!(
            "cluster {name} exists and holds other data (system identifier {}, the source's is \
             {source})",
            target.system_identifier
        );
        return vec![Finding::blocker(
            "TargetForeign",
            what,
            "delete that Cluster and its volumes, or choose another TARGET_CLUSTER",
        )];
    }
    if !target.follows || target.timeline.is_some_and(|timeline| timeline > 0) {
        let what = format!(
            "cluster {name} exists and follows no source: it has been promoted, or never was a \
             replica"
        );
        return vec![Finding::blocker(
            "TargetPromoted",
            what,
            "after a cutover nothing is left to prepare; otherwise choose another TARGET_CLUSTER",
        )];
    }
    let what = format!("cluster {name} exists already and follows the source");
    let remedy =
        "compare before applying the manifest again: a change in it restarts the only instance";
    vec![Finding::warning("TargetExists", what, remedy)]
}

fn version(facts: &Facts, image: &Image, settings: &Settings) -> Vec<Finding> {
    let (version, tag) = (facts.server.identity, &settings.target_image);
    if version.major() != image.major {
        let what = format!(
            "the source runs PostgreSQL {}, TARGET_IMAGE {tag} has {}",
            version.major(),
            image.major
        );
        return vec![Finding::blocker(
            "OtherMajor",
            what,
            "a physical copy needs the same major version: choose another TARGET_IMAGE",
        )];
    }
    let source_minor = version.version % 10_000;
    match image.minor {
        Some(minor) if minor < source_minor => {
            let what = format!(
                "TARGET_IMAGE {tag} is older than the source's {}.{source_minor}",
                version.major()
            );
            vec![Finding::warning(
                "OlderMinor",
                what,
                "choose an image of the same or a later minor version",
            )]
        }
        Some(_) => vec![],
        None => {
            let what = format!(
                "the tag of TARGET_IMAGE {tag} moves: a pod that is recreated may get another \
                 server"
            );
            vec![Finding::warning(
                "MovingTag",
                what,
                "choose a tag with a minor version, or add the digest",
            )]
        }
    }
}

fn volume(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let (data, volume) = (facts.bytes(), &settings.target_storage);
    // WAL kept for standbys lies in the same volume, and the copy's own until its first checkpoint.
    let needed =
        data + (facts.number("wal_keep_size") << 20) + (facts.number("max_wal_size") << 20);
    let sizes = format!(
        "TARGET_STORAGE is {}, the source's databases have {} MiB",
        volume.text,
        data >> 20
    );
    let remedy = "raise TARGET_STORAGE in the ConfigMap replica-migration";
    match volume.bytes {
        bytes if bytes < needed => vec![Finding::blocker(
            "VolumeSmall",
            format!("{sizes} and keep {} MiB of wal", (needed - data) >> 20),
            remedy,
        )],
        bytes if bytes < needed * 2 => vec![Finding::warning(
            "VolumeTight",
            format!("{sizes}: a clone that has to start again keeps the first attempt beside it"),
            remedy,
        )],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        example,
        facts::Target,
        findings::{Weight, reasons},
    };

    fn target(system_identifier: &str, follows: bool, timeline: Option<u32>) -> Option<Target> {
        Some(Target {
            follows,
            system_identifier: system_identifier.into(),
            timeline,
        })
    }

    #[test]
    fn a_target_with_other_data_or_promoted_blocks_and_one_that_follows_does_not() {
        let (mut facts, settings) = (example::facts(), example::settings());
        for (seen, expected) in [
            (target("1", true, None), (Weight::Blocker, "TargetForeign")),
            (
                target("7500000000000000123", false, Some(4)),
                (Weight::Blocker, "TargetPromoted"),
            ),
            (
                target("7500000000000000123", true, None),
                (Weight::Warning, "TargetExists"),
            ),
            (target("", true, None), (Weight::Warning, "TargetExists")),
        ] {
            facts.target = seen;
            assert!(
                reasons(&facts, &settings).contains(&expected),
                "{expected:?}"
            );
        }
    }

    #[test]
    fn the_names_of_the_two_sides_must_differ_and_fit_cloudnativepg() {
        let mut settings = example::settings();
        settings.target_cluster = settings.source_cluster.clone();
        assert_eq!(name(&settings)[0].reason, "NameCollision");
        settings.target_cluster = "9data.base".parse().unwrap();
        assert_eq!(name(&settings)[0].reason, "NameUnusable");
        assert!(name(&example::settings()).is_empty());
    }

    #[test]
    fn another_major_blocks_an_older_minor_and_a_moving_tag_warn() {
        let (facts, mut settings) = (example::facts(), example::settings());
        for (image, expected) in [
            (
                "postgresql:18.1-standard-trixie",
                (Weight::Blocker, "OtherMajor"),
            ),
            (
                "postgresql:17.6-standard-trixie",
                (Weight::Warning, "OlderMinor"),
            ),
            (
                "postgresql:17-standard-trixie",
                (Weight::Warning, "MovingTag"),
            ),
        ] {
            settings.target_image = serde_json::from_value(image.into()).unwrap();
            assert!(reasons(&facts, &settings).contains(&expected), "{image}");
        }
    }

    #[test]
    fn the_volume_must_hold_the_data_and_the_wal() {
        let (mut facts, settings) = (example::facts(), example::settings());
        facts.databases[0].bytes = 39 << 30;
        assert!(reasons(&facts, &settings).contains(&(Weight::Blocker, "VolumeSmall")));
        facts.databases[0].bytes = 20 << 30;
        assert!(reasons(&facts, &settings).contains(&(Weight::Warning, "VolumeTight")));
    }
}
