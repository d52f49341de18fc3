//! extract-certs against a real Patroni cluster with TLS and a real API server, as the Job of the
//! manifests runs it.

mod bad_input;
mod environment;

use std::process::Output;

use harness::{
    manifests::{self, access::rbac_is_exact},
    source::{Dcs, SourceOptions, Tls},
};
use kube::ResourceExt;
use serde_json::json;

use environment::{CA_OF_SOURCE, Environment, HOST, ends};

/// Attempts at a login whose error message may be lost.
const ATTEMPTS_MAX: u32 = 10;

#[tokio::test]
async fn the_files_of_a_source_with_tls_work_with_libpq_and_a_second_run_changes_nothing() {
    let environment = Environment::start(SourceOptions::default()).await;
    let ended = environment.run().await;
    eprintln!("{}", ended.text());
    ends(
        &ended,
        0,
        &[
            &format!("chains to key ca.crt of secret {CA_OF_SOURCE} and covers {HOST}"),
            "client certificate: issued by the source's CA",
            "as standby: sslmode verify-full, TLSv1.3, client certificate /CN=standby",
            "the source admits it as a standby: system identifier ",
            "Created secret: zalando-replication-ca (CA certificate)",
            "secret: zalando-replication-tls (client cert + key)",
        ],
    );
    assert_eq!(
        ended.termination_json(),
        json!({"verdict": "done", "sslmode": "verify-full", "client_certificate": true})
    );
    let secrets = environment.state().await;
    let tls = environment.secret("zalando-replication-tls").await;
    assert_eq!(tls.type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!(tls.labels()["cnpg.io/reload"], "true");
    environment.leaks_no_secret(&ended).await;

    let presented = environment
        .psql(
            "sslcert=tls.crt sslkey=tls.key",
            "select client_dn from pg_stat_ssl where pid = pg_backend_pid()",
        )
        .await;
    assert_eq!(text(&presented), "/CN=standby");
    let walsender = environment
        .psql(
            "sslcert=tls.crt sslkey=tls.key replication=true",
            "IDENTIFY_SYSTEM",
        )
        .await;
    assert!(walsender.status.success(), "{}", text(&walsender));

    let again = environment.run().await;
    ends(
        &again,
        0,
        &[
            "reused from an earlier run, still valid",
            "Unchanged secret: zalando-replication-ca",
            "Unchanged secret: zalando-replication-tls",
        ],
    );
    assert_eq!(environment.state().await, secrets);

    let soon_too_short = environment
        .job()
        .env("CERT_MIN_DAYS", "120")
        .run(environment::SOON)
        .await
        .unwrap();
    ends(
        &soon_too_short,
        0,
        &[
            "client certificate: issued",
            "Unchanged secret: zalando-replication-ca",
        ],
    );
    assert_ne!(environment.state().await, secrets);
    environment
        .events_have_reasons(&[
            "CertificatesVerified",
            "HandshakeDone",
            "ReplicationAdmitted",
            "CaSecretWritten",
            "CertificatesReady",
            "ClientSecretWritten",
        ])
        .await;
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
    .trim()
    .to_owned()
}

/// The Secret holds the server's certificate, written by hand. The source rejects it, because it is
/// not valid for a client.
#[tokio::test]
async fn contents_written_by_hand_are_replaced_and_the_ca_key_may_be_added_later() {
    let environment = Environment::start(SourceOptions {
        tls: Tls::ServerWithoutCaKey,
        ..SourceOptions::default()
    })
    .await;
    let server = environment.data("mastodon-postgresql-server").await;
    let by_hand = [
        ("tls.crt", server["tls.crt"].as_str()),
        ("tls.key", server["tls.key"].as_str()),
        ("note", "by hand"),
    ];
    environment
        .create("zalando-replication-tls", "kubernetes.io/tls", &by_hand)
        .await;
    environment
        .create(
            "zalando-replication-ca",
            "Opaque",
            &[("ca.crt", "an old one"), ("ca.key", "by hand")],
        )
        .await;

    let ended = environment.run().await;
    ends(
        &ended,
        0,
        &[&format!(
            "client certificate: none, the password is sufficient: secret {CA_OF_SOURCE} does not \
             hold the CA's private key"
        )],
    );
    let tls = environment.secret("zalando-replication-tls").await;
    assert_eq!(tls.type_.as_deref(), Some("Opaque"));
    assert_eq!(
        environment.keys("zalando-replication-tls").await,
        ["reason"]
    );
    assert_eq!(environment.keys("zalando-replication-ca").await, ["ca.crt"]);
    // The server closes the connection right after its message, and libpq may only notice that it
    // was closed.
    let mut refused = String::new();
    for _ in 0..ATTEMPTS_MAX {
        let ended = environment
            .psql_with(
                &[
                    ("sslcert", &server["tls.crt"]),
                    ("sslkey", &server["tls.key"]),
                ],
                "select 1",
            )
            .await;
        assert!(!ended.status.success());
        refused = text(&ended);
        if !refused.contains("closed the connection unexpectedly") {
            break;
        }
    }
    assert!(refused.contains("unsupported certificate"), "{refused}");

    // An additional CA, whose key is available: the source rejects what it signs.
    let (own, source_ca) = (
        environment::authority("additional"),
        environment.data(CA_OF_SOURCE).await["ca.crt"].clone(),
    );
    environment
        .overwrite(
            CA_OF_SOURCE,
            &[
                ("ca.crt", &(source_ca.clone() + own.certificate())),
                ("ca.key", own.key()),
            ],
        )
        .await;
    let ended = environment.run().await;
    ends(
        &ended,
        0,
        &[
            "client certificate: issued",
            "the source rejects a certificate signed by its CA, and accepts the login without it",
            "unknown ca",
        ],
    );
    assert_eq!(
        environment.keys("zalando-replication-tls").await,
        ["reason"]
    );

    environment.delete("zalando-replication-ca").await;
    let (root, key) = environment.a_root_that_the_source_trusts().await;
    environment
        .overwrite(CA_OF_SOURCE, &[("ca.crt", &root), ("ca.key", &key)])
        .await;
    let ended = environment.run().await;
    ends(
        &ended,
        0,
        &[
            "client certificate /CN=standby",
            "secret: zalando-replication-tls (client cert + key)",
        ],
    );
    assert_eq!(
        environment
            .secret("zalando-replication-tls")
            .await
            .type_
            .as_deref(),
        Some("kubernetes.io/tls")
    );

    // Everything that the Role grants has been used by now.
    let objects = manifests::example(environment.plane.setup()).unwrap();
    let is_of_step = |object: &&serde_json::Value| {
        object["metadata"]["name"] == "replica-migration-extract-certs"
    };
    let objects: Vec<_> = objects.iter().filter(is_of_step).cloned().collect();
    rbac_is_exact(&environment.plane.audit().unwrap(), &objects).unwrap();
}

#[tokio::test]
async fn a_certificate_that_spilo_generates_is_only_accepted_without_verification() {
    let environment = Environment::start(SourceOptions {
        tls: Tls::SelfSigned,
        dcs: Dcs::ConfigMaps,
        ..SourceOptions::default()
    })
    .await;
    let before = environment.state().await;
    let ended = environment.run().await;
    ends(
        &ended,
        2,
        &[
            "SOURCE_SSLMODE is verify-full, but the postgresql resource has no spec.tls",
            "→ set SOURCE_SSLMODE=require",
        ],
    );
    assert_eq!(environment.state().await, before);

    let ended = environment
        .job()
        .env("SOURCE_SSLMODE", "require")
        .run(environment::SOON)
        .await
        .unwrap();
    ends(
        &ended,
        0,
        &[
            "! sslmode require encrypts, but does not verify the source's identity",
            "sslmode require, TLSv1.3",
        ],
    );
    for name in ["zalando-replication-ca", "zalando-replication-tls"] {
        assert_eq!(
            environment.keys(name).await,
            ["reason"],
            "{name}: a CA file would make libpq verify the chain"
        );
    }
    let written = environment.state().await;
    ends(
        &environment
            .job()
            .env("SOURCE_SSLMODE", "require")
            .run(environment::SOON)
            .await
            .unwrap(),
        0,
        &[
            "Unchanged secret: zalando-replication-ca (no CA certificate: the postgresql resource \
             has no spec.tls",
        ],
    );
    assert_eq!(environment.state().await, written);
}
