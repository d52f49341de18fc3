//! A Lease that lets one run of a step work at a time: a second one is refused within seconds, with
//! the reason.
//!
//! The Lease alone does not protect data: a pod that was suspended for a while may continue after
//! another one has taken the Lease. The data of a cutover is protected by the compare-and-swap on
//! the record; a step without a record calls [`Held::confirm`] before an effect that would harm
//! another run.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use tokio::time::Instant;

use crate::{
    error::{Context as _, Error, Result, is_conflict},
    wait::{self, ProbeResult},
};
use crate::{kubernetes::get, pods::Pod};
use protocol::record::labels;

/// How long a Lease that is no longer renewed keeps others out, unless its holder's pod has ended.
const DURATION: Duration = Duration::from_secs(6);
const RENEWAL: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(250);
/// How long [`Held::confirm`] waits for an API server that does not answer.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// Separates the pod's name and the process id in a holder's name.
const HOLDER_SEPARATOR: &str = "/";

/// A held Lease; renewed in the background until it is released.
pub struct Held {
    api: Api<Lease>,
    name: String,
    holder: String,
    renewal: tokio::task::JoinHandle<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Takes the Lease: at once when it is free or its holder's pod has ended, otherwise 6 s after its
/// last renewal. `step` names the step in the error.
///
/// # Errors
/// Refused when another run of the step renews the Lease.
pub async fn take(client: &Client, namespace: &str, name: &str, step: &str) -> Result<Held> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let pod = std::env::var("HOSTNAME").unwrap_or_else(|_| "local".into());
    let holder = format!("{pod}{HOLDER_SEPARATOR}{}", std::process::id());
    let mut last_observed: Option<(Option<MicroTime>, Instant)> = None;
    let mut renewals = 0;
    // Long enough for the Lease of an ended holder to expire, and for two renewals of a running
    // one.
    let deadline = Instant::now() + DURATION * 3;
    wait::until(deadline, POLL, async || {
        let found = get(&api, name).await?;
        let spec = found
            .as_ref()
            .and_then(|lease| lease.spec.clone())
            .unwrap_or_default();
        if let Some(other) = spec
            .holder_identity
            .clone()
            .filter(|other| !other.is_empty())
            && !pod_has_ended(client, namespace, &other).await
        {
            // As in client-go, only this program's clock counts: the Lease has expired when its
            // renewal time has not changed for the duration.
            let renewed_since = last_observed
                .as_ref()
                .is_none_or(|(renewed, _)| *renewed != spec.renew_time);
            if renewed_since && last_observed.is_some() {
                renewals += 1;
            }
            if renewals >= 2 {
                return Err(Error::refused(format!(
                    "another {step} is running: {other}"
                )));
            }
            if renewed_since {
                last_observed = Some((spec.renew_time.clone(), Instant::now()));
            }
            if last_observed
                .as_ref()
                .is_some_and(|(_, since)| since.elapsed() < DURATION)
            {
                return Ok(ProbeResult::NotYet(format!(
                    "the lease {name} is held by {other}"
                )));
            }
        }
        write(&api, name, found, &holder).await
    })
    .await
    .context("taking the lease")?;
    let renewal = tokio::spawn(renew(api.clone(), name.to_owned(), holder.clone()));
    Ok(Held {
        api,
        name: name.to_owned(),
        holder,
        renewal,
    })
}

/// Whether the holder's pod has ended by its phase. Clients may be blocked while the next run of
/// the step waits for the Lease, so it does not wait for an ended pod's Lease to expire.
async fn pod_has_ended(client: &Client, namespace: &str, holder: &str) -> bool {
    let Some((pod, _)) = holder.split_once(HOLDER_SEPARATOR) else {
        return false;
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    // A list, because the Role allows no get. A deleted pod counts as running: its program may
    // still be ending.
    let list = pods
        .list(&ListParams::default().fields(&format!("metadata.name={pod}")))
        .await;
    list.is_ok_and(|list| {
        list.iter()
            .any(|pod| matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"))
    })
}

impl Held {
    /// Asks the API server whether this run still holds the Lease. The last renewal does not tell:
    /// it may be long ago in a pod that was suspended.
    ///
    /// # Errors
    /// Transient when another run holds it, and when the API server does not answer for 30 s.
    pub async fn confirm(&self) -> Result<()> {
        let holder = wait::until(Instant::now() + CONFIRM_TIMEOUT, RENEWAL, async || {
            Ok(match get(&self.api, &self.name).await {
                Ok(lease) => {
                    ProbeResult::Ready(lease.as_ref().and_then(held_by).map(str::to_owned))
                }
                Err(error) => ProbeResult::NotYet(error.to_string()),
            })
        });
        match holder
            .await
            .context(format!("asking who holds the lease {}", self.name))?
        {
            Some(holder) if holder == self.holder => Ok(()),
            _ => Err(
                Error::transient("another run has taken over while this one was suspended")
                    .hint("run the step again"),
            ),
        }
    }

    /// Releases the Lease, so that the next run can begin at once. After a failure the next run
    /// waits for the Lease to expire.
    pub async fn release(self) {
        self.renewal.abort();
        if let Ok(Some(lease)) = get(&self.api, &self.name).await
            && held_by(&lease) == Some(&self.holder)
        {
            let _ = write(&self.api, &self.name, Some(lease), "").await;
        }
    }
}

fn held_by(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

/// Renews the Lease until another run holds it.
async fn renew(api: Api<Lease>, name: String, holder: String) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        match get(&api, &name).await {
            Ok(Some(lease)) if held_by(&lease) == Some(&holder) => {
                drop(write(&api, &name, Some(lease), &holder).await)
            }
            // An API server that does not answer does not prove another holder.
            Err(_) => {}
            Ok(_) => return,
        }
    }
}

async fn write(
    api: &Api<Lease>,
    name: &str,
    found: Option<Lease>,
    holder: &str,
) -> Result<ProbeResult<()>> {
    let exists = found.is_some();
    let mut lease = found.unwrap_or_default();
    lease.metadata.name = Some(name.to_owned());
    lease.metadata.labels = Some(labels());
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: Some(DURATION.as_secs() as i32),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    });
    let params = PostParams::default();
    let answer = if exists {
        api.replace(name, &params, &lease).await
    } else {
        api.create(&params, &lease).await
    };
    match answer {
        Ok(_) => Ok(ProbeResult::Ready(())),
        Err(error) if is_conflict(&error) => {
            Ok(ProbeResult::NotYet("the lease has just been taken".into()))
        }
        Err(error) => Err(error).context(format!("writing the lease {name}")),
    }
}
