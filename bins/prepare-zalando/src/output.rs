//! What a person reads: the findings, the plan of a dry run, and the next step.

use job::{
    context::JobContext,
    error::{Error, Result},
    report::Reporter,
};

use crate::{
    cluster_manifest,
    facts::Facts,
    findings::{Finding, Verdict},
    image::Image,
    manifest_config_map,
    observation::Observation,
    replication_login,
    secrets::{self, Outcome},
    settings::{Settings, SourceAuth},
    source_change::Required,
};

/// Reports which source was observed, and how it is reached.
pub fn observed(report: &Reporter, facts: &Facts) {
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

/// Reports the findings that do not stop this program: one line for all that are handled, and a
/// line and an Event for each that the user decides on.
pub fn findings(report: &Reporter, found: &[Finding]) {
    let handled: Vec<&Finding> = with_verdict(found, Verdict::Handled).collect();
    if !handled.is_empty() {
        report.step("FindingsHandled", folded(&handled));
    }
    for finding in with_verdict(found, Verdict::Decide) {
        report.warning(&finding.event_reason(), finding.to_string());
    }
}

fn with_verdict(found: &[Finding], verdict: Verdict) -> impl Iterator<Item = &Finding> {
    found
        .iter()
        .filter(move |finding| finding.verdict == verdict)
}

fn folded(handled: &[&Finding]) -> String {
    let all: Vec<String> = handled
        .iter()
        .map(|finding| format!("{} [{}]", finding.found, finding.label()))
        .collect();
    format!("handled, nothing to do: {}", all.join("; "))
}

/// Refuses if there is a blocker. A single one becomes the error; several are listed, and the error
/// names them all.
///
/// # Errors
/// Refused.
pub fn refuse(report: &Reporter, found: &[Finding]) -> Result<()> {
    let blockers: Vec<&Finding> = with_verdict(found, Verdict::Blocker).collect();
    match blockers.as_slice() {
        [] => Ok(()),
        [one] => Err(one.as_error()),
        several => {
            for finding in several {
                report.info(format!("✗ {finding}"));
            }
            let all: Vec<&str> = several.iter().map(|one| one.found.as_str()).collect();
            Err(
                Error::refused(format!("{} blockers: {}", several.len(), all.join("; ")))
                    .hint("see the hint of each blocker above; nothing was changed"),
            )
        }
    }
}

/// Reports what would be done, and prints the manifest.
///
/// # Errors
/// Those of [`replication_login::password`] and of rendering, besides the API's.
pub async fn dry_run(
    run: &JobContext,
    settings: &Settings,
    observed: &Observation,
    required: &Required,
    image: &Image,
) -> Result<()> {
    let report = &run.report;
    if let Some(mb) = required.wal_keep_mb {
        report.info(format!(
            "would raise wal_keep_size to {mb} MB in postgresql {}",
            settings.source_cluster
        ));
    }
    if let Some(role) = required.admitted_role {
        report.info(format!(
            "would add a line for {role} to pg_hba in postgresql {}: its pods restart",
            settings.source_cluster
        ));
    }
    let password = replication_login::password(run, settings).await?;
    for change in replication_login::plan(
        settings,
        &observed.facts.cnpg_roles,
        observed.facts.login.password,
        &password,
    ) {
        report.info(format!("would do: {}", change.description));
    }
    let mut credentials: Vec<_> = replication_login::promotion_credentials(settings, observed)
        .into_iter()
        .map(|(_, credentials)| credentials)
        .collect();
    // A password generated for this run never equals a stored one.
    if observed.secrets.replication.is_some() {
        credentials.insert(0, replication_login::secret(settings, &password));
    }
    for wanted in credentials {
        report.info(format!(
            "secret {}: would be {}",
            wanted.name,
            planned(secrets::compare(run, &wanted).await?)
        ));
    }
    let text = cluster_manifest::render(&observed.facts, settings, image)?;
    report.info(format!(
        "configmap {}: would be {}",
        settings.manifest_map(),
        planned(manifest_config_map::compare(run, settings, &text).await?)
    ));
    report.info(format!("the manifest:\n{text}"));
    report.info("dry run: nothing was changed");
    Ok(())
}

fn planned(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Created => "created",
        Outcome::Changed => "changed",
        Outcome::Unchanged => "left unchanged",
    }
}

/// Reports success, and the command that applies the manifest.
pub fn ready(run: &JobContext, settings: &Settings, observed: &Observation) {
    let report = &run.report;
    report.fact(
        "system_identifier",
        observed.facts.server.identity.system_identifier.to_string(),
    );
    report.fact("sslmode", observed.facts.tls.sslmode.as_str());
    report.fact("manifest", settings.manifest_map());
    report.step("Ready", "ready for replication setup");
    if settings.source_auth == SourceAuth::Standby {
        report.info(
            "the target replicates as standby: the source's pg_hba is unchanged, and no pod was \
             restarted",
        );
    }
    report.info("next: run replica-migration-extract-certs, then read the manifest and apply it:");
    report.info(manifest_config_map::apply_command(&run.namespace, settings));
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::report::Format;

    #[test]
    fn handled_findings_are_folded_into_one_line() {
        let one = Finding::handled("md5-passwords", "", "md5 passwords of app", "");
        let other = Finding::handled("preloaded-library", "bg_mon", "bg_mon is not preloaded", "");
        assert_eq!(
            folded(&[&one, &other]),
            "handled, nothing to do: md5 passwords of app [md5-passwords]; bg_mon is not preloaded \
             [preloaded-library:bg_mon]"
        );
    }

    #[test]
    fn only_blockers_refuse_and_one_of_them_keeps_its_hint() {
        let report = Reporter::new("test", Format::Text);
        let decide = Finding::decide(
            "data-checksums",
            "",
            "data checksums are off",
            "enable them",
        );
        let blocker = Finding::blocker("tablespace", "fast", "tablespace fast exists", "drop it");
        assert!(refuse(&report, std::slice::from_ref(&decide)).is_ok());
        let error = refuse(&report, &[decide, blocker.clone()]).unwrap_err();
        assert_eq!(error.to_string(), "tablespace fast exists");
        assert_eq!(error.next_step(), Some("drop it"));
        let error = refuse(&report, &[blocker.clone(), blocker]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("2 blockers: tablespace fast exists; ")
        );
    }
}
