//! Selects the member of the source to copy, from the state of all members.

use job::error::{Error, Result};
use protocol::finding;

use crate::{members::Member, receipt::CutoverState};

/// What to do if no member of the source runs after a cutover.
const NONE_RUNS: &str = "set FROM=target to copy the new primary, which has all the data; or start \
    the source read-only for the backup (docs/operations.md#a-source-with-one-member)";

/// The member to copy.
///
/// - After a cutover, the former leader is stopped and stays stopped. The other members run in
///   recovery at the end of the source's WAL, and accept no writes.
/// - Before a cutover, the leader: no other member is guaranteed to have all of the data.
///
/// # Errors
/// Refused if no member may be copied; Unsafe if the source has a primary after a cutover.
pub fn member<'a>(
    cutover: &CutoverState,
    requested: Option<&str>,
    members: &'a [Member],
) -> Result<&'a Member> {
    if *cutover == CutoverState::InProgress {
        return Err(Error::refused("a cutover is in progress")
            .hint("wait until it has ended, then run this step"));
    }
    ensure_fenced(cutover, members)?;
    if let Some(requested) = requested {
        return requested_member(requested, members);
    }
    let states = || listed(members.iter().map(Member::describe).collect());
    if matches!(cutover, CutoverState::Completed(_)) {
        let standby = members.iter().find(|member| member.runs_as_standby());
        standby.ok_or_else(|| {
            Error::refused(format!("no member of the source runs: {}", states())).hint(NONE_RUNS)
        })
    } else {
        let leader = members.iter().find(|member| member.leader);
        leader.ok_or_else(|| {
            Error::refused(format!("the source has no leader: {}", states()))
                .hint("wait until Patroni has elected one, or name a member in BACKUP_MEMBER")
        })
    }
}

fn requested_member<'a>(requested: &str, members: &'a [Member]) -> Result<&'a Member> {
    let found = members.iter().find(|member| member.name == requested);
    found.ok_or_else(|| {
        let names = members.iter().map(|member| member.name.clone()).collect();
        Error::config(format!(
            "the source has no member {requested}; it has {}",
            listed(names)
        ))
        .hint("correct BACKUP_MEMBER in the ConfigMap replica-migration")
    })
}

/// Checks that no member accepts writes after a cutover.
///
/// # Errors
/// Unsafe if a member runs as a primary after a cutover.
pub fn ensure_fenced(cutover: &CutoverState, members: &[Member]) -> Result<()> {
    match members.iter().find(|member| member.runs_as_primary()) {
        Some(primary) if matches!(cutover, CutoverState::Completed(_)) => {
            Err(Error::manual_intervention(format!(
                "{} runs as a primary although the cutover has completed",
                primary.name
            ))
            .hint(
                "the source's fence was lifted: stop this server, find out whether anything was \
                 written to it, and delete nothing until then",
            ))
        }
        _ => Ok(()),
    }
}

fn listed(names: Vec<String>) -> String {
    if names.is_empty() {
        "none".into()
    } else {
        finding::listed(&names)
    }
}

#[cfg(test)]
mod tests {
    use job::error::ErrorKind;

    use super::*;
    use crate::{members::tests::member as observed, receipt::tests::receipt};

    fn completed() -> CutoverState {
        CutoverState::Completed(Box::new(receipt()))
    }

    #[test]
    fn the_leader_is_selected_before_a_cutover_and_a_standby_after_it() {
        let members = [
            observed("pg-0", true, "primary", "running"),
            observed("pg-1", false, "replica", "running"),
        ];
        assert_eq!(
            member(&CutoverState::NotDone, None, &members).unwrap().name,
            "pg-0"
        );
        assert_eq!(
            member(&CutoverState::NotDone, Some("pg-1"), &members)
                .unwrap()
                .name,
            "pg-1"
        );
        let fenced = [
            observed("pg-0", true, "demoted", "stopped"),
            observed("pg-1", false, "replica", "running"),
        ];
        assert_eq!(member(&completed(), None, &fenced).unwrap().name, "pg-1");
    }

    #[test]
    fn if_no_member_runs_the_hint_offers_both_alternatives() {
        let error = member(
            &completed(),
            None,
            &[observed("pg-0", true, "demoted", "stopped")],
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "no member of the source runs: pg-0 is stopped (demoted)"
        );
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(
            error.next_step().unwrap().contains("FROM=target")
                && error.next_step().unwrap().contains("read-only")
        );
    }

    #[test]
    fn a_primary_after_a_cutover_requires_intervention_whichever_member_is_requested() {
        let members = [
            observed("pg-0", true, "primary", "running"),
            observed("pg-1", false, "replica", "running"),
        ];
        assert_eq!(
            member(&completed(), Some("pg-1"), &members)
                .unwrap_err()
                .kind(),
            ErrorKind::Unsafe
        );
    }

    #[test]
    fn a_missing_leader_an_unknown_member_and_a_running_cutover_are_refused() {
        let members = [observed("pg-1", false, "replica", "running")];
        assert!(
            member(&CutoverState::NotDone, None, &members)
                .unwrap_err()
                .to_string()
                .contains("no leader")
        );
        let unknown = member(&CutoverState::NotDone, Some("pg-7"), &members).unwrap_err();
        assert_eq!(
            (unknown.kind(), unknown.to_string().contains("it has pg-1")),
            (ErrorKind::Config, true)
        );
        assert_eq!(
            member(&CutoverState::InProgress, None, &members)
                .unwrap_err()
                .kind(),
            ErrorKind::Refused
        );
    }
}
