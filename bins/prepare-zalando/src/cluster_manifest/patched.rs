//! A merge patch applied to the text of the manifest, so that the comments stay: only the fields
//! that the patch changes are written again. The text is the template's, in block style with two
//! columns a level.

use serde_json::{Map, Value};

/// Comment above a field that the patch has changed.
const MARK: &str = "# From TARGET_PATCH.";

/// The document with the fields of the patch; a null removes a field.
pub fn patched(document: &str, patch: &Map<String, Value>) -> Result<String, String> {
    let mut lines: Vec<String> = document.lines().map(str::to_owned).collect();
    let whole = 0..lines.len();
    change(&mut lines, whole, 0, patch)?;
    Ok(lines.join("\n") + "\n")
}

/// Changes the mapping whose keys are at the column `indent` in this range of the lines.
fn change(
    lines: &mut Vec<String>,
    range: std::ops::Range<usize>,
    indent: usize,
    patch: &Map<String, Value>,
) -> Result<(), String> {
    let mut end = range.end;
    for (key, value) in patch {
        let before = lines.len();
        match (block(lines, range.start..end, indent, key), value) {
            (None, Value::Null) => {}
            (None, _) => {
                let at = last_content(lines, range.start..end) + 1;
                insert(lines, at, indent, key, &merged(Value::Null, value))?;
            }
            (Some(found), Value::Object(below)) if is_block_mapping(lines, &found, indent) => {
                change(lines, found.start + 1..found.end, indent + 2, below)?;
            }
            (Some(found), _) => {
                let start = comments_above(lines, range.start, found.start);
                let text: Vec<String> = lines.drain(start..found.end).collect();
                if !value.is_null() {
                    let mut before: Value = serde_yaml_ng::from_str(&text.join("\n"))
                        .map_err(|error| error.to_string())?;
                    insert(
                        lines,
                        start,
                        indent,
                        key,
                        &merged(before[key].take(), value),
                    )?;
                }
            }
        }
        end = end + lines.len() - before;
    }
    Ok(())
}

/// The lines of a key with all that belongs to it, without comments behind it.
fn block(
    lines: &[String],
    range: std::ops::Range<usize>,
    indent: usize,
    key: &str,
) -> Option<std::ops::Range<usize>> {
    let is_key = |line: &str| {
        let (content, found) = (line.trim_start(), column(line));
        let name = content.split(':').next().unwrap_or_default();
        // A key such as cnpg.io/podPatch has no colon, and the template quotes none that has one.
        found == indent && content.len() > name.len() && name.trim_matches('"') == key
    };
    let start = range.clone().find(|at| is_key(&lines[*at]))?;
    let belongs = |line: &str| {
        is_empty(line)
            || column(line) > indent
            || (column(line) == indent && line.trim_start().starts_with("- "))
    };
    let end = (start + 1..range.end)
        .find(|at| !belongs(&lines[*at]))
        .unwrap_or(range.end);
    Some(start..last_content(lines, start..end) + 1)
}

/// The value is a mapping in block style, or null.
fn is_block_mapping(lines: &[String], block: &std::ops::Range<usize>, indent: usize) -> bool {
    let head_only = lines[block.start].trim_end().ends_with(':');
    let first = lines[block.start + 1..block.end]
        .iter()
        .find(|line| !is_empty(line));
    head_only && first.is_some_and(|line| column(line) == indent + 2)
}

fn insert(
    lines: &mut Vec<String>,
    at: usize,
    indent: usize,
    key: &str,
    value: &Value,
) -> Result<(), String> {
    let field = Map::from_iter([(key.to_owned(), value.clone())]);
    let text = serde_yaml_ng::to_string(&field).map_err(|error| error.to_string())?;
    let text = text.lines().map(|line| match line {
        "" => String::new(),
        line => format!("{:indent$}{line}", ""),
    });
    let mark = format!("{:indent$}{MARK}", "");
    lines.splice(at..at, std::iter::once(mark).chain(text));
    Ok(())
}

/// The value after the patch (RFC 7386).
fn merged(mut before: Value, patch: &Value) -> Value {
    json_patch::merge(&mut before, patch);
    before
}

/// The last line of the range that is neither empty nor a comment; the one before the range where
/// there is none.
fn last_content(lines: &[String], range: std::ops::Range<usize>) -> usize {
    let before = range.start.saturating_sub(1);
    let mut all = range.rev();
    all.find(|at| !is_empty(&lines[*at])).unwrap_or(before)
}

/// The first of the comments directly above a line.
fn comments_above(lines: &[String], first: usize, line: usize) -> usize {
    let mut start = line;
    while start > first && is_comment(&lines[start - 1]) {
        start -= 1;
    }
    start
}

fn column(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

fn is_empty(line: &str) -> bool {
    line.trim().is_empty() || is_comment(line)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = "\
# The Cluster.
kind: Cluster
metadata:
  name: database
  annotations:
    cnpg.io/podPatch: |
      [
        {\"op\": \"add\"}
      ]
spec:
  # One.
  instances: 1
  storage:
    size: \"40Gi\"
  affinity: {\"tolerations\":[{\"key\":\"a\"}],\"nodeAffinity\":{\"b\":1}}
  externalClusters:
  - name: pg
    sslmode: require
  # Settings.
  postgresql:
    parameters:
      # Equal.
      max_connections: \"100\"
    pg_hba:
    # One line.
    - \"hostssl a\"
";

    fn with(patch: Value) -> String {
        let Value::Object(patch) = patch else {
            panic!("a mapping")
        };
        patched(TEXT, &patch).unwrap()
    }

    fn value(text: &str) -> Value {
        serde_yaml_ng::from_str(text).unwrap()
    }

    #[test]
    fn the_text_has_the_merged_value_and_keeps_every_other_line() {
        for patch in [
            json!({}),
            json!({"spec": {"storage": {"size": "50Gi", "storageClass": "fast"}}}),
            json!({"spec": {"storage": null, "walStorage": {"size": "5Gi", "resize": null}}}),
            json!({"spec": {"plugins": [{"name": "barman", "isWALArchiver": true}]}}),
            json!({"spec": {"postgresql": {"parameters": {"work_mem": "8MB"}, "pg_hba": ["x"]}}}),
            json!({"metadata": {"labels": {"team": "a"}, "annotations": {"k8s.io/x": "y"}}}),
            json!({"spec": {"affinity": {"nodeSelector": {"a": "b"}}, "externalClusters": null}}),
            json!({"spec": {"instances": {"a": 1}, "absent": null}}),
            json!({"spec": {"backup": {"target": "primary"}, "monitoring": {"a": [], "b": {}}}}),
        ] {
            let mut merged = value(TEXT);
            json_patch::merge(&mut merged, &patch);
            let text = with(patch.clone());
            assert_eq!(value(&text), merged, "{patch}\n{text}");
        }
        let text = with(json!({"spec": {"storage": {"size": "50Gi"}}}));
        let marked = "  storage:\n    # From TARGET_PATCH.\n    size: 50Gi\n  affinity: ";
        assert!(text.contains(marked), "{text}");
        assert!(text.contains("  # Settings.\n  postgresql:\n"), "{text}");
        assert!(text.contains("      # Equal.\n"), "{text}");
    }
}
