//! What can go wrong with keys and certificates. No variant carries a secret.

use std::{io, path::PathBuf};

use crate::PeerIdentity;

/// Why a key, a certificate or an authority can't be used. Nothing was changed on disk when one is
/// returned, apart from [`PkiError::Write`], which says what is left.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The directory already holds something; an authority is never overwritten.
    #[error("{} is not empty: an authority is never overwritten; choose another directory, or move this one away if its cluster is gone", path.display())]
    AlreadyExists {
        /// The directory.
        path: PathBuf,
    },
    /// A file that is to be new exists.
    #[error("{} already exists and is not overwritten; remove it first if it is not needed", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be read. Retry after repairing it.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file could not be written. The former content, if any, is intact.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A private key that others may read or change.
    #[error("{} may be read or changed by others (mode {mode:03o}): chmod 600 it, and issue a new key if others could have read it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that does not hold what its name says.
    #[error("{}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate that is over.
    #[error("the certificate {} of {subject} expired at {since}: issue a new one with `defib pki issue`, or join again", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Whose certificate it is.
        subject: String,
        /// The end of its validity, RFC 3339, UTC.
        since: String,
    },
    /// A certificate that does not hold yet.
    #[error("the certificate {} of {subject} is not valid before {from}: is the clock of this machine right?", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Whose certificate it is.
        subject: String,
        /// The begin of its validity, RFC 3339, UTC.
        from: String,
    },
    /// A name or an identity that is not allowed.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// A certificate that names nobody of this cluster.
    #[error("the peer's certificate is not one of cluster {cluster}: {reason}")]
    NotAMember {
        /// The cluster that was expected.
        cluster: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A signing request that can't be signed.
    #[error("the signing request for {identity} is refused: {reason}")]
    BadRequest {
        /// For whom it was.
        identity: PeerIdentity,
        /// What is wrong.
        reason: String,
    },
    /// The answer to a join that does not fit what was asked.
    #[error("the answer to the join of {identity} is refused: {reason}")]
    BadAnswer {
        /// Who joins.
        identity: PeerIdentity,
        /// What is wrong.
        reason: String,
    },
    /// The authority's own certificate is over, so it signs nothing.
    #[error(
        "the authority of cluster {cluster} expired at {since}: create a new one with `defib pki init` and issue all certificates anew"
    )]
    AuthorityExpired {
        /// Its cluster.
        cluster: String,
        /// The end of its validity, RFC 3339, UTC.
        since: String,
    },
    /// The cryptographic library refused.
    #[error("{doing} failed: {reason}")]
    Crypto {
        /// What was being done.
        doing: &'static str,
        /// What the library said.
        reason: String,
    },
}

impl PkiError {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    pub(crate) fn crypto(doing: &'static str, reason: impl ToString) -> Self {
        Self::Crypto { doing, reason: reason.to_string() }
    }
}
