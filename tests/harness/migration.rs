//! A complete migration environment on one machine: source, target, application, and every program
//! as its own Job. `make rehearse` shows it, and the tests of `cutover` disturb it.

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
    setup::Setup,
    source::{Source, SourceOptions, secret_name},
    target::{InstanceHandle, Options, Target},
};

/// Namespace of the example.
pub const NAMESPACE: &str = "mastodon";
/// Name of the CNPG Cluster.
pub const CLUSTER: &str = "database";
/// The ConfigMap with the manifest that prepare-zalando renders.
pub const MANIFEST: &str = "database-cluster-replica";
/// Name of the client that belongs to no Deployment.
pub const UNMANAGED: &str = "unmanaged";
/// Host number of the first pooler pod of the source in the instance's network.
const FIRST_POOLER_HOST: u8 = 38;
/// Limit for every wait on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// The environment before the target exists: source, application and manifests.
pub struct Migration {
    /// The API server.
    pub plane: Arc<ControlPlane>,
    /// The source.
    pub source: Source,
    /// DNS and kube-proxy.
    pub services: Arc<Services>,
    /// The imitated CloudNativePG operator and the target.
    pub target: Target,
    /// The clients.
    pub application: Application,
    /// The imitated kubelet, which runs the Jobs.
    pub kubelet: Kubelet,
    /// The source's pooler pods: two in front of the leader, one in front of the standbys.
    pub poolers: [PgBouncer; 3],
}

impl Migration {
    /// Sets up the environment; `report` is called before each slow part.
    ///
    /// # Errors
    /// A part does not start.
    pub async fn set_up(
        options: SourceOptions,
        epoch: Epoch,
        report: impl Fn(&str),
    ) -> Result<Self> {
        Self::set_up_with(options, Settings::mastodon(NAMESPACE), epoch, report).await
    }

    /// Like [`Migration::set_up`], with another application.
    pub async fn set_up_with(
        options: SourceOptions,
        settings: Settings,
        epoch: Epoch,
        report: impl Fn(&str),
    ) -> Result<Self> {
        report("starting etcd and kube-apiserver");
        let setup = Setup::ready().await?.with_postgres(options.postgres)?;
        let plane = Arc::new(ControlPlane::start_with(setup).await?);
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
        report("starting the application: six Deployments and an unmanaged client");
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

    /// The facts of the cutover's record by key; empty if there is none.
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

    /// A Job of a step, ready to start.
    pub fn step(&self, step: &str) -> Launch<'_> {
        // Only the test that turns a Service late waits for it.
        self.kubelet.step(step).env("SERVICES_WATCH_SECONDS", "0")
    }

    /// Applies the manifest that prepare-zalando rendered and waits until the target's CA exists,
    /// which later pods mount: a person takes longer to type the next command.
    ///
    /// # Errors
    /// The ConfigMap is missing, the API server refuses its content, or the CA does not appear.
    pub async fn apply_rendered(&self) -> Result<()> {
        self.apply_rendered_with(|_| ()).await
    }

    /// The objects of the stored manifest: the Cluster, then its poolers.
    ///
    /// # Errors
    /// The ConfigMap is missing, or its content is not YAML.
    pub async fn rendered(&self) -> Result<Vec<Value>> {
        let maps: Api<ConfigMap> = Api::namespaced(self.plane.admin(), NAMESPACE);
        let map = maps.get(MANIFEST).await?;
        let text = map
            .data
            .unwrap_or_default()
            .into_values()
            .next()
            .context("the rendered manifest is empty")?;
        serde_yaml_ng::Deserializer::from_str(&text)
            .map(|document| {
                serde::Deserialize::deserialize(document)
                    .context("the rendered manifest is not YAML")
            })
            .collect()
    }

    /// Like [`Migration::apply_rendered`], with `change` applied to each object.
    pub async fn apply_rendered_with(&self, change: impl Fn(&mut Value)) -> Result<()> {
        let mut objects = self.rendered().await?;
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

    /// Runs all steps before the cutover: prepare-zalando, extract-certs, creation of the Cluster,
    /// validate-replication.
    ///
    /// # Errors
    /// A step exits with a code other than 0.
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

    /// The addresses of source and target for the ledger; `fenced` is when the source was verified
    /// to be down.
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

/// The host that the unmanaged writer connects to: the Service of the source's leader, bypassing
/// the poolers.
pub fn leader_host() -> String {
    format!("mastodon-postgresql.{NAMESPACE}.svc")
}

/// The ledger's rows on the target, and on the member of the source that still answers (the leader
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

/// Checks that a step succeeded.
///
/// # Errors
/// The step failed; the error holds its log.
pub fn succeeded(step: &str, ended: &Ended) -> Result<()> {
    ensure!(
        ended.exit_code == 0,
        "{step} ended with exit code {}\n{}",
        ended.exit_code,
        ended.text()
    );
    Ok(())
}
