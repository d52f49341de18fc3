//! The pods of the source's old poolers and their consoles.

use std::collections::BTreeMap;

use job::{
    config::{Connection, NonEmptyString},
    error::Result,
};
use protocol::snapshot::{PoolerPodState, PoolerState};

use super::{
    endpoints::Login,
    session::{Line, limited},
};
use crate::{
    kubernetes::poolers::PoolerPod,
    pgbouncer::{Console, State},
};

/// Consoles by pod, opened beforehand.
pub struct Poolers {
    /// User, password and TLS; the host is each pod's own.
    at: Connection,
    login: Login,
    lines: BTreeMap<String, Line<Console>>,
}

impl Poolers {
    /// Nothing is opened yet.
    pub fn new(at: Connection, login: Login) -> Self {
        Self {
            at,
            login,
            lines: BTreeMap::new(),
        }
    }

    /// Asks every pod for its state, at the same time.
    pub(super) async fn observe(
        &mut self,
        pods: &[PoolerPod],
    ) -> Vec<(String, Result<PoolerState>)> {
        let none: NonEmptyString = "pgbouncer".parse().expect("a name that is not empty");
        self.lines
            .retain(|name, _| pods.iter().any(|pod| pod.name == *name));
        for pod in pods {
            let line = self.lines.entry(pod.name.clone());
            line.or_insert_with(|| Line::new(self.at.clone(), &none, self.login))
                .set_address(pod.address);
        }
        let each = self.lines.iter_mut().map(|(pod, line)| async move {
            let asked = async { limited(line.open().await?.state()).await }.await;
            if asked.is_err() {
                line.forget();
            }
            (pod.clone(), asked.map(state_of))
        });
        futures::future::join_all(each).await
    }

    /// Sends PAUSE to every pod that serves clients.
    pub async fn pause(&mut self, observed: &[PoolerPodState]) -> Result<()> {
        let each = self
            .lines_of(observed, |state| state == PoolerState::Serving)
            .map(|line| async move {
                // A console that still waits for the end of a transaction answers nothing else: the
                // next observation opens another.
                if !line.session()?.pause().await? {
                    line.forget();
                }
                Ok(())
            });
        futures::future::join_all(each).await.into_iter().collect()
    }

    /// Sends RESUME to every pod that is paused or pausing.
    pub async fn resume(&mut self, observed: &[PoolerPodState]) -> Result<()> {
        let each = self
            .lines_of(observed, |state| state != PoolerState::Serving)
            .map(|line| async move { line.session()?.resume().await });
        futures::future::join_all(each).await.into_iter().collect()
    }

    fn lines_of(
        &mut self,
        observed: &[PoolerPodState],
        in_state: impl Fn(PoolerState) -> bool,
    ) -> impl Iterator<Item = &mut Line<Console>> {
        let matches = move |pod: &str| {
            let states = observed
                .iter()
                .filter(|pooler| pooler.pod == pod)
                .filter_map(|pooler| pooler.state.answer());
            states.copied().any(&in_state)
        };
        self.lines
            .iter_mut()
            .filter(move |(pod, _)| matches(pod))
            .map(|(_, line)| line)
    }
}

fn state_of(state: State) -> PoolerState {
    match (state.paused, state.servers) {
        (false, _) => PoolerState::Serving,
        (true, 0) => PoolerState::Paused,
        (true, busy) => PoolerState::Pausing(busy),
    }
}
