//! What is read for the goodbye: the source's objects, the operator's configuration, and everything
//! that may still use the source.

use std::collections::BTreeMap;

use job::{
    context::Run,
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
    doomed::{Claim, Inventory},
    mentions::{Mention, Names, is_history},
    operator::Operator,
    ready::Validated,
};
use crate::settings::{OperatorConfig, Settings};

/// So many objects are read at a time: nobody knows how many ConfigMaps there are, and how large.
const PAGE: u32 = 50;

/// Everything.
pub struct Seen {
    /// The resource, while it is there.
    pub resource: Option<Postgresql>,
    /// What belongs to it.
    pub inventory: Inventory,
    /// How the operator deletes.
    pub operator: Operator,
    /// Who still uses it.
    pub uses: Uses,
    /// What validate-cnpg said.
    pub validated: Option<Validated>,
}

/// Who names the source.
#[derive(Default)]
pub struct Uses {
    /// Object and mention.
    pub mentions: Vec<(String, Mention)>,
    /// What the target's Cluster needed once.
    pub history: Vec<Mention>,
    /// Services of the source that lead to the target by now, and their selectors, as JSON.
    pub turned: Vec<(String, String)>,
}

/// Reads it all.
///
/// # Errors
/// The API's.
pub async fn look(settings: &Settings, run: &Run) -> Result<Seen> {
    let source = settings.source_cluster.as_str();
    let names = Names::new(source, &run.namespace);
    let resource =
        kubernetes::get(&zalando::postgresqls(&run.client, &run.namespace), source).await?;
    let mut uses = Uses::default();
    let mut inventory = belongings(run, source, &names, &mut uses).await?;
    inventory.roles = resource.as_ref().map(roles).unwrap_or_default();
    each::<ConfigMap>(run, |one| {
        uses.of::<ConfigMap>(&names, source, &one, "data")
    })
    .await?;
    uses.of_target(settings, run, &names).await?;
    Ok(Seen {
        operator: operator(&run.client, settings.operator_config.as_ref()).await,
        validated: validated(run, &settings.target_cluster).await?,
        resource,
        inventory,
        uses,
    })
}

/// What the operator has made, and on the way who else names the source.
async fn belongings(run: &Run, source: &str, names: &Names, uses: &mut Uses) -> Result<Inventory> {
    let mut found = Inventory::default();
    let ours = |meta: &ObjectMeta| belongs(meta, source);
    each::<Pod>(run, |one| {
        if ours(&one.metadata) && label(&one.metadata, "application") == Some("spilo") {
            found.pods.push(one.name_any());
        }
    })
    .await?;
    each::<Service>(run, |one| {
        if names.services().contains(&one.name_any()) && leads_to_target(&one.data) {
            uses.turned
                .push((one.name_any(), one.data["spec"]["selector"].to_string()));
        }
        if ours(&one.metadata) {
            found.services.push(one.name_any());
        }
    })
    .await?;
    each::<Deployment>(run, |one| {
        if ours(&one.metadata) {
            found.poolers.push(one.name_any());
        }
        uses.of::<Deployment>(names, source, &one, "spec");
    })
    .await?;
    each::<StatefulSet>(run, |one| {
        found.claims_go_with_stateful_set |= ours(&one.metadata) && claims_go(&one.data);
        uses.of::<StatefulSet>(names, source, &one, "spec");
    })
    .await?;
    each::<CronJob>(run, |one| {
        if ours(&one.metadata) {
            found.cron_jobs.push(one.name_any());
        }
        uses.of::<CronJob>(names, source, &one, "spec");
    })
    .await?;
    let mut claims = Vec::new();
    each::<PersistentVolumeClaim>(run, |one| {
        claims.extend(Some(one).filter(|one| ours(&one.metadata)))
    })
    .await?;
    for claim in claims {
        found.claims.push(seen_claim(&run.client, claim).await);
    }
    Ok(found)
}

/// Visits every object of a kind, which is read as what it is in JSON: the whole types are
/// megabytes of program.
async fn each<K>(run: &Run, mut visit: impl FnMut(DynamicObject)) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    each_of(run, &ApiResource::erase::<K>(&()), &mut visit).await
}

async fn each_of(
    run: &Run,
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

/// The operator's labels (facts of the Zalando operator: cluster_name_label).
fn belongs(meta: &ObjectMeta, source: &str) -> bool {
    label(meta, "cluster-name") == Some(source)
}

/// This migration's own objects, which are done with the source when it is gone, and what the API
/// server puts everywhere.
fn is_ours(meta: &ObjectMeta) -> bool {
    label(meta, "app.kubernetes.io/name") == Some("replica-migration")
        || label(meta, "app.kubernetes.io/managed-by") == Some("replica-migration")
}

fn claims_go(set: &Value) -> bool {
    set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
}

fn leads_to_target(service: &Value) -> bool {
    let selector = service["spec"]["selector"].as_object();
    selector.is_some_and(|selector| selector.keys().any(|key| key.starts_with("cnpg.io/")))
}

async fn seen_claim(client: &Client, claim: DynamicObject) -> Claim {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let spec = &claim.data["spec"];
    let volume = text(&spec["volumeName"]).unwrap_or_default();
    let volumes: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::erase::<PersistentVolume>(&()));
    // Volumes belong to no namespace: who has not taken components/goodbye may not read them, and
    // the worst is assumed.
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

/// The operator's roles, and those that the resource names.
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
    /// A part of an object of the namespace, unless it is the source's, the target's or ours.
    fn of<K: Resource<DynamicType = ()>>(
        &mut self,
        names: &Names,
        source: &str,
        object: &DynamicObject,
        part: &str,
    ) {
        let meta = &object.metadata;
        if belongs(meta, source) || is_ours(meta) || label(meta, "cnpg.io/cluster").is_some() {
            return;
        }
        let whose = format!("{} {}", K::kind(&()), object.name_any());
        let mentions = names.in_object(&json!({part: object.data[part]}));
        self.mentions
            .extend(mentions.into_iter().map(|mention| (whose.clone(), mention)));
    }

    /// The Cluster and the Poolers: what they needed for the beginning, and what they still use.
    async fn of_target(&mut self, settings: &Settings, run: &Run, names: &Names) -> Result<()> {
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
            self.of_cnpg(names, &format!("Cluster {target}"), &cluster);
        }
        each_of(run, &kind("Pooler"), &mut |one| {
            self.of_cnpg(names, &format!("Pooler {}", one.name_any()), &one)
        })
        .await
    }

    fn of_cnpg(&mut self, names: &Names, whose: &str, object: &DynamicObject) {
        let mentions = names.in_object(&object.data["spec"]);
        let (old, live): (Vec<Mention>, Vec<Mention>) = mentions.into_iter().partition(is_history);
        self.history.extend(old);
        self.mentions
            .extend(live.into_iter().map(|mention| (whose.to_owned(), mention)));
    }
}

/// Its configuration, in either form; the defaults when it may not be read, or nobody has said
/// where it is.
async fn operator(client: &Client, place: Option<&OperatorConfig>) -> Operator {
    let Some(OperatorConfig { namespace, name }) = place else {
        return Operator::default();
    };
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    if let Ok(map) = maps.get(name).await {
        return Operator::of_config_map(&map.data.unwrap_or_default());
    }
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(
        "acid.zalan.do",
        "v1",
        "OperatorConfiguration",
    ));
    let resources: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
    match resources.get(name).await {
        Ok(resource) => Operator::of_resource(&resource.data),
        Err(_) => Operator::default(),
    }
}

async fn validated(run: &Run, target: &str) -> Result<Option<Validated>> {
    let maps: Api<ConfigMap> = Api::namespaced(run.client.clone(), &run.namespace);
    let data: Option<BTreeMap<String, String>> =
        kubernetes::get(&maps, &format!("validate-cnpg-{target}"))
            .await?
            .and_then(|map| map.data);
    // What cannot be read is no verdict.
    Ok(data.and_then(|data| serde_json::from_value(json!(data)).ok()))
}

impl Seen {
    /// The operator leaves the resource alone, and its deletion, too.
    pub fn frozen(&self) -> bool {
        let annotation = self
            .resource
            .as_ref()
            .and_then(|resource| resource.annotations().get(CONTROLLER));
        annotation.is_some_and(|value| !value.is_empty())
    }
}
