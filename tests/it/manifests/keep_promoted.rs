//! components/keep-promoted: with the receipt of a finished cutover no client makes the Cluster
//! follow again, without one every client can.

use std::time::Duration;

use harness::{
    control_plane::ControlPlane,
    manifests::of_kind,
    migration::{CLUSTER, NAMESPACE},
    objects::{CNPG, CONFIG_MAP, Objects},
};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use protocol::record::receipt_name;
use serde_json::{Value, json};

use super::{components, named, names};

const POLICY: &str = "ValidatingAdmissionPolicy";
const BINDING: &str = "ValidatingAdmissionPolicyBinding";
const NAME: &str = "replica-migration-keep-promoted";
const POLL: Duration = Duration::from_millis(50);
/// A policy, or its receipt, takes effect after about a second.
const LIMIT: Duration = Duration::from_secs(60);

/// The Cluster of a test, as an administrator of the whole Kubernetes cluster changes it.
struct Cluster {
    objects: Objects,
    name: &'static str,
}

impl Cluster {
    async fn create(plane: &ControlPlane, namespace: &str, name: &'static str) -> Self {
        let cluster = json!({
            "apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster",
            "metadata": {"name": name}, "spec": spec(json!({"enabled": false, "source": "pg"})),
        });
        plane.apply(namespace, &[cluster]).await.unwrap();
        Self {
            objects: Objects::new(plane.admin(), namespace),
            name,
        }
    }

    /// Why the API server refuses a merge patch; None when it accepts it.
    async fn refusal(&self, patch: &Value, dry_run: bool) -> Option<String> {
        let params = PatchParams {
            dry_run,
            ..PatchParams::default()
        };
        let api = self.objects.api(CNPG);
        let answer = api.patch(self.name, &params, &Patch::Merge(patch)).await;
        refused(answer)
    }

    /// Waits until a change is refused, or is not; nothing is changed.
    async fn until_refused(&self, patch: &Value, wanted: bool) -> Option<String> {
        let waits = async {
            loop {
                let refusal = self.refusal(patch, true).await;
                if refusal.is_some() == wanted {
                    return refusal;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(LIMIT, waits)
            .await
            .unwrap_or_else(|_| panic!("{patch}: refused must become {wanted}"))
    }

    async fn accepts(&self, patch: Value) {
        assert_eq!(self.refusal(&patch, false).await, None, "{patch}");
    }

    async fn refuses(&self, patch: Value) {
        let refusal = self.refusal(&patch, false).await;
        let refusal = refusal.unwrap_or_else(|| panic!("{patch} is accepted"));
        assert!(refusal.contains("was promoted by a cutover"), "{refusal}");
    }
}

fn refused(answer: kube::Result<DynamicObject>) -> Option<String> {
    match answer {
        Ok(_) => None,
        Err(kube::Error::Api(status)) if status.code == 403 || status.code == 422 => {
            Some(status.message)
        }
        Err(error) => panic!("{error}"),
    }
}

fn spec(replica: Value) -> Value {
    json!({"instances": 1, "storage": {"size": "1Gi"}, "replica": replica})
}

fn enabled(value: bool) -> Value {
    json!({"spec": {"replica": {"enabled": value}}})
}

/// Writes the receipt of a cutover to this Cluster.
async fn write_receipt(plane: &ControlPlane) {
    let receipt = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": receipt_name(CLUSTER)},
        "immutable": true, "data": {"program": "cutover"},
    });
    plane.apply(NAMESPACE, &[receipt]).await.unwrap();
}

#[tokio::test]
async fn a_promoted_cluster_stays_promoted_while_its_receipt_exists() {
    let plane = ControlPlane::start().await.unwrap();
    for namespace in [NAMESPACE, "elsewhere"] {
        plane.namespace(namespace).await.unwrap();
    }
    let objects = components::rendered("keep-promoted").await;
    let policy: Vec<Value> = [POLICY, BINDING]
        .into_iter()
        .flat_map(|kind| of_kind(&objects, kind).cloned())
        .collect();
    assert_eq!(policy.len(), 2);
    plane.apply(NAMESPACE, &policy).await.unwrap();
    let cluster = Cluster::create(&plane, NAMESPACE, CLUSTER).await;
    let others = [
        Cluster::create(&plane, NAMESPACE, "other").await,
        Cluster::create(&plane, "elsewhere", CLUSTER).await,
    ];

    write_receipt(&plane).await;
    let refusal = cluster.until_refused(&enabled(true), true).await.unwrap();
    for words in [
        "Cluster database was promoted by a cutover (ConfigMap cutover-database-receipt)",
        "set spec.replica.enabled to false where this manifest is kept",
    ] {
        assert!(refusal.contains(words), "{refusal}");
    }
    cluster.refuses(enabled(true)).await;
    // Without `enabled` a Cluster follows unless `primary` names it.
    cluster
        .refuses(json!({"spec": {"replica": {"enabled": null}}}))
        .await;
    let primary = json!({"spec": {"replica": {"enabled": null, "primary": "pg"}}});
    cluster.refuses(primary).await;
    // As `kubectl apply --server-side`, Flux and Argo CD send a manifest, and as `kubectl replace`.
    let rendered = json!({
        "apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster", "metadata": {"name": CLUSTER},
        "spec": spec(json!({"enabled": true, "source": "pg"})),
    });
    let api = cluster.objects.api(CNPG);
    let params = PatchParams::apply("kustomize-controller").force();
    let applied = api.patch(CLUSTER, &params, &Patch::Apply(&rendered)).await;
    assert!(refused(applied).is_some());
    let mut found = api.get(CLUSTER).await.unwrap();
    found.data["spec"]["replica"]["enabled"] = true.into();
    let replaced = api.replace(CLUSTER, &PostParams::default(), &found).await;
    assert!(refused(replaced).is_some());

    // Everything else about this Cluster, and other Clusters.
    cluster.accepts(json!({"spec": {"instances": 3}})).await;
    cluster.accepts(enabled(false)).await;
    let own = json!({"spec": {"replica": {"enabled": null, "primary": CLUSTER}}});
    cluster.accepts(own).await;
    cluster.accepts(json!({"spec": {"replica": null}})).await;
    cluster
        .refuses(json!({"spec": {"replica": {"enabled": true, "source": "pg"}}}))
        .await;
    for other in &others {
        other.accepts(enabled(true)).await;
    }

    // Without the receipt, before a cutover and after its removal, and with the next receipt.
    cluster
        .accepts(json!({"spec": {"replica": {"enabled": false, "source": "pg"}}}))
        .await;
    let receipt = receipt_name(CLUSTER);
    cluster.objects.remove(CONFIG_MAP, &receipt).await.unwrap();
    cluster.until_refused(&enabled(true), false).await;
    cluster.accepts(enabled(true)).await;
    write_receipt(&plane).await;
    // It concerns a Cluster only from its promotion on.
    cluster.accepts(json!({"spec": {"instances": 2}})).await;
    cluster.accepts(enabled(false)).await;
    cluster.until_refused(&enabled(true), true).await;
    let stored = cluster.objects.get(CNPG, CLUSTER).await.unwrap();
    assert_eq!(stored["spec"]["replica"]["enabled"], false);
}

#[tokio::test]
async fn the_names_are_those_of_the_settings() {
    let other = components::with("keep-promoted")
        .replace("TARGET_CLUSTER=database", "TARGET_CLUSTER=shop-pg-17");
    for overlay in [other.replace("../../components/names, ", ""), other] {
        let objects = names::render_with(&overlay).await;
        let policy = named(&objects, POLICY, NAME);
        let rules = &policy["spec"]["matchConstraints"]["resourceRules"];
        assert_eq!(rules[0]["resourceNames"], json!(["shop-pg-17"]));
        let binding = named(&objects, BINDING, NAME);
        assert_eq!(
            binding["spec"]["paramRef"]["name"],
            receipt_name("shop-pg-17")
        );
        assert_eq!(binding["spec"]["policyName"], NAME);
    }
}
