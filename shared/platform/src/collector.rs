//! The one collector: it asks both servers, Patroni and Kubernetes, all at the same time, and
//! returns the [`Snapshot`] that validate-replication, cutover and rollback judge.
//!
//! What is asked is an argument ([`Scope`]): while clients wait, each call is time. Nothing here
//! changes anything; the sessions are open to the caller for its effects. Errors are those of the
//! API server and of the databases, with their kind.

pub mod application;
pub mod clients;
pub mod controllers;
pub mod endpoints;
mod network;
pub mod poolers;
pub mod queries;
pub mod servers;
pub mod session;

use std::{net::SocketAddr, path::PathBuf};

use jiff::Timestamp;
use job::{
    config::{App, Connection, ObjectName},
    error::{Error, ErrorKind, Result},
    kubernetes,
};
use kube::{Client, Resource as _, ResourceExt as _};
use protocol::{
    controllers::{
        detection::ChangedObject,
        suspension::{CONTROLLER, Object, Suspension, SuspensionState},
    },
    decision::Limits,
    failure::Failure,
    network::{LabelSelector, Network},
    record::Start,
    route::Route,
    snapshot::{
        PoolerPodState, Reachability, Snapshot,
        kubernetes::ClusterState,
        prechecks::{ConflictingControllers, HashComparison, OwnerPassword, Prechecks, Side},
        source::ClientSession,
    },
};
use secrecy::ExposeSecret as _;

use crate::{
    kubernetes::{
        cnpg::{self, Cluster},
        manifest, poolers as pooler_pods, services, workloads,
        zalando::{self, Postgresql},
    },
    patroni::{self, Member, Patroni},
    postgres::{Source, Target, read_secret},
};
use application::Application;
use clients::Pods;
use controllers::Where;
use endpoints::Endpoints;
use poolers::{Answer, Asked, Poolers};
use session::{Connect, Line, limited};

/// What is migrated.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The `postgresql` resource.
    pub source_cluster: ObjectName,
    /// The CloudNativePG Cluster.
    pub target_cluster: ObjectName,
    /// The application's workloads.
    pub apps: Vec<App>,
    /// The application's CronJobs.
    pub cron_jobs: Vec<ObjectName>,
    /// The application's ConfigMap.
    pub app_configmap: ObjectName,
    /// Namespace of Argo CD's Applications; None where other controllers are not looked for.
    pub argocd_namespace: Option<ObjectName>,
    /// How to log in at the consoles of the old poolers.
    pub consoles: Connection,
    /// The hash that the Cluster gives its owner at the promotion, as prepare-zalando has written
    /// it.
    pub owner_hash_file: Option<PathBuf>,
}

/// Which controllers are read beside the Zalando operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controllers {
    /// None.
    None,
    /// Those whose suspension is recorded.
    Recorded,
    /// All that would revert a change of this cutover.
    Conflicting,
}

/// What is asked for in one observation.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The start, once it is recorded.
    pub start: Option<&'a Start>,
    /// Nothing is blocked yet: a wrong password or certificate is an error, where later it is part
    /// of the observation.
    pub untouched: bool,
    /// A Cluster that was deleted is part of the observation, not an error.
    pub target_optional: bool,
    /// The state of each member by its own Patroni; otherwise any one's answer is enough.
    pub each_member: bool,
    /// The application's workloads and its ConfigMap.
    pub application: bool,
    /// Controllers beside the Zalando operator.
    pub controllers: Controllers,
    /// The stored manifest of the target.
    pub manifest: bool,
    /// The source's Services.
    pub services: bool,
    /// The EndpointSlices that a former selector has left.
    pub leftovers: bool,
    /// The old poolers.
    pub poolers: bool,
    /// Whether the old poolers reach the server behind them, once they are resumed.
    pub traffic: bool,
    /// Ask the server behind the source's Service, with the login and the CA of this side.
    pub service_answer: Option<Side>,
    /// The names of clients at the source: read beforehand, so that they are known when clients
    /// wait.
    pub client_names: bool,
    /// The client sessions were ended: each client observed now has reconnected.
    pub sessions_ended: bool,
    /// What only the checks need.
    pub prechecks: bool,
}

/// Asks, and keeps the sessions open between two observations.
pub struct Collector {
    client: Client,
    namespace: String,
    subject: Subject,
    endpoints: Endpoints,
    /// The source's leader: by its Service until the start, only by its own address from then on,
    /// because the cutover repoints the Service.
    pub source: Line<Source>,
    /// The target.
    pub target: Line<Target>,
    /// The consoles of the old poolers.
    pub poolers: Poolers,
    /// Calls of Patroni.
    pub patroni: Patroni,
    /// The members of the source as last observed.
    pub members: Vec<Member>,
    /// For the names of clients.
    pub pods: Pods,
    /// Where the Service of the source's leader listens, as last observed.
    service: Option<SocketAddr>,
    last: Option<Snapshot>,
}

/// What the second round of questions needs from the first.
struct Objects<'a> {
    postgresql: &'a Postgresql,
    cluster: Option<&'a Cluster>,
    changed: &'a [ChangedObject],
    /// The selectors of the application's pods.
    application: &'a [LabelSelector],
    /// Client sessions at the source's leader.
    sessions: &'a [ClientSession],
    route: Route,
}

impl Collector {
    /// Opens nothing yet: every observation reconnects what is missing.
    pub fn new(client: Client, namespace: &str, subject: Subject, endpoints: Endpoints) -> Self {
        let (database, login) = (&endpoints.database, endpoints.login);
        Self {
            source: Line::new(endpoints.source.clone(), database, login),
            target: Line::new(endpoints.target.clone(), database, login),
            poolers: Poolers::new(subject.consoles.clone(), login),
            patroni: Patroni::default(),
            members: Vec::new(),
            pods: Pods::default(),
            service: None,
            last: None,
            client,
            namespace: namespace.to_owned(),
            subject,
            endpoints,
        }
    }

    /// Where both servers are.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// What was observed last.
    pub fn last(&self) -> Option<&Snapshot> {
        self.last.as_ref()
    }

    /// The two objects that everything depends on, while no cutover has begun.
    ///
    /// # Errors
    /// Config when one of them does not exist.
    pub async fn resources(&self) -> Result<(Postgresql, Cluster)> {
        resources(&self.client, &self.namespace, &self.subject, false).await
    }

    /// Opens both sessions, where they are not open.
    ///
    /// # Errors
    /// As [`Line::open`].
    pub async fn sessions(&mut self) -> Result<(&Source, &Target)> {
        futures::try_join!(self.source.open(), self.target.open())
    }

    /// Observes both sides.
    ///
    /// # Errors
    /// Config for a missing permission, and while nothing is touched for a login that is refused.
    /// A server that does not answer is part of the snapshot.
    pub async fn observe(&mut self, scope: &Scope<'_>, limits: &Limits) -> Result<Snapshot> {
        if let Some(start) = scope.start {
            let address = self.source_address(&start.leader).await?;
            self.source.set_address(address);
        }
        let (client, namespace, subject) = (&self.client, self.namespace.as_str(), &self.subject);
        let cluster = &subject.source_cluster;
        let (endpoints, login) = (&self.endpoints, self.endpoints.login);
        let asked = Asked {
            settings: scope.prechecks,
            traffic: scope.traffic.then_some(&endpoints.database),
        };
        let observed = futures::join!(
            ask(&mut self.source, async |source| {
                servers::source(source, login, scope.prechecks).await
            }),
            ask(&mut self.target, async |target| {
                servers::target(target, scope.prechecks).await
            }),
            servers::patroni(&self.patroni, client, namespace, cluster, scope.each_member),
            when(scope.poolers, async {
                let pods = pooler_pods::pods(client, namespace, cluster).await?;
                let answers = self.poolers.observe(&pods, asked).await;
                Ok((pods, answers))
            }),
            when(scope.services, async {
                let names: Vec<String> = limits.services.keys().cloned().collect();
                services::read(client, namespace, &names, scope.leftovers).await
            }),
            async {
                // The Service that is repointed, which SOURCE_HOST need not be.
                let service = (cluster, self.service);
                let server = match scope.service_answer {
                    None => return Err(Error::transient("it was not asked")),
                    Some(Side::Source) => &endpoints.source,
                    Some(Side::Target) => &endpoints.target,
                };
                servers::behind_service(service, server, &endpoints.database, login).await
            },
            objects(client, namespace, subject, scope),
            when(
                scope.manifest,
                manifest::read(client, namespace, &subject.target_cluster)
            ),
            async {
                match self.last.as_ref().filter(|_| !scope.application) {
                    Some(last) => Ok(Application::as_before(last)),
                    None => {
                        Application::observe(client, namespace, subject, scope.start, limits).await
                    }
                }
            },
        );
        let (
            source,
            target,
            patroni,
            poolers,
            services,
            service_answer,
            objects,
            manifest,
            application,
        ) = observed;
        let ((postgresql, cluster), mut application, poolers) = (objects?, application?, poolers?);
        let services = services?;
        let leader = services.get(subject.source_cluster.as_str());
        self.service = leader.and_then(|service| service.address).or(self.service);
        let (patroni, members) = match patroni {
            Ok((patroni, members)) => (Reachability::Up(patroni), members),
            Err(error) => (Reachability::Unreachable(unreachable(error)?), Vec::new()),
        };
        let (source, of_source) = split(reachable(source, &mut self.source, scope.untouched)?);
        let (target, of_target) = split(reachable(target, &mut self.target, scope.untouched)?);
        let (pooler_pods, poolers) = poolers;
        let poolers = pooler_states(poolers, scope.untouched)?;
        let route = scope.start.map_or_else(
            || Route::of(limits.route, !poolers.is_empty()),
            |start| start.route,
        );
        let judged = scope.prechecks && scope.start.is_none();
        let (config, config_failure) = application.config_for(route, judged)?;
        let mut snapshot = Snapshot {
            now: Timestamp::now(),
            source,
            patroni,
            target,
            cluster: cluster
                .as_ref()
                .map_or_else(ClusterState::missing, Cluster::state),
            manifest: manifest?,
            suspensions: Vec::new(),
            jobs: Vec::new(),
            services,
            poolers,
            reconnected: Vec::new(),
            service_answer: service_answer.map_or_else(
                |error| Reachability::Unreachable(error.into()),
                Reachability::Up,
            ),
            apps: application.replicas.clone(),
            config,
            prechecks: None,
            data: None,
            abort: None,
        };
        self.members = members;
        self.follow_designated_primary(&snapshot.cluster);
        snapshot.reconnected = self.reconnected(scope, &snapshot).await;
        let objects = Objects {
            postgresql: &postgresql,
            cluster: cluster.as_ref(),
            changed: &application.changed,
            application: &application.selectors,
            sessions: snapshot
                .source
                .answer()
                .map_or(&[], |source| &source.clients),
            route,
        };
        let (controllers, owner_password, network) = futures::try_join!(
            self.controllers(scope, &objects),
            self.owner_password(scope, &objects),
            self.network(scope, &objects)
        )?;
        (snapshot.suspensions, snapshot.jobs) = (controllers.0, controllers.1);
        snapshot.prechecks = scope.prechecks.then(|| Prechecks {
            answers: of_source.into_iter().chain(of_target).collect(),
            started: scope.start.is_some(),
            operator: controller(&postgresql).map(str::to_owned),
            pooler_pods: pooler_pods.into_iter().map(|found| found.pod).collect(),
            pool_mode: pool_mode(&postgresql),
            owner_password,
            apps_missing: if scope.start.is_none() {
                application.missing
            } else {
                Vec::new()
            },
            config_failure,
            network,
            controllers: controllers.2,
        });
        snapshot.now = Timestamp::now();
        self.last = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// The source's resource.
    ///
    /// # Errors
    /// Config when it does not exist.
    pub async fn postgresql(&self) -> Result<Postgresql> {
        postgresql(&self.client, &self.namespace, &self.subject).await
    }

    /// Opens a new session at the next observation when CloudNativePG has made another instance the
    /// designated primary: the former one may go on as a standby, and its sessions stay open.
    fn follow_designated_primary(&mut self, cluster: &ClusterState) {
        let before = self.last.as_ref().map(|last| &last.cluster.current_primary);
        if before.is_some_and(|before| *before != cluster.current_primary) {
            self.target.forget();
        }
    }

    /// Where the source's leader listens, by the members as last observed; of a source without a
    /// leader the recorded one counts.
    async fn source_address(&mut self, recorded: &str) -> Result<Option<SocketAddr>> {
        if self.members.is_empty() {
            let cluster = &self.subject.source_cluster;
            self.members = patroni::members(&self.client, &self.namespace, cluster).await?;
        }
        let leader = self.members.iter().find(|member| member.leader);
        let member = leader.or_else(|| self.members.iter().find(|member| member.name == recorded));
        Ok(member.and_then(|member| member.server))
    }

    /// The suspended fields as they stand, the Jobs of the application that run, and what cannot be
    /// suspended: of everything that would revert the cutover before it starts, after that of what
    /// is recorded.
    async fn controllers(
        &self,
        scope: &Scope<'_>,
        objects: &Objects<'_>,
    ) -> Result<(
        Vec<SuspensionState>,
        Vec<String>,
        Option<ConflictingControllers>,
    )> {
        let place = Where {
            client: &self.client,
            namespace: &self.namespace,
        };
        let operator = SuspensionState {
            now: Suspension::zalando_operator(
                &self.subject.source_cluster,
                controller(objects.postgresql),
            ),
            version: objects.postgresql.meta().resource_version.clone(),
        };
        match (scope.controllers, scope.start) {
            (Controllers::Conflicting, None) => {
                let (standing, found) = self.conflicting(&place, objects).await?;
                let standing = [operator].into_iter().chain(standing).collect();
                Ok((standing, Vec::new(), Some(found)))
            }
            (Controllers::Recorded, Some(start)) => {
                let others = start
                    .suspensions
                    .iter()
                    .filter(|suspension| suspension.key() != operator.now.key());
                let (mut standing, jobs) = place.read(others).await?;
                standing.insert(0, operator);
                Ok((standing, jobs, None))
            }
            _ => Ok((vec![operator], Vec::new(), None)),
        }
    }

    async fn conflicting(
        &self,
        place: &Where<'_>,
        objects: &Objects<'_>,
    ) -> Result<(Vec<SuspensionState>, ConflictingControllers)> {
        let Some(cluster) = objects.cluster else {
            return Err(Error::manual_intervention("no Cluster before the start"));
        };
        let target = ChangedObject {
            object: Object::of(
                "postgresql.cnpg.io",
                "v1",
                "Cluster",
                "clusters",
                &self.subject.target_cluster,
            ),
            metadata: application::managed_by(&cluster.metadata),
            for_good: true,
        };
        let mut changed = vec![target];
        let (mut cron_jobs, mut labels) = (Vec::new(), None);
        if objects.route == Route::Config {
            changed.extend(objects.changed.iter().cloned());
            let names = self.subject.cron_jobs.iter();
            cron_jobs = names.map(ToString::to_string).collect();
            labels = workloads::selector(&self.subject.apps);
        }
        let argo = self.subject.argocd_namespace.as_deref().unwrap_or_default();
        place
            .find(&changed, argo, &cron_jobs, labels.as_deref())
            .await
    }

    /// The NetworkPolicies and the pods that they are about.
    async fn network(&self, scope: &Scope<'_>, objects: &Objects<'_>) -> Result<Option<Network>> {
        if !scope.prechecks {
            return Ok(None);
        }
        let known = network::Known {
            source: &self.subject.source_cluster,
            target: &self.subject.target_cluster,
            application: objects.application,
            sessions: objects.sessions,
        };
        let found = network::observe(&self.client, &self.namespace, &known).await?;
        Ok(Some(found))
    }

    /// The owner's stored hash compared with that of the Secret, where the route needs it.
    async fn owner_password(
        &self,
        scope: &Scope<'_>,
        objects: &Objects<'_>,
    ) -> Result<Option<OwnerPassword>> {
        let asked = scope.prechecks && objects.route == Route::Service;
        let (true, Ok(source), Some(cluster)) = (asked, self.source.session(), objects.cluster)
        else {
            return Ok(None);
        };
        let owner = cluster.owner();
        let stored = source.password_hash(&owner).await?;
        let file = self.subject.owner_hash_file.as_ref();
        let secret = file.and_then(|file| read_secret(file).ok());
        Ok(Some(OwnerPassword {
            comparison: HashComparison::of(
                stored.as_ref().map(|hash| hash.expose_secret()),
                secret.as_ref().map(|hash| hash.expose_secret()),
            ),
            owner,
        }))
    }

    /// Clients observed at the source after its sessions were ended, so far.
    async fn reconnected(&mut self, scope: &Scope<'_>, snapshot: &Snapshot) -> Vec<String> {
        let last = self.last.as_ref();
        let mut all = last.map_or_else(Vec::new, |last| last.reconnected.clone());
        let Some(source) = snapshot.source.answer().filter(|_| scope.client_names) else {
            return all;
        };
        let names = self
            .pods
            .named(&self.client, &self.namespace, &source.clients)
            .await;
        if scope.sessions_ended {
            all.extend(names);
            all.sort_unstable();
            all.dedup();
        }
        all
    }
}

/// acid.zalan.do/controller.
fn controller(postgresql: &Postgresql) -> Option<&str> {
    postgresql.annotations().get(CONTROLLER).map(String::as_str)
}

fn pool_mode(postgresql: &Postgresql) -> Option<String> {
    let pooler = postgresql.spec.connection_pooler.as_ref()?;
    pooler.mode.clone()
}

/// What is not asked for is empty.
async fn when<T: Default>(asked: bool, question: impl Future<Output = Result<T>>) -> Result<T> {
    if asked {
        question.await
    } else {
        Ok(T::default())
    }
}

/// A server that does not answer is part of the observation; a wrong setting (a password, a
/// certificate) is an error while nothing is touched.
fn reachable<S: Connect, T>(
    asked: Result<T>,
    line: &mut Line<S>,
    untouched: bool,
) -> Result<Reachability<T>> {
    match asked {
        Ok(answer) => Ok(Reachability::Up(answer)),
        Err(error) if untouched && error.kind() == ErrorKind::Config => Err(error),
        Err(error) => {
            line.forget();
            Ok(Reachability::Unreachable(error.into()))
        }
    }
}

/// The state of a server, and its answers to the checks' questions.
fn split<T, A: Default>(asked: Reachability<(T, A)>) -> (Reachability<T>, A) {
    match asked {
        Reachability::Up((state, answers)) => (Reachability::Up(state), answers),
        Reachability::Unreachable(failure) => (Reachability::Unreachable(failure), A::default()),
    }
}

/// As [`reachable`]: a console that refuses the password is a wrong setting, one that does not
/// answer is part of the observation.
fn pooler_states(
    asked: Vec<(String, Result<Answer>)>,
    untouched: bool,
) -> Result<Vec<PoolerPodState>> {
    let state = |(pod, answer): (String, Result<Answer>)| match answer {
        Ok(answer) => Ok(answer.of(pod)),
        Err(error) if untouched && error.kind() == ErrorKind::Config => Err(error),
        Err(error) => Ok(PoolerPodState::new(
            pod,
            Reachability::Unreachable(error.into()),
        )),
    };
    asked.into_iter().map(state).collect()
}

/// A missing permission is an error, any other failure makes the server unreachable.
fn unreachable(error: Error) -> Result<Failure> {
    match error.kind() {
        ErrorKind::Config => Err(error),
        _ => Ok(error.into()),
    }
}

async fn ask<S: Connect, T>(
    line: &mut Line<S>,
    question: impl AsyncFnOnce(&S) -> Result<T>,
) -> Result<T> {
    let session = line.open().await?;
    limited(question(session)).await
}

/// `begun`: a cutover to this target is on record, so that its Cluster may hold what the source
/// does not have.
async fn resources(
    client: &Client,
    namespace: &str,
    subject: &Subject,
    begun: bool,
) -> Result<(Postgresql, Cluster)> {
    let without_cluster = if begun {
        "find out who deleted it; do not apply the manifest of prepare-zalando: past the point of \
         no return the Cluster is restored from its volumes or a backup, before it rollback \
         brings the application back to the source"
    } else {
        "apply the manifest that prepare-zalando rendered, or correct TARGET_CLUSTER in the \
         ConfigMap replica-migration"
    };
    let clusters = cnpg::clusters(client, namespace);
    futures::try_join!(
        postgresql(client, namespace, subject),
        existing(&clusters, &subject.target_cluster, without_cluster)
    )
}

/// The two objects; without the Cluster where a deleted one is part of the observation.
async fn objects(
    client: &Client,
    namespace: &str,
    subject: &Subject,
    scope: &Scope<'_>,
) -> Result<(Postgresql, Option<Cluster>)> {
    if !scope.target_optional {
        let begun = scope.start.is_some();
        let (postgresql, cluster) = resources(client, namespace, subject, begun).await?;
        return Ok((postgresql, Some(cluster)));
    }
    let clusters = cnpg::clusters(client, namespace);
    futures::try_join!(
        postgresql(client, namespace, subject),
        kubernetes::get(&clusters, &subject.target_cluster)
    )
}

async fn postgresql(client: &Client, namespace: &str, subject: &Subject) -> Result<Postgresql> {
    existing(
        &zalando::postgresqls(client, namespace),
        &subject.source_cluster,
        "correct SOURCE_CLUSTER in the ConfigMap replica-migration",
    )
    .await
}

async fn existing<K>(api: &kube::Api<K>, name: &ObjectName, hint: &str) -> Result<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let found = kubernetes::get(api, name).await?;
    found.ok_or_else(|| kubernetes::missing_object(api, name).hint(hint))
}
