//! The documents: every link, anchor and citation leads to something that is in the repository.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use super::words::{File, checkout, files};

/// Folders of this repository, by which a path in a document is recognised.
const FOLDERS: [&str; 6] = ["bins/", "docs/", "manifests/", "shared/", "tests/", ".ci/"];
/// Pages whose paths are those of other projects: where a fact was read.
const OTHER_PROJECTS: &str = "docs/operators/";

/// A path without `.` and `..`.
fn plain(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    parts.join("/")
}

fn beside(file: &str, target: &str) -> String {
    plain(
        &Path::new(file)
            .parent()
            .unwrap_or(Path::new(""))
            .join(target),
    )
}

/// The anchors of a Markdown file, as a forge makes them of its headings.
fn anchors(text: &str) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut fenced = false;
    let mut anchors = Vec::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        if fenced || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let anchor = anchor(heading);
        let count = counts.entry(anchor.clone()).or_default();
        anchors.push(match *count {
            0 => anchor,
            count => format!("{anchor}-{count}"),
        });
        *count += 1;
    }
    anchors
}

fn anchor(heading: &str) -> String {
    heading
        .trim()
        .chars()
        .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter))
        .map(|letter| match letter {
            ' ' => '-',
            letter => letter.to_ascii_lowercase(),
        })
        .collect()
}

/// The targets of a Markdown file's links, with their lines; code is left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        let parts = line.split("](").skip(1);
        found.extend(parts.filter_map(|part| {
            let (target, _) = part.split_once(')')?;
            Some((index + 1, target.to_owned()))
        }));
    }
    found
}

/// Paths of this repository between backticks, with their lines: `{a,b}` is two paths.
fn quoted_paths(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for quoted in line.split('`').skip(1).step_by(2) {
            let ours = FOLDERS.iter().any(|folder| quoted.starts_with(folder));
            if ours && !quoted.contains([' ', '<', '*', '…']) {
                found.extend(expanded(quoted).into_iter().map(|path| (index + 1, path)));
            }
        }
    }
    found
}

fn expanded(path: &str) -> Vec<String> {
    let parts = path
        .split_once('{')
        .and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    match parts {
        Some((before, (names, after))) => names
            .split(',')
            .map(|name| format!("{before}{}{after}", name.trim()))
            .collect(),
        None => vec![path.to_owned()],
    }
}

/// Names of Markdown files in any text, with an anchor where one follows, and their lines.
fn citations(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let words = line
            .split(|letter: char| !(letter.is_ascii_alphanumeric() || "_./#:-".contains(letter)));
        for word in words {
            let word = word.trim_end_matches(['.', ':']);
            let (path, anchor) = word.split_once('#').unwrap_or((word, ""));
            let name = path.strip_suffix(".md").unwrap_or_default();
            if !name.is_empty() && !name.ends_with('/') && !path.contains("://") {
                let anchor = if anchor.is_empty() {
                    String::new()
                } else {
                    format!("#{anchor}")
                };
                found.push((index + 1, format!("{path}{anchor}")));
            }
        }
    }
    found
}

/// The repository as a reader of links sees it.
struct Tree {
    files: Vec<File>,
    anchors: BTreeMap<String, Vec<String>>,
}

impl Tree {
    fn read() -> Self {
        let files = files();
        let anchors = files
            .iter()
            .filter(|file| file.path.ends_with(".md"))
            .map(|file| (file.path.clone(), anchors(&file.text)))
            .collect();
        Self { files, anchors }
    }

    /// What is wrong with a path from the root and its anchor.
    fn missing(&self, path: &str, anchor: Option<&str>) -> Option<String> {
        let exists = path.is_empty() || checkout().join(path).exists();
        if !exists {
            return Some(format!("{path} is not in the repository"));
        }
        let anchor = anchor?;
        let known = self.anchors.get(path)?;
        (!known.iter().any(|one| one == anchor)).then(|| format!("{path} has no heading #{anchor}"))
    }
}

fn split(target: &str) -> (&str, Option<&str>) {
    match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (target, None),
    }
}

fn report(findings: &[String]) {
    assert!(
        findings.is_empty(),
        "{} of them:\n{}",
        findings.len(),
        findings.join("\n")
    );
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let tree = Tree::read();
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.path.ends_with(".md")) {
        for (line, target) in links(&file.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = split(&target);
            let path = match path {
                "" => file.path.clone(),
                path => beside(&file.path, path),
            };
            let missing = tree.missing(&path, anchor);
            findings.extend(missing.map(|why| format!("{}:{line}: {why}", file.path)));
        }
    }
    report(&findings);
}

#[test]
fn every_path_that_a_document_names_exists() {
    let tree = Tree::read();
    let mut findings = Vec::new();
    let documents = tree
        .files
        .iter()
        .filter(|file| file.path.ends_with(".md") && !file.path.starts_with(OTHER_PROJECTS));
    for file in documents {
        for (line, path) in quoted_paths(&file.text) {
            let missing = tree.missing(&path, None);
            findings.extend(missing.map(|why| format!("{}:{line}: {why}", file.path)));
        }
    }
    report(&findings);
}

#[test]
fn every_document_that_a_comment_cites_is_there() {
    let tree = Tree::read();
    let mut findings = Vec::new();
    let sources = tree.files.iter().filter(|file| {
        !file.path.ends_with(".md") && file.path != "docs/words.tsv" && file.path != THIS_FILE
    });
    for file in sources {
        for (line, target) in citations(&file.text) {
            let (path, anchor) = split(&target);
            let near = beside(&file.path, path);
            let found = match tree.missing(&near, anchor) {
                None => None,
                Some(_) => tree.missing(&plain(&PathBuf::from(path)), anchor),
            };
            findings.extend(found.map(|why| format!("{}:{line}: {why}", file.path)));
        }
    }
    report(&findings);
}

/// Its examples are no citations.
const THIS_FILE: &str = "tests/it/documents.rs";

#[test]
fn anchors_are_made_as_a_forge_makes_them() {
    let text = "# One `pg_hba` line\n```\n# no heading\n```\n## Why, then?\n## Why, then?\n#tag";
    assert_eq!(anchors(text), ["one-pg_hba-line", "why-then", "why-then-1"]);
}

#[test]
fn citations_and_paths_are_found_in_prose() {
    let cited: Vec<String> = citations("//! see (docs/a.md#part-2), b.md: and https://x/c.md")
        .into_iter()
        .map(|(_, path)| path)
        .collect();
    assert_eq!(cited, ["docs/a.md#part-2", "b.md"]);
    let named = quoted_paths("in `shared/x/{a,b}.rs` and `pkg/other.go`, `bins/<step>/src`");
    let named: Vec<&str> = named.iter().map(|(_, path)| path.as_str()).collect();
    assert_eq!(named, ["shared/x/a.rs", "shared/x/b.rs"]);
    assert_eq!(
        links("[a](b.md#c) and [d](#e)\n```\n[f](g)\n```"),
        [(1, "b.md#c".to_owned()), (1, "#e".to_owned())]
    );
}

/// The table of weaknesses in docs/protocol.md names tests and mutants that exist.
#[test]
fn the_table_of_weaknesses_names_what_exists() {
    let all = files();
    let page = all
        .iter()
        .find(|file| file.path == "docs/protocol.md")
        .unwrap();
    let (_, section) = page
        .text
        .split_once("## Weaknesses found on real clusters")
        .expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let sources: String = all
        .iter()
        .filter(|file| file.path.ends_with(".rs"))
        .map(|file| file.text.as_str())
        .collect();
    let table = &all
        .iter()
        .find(|file| file.path == "shared/protocol/src/simulation/needed.rs")
        .expect("the table of the guards")
        .text;
    let rows = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| weakness"));
    let mut missing = Vec::new();
    let mut count = 0;
    for row in rows {
        let columns: Vec<&str> = row.split(" | ").collect();
        let [_, _, tests, mutant] = columns[..] else {
            panic!("a row of four columns: {row}")
        };
        count += 1;
        let names = |column: &str| -> Vec<String> {
            column
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        assert!(!names(tests).is_empty(), "a row without a test: {row}");
        let tests = names(tests).into_iter().map(|name| format!("fn {name}("));
        let (reasons, mutants): (Vec<String>, Vec<String>) = names(mutant)
            .into_iter()
            .partition(|name| name.starts_with("Without("));
        let mutants = mutants.into_iter().map(|name| format!("(Mutant::{name},"));
        missing.extend(tests.chain(mutants).filter(|text| !sources.contains(text)));
        missing.extend(reasons.into_iter().filter(|name| !is_searched(table, name)));
    }
    assert!(count > 10, "only {count} rows");
    assert!(missing.is_empty(), "not found: {missing:?}");
}

/// Whether the table of the guards says that an invariant breaks without this one, which is named
/// like `Without(Wait(TargetPendingRestart))`.
fn is_searched(table: &str, mutant: &str) -> bool {
    let guard = mutant
        .strip_prefix("Without(")
        .and_then(|rest| rest.strip_suffix("))")?.split_once('('));
    let Some((reason, kind)) = guard else {
        return false;
    };
    let function = format!("\nfn {}(", reason.to_lowercase());
    let Some((_, rows)) = table.split_once(&function) else {
        return false;
    };
    let rows = rows.split("\nfn ").next().unwrap_or_default();
    let is_the_end = |after: &&str| !after.starts_with(|letter: char| letter.is_alphanumeric());
    rows.split(&format!("Kind::{kind}"))
        .skip(1)
        .find(is_the_end)
        .and_then(|after| after.split_once("=>"))
        .is_some_and(|(_, needed)| needed.trim_start().starts_with("For("))
}

#[test]
fn a_guard_without_an_invariant_is_no_mutant() {
    let table = "\nfn wait(\n Kind::A | Kind::Bc => For(X),\n Kind::B => Otherwise(x),\n}\nfn r(";
    assert!(is_searched(table, "Without(Wait(A))"));
    assert!(is_searched(table, "Without(Wait(Bc))"));
    for unknown in [
        "Without(Wait(B))",
        "Without(Wait(C))",
        "Without(Refusal(A))",
    ] {
        assert!(!is_searched(table, unknown), "{unknown}");
    }
}
