//! Watches Clusters and Poolers, and runs a task for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context, Result};
use futures::{StreamExt, stream::select};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::{
    FIRST_HOST, FIRST_POOLER_HOST, InstanceHandle, Options,
    cluster::{Cluster, Pooler},
    election::Election,
    leadership::Leadership,
    log::Log,
    manager::{Due, Manager, Shared},
    objects,
    pod::InstancePod,
    promotion_times::PromotionTimes,
    roles::Poolers,
    server::{Server, StopMode},
    status::Status,
    volume::Volume,
};
use crate::service::pooler;

/// The instances by Cluster name.
pub(super) type Instances = BTreeMap<String, ClusterInstances>;

/// The instances of one Cluster, the first one first.
#[derive(Clone)]
pub(super) struct ClusterInstances {
    pub all: Vec<InstanceHandle>,
    pub leadership: Leadership,
}

/// A Cluster's tasks and the sender of its changes.
struct ClusterTask {
    sender: watch::Sender<Arc<Cluster>>,
    tasks: Vec<AbortHandle>,
    hosts: Vec<u8>,
}

/// What the instances of one Cluster share.
struct ClusterShared {
    cluster: watch::Receiver<Arc<Cluster>>,
    leadership: Leadership,
    status: Status,
}

pub(super) struct Operator {
    options: Options,
    instances: watch::Sender<Instances>,
    managers: BTreeMap<String, ClusterTask>,
    tasks: JoinSet<()>,
    /// Whether there are Poolers, for all Clusters alike.
    has_poolers: watch::Sender<Poolers>,
    poolers: BTreeMap<String, pooler::Pooler>,
}

#[expect(clippy::large_enum_variant, reason = "short-lived, one at a time")]
enum Change {
    Cluster(Event<Cluster>),
    Pooler(Event<Pooler>),
}

impl Operator {
    pub(super) fn new(options: Options, instances: watch::Sender<Instances>) -> Self {
        let has_poolers = watch::channel(Poolers::None).0;
        Self {
            options,
            instances,
            managers: BTreeMap::new(),
            tasks: JoinSet::new(),
            has_poolers,
            poolers: BTreeMap::new(),
        }
    }

    /// Runs until it is aborted; its tasks end with it.
    pub(super) async fn run(mut self) {
        let (client, namespace) = (
            self.options.client.clone(),
            self.options.services.namespace().to_owned(),
        );
        let clusters: Api<Cluster> = Api::namespaced(client.clone(), &namespace);
        let poolers: Api<Pooler> = Api::namespaced(client, &namespace);
        let clusters = watcher(clusters, watcher::Config::default()).default_backoff();
        let poolers = watcher(poolers, watcher::Config::default()).default_backoff();
        let mut changes = select(
            clusters.map(|change| change.map(Change::Cluster)).boxed(),
            poolers.map(|change| change.map(Change::Pooler)).boxed(),
        );
        let mut listed = BTreeSet::new();
        while let Some(change) = changes.next().await {
            let done = match change {
                Ok(Change::Cluster(Event::Init)) => {
                    listed.clear();
                    Ok(())
                }
                Ok(Change::Cluster(Event::InitApply(cluster))) => {
                    listed.insert(cluster.name_any());
                    self.cluster(cluster)
                }
                Ok(Change::Cluster(Event::InitDone)) => self.remove_unlisted(&listed).await,
                Ok(Change::Cluster(Event::Apply(cluster))) => self.cluster(cluster),
                Ok(Change::Cluster(Event::Delete(cluster))) => self.remove(&cluster).await,
                Ok(Change::Pooler(Event::Apply(pooler) | Event::InitApply(pooler))) => {
                    self.pooler(&pooler).await
                }
                Ok(Change::Pooler(Event::Delete(pooler))) => {
                    self.poolers.remove(&pooler.name_any());
                    Ok(())
                }
                // Beginnings and ends of lists, and watches that restart on their own.
                Ok(_) | Err(_) => Ok(()),
            };
            if let Err(error) = done {
                eprintln!("target: {error:#}");
            }
        }
    }

    fn cluster(&mut self, cluster: Cluster) -> Result<()> {
        let name = cluster.name_any();
        if let Some(managed) = self.managers.get(&name) {
            managed.sender.send_if_modified(|known| {
                let differs =
                    known.spec != cluster.spec || known.annotations() != cluster.annotations();
                *known = Arc::new(cluster);
                differs
            });
            return Ok(());
        }
        let count = cluster.spec.instances.max(1);
        let (sender, receiver) = watch::channel(Arc::new(cluster));
        let hosts = self.free_hosts(count)?;
        let first = objects::instance_name(&name, 1);
        let shared = ClusterShared {
            leadership: Leadership::of(&first),
            status: Status::new(self.api(), &name, &first),
            cluster: receiver,
        };
        let (mut all, mut tasks) = (Vec::new(), Vec::new());
        for (number, host) in (1..).zip(&hosts) {
            let instance = objects::instance_name(&name, number);
            let (manager, handle) = self.manager(&instance, *host, &shared)?;
            tasks.push(self.tasks.spawn(manager.run()));
            all.push(handle);
        }
        if count > 1 {
            let election = self.election(&all, &shared)?;
            tasks.push(self.tasks.spawn(election.run()));
        }
        let task = ClusterTask {
            sender,
            tasks,
            hosts,
        };
        self.managers.insert(name.clone(), task);
        let leadership = shared.leadership;
        let started = ClusterInstances { all, leadership };
        self.instances
            .send_modify(|instances| drop(instances.insert(name, started)));
        Ok(())
    }

    fn free_hosts(&self, count: u32) -> Result<Vec<u8>> {
        let taken = |host: &u8| {
            let mut managed = self.managers.values();
            managed.any(|managed| managed.hosts.contains(host))
        };
        let free = (FIRST_HOST..FIRST_POOLER_HOST).filter(|host| !taken(host));
        let hosts: Vec<u8> = free.take(count as usize).collect();
        anyhow::ensure!(hosts.len() == count as usize, "too many instances");
        Ok(hosts)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        let Options {
            client, services, ..
        } = &self.options;
        Api::namespaced(client.clone(), services.namespace())
    }

    fn election(&self, all: &[InstanceHandle], shared: &ClusterShared) -> Result<Election> {
        let first = all.first().context("a Cluster without instances")?;
        Ok(Election {
            cluster: shared.cluster.clone(),
            leadership: shared.leadership.clone(),
            status: shared.status.clone(),
            pods: self.api(),
            servers: all
                .iter()
                .map(|handle| (handle.name().to_owned(), handle.server.clone()))
                .collect(),
            log: first.log.clone(),
        })
    }

    fn manager(
        &self,
        instance: &str,
        host: u8,
        of: &ClusterShared,
    ) -> Result<(Manager, InstanceHandle)> {
        let Options {
            setup,
            instance: network,
            client,
            services,
            programs,
            hidden,
        } = &self.options;
        let (client, namespace) = (client.clone(), services.namespace().to_owned());
        let volume = Volume::new(setup, network.subdirectory(setup, instance)?);
        let log = Log::open(volume.path("manager.log"))?;
        let server = Server::new(setup, volume, instance, network.address(host));
        let (promotion_times, promotion_times_receiver) = watch::channel(PromotionTimes::default());
        let pod = InstancePod::new(
            Api::namespaced(client.clone(), &namespace),
            instance,
            &network.kubernetes_address(host).to_string(),
        );
        let status = of.status.of(instance);
        let is_first = of.leadership.now().current == *instance;
        let handle = InstanceHandle {
            server: server.clone(),
            promotion_times: promotion_times_receiver,
            log: log.clone(),
        };
        let shared = Shared {
            setup,
            client,
            namespace,
            services: Arc::clone(services),
            programs: programs.clone(),
            hidden: hidden.clone(),
        };
        let poolers = self.has_poolers.subscribe();
        let (due, archives) = (Due::default(), false);
        let manager = Manager {
            shared,
            name: instance.to_owned(),
            is_first,
            announced: false,
            leadership: of.leadership.clone(),
            primary: of.leadership.subscribe(),
            cluster: of.cluster.clone(),
            poolers,
            server,
            pod,
            status,
            promotion_times,
            log,
            due,
            archives,
        };
        Ok((manager, handle))
    }

    /// Removes Clusters that were deleted while the API server was unreachable: no event reports
    /// them.
    async fn remove_unlisted(&mut self, listed: &BTreeSet<String>) -> Result<()> {
        let gone = self
            .managers
            .iter()
            .filter(|(name, _)| !listed.contains(*name));
        let gone: Vec<Arc<Cluster>> = gone
            .map(|(_, managed)| managed.sender.borrow().clone())
            .collect();
        for cluster in gone {
            self.remove(&cluster).await?;
        }
        Ok(())
    }

    /// Removes everything that a deleted Cluster owns, as the garbage collector does by owner
    /// references.
    async fn remove(&mut self, cluster: &Cluster) -> Result<()> {
        let name = cluster.name_any();
        if let Some(managed) = self.managers.remove(&name) {
            managed.tasks.iter().for_each(AbortHandle::abort);
        }
        let known = self.instances.borrow().get(&name).cloned();
        let all = known.map_or_else(Vec::new, |known| known.all);
        for handle in &all {
            if handle.server.runs() {
                handle.server.stop(StopMode::Immediate).await?;
            }
            let root = handle.server.volume().root();
            std::fs::remove_dir_all(root)
                .with_context(|| format!("removing {}", root.display()))?;
        }
        self.remove_objects(&name, all.len(), cluster.meta().uid.as_deref())
            .await?;
        self.instances
            .send_modify(|instances| drop(instances.remove(&name)));
        Ok(())
    }

    async fn remove_objects(&self, name: &str, count: usize, uid: Option<&str>) -> Result<()> {
        use kube::core::{DynamicObject, GroupVersionKind};
        let instances: Vec<String> = (1..)
            .take(count)
            .map(|number| objects::instance_name(name, number))
            .collect();
        let jobs = (1..).zip(&instances);
        let jobs =
            jobs.map(|(number, instance)| format!("{instance}-{}", objects::job_role(number)));
        let owned = [
            ("batch", "v1", "Job", jobs.collect()),
            ("", "v1", "Pod", instances),
            (
                "",
                "v1",
                "Service",
                ["rw", "ro", "r"]
                    .map(|suffix| format!("{name}-{suffix}"))
                    .into(),
            ),
            (
                "",
                "v1",
                "Secret",
                ["ca", "server", "replication", "app", "superuser"]
                    .map(|suffix| format!("{name}-{suffix}"))
                    .into(),
            ),
        ];
        for (group, version, kind, names) in owned {
            let resource =
                kube::api::ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api: Api<DynamicObject> = Api::namespaced_with(
                self.options.client.clone(),
                self.options.services.namespace(),
                &resource,
            );
            for name in names {
                let Some(object) = api.get_opt(&name).await? else {
                    continue;
                };
                if object
                    .owner_references()
                    .iter()
                    .any(|owner| Some(owner.uid.as_str()) == uid)
                {
                    let now = kube::api::DeleteParams {
                        grace_period_seconds: Some(0),
                        ..Default::default()
                    };
                    api.delete(&name, &now)
                        .await
                        .with_context(|| format!("deleting {kind} {name}"))?;
                }
            }
        }
        Ok(())
    }

    async fn pooler(&mut self, object: &Pooler) -> Result<()> {
        let name = object.name_any();
        if self.poolers.contains_key(&name) {
            return Ok(());
        }
        let selector = json!({
            "cnpg.io/poolerName": name, "cnpg.io/cluster": object.spec.cluster.name,
            "cnpg.io/podRole": "pooler"
        });
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": name, "labels": selector,
                "ownerReferences": object.controller_owner_ref(&()).map(|owner| vec![owner])
            },
            "spec": {
                "selector": {"cnpg.io/poolerName": name},
                "ports": [{"name": "pgbouncer", "port": 5432, "targetPort": 5432}]
            },
        });
        let api: Api<k8s_openapi::api::core::v1::Service> = Api::namespaced(
            self.options.client.clone(),
            self.options.services.namespace(),
        );
        let apply = kube::api::PatchParams::apply("cnpg").force();
        api.patch(&name, &apply, &kube::api::Patch::Apply(service))
            .await
            .with_context(|| format!("making the service {name}"))?;
        let upstream = format!("{}-{}", object.spec.cluster.name, object.spec.kind);
        let host = FIRST_POOLER_HOST + u8::try_from(self.poolers.len()).unwrap_or(0);
        let Options {
            client,
            instance,
            services,
            ..
        } = &self.options;
        let pooler = pooler::Pooler::start(
            client,
            instance,
            Arc::clone(services),
            &name,
            &upstream,
            host,
        )
        .await?;
        self.poolers.insert(name, pooler);
        self.has_poolers.send_replace(Poolers::Exist);
        Ok(())
    }
}
