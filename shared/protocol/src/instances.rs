//! The further instances of the target: each one that CloudNativePG may promote must hold what the
//! observed one has proved.
//!
//! Once replica mode ends, CloudNativePG promotes its target primary, or, where that does not
//! report, another instance: the one that has received most, then replayed most, then the first by
//! name (`pkg/postgres/status.go`, `internal/controller/replicas.go`). The proof is about the
//! designated primary. A standby of it that has flushed the proved position replays up to exactly
//! there when it is promoted, because nothing follows. So whichever instance is promoted, it is at
//! the proved position, and the history of the new timeline shows that afterwards.

use crate::{
    reason::Wait,
    snapshot::{TargetState, kubernetes::ClusterState},
    wal::Lsn,
};

/// What is missing until every instance that reports itself ready has flushed `position`, and no
/// switchover of the target is under way.
///
/// `target` is the server that was observed. No instance streams from itself, so where all ready
/// ones except the designated primary stream from it, it is the designated primary. An instance
/// that is down is not waited for: CloudNativePG counts it as ready for about a second and does
/// not promote it before it reports again.
pub fn awaited(cluster: &ClusterState, target: &TargetState, position: Lsn) -> Option<Wait> {
    if let Some(to) = switching_to(cluster) {
        return Some(Wait::TargetSwitchingOver {
            from: cluster.current_primary.clone(),
            to: to.to_owned(),
        });
    }
    let reached = |flushed: Option<Lsn>| flushed >= Some(position);
    let instances = lacking(cluster, target, reached);
    (!instances.is_empty()).then_some(Wait::InstancesBehind {
        instances,
        position,
    })
}

/// Ready instances that do not stream from the observed server.
pub fn detached(cluster: &ClusterState, target: &TargetState) -> Vec<String> {
    lacking(cluster, target, |_| true)
}

/// The instance that CloudNativePG is making the designated primary, if it is another one.
pub fn switching_to(cluster: &ClusterState) -> Option<&str> {
    let target = cluster.target_primary.as_str();
    (!target.is_empty() && target != cluster.current_primary).then_some(target)
}

/// The ready instance that CloudNativePG prefers to the designated primary when all have received
/// the same: the first by name.
pub fn preferred(cluster: &ClusterState) -> Option<&str> {
    let first = cluster.ready.iter().min()?;
    (*first < cluster.current_primary).then_some(first)
}

/// Ready instances beside the designated primary for which no standby is attached whose flushed
/// position is `enough`.
fn lacking(
    cluster: &ClusterState,
    target: &TargetState,
    enough: impl Fn(Option<Lsn>) -> bool,
) -> Vec<String> {
    let holds = |name: &&String| {
        let standbys = &target.standbys;
        standbys
            .iter()
            .any(|standby| standby.name == **name && enough(standby.flushed))
    };
    let others = cluster
        .ready
        .iter()
        .filter(|name| **name != cluster.current_primary);
    others.filter(|name| !holds(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{simulation::look, snapshot::target::Standby};

    const PROVED: Lsn = Lsn(0x400_00A0);

    fn cluster(ready: &[&str]) -> ClusterState {
        ClusterState {
            current_primary: "database-1".into(),
            target_primary: "database-1".into(),
            ready: ready.iter().map(ToString::to_string).collect(),
            ..ClusterState::default()
        }
    }

    fn target(standbys: &[(&str, Option<Lsn>)]) -> TargetState {
        let mut target = look().target.answer().unwrap().clone();
        let standby = |(name, flushed): &(&str, Option<Lsn>)| Standby {
            name: (*name).to_owned(),
            flushed: *flushed,
        };
        target.standbys = standbys.iter().map(standby).collect();
        target
    }

    fn behind(instances: &[&str]) -> Option<Wait> {
        Some(Wait::InstancesBehind {
            instances: instances.iter().map(ToString::to_string).collect(),
            position: PROVED,
        })
    }

    #[test]
    fn every_ready_instance_must_have_flushed_the_proved_position() {
        let three = cluster(&["database-1", "database-2", "database-3"]);
        let seen = |standbys: &[_]| awaited(&three, &target(standbys), PROVED);
        let (before, after) = (Some(Lsn(PROVED.0 - 1)), Some(PROVED));
        assert_eq!(
            seen(&[("database-2", after), ("database-3", before)]),
            behind(&["database-3"])
        );
        // One that is still connecting has no position yet, and a backup is no standby.
        assert_eq!(
            seen(&[("database-2", None), ("pg_basebackup", after)]),
            behind(&["database-2", "database-3"])
        );
        assert_eq!(seen(&[("database-2", after), ("database-3", after)]), None);
    }

    #[test]
    fn one_that_is_down_is_not_waited_for_and_a_single_instance_never() {
        let alone = cluster(&["database-1"]);
        assert_eq!(awaited(&alone, &target(&[]), PROVED), None);
        assert_eq!(
            awaited(&ClusterState::default(), &target(&[]), PROVED),
            None
        );
    }

    #[test]
    fn a_session_to_an_instance_that_is_not_the_designated_primary_proves_nothing() {
        let mut two = cluster(&["database-1", "database-2"]);
        two.current_primary = "database-2".into();
        assert_eq!(
            awaited(&two, &target(&[("database-2", Some(PROVED))]), PROVED),
            Some(Wait::TargetSwitchingOver {
                from: "database-2".into(),
                to: "database-1".into(),
            })
        );
        two.target_primary = "database-2".into();
        // The session has stayed at database-1, from which database-2 still streams.
        assert_eq!(
            awaited(&two, &target(&[("database-2", Some(PROVED))]), PROVED),
            behind(&["database-1"])
        );
        assert_eq!(preferred(&two), Some("database-1"));
        assert_eq!(preferred(&cluster(&["database-1", "database-2"])), None);
    }
}
