//! One look at everything, all questions at the same time.

use std::net::SocketAddr;

use job::{
    error::{Error, ErrorKind, Result},
    kubernetes,
};
use kube::{Resource as _, ResourceExt as _};
use platform::{
    kubernetes::{cnpg::Cluster, poolers, services, zalando::Postgresql},
    patroni,
};
use protocol::{
    checks::Finding, controllers::suspension::CONTROLLER, failure::Failure, route::Route,
};

use super::{
    LiveWorld, abort,
    application::Application,
    controllers::Where,
    now, servers,
    session::{Connect, Line, limited},
};
use crate::preflight::{self, Sides};
use protocol::{
    controllers::{
        detection::ChangedObject,
        suspension::{Object, Suspension, SuspensionState},
    },
    decide,
    driver::Direction,
    reason::AbortRequest,
    record::Record,
    snapshot::{PoolerPodState, PoolerState, Reachability, Snapshot},
};

/// What is asked for in a look. While clients wait, what has no say is not asked: each call is
/// time.
#[derive(Clone, Copy)]
struct Asked {
    /// The application's workloads and its ConfigMap.
    application: bool,
    /// Everybody but the Zalando operator who is kept still.
    others: bool,
    /// The source's Services.
    services: bool,
    /// The old poolers.
    poolers: bool,
    /// Who answers behind the source's Service.
    door: bool,
    /// Whether everything is ready for a cut.
    readiness: bool,
}

impl Asked {
    fn by(record: &Record, wanted: Option<Route>) -> Self {
        let route = record.started.as_ref().map(|start| start.route);
        let back = record.rollback_started.is_some();
        let service = route.or(wanted) != Some(Route::Config);
        let resting = record.marker.is_some() && record.promoted.is_none() && !back;
        Self {
            // By the Services' way nothing of it is changed, once its counts are recorded.
            application: !resting && route != Some(Route::Service),
            others: !resting,
            services: service && (record.blocked.is_none() || back || record.promotion.is_some()),
            poolers: service,
            door: service && record.promoted.is_some() && record.routed.is_none(),
            readiness: record.blocked.is_none() && record.rolled_back.is_none(),
        }
    }
}

impl LiveWorld {
    /// Reads the record and looks at both sides.
    pub(super) async fn look(&mut self) -> Result<(Record, Snapshot)> {
        let stored = self.load().await?;
        let record = stored.facts.clone();
        let asked = Asked::by(&record, self.settings.route);
        if let Some(start) = &record.started {
            let address = self.source_address(&start.leader).await?;
            self.source.set_address(address);
        }
        let (run, settings) = (&self.run, &self.settings);
        let (client, namespace, cluster) = (
            &run.client,
            run.namespace.as_str(),
            &settings.source_cluster,
        );
        let (source, target, patroni, poolers, services, door, objects, application, abort) = futures::join!(
            see(&mut self.source, servers::source),
            see(&mut self.target, servers::target),
            servers::patroni(&self.patroni, client, namespace, cluster),
            when(asked.poolers, async {
                let pods = poolers::pods(client, namespace, cluster).await?;
                Ok(self.poolers.look(&pods).await)
            }),
            when(asked.services, async {
                let names: Vec<String> = settings.services().into_keys().collect();
                services::read(client, namespace, &names, record.rollback_started.is_some()).await
            }),
            async {
                match asked.door {
                    true => {
                        servers::door(&self.service_at, &self.target_at, &settings.database).await
                    }
                    false => Err(Error::transient("nobody has asked")),
                }
            },
            async {
                futures::try_join!(
                    kubernetes::required(
                        &self.postgresqls,
                        &settings.source_cluster,
                        "SOURCE_CLUSTER"
                    ),
                    kubernetes::required(
                        &self.clusters,
                        &settings.target_cluster,
                        "TARGET_CLUSTER"
                    )
                )
            },
            async {
                match self.last.as_ref().filter(|_| !asked.application) {
                    Some(last) => Ok(Application::as_before(last)),
                    None => Application::see(run, settings, &record).await,
                }
            },
            abort::asked(run, &record),
        );
        let ((postgresql, cluster), mut application, poolers): ((Postgresql, Cluster), _, _) =
            (objects?, application?, poolers?);
        let began = record.blocked.is_some();
        let (patroni, members) = match patroni {
            Ok((seen, members)) => (Reachability::Up(seen), members),
            Err(error) => (Reachability::Unreachable(heeded(error)?), Vec::new()),
        };
        let mut seen = Snapshot {
            now: now(),
            source: sight(source, &mut self.source, began)?,
            patroni,
            target: sight(target, &mut self.target, began)?,
            follows: cluster.follows(),
            suspensions: Vec::new(),
            jobs: Vec::new(),
            services: services?,
            poolers: pooler_sights(poolers, began)?,
            reconnected: Vec::new(),
            door: door.map_or_else(
                |error| Reachability::Unreachable(error.into()),
                Reachability::Up,
            ),
            apps: application.replicas.clone(),
            config: Default::default(),
            readiness: Vec::new(),
            abort: match self.direction {
                Direction::Forward => abort?,
                Direction::Back => Some(AbortRequest::Rollback),
            },
        };
        self.members = members;
        let route = record.started.as_ref().map_or_else(
            || decide::route(&self.settings.limits(), &seen),
            |start| start.route,
        );
        if record.started.is_none() {
            application.complete_for(route)?;
        }
        seen.config = application.config_for(route)?;
        seen.reconnected = self.came_back(&record, &seen).await;
        self.log_reconnected(&seen.reconnected);
        let (standing, jobs, findings) = self
            .conflicting_controllers(
                &record,
                asked,
                route,
                &application.changed,
                &postgresql,
                &cluster,
            )
            .await?;
        (seen.suspensions, seen.jobs) = (standing, jobs);
        if asked.readiness {
            let sides = Sides {
                postgresql: &postgresql,
                cluster: &cluster,
                sessions: self.source.session().ok().zip(self.target.session().ok()),
                started: record.started.is_some(),
            };
            seen.readiness = preflight::findings(&seen, route, &sides, &self.settings).await?;
            seen.readiness.extend(findings);
        }
        seen.now = now();
        self.log_late_abort(&record, &seen);
        (self.last, self.record) = (Some(seen.clone()), Some(stored));
        Ok((record, seen))
    }

    /// Where the source's leader listens, by the members as last seen; of one without a leader the
    /// recorded one counts.
    async fn source_address(&mut self, recorded: &str) -> Result<Option<SocketAddr>> {
        if self.members.is_empty() {
            self.members = patroni::members(
                &self.run.client,
                &self.run.namespace,
                &self.settings.source_cluster,
            )
            .await?;
        }
        let leader = self.members.iter().find(|member| member.leader);
        let meant = leader.or_else(|| self.members.iter().find(|member| member.name == recorded));
        Ok(meant.and_then(|member| member.server))
    }

    /// Everybody who would undo the cut before it starts; after that the recorded ones, or of them
    /// the Zalando operator alone while nothing else has a say.
    async fn conflicting_controllers(
        &self,
        record: &Record,
        asked: Asked,
        route: Route,
        application: &[ChangedObject],
        postgresql: &Postgresql,
        cluster: &Cluster,
    ) -> Result<(Vec<SuspensionState>, Vec<String>, Vec<Finding>)> {
        let place = Where {
            client: &self.run.client,
            namespace: &self.run.namespace,
        };
        let controller = postgresql.annotations().get(CONTROLLER).map(String::as_str);
        let operator = SuspensionState {
            now: Suspension::zalando_operator(&self.settings.source_cluster, controller),
            version: postgresql.meta().resource_version.clone(),
        };
        if let Some(start) = &record.started {
            let others = start
                .suspensions
                .iter()
                .filter(|suspension| suspension.key() != operator.now.key());
            let (mut standing, jobs) = match asked.others {
                true => place.read(others).await?,
                false => (Vec::new(), Vec::new()),
            };
            standing.insert(0, operator);
            return Ok((standing, jobs, Vec::new()));
        }
        let target = ChangedObject {
            object: Object::of(
                "postgresql.cnpg.io",
                "v1",
                "Cluster",
                "clusters",
                &self.settings.target_cluster,
            ),
            metadata: super::application::managed_by(&cluster.metadata),
            for_good: true,
        };
        let mut changed = vec![target];
        let (mut cron_jobs, mut labels) = (Vec::new(), None);
        if route == Route::Config {
            changed.extend(application.iter().cloned());
            cron_jobs = self
                .settings
                .app_cronjobs
                .0
                .iter()
                .map(ToString::to_string)
                .collect();
            labels = platform::kubernetes::workloads::selector(&self.settings.apps.0);
        }
        let found = place
            .find(
                &changed,
                &self.settings.argocd_namespace,
                &cron_jobs,
                labels.as_deref(),
            )
            .await?;
        let standing = [operator].into_iter().chain(found.standing).collect();
        Ok((standing, Vec::new(), found.findings))
    }

    /// Clients that were seen at the source after its sessions were ended, so far.
    async fn came_back(&mut self, record: &Record, seen: &Snapshot) -> Vec<String> {
        let mut all = self
            .last
            .as_ref()
            .map_or_else(Vec::new, |last| last.reconnected.clone());
        let Some(source) = seen.source.answer() else {
            return all;
        };
        // Asked from the start on, so that the names are known when clients wait.
        let names = self
            .pods
            .named(&self.run.client, &self.run.namespace, &source.clients)
            .await;
        if record.marker.is_some() {
            all.extend(names);
            all.sort_unstable();
            all.dedup();
        }
        all
    }
}

/// What is not asked for is empty.
async fn when<T: Default>(asked: bool, question: impl Future<Output = Result<T>>) -> Result<T> {
    match asked {
        true => question.await,
        false => Ok(T::default()),
    }
}

/// Silence is part of a look; what a person must mend (a password, a certificate) is an error while
/// nothing was touched.
fn sight<S: Connect, T>(
    seen: Result<T>,
    line: &mut Line<S>,
    began: bool,
) -> Result<Reachability<T>> {
    match seen {
        Ok(seen) => Ok(Reachability::Up(seen)),
        Err(error) if !began && error.kind() == ErrorKind::Config => Err(error),
        Err(error) => {
            line.forget();
            Ok(Reachability::Unreachable(error.into()))
        }
    }
}

/// As [`sight`]: a console that refuses the password is a wrong setting, one that does not answer
/// is part of the look.
fn pooler_sights(
    asked: Vec<(String, Result<PoolerState>)>,
    began: bool,
) -> Result<Vec<PoolerPodState>> {
    let sight = |(pod, state): (String, Result<PoolerState>)| match state {
        Ok(state) => Ok(PoolerPodState {
            pod,
            state: Reachability::Up(state),
        }),
        Err(error) if !began && error.kind() == ErrorKind::Config => Err(error),
        Err(error) => Ok(PoolerPodState {
            pod,
            state: Reachability::Unreachable(error.into()),
        }),
    };
    asked.into_iter().map(sight).collect()
}

/// An RBAC error is never mere silence.
fn heeded(error: Error) -> Result<Failure> {
    match error.kind() {
        ErrorKind::Config => Err(error),
        _ => Ok(error.into()),
    }
}

async fn see<S: Connect, T>(
    line: &mut Line<S>,
    question: impl AsyncFnOnce(&S) -> Result<T>,
) -> Result<T> {
    let session = line.open().await?;
    limited(question(session)).await
}
