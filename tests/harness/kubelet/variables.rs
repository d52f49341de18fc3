//! A container's environment variables by the rules of the kubelet (kubernetes
//! pkg/kubelet/kubelet_pods.go, makeEnvironmentVariables).

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, ObjectFieldSelector, PodTemplateSpec};

use super::sources::{Data, Sources};

/// The pod that is being started: what the downward API and the container need.
pub(super) struct PodContext<'a> {
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) template: &'a PodTemplateSpec,
    pub(super) container: &'a Container,
}

/// Variables of envFrom in order, then of env in order; later ones override earlier ones.
pub(super) fn variables(
    context: &PodContext<'_>,
    sources: &Sources,
) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for from in context.container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let found = if let Some(map) = &from.config_map_ref {
            object(&sources.config_maps, "configmap", &map.name, map.optional)?
        } else if let Some(secret) = &from.secret_ref {
            object(&sources.secrets, "secret", &secret.name, secret.optional)?
        } else {
            bail!("this kind of envFrom entry is not imitated")
        };
        for (key, value) in found.into_iter().flatten() {
            variables.insert(format!("{prefix}{key}"), text(value, key)?);
        }
    }
    for variable in context.container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(
                variable.value.as_deref().unwrap_or_default(),
                &variables,
            )),
            Some(from) => value_from(from, context, sources)?,
        };
        if let Some(value) = value {
            variables.insert(variable.name.clone(), value);
        }
    }
    Ok(variables)
}

fn object<'a>(
    all: &'a BTreeMap<String, Data>,
    kind: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Data>> {
    match all.get(name) {
        None if optional != Some(true) => {
            bail!("CreateContainerConfigError: {kind} {name:?} not found")
        }
        found => Ok(found),
    }
}

fn value_from(
    from: &EnvVarSource,
    context: &PodContext<'_>,
    sources: &Sources,
) -> Result<Option<String>> {
    let (all, kind, reference) = if let Some(field) = &from.field_ref {
        return field_of(field, context).map(Some);
    } else if let Some(key) = &from.config_map_key_ref {
        (
            &sources.config_maps,
            "ConfigMap",
            (&key.name, &key.key, key.optional),
        )
    } else if let Some(key) = &from.secret_key_ref {
        (
            &sources.secrets,
            "Secret",
            (&key.name, &key.key, key.optional),
        )
    } else {
        bail!("this kind of valueFrom is not imitated")
    };
    let (name, key, optional) = reference;
    let data = object(all, &kind.to_lowercase(), name, optional)?;
    match data.and_then(|data| data.get(key)) {
        Some(value) => text(value, key).map(Some),
        None if optional == Some(true) => Ok(None),
        None => bail!(
            "CreateContainerConfigError: couldn't find key {key} in {kind} {}/{name}",
            context.namespace
        ),
    }
}

/// A field of the downward API.
pub(super) fn field_of(field: &ObjectFieldSelector, context: &PodContext<'_>) -> Result<String> {
    let metadata = context.template.metadata.clone().unwrap_or_default();
    let quoted = |path: &str, prefix: &str| {
        path.strip_prefix(prefix)
            .and_then(|rest| rest.strip_suffix("']"))
            .map(str::to_owned)
    };
    let path = field.field_path.as_str();
    if let Some(key) = quoted(path, "metadata.labels['") {
        return Ok(metadata
            .labels
            .unwrap_or_default()
            .remove(&key)
            .unwrap_or_default());
    }
    if let Some(key) = quoted(path, "metadata.annotations['") {
        return Ok(metadata
            .annotations
            .unwrap_or_default()
            .remove(&key)
            .unwrap_or_default());
    }
    match path {
        "metadata.name" => Ok(context.name.to_owned()),
        "metadata.namespace" => Ok(context.namespace.to_owned()),
        "spec.serviceAccountName" => {
            let account = context
                .template
                .spec
                .as_ref()
                .and_then(|pod| pod.service_account_name.clone());
            Ok(account.unwrap_or_else(|| "default".to_owned()))
        }
        other => bail!("the field {other} of the downward API is not imitated"),
    }
}

fn text(value: &[u8], key: &str) -> Result<String> {
    String::from_utf8(value.to_vec()).with_context(|| format!("the value of {key} is not text"))
}

/// `$(NAME)` becomes the value of NAME when there is one, `$$` becomes `$` (kubernetes
/// third_party/forked/golang/expansion).
pub(super) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name = rest
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'));
        if let Some(behind) = rest.strip_prefix('$') {
            out.push('$');
            rest = behind;
        } else if let Some((value, behind)) =
            name.and_then(|(name, behind)| Some((variables.get(name)?, behind)))
        {
            out.push_str(value);
            rest = behind;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn built(container: Value, sources: &Sources) -> Result<BTreeMap<String, String>> {
        let container: Container = serde_json::from_value(container).unwrap();
        let template: PodTemplateSpec = serde_json::from_value(json!({
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [], "serviceAccountName": "sa"}
        }))
        .unwrap();
        let context = PodContext {
            name: "pod",
            namespace: "ns",
            template: &template,
            container: &container,
        };
        variables(&context, sources)
    }

    fn data(pairs: &[(&str, &str)]) -> Data {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect()
    }

    fn sources() -> Sources {
        Sources {
            secrets: [("s".to_owned(), data(&[("password", "p")]))].into(),
            config_maps: [("m".to_owned(), data(&[("HOST", "h"), ("PORT", "1")]))].into(),
        }
    }

    #[test]
    fn env_wins_over_env_from_and_sees_what_came_before() {
        let container = json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m"}}], "env": [
            {"name": "PORT", "value": "2"}, {"name": "URL", "value": "$(HOST):$(PORT) $$(HOST) \
                $(NONE)"},
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
            {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
            {"name": "AS", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
            {
                "name": "MAYBE",
                "valueFrom": {"configMapKeyRef": {"name": "m", "key": "none", "optional": true}}
            },
        ]});
        let variables = built(container, &sources()).unwrap();
        let pairs: Vec<(&str, &str)> = variables
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let wanted = [
            ("AS", "sa"),
            ("HOST", "h"),
            ("LABEL", "b"),
            ("PORT", "2"),
            ("SECRET", "p"),
            ("URL", "h:2 $(HOST) $(NONE)"),
            ("WHERE", "ns"),
        ];
        assert_eq!(pairs, wanted);
    }

    #[test]
    fn a_missing_object_is_reported_in_the_kubelets_words() {
        let from = |reference: Value| json!({"name": "c", "envFrom": [reference]});
        let error = built(from(json!({"configMapRef": {"name": "none"}})), &sources()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CreateContainerConfigError: configmap \"none\" not found"
        );
        assert!(
            built(
                from(json!({"configMapRef": {"name": "none", "optional": true}})),
                &sources()
            )
            .unwrap()
            .is_empty()
        );
        let key = json!({
            "name": "c",
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "user"}}}]
        });
        let error = built(key, &sources()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CreateContainerConfigError: couldn't find key user in Secret ns/s"
        );
    }
}
