//! Runs a Job of the manifests as a process on this machine, the way the Job controller and the
//! kubelet do, as far as a program can tell the difference.
//!
//! Imitated: the Job is created through the API server from its CronJob (`kubectl create job
//! --from`), or an existing suspended Job is resumed; the pod's environment (env, envFrom, `$(…)`,
//! downward API) and volumes (Secrets, ConfigMaps, items, modes) are read from the API server at
//! each start; a missing object stops the start with the kubelet's message; the token belongs to
//! the pod's ServiceAccount; nothing of the caller's environment is inherited; the termination
//! message falls back to the log; podFailurePolicy decides what follows an exit code.
//!
//! Not imitated: containers. Mounts are directories below the pod's own directory, and their paths
//! in the environment and in arguments are rewritten; the program comes from cargo's build
//! directory; `SERVICE_ACCOUNT_DIRECTORY` names the directory of token, CA and namespace;
//! `SOURCE_HOSTADDR` and `TARGET_HOSTADDR` replace DNS; resource limits, root file system and
//! priority have no effect; a failed pod is followed by the next one without a delay, and only by
//! [`Launch::to_the_end`].

mod ended;
mod job;
mod launch;
mod paths;
mod pending_services;
mod pods;
mod policy;
mod programs;
mod running;
mod sources;
mod variables;
mod volumes;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{Container, PodSpec},
};
use kube::ResourceExt;

pub use ended::Ended;
pub use job::JobSource;
pub use launch::{Launch, object_name};
pub use policy::Next;
pub use programs::{built, program, released};
pub use running::{Line, RunningPod};

use crate::{control_plane::ControlPlane, instance::Instance, service::Services};
use pending_services::PendingServices;
use sources::Sources;
use variables::PodContext;

/// The programs' default port.
const POSTGRES_PORT: u16 = 5432;

/// Starts the pods of one namespace.
pub struct Kubelet {
    plane: Arc<ControlPlane>,
    services: Arc<Services>,
    namespace: String,
    programs: PathBuf,
    pending_services: PendingServices,
    pods: AtomicU32,
}

impl Kubelet {
    /// A kubelet for the namespace, with the programs of cargo's build directory, which are built
    /// first if needed.
    ///
    /// # Errors
    /// The programs cannot be built.
    pub async fn new(
        plane: &Arc<ControlPlane>,
        services: &Arc<Services>,
        namespace: &str,
    ) -> Result<Self> {
        Ok(Self::with_programs(
            plane,
            services,
            namespace,
            built().await?,
        ))
    }

    /// Like [`Kubelet::new`], with programs from a directory.
    pub fn with_programs(
        plane: &Arc<ControlPlane>,
        services: &Arc<Services>,
        namespace: &str,
        programs: PathBuf,
    ) -> Self {
        Self {
            plane: Arc::clone(plane),
            services: Arc::clone(services),
            namespace: namespace.to_owned(),
            programs,
            pending_services: PendingServices::default(),
            pods: AtomicU32::new(0),
        }
    }

    /// A Job to be created from the step's CronJob, for example `cutover`.
    pub fn step(&self, step: &str) -> Launch<'_> {
        Launch::new(self, step)
    }

    async fn start(&self, job: &Job, launch: &Launch<'_>) -> Result<RunningPod> {
        let spec = job.spec.clone().context("a Job without spec")?;
        let pod = spec.template.spec.clone().context("a Job without a pod")?;
        let [container] = &pod.containers[..] else {
            bail!("only pods with one container are imitated")
        };
        let name = format!(
            "{}-{:05}",
            job.name_any(),
            self.pods.fetch_add(1, Ordering::Relaxed)
        );
        let root = self.directory(&name)?;
        let context = PodContext {
            name: &name,
            namespace: &self.namespace,
            template: &spec.template,
            container,
        };
        let sources = Sources::read(&self.plane.admin(), &self.namespace, &pod).await?;
        let (mut command, termination_log) = self
            .command(&context, &pod, &sources, &root, launch)
            .await?;
        command.current_dir(container.working_dir.as_deref().unwrap_or("/"));
        let (client, namespace) = (self.plane.admin(), self.namespace.clone());
        pods::announce(&client, &namespace, &name, &job.name_any(), &spec.template).await?;
        let running = RunningPod::start(
            &name,
            command,
            &root.join("log"),
            termination_log,
            spec,
            launch.on_line.clone(),
        )?;
        let end = running.end();
        tokio::spawn(async move { pods::ended(&client, &namespace, &name, end.await).await });
        Ok(running)
    }

    fn directory(&self, pod: &str) -> Result<PathBuf> {
        let setup = self.plane.setup();
        self.instance().subdirectory(setup, &format!("pods/{pod}"))
    }

    fn instance(&self) -> &Instance {
        self.plane.instance()
    }

    async fn command(
        &self,
        context: &PodContext<'_>,
        pod: &PodSpec,
        sources: &Sources,
        root: &Path,
        launch: &Launch<'_>,
    ) -> Result<(Command, PathBuf)> {
        let container = context.container;
        let user = &self.plane.setup().user;
        let claims = self.instance().subdirectory(self.plane.setup(), "claims")?;
        let mut mounts = volumes::mount(context, pod, sources, root, &claims, user)?;
        let message_path = container
            .termination_message_path
            .as_deref()
            .unwrap_or("/dev/termination-log");
        let termination_log = root.join(message_path.trim_start_matches('/'));
        volumes::write(user, root, &termination_log, b"", 0o666)?;
        mounts.push((message_path.to_owned(), termination_log.clone()));

        let mut variables = variables::variables(context, sources)?;
        let words: Vec<String> = container
            .command
            .iter()
            .chain(&container.args)
            .flatten()
            .map(|word| variables::expand(word, &variables))
            .collect();
        for value in variables.values_mut() {
            *value = paths::rewritten(value, &mounts);
        }
        for (key, value) in launch.changes.iter().cloned() {
            match value {
                Some(value) => variables.insert(key, value),
                None => variables.remove(&key),
            };
        }
        self.resolve(&mut variables)?;
        let [program, arguments @ ..] = &words[..] else {
            bail!("a container without a command is not imitated")
        };
        let program = programs::find(
            &self.programs,
            program,
            user,
            &self
                .instance()
                .subdirectory(self.plane.setup(), "programs")?,
        )?;
        let mut command = user.command(&program);
        command.args(arguments.iter().map(|word| paths::rewritten(word, &mounts)));
        command.env_clear().envs(variables);
        command
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOSTNAME", context.name)
            .env("HOME", "/");
        if pod.automount_service_account_token != Some(false) {
            let account = pod.service_account_name.as_deref().unwrap_or("default");
            command.envs(self.service_account(account, root).await?);
        }
        Ok((command, termination_log))
    }

    /// The files and variables of a mounted ServiceAccount.
    async fn service_account(
        &self,
        account: &str,
        root: &Path,
    ) -> Result<[(&'static str, String); 3]> {
        let directory = root.join("var/run/secrets/kubernetes.io/serviceaccount");
        let token = self.plane.token(&self.namespace, account).await?;
        let files = [
            ("token", token.as_str()),
            ("ca.crt", self.plane.authority()),
            ("namespace", &self.namespace),
        ];
        for (name, text) in files {
            let user = &self.plane.setup().user;
            volumes::write(user, root, &directory.join(name), text.as_bytes(), 0o400)?;
        }
        let url: http::Uri = self.plane.url().parse()?;
        Ok([
            ("SERVICE_ACCOUNT_DIRECTORY", directory.display().to_string()),
            (
                "KUBERNETES_SERVICE_HOST",
                url.host().unwrap_or_default().to_owned(),
            ),
            (
                "KUBERNETES_SERVICE_PORT",
                url.port_u16().unwrap_or_default().to_string(),
            ),
        ])
    }

    /// Sets the address of each host that has none yet, as DNS would.
    fn resolve(&self, variables: &mut BTreeMap<String, String>) -> Result<()> {
        for side in ["SOURCE", "TARGET"] {
            let address_key = format!("{side}_HOSTADDR");
            let Some(host) = variables.get(&format!("{side}_HOST")) else {
                continue;
            };
            if variables.get(&address_key).is_none_or(String::is_empty) {
                let port = variables
                    .get(&format!("{side}_PORT"))
                    .and_then(|port| port.parse().ok())
                    .unwrap_or(POSTGRES_PORT);
                let address =
                    self.pending_services
                        .address(&self.services, self.instance(), host, port)?;
                variables.insert(address_key, address.to_string());
            }
        }
        Ok(())
    }
}

/// The pod's grace period.
fn grace(spec: &JobSpec) -> Duration {
    let seconds = spec
        .template
        .spec
        .as_ref()
        .and_then(|pod| pod.termination_grace_period_seconds)
        .unwrap_or(30);
    Duration::from_secs(seconds.unsigned_abs())
}

/// The pod's only container.
fn only_container(spec: &JobSpec) -> Option<&Container> {
    spec.template.spec.as_ref()?.containers.first()
}
