//! The order of things, and nothing else: facts and one look in, one decision out. No clock, no I/O.
//!
//! Every action may be repeated and may happen late. What must be undone one day is recorded before it is done; what is
//! irreversible happens only after its proof is recorded. `design.md` §4 tells the protocol in words.

use shared::{postgres::Timeline, readiness::Verdict};

use crate::{
    back,
    decision::{Action, Decision, Limits},
    journal::{Fact, Fenced, Journal, Promotion, Start},
    observation::{Observation, Sight, TargetSeen},
    proof,
};

/// The next decision.
pub fn decide(journal: &Journal, seen: &Observation, limits: &Limits) -> Decision {
    if journal.finished.is_some() {
        return Decision::Done;
    }
    let Some(start) = &journal.started else {
        return begin(seen);
    };
    if journal.returned.is_some() {
        let reason = journal.going_back.as_ref().map_or("", |back| &back.reason);
        return back::restore(journal, start, seen).unwrap_or_else(|| Decision::Refuse(format!("went back: {reason}")));
    }
    if let Some(contradiction) = contradiction(journal, start, seen) {
        return Decision::Alarm(contradiction);
    }
    if let Some(promotion) = &journal.promotion {
        return after(journal, start, promotion, seen, limits);
    }
    if journal.going_back.is_some() {
        return back::back(journal, start, seen);
    }
    match back::why(journal, start, seen, limits) {
        Some(reason) => Decision::Record(Fact::GoingBack(crate::journal::GoingBack { at: seen.now, reason })),
        None => before(journal, start, seen),
    }
}

/// Nothing is recorded yet: either everything is as it must be, or nothing is touched.
fn begin(seen: &Observation) -> Decision {
    if let Some(why) = &seen.abort {
        return Decision::Refuse(format!("{why}: nothing was changed"));
    }
    if let Some(finding) = seen.against() {
        return match finding.verdict {
            Verdict::NotYet => Decision::Wait(finding.to_string()),
            _ => Decision::NotReady(finding.clone()),
        };
    }
    let (Sight::Answers(source), Sight::Answers(target), Sight::Answers(patroni)) = (&seen.source, &seen.target, &seen.patroni) else {
        return Decision::Wait(seen.silent());
    };
    let Some(leader) = patroni.leader.clone() else {
        return Decision::Wait("the source has no leader".into());
    };
    Decision::Record(Fact::Started(Box::new(Start {
        at: seen.now,
        source: source.identity,
        leader,
        target: target.identity,
        target_owes_restart: target.running.archive_mode == "always",
        replicas: seen.wanted(),
        config: seen.config.clone(),
        controller: seen.controller.clone(),
        paused: patroni.paused,
        read_only: patroni.read_only.clone(),
    })))
}

/// Up to the point of no return.
fn before(journal: &Journal, start: &Start, seen: &Observation) -> Decision {
    if !seen.operator_frozen() {
        return Decision::Do(Action::FreezeOperator);
    }
    if journal.checkpointed.is_none() {
        return Decision::Do(Action::Checkpoint);
    }
    if journal.blocked.is_none() {
        return match seen.against() {
            Some(finding) => Decision::Wait(finding.to_string()),
            None => Decision::Record(Fact::Blocked(seen.now)),
        };
    }
    if journal.fenced.is_none() {
        return block(journal, seen);
    }
    fence(journal, start, seen)
}

/// The block stands, the sessions are ended, the target has caught up; then the fence is recorded.
fn block(journal: &Journal, seen: &Observation) -> Decision {
    if seen.held() == Some(false) || seen.apps.values().any(|app| app.wanted != 0) {
        return Decision::Do(Action::Block);
    }
    // Whether the setting has reached the server yet is not waited for: what is still written is behind the marker and before the
    // fence, and the proof covers it.
    if seen.held().is_none() || !seen.source.answer().is_some_and(|source| source.primary) {
        return Decision::Wait(format!("the source does not answer ({})", seen.silent()));
    }
    let Some(marker) = &journal.marker else {
        return Decision::Do(Action::EndSessions);
    };
    match &seen.target {
        Sight::Silent(why) => Decision::Wait(format!("the target does not answer: {why}")),
        Sight::Answers(target) if target.replay.replay < Some(marker.lsn) => Decision::Wait(format!(
            "the target has replayed {}, the marker is {}",
            shown(target.replay.replay),
            marker.lsn
        )),
        Sight::Answers(_) => stop(journal, seen).unwrap_or_else(|| Decision::Wait("the source is gone".into())),
    }
}

/// The source is to be stopped: first its position and this run of it are recorded, then it is done.
fn stop(journal: &Journal, seen: &Observation) -> Option<Decision> {
    let source = seen.source.answer()?;
    let (true, Some(lsn)) = (source.primary, source.insert) else {
        return None;
    };
    if journal
        .fenced
        .as_ref()
        .is_some_and(|fenced| fenced.incarnation == source.incarnation)
    {
        return Some(Decision::Do(Action::Fence(source.incarnation)));
    }
    Some(Decision::Record(Fact::Fenced(Fenced {
        at: seen.now,
        lsn,
        incarnation: source.incarnation,
    })))
}

/// The source is stopped, and the target proves that nothing is missing; then the promotion is recorded.
fn fence(journal: &Journal, start: &Start, seen: &Observation) -> Decision {
    if seen.held() == Some(false) {
        // Without the pause Patroni starts again what is stopped.
        return Decision::Do(Action::Hold);
    }
    if let Some(step) = stop(journal, seen) {
        return step;
    }
    if let Some(primary) = seen.source_primary() {
        // Stopping needs an SQL session; a member whose REST API still says running is on its way down.
        return Decision::Wait(format!("{primary} still runs as a primary"));
    }
    let (Some(fenced), Sight::Answers(target)) = (&journal.fenced, &seen.target) else {
        return Decision::Wait(seen.silent());
    };
    let Sight::Answers(patroni) = &seen.patroni else {
        return Decision::Wait(seen.silent());
    };
    if !patroni.silent.is_empty() {
        return Decision::Wait(format!("{} does not say whether its server runs", patroni.silent.join(", ")));
    }
    match proof::clean_stop(
        &target.control,
        &target.replay,
        fenced.lsn,
        start.source.timeline,
        target.segment_bytes,
    ) {
        Ok(replayed) => Decision::Record(Fact::Promotion(Promotion {
            at: seen.now,
            shutdown_checkpoint: target.control.checkpoint,
            replayed,
            timeline: start.source.timeline,
            target_clock: target.running.now,
        })),
        Err(_) => Decision::Do(Action::Restartpoint),
    }
}

/// Past the point of no return: only forward.
fn after(journal: &Journal, start: &Start, promotion: &Promotion, seen: &Observation, limits: &Limits) -> Decision {
    if !seen.operator_frozen() {
        return Decision::Do(Action::FreezeOperator);
    }
    if seen.held() == Some(false) {
        // Without the pause Patroni would promote another member of the source.
        return Decision::Do(Action::Hold);
    }
    if let Some(source) = seen.source.answer()
        && source.primary
    {
        // Somebody started it: it must not serve anybody ever again.
        return Decision::Do(Action::Fence(source.incarnation));
    }
    if seen.follows {
        return Decision::Do(Action::Promote);
    }
    if journal.promoted.is_none() {
        return promoted(promotion, start, seen);
    }
    if journal.routed.is_none() || journal.serving.is_none() {
        return route(journal, start, seen, limits);
    }
    Decision::Do(Action::WriteReceipt)
}

/// Primary, restarted, and a write proved.
fn promoted(promotion: &Promotion, start: &Start, seen: &Observation) -> Decision {
    let target = match &seen.target {
        Sight::Answers(target) => target,
        Sight::Silent(why) => return Decision::Wait(format!("the target is promoting or restarting ({why})")),
    };
    if target.in_recovery {
        return Decision::Wait("the target is promoting".into());
    }
    match restart_owed(target, promotion, start.target_owes_restart) {
        Some(missing) => Decision::Wait(missing),
        None => Decision::Do(Action::ProveWrite),
    }
}

/// What is missing from "CNPG's restart of the new primary is over"; its phase does not tell (verified.md, *"Healthy" is not "done"*).
fn restart_owed(target: &TargetSeen, promotion: &Promotion, owed: bool) -> Option<String> {
    if target.running.archive_mode == "always" || target.running.pending_restart > 0 {
        return Some("the target is primary and must still be restarted by CNPG (archive_mode)".into());
    }
    if owed && target.running.postmaster_start <= promotion.target_clock {
        return Some("the target is primary and its restart by CNPG is not seen yet".into());
    }
    None
}

/// The application's ConfigMap, then its pods.
fn route(journal: &Journal, start: &Start, seen: &Observation, limits: &Limits) -> Decision {
    let there = limits
        .config
        .iter()
        .all(|(key, value)| seen.config.values.get(key).is_some_and(|now| now.as_ref() == Some(value)));
    if !there {
        return Decision::Do(Action::Route);
    }
    if journal.routed.is_none() {
        return Decision::Record(Fact::Routed(seen.now));
    }
    if seen.wanted() != start.replicas {
        return Decision::Do(Action::ScaleUp);
    }
    match seen.not_ready(&start.replicas) {
        Some(missing) => Decision::Wait(missing),
        None => Decision::Record(Fact::Serving(seen.now)),
    }
}

/// What the record and the sight cannot both be true of.
fn contradiction(journal: &Journal, start: &Start, seen: &Observation) -> Option<String> {
    if let Some(source) = seen.source.answer()
        && source.identity.system_identifier != start.source.system_identifier
    {
        return Some(format!(
            "the source's system identifier is {}, the record says {}",
            source.identity.system_identifier, start.source.system_identifier
        ));
    }
    let target = seen.target.answer()?;
    if target.identity.system_identifier != start.target.system_identifier {
        return Some(format!(
            "the target's system identifier is {}, the record says {}",
            target.identity.system_identifier, start.target.system_identifier
        ));
    }
    let promotion = journal.promotion.as_ref()?;
    let expected = Timeline(promotion.timeline.0 + 1);
    if !target.in_recovery && target.identity.timeline != expected {
        return Some(format!(
            "the target is on timeline {}, its promotion should have begun timeline {expected}",
            target.identity.timeline
        ));
    }
    None
}

fn shown(lsn: Option<shared::postgres::Lsn>) -> String {
    lsn.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string())
}
