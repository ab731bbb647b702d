//! Which versions of the cluster a replica supports: see [`ClusterVersion`].

use core::fmt;

use defib_model::ClusterVersion;

use super::Controller;

/// The log is at a version that this replica does not support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsupportedVersion {
    /// The version of the log.
    pub version: ClusterVersion,
    /// The newest that this replica supports.
    pub supports: ClusterVersion,
}

impl fmt::Display for UnsupportedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the cluster is at version {}, and this replica supports {} at most: start it with the release of the other \
             replicas, and without `highest-cluster-version`; a cluster never goes back to an older version",
            self.version, self.supports
        )
    }
}

impl core::error::Error for UnsupportedVersion {}

impl Controller {
    /// The same, of a release that supports nothing beyond this version, or is held at it.
    #[must_use]
    pub const fn supporting(mut self, newest: ClusterVersion) -> Self {
        self.supports = newest;
        self
    }

    /// Whether it can go on by this log.
    ///
    /// # Errors
    /// The log is at a version that this replica does not support: what it derives from now on would be wrong.
    pub fn check_version(&self) -> Result<(), UnsupportedVersion> {
        let (version, supports) = (self.ledger.version(), self.supports);
        if version > supports { Err(UnsupportedVersion { version, supports }) } else { Ok(()) }
    }
}
