//! The words of the repository: no line uses a term of docs/words.tsv, and no line is longer than a
//! reader's window.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use harness::manifests;

/// The longest line, in characters.
const COLUMNS_MAX: usize = 100;
/// What is listed; more of them teach nothing.
const LISTED_MAX: usize = 200;
/// The list itself.
const LIST: &str = "docs/words.tsv";
/// Files that other tools write, and files of other projects.
const FOREIGN: [&str; 3] = ["Cargo.lock", "go.sum", "LICENSE"];

/// Paths in which a line may be longer, and why.
const LONG_LINES: [(&str, &str); 3] = [
    (
        "tests/it/manifests/alerts.yaml",
        "promtool wants a series of samples in one line",
    ),
    (
        "**/fixtures/**",
        "written by a program, compared byte for byte",
    ),
    ("docs/words.tsv", "a row of a table is one line"),
];

/// The root of the repository.
pub(crate) fn checkout() -> PathBuf {
    manifests::folder().join("..")
}

/// A text file of the repository.
pub(crate) struct File {
    /// From the root.
    pub(crate) path: String,
    /// All of it.
    pub(crate) text: String,
}

/// Every text file that git knows or would take up.
pub(crate) fn files() -> Vec<File> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(checkout())
        .output()
        .expect("git is missing; install it: apt-get install git");
    assert!(listed.status.success(), "git ls-files failed: {listed:?}");
    let paths = String::from_utf8(listed.stdout).unwrap();
    let read = |path: &str| {
        // A path may have been removed and not committed yet; bytes that are not UTF-8 are no text.
        let text = String::from_utf8(fs::read(checkout().join(path)).ok()?).ok()?;
        Some(File {
            path: path.to_owned(),
            text,
        })
    };
    let mut files: Vec<File> = paths.lines().filter_map(read).collect();
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files.dedup_by(|one, other| one.path == other.path);
    files
}

/// Whether a path fits a glob in which `*` is anything within a folder and `**` anything at all.
pub(crate) fn fits(glob: &str, path: &str) -> bool {
    if let Some(rest) = glob.strip_prefix("**/") {
        return fits(rest, path)
            || path
                .match_indices('/')
                .any(|(at, _)| fits(rest, &path[at + 1..]));
    }
    if glob == "**" {
        return true;
    }
    let Some((before, rest)) = glob.split_once('*') else {
        return glob == path;
    };
    if let Some(rest) = rest.strip_prefix("*/") {
        let after = path.strip_prefix(before);
        return after.is_some_and(|after| fits(&format!("**/{rest}"), after));
    }
    if rest == "*" {
        return path.starts_with(before);
    }
    path.strip_prefix(before).is_some_and(|after| {
        let folder = after.find('/').unwrap_or(after.len());
        (0..=folder)
            .filter(|at| after.is_char_boundary(*at))
            .any(|at| fits(rest, &after[at..]))
    })
}

/// A row of the list.
struct Rule {
    terms: Vec<String>,
    instead: String,
    allowed: Vec<String>,
}

fn rules() -> Vec<Rule> {
    let list = fs::read_to_string(checkout().join(LIST)).unwrap();
    let rows = list.lines().filter(|line| !line.starts_with('#')).skip(1);
    rows.map(|row| {
        let columns: Vec<&str> = row.split('\t').collect();
        let [terms, instead, allowed] = columns[..] else {
            panic!("{LIST}: three columns in each row, but: {row}")
        };
        assert!(!terms.is_empty() && !instead.is_empty(), "{LIST}: {row}");
        Rule {
            terms: terms.split('|').map(str::to_lowercase).collect(),
            instead: instead.to_owned(),
            allowed: allowed
                .split(',')
                .map(str::trim)
                .filter(|glob| !glob.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    })
    .collect()
}

/// Where words begin in a text, by their first letter.
fn beginnings(text: &str) -> BTreeMap<char, Vec<usize>> {
    let mut beginnings: BTreeMap<char, Vec<usize>> = BTreeMap::new();
    let mut before = None::<char>;
    for (at, letter) in text.char_indices() {
        let hump = letter.is_uppercase() && before.is_some_and(char::is_lowercase);
        if letter.is_alphanumeric() && (hump || !before.is_some_and(char::is_alphanumeric)) {
            let letter = letter.to_ascii_lowercase();
            beginnings.entry(letter).or_default().push(at);
        }
        before = Some(letter);
    }
    beginnings
}

/// Where a term stands in a text: byte offsets of its first characters.
fn found(term: &str, text: &str, beginnings: &BTreeMap<char, Vec<usize>>) -> Vec<usize> {
    let first = term.chars().next().unwrap_or(' ');
    let candidates = beginnings.get(&first).into_iter().flatten().copied();
    candidates
        .filter(|at| matches(term, &text[*at..]).is_some_and(|end| ends_word(text, at + end)))
        .collect()
}

/// How many bytes of the text the term takes, when the text begins with it.
fn matches(term: &str, text: &str) -> Option<usize> {
    let Some(letter) = term.chars().next() else {
        return Some(0);
    };
    let rest = &term[letter.len_utf8()..];
    if letter == '*' {
        let mut taken = 0;
        for _ in 0..3 {
            taken += word(&text[taken..])?;
            if let Some(end) = matches(rest, &text[taken..]) {
                return Some(taken + end);
            }
            taken += gap(&text[taken..])?;
        }
        return None;
    }
    let taken = match letter {
        ' ' => gap(text)?,
        '_' if text.starts_with(['_', '-']) => 1,
        '_' => gap(text)?,
        _ => {
            let here = text.chars().next()?;
            (here.to_ascii_lowercase() == letter).then_some(here.len_utf8())?
        }
    };
    Some(taken + matches(rest, &text[taken..])?)
}

fn word(text: &str) -> Option<usize> {
    let end = text
        .find(|letter: char| !letter.is_alphanumeric() && !"'’_-`".contains(letter))
        .unwrap_or(text.len());
    (end > 0).then_some(end)
}

/// White space; when a line ends in it, also the mark with which a comment or a string goes on.
fn gap(text: &str) -> Option<usize> {
    let rest = text.trim_start_matches([' ', '\t', '\\']);
    let Some(next) = rest.strip_prefix('\n') else {
        let taken = text.len() - text.trim_start_matches([' ', '\t']).len();
        return (taken > 0).then_some(taken);
    };
    let next = next.trim_start_matches([' ', '\t']);
    let next = ["///", "//!", "//", "#", "|"]
        .iter()
        .find_map(|mark| next.strip_prefix(mark))
        .unwrap_or(next);
    Some(text.len() - next.trim_start_matches([' ', '\t']).len())
}

fn ends_word(text: &str, end: usize) -> bool {
    let before = text[..end].chars().next_back();
    text[end..].chars().next().is_none_or(|after| {
        !after.is_alphanumeric() || after.is_uppercase() && before.is_some_and(char::is_lowercase)
    })
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn report(what: &str, findings: &[String]) {
    let shown = findings.len().min(LISTED_MAX);
    assert!(
        findings.is_empty(),
        "{what}: {} findings\n{}",
        findings.len(),
        findings[..shown].join("\n")
    );
}

#[test]
fn no_line_uses_a_word_of_the_list() {
    let rules = rules();
    let mut findings = Vec::new();
    for file in files() {
        let name = Path::new(&file.path).file_name().unwrap().to_string_lossy();
        if file.path == LIST || FOREIGN.contains(&&*name) {
            continue;
        }
        let beginnings = beginnings(&file.text);
        for rule in &rules {
            if rule.allowed.iter().any(|glob| fits(glob, &file.path)) {
                continue;
            }
            for term in &rule.terms {
                findings.extend(found(term, &file.text, &beginnings).into_iter().map(|at| {
                    format!(
                        "{}:{}: “{term}”: write instead: {}",
                        file.path,
                        line_of(&file.text, at),
                        rule.instead
                    )
                }));
            }
        }
    }
    report("words of docs/words.tsv", &findings);
}

/// Whether a long line cannot be wrapped: a row of a table, or a word that is too long by itself,
/// such as a link.
fn stays_long(path: &str, line: &str) -> bool {
    let text = line.trim_start();
    let text = ["//!", "///", "//", "#"]
        .iter()
        .find_map(|mark| text.strip_prefix(mark))
        .unwrap_or(text)
        .trim_start();
    let table = text.starts_with('|') && (path.ends_with(".md") || path.ends_with(".rs"));
    let longest = text
        .split_whitespace()
        .map(|word| word.chars().count())
        .max();
    let indent = line.chars().count() - text.chars().count();
    table || longest.is_some_and(|longest| indent + longest > COLUMNS_MAX)
}

#[test]
fn no_line_is_longer_than_100_columns() {
    let limited = |path: &str| {
        [".rs", ".md", ".yaml", ".sh", "Makefile", ".ci/run"]
            .iter()
            .any(|end| path.ends_with(end))
    };
    let mut findings = Vec::new();
    for file in files() {
        let exempt = LONG_LINES.iter().any(|(glob, _)| fits(glob, &file.path));
        if exempt || !limited(&file.path) {
            continue;
        }
        for (index, line) in file.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX && !stays_long(&file.path, line) {
                findings.push(format!("{}:{}: {columns} columns", file.path, index + 1));
            }
        }
    }
    report("lines of more than 100 columns", &findings);
}

#[test]
fn a_term_is_found_where_it_is_wrapped_and_in_names_but_not_within_a_word() {
    let count = |term: &str, text: &str| found(term, text, &beginnings(text)).len();
    assert_eq!(count("old_word", "an old word, old_word, old-word"), 3);
    assert_eq!(count("old word", "fn old_word()"), 0);
    assert_eq!(count("old word", "/// an old\n    /// word"), 1);
    assert_eq!(count("old word", "\"an old \\\n    word\""), 1);
    assert_eq!(
        count("term", "TermOf, the term; terminal, MyTerm, midterm"),
        3
    );
    assert_eq!(
        count("let * in", "let all of them in, let in, letting it in"),
        1
    );
}

#[test]
fn a_glob_fits_the_paths_that_it_names() {
    assert!(fits("docs/*.txt", "docs/a.txt") && !fits("docs/*.txt", "docs/x/a.txt"));
    assert!(fits("docs/**", "docs/x/a.txt") && fits("**/fixtures/**", "tests/it/fixtures/a/b"));
    assert!(fits("**/fixtures/**", "fixtures/a") && !fits("**/fixtures/**", "a/fixture"));
}
