//! What every Job does around its work: environment, runtime, SIGTERM, the last word and the exit
//! code.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use k8s_openapi::api::core::v1::ObjectReference;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    client,
    config::{self, Name},
    error::{Result, exit_code},
    report::{Format, Reporter},
};

/// Settings that every Job takes.
#[derive(Clone, Debug, Deserialize)]
struct Common {
    target_cluster: Name,
    #[serde(default)]
    log_format: Format,
    #[serde(default = "termination_log")]
    termination_log: PathBuf,
}

fn termination_log() -> PathBuf {
    "/dev/termination-log".into()
}

/// What a Job's work is given.
#[derive(Clone)]
pub struct Run {
    /// The Kubernetes API as this Job's ServiceAccount.
    pub client: kube::Client,
    /// The CNPG Cluster.
    pub target: Name,
    /// The namespace of this Job, of the source and of the target.
    pub namespace: String,
    /// The log, the Events and the last word.
    pub report: Arc<Reporter>,
    /// SIGTERM.
    pub stop: Stop,
}

/// Tells whether the pod has been asked to end.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// True once SIGTERM or SIGINT has arrived.
    pub fn asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when SIGTERM or SIGINT arrives; never when the program was not given signals.
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
            // Kept so that waiters never see a closed channel.
            std::future::pending::<()>().await;
        });
        Ok(Self(receiver))
    }
}

/// Runs a Job's work: the only place that knows exit codes.
///
/// A program that does not look at [`Run::stop`] itself passes through [`Run::until_stopped`].
pub fn main<C: DeserializeOwned>(
    program: &'static str,
    work: impl AsyncFnOnce(C, Run) -> Result<()>,
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
        let (format, last_word) = common
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
            Ok((own, client, target, namespace, Stop::listen()?))
        }
        .await;
        let reporter = Arc::new(reporter);
        let outcome = match prepared {
            Ok((own, client, target, namespace, stop)) => {
                work(
                    own,
                    Run {
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
        reporter.close(&outcome, &last_word).await;
        outcome
    });
    exit_code(&outcome)
}

/// Runs work that needs no Kubernetes API, such as an init container of another pod.
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

impl Run {
    /// Ends the work with a Transient error when SIGTERM arrives: right for steps whose every
    /// effect may be repeated.
    ///
    /// # Errors
    /// Whatever the work returns, or that the pod was asked to end.
    pub async fn until_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stop = self.stop.clone();
        tokio::select! {
            outcome = work => outcome,
            () = stop.wait() => Err(crate::error::Error::transient("asked to end (SIGTERM)").hint("run the step again; it goes on where it can")),
        }
    }
}

fn start_log() {
    // The libraries' own words, for those who ask with RUST_LOG; ours go through the Reporter. The
    // client logs each failure that it also returns: while the API server is away, a line for every
    // retry.
    env_logger::Builder::from_env(
        env_logger::Env::default().default_filter_or("warn,kube_client=off"),
    )
    .format_timestamp(None)
    .init();
}

fn subject(cluster: &Name, namespace: &str) -> ObjectReference {
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
    fn the_table_of_variables_is_right() {
        let read = Variables::of::<Common>("");
        variables::check(variables::EVERY_JOB, &read);
    }
}
