//! What a deletion of the `postgresql` resource removes, in words: the operator's own order and
//! conditions (postgres-operator pkg/cluster/cluster.go, Delete).

use super::operator::Operator;

/// A volume of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The PersistentVolumeClaim.
    pub name: String,
    /// Its size.
    pub size: String,
    /// The PersistentVolume behind it.
    pub volume: String,
    /// What becomes of that when the claim is gone; None when it could not be read.
    pub reclaim: Option<String>,
    /// Kubernetes removes it with its owner.
    pub owned: bool,
}

/// What is there of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Its pods.
    pub pods: Vec<String>,
    /// Its volumes.
    pub claims: Vec<Claim>,
    /// The StatefulSet removes them with itself (persistentVolumeClaimRetentionPolicy).
    pub claims_go_with_stateful_set: bool,
    /// Its Services.
    pub services: Vec<String>,
    /// The poolers' Deployments.
    pub poolers: Vec<String>,
    /// The logical backup.
    pub cron_jobs: Vec<String>,
    /// Roles that the operator has made a Secret for.
    pub roles: Vec<String>,
}

/// A line for each kind of thing.
pub fn lines(cluster: &str, inventory: &Inventory, operator: &Operator) -> Vec<String> {
    let mut lines = vec![
        listed("pods and their StatefulSet", &inventory.pods),
        listed("Services", &inventory.services),
    ];
    lines.push(listed("poolers", &inventory.poolers));
    lines.push(listed(
        "CronJobs of the logical backup",
        &inventory.cron_jobs,
    ));
    let secrets: Vec<String> = inventory
        .roles
        .iter()
        .map(|role| role.replace('_', "-"))
        .collect();
    let secrets = listed(
        &format!("Secrets (.{cluster}.credentials.postgresql.acid.zalan.do)"),
        &secrets,
    );
    lines.push(match operator.deletes_secrets {
        true => secrets,
        false => format!("{secrets}: stay (enable_secrets_deletion is false)"),
    });
    lines.extend(
        inventory
            .claims
            .iter()
            .map(|claim| fate(claim, inventory, operator)),
    );
    lines.push("PodDisruptionBudgets, and Patroni's Endpoints or ConfigMaps".to_owned());
    lines
}

fn listed(what: &str, names: &[String]) -> String {
    match names {
        [] => format!("{what}: none"),
        names => format!("{what}: {}", names.join(", ")),
    }
}

fn fate(claim: &Claim, inventory: &Inventory, operator: &Operator) -> String {
    let Claim {
        name, size, volume, ..
    } = claim;
    let why = if operator.deletes_claims {
        "enable_persistent_volume_claim_deletion"
    } else if inventory.claims_go_with_stateful_set {
        "persistentVolumeClaimRetentionPolicy of the StatefulSet"
    } else if claim.owned {
        "its owner reference"
    } else {
        return format!("volume {name} ({size}): stays, and so does its data");
    };
    let data = match claim.reclaim.as_deref() {
        Some("Retain") => {
            format!("its data stays in PersistentVolume {volume} (reclaim policy Retain)")
        }
        Some(policy) => format!("and THE DATA with it (reclaim policy {policy} of {volume})"),
        None => format!(
            "and, as long as nobody knows better, THE DATA with it (kubectl get pv {volume} shows \
             the reclaim policy)"
        ),
    };
    format!("volume {name} ({size}): deleted ({why}), {data}")
}

/// What has to be done so that a deletion is heard, in the order of it; nothing of this is done
/// here.
pub fn commands(
    namespace: &str,
    cluster: &str,
    frozen: bool,
    operator: &Operator,
    today: &str,
) -> Vec<String> {
    let annotate = |what: String| {
        format!("kubectl annotate -n {namespace} postgresql/{cluster} --overwrite {what}")
    };
    let mut commands = Vec::new();
    if let Some(key) = &operator.date_key {
        commands.push(annotate(format!("{key}={today}")));
    }
    if let Some(key) = &operator.name_key {
        commands.push(annotate(format!("{key}={cluster}")));
    }
    if frozen {
        // Directly before the deletion: the operator acts again from then on.
        commands.push(format!(
            "kubectl annotate -n {namespace} postgresql/{cluster} acid.zalan.do/controller-"
        ));
    }
    commands.push(format!(
        "kubectl delete -n {namespace} postgresql/{cluster}"
    ));
    commands
}

/// What makes a Service that goes refuse everybody, so that who still needs it is found out while
/// it can be undone. Its selector is replaced, not removed: what a removed one has selected before
/// goes on getting the traffic (verified.md).
pub fn lead_nowhere(namespace: &str, service: &str) -> String {
    let change = r#"[{"op":"replace","path":"/spec/selector","value":{"leads":"nowhere"}}]"#;
    format!("kubectl patch -n {namespace} service/{service} --type=json -p '{change}'")
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

    fn said(claim: &Claim, go: bool, operator: &Operator) -> String {
        let inventory = Inventory {
            claims_go_with_stateful_set: go,
            ..Inventory::default()
        };
        fate(claim, &inventory, operator)
    }

    #[test]
    fn whether_the_data_goes_is_said_for_each_volume() {
        let deletes = Operator::default();
        let keeps = Operator {
            deletes_claims: false,
            ..Operator::default()
        };
        assert!(
            said(&claim(Some("Delete")), false, &deletes)
                .contains("THE DATA with it (reclaim policy Delete of pvc-1)")
        );
        assert!(
            said(&claim(Some("Retain")), false, &deletes)
                .contains("its data stays in PersistentVolume pvc-1")
        );
        assert!(said(&claim(None), false, &deletes).contains("kubectl get pv pvc-1"));
        assert_eq!(
            said(&claim(Some("Delete")), false, &keeps),
            "volume pgdata-pg-0 (40Gi): stays, and so does its data"
        );
        assert!(said(&claim(Some("Delete")), true, &keeps).contains("of the StatefulSet"));
        let owned = Claim {
            owned: true,
            ..claim(Some("Delete"))
        };
        assert!(said(&owned, false, &keeps).contains("owner reference"));
    }

    #[test]
    fn a_deletion_that_is_heard_has_its_annotations_first() {
        let operator = Operator {
            date_key: Some("delete-date".into()),
            name_key: Some("delete-clustername".into()),
            ..Operator::default()
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
            commands("shop", "pg", false, &Operator::default(), "2026-01-08"),
            wanted[3..]
        );
    }
}
