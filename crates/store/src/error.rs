//! Why nothing was changed or read.

use postrider_model::control::Violations;
use thiserror::Error;

/// Why nothing was changed or read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The world's: the database cannot be opened, or does not answer. Mail goes on with what was known last.
    #[error("the store is not available: {0}; mail goes on with what was known last")]
    Unavailable(String),
    /// The client's: what was asked for does not fit, field by field.
    #[error("{0}")]
    Refused(#[from] Violations),
    /// The client's: there is no such thing.
    #[error("there is no {0}")]
    Missing(String),
    /// The client's: somebody else has changed it since it was read.
    #[error(
        "it has changed since it was read (it is at version {version} now); read it again, then change it"
    )]
    Stale {
        /// What it is at now.
        version: u64,
    },
    /// The client's: it may not do that.
    #[error("{0}")]
    Forbidden(String),
    /// Ours: rows that cannot be read as what they are.
    #[error("a row of the store is damaged: {0}")]
    Damaged(String),
}
