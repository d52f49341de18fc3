//! What a person reads: the findings, the plan of a dry run, and the next step.

use job::{context::JobContext, error::Result, report::Reporter};
use platform::kubernetes::manifest;
use protocol::finding::{self, Finding};

use crate::{
    cluster_manifest,
    facts::Facts,
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

/// Reports a line for each finding and one for all that are handled; a finding that the user has to
/// act on also becomes an Event.
pub fn findings(report: &Reporter, found: &[Finding]) {
    for line in finding::lines(found) {
        let text = format!("  {}", line.text);
        match line.event {
            None => report.info(text),
            Some(reason) => report.warning(&reason, text),
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

/// Reports success, and the commands that hand the manifest over.
pub fn ready(run: &JobContext, settings: &Settings, observed: &Observation, text: &str) {
    let report = &run.report;
    report.fact(
        "system_identifier",
        observed.facts.server.identity.system_identifier.to_string(),
    );
    report.fact("sslmode", observed.facts.tls.sslmode.as_str());
    report.fact("manifest", settings.manifest_map());
    report.fact("manifest_sha256", manifest::digest(text));
    report.step("Ready", "ready for replication setup");
    if settings.source_auth == SourceAuth::Standby {
        report.info(
            "the target replicates as standby: the source's pg_hba is unchanged, and no pod was \
             restarted",
        );
    }
    report.info(
        "next: run replica-migration-extract-certs; then save the manifest, read it, keep it in \
         git, and apply it:",
    );
    for command in manifest_config_map::commands(&run.namespace, settings, text) {
        report.info(format!("  {command}"));
    }
}
