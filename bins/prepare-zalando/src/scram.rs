//! Stored passwords as PostgreSQL keeps them in pg_authid.rolpassword, computed and compared on
//! this side of the connection, so that no password is ever part of a statement.
//!
//! Formats: `md5` + hex(md5(password + role)), and
//! `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` with the keys of RFC 5802 §3
//! (PostgreSQL documentation, catalog pg_authid).

use openssl::{
    base64, hash::MessageDigest, memcmp, pkcs5, pkey::PKey, rand, sha::sha256, sign::Signer,
};

use crate::hidden::Hidden;

/// Letters and digits only: such a password is the same before and after SASLprep, and survives
/// every shell and URL.
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// As long as the operator's own.
const PASSWORD_CHARS: usize = 64;

/// How a password is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The old digest; CloudNativePG's last pg_hba rule refuses it.
    Md5,
    /// The verifier.
    Scram,
}

/// What kind of hash this is; None for anything that the server would not accept as one.
pub fn kind(stored: &str) -> Option<Kind> {
    match stored {
        md5 if md5.strip_prefix("md5").is_some_and(is_digest) => Some(Kind::Md5),
        scram if parsed(scram).is_some() => Some(Kind::Scram),
        _ => None,
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 32
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A verifier with a fresh salt.
pub fn verifier(password: &Hidden) -> Hidden {
    Hidden::new(postgres_protocol::password::scram_sha_256(
        password.reveal().as_bytes(),
    ))
}

/// Whether `stored` is the hash of `password` for `role`.
pub fn matches(stored: &Hidden, password: &Hidden, role: &str) -> bool {
    let (stored, password) = (stored.reveal(), password.reveal());
    match kind(stored) {
        Some(Kind::Md5) => same(
            postgres_protocol::password::md5(password.as_bytes(), role).as_bytes(),
            stored.as_bytes(),
        ),
        Some(Kind::Scram) => {
            parsed(stored).is_some_and(|verifier| verifier.accepts(password).unwrap_or(false))
        }
        None => false,
    }
}

/// A new random password.
///
/// # Errors
/// OpenSSL has no entropy.
pub fn new_password() -> Result<Hidden, openssl::error::ErrorStack> {
    let mut password = String::with_capacity(PASSWORD_CHARS);
    while password.len() < PASSWORD_CHARS {
        let mut bytes = [0; PASSWORD_CHARS];
        rand::rand_bytes(&mut bytes)?;
        // Bytes beyond the last whole multiple of the alphabet are thrown away, so that each letter
        // is as likely as any other.
        let fair = bytes
            .iter()
            .filter(|byte| usize::from(**byte) < 256 - 256 % ALPHABET.len());
        let missing = PASSWORD_CHARS - password.len();
        password.extend(
            fair.take(missing)
                .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])),
        );
    }
    Ok(Hidden::new(password))
}

struct Verifier {
    iterations: usize,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
}

fn parsed(stored: &str) -> Option<Verifier> {
    let (parameters, keys) = stored.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
    let (iterations, salt) = parameters.split_once(':')?;
    let (stored_key, server_key) = keys.split_once(':')?;
    let verifier = Verifier {
        iterations: iterations.parse().ok()?,
        salt: base64::decode_block(salt).ok()?,
        stored_key: base64::decode_block(stored_key).ok()?,
    };
    (verifier.stored_key.len() == 32 && base64::decode_block(server_key).ok()?.len() == 32)
        .then_some(verifier)
}

impl Verifier {
    /// StoredKey = H(HMAC(Hi(password, salt, iterations), "Client Key")). Passwords outside ASCII
    /// would need SASLprep first; the operator and this step make none, and a false "no" is found
    /// by the login that follows.
    fn accepts(&self, password: &str) -> Result<bool, openssl::error::ErrorStack> {
        let mut salted = [0; 32];
        pkcs5::pbkdf2_hmac(
            password.as_bytes(),
            &self.salt,
            self.iterations,
            MessageDigest::sha256(),
            &mut salted,
        )?;
        let client_key = Signer::new(MessageDigest::sha256(), &*PKey::hmac(&salted)?)?
            .sign_oneshot_to_vec(b"Client Key")?;
        Ok(same(&sha256(&client_key), &self.stored_key))
    }
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && memcmp::eq(a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by PostgreSQL 17 for the password `pencil`: the salt and keys of RFC 7677 §3.
    const RFC_7677: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn the_example_of_the_rfc_is_recognised() {
        assert_eq!(kind(RFC_7677), Some(Kind::Scram));
        assert!(matches(
            &Hidden::new(RFC_7677),
            &Hidden::new("pencil"),
            "any"
        ));
        assert!(!matches(
            &Hidden::new(RFC_7677),
            &Hidden::new("pencils"),
            "any"
        ));
    }

    #[test]
    fn a_verifier_of_ours_fits_its_password_and_no_other_and_is_salted() {
        let password = new_password().unwrap();
        let (one, other) = (verifier(&password), verifier(&password));
        assert_ne!(one.reveal(), other.reveal());
        assert!(
            matches(&one, &password, "streaming_replica")
                && matches(&other, &password, "streaming_replica")
        );
        assert!(!matches(
            &one,
            &new_password().unwrap(),
            "streaming_replica"
        ));
        assert_eq!(password.reveal().len(), PASSWORD_CHARS);
    }

    #[test]
    fn an_md5_hash_depends_on_the_role() {
        // select 'md5' || md5('secret' || 'standby')
        let stored = Hidden::new(format!("md5{}", "0".repeat(32)));
        assert_eq!(kind(stored.reveal()), Some(Kind::Md5));
        assert!(!matches(&stored, &Hidden::new("secret"), "standby"));
        let stored = Hidden::new(postgres_protocol::password::md5(b"secret", "standby"));
        assert!(matches(&stored, &Hidden::new("secret"), "standby"));
        assert!(!matches(&stored, &Hidden::new("secret"), "postgres"));
    }

    #[test]
    fn a_cleartext_is_no_hash() {
        for text in [
            "",
            "md5",
            "md5rotated0000000000000000000000000",
            "secret",
            "SCRAM-SHA-256$4096:x$y:z",
        ] {
            assert_eq!(kind(text), None);
        }
    }
}
