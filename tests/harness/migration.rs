//! A whole migration in the order of guide.md, with everything real that one machine has room for:
//! source, target, application, and each program as its own Job. `make rehearse` shows it, and the
//! tests of `cutover` disturb it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, runtime::wait::await_condition};
use serde_json::Value;

use crate::{
    application::{Application, Epoch, Settings},
    control_plane::ControlPlane,
    kubelet::{Ended, Kubelet, Launch, built},
    ledger::{Key, Topology},
    manifests,
    objects::{CONFIG_MAP, Objects},
    service::{
        Services,
        pgbouncer::{PgBouncer, Placement},
    },
    source::{Source, SourceOptions, secret_name},
    target::{InstanceHandle, Options, Target},
};

/// guide.md's names.
pub const NAMESPACE: &str = "mastodon";
/// The CNPG Cluster.
pub const CLUSTER: &str = "database";
/// The client that no Deployment knows of.
pub const UNMANAGED: &str = "forgotten";
/// Of the old poolers' pods, in the instance's network.
const FIRST_POOLER_HOST: u8 = 38;
/// Nothing here takes longer on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Source, application and the manifests are there; the target is still to come.
pub struct Migration {
    /// The API server.
    pub plane: Arc<ControlPlane>,
    /// What is left.
    pub source: Source,
    /// DNS and kube-proxy.
    pub services: Arc<Services>,
    /// What is entered.
    pub target: Target,
    /// The clients.
    pub application: Application,
    /// Runs the Jobs.
    pub kubelet: Kubelet,
    /// The pods of its poolers: two in front of the leader, one in front of the standbys.
    pub poolers: [PgBouncer; 3],
}

impl Migration {
    /// Sets the stage; `report` is called before each part that takes a moment.
    ///
    /// # Errors
    /// A part does not come up.
    pub async fn set_up(
        options: SourceOptions,
        epoch: Epoch,
        report: impl Fn(&str),
    ) -> Result<Self> {
        Self::set_up_with(options, Settings::mastodon(NAMESPACE), epoch, report).await
    }

    /// As [`Migration::set_up`], with another application.
    pub async fn set_up_with(
        options: SourceOptions,
        settings: Settings,
        epoch: Epoch,
        report: impl Fn(&str),
    ) -> Result<Self> {
        report("starting etcd and kube-apiserver");
        let plane = Arc::new(ControlPlane::start().await?);
        report("starting the source: two Patroni members");
        let cluster = options.cluster.clone();
        let secret = secret_name(&cluster, "pooler");
        let source = Source::start(&plane, options).await?;
        let services = Arc::new(
            Services::follow(plane.admin(), Arc::clone(plane.instance()), NAMESPACE).await?,
        );
        let programs = built().await?;
        let target = Target::start(Options {
            setup: plane.setup(),
            instance: Arc::clone(plane.instance()),
            client: plane.admin(),
            services: Arc::clone(&services),
            programs: programs.clone(),
            hidden: source
                .members()
                .iter()
                .map(|member| member.layout().home.clone())
                .collect(),
        });
        let pooler = |suffix: &str, number: u8, host: u8| {
            let service = format!("{cluster}-pooler{suffix}");
            let placement = Placement {
                pod: format!("{service}-{number}"),
                service,
                upstream: format!("{cluster}{suffix}"),
                host: FIRST_POOLER_HOST + host,
            };
            PgBouncer::start(&plane, &services, placement, &secret)
        };
        let poolers =
            futures::try_join!(pooler("", 0, 0), pooler("", 1, 1), pooler("-repl", 0, 2))?;
        let poolers = [poolers.0, poolers.1, poolers.2];
        report("starting the application: six Deployments and a client that nobody remembers");
        let mut application =
            Application::deploy(plane.admin(), Arc::clone(&services), settings, epoch).await?;
        application.ready(LIMIT).await?;
        application
            .start_unmanaged_writer(UNMANAGED, &leader_host())
            .await?;
        application.acknowledges(50, LIMIT).await?;
        report("applying the manifests");
        manifests::apply_example(&plane).await?;
        let kubelet = Kubelet::with_programs(&plane, &services, NAMESPACE, programs);
        Ok(Self {
            plane,
            source,
            services,
            target,
            application,
            kubelet,
            poolers,
        })
    }

    /// The namespace's objects.
    pub fn objects(&self) -> Objects {
        Objects::new(self.plane.admin(), NAMESPACE)
    }

    /// The facts of the cutover's journal by their keys; empty when there is none.
    pub async fn journal(&self) -> Result<BTreeMap<String, Value>> {
        let map = self
            .objects()
            .find(CONFIG_MAP, &format!("cutover-{CLUSTER}"))
            .await?;
        let facts = map.map(|mut map| map["data"].take());
        let fact = |(key, text): (&String, &Value)| {
            let text = text.as_str().unwrap_or_default();
            (
                key.clone(),
                serde_json::from_str(text).unwrap_or_else(|_| text.into()),
            )
        };
        Ok(facts
            .as_ref()
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(fact)
            .collect())
    }

    /// A Job of a step, to be started.
    pub fn step(&self, step: &str) -> Launch<'_> {
        self.kubelet.step(step)
    }

    /// Applies what prepare-zalando has rendered, as its log tells the user, and waits until CNPG
    /// has seen it: a person takes longer to type the next command, and its pod mounts the CA of
    /// the target.
    ///
    /// # Errors
    /// The ConfigMap is missing, the API server refuses what is in it, or nobody acts on it.
    pub async fn apply_rendered(&self) -> Result<()> {
        self.apply_rendered_with(|_| ()).await
    }

    /// As [`Migration::apply_rendered`], with each object changed before.
    pub async fn apply_rendered_with(&self, change: impl Fn(&mut Value)) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.plane.admin(), NAMESPACE);
        let map = maps.get(&format!("{CLUSTER}-cluster-replica")).await?;
        let text = map
            .data
            .unwrap_or_default()
            .into_values()
            .next()
            .context("the rendered manifest is empty")?;
        let mut objects: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&text)
            .map(|document| {
                serde::Deserialize::deserialize(document)
                    .context("the rendered manifest is no YAML")
            })
            .collect::<Result<_>>()?;
        objects.iter_mut().for_each(change);
        self.plane.apply(NAMESPACE, &objects).await?;
        let secrets: Api<Secret> = Api::namespaced(self.plane.admin(), NAMESPACE);
        let authority = format!("{CLUSTER}-ca");
        let made = await_condition(secrets, &authority, |secret: Option<&Secret>| {
            secret.is_some()
        });
        tokio::time::timeout(LIMIT, made)
            .await
            .context("waiting for the target's CA")??;
        self.services
            .wait_for(&format!("{CLUSTER}-rw"), LIMIT)
            .await
            .map(drop)
    }

    /// Everything up to a target that is ready for the cut: prepare-zalando, extract-certs, the
    /// Cluster, validate-replication.
    ///
    /// # Errors
    /// A step ends with another exit code than 0.
    pub async fn until_ready(&self) -> Result<InstanceHandle> {
        for step in ["prepare-zalando", "extract-certs"] {
            succeeded(step, &self.step(step).run(LIMIT).await?)?;
        }
        self.apply_rendered().await?;
        succeeded(
            "validate-replication",
            &self.step("validate-replication").run(LIMIT).await?,
        )?;
        self.target.instance(CLUSTER, LIMIT).await
    }

    /// The sides by address, for the judge. `fenced` is when the source was proved to be down.
    pub fn topology(&self, target: &InstanceHandle, fenced: Option<Duration>) -> Topology {
        Topology {
            source: self
                .source
                .members()
                .iter()
                .map(|member| member.layout().address.to_string())
                .collect(),
            target: [target.address().to_string()].into(),
            fenced,
        }
    }
}

/// Where the forgotten writer is connected to for ever: the source's leader, past its poolers.
pub fn leader_host() -> String {
    format!("mastodon-postgresql.{NAMESPACE}.svc")
}

/// The ledger's rows on the target, and on the member of the source that still answers (its leader
/// is fenced).
///
/// # Errors
/// The target cannot be read.
pub async fn rows(source: &Source, target: &InstanceHandle) -> Result<(Vec<Key>, Vec<Key>)> {
    let on_target = crate::application::rows(&*target.admin("mastodon").await?).await?;
    let mut on_source = Vec::new();
    for member in source.members() {
        if let Ok(session) = source.connect_to(member, "mastodon").await {
            on_source = crate::application::rows(&session).await?;
        }
    }
    Ok((on_target, on_source))
}

/// A step that must have done what it promises.
///
/// # Errors
/// It has not; the text holds its log.
pub fn succeeded(step: &str, ended: &Ended) -> Result<()> {
    ensure!(
        ended.exit_code == 0,
        "{step} ended with exit code {}\n{}",
        ended.exit_code,
        ended.text()
    );
    Ok(())
}
