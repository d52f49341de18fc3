//! TLS towards a server, as libpq does it (src/interfaces/libpq/fe-secure-openssl.c, PostgreSQL
//! 17): what connects here must connect from pg_basebackup and from the target's WAL receiver, too.

use openssl::{
    error::ErrorStack,
    pkey::PKey,
    ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode, SslVersion},
    x509::{X509, store::X509StoreBuilder},
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{pki::Bundle, postgres::Credentials};
use job::{
    config::SslMode,
    error::{Error, Result},
};

/// OpenSSL's security level in Debian and therefore in CNPG's images: keys of at least 2048 bits,
/// no SHA-1. It does not depend on the OpenSSL of this program.
const SECURITY_LEVEL: u32 = 2;

/// A client certificate followed by its intermediate CAs, and its key, both PEM: libpq's sslcert
/// and sslkey.
#[derive(Clone)]
pub struct ClientCertificate {
    /// Certificates, the client's own first.
    pub chain: String,
    /// Private key.
    pub key: SecretString,
}

/// Returns a connector that verifies as libpq does. The check of the host name is set per session.
///
/// - `require` without a CA file checks nothing; with one it checks the chain, as `verify-ca` does.
/// - The CA file must hold the root: libpq sets no X509_V_FLAG_PARTIAL_CHAIN, an intermediate CA
///   alone is refused.
/// - TLS 1.2 at least, libpq's default of ssl_min_protocol_version.
pub(super) fn connector(mode: SslMode, credentials: &Credentials) -> Result<SslConnector> {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(failed)?;
    builder
        .set_min_proto_version(Some(SslVersion::TLS1_2))
        .map_err(failed)?;
    builder.set_security_level(SECURITY_LEVEL);
    match (mode, credentials.ca.as_deref()) {
        (SslMode::Require, None) => builder.set_verify(SslVerifyMode::NONE),
        (_, None) => {
            return Err(Error::config(format!(
                "sslmode {} needs a CA, and none is given",
                mode.as_str()
            ))
            .hint(
                "run extract-certs first; it writes the Secret zalando-replication-ca that this \
                 step mounts",
            ));
        }
        (_, Some(pem)) => trust(&mut builder, pem)?,
    }
    if let Some(client) = &credentials.client {
        set_client_certificate(&mut builder, client)?;
    }
    Ok(builder.build())
}

/// Replaces the roots of the machine, which the connector trusts by default.
fn trust(builder: &mut SslConnectorBuilder, pem: &[u8]) -> Result<()> {
    let mut store = X509StoreBuilder::new().map_err(failed)?;
    let bundle =
        Bundle::parse(pem).map_err(|error| Error::config("the CA file").caused_by(error))?;
    for certificate in bundle.certificates() {
        store.add_cert(certificate.clone()).map_err(failed)?;
    }
    builder.set_cert_store(store.build());
    builder.set_verify(SslVerifyMode::PEER);
    Ok(())
}

fn set_client_certificate(
    builder: &mut SslConnectorBuilder,
    client: &ClientCertificate,
) -> Result<()> {
    let mut chain = X509::stack_from_pem(client.chain.as_bytes())
        .map_err(failed)?
        .into_iter();
    let own = chain
        .next()
        .ok_or_else(|| Error::config("the client certificate's file holds no certificate"))?;
    builder.set_certificate(&own).map_err(failed)?;
    for issuer in chain {
        builder.add_extra_chain_cert(issuer).map_err(failed)?;
    }
    let key = PKey::private_key_from_pem(client.key.expose_secret().as_bytes()).map_err(failed)?;
    builder.set_private_key(&key).map_err(failed)?;
    builder.check_private_key().map_err(failed)
}

fn failed(error: ErrorStack) -> Error {
    Error::config("preparing tls").caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixStream, thread};

    use openssl::ssl::{SslAcceptor, SslStream, SslVerifyMode};

    use super::*;
    use crate::pki::authority::{Authority, bundle, self_signed};

    const LONG: (i64, i64) = (-10, 1000);

    fn towards(
        mode: SslMode,
        ca: Option<&str>,
        client: Option<ClientCertificate>,
    ) -> Result<SslConnector> {
        let credentials = Credentials {
            password: SecretString::default(),
            ca: ca.map(|pem| pem.as_bytes().to_vec()),
            client,
        };
        connector(mode, &credentials)
    }

    /// A handshake with a server that sends `chain`; whether the client accepts it.
    fn handshake(
        chain: &[&str],
        key: &str,
        connector: Result<SslConnector>,
        check_name: bool,
    ) -> bool {
        let (client, server) = UnixStream::pair().unwrap();
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        let (chain, key) = (
            bundle(chain),
            PKey::private_key_from_pem(key.as_bytes()).unwrap(),
        );
        acceptor.set_certificate(chain.leaf()).unwrap();
        for issuer in &chain.certificates()[1..] {
            acceptor.add_extra_chain_cert(issuer.clone()).unwrap();
        }
        acceptor.set_private_key(&key).unwrap();
        acceptor.set_verify(SslVerifyMode::NONE);
        let acceptor = acceptor.build();
        let server = thread::spawn(move || acceptor.accept(server).map(drop).is_ok());
        let configuration = connector
            .unwrap()
            .configure()
            .unwrap()
            .verify_hostname(check_name);
        let accepted = configuration
            .connect("db.ns.svc", client)
            .map(|mut stream: SslStream<_>| stream.read(&mut [0]).ok())
            .is_ok();
        assert_eq!(
            server.join().unwrap(),
            accepted,
            "both sides see the same end"
        );
        accepted
    }

    #[test]
    fn an_intermediate_ca_alone_is_no_anchor_as_in_libpq() {
        let root = Authority::root("root", LONG);
        let between = root.below("between", LONG);
        let (leaf, key) = between.server(&["db.ns.svc"], LONG);
        let with = |mode, ca: &[&str]| {
            handshake(
                &[&leaf, &between.pem],
                &key,
                towards(mode, Some(&ca.concat()), None),
                true,
            )
        };
        assert!(with(SslMode::VerifyFull, &[&root.pem]));
        assert!(with(SslMode::VerifyFull, &[&between.pem, &root.pem]));
        assert!(!with(SslMode::VerifyFull, &[&between.pem]));
    }

    #[test]
    fn require_checks_the_chain_as_soon_as_there_is_a_ca_file() {
        let (root, other) = (
            Authority::root("root", LONG),
            Authority::root("other", LONG),
        );
        let (leaf, key) = root.server(&["db.ns.svc"], LONG);
        let with = |ca: Option<&str>| {
            handshake(&[&leaf], &key, towards(SslMode::Require, ca, None), false)
        };
        assert!(with(None) && with(Some(&root.pem)) && !with(Some(&other.pem)));
    }

    #[test]
    fn only_verify_full_checks_the_name() {
        let root = Authority::root("root", LONG);
        let (leaf, key) = root.server(&["elsewhere"], LONG);
        let trusting = |mode| towards(mode, Some(&root.pem), None);
        assert!(!handshake(
            &[&leaf],
            &key,
            trusting(SslMode::VerifyFull),
            true
        ));
        assert!(handshake(
            &[&leaf],
            &key,
            trusting(SslMode::VerifyCa),
            false
        ));
    }

    #[test]
    fn unusable_credentials_are_refused_before_a_connection() {
        let (own, _) = self_signed(&["db"], LONG);
        let (_, other_key) = self_signed(&["db"], LONG);
        assert!(towards(SslMode::VerifyCa, None, None).is_err());
        assert!(towards(SslMode::VerifyCa, Some(""), None).is_err());
        let client = ClientCertificate {
            chain: own.clone(),
            key: other_key.into(),
        };
        assert!(towards(SslMode::VerifyCa, Some(&own), Some(client)).is_err());
    }
}
