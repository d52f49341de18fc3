//! The filters of `templates/cluster.yaml`. Every value in the template passes one of them, so that
//! no value can change the structure of the document.

use std::fmt::Display;

use askama::{Result, Values};
use serde::Serialize;

/// Longest line of a wrapped comment, its indentation included.
const COLUMNS: usize = 100;

/// A scalar: plain where YAML reads the same text back, quoted everywhere else.
#[askama::filter_fn]
pub fn scalar(value: impl Display, _: &dyn Values) -> Result<String> {
    let text = value.to_string();
    Ok(if is_plain(&text) {
        text
    } else {
        json_string(&text)
    })
}

/// A scalar that is always quoted: parameters are strings even when they look like numbers.
#[askama::filter_fn]
pub fn quoted(value: impl Display, _: &dyn Values) -> Result<String> {
    Ok(json_string(&value.to_string()))
}

/// A number, or a whole structure in YAML's flow style, on one line.
#[askama::filter_fn]
pub fn flow(value: impl Serialize, _: &dyn Values) -> Result<String> {
    serde_json::to_string(&value).map_err(|error| askama::Error::Custom(Box::new(error)))
}

/// Prose after a `#` that the template has in column `indent`: wrapped, with a `#` in front of each
/// further line, so that no text can leave the comment.
#[askama::filter_fn]
pub fn comment(text: impl Display, _: &dyn Values, indent: usize) -> Result<String> {
    let room = COLUMNS - indent - "# ".len();
    let mut lines = vec![String::new()];
    let text = text.to_string();
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    for word in words.filter(|word| !word.is_empty()) {
        let line = lines.last_mut().expect("it begins with one line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    Ok(lines.join(&format!("\n{}# ", " ".repeat(indent))))
}

/// Prose with a capital first letter, to begin a sentence.
#[askama::filter_fn]
pub fn capitalized(text: impl Display, _: &dyn Values) -> Result<String> {
    let text = text.to_string();
    let mut letters = text.chars();
    Ok(letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    }))
}

/// YAML 1.2 is a superset of JSON: a JSON string is a quoted scalar. What JSON leaves as it is, but
/// YAML takes for a line break or refuses as unprintable, is escaped as well.
fn json_string(text: &str) -> String {
    let unsafe_in_yaml =
        |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    let json = serde_json::Value::from(text).to_string();
    let mut quoted = String::with_capacity(json.len());
    for c in json.chars() {
        if unsafe_in_yaml(c) {
            quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            quoted.push(c);
        }
    }
    quoted
}

/// Whether every reader of YAML takes the unquoted text for exactly this string.
fn is_plain(text: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    // YAML 1.1 readers, such as kubectl, take these words for a boolean or null.
    let is_keyword = matches!(
        text.to_ascii_lowercase().as_str(),
        "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null"
    );
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(safe) && !is_keyword
}

#[cfg(test)]
mod tests {
    use askama::Template;

    use super::*;
    // The derive macro looks the filters up under this name.
    use super::super::filters;

    #[derive(Template)]
    #[template(
        source = "plain: {{ value|scalar }}\nquoted: {{ value|quoted }}\nafter: true\n",
        ext = "yaml",
        escape = "none"
    )]
    struct Entries<'a> {
        value: &'a str,
    }

    #[derive(Template)]
    #[template(
        source = "spec:\n    # {% filter comment(4) %}{{ text }}{% endfilter %}\n    key: value\n",
        ext = "yaml",
        escape = "none"
    )]
    struct Commented<'a> {
        text: &'a str,
    }

    fn parsed(text: &str) -> serde_yaml_ng::Value {
        serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn a_value_that_yaml_would_misread_is_quoted_and_read_back_unchanged() {
        for value in [
            "on",
            "Yes",
            "NULL",
            "5432",
            "0x1F",
            "1e3",
            "1_000",
            "12:30:45",
            "2024-01-01",
            ".5",
            "40Gi",
            "a: b",
            "a:",
            "a #b",
            "# no comment",
            "- x",
            "-",
            "---",
            "...",
            "? x",
            "! x",
            "&anchor",
            "*alias",
            "%TAG",
            "@at",
            "`tick`",
            "|",
            ">",
            "{}",
            "[a, b]",
            "{{ 7 }}",
            "{% raw %}",
            "~",
            "",
            " ",
            " leading",
            "trailing ",
            "\"",
            "'",
            "a\"b'c\\d",
            "\\n",
            "two\nlines\n",
            "injected\nspec:\n  instances: 3",
            "tab\there",
            "carriage\rreturn",
            "nul\0",
            "bell\u{7}",
            "delete\u{7f}",
            "ü",
            "line\u{2028}separator",
            "next\u{85}line",
            "\u{feff}mark",
            "😀",
            "y",
            "plain-name.svc",
        ] {
            let text = Entries { value }.render().unwrap();
            let document = parsed(&text);
            assert_eq!(document["plain"].as_str(), Some(value), "{text}");
            assert_eq!(document["quoted"].as_str(), Some(value), "{text}");
            assert_eq!(document.as_mapping().unwrap().len(), 3, "{text}");
        }
    }

    #[test]
    fn a_long_comment_is_wrapped_and_never_becomes_an_entry() {
        let word = "word: [ ";
        let text = Commented {
            text: &format!("{}\nkey: other\u{85}key: other\u{7}", word.repeat(30)),
        }
        .render()
        .unwrap();
        assert!(text.lines().all(|line| line.len() <= COLUMNS), "{text}");
        let comments = text.lines().filter(|line| line.starts_with("    # "));
        assert_eq!(comments.count(), 3, "{text}");
        assert_eq!(parsed(&text)["spec"]["key"].as_str(), Some("value"));
    }
}
