//! The members of the source: where their servers listen, and whether each runs as a primary or as
//! a standby.

use std::net::SocketAddr;

use futures::future::join_all;
use job::error::Result;
use kube::Client;
use platform::patroni::{self, MemberHealth, Patroni};

/// A registered Patroni member: one whose pod has a Patroni `status` annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of the pod and the member.
    pub name: String,
    /// Where its server listens, if that is known, whether or not it runs.
    pub address: Option<SocketAddr>,
    /// Whether its pod has the leader label.
    pub leader: bool,
    /// The state that its Patroni reports; None if Patroni does not answer.
    pub own: Option<MemberHealth>,
}

impl Member {
    /// Whether its server accepts writes, or may do so at any moment.
    pub fn runs_as_primary(&self) -> bool {
        self.own.as_ref().is_some_and(MemberHealth::runs_as_primary)
    }

    /// Whether its server runs in recovery.
    pub fn runs_as_standby(&self) -> bool {
        let standby = |own: &MemberHealth| {
            matches!(
                own.role.as_str(),
                "replica" | "sync_standby" | "quorum_standby" | "standby_leader" | "demoted"
            ) && matches!(
                own.state.as_str(),
                "running" | "streaming" | "in archive recovery"
            )
        };
        self.own.as_ref().is_some_and(standby)
    }

    /// Text for logs and messages: `pg-0 is stopped (demoted)`.
    pub fn describe(&self) -> String {
        match &self.own {
            Some(own) => format!("{} is {} ({})", self.name, own.state, own.role),
            None => format!("Patroni on {} does not answer", self.name),
        }
    }
}

/// Lists all members, the leader first.
pub async fn list(client: &Client, namespace: &str, cluster: &str) -> Result<Vec<Member>> {
    let rest = Patroni::default();
    let members = patroni::members(client, namespace, cluster).await?;
    let members = members.into_iter().map(|member| {
        let rest = &rest;
        async move {
            Member {
                own: rest.state(&member).await.ok(),
                name: member.name,
                address: member.server,
                leader: member.leader,
            }
        }
    });
    Ok(join_all(members).await)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn member(name: &str, leader: bool, role: &str, state: &str) -> Member {
        Member {
            name: name.into(),
            address: "10.0.0.1:5432".parse().ok(),
            leader,
            own: Some(MemberHealth {
                role: role.into(),
                state: state.into(),
                ..MemberHealth::default()
            }),
        }
    }

    #[test]
    fn a_stopped_member_is_neither_primary_nor_standby() {
        let stopped = member("pg-0", true, "demoted", "stopped");
        assert!(!stopped.runs_as_primary() && !stopped.runs_as_standby());
        assert_eq!(stopped.describe(), "pg-0 is stopped (demoted)");
        assert!(member("pg-1", false, "replica", "running").runs_as_standby());
        assert!(member("pg-0", true, "primary", "running").runs_as_primary());
    }
}
