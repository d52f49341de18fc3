//! A failure without its cause's type: what it means, what happened, and what to do next.

use std::fmt;

/// What a failure means for the Job, and so for the person who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Not yet: a connection, a conflict, a deadline, SIGTERM. Running again may succeed. Exit 1.
    Transient,
    /// The environment, a mounted file, a credential or a permission is wrong. Exit 2.
    Config,
    /// The state of the clusters does not allow it; nothing irreversible was done. Exit 3.
    Refused,
    /// The state contradicts the record, or something is wrong past the point of no return: manual
    /// intervention is required. Exit 4.
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

/// Kind, message and hint. The Job's own error is made from it and turned into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it means.
    pub kind: ErrorKind,
    /// What happened, with its causes.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// Another run may succeed.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Transient, message)
    }

    /// A setting, a mounted file or a permission is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// The state of the clusters does not allow it.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// Manual intervention is required.
    pub fn manual(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsafe, message)
    }

    /// What to do next; a hint that is there already stays, because it knows more.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
