//! Which member of the source is copied, from what is known of all.

use job::error::{Error, Result};

use crate::{members::Member, receipt::Cut};

/// What to do when no member of a source runs after a cut.
const NONE_RUNS: &str = "set FROM=target to copy the new primary, which holds everything; or start \
    the source read-only for the backup (README, *A source with one member*)";

/// The member to copy.
///
/// - After a cut the leader was stopped, and stays so. The others run in recovery, at the last
///   record that the source has ever written, and nobody can write to them.
/// - Before a cut it is the leader, which is the only one that lacks nothing.
///
/// # Errors
/// Refused when there is none that may be copied; Unsafe when the source has a primary after a cut.
pub fn member<'a>(cut: &Cut, wished: Option<&str>, members: &'a [Member]) -> Result<&'a Member> {
    if *cut == Cut::UnderWay {
        return Err(Error::refused("a cutover is under way").hint("let it end, then run this step"));
    }
    fenced(cut, members)?;
    let over = matches!(cut, Cut::Over(_));
    if let Some(wished) = wished {
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        return members
            .iter()
            .find(|member| member.name == wished)
            .ok_or_else(|| {
                Error::config(format!(
                    "the source has no member {wished}; it has {}",
                    listed(&names)
                ))
                .hint("correct BACKUP_MEMBER in the ConfigMap replica-migration")
            });
    }
    let found = members.iter().find(|member| match over {
        true => member.runs_as_standby(),
        false => member.leader,
    });
    let states: Vec<String> = members.iter().map(Member::words).collect();
    found.ok_or_else(|| match over {
        true => Error::refused(format!("no member of the source runs: {}", listed(&states)))
            .hint(NONE_RUNS),
        false => Error::refused(format!("the source has no leader: {}", listed(&states)))
            .hint("wait until Patroni has elected one, or name a member in BACKUP_MEMBER"),
    })
}

/// Nobody can write to the source after a cut.
///
/// # Errors
/// Unsafe when a member runs as a primary then.
pub fn fenced(cut: &Cut, members: &[Member]) -> Result<()> {
    match members.iter().find(|member| member.runs_as_primary()) {
        Some(primary) if matches!(cut, Cut::Over(_)) => Err(Error::contradiction(format!(
            "{} runs as a primary although the cut is over",
            primary.name
        ))
        .hint(
            "somebody has lifted the fence: stop it, find out whether anything was written to \
            it, and delete nothing until then",
        )),
        _ => Ok(()),
    }
}

fn listed(words: &[impl AsRef<str>]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    if words.is_empty() {
        "none".into()
    } else {
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use job::error::ErrorKind;

    use super::*;
    use crate::{members::tests::member as seen, receipt::tests::receipt};

    fn over() -> Cut {
        Cut::Over(Box::new(receipt()))
    }

    #[test]
    fn before_a_cut_the_leader_and_after_it_one_that_runs_in_recovery() {
        let members = [
            seen("pg-0", true, "primary", "running"),
            seen("pg-1", false, "replica", "running"),
        ];
        assert_eq!(member(&Cut::NotYet, None, &members).unwrap().name, "pg-0");
        assert_eq!(
            member(&Cut::NotYet, Some("pg-1"), &members).unwrap().name,
            "pg-1"
        );
        let fenced = [
            seen("pg-0", true, "demoted", "stopped"),
            seen("pg-1", false, "replica", "running"),
        ];
        assert_eq!(member(&over(), None, &fenced).unwrap().name, "pg-1");
    }

    #[test]
    fn where_no_member_runs_both_ways_are_offered() {
        let error = member(&over(), None, &[seen("pg-0", true, "demoted", "stopped")]).unwrap_err();
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
    fn a_primary_after_a_cut_is_for_a_person_to_look_at_whatever_was_wished() {
        let members = [
            seen("pg-0", true, "primary", "running"),
            seen("pg-1", false, "replica", "running"),
        ];
        assert_eq!(
            member(&over(), Some("pg-1"), &members).unwrap_err().kind(),
            ErrorKind::Unsafe
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let members = [seen("pg-1", false, "replica", "running")];
        assert!(
            member(&Cut::NotYet, None, &members)
                .unwrap_err()
                .to_string()
                .contains("no leader")
        );
        let unknown = member(&Cut::NotYet, Some("pg-7"), &members).unwrap_err();
        assert_eq!(
            (unknown.kind(), unknown.to_string().contains("it has pg-1")),
            (ErrorKind::Config, true)
        );
        assert_eq!(
            member(&Cut::UnderWay, None, &members).unwrap_err().kind(),
            ErrorKind::Refused
        );
    }
}
