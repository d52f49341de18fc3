//! Findings about the target: its name, its image, its volume, and a Cluster that exists already.

use platform::kubernetes::{cnpg::ClusterSpec, zalando::Postgresql};
use protocol::{
    checks::{self, prepare::Id},
    finding::Finding,
    postgres_version::{SUPPORTED, hint, supported},
};

use super::{blocker, decide, handled};
use crate::{cluster_manifest, facts::Facts, image::Image, memory, settings::Settings};

/// Longest name of a Cluster that CloudNativePG's webhook accepts
/// (docs/operators/cloudnative-pg.md).
const NAME_CHARS_MAX: usize = 50;

pub(super) fn findings(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    [
        name(settings),
        existing(facts, settings),
        version(facts, image, settings),
        volume(facts, settings),
        memory_request(facts),
        wal_archive(facts, settings, image),
    ]
    .concat()
}

/// The Cluster as it will be applied archives no WAL. validate-replication and cutover ask the
/// Cluster itself, where it blocks.
fn wal_archive(facts: &Facts, settings: &Settings, image: &Image) -> Vec<Finding> {
    let cluster = cluster_manifest::render(facts, settings, image)
        .and_then(|manifest| cluster_manifest::cluster(&manifest));
    // What cannot be rendered is an error when it is to be written.
    let Ok(mut cluster) = cluster else {
        return vec![];
    };
    let spec: ClusterSpec = serde_json::from_value(cluster["spec"].take()).unwrap_or_default();
    match spec.wal_archiver() {
        Some(_) => vec![],
        None => vec![decide(
            Id::WalArchive,
            "",
            checks::NO_STORE,
            checks::STORE_HINT,
        )],
    }
}

/// Findings that need the settings only.
pub fn name(settings: &Settings) -> Vec<Finding> {
    let target = settings.target_cluster.as_str();
    let hint = "choose another TARGET_CLUSTER in the ConfigMap replica-migration";
    let mut found = vec![];
    if settings.target_cluster == settings.source_cluster {
        found.push(blocker(
            Id::TargetNameCollision,
            target,
            format!(
                "TARGET_CLUSTER and SOURCE_CLUSTER are both {target}: pods and Secrets of the two \
                 operators would have the same names"
            ),
            hint,
        ));
    }
    if target.len() > NAME_CHARS_MAX
        || target.contains('.')
        || !target.starts_with(|c: char| c.is_ascii_lowercase())
    {
        found.push(blocker(
            Id::TargetNameInvalid,
            target,
            format!(
                "TARGET_CLUSTER {target} is not a valid name for a Cluster: it takes at most \
                 {NAME_CHARS_MAX} letters, digits and '-', and begins with a letter"
            ),
            hint,
        ));
    }
    found
}

fn existing(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let (Some(target), name) = (&facts.target, settings.target_cluster.as_str()) else {
        return vec![];
    };
    let source = facts.server.identity.system_identifier.to_string();
    if !target.system_identifier.is_empty() && target.system_identifier != source {
        return vec![blocker(
            Id::TargetOtherData,
            name,
            format!(
                "cluster {name} exists and holds other data (system identifier {}, the source has \
                 {source})",
                target.system_identifier
            ),
            "delete that Cluster and its volumes, or choose another TARGET_CLUSTER",
        )];
    }
    if !target.follows || target.timeline.is_some_and(|timeline| timeline > 0) {
        return vec![blocker(
            Id::TargetPromoted,
            name,
            format!(
                "cluster {name} exists and follows no source: it was promoted, or never was a \
                 replica"
            ),
            "after a cutover there is nothing left to prepare; otherwise choose another \
             TARGET_CLUSTER",
        )];
    }
    vec![decide(
        Id::TargetExists,
        name,
        format!("cluster {name} exists already and follows the source"),
        "compare the manifests before you apply this one again: a change restarts the only \
         instance",
    )]
}

/// Whether the major version that the resource asks for is supported, and is the image's. Asked
/// first, because the queries to a server of another version may fail.
pub fn wanted_version(
    resource: &Postgresql,
    image: &Image,
    settings: &Settings,
) -> Option<Finding> {
    let version = &resource.spec.postgresql.version;
    major_version(version.parse().ok()?, image, settings)
}

fn major_version(major: u32, image: &Image, settings: &Settings) -> Option<Finding> {
    if !SUPPORTED.contains(&major) {
        let found = format!(
            "the source is PostgreSQL {major}; supported are {}",
            supported()
        );
        return Some(blocker(Id::MajorVersion, "", found, hint(major)));
    }
    (major != image.major).then(|| {
        blocker(
            Id::MajorVersion,
            "",
            format!(
                "the source is PostgreSQL {major}, TARGET_IMAGE {} has {}",
                settings.target_image, image.major
            ),
            "a physical copy needs the same major version: choose another TARGET_IMAGE",
        )
    })
}

fn version(facts: &Facts, image: &Image, settings: &Settings) -> Vec<Finding> {
    let (version, reference) = (facts.server.identity, settings.target_image.as_str());
    if let Some(finding) = major_version(version.major(), image, settings) {
        return vec![finding];
    }
    let source_minor = version.version % 10_000;
    match image.minor {
        Some(minor) if minor < source_minor => vec![decide(
            Id::MinorVersion,
            "",
            format!(
                "TARGET_IMAGE {reference} is older than the source's {}.{source_minor}",
                version.major()
            ),
            "choose an image of the same or a later minor version",
        )],
        Some(_) => vec![],
        None => vec![decide(
            Id::ImageNotPinned,
            "",
            format!(
                "the tag of TARGET_IMAGE {reference} moves: a recreated pod may get another \
                 version of the server"
            ),
            "choose a tag with a minor version, or add the digest",
        )],
    }
}

fn memory_request(facts: &Facts) -> Vec<Finding> {
    let raised = memory::raised(facts).into_iter().map(|raised| {
        handled(
            Id::MemoryRequest,
            raised.kind,
            format!(
                "the source's container has memory {} in its {}, less than shared_buffers: \
                 CloudNativePG refuses that",
                raised.from, raised.kind
            ),
            format!("the manifest says {}", raised.to),
        )
    });
    raised.collect()
}

fn volume(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let (data, volume) = (facts.bytes(), &settings.target_storage);
    // The volume also holds the WAL that wal_keep_size keeps, and the WAL of the copy until its
    // first checkpoint.
    let needed =
        data + (facts.number("wal_keep_size") << 20) + (facts.number("max_wal_size") << 20);
    let sizes = format!(
        "TARGET_STORAGE is {}, the source's databases have {} MiB",
        volume.text,
        data >> 20
    );
    let hint = "raise TARGET_STORAGE in the ConfigMap replica-migration";
    if volume.bytes < needed {
        let kept = (needed - data) >> 20;
        let found = format!("{sizes} and keep {kept} MiB of WAL");
        vec![blocker(Id::VolumeTooSmall, "", found, hint)]
    } else if volume.bytes < needed * 2 {
        let found = format!("{sizes}: a repeated clone keeps the files of the first attempt");
        vec![decide(Id::VolumeTight, "", found, hint)]
    } else {
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::Target,
        findings::{Verdict, assert_found, labels},
        fixture,
    };

    fn target(system_identifier: &str, follows: bool, timeline: Option<u32>) -> Option<Target> {
        Some(Target {
            follows,
            system_identifier: system_identifier.into(),
            timeline,
        })
    }

    #[test]
    fn a_target_with_other_data_or_after_promotion_blocks_and_one_that_follows_does_not() {
        let (mut facts, settings) = (fixture::facts(), fixture::settings());
        let source = "7500000000000000123";
        for (existing, verdict, label) in [
            (
                target("1", true, None),
                Verdict::Blocker,
                "target-other-data:database",
            ),
            (
                target(source, false, Some(4)),
                Verdict::Blocker,
                "target-promoted:database",
            ),
            (
                target(source, true, None),
                Verdict::Decide,
                "target-exists:database",
            ),
            (
                target("", true, None),
                Verdict::Decide,
                "target-exists:database",
            ),
        ] {
            facts.target = existing;
            assert_found(&facts, &settings, verdict, label);
        }
    }

    #[test]
    fn the_target_needs_a_name_of_its_own_that_cloudnativepg_accepts() {
        let mut settings = fixture::settings();
        settings.target_cluster = settings.source_cluster.clone();
        assert_eq!(name(&settings)[0].id, "target-name-collision");
        settings.target_cluster = "9data.base".parse().unwrap();
        assert_eq!(name(&settings)[0].id, "target-name-invalid");
        assert!(name(&fixture::settings()).is_empty());
    }

    #[test]
    fn another_major_version_blocks_an_older_minor_and_a_moving_tag_are_decisions() {
        let (facts, mut settings) = (fixture::facts(), fixture::settings());
        for (image, verdict, id) in [
            (
                "postgresql:18.1-standard-trixie",
                Verdict::Blocker,
                "major-version",
            ),
            (
                "postgresql:17.6-standard-trixie",
                Verdict::Decide,
                "minor-version",
            ),
            (
                "postgresql:17-standard-trixie",
                Verdict::Decide,
                "image-not-pinned",
            ),
        ] {
            settings.target_image = serde_json::from_value(image.into()).unwrap();
            assert_found(&facts, &settings, verdict, id);
        }
    }

    #[test]
    fn memory_below_shared_buffers_is_raised_and_said() {
        let (mut facts, settings) = (fixture::facts(), fixture::settings());
        facts.pod.resources = Some(serde_json::json!({"requests": {"memory": "100Mi"}}));
        assert_found(
            &facts,
            &settings,
            Verdict::Handled,
            "memory-request:requests",
        );
    }

    #[test]
    fn the_volume_must_hold_the_data_and_the_wal() {
        let (mut facts, settings) = (fixture::facts(), fixture::settings());
        facts.databases[0].bytes = 39 << 30;
        assert_found(&facts, &settings, Verdict::Blocker, "volume-too-small");
        facts.databases[0].bytes = 20 << 30;
        assert_found(&facts, &settings, Verdict::Decide, "volume-tight");
    }

    #[test]
    fn a_cluster_without_a_store_is_for_a_person_to_decide() {
        let (mut facts, settings) = (fixture::facts(), fixture::settings());
        let decided = |facts: &Facts| {
            let labels = labels(facts, &settings);
            labels.contains(&(Verdict::Decide, "wal-archive".to_owned()))
        };
        assert!(decided(&facts));
        for (patch, wanted) in [
            (
                "spec: {plugins: [{name: barman, isWALArchiver: true}]}",
                false,
            ),
            ("spec: {plugins: [{name: other}]}", true),
            (
                "spec: {backup: {barmanObjectStore: {destinationPath: 's3://b'}}}",
                false,
            ),
            ("spec: {backup: {target: primary}}", true),
        ] {
            facts.target_patch = patch.parse().unwrap();
            assert_eq!(decided(&facts), wanted, "{patch}");
        }
    }
}
