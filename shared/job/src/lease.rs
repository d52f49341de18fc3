//! One run of a step at a time: a Lease, so that a second one is refused at once and in words.
//!
//! It is a courtesy and no guard: a pod that was stopped for a while may wake up as a second one.
//! What protects the data of a cutover is the compare-and-swap on the record; who has no record
//! asks [`Held::confirm`] before an effect that would harm another one.

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
    wait::{self, Seen},
};
use crate::{kubernetes::get, pods::Pod};
use protocol::record::labels;

/// How long a holder that no longer renews keeps others out, unless its pod is known to have ended.
const DURATION: Duration = Duration::from_secs(6);
const RENEWAL: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(250);
/// An API server that is away comes back within it, or what was asked for can wait.
const ANSWER: Duration = Duration::from_secs(30);

/// Between the pod's name and the process id in a holder's name.
const OF_POD: &str = "/";

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

/// Takes the Lease: at once when it is free or its holder's pod has ended, else when the holder no
/// longer renews it. `step` is what another holder is, for people.
///
/// # Errors
/// Refused while another one renews it.
pub async fn take(client: &Client, namespace: &str, name: &str, step: &str) -> Result<Held> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let pod = std::env::var("HOSTNAME").unwrap_or_else(|_| "local".into());
    let holder = format!("{pod}{OF_POD}{}", std::process::id());
    let mut last_seen: Option<(Option<MicroTime>, Instant)> = None;
    let mut renewals = 0;
    // Long enough to see a dead holder's Lease run out, and a living one's renewed twice.
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
            && !ended(client, namespace, &other).await
        {
            // As in client-go, only the own clock counts: the holder is dead when nothing moved for
            // the duration.
            let moved = last_seen
                .as_ref()
                .is_none_or(|(renewed, _)| *renewed != spec.renew_time);
            if moved && last_seen.is_some() {
                renewals += 1;
            }
            if renewals >= 2 {
                return Err(Error::refused(format!(
                    "another {step} is running: {other}"
                )));
            }
            if moved {
                last_seen = Some((spec.renew_time.clone(), Instant::now()));
            }
            if last_seen
                .as_ref()
                .is_some_and(|(_, since)| since.elapsed() < DURATION)
            {
                return Ok(Seen::NotYet(format!("the lease {name} is held by {other}")));
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

/// Clients wait while a successor waits: a pod that has ended, as Kubernetes tells, holds nothing
/// any more.
async fn ended(client: &Client, namespace: &str, holder: &str) -> bool {
    let Some((pod, _)) = holder.split_once(OF_POD) else {
        return false;
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    // Listed, because that is what the Role allows. One that was deleted says nothing: its program
    // may still be ending.
    let list = pods
        .list(&ListParams::default().fields(&format!("metadata.name={pod}")))
        .await;
    list.is_ok_and(|list| {
        list.iter()
            .any(|pod| matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"))
    })
}

impl Held {
    /// Asks the API server whether this one still holds it: what the renewal saw last is old for a
    /// pod that has just woken up.
    ///
    /// # Errors
    /// Transient when another one does, and when nobody answers for [`ANSWER`].
    pub async fn confirm(&self) -> Result<()> {
        let holder = wait::until(Instant::now() + ANSWER, RENEWAL, async || {
            Ok(match get(&self.api, &self.name).await {
                Ok(lease) => Seen::Ready(lease.as_ref().and_then(held_by).map(str::to_owned)),
                Err(error) => Seen::NotYet(error.to_string()),
            })
        });
        match holder
            .await
            .context(format!("asking who holds the lease {}", self.name))?
        {
            Some(holder) if holder == self.holder => Ok(()),
            _ => Err(
                Error::transient("another one has taken over while this one was held up")
                    .hint("run the step again"),
            ),
        }
    }

    /// Lets the next one begin at once.
    pub async fn release(self) {
        self.renewal.abort();
        if let Ok(Some(lease)) = get(&self.api, &self.name).await
            && held_by(&lease) == Some(&self.holder)
        {
            // A failure only means that the next one waits for the Lease to run out.
            let _ = write(&self.api, &self.name, Some(lease), "").await;
        }
    }
}

fn held_by(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

/// Ends when another one holds it.
async fn renew(api: Api<Lease>, name: String, holder: String) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        match get(&api, &name).await {
            Ok(Some(lease)) if held_by(&lease) == Some(&holder) => {
                drop(write(&api, &name, Some(lease), &holder).await)
            }
            // An API server that is away is not another holder.
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
) -> Result<Seen<()>> {
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
        Ok(_) => Ok(Seen::Ready(())),
        Err(error) if is_conflict(&error) => {
            Ok(Seen::NotYet("the lease has just been taken".into()))
        }
        Err(error) => Err(error).context(format!("writing the lease {name}")),
    }
}
