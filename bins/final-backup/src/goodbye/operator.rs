//! What the Zalando operator's configuration says about a deletion. It is a ConfigMap of texts or
//! an OperatorConfiguration, and what neither states has the operator's default (postgres-operator
//! pkg/util/config/config.go).

use std::collections::BTreeMap;

use serde_json::Value;

/// The settings that decide on a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// enable_persistent_volume_claim_deletion.
    pub deletes_claims: bool,
    /// enable_secrets_deletion.
    pub deletes_secrets: bool,
    /// delete_annotation_date_key: without this annotation, set to the day, a deletion is ignored.
    pub date_key: Option<String>,
    /// delete_annotation_name_key: the same with the resource's name.
    pub name_key: Option<String>,
    /// enable_owner_references: Kubernetes itself removes what belongs to the resource, whatever
    /// the annotations say.
    pub owner_references: bool,
    /// Whether it was read; else these are the defaults.
    pub read: bool,
}

impl Default for Operator {
    fn default() -> Self {
        Self {
            deletes_claims: true,
            deletes_secrets: true,
            date_key: None,
            name_key: None,
            owner_references: false,
            read: false,
        }
    }
}

impl Operator {
    /// From the data of a ConfigMap.
    pub fn of_config_map(data: &BTreeMap<String, String>) -> Self {
        Self::of(|key| data.get(key).cloned())
    }

    /// From an OperatorConfiguration.
    pub fn of_resource(resource: &Value) -> Self {
        let kubernetes = &resource["configuration"]["kubernetes"];
        Self::of(|key| match &kubernetes[key] {
            Value::String(text) => Some(text.clone()),
            Value::Bool(value) => Some(value.to_string()),
            _ => None,
        })
    }

    fn of(value: impl Fn(&str) -> Option<String>) -> Self {
        let default = Self::default();
        // As Go's ParseBool, in what people write.
        let on = |key: &str, default: bool| match value(key).as_deref().map(str::trim) {
            Some("true" | "True" | "TRUE" | "t" | "T" | "1") => true,
            Some("false" | "False" | "FALSE" | "f" | "F" | "0") => false,
            _ => default,
        };
        let text = |key: &str| value(key).filter(|text| !text.trim().is_empty());
        Self {
            deletes_claims: on(
                "enable_persistent_volume_claim_deletion",
                default.deletes_claims,
            ),
            deletes_secrets: on("enable_secrets_deletion", default.deletes_secrets),
            date_key: text("delete_annotation_date_key"),
            name_key: text("delete_annotation_name_key"),
            owner_references: on("enable_owner_references", default.owner_references),
            read: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_say_the_same_and_the_rest_is_default() {
        let flat = [
            ("enable_persistent_volume_claim_deletion", "false"),
            ("delete_annotation_date_key", "delete-date"),
            ("delete_annotation_name_key", ""),
            ("workers", "8"),
        ];
        let flat = flat
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let nested = json!({"configuration": {"workers": 8, "kubernetes": {
            "enable_persistent_volume_claim_deletion": false, "delete_annotation_date_key": "delete-date",
        }}});
        let wanted = Operator {
            deletes_claims: false,
            date_key: Some("delete-date".into()),
            read: true,
            ..Operator::default()
        };
        assert_eq!(Operator::of_config_map(&flat), wanted);
        assert_eq!(Operator::of_resource(&nested), wanted);
        assert!(
            Operator::of_config_map(&BTreeMap::new()).deletes_claims,
            "the operator's own default"
        );
    }
}
