//! Reads what the decommission report needs: the source's objects, the operator's configuration,
//! and every object that may refer to the source.

use std::collections::BTreeMap;

use job::{
    context::JobContext,
    error::{Context as _, Result},
    kubernetes,
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        batch::v1::CronJob,
        core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
    core::GroupVersionKind,
};
use platform::kubernetes::zalando::{self, Postgresql};
use protocol::controllers::suspension::CONTROLLER;
use serde_json::{Value, json};

use super::{
    gate::Validated,
    impact::{Claim, Inventory},
    operator::OperatorSettings,
    references::{Reference, SourceNames, is_bootstrap_only},
};
use crate::settings::{OperatorConfig, Settings};

/// Objects per page of a list, which limits the memory for many or large ConfigMaps.
const PAGE: u32 = 50;

/// All that the report is made from.
pub struct Snapshot {
    /// The `postgresql` resource, if it exists.
    pub resource: Option<Postgresql>,
    /// The objects that belong to it.
    pub inventory: Inventory,
    /// How the operator deletes.
    pub operator: OperatorSettings,
    /// What still uses it.
    pub uses: Uses,
    /// The result of validate-cnpg.
    pub validated: Option<Validated>,
}

/// References to the source.
#[derive(Default)]
pub struct Uses {
    /// The object, as `kind name`, and its reference.
    pub references: Vec<(String, Reference)>,
    /// References that the target needed only for its bootstrap.
    pub bootstrap_only: Vec<Reference>,
    /// Services of the source that now point to the target, and their selectors as JSON.
    pub repointed: Vec<(String, String)>,
}

/// Reads the snapshot.
pub async fn observe(settings: &Settings, run: &JobContext) -> Result<Snapshot> {
    let source = settings.source_cluster.as_str();
    let names = SourceNames::new(source, &run.namespace);
    let resource =
        kubernetes::get(&zalando::postgresqls(&run.client, &run.namespace), source).await?;
    let mut uses = Uses::default();
    let mut inventory = read_inventory(run, source, &names, &mut uses).await?;
    inventory.roles = resource.as_ref().map(roles).unwrap_or_default();
    for_each::<ConfigMap>(run, |object| {
        uses.add_object::<ConfigMap>(&names, source, &object, "data")
    })
    .await?;
    uses.add_target(settings, run, &names).await?;
    Ok(Snapshot {
        operator: operator(&run.client, settings.operator_config.as_ref()).await,
        validated: validated(run, &settings.target_cluster).await?,
        resource,
        inventory,
        uses,
    })
}

/// Reads the objects of the source, and collects the references of other objects of these kinds.
async fn read_inventory(
    run: &JobContext,
    source: &str,
    names: &SourceNames,
    uses: &mut Uses,
) -> Result<Inventory> {
    let mut found = Inventory::default();
    let belongs = |object: &DynamicObject| belongs_to_source(&object.metadata, source);
    for_each::<Pod>(run, |pod| {
        if belongs(&pod) && label(&pod.metadata, "application") == Some("spilo") {
            found.pods.push(pod.name_any());
        }
    })
    .await?;
    for_each::<Service>(run, |service| {
        if names.services().contains(&service.name_any()) && points_to_target(&service.data) {
            uses.repointed.push((
                service.name_any(),
                service.data["spec"]["selector"].to_string(),
            ));
        }
        if belongs(&service) {
            found.services.push(service.name_any());
        }
    })
    .await?;
    for_each::<Deployment>(run, |deployment| {
        if belongs(&deployment) {
            found.poolers.push(deployment.name_any());
        }
        uses.add_object::<Deployment>(names, source, &deployment, "spec");
    })
    .await?;
    for_each::<StatefulSet>(run, |set| {
        found.claims_deleted_with_stateful_set |= belongs(&set) && deletes_claims(&set.data);
        uses.add_object::<StatefulSet>(names, source, &set, "spec");
    })
    .await?;
    for_each::<CronJob>(run, |cron_job| {
        if belongs(&cron_job) {
            found.cron_jobs.push(cron_job.name_any());
        }
        uses.add_object::<CronJob>(names, source, &cron_job, "spec");
    })
    .await?;
    let mut claims = Vec::new();
    for_each::<PersistentVolumeClaim>(run, |claim| claims.extend(Some(claim).filter(belongs)))
        .await?;
    for claim in claims {
        found.claims.push(read_claim(&run.client, claim).await);
    }
    Ok(found)
}

/// Visits every object of a kind in the namespace. Objects are read as JSON, because the complete
/// types would add megabytes to the program.
async fn for_each<K>(run: &JobContext, mut visit: impl FnMut(DynamicObject)) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    for_each_of(run, &ApiResource::erase::<K>(&()), &mut visit).await
}

async fn for_each_of(
    run: &JobContext,
    kind: &ApiResource,
    visit: &mut dyn FnMut(DynamicObject),
) -> Result<()> {
    let api: Api<DynamicObject> = Api::namespaced_with(run.client.clone(), &run.namespace, kind);
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api
            .list(&page)
            .await
            .context(format!("listing {}", kind.plural))?;
        let more = list
            .metadata
            .continue_
            .clone()
            .filter(|token| !token.is_empty());
        list.items.into_iter().for_each(&mut *visit);
        match more {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(()),
        }
    }
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// Whether an object has the label with which the operator marks the source's objects (its setting
/// cluster_name_label; docs/operators/zalando.md).
fn belongs_to_source(meta: &ObjectMeta, source: &str) -> bool {
    label(meta, "cluster-name") == Some(source)
}

/// Whether an object is one of the migration's own, which are not needed any more once the source
/// is deleted.
fn belongs_to_migration(meta: &ObjectMeta) -> bool {
    label(meta, "app.kubernetes.io/name") == Some("replica-migration")
        || label(meta, "app.kubernetes.io/managed-by") == Some("replica-migration")
}

fn deletes_claims(set: &Value) -> bool {
    set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
}

fn points_to_target(service: &Value) -> bool {
    let selector = service["spec"]["selector"].as_object();
    selector.is_some_and(|selector| selector.keys().any(|key| key.starts_with("cnpg.io/")))
}

async fn read_claim(client: &Client, claim: DynamicObject) -> Claim {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let spec = &claim.data["spec"];
    let volume = text(&spec["volumeName"]).unwrap_or_default();
    let volumes: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::erase::<PersistentVolume>(&()));
    // Volumes are cluster-scoped, so reading them takes components/decommission. Without it, the
    // report assumes that the data is deleted.
    let reclaim = volumes.get(&volume).await.ok();
    Claim {
        name: claim.name_any(),
        size: text(&spec["resources"]["requests"]["storage"]).unwrap_or_default(),
        volume,
        reclaim: reclaim
            .and_then(|volume| text(&volume.data["spec"]["persistentVolumeReclaimPolicy"])),
        owned: !claim.owner_references().is_empty(),
    }
}

/// The operator's own roles, and those that the resource names.
fn roles(resource: &Postgresql) -> Vec<String> {
    let of_operator = ["postgres", "standby", "pooler"].map(str::to_owned);
    let mut roles: Vec<String> = of_operator.into();
    roles.extend(resource.spec.users.keys().cloned());
    roles.extend(resource.spec.databases.values().cloned());
    roles.sort();
    roles.dedup();
    roles
}

impl Uses {
    /// Adds the references in a part of an object, unless the object belongs to the source, to the
    /// target or to the migration.
    fn add_object<K: Resource<DynamicType = ()>>(
        &mut self,
        names: &SourceNames,
        source: &str,
        object: &DynamicObject,
        part: &str,
    ) {
        let meta = &object.metadata;
        if belongs_to_source(meta, source)
            || belongs_to_migration(meta)
            || label(meta, "cnpg.io/cluster").is_some()
        {
            return;
        }
        let kind_and_name = format!("{} {}", K::kind(&()), object.name_any());
        for reference in names.find_in(&json!({part: object.data[part]})) {
            self.references.push((kind_and_name.clone(), reference));
        }
    }

    /// Adds the references in the target's Cluster and in all Poolers.
    async fn add_target(
        &mut self,
        settings: &Settings,
        run: &JobContext,
        names: &SourceNames,
    ) -> Result<()> {
        let kind = |kind: &str| {
            ApiResource::from_gvk(&GroupVersionKind::gvk("postgresql.cnpg.io", "v1", kind))
        };
        let clusters: Api<DynamicObject> =
            Api::namespaced_with(run.client.clone(), &run.namespace, &kind("Cluster"));
        let target = settings.target_cluster.as_str();
        if let Some(cluster) = clusters
            .get_opt(target)
            .await
            .context("reading the target")?
        {
            self.add_cnpg(names, &format!("Cluster {target}"), &cluster);
        }
        for_each_of(run, &kind("Pooler"), &mut |pooler| {
            self.add_cnpg(names, &format!("Pooler {}", pooler.name_any()), &pooler)
        })
        .await
    }

    fn add_cnpg(&mut self, names: &SourceNames, kind_and_name: &str, object: &DynamicObject) {
        for reference in names.find_in(&object.data["spec"]) {
            if is_bootstrap_only(&reference) {
                self.bootstrap_only.push(reference);
            } else {
                self.references.push((kind_and_name.to_owned(), reference));
            }
        }
    }
}

/// The operator's configuration in either form. The defaults, if it may not be read or
/// OPERATOR_CONFIG is not set.
async fn operator(client: &Client, config: Option<&OperatorConfig>) -> OperatorSettings {
    let Some(OperatorConfig { namespace, name }) = config else {
        return OperatorSettings::default();
    };
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    if let Ok(map) = maps.get(name).await {
        return OperatorSettings::from_config_map(&map.data.unwrap_or_default());
    }
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(
        "acid.zalan.do",
        "v1",
        "OperatorConfiguration",
    ));
    let resources: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
    match resources.get(name).await {
        Ok(resource) => OperatorSettings::from_resource(&resource.data),
        Err(_) => OperatorSettings::default(),
    }
}

async fn validated(run: &JobContext, target: &str) -> Result<Option<Validated>> {
    let maps: Api<ConfigMap> = Api::namespaced(run.client.clone(), &run.namespace);
    let data: Option<BTreeMap<String, String>> =
        kubernetes::get(&maps, &format!("validate-cnpg-{target}"))
            .await?
            .and_then(|map| map.data);
    // An unreadable verdict counts as a missing one.
    Ok(data.and_then(|data| serde_json::from_value(json!(data)).ok()))
}

impl Snapshot {
    /// Whether an annotation makes the operator ignore the resource, and its deletion, too.
    pub fn ignored_by_operator(&self) -> bool {
        let annotation = self
            .resource
            .as_ref()
            .and_then(|resource| resource.annotations().get(CONTROLLER));
        annotation.is_some_and(|value| !value.is_empty())
    }
}
