//! Label selectors, as NetworkPolicies and workloads have them.

use serde::Deserialize;

use super::Labels;

/// What labels must be; an empty selector matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels with their values.
    pub match_labels: Labels,
    /// Further requirements; all must be met.
    pub match_expressions: Vec<Requirement>,
}

/// A requirement on one label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// The values of `In` and `NotIn`.
    pub values: Vec<String>,
}

impl LabelSelector {
    /// Whether these labels match; None where that depends on a label that is not among `known`,
    /// and these are not all labels of the object.
    pub fn matches(&self, known: &Labels, complete: bool) -> Option<bool> {
        let labels = self.match_labels.iter().map(|(key, value)| Requirement {
            key: key.clone(),
            operator: "In".to_owned(),
            values: vec![value.clone()],
        });
        let all = labels.chain(self.match_expressions.iter().cloned());
        let mut answer = Some(true);
        for requirement in all {
            match requirement.met(known, complete) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => answer = None,
            }
        }
        answer
    }
}

impl Requirement {
    fn met(&self, known: &Labels, complete: bool) -> Option<bool> {
        let value = known.get(&self.key);
        if value.is_none() && !complete {
            return None;
        }
        let listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator.as_str() {
            "In" => Some(listed),
            "NotIn" => Some(!listed),
            "Exists" => Some(value.is_some()),
            "DoesNotExist" => Some(value.is_none()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn matches(selector: Value, complete: bool) -> Option<bool> {
        let selector: LabelSelector = serde_json::from_value(selector).unwrap();
        let labels = [("app", "web"), ("tier", "front")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        selector.matches(&labels.into(), complete)
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
    }

    #[test]
    fn every_requirement_must_be_met_and_an_empty_selector_matches_all() {
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (
                json!({"matchLabels": {"app": "web", "tier": "back"}}),
                false,
            ),
            (json!({"matchLabels": {"missing": ""}}), false),
            (expression("app", "In", &["web", "api"]), true),
            (expression("app", "In", &["api"]), false),
            (expression("app", "NotIn", &["api"]), true),
            (expression("app", "NotIn", &["web"]), false),
            (expression("missing", "NotIn", &["web"]), true),
            (expression("app", "Exists", &[]), true),
            (expression("missing", "Exists", &[]), false),
            (expression("app", "DoesNotExist", &[]), false),
            (expression("missing", "DoesNotExist", &[]), true),
        ] {
            assert_eq!(
                matches(selector.clone(), true),
                Some(expected),
                "{selector}"
            );
        }
    }

    #[test]
    fn labels_that_are_not_known_leave_it_open_unless_another_one_does_not_match() {
        let open = json!({"matchLabels": {"missing": "x"}});
        assert_eq!(matches(open, false), None);
        assert_eq!(matches(expression("missing", "NotIn", &["x"]), false), None);
        let refused = json!({"matchLabels": {"missing": "x", "app": "api"}});
        assert_eq!(matches(refused, false), Some(false));
        assert_eq!(
            matches(expression("app", "In", &["web"]), false),
            Some(true)
        );
    }
}
