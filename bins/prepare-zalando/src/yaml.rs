//! YAML as text for people: entries with comments above them. A serializer would lose the comments.

/// A document under construction. `depth` counts levels of two spaces.
#[derive(Default)]
pub struct Yaml(String);

/// Where a comment is wrapped.
const COLUMNS: usize = 110;

impl Yaml {
    /// The text so far.
    pub fn into_text(self) -> String {
        self.0
    }

    /// A line of ours, such as `spec:` or `- name: zalando`.
    pub fn line(&mut self, depth: usize, text: &str) {
        self.0.push_str(&"  ".repeat(depth));
        self.0.push_str(text);
        self.0.push('\n');
    }

    /// `key: value`, the value quoted where YAML would take it for something else than this text.
    pub fn entry(&mut self, depth: usize, key: &str, value: &str) {
        self.line(
            depth,
            &format!("{}: {}", plain_or_quoted(key), plain_or_quoted(value)),
        );
    }

    /// `key: "value"`, always quoted: GUCs are texts even when they look like numbers or booleans.
    pub fn text(&mut self, depth: usize, key: &str, value: &str) {
        self.line(
            depth,
            &format!("{}: {}", plain_or_quoted(key), quoted(value)),
        );
    }

    /// The first entry of an item that is a map.
    pub fn first(&mut self, depth: usize, key: &str, value: &str) {
        self.line(depth, &format!("- {key}: {}", plain_or_quoted(value)));
    }

    /// An item of a list of texts.
    pub fn item(&mut self, depth: usize, value: &str) {
        self.line(depth, &format!("- {}", quoted(value)));
    }

    /// Lines of a comment, wrapped.
    pub fn comment(&mut self, depth: usize, text: &str) {
        let mut line = String::from("#");
        for word in text.split_whitespace() {
            if line.len() > 1 && 2 * depth + line.len() + 1 + word.len() > COLUMNS {
                self.line(depth, &line);
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        self.line(depth, &line);
    }

    /// `key: |` and a text of several lines, kept as it is.
    pub fn block(&mut self, depth: usize, key: &str, text: &str) {
        self.line(depth, &format!("{key}: |"));
        for line in text.lines() {
            self.line(depth + 1, line);
        }
    }
}

/// YAML 1.2 is a superset of JSON: a JSON string is a quoted scalar.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn plain_or_quoted(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
    // The words that YAML 1.1 readers, kubectl among them, take for a boolean or null.
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null"
    );
    match begins && text.chars().all(safe) && !word {
        true => text.to_owned(),
        false => quoted(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_yaml_would_misread_is_quoted_and_comes_back_as_it_was() {
        for text in [
            "on",
            "5432",
            "40Gi",
            "a: b",
            "- x",
            "\"",
            "ü\n",
            "",
            "y",
            "plain-name.svc",
            "{}",
            "# no comment",
            "1e3",
            "~",
        ] {
            let mut yaml = Yaml::default();
            yaml.entry(0, "key", text);
            yaml.text(0, "other", text);
            let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(&yaml.into_text()).unwrap();
            assert_eq!(value["key"].as_str(), Some(text));
            assert_eq!(value["other"].as_str(), Some(text));
        }
    }

    #[test]
    fn a_comment_is_wrapped_and_never_becomes_an_entry() {
        let mut yaml = Yaml::default();
        yaml.comment(2, &"word ".repeat(60));
        yaml.entry(0, "key", "value");
        let text = yaml.into_text();
        assert!(text.lines().all(|line| line.len() <= COLUMNS));
        assert_eq!(
            text.lines()
                .filter(|line| line.trim_start().starts_with('#'))
                .count(),
            3
        );
        let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(value["key"].as_str(), Some("value"));
    }
}
