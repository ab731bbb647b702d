//! What may go wrong with etcd. None of it changes anything but how fresh documents and status are.

use defib_process::SecretError;
use etcd_client::Error;

/// Why etcd could not be asked, or was not obeyed. Its words hold no secret.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The password can't be had. Nothing was sent.
    #[error("etcd: {0}")]
    Secret(#[from] SecretError),
    /// A file for TLS can't be had. Nothing was sent.
    #[error("etcd: tls.{field}: {path} can't be read: {error}")]
    File {
        /// Which field names it.
        field: &'static str,
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// A member did not answer in time: a write may have been done.
    #[error("etcd at {endpoint} did not {what} in time")]
    Late {
        /// Which member.
        endpoint: String,
        /// What it was to do.
        what: &'static str,
    },
    /// A member answered otherwise than hoped, or can't be reached: a write may have been done.
    #[error("etcd at {endpoint} did not {what}: {why}")]
    Failed {
        /// Which member.
        endpoint: String,
        /// What it was to do.
        what: &'static str,
        /// What it says.
        why: String,
    },
    /// What was to be watched from there on is gone: read again.
    #[error("etcd at {endpoint} has compacted revision {revision} away")]
    Compacted {
        /// Which member.
        endpoint: String,
        /// The revision from which on it was to be watched.
        revision: u64,
    },
    /// A later leader writes, or has written. Nothing was written.
    #[error(
        "key {key} tells that a leader of term {by} has written, and this one is of term {term}; if this cluster was founded \
         anew since, delete that key"
    )]
    Deposed {
        /// The key that says so.
        key: String,
        /// Whose term is later.
        by: u64,
        /// Our term.
        term: u64,
    },
    /// The key that holds the term holds something else. Nothing was written.
    #[error("key {key} holds no term; delete it")]
    NoTerm {
        /// Which key.
        key: String,
    },
}

/// What a client says, in one line.
pub(crate) fn in_words(error: &Error) -> String {
    match error {
        // Its own words have all metadata in them.
        Error::GRpcStatus(status) => {
            let mut words = format!("{}: {}", status.code(), status.message());
            let mut source = std::error::Error::source(status);
            while let Some(cause) = source {
                let cause_words = cause.to_string();
                if !words.contains(&cause_words) {
                    words = format!("{words}: {cause_words}");
                }
                source = cause.source();
            }
            words
        }
        Error::TransportError(error) => {
            let mut words = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                words = format!("{words}: {cause}");
                source = cause.source();
            }
            words
        }
        other => other.to_string(),
    }
}
