//! What every Job does before and after its work: settings, Kubernetes client, SIGTERM, termination
//! message and exit code.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use k8s_openapi::api::core::v1::ObjectReference;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    client,
    config::{self, ObjectName},
    error::{Error, Result, exit_code},
    report::{Format, Reporter},
};

/// Settings that every Job reads.
#[derive(Clone, Debug, Deserialize)]
struct Common {
    target_cluster: ObjectName,
    #[serde(default)]
    log_format: Format,
    #[serde(default = "termination_log")]
    termination_log: PathBuf,
}

fn termination_log() -> PathBuf {
    "/dev/termination-log".into()
}

/// What the work of a Job receives.
#[derive(Clone)]
pub struct JobContext {
    /// The Kubernetes API as this Job's ServiceAccount.
    pub client: kube::Client,
    /// The CNPG Cluster.
    pub target: ObjectName,
    /// The namespace of this Job, of the source and of the target.
    pub namespace: String,
    /// The log, the Events and the termination message.
    pub report: Arc<Reporter>,
    /// Set by SIGTERM.
    pub stop: Shutdown,
}

/// A request to end, which Kubernetes sends as SIGTERM before it kills a pod.
#[derive(Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// True once SIGTERM or SIGINT has arrived.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when SIGTERM or SIGINT arrives.
    pub async fn wait(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn listen() -> Result<Self> {
        let (sender, receiver) = watch::channel(false);
        let (mut term, mut int) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            let _ = sender.send(true);
            // Keeps the sender alive, so that waiters never see a closed channel.
            std::future::pending::<()>().await;
        });
        Ok(Self(receiver))
    }
}

/// Runs a Job: reads its settings, does its work, reports the outcome, and returns the exit code.
///
/// A program that does not check [`JobContext::stop`] itself runs its work by
/// [`JobContext::until_stopped`].
pub fn main<C: DeserializeOwned>(
    program: &'static str,
    work: impl AsyncFnOnce(C, JobContext) -> Result<()>,
) -> ExitCode {
    start_log();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return exit_code(&Err(error.into())),
    };
    let outcome = runtime.block_on(async {
        let common = config::load::<Common>();
        let (format, termination_file) = common
            .as_ref()
            .map_or((Format::Text, termination_log()), |c| {
                (c.log_format, c.termination_log.clone())
            });
        let mut reporter = Reporter::new(program, format);
        let prepared = async {
            let (common, own) = (common?, config::load::<C>()?);
            let target = common.target_cluster.clone();
            let (client, namespace) = client::client()?;
            reporter.events_on(client.clone(), subject(&common.target_cluster, &namespace));
            Ok((own, client, target, namespace, Shutdown::listen()?))
        }
        .await;
        let reporter = Arc::new(reporter);
        let outcome = match prepared {
            Ok((own, client, target, namespace, stop)) => {
                work(
                    own,
                    JobContext {
                        client,
                        target,
                        namespace,
                        report: reporter.clone(),
                        stop,
                    },
                )
                .await
            }
            Err(error) => Err(error),
        };
        reporter.close(&outcome, &termination_file).await;
        outcome
    });
    exit_code(&outcome)
}

/// As [`main`], for work that needs no Kubernetes API, such as an init container of another pod.
pub fn local<C: DeserializeOwned>(
    program: &'static str,
    work: impl FnOnce(C, &Reporter) -> Result<()>,
) -> ExitCode {
    start_log();
    let reporter = Reporter::new(program, Format::Text);
    let outcome = config::load::<C>().and_then(|own| work(own, &reporter));
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() {
        runtime.block_on(reporter.close(&outcome, &termination_log()));
    }
    exit_code(&outcome)
}

impl JobContext {
    /// Ends the work with a Transient error when SIGTERM arrives. This is right for steps all of
    /// whose effects may be repeated.
    ///
    /// # Errors
    /// Those of the work; Transient when SIGTERM arrives first.
    pub async fn until_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stop = self.stop.clone();
        tokio::select! {
            outcome = work => outcome,
            () = stop.wait() => Err(
                Error::transient("asked to end (SIGTERM)")
                    .hint("run the step again; it continues where it can"),
            ),
        }
    }
}

fn start_log() {
    // The logs of libraries, set by RUST_LOG; the program's own log goes through the Reporter. The
    // Kubernetes client logs each failure that it also returns: a line for every retry while the
    // API server does not answer.
    env_logger::Builder::from_env(
        env_logger::Env::default().default_filter_or("warn,kube_client=off"),
    )
    .format_timestamp(None)
    .init();
}

fn subject(cluster: &ObjectName, namespace: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("postgresql.cnpg.io/v1".into()),
        kind: Some("Cluster".into()),
        name: Some(cluster.to_string()),
        namespace: Some(namespace.into()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use variables::Variables;

    use super::*;

    #[test]
    fn the_table_of_variables_matches_the_settings() {
        let read = Variables::of::<Common>("");
        variables::check(variables::EVERY_JOB, &read);
    }
}
