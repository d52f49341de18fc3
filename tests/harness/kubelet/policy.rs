//! What the Job controller does after a pod has ended (kubernetes.io, *Pod failure policy*).

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};

use super::only_container;

/// What follows the end of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The Job is complete.
    Complete,
    /// The Job has failed; no pod follows.
    Failed,
    /// Another pod follows, unless backoffLimit is reached.
    Again,
}

/// The consequence of an exit code (128 + signal for a killed process). Node disruptions do not
/// occur here.
pub(super) fn next(spec: &JobSpec, exit_code: i32) -> Next {
    if exit_code == 0 {
        return Next::Complete;
    }
    let rules = spec
        .pod_failure_policy
        .iter()
        .flat_map(|policy| &policy.rules);
    let name = only_container(spec).map(|container| container.name.as_str());
    match rules
        .into_iter()
        .find(|rule| applies(rule, name, exit_code))
        .map(|rule| rule.action.as_str())
    {
        Some("FailJob") => Next::Failed,
        _ => Next::Again,
    }
}

fn applies(rule: &PodFailurePolicyRule, container: Option<&str>, exit_code: i32) -> bool {
    let Some(codes) = &rule.on_exit_codes else {
        return false;
    };
    let concerned = codes
        .container_name
        .as_deref()
        .is_none_or(|name| Some(name) == container);
    let listed = codes.values.contains(&exit_code);
    concerned
        && if codes.operator == "NotIn" {
            !listed
        } else {
            listed
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_rule_that_applies_decides() {
        let spec: JobSpec = serde_json::from_value(json!({
            "template": {"spec": {"containers": [{"name": "step"}]}},
            "podFailurePolicy": {"rules": [
                {
                    "action": "Ignore",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]
                },
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "other", "operator": "In", "values": [1]}
                },
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "step", "operator": "In", "values": [2, 3, 4]}
                },
            ]},
        }))
        .unwrap();
        let verdicts: Vec<Next> = [0, 1, 2, 3, 4, 137].map(|code| next(&spec, code)).into();
        assert_eq!(
            verdicts,
            [
                Next::Complete,
                Next::Again,
                Next::Failed,
                Next::Failed,
                Next::Failed,
                Next::Again
            ]
        );
    }
}
