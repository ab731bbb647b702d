//! What hypervisors say beyond which VMs run: of a VM, for people alone; and of a host, so that nothing is started
//! where it must not be.

use alloc::{collections::BTreeMap, string::String};
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::ClusterVersion;

/// In which condition a VM is that its hypervisor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmCondition {
    /// Its guest's processors run.
    #[default]
    Normal,
    /// Somebody has paused it, or a migration, a snapshot or a dump has.
    Paused,
    /// The hypervisor paused it because its disk failed.
    IoError,
    /// Its guest has crashed and is kept for a look at it.
    Crashed,
    /// Its guest sleeps.
    Suspended,
    /// Somebody has migrated it away, not on Defib's order: where it runs is not known.
    MovedAway,
    /// Something that this release has no word for.
    Other,
}

impl VmCondition {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Normal,
        Self::Paused,
        Self::IoError,
        Self::Crashed,
        Self::Suspended,
        Self::MovedAway,
        Self::Other,
    ];

    /// Its name in files, messages and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Paused => "paused",
            Self::IoError => "io-error",
            Self::Crashed => "crashed",
            Self::Suspended => "suspended",
            Self::MovedAway => "moved-away",
            Self::Other => "other",
        }
    }

    /// Whether somebody should look at it.
    #[must_use]
    pub const fn is_trouble(self) -> bool {
        matches!(self, Self::IoError | Self::Crashed | Self::MovedAway)
    }
}

impl fmt::Display for VmCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a hypervisor says of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct VmNote {
    /// Its condition.
    #[serde(default)]
    pub condition: VmCondition,
    /// Why it is in that condition; of one that does not run, how it ended. Empty: nothing is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How often its guest was seen to reboot in this incarnation, as far as its agent remembers.
    #[serde(default)]
    pub reboots: u32,
}

impl VmNote {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether people want to hear of the change from `held`. Other words for the same are none.
    #[must_use]
    pub fn is_news_after(&self, held: &Self) -> bool {
        self.condition != held.condition || self.reboots != held.reboots
    }
}

/// What an agent says of its host beyond its VMs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct HostNote {
    /// Domains that run there without Defib's mark: their names by their UUIDs. A VM with such a UUID is that very
    /// machine, so it is started nowhere else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unprotected: BTreeMap<String, String>,
    /// Datastores that the host does not reach, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unreachable: BTreeMap<String, String>,
    /// The UUID of the machine that the agent runs on, as its firmware tells it ([SMBIOS], 7.2.1) and as
    /// [`significant`](crate::inventory::significant) gives it. `None`: unknown.
    ///
    /// [SMBIOS]: https://www.dmtf.org/dsp/DSP0134
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

impl HostNote {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether anything changed since `held`. Other words for the same are no change, nor is a machine of which
    /// nothing is said any more.
    #[must_use]
    pub fn is_news_after(&self, held: &Self) -> bool {
        self.unprotected != held.unprotected
            || !self.unreachable.keys().eq(held.unreachable.keys())
            || (self.machine.is_some() && self.machine != held.machine)
    }

    /// The same without what is read from `version` on only.
    #[must_use]
    pub fn as_read_by(&self, version: ClusterVersion) -> Self {
        let machine = self.machine.clone().filter(|_| version >= ClusterVersion::MACHINES);
        Self { machine, ..self.clone() }
    }
}
