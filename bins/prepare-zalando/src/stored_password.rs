//! Passwords as PostgreSQL stores them in pg_authid.rolpassword. They are computed and compared by
//! this program, so no password is ever part of an SQL statement.
//!
//! Formats: `md5` + hex(md5(password + role)), and
//! `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` with the keys of RFC 5802 §3
//! (PostgreSQL documentation, catalog pg_authid).

use openssl::{
    base64, hash::MessageDigest, memcmp, pkcs5, pkey::PKey, rand, sha::sha256, sign::Signer,
};
use secrecy::{ExposeSecret as _, SecretString};

/// Letters and digits only: SASLprep does not change such a password, and shells and URLs need no
/// quoting for it.
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// Length of a generated password, as the operator's.
const PASSWORD_CHARS: usize = 64;

/// The formats in which PostgreSQL stores a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An md5 digest, which CloudNativePG's last pg_hba line rejects.
    Md5,
    /// A SCRAM-SHA-256 verifier.
    Scram,
}

/// The format of a stored password; None for text that the server would not accept as one.
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

/// A SCRAM-SHA-256 verifier of a password, with a random salt.
pub fn verifier(password: &SecretString) -> SecretString {
    SecretString::from(postgres_protocol::password::scram_sha_256(
        password.expose_secret().as_bytes(),
    ))
}

/// Whether `stored` is a hash of `password` for `role`.
pub fn matches(stored: &SecretString, password: &SecretString, role: &str) -> bool {
    let (stored, password) = (stored.expose_secret(), password.expose_secret());
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

/// Generates a random password of 64 letters and digits.
///
/// # Errors
/// OpenSSL's, when it has no entropy.
pub fn new_password() -> Result<SecretString, openssl::error::ErrorStack> {
    let mut password = String::with_capacity(PASSWORD_CHARS);
    while password.len() < PASSWORD_CHARS {
        let mut bytes = [0; PASSWORD_CHARS];
        rand::rand_bytes(&mut bytes)?;
        // Bytes beyond the last whole multiple of the alphabet's length are discarded, so that all
        // characters are equally likely.
        let usable = bytes
            .iter()
            .filter(|byte| usize::from(**byte) < 256 - 256 % ALPHABET.len());
        let missing = PASSWORD_CHARS - password.len();
        password.extend(
            usable
                .take(missing)
                .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])),
        );
    }
    Ok(SecretString::from(password))
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
    /// would need SASLprep first. Neither the operator nor this program generates such passwords,
    /// and a wrong "no" would only refuse the migration.
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

    /// Created by PostgreSQL 17 for the password `pencil`: salt and keys of RFC 7677 §3.
    const RFC_7677: &str = concat!(
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==",
        "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
        ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
    );

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    #[test]
    fn the_verifier_of_the_rfcs_example_matches_its_password() {
        assert_eq!(kind(RFC_7677), Some(Kind::Scram));
        assert!(matches(&secret(RFC_7677), &secret("pencil"), "any"));
        assert!(!matches(&secret(RFC_7677), &secret("pencils"), "any"));
    }

    #[test]
    fn a_new_verifier_is_salted_and_matches_only_its_password() {
        let password = new_password().unwrap();
        let (one, other) = (verifier(&password), verifier(&password));
        assert_ne!(one.expose_secret(), other.expose_secret());
        assert!(
            matches(&one, &password, "streaming_replica")
                && matches(&other, &password, "streaming_replica")
        );
        assert!(!matches(
            &one,
            &new_password().unwrap(),
            "streaming_replica"
        ));
        assert_eq!(password.expose_secret().len(), PASSWORD_CHARS);
    }

    #[test]
    fn an_md5_hash_matches_only_for_its_role() {
        // select 'md5' || md5('secret' || 'standby')
        let stored = SecretString::from(format!("md5{}", "0".repeat(32)));
        assert_eq!(kind(stored.expose_secret()), Some(Kind::Md5));
        assert!(!matches(&stored, &secret("secret"), "standby"));
        let stored = SecretString::from(postgres_protocol::password::md5(b"secret", "standby"));
        assert!(matches(&stored, &secret("secret"), "standby"));
        assert!(!matches(&stored, &secret("secret"), "postgres"));
    }

    #[test]
    fn a_plaintext_password_is_not_taken_for_a_hash() {
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
