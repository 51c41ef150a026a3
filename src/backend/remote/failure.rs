//! Why a call failed, and whether asking again may help.

use crate::error::Error;

/// What may help after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Nothing: the object is not there.
    Missing,
    /// Asking again, somewhat later.
    Again,
    /// The same, if the server was ever reached; otherwise the address is wrong, or the server is down.
    Contact,
    /// Only what the hint says.
    Hint,
}

/// A failed call.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// What may help.
    pub remedy: Remedy,
    /// What went wrong, in words that follow a colon.
    pub why: String,
    /// What the user can do.
    pub hint: Option<String>,
    /// Whether the storage is out of space.
    pub full: bool,
}

impl Failure {
    pub fn new(remedy: Remedy, why: impl Into<String>) -> Self {
        Self { remedy, why: why.into(), hint: None, full: false }
    }

    /// One that asking again may help.
    pub fn again(why: impl Into<String>) -> Self {
        Self::new(Remedy::Again, why)
    }

    /// One that only the user can help.
    pub fn hopeless(why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Remedy::Hint, why).or_hint(hint)
    }

    /// Adds a hint.
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// The error that the caller gets.
    pub fn into_error(self, action: &'static str, object: &str, at: &str) -> Error {
        let object = if object.is_empty() { "the repository" } else { object };
        match self.remedy {
            Remedy::Missing => Error::Missing { what: object.into() },
            _ if self.full => {
                Error::Storage { action, object: object.into(), why: format!("{at}: {}", self.why), full: true }
            }
            _ => Error::Remote {
                action,
                object: object.into(),
                at: at.into(),
                why: self.why,
                hint: self
                    .hint
                    .unwrap_or_else(|| "nothing was lost; run the command again when the server answers".into()),
            },
        }
    }
}
