//! Which rules all replicas apply the log by.

use core::fmt;

use serde::{Deserialize, Serialize};

/// What the log means. Replicas derive state and events from the log, each by itself, and must derive the same; a
/// release that derives anything else than the one before does so from a version on. The cluster goes on to a version
/// when the releases of all voters support it, at one place in the log, and never goes back: see
/// docs/operations/upgrade.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterVersion(pub u32);

impl ClusterVersion {
    /// What clusters begin with, and what replicas support whose release says nothing.
    pub const OLDEST: Self = Self(1);
    /// Events of BMCs stand in the stream ([`crate::Command::BmcTold`]).
    pub const BMC_EVENTS: Self = Self(2);
    /// Which machine a host is stands in the log ([`crate::HostNote::machine`]).
    pub const MACHINES: Self = Self(3);
    /// That a proof is contradicted belongs to the recovery that relied on it
    /// ([`crate::EventKind::ProofContradicted`]).
    pub const CONTRADICTIONS: Self = Self(4);
    /// The newest that this release supports.
    pub const NEWEST: Self = Self::CONTRADICTIONS;

    /// Whether it is the oldest: then it is not written, as releases before versions wrote none.
    #[must_use]
    pub fn is_oldest(&self) -> bool {
        *self == Self::OLDEST
    }
}

impl Default for ClusterVersion {
    fn default() -> Self {
        Self::OLDEST
    }
}

impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
