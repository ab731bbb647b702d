//! Documents that people write: YAML with durations such as `100ms` and sizes such as `16GiB`.
//!
//! Every problem names file, line, column and field; unknown fields are refused.

mod diff;
mod inventory;
mod policy;
mod scalar;

use std::fmt;

pub use diff::diff;
pub use inventory::{inventory_from_yaml, inventory_to_yaml};
pub use policy::{policy_from_yaml, policy_to_yaml};
use serde::de::DeserializeOwned;

/// A document that can't be used. Nothing was changed by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentError {
    /// The file, as the person who wrote it named it.
    pub file: String,
    /// Line and column, from 1, where known.
    pub at: Option<(u64, u64)>,
    /// What is wrong, which field, and what to do.
    pub message: String,
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for DocumentError {}

/// Reads a YAML document into a type that refuses unknown fields.
///
/// # Errors
/// What the parser says, with its place.
pub fn from_yaml<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, DocumentError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let at = error.location().map(|location| (location.line(), location.column()));
        let plain = error.without_snippet().to_string();
        // The place stands in front already.
        let message = plain.split(" at line ").next().unwrap_or_default().to_owned();
        DocumentError { file: file.into(), at, message }
    })
}
