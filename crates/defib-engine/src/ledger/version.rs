//! By which rules the log is applied.
//!
//! Which rules those are stands in the log: each replica says what its release supports when it begins to observe, and
//! at the entry by which all voters support more, all go on. So releases can be mixed, and a replica that tells itself
//! the log again after an upgrade derives what it derived before.

use alloc::collections::BTreeMap;

use defib_model::{ClusterVersion, EventKind, ReplicaId};

use super::Ledger;

impl Ledger {
    /// The version in force.
    #[must_use]
    pub const fn version(&self) -> ClusterVersion {
        self.version
    }

    /// The newest version that the release of any voter supports: what the cluster would go on to.
    #[must_use]
    pub fn newest_supported(&self) -> ClusterVersion {
        self.voters.iter().map(|voter| self.supported_by(*voter)).max().unwrap_or_default()
    }

    /// What the voters support whose release supports less than `newest`: they hold the cluster back. A replica that
    /// never observed counts as one of the oldest release.
    #[must_use]
    pub fn supporting_less_than(&self, newest: ClusterVersion) -> BTreeMap<ReplicaId, ClusterVersion> {
        let all = self.voters.iter().map(|voter| (*voter, self.supported_by(*voter)));
        all.filter(|(_, supports)| *supports < newest).collect()
    }

    fn supported_by(&self, replica: ReplicaId) -> ClusterVersion {
        self.supports.get(&replica).copied().unwrap_or_default()
    }

    /// Records what the release of a replica supports.
    pub(super) fn supports(&mut self, replica: ReplicaId, supports: ClusterVersion) {
        // As releases before versions wrote it.
        if supports.is_oldest() {
            self.supports.remove(&replica);
        } else {
            self.supports.insert(replica, supports);
        }
    }

    /// Goes on to what all voters support, and never back.
    pub(super) fn settle_version(&mut self) {
        let all = self.voters.iter().map(|voter| self.supported_by(*voter)).min();
        let Some(version) = all.filter(|version| *version > self.version) else { return };
        self.version = version;
        self.event(None, EventKind::ClusterVersionRaised { version });
    }
}
