//! The manifest of the target that prepare-zalando stores in a ConfigMap, and what becomes of it
//! once the target is promoted: applied as it was rendered, it would make the new primary a standby
//! again (docs/operators/cloudnative-pg.md#replica-mode-again).
//!
//! Its writers, prepare-zalando and the cutover, note the SHA-256 of the text in
//! [`SHA256_ANNOTATION`]. The cutover rewrites only a text that has this digest: what is in a text
//! that a person has edited, or another controller has put there, no program can know, and one that
//! it does not own would be put back. Such a text is left as it is, and the cutover says what to
//! change in it.

use crate::snapshot::kubernetes::StoredManifest;

/// The annotation with the SHA-256 of the stored text, in hexadecimal digits.
pub const SHA256_ANNOTATION: &str = "replica-migration/manifest-sha256";

/// The comment above the rewritten field, in place of the one that the template has there.
const PROMOTED: [&str; 2] = [
    "  # The cutover has promoted this Cluster. With enabled: true CloudNativePG would make it a",
    "  # standby again and end every session.",
];
/// The section that the field is in, two columns inside of `spec:`.
const SECTION: &str = "  replica:";

/// Name of the ConfigMap that holds the manifest of this target.
pub fn map_name(target: &str) -> String {
    format!("{target}-cluster-replica")
}

/// The key of the manifest in that ConfigMap.
pub fn key(target: &str) -> String {
    format!("{}.yaml", map_name(target))
}

/// What a stored text means for the promoted Cluster; None where there is none. `untouched`: it has
/// the SHA-256 that its writer has noted.
pub fn judge(text: Option<&str>, untouched: bool) -> StoredManifest {
    let Some(text) = text else {
        return StoredManifest::Missing;
    };
    match enabled(text) {
        Some((_, false)) => StoredManifest::Promoted,
        Some((_, true)) if untouched => StoredManifest::Follows,
        _ => StoredManifest::Edited,
    }
}

/// The text with `spec.replica.enabled: false`, all else unchanged but the comment above that
/// section; None where the field is not `true`, or not written as the template writes it.
pub fn promoted(text: &str) -> Option<String> {
    let (at, true) = enabled(text)? else {
        return None;
    };
    let mut lines: Vec<String> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_end() == SECTION {
            while lines.last().is_some_and(|line| is_comment(line)) {
                lines.pop();
            }
            lines.extend(PROMOTED.map(str::to_owned));
        }
        lines.push(if number == at {
            line.replacen("true", "false", 1)
        } else {
            line.to_owned()
        });
    }
    Some(lines.join("\n") + "\n")
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// The line that says `spec.replica.enabled`, and its value; None unless there is exactly one,
/// indented by two columns a level.
fn enabled(text: &str) -> Option<(usize, bool)> {
    let (mut in_spec, mut in_section) = (false, false);
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let content = line.trim();
        if content.is_empty() || is_comment(line) {
            continue;
        }
        match line.len() - line.trim_start().len() {
            0 => (in_spec, in_section) = (content == "spec:", false),
            2 => in_section = in_spec && line.trim_end() == SECTION,
            4 if in_section => match content.split(" #").next().map(str::trim) {
                Some("enabled: true") => found.push((number, true)),
                Some("enabled: false") => found.push((number, false)),
                _ => {}
            },
            _ => {}
        }
    }
    match found[..] {
        [one] => Some(one),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the template of prepare-zalando writes it, with the Pooler that follows the Cluster.
    const RENDERED: &str = "\
# Cluster database: a physical replica.
kind: Cluster
metadata:
  annotations:
    cnpg.io/podPatch: |
      [{\"op\": \"add\"}]
spec:
  instances: 1
  # enabled: false promotes this Cluster. Leave that to the cutover, which first proves that no data
  # is missing; CloudNativePG does not check.
  replica:
    enabled: true
    source: pg
  postgresql:
    parameters:
      max_connections: \"100\"
---
kind: Pooler
spec:
  cluster:
    name: database
";

    #[test]
    fn only_the_field_and_its_comment_change() {
        let text = promoted(RENDERED).unwrap();
        let expected = RENDERED.replace("    enabled: true\n", "    enabled: false\n");
        let without_comments = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !is_comment(line));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(without_comments(&text), without_comments(&expected));
        assert!(text.starts_with("# Cluster database") && text.ends_with('\n'));
        let comment = format!("{}\n  replica:\n    enabled: false\n", PROMOTED.join("\n"));
        assert!(text.contains(&comment), "{text}");
        assert!(!text.contains("Leave that to the cutover"), "{text}");
        assert_eq!(
            promoted(&text),
            None,
            "a second time there is nothing to change"
        );
    }

    #[test]
    fn a_text_is_rewritten_only_where_its_writer_left_it_and_it_still_follows() {
        let after = promoted(RENDERED).unwrap();
        let without = RENDERED.replace("    enabled: true\n", "");
        let flow = RENDERED.replace(
            "  replica:\n    enabled: true\n    source: pg\n",
            "  replica: {enabled: true, source: pg}\n",
        );
        let twice = RENDERED.replace("kind: Pooler\n", "kind: Cluster\n")
            + "  replica:\n    enabled: true\n";
        for (text, untouched, wanted) in [
            (None, true, StoredManifest::Missing),
            (Some(RENDERED), true, StoredManifest::Follows),
            (Some(RENDERED), false, StoredManifest::Edited),
            (Some(after.as_str()), true, StoredManifest::Promoted),
            // A person has changed it as the cutover asks.
            (Some(after.as_str()), false, StoredManifest::Promoted),
            (Some(without.as_str()), true, StoredManifest::Edited),
            (Some(flow.as_str()), true, StoredManifest::Edited),
            (Some(twice.as_str()), true, StoredManifest::Edited),
        ] {
            assert_eq!(judge(text, untouched), wanted, "{untouched} {text:?}");
        }
        for text in [&without, &flow, &twice] {
            assert_eq!(promoted(text), None, "{text}");
        }
    }

    #[test]
    fn the_field_of_another_section_is_not_taken_for_it() {
        let other = "spec:\n  replicationSlots:\n    enabled: true\n  replica:\n    source: pg\n";
        assert_eq!(promoted(other), None);
        let status = "status:\n  replica:\n    enabled: true\n";
        assert_eq!(judge(Some(status), true), StoredManifest::Edited);
        let commented = "spec:\n  replica:\n    enabled: true # until the cutover\n";
        let text = promoted(commented).unwrap();
        assert!(
            text.ends_with("    enabled: false # until the cutover\n"),
            "{text}"
        );
    }
}
