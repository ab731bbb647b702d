//! Secrets, which configurations name and never hold.

use std::path::Path;

use defib_model::export::SecretRef;
use zeroize::Zeroizing;

/// A secret that can't be had. Its words hold nothing of it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(String);

/// Reads a secret that `field` names.
///
/// # Errors
/// When it is not there, or empty.
pub fn secret(field: &str, from: &SecretRef) -> Result<Zeroizing<String>, SecretError> {
    let text = match from {
        SecretRef::File(path) => std::fs::read_to_string(Path::new(path))
            .map(Zeroizing::new)
            .map_err(|error| SecretError(format!("{field}: {path} can't be read: {error}")))?,
        SecretRef::Env(name) => std::env::var(name)
            .map(Zeroizing::new)
            .map_err(|_| SecretError(format!("{field}: the environment has no {name}")))?,
    };
    let first = text.lines().next().unwrap_or_default().trim();
    if first.is_empty() {
        return Err(SecretError(format!("{field}: it is empty")));
    }
    Ok(Zeroizing::new(first.to_owned()))
}
