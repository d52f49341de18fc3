//! object_store's cryptography by OpenSSL, which the program links anyway. Signing a request to S3
//! needs only SHA-256 and HMAC (AWS, *Signature Version 4*).

use object_store::{
    Error, Result,
    client::{
        CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer, SigningAlgorithm,
    },
};
use openssl::{error::ErrorStack, md::Md, md_ctx::MdCtx, pkey::PKey, sha::Sha256};

/// OpenSSL as object_store's provider of cryptography.
#[derive(Debug)]
pub struct OpenSsl;

impl CryptoProvider for OpenSsl {
    fn digest(&self, algorithm: DigestAlgorithm) -> Result<Box<dyn DigestContext>> {
        sha256(&algorithm)?;
        Ok(Box::new(Digest {
            context: Sha256::new(),
            digest: [0; 32],
        }))
    }

    fn hmac(&self, algorithm: DigestAlgorithm, secret: &[u8]) -> Result<Box<dyn HmacContext>> {
        sha256(&algorithm)?;
        let keyed = || {
            let mut context = MdCtx::new()?;
            context.digest_sign_init(Some(Md::sha256()), &*PKey::hmac(secret)?)?;
            Ok(context)
        };
        Ok(Box::new(Hmac {
            context: keyed().map_err(failed)?,
            outcome: Ok(()),
            tag: Vec::new(),
        }))
    }

    fn sign(&self, algorithm: SigningAlgorithm, _pem: &[u8]) -> Result<Box<dyn Signer>> {
        Err(unknown(&algorithm))
    }
}

struct Digest {
    context: Sha256,
    digest: [u8; 32],
}

impl DigestContext for Digest {
    fn update(&mut self, data: &[u8]) {
        self.context.update(data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        self.digest = std::mem::replace(&mut self.context, Sha256::new()).finish();
        Ok(&self.digest)
    }
}

struct Hmac {
    context: MdCtx,
    /// The first error, because `update` returns none.
    outcome: std::result::Result<(), ErrorStack>,
    tag: Vec<u8>,
}

impl HmacContext for Hmac {
    fn update(&mut self, data: &[u8]) {
        if self.outcome.is_ok() {
            self.outcome = self.context.digest_sign_update(data);
        }
    }

    fn finish(&mut self) -> Result<&[u8]> {
        let outcome = std::mem::replace(&mut self.outcome, Ok(()));
        outcome
            .and_then(|()| self.context.digest_sign_final_to_vec(&mut self.tag))
            .map_err(failed)?;
        Ok(&self.tag)
    }
}

fn sha256(algorithm: &DigestAlgorithm) -> Result<()> {
    match algorithm {
        DigestAlgorithm::Sha256 => Ok(()),
        other => Err(unknown(other)),
    }
}

fn unknown(algorithm: &dyn std::fmt::Debug) -> Error {
    Error::NotSupported {
        source: format!("{algorithm:?} is not part of S3's signatures").into(),
    }
}

fn failed(error: ErrorStack) -> Error {
    Error::Generic {
        store: "openssl",
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use platform::hex::encode;

    /// RFC 4231, test case 2, and FIPS 180-2, appendix B.1.
    #[test]
    fn published_test_vectors_match_in_pieces_of_any_size() {
        let mut hmac = OpenSsl.hmac(DigestAlgorithm::Sha256, b"Jefe").unwrap();
        hmac.update(b"what do ya want ");
        hmac.update(b"for nothing?");
        let tag = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(encode(hmac.finish().unwrap()), tag);

        let mut digest = OpenSsl.digest(DigestAlgorithm::Sha256).unwrap();
        digest.update(b"a");
        digest.update(b"bc");
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(encode(digest.finish().unwrap()), sum);
    }
}
