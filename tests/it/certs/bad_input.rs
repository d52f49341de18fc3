//! Invalid input: each case ends with the documented exit code and one line that says what is wrong
//! and what to do, and changes nothing.

use std::net::Ipv4Addr;

use harness::source::{POSTGRES_PORT, SourceOptions};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use super::environment::{CA_OF_SOURCE, Environment, NAMESPACE, SOON, authority, ends, server_for};

const ROLE: &str = "replica-migration-extract-certs";

#[tokio::test]
async fn a_wrong_setting_is_refused_with_a_hint_and_nothing_changes() {
    let environment = Environment::start(SourceOptions::default()).await;
    let before = environment.state().await;
    let unused = environment.plane.instance().address(251).to_string();
    let cases: &[(&str, Option<&str>, i32, &str)] = &[
        (
            "SOURCE_CLUSTER",
            None,
            2,
            "the variable SOURCE_CLUSTER is missing",
        ),
        ("TARGET_CLUSTER", Some(""), 2, "a Kubernetes name is empty"),
        ("SOURCE_HOST", Some(" "), 2, "it is empty"),
        (
            "SOURCE_SSLMODE",
            Some("prefer"),
            2,
            "unknown variant `prefer`",
        ),
        ("CERT_MIN_DAYS", Some("a month"), 2, "invalid digit"),
        (
            "SOURCE_CLUSTER",
            Some("another"),
            2,
            "cannot get resource \"postgresqls\"",
        ),
        (
            "SOURCE_HOST",
            Some("mastodon-postgresql-rw.mastodon.svc"),
            2,
            "does not cover mastodon-postgresql-rw.mastodon.svc",
        ),
        (
            "CERT_MIN_DAYS",
            Some("1000"),
            3,
            "and CERT_MIN_DAYS is 1000",
        ),
        ("SOURCE_HOSTADDR", Some(&unused), 1, "Connection refused"),
        ("SOURCE_PORT", Some("1"), 1, "Connection refused"),
    ];
    for (key, value, code, says) in cases {
        let job = match value {
            Some(value) => environment.job().env(key, value),
            None => environment.job().without(key),
        };
        let ended = job.run(SOON).await.unwrap();
        ends(&ended, *code, &[says, "→"]);
        assert_eq!(environment.state().await, before, "{key}={value:?}");
    }
    // The hint for a host that the certificate does not cover lists the covered names, and
    // verify-ca works with any Service.
    let replicas = environment
        .job()
        .env("SOURCE_HOST", "mastodon-postgresql-repl.mastodon.svc");
    ends(
        &replicas.run(SOON).await.unwrap(),
        2,
        &[
            "mastodon-postgresql.mastodon.svc, ",
            "or SOURCE_SSLMODE=verify-ca",
        ],
    );
    let replicas = environment
        .job()
        .env("SOURCE_HOST", "mastodon-postgresql-repl.mastodon.svc")
        .env("SOURCE_SSLMODE", "verify-ca");
    ends(
        &replicas.run(SOON).await.unwrap(),
        0,
        &["sslmode verify-ca"],
    );
}

/// The Secret, its wrong contents, the exit code, and the expected texts.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], i32, &'a [&'a str]);

#[tokio::test]
async fn a_wrong_secret_is_refused_with_a_hint_and_nothing_changes() {
    let environment = Environment::start(SourceOptions::default()).await;
    let (server, ca) = (
        environment.data("mastodon-postgresql-server").await,
        environment.data(CA_OF_SOURCE).await,
    );
    let other = authority("another");
    let fresh = server_for(&other, 365);
    let ended = server_for(&other, -1);
    let soon = server_for(&other, 10);
    let login = environment.source.credentials().standby.clone();
    let cases: &[Case] = &[
        (
            CA_OF_SOURCE,
            &[("ca.crt", other.certificate())],
            3,
            &["was not signed by this CA, but by CN=mastodon root"],
        ),
        (
            CA_OF_SOURCE,
            &[("ca.crt", "no certificate")],
            3,
            &["reading key ca.crt of secret mastodon-postgresql-ca: it holds no certificate"],
        ),
        (
            CA_OF_SOURCE,
            &[("ca.crt", "")],
            3,
            &["key ca.crt of secret mastodon-postgresql-ca does not exist"],
        ),
        (
            "mastodon-postgresql-server",
            &[("tls.crt", &fresh)],
            3,
            &["was not signed by this CA, but by CN=another"],
        ),
        (
            "zalando-streaming-replica",
            &[("password", "")],
            3,
            &["has no text under password", "→ run prepare-zalando first"],
        ),
        (
            "zalando-streaming-replica",
            &[("password", "wrong")],
            2,
            &[
                "password authentication failed for user \"standby\"",
                "→ the source does not admit standby; run prepare-zalando again",
            ],
        ),
        (
            "zalando-streaming-replica",
            &[("username", "absent")],
            2,
            &["user \"absent\""],
        ),
    ];
    for (name, data, code, says) in cases {
        let whole = environment.data(name).await;
        environment.overwrite(name, data).await;
        let before = environment.state().await;
        let ended = environment.run().await;
        ends(&ended, *code, says);
        assert_eq!(environment.state().await, before, "{name}: {says:?}");
        assert!(!ended.text().contains(&login), "{says:?}");
        let whole: Vec<(&str, &str)> = whole
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        environment.overwrite(name, &whole).await;
    }
    // The certificate matches the CA, but has expired, expires too soon, or is not the server's.
    for (certificate, code, says) in [
        (&ended, 3, "expired at"),
        (&soon, 3, "expires in 9 days"),
        (&fresh, 2, "certificate verify failed"),
    ] {
        environment
            .overwrite("mastodon-postgresql-server", &[("tls.crt", certificate)])
            .await;
        environment
            .overwrite(CA_OF_SOURCE, &[("ca.crt", other.certificate())])
            .await;
        let before = environment.state().await;
        ends(&environment.run().await, code, &[says, "→"]);
        assert_eq!(environment.state().await, before, "{says}");
    }
    // require verifies nothing, so there is only a warning.
    environment
        .overwrite("mastodon-postgresql-server", &[("tls.crt", &ended)])
        .await;
    let lenient = environment
        .job()
        .env("SOURCE_SSLMODE", "require")
        .run(SOON)
        .await
        .unwrap();
    ends(
        &lenient,
        0,
        &[
            "! verifying key tls.crt of secret mastodon-postgresql-server",
            "expired at",
            "sslmode require",
        ],
    );
    assert_eq!(environment.keys("zalando-replication-ca").await, ["reason"]);

    environment
        .overwrite(
            "mastodon-postgresql-server",
            &[("tls.crt", &server["tls.crt"])],
        )
        .await;
    environment
        .overwrite(CA_OF_SOURCE, &[("ca.crt", &ca["ca.crt"])])
        .await;
    for (name, says) in [
        (
            "zalando-streaming-replica",
            "secret zalando-streaming-replica does not exist → run prepare-zalando first",
        ),
        (
            CA_OF_SOURCE,
            "secret mastodon-postgresql-ca does not exist, but spec.tls.caSecretName of postgresql \
             mastodon-postgresql names it",
        ),
        (
            "mastodon-postgresql-server",
            "secret mastodon-postgresql-server does not exist, but spec.tls.secretName",
        ),
    ] {
        environment.delete(name).await;
        let before = environment.state().await;
        ends(&environment.run().await, 3, &[says]);
        assert_eq!(environment.state().await, before, "{says}");
    }
}

#[tokio::test]
async fn a_missing_permission_is_named() {
    let environment = Environment::start(SourceOptions::default()).await;
    let before = environment.state().await;
    let roles: Api<Role> = Api::namespaced(environment.plane.admin(), NAMESPACE);
    let whole = roles.get(ROLE).await.unwrap();
    let rules = whole.rules.clone().unwrap();
    let without = |verb: &str| {
        let mut rules = rules.clone();
        let is_about_secrets =
            |rule: &&mut PolicyRule| rule.resources.iter().flatten().any(|one| one == "secrets");
        rules
            .iter_mut()
            .filter(is_about_secrets)
            .for_each(|rule| rule.verbs.retain(|one| one != verb));
        rules.retain(|rule| !rule.verbs.is_empty());
        json!({"rules": rules})
    };
    for verb in ["get", "patch", "create"] {
        roles
            .patch(ROLE, &PatchParams::default(), &Patch::Merge(without(verb)))
            .await
            .unwrap();
        let words = format!("cannot {verb} resource \"secrets\"");
        ends(
            &environment.run().await,
            2,
            &[&words, "→ the Role of this step lacks the verb named above"],
        );
        assert_eq!(environment.state().await, before, "{verb}");
    }
    roles
        .patch(
            ROLE,
            &PatchParams::default(),
            &Patch::Merge(json!({"rules": rules})),
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn a_signal_and_an_unreachable_api_server_end_it_as_transient_and_a_rerun_succeeds() {
    let environment = Environment::start(SourceOptions::default()).await;
    let before = environment.state().await;
    // A source that accepts connections and does not answer until it is relayed.
    let address = environment.plane.instance().address(250);
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let job = || {
        environment
            .job()
            .env("SOURCE_HOSTADDR", &address.to_string())
            .env("SOURCE_PORT", &port)
    };

    let running = job().start().await.unwrap();
    let _silent = listener.accept().await.unwrap();
    running.terminate();
    ends(
        &running.wait(SOON).await.unwrap(),
        1,
        &["asked to end (SIGTERM)", "→ run the step again"],
    );

    let running = job().start().await.unwrap();
    let (first, _) = listener.accept().await.unwrap();
    let leader = environment.source.leader().await.unwrap().address();
    environment.plane.stop_api_server().await;
    let forward = async {
        tokio::join!(relay(first, leader), async {
            loop {
                let (next, _) = listener.accept().await.unwrap();
                relay(next, leader).await;
            }
        })
    };
    let ended = tokio::select! {
        ended = running.wait(SOON) => ended.unwrap(),
        _ = forward => unreachable!("it runs forever"),
    };
    ends(
        &ended,
        1,
        &[
            "the source admits it as a standby",
            "✗ reading Secret zalando-replication-tls: kubernetes api",
        ],
    );
    environment.plane.start_api_server().await.unwrap();
    assert_eq!(environment.state().await, before);
    ends(
        &environment.run().await,
        0,
        &["Created secret: zalando-replication-ca (CA certificate)"],
    );
}

async fn relay(mut client: TcpStream, leader: Ipv4Addr) {
    let mut server = TcpStream::connect((leader, POSTGRES_PORT)).await.unwrap();
    // Either side may close the connection at any time.
    copy_bidirectional(&mut client, &mut server).await.ok();
}
