//! The error type of all programs: its kind decides the exit code, its message contains the chain
//! of causes, and its hint says what the operator does next.

use std::{error::Error as StdError, fmt, process::ExitCode};

use crate::sqlstate::classify;
pub use protocol::failure::ErrorKind;
use protocol::failure::Failure;

type Source = Box<dyn StdError + Send + Sync>;

/// Kind, message, hint and cause. Displayed as `doing what: cause: cause`, without the hint.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Source>,
}

/// A result with the [`Error`] of these programs.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }
    }
    /// An error that another run may not meet, such as a server that does not answer.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Transient, message)
    }
    /// A setting, a permission or a mounted file is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }
    /// The state of the source or of the target does not allow the step.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }
    /// Manual intervention required: what was observed contradicts itself or the record.
    pub fn manual_intervention(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsafe, message)
    }
    /// Adds what the operator does next, unless the error has a hint: the innermost one is the most
    /// specific.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }
    /// Adds the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }
    /// The same error with another kind: a caller may know better what a cause means here.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }
    /// The kind, which decides the exit code.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
    /// The hint: what the operator does next.
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// The exit code of a finished program.
pub fn exit_code(result: &Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(error.kind.code()),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause: Option<&(dyn StdError + 'static)> =
            self.source.as_ref().map(|s| s.as_ref() as _);
        let mut previous = self.message.clone();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many libraries repeat their cause in their own text.
            if !previous.contains(&text) {
                write!(f, ": {text}")?;
            }
            previous = text;
            // The text of an [`Error`] contains its whole chain already.
            cause = if error.is::<Error>() {
                None
            } else {
                error.source()
            };
        }
        Ok(())
    }
}

impl StdError for Error {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self {
            kind: failure.kind,
            message: failure.message,
            hint: failure.hint,
            source: None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind,
            message: error.to_string(),
            hint: error.hint,
        }
    }
}

/// Adds `.context("doing what")` to results.
pub trait Context<T> {
    /// Puts what was being done in front of the error's message; keeps kind and hint.
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let mut error: Error = error.into();
            error.message = format!("{doing}: {}", error.message);
            error
        })
    }
}

impl From<kube::Error> for Error {
    /// Classifies by HTTP status. Config: 401, 403 and 404, which the operator fixes by changing
    /// manifests or settings. Refused: 400, 405, 413, 415 and 422, a request that the API server
    /// does not accept. Transient: every other status, and no answer.
    fn from(error: kube::Error) -> Self {
        let status = match error {
            kube::Error::Api(status) => *status,
            other => return Self::transient("kubernetes api").caused_by(without_status(other)),
        };
        let message = status.message;
        match status.code {
            401 => Self::config(format!("kubernetes api: {message}")).hint(
                "the service account's token is not accepted; does the ServiceAccount still exist?",
            ),
            // An API server that has just started has not loaded all Roles and answers that the
            // Role is not found, as it does for a Role that is missing. The two cannot be told
            // apart; another try costs less than a Job that ends in the middle of the cutover.
            403 if message.contains("RBAC: ") && message.contains("not found") => {
                Self::transient(format!("kubernetes api: {message}"))
                    .hint("if this stays: apply the step's manifests again, its Role is missing")
            }
            403 => Self::config(format!("kubernetes api: {message}")).hint(
                "the Role of this step lacks the verb named above, or does not name the object \
                 (resourceNames): apply the step's manifests again; where your object has another \
                 name, patch the Role as manifests/overlays/example shows",
            ),
            404 => Self::config(format!("kubernetes api: {message}"))
                .hint("check the names in the ConfigMap replica-migration"),
            400 | 405 | 413 | 415 | 422 => Self::refused(format!("kubernetes api: {message}")),
            _ => Self::transient(format!("kubernetes api: {message}")),
        }
    }
}

/// The cause of a call that got no answer, without kube's own words around it. The causes are named
/// one by one, because the Display of all of kube's errors takes its reader of kubeconfig files
/// into every program.
fn without_status(error: kube::Error) -> Source {
    match error {
        kube::Error::Service(cause) => cause,
        kube::Error::HyperError(cause) => cause.into(),
        kube::Error::HttpError(cause) => cause.into(),
        kube::Error::BuildRequest(cause) => cause.into(),
        kube::Error::ReadEvents(cause) => cause.into(),
        kube::Error::SerdeError(cause) => cause.into(),
        kube::Error::FromUtf8(cause) => cause.into(),
        _ => "an error that only a kubeconfig or a proxy can bring".into(),
    }
}

/// True for the status 404: the object, or its resource type, does not exist.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// True for the status 409: another writer was first, or the object exists already.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

impl From<tokio_postgres::Error> for Error {
    /// Classifies an error that the server reported by its SQLSTATE ([`classify`]). Of all others,
    /// a TLS error is Config, and the rest, such as a broken connection, is Transient.
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            let text = chain(&error);
            // OpenSSL's text for a chain or a name that does not match, and the client library's
            // for a server without TLS; waiting fixes neither.
            if text.contains("certificate verify failed") || text.contains("does not support TLS") {
                return Self::config("postgresql: tls")
                    .hint(
                        "the server's certificate does not fit the CA, the host name or the \
                         sslmode; run extract-certs, it names the reason",
                    )
                    .caused_by(error);
            }
            return Self::transient("postgresql").caused_by(error);
        };
        classify(db.code().code(), db.message()).into()
    }
}

fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::transient("input/output").caused_by(error)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::manual_intervention("unexpected json").caused_by(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_reads_from_the_outside_in_and_keeps_kind_and_hint() {
        let inner = Error::config("no such role").hint("run prepare-zalando");
        let outer = Err::<(), _>(inner)
            .context("reading roles")
            .context("preparing")
            .unwrap_err();
        assert_eq!(outer.to_string(), "preparing: reading roles: no such role");
        assert_eq!(outer.kind(), ErrorKind::Config);
        assert_eq!(outer.next_step(), Some("run prepare-zalando"));
    }

    #[test]
    fn a_failure_keeps_kind_chain_and_hint_both_ways() {
        let error = Error::config("reading the password")
            .hint("mount the Secret")
            .caused_by(std::io::Error::other("no such file"));
        let failure = Failure::from(error);
        assert_eq!(
            failure,
            Failure::config("reading the password: no such file").hint("mount the Secret")
        );
        let error = Error::from(failure.clone());
        assert_eq!(Failure::from(error), failure);
    }

    #[test]
    fn the_hint_that_knows_most_wins() {
        assert_eq!(
            Error::refused("x").hint("inner").hint("outer").next_step(),
            Some("inner")
        );
    }

    #[test]
    fn a_cause_that_repeats_itself_is_printed_once() {
        let error = Error::transient("input/output: gone").caused_by(std::io::Error::other("gone"));
        assert_eq!(error.to_string(), "input/output: gone");
    }

    #[test]
    fn a_role_that_is_not_found_may_be_found_in_a_moment_and_a_missing_verb_may_not() {
        let forbidden = |message: &str| {
            let status = kube::core::Status::failure(message, "Forbidden").with_code(403);
            Error::from(kube::Error::Api(Box::new(status))).kind()
        };
        let missing = "pods is forbidden: User \"u\" cannot list resource \"pods\" in API \
                       group \"\" in the namespace \"n\"";
        assert_eq!(forbidden(missing), ErrorKind::Config);
        let starting = format!(r#"{missing}: RBAC: role.rbac.authorization.k8s.io "r" not found"#);
        assert_eq!(forbidden(&starting), ErrorKind::Transient);
    }

    #[test]
    fn the_manifests_repeat_a_step_only_after_a_transient_error() {
        let kinds = [
            ErrorKind::Transient,
            ErrorKind::Config,
            ErrorKind::Refused,
            ErrorKind::Unsafe,
        ];
        let given_up: Vec<u8> = kinds[1..].iter().map(|kind| kind.code()).collect();
        let manifest = include_str!("../../../manifests/base/every-job.yaml");
        assert!(manifest.contains(&format!("\n            values: {given_up:?}\n")));
        assert!(!given_up.contains(&kinds[0].code()));
    }
}
