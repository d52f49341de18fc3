//! Another kind of source: operator 2.x, without a certificate.

use harness::source::{Checksums, Dcs, Hashes, SourceOptions, Tls};

use super::environment::Environment;

#[tokio::test]
async fn a_source_of_operator_2_without_a_certificate_is_followed_without_verification_or_md5() {
    let options = SourceOptions {
        dcs: Dcs::ConfigMaps,
        hashes: Hashes::Scram,
        checksums: Checksums::On,
        tls: Tls::SelfSigned,
        ..SourceOptions::default()
    };
    let environment = Environment::start(options).await;
    let done = environment.run().await;
    assert_eq!(done.exit_code, 0, "{done}");
    assert!(
        done.text().contains("set SOURCE_SSLMODE=require"),
        "the other steps would fail: {done}"
    );
    let cluster = &environment.manifest().await[0];
    let external = &cluster["spec"]["externalClusters"][0];
    assert_eq!(external["connectionParameters"]["sslmode"], "require");
    assert_eq!(external.get("sslRootCert"), None);
    let hba = cluster["spec"]["postgresql"]["pg_hba"].as_array().unwrap();
    assert!(
        !hba.iter().any(|line| line == "hostssl all all all md5"),
        "{hba:?}"
    );
    assert!(
        environment
            .secret_text("database-owner", "password")
            .await
            .starts_with("SCRAM-SHA-256$")
    );
    assert!(
        !done.text().contains("data checksums are off") && !done.text().contains("stored as md5"),
        "{done}"
    );
}
