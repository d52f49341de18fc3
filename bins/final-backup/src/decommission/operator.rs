//! The settings of the Zalando operator that decide what a deletion removes. They are in a
//! ConfigMap of texts or in an OperatorConfiguration. A setting that is missing has the operator's
//! default (postgres-operator pkg/util/config/config.go).

use std::collections::BTreeMap;

use serde_json::Value;

/// The operator's settings that decide what a deletion removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorSettings {
    /// enable_persistent_volume_claim_deletion: the operator deletes the volumes.
    pub deletes_claims: bool,
    /// enable_secrets_deletion: the operator deletes the Secrets.
    pub deletes_secrets: bool,
    /// delete_annotation_date_key: the operator ignores a deletion unless this annotation has the
    /// current date.
    pub date_key: Option<String>,
    /// delete_annotation_name_key: the operator ignores a deletion unless this annotation has the
    /// name of the resource.
    pub name_key: Option<String>,
    /// enable_owner_references: Kubernetes itself deletes the objects of the resource, whatever the
    /// annotations say.
    pub owner_references: bool,
    /// Whether the configuration was read. If not, these are the defaults.
    pub read: bool,
}

impl Default for OperatorSettings {
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

impl OperatorSettings {
    /// Reads the data of a ConfigMap.
    pub fn from_config_map(data: &BTreeMap<String, String>) -> Self {
        Self::read_from(|key| data.get(key).cloned())
    }

    /// Reads an OperatorConfiguration.
    pub fn from_resource(resource: &Value) -> Self {
        let kubernetes = &resource["configuration"]["kubernetes"];
        Self::read_from(|key| match &kubernetes[key] {
            Value::String(text) => Some(text.clone()),
            Value::Bool(value) => Some(value.to_string()),
            _ => None,
        })
    }

    fn read_from(value: impl Fn(&str) -> Option<String>) -> Self {
        let default = Self::default();
        // The forms that Go's ParseBool accepts.
        let flag = |key: &str, default: bool| match value(key).as_deref().map(str::trim) {
            Some("true" | "True" | "TRUE" | "t" | "T" | "1") => true,
            Some("false" | "False" | "FALSE" | "f" | "F" | "0") => false,
            _ => default,
        };
        let text = |key: &str| value(key).filter(|text| !text.trim().is_empty());
        Self {
            deletes_claims: flag(
                "enable_persistent_volume_claim_deletion",
                default.deletes_claims,
            ),
            deletes_secrets: flag("enable_secrets_deletion", default.deletes_secrets),
            date_key: text("delete_annotation_date_key"),
            name_key: text("delete_annotation_name_key"),
            owner_references: flag("enable_owner_references", default.owner_references),
            read: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_are_read_alike_and_missing_settings_have_defaults() {
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
            "enable_persistent_volume_claim_deletion": false,
            "delete_annotation_date_key": "delete-date",
        }}});
        let wanted = OperatorSettings {
            deletes_claims: false,
            date_key: Some("delete-date".into()),
            read: true,
            ..OperatorSettings::default()
        };
        assert_eq!(OperatorSettings::from_config_map(&flat), wanted);
        assert_eq!(OperatorSettings::from_resource(&nested), wanted);
        assert!(
            OperatorSettings::from_config_map(&BTreeMap::new()).deletes_claims,
            "the operator's own default"
        );
    }
}
