//! A failure as data: what it means, what happened, and what to do about it.
//!
//! The protocol's decisions carry failures of the world in this form. It is pure: it can be
//! compared, cloned, and made in a simulation, where the Job's own error holds the
//! causes that libraries returned.

use std::fmt;

/// What a failure means for the Job, and so for the person who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Not yet: a connection, a conflict, a deadline, SIGTERM. Running again may succeed. Exit 1.
    Transient,
    /// The environment, a mounted file, a credential or a permission is wrong. Exit 2.
    Config,
    /// The state of the clusters does not allow it; nothing irreversible was done. Exit 3.
    Refused,
    /// The observed state contradicts the record, or something is wrong past the point of no
    /// return: manual intervention is required. Exit 4.
    Unsafe,
}

impl ErrorKind {
    /// The exit code that podFailurePolicy in the manifests acts on.
    pub fn code(self) -> u8 {
        match self {
            Self::Transient => 1,
            Self::Config => 2,
            Self::Refused => 3,
            Self::Unsafe => 4,
        }
    }

    /// The word used in the termination message.
    pub fn word(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Config => "config",
            Self::Refused => "refused",
            Self::Unsafe => "unsafe",
        }
    }
}

/// A failure with its kind, its whole message, and the next step. Displayed as the message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Failure {
    /// What it means; decides the exit code.
    pub kind: ErrorKind,
    /// What happened, with all causes.
    pub message: String,
    /// What the operator does next, where that is known.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// Not yet; another run may succeed.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Transient, message)
    }

    /// The environment, a mounted file, a credential or a permission is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Adds what the operator does next; a hint that is there already stays, because the innermost
    /// one knows most.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// The same failure with another kind.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
