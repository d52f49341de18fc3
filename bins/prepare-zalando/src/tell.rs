//! What a person reads: findings, the plan of a dry run, and what comes next.

use job::{
    context::Run,
    error::{Error, Result},
    report::Reporter,
};

use crate::{
    facts::Facts,
    findings::{Finding, Weight},
    image::Image,
    inspect::Seen,
    login, manifest, publish, secrets,
    settings::{Settings, SourceAuth},
    source_change::Needed,
};

/// Who was looked at.
pub fn what_was_seen(report: &Reporter, facts: &Facts) {
    let identity = facts.server.identity;
    report.info(format!(
        "source: leader {} of {} members, PostgreSQL {}.{}, timeline {}, system identifier {}, {} \
         databases, {} MiB",
        facts.pod.name,
        facts.members,
        identity.major(),
        identity.version % 10_000,
        identity.timeline,
        identity.system_identifier,
        facts.databases.len(),
        facts.bytes() >> 20
    ));
    report.info(format!(
        "tls: sslmode {}: {}",
        facts.tls.sslmode.as_str(),
        facts.tls.reason
    ));
}

/// A line for each warning; in a dry run no Event, which would be a change.
pub fn warnings(report: &Reporter, settings: &Settings, found: &[Finding]) {
    for finding in found
        .iter()
        .filter(|finding| finding.weight == Weight::Warning)
    {
        let text = format!("{} → {}", finding.what, finding.remedy);
        match settings.dry_run {
            true => report.info(format!("warning: {text}")),
            false => report.warning(finding.reason, text),
        }
    }
}

/// Refuses when there is a blocker: one is the error itself, several are listed and then named
/// together.
///
/// # Errors
/// Refused.
pub fn refuse(report: &Reporter, found: &[Finding]) -> Result<()> {
    let blockers: Vec<&Finding> = found
        .iter()
        .filter(|finding| finding.weight == Weight::Blocker)
        .collect();
    match blockers.as_slice() {
        [] => Ok(()),
        [one] => Err(Error::refused(&one.what).hint(&one.remedy)),
        many => {
            for finding in many {
                report.info(format!("blocker: {} → {}", finding.what, finding.remedy));
            }
            let all: Vec<&str> = many.iter().map(|finding| finding.what.as_str()).collect();
            Err(
                Error::refused(format!("{} blockers: {}", many.len(), all.join("; ")))
                    .hint("what to do about each stands above; nothing was changed"),
            )
        }
    }
}

/// What would be done, and the manifest.
///
/// # Errors
/// The API's, while comparing.
pub async fn plan(
    run: &Run,
    settings: &Settings,
    seen: &Seen,
    needed: &Needed,
    image: &Image,
) -> Result<()> {
    let report = &run.report;
    if let Some(mb) = needed.wal_keep_mb {
        report.info(format!(
            "would raise wal_keep_size to {mb} MB in postgresql {}",
            settings.source_cluster
        ));
    }
    if let Some(role) = needed.admitted {
        report.info(format!(
            "would add a line for {role} to pg_hba in postgresql {}: its pods restart",
            settings.source_cluster
        ));
    }
    let password = login::password(run, settings).await?;
    for change in login::plan(
        settings,
        &seen.facts.cnpg_roles,
        seen.facts.login.password,
        &password,
    ) {
        report.info(format!("would do: {}", change.what));
    }
    let mut credentials: Vec<_> = login::promoted(settings, seen)
        .into_iter()
        .map(|(_, credentials)| credentials)
        .collect();
    // A password that was made up for this run would never compare equal.
    if seen.secrets.replication.is_some() {
        credentials.insert(0, login::secret(settings, &password));
    }
    for wanted in credentials {
        report.info(format!(
            "secret {}: would be {}",
            wanted.name,
            would(secrets::compare(run, &wanted).await?)
        ));
    }
    let text = manifest::render(&seen.facts, settings, image);
    report.info(format!(
        "configmap {}: would be {}",
        settings.manifest_map(),
        would(publish::compare(run, settings, &text).await?)
    ));
    report.info(format!("the manifest:\n{text}"));
    report.info("dry run: nothing was changed");
    Ok(())
}

fn would(written: secrets::Written) -> &'static str {
    match written {
        secrets::Written::Created => "created",
        secrets::Written::Changed => "changed",
        secrets::Written::Unchanged => "left as it is",
    }
}

/// The end of the log.
pub fn ready(run: &Run, settings: &Settings, seen: &Seen) {
    let report = &run.report;
    report.fact(
        "system_identifier",
        seen.facts.server.identity.system_identifier.to_string(),
    );
    report.fact("sslmode", seen.facts.tls.sslmode.as_str());
    report.fact("manifest", settings.manifest_map());
    report.step("Ready", "ready for replication setup");
    if settings.source_auth == SourceAuth::Standby {
        report.info(
            "the target replicates as standby: nothing of the source's pg_hba was changed, \
            no pod restarted",
        );
    }
    report.info("next: run replica-migration-extract-certs, then read the manifest and apply it:");
    report.info(publish::next_command(&run.namespace, settings));
}
