//! What deleting the `postgresql` resource removes, in the operator's own order and under its
//! conditions (postgres-operator pkg/cluster/cluster.go, Delete).

use super::operator::OperatorSettings;

/// A volume of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Name of the PersistentVolumeClaim.
    pub name: String,
    /// Requested size.
    pub size: String,
    /// Name of the PersistentVolume behind it.
    pub volume: String,
    /// Reclaim policy of the PersistentVolume; None if it could not be read.
    pub reclaim: Option<String>,
    /// Whether it has an owner reference, so that Kubernetes deletes it with its owner.
    pub owned: bool,
}

/// The objects that belong to the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Its pods.
    pub pods: Vec<String>,
    /// Its volumes.
    pub claims: Vec<Claim>,
    /// Whether the StatefulSet deletes them with itself (persistentVolumeClaimRetentionPolicy).
    pub claims_deleted_with_stateful_set: bool,
    /// Its Services.
    pub services: Vec<String>,
    /// Deployments of its poolers.
    pub poolers: Vec<String>,
    /// CronJobs of its logical backup.
    pub cron_jobs: Vec<String>,
    /// Roles for which the operator has created a Secret.
    pub roles: Vec<String>,
}

/// A line for each kind of object. The lists are complete, however long they are.
pub fn lines(cluster: &str, inventory: &Inventory, operator: &OperatorSettings) -> Vec<String> {
    let mut lines = vec![
        line("pods and their StatefulSet", &inventory.pods),
        line("Services", &inventory.services),
        line("poolers", &inventory.poolers),
        line("CronJobs of the logical backup", &inventory.cron_jobs),
        secrets_line(cluster, &inventory.roles, operator),
    ];
    lines.extend(
        inventory
            .claims
            .iter()
            .map(|claim| reclaim_outcome(claim, inventory, operator)),
    );
    lines.push("PodDisruptionBudgets, and Patroni's Endpoints or ConfigMaps".to_owned());
    lines
}

fn line(kind: &str, names: &[String]) -> String {
    if names.is_empty() {
        format!("{kind}: none")
    } else {
        format!("{kind}: {}", names.join(", "))
    }
}

fn secrets_line(cluster: &str, roles: &[String], operator: &OperatorSettings) -> String {
    let secrets: Vec<String> = roles.iter().map(|role| role.replace('_', "-")).collect();
    let kind = format!("Secrets (.{cluster}.credentials.postgresql.acid.zalan.do)");
    let secrets = line(&kind, &secrets);
    if operator.deletes_secrets {
        secrets
    } else {
        format!("{secrets}: kept (enable_secrets_deletion is false)")
    }
}

fn reclaim_outcome(claim: &Claim, inventory: &Inventory, operator: &OperatorSettings) -> String {
    let Claim {
        name, size, volume, ..
    } = claim;
    let cause = if operator.deletes_claims {
        "enable_persistent_volume_claim_deletion"
    } else if inventory.claims_deleted_with_stateful_set {
        "persistentVolumeClaimRetentionPolicy of the StatefulSet"
    } else if claim.owned {
        "its owner reference"
    } else {
        return format!("volume {name} ({size}): kept with its data");
    };
    let data = match claim.reclaim.as_deref() {
        Some("Retain") => {
            format!("its data is kept in PersistentVolume {volume} (reclaim policy Retain)")
        }
        Some(policy) => format!("and THE DATA with it (reclaim policy {policy} of {volume})"),
        None => format!(
            "and, unless its reclaim policy is Retain, THE DATA with it (kubectl get pv {volume} \
             shows the policy)"
        ),
    };
    format!("volume {name} ({size}): deleted ({cause}), {data}")
}

/// The commands that delete the source, in the order in which to run them. The annotations come
/// first, because without them the operator ignores the deletion. `ignored_by_operator` says
/// whether the resource has the annotation acid.zalan.do/controller.
pub fn commands(
    namespace: &str,
    cluster: &str,
    ignored_by_operator: bool,
    operator: &OperatorSettings,
    today: &str,
) -> Vec<String> {
    let annotate = |annotation: String| {
        format!("kubectl annotate -n {namespace} postgresql/{cluster} --overwrite {annotation}")
    };
    let mut commands = Vec::new();
    if let Some(key) = &operator.date_key {
        commands.push(annotate(format!("{key}={today}")));
    }
    if let Some(key) = &operator.name_key {
        commands.push(annotate(format!("{key}={cluster}")));
    }
    if ignored_by_operator {
        // Directly before the deletion: from then on the operator acts on the resource again.
        commands.push(format!(
            "kubectl annotate -n {namespace} postgresql/{cluster} acid.zalan.do/controller-"
        ));
    }
    commands.push(format!(
        "kubectl delete -n {namespace} postgresql/{cluster}"
    ));
    commands
}

/// A command that makes a Service refuse all connections, to find clients that still need it while
/// that can be undone. It replaces the selector and does not remove it, because a Service without
/// selector keeps the endpoints that it had.
pub fn detach_selector(namespace: &str, service: &str) -> String {
    let patch = r#"[{"op":"replace","path":"/spec/selector","value":{"detached":"true"}}]"#;
    format!("kubectl patch -n {namespace} service/{service} --type=json -p '{patch}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(reclaim: Option<&str>) -> Claim {
        Claim {
            name: "pgdata-pg-0".into(),
            size: "40Gi".into(),
            volume: "pvc-1".into(),
            reclaim: reclaim.map(str::to_owned),
            owned: false,
        }
    }

    fn outcome(
        claim: &Claim,
        deleted_with_stateful_set: bool,
        operator: &OperatorSettings,
    ) -> String {
        let inventory = Inventory {
            claims_deleted_with_stateful_set: deleted_with_stateful_set,
            ..Inventory::default()
        };
        reclaim_outcome(claim, &inventory, operator)
    }

    #[test]
    fn each_volumes_line_says_whether_its_data_is_deleted() {
        let deletes = OperatorSettings::default();
        let keeps = OperatorSettings {
            deletes_claims: false,
            ..OperatorSettings::default()
        };
        assert!(
            outcome(&claim(Some("Delete")), false, &deletes)
                .contains("THE DATA with it (reclaim policy Delete of pvc-1)")
        );
        assert!(
            outcome(&claim(Some("Retain")), false, &deletes)
                .contains("its data is kept in PersistentVolume pvc-1")
        );
        assert!(outcome(&claim(None), false, &deletes).contains("kubectl get pv pvc-1"));
        assert_eq!(
            outcome(&claim(Some("Delete")), false, &keeps),
            "volume pgdata-pg-0 (40Gi): kept with its data"
        );
        assert!(outcome(&claim(Some("Delete")), true, &keeps).contains("of the StatefulSet"));
        let owned = Claim {
            owned: true,
            ..claim(Some("Delete"))
        };
        assert!(outcome(&owned, false, &keeps).contains("owner reference"));
    }

    #[test]
    fn the_annotations_that_the_operator_requires_come_before_the_deletion() {
        let operator = OperatorSettings {
            date_key: Some("delete-date".into()),
            name_key: Some("delete-clustername".into()),
            ..OperatorSettings::default()
        };
        let wanted = [
            "kubectl annotate -n shop postgresql/pg --overwrite delete-date=2026-01-08",
            "kubectl annotate -n shop postgresql/pg --overwrite delete-clustername=pg",
            "kubectl annotate -n shop postgresql/pg acid.zalan.do/controller-",
            "kubectl delete -n shop postgresql/pg",
        ];
        assert_eq!(
            commands("shop", "pg", true, &operator, "2026-01-08"),
            wanted
        );
        assert_eq!(
            commands(
                "shop",
                "pg",
                false,
                &OperatorSettings::default(),
                "2026-01-08"
            ),
            wanted[3..]
        );
    }
}
