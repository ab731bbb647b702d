//! Why not: typed, with a sentence for people.

use alloc::string::String;
use core::fmt;

use defib_model::{GroupId, HostId};

/// Why a host is not in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Its agent has never reported.
    NeverSeen,
    /// It is condemned or dead.
    Dead,
    /// It is suspected.
    Suspected,
    /// It came and went too often.
    Quarantined,
    /// The question is what happens if it fails.
    Assumed,
}

/// Whether a host may receive VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usability {
    /// It may.
    Usable,
    /// It may not.
    Unusable(Reason),
}

/// What forbids a place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Constraint {
    /// The host is not in use.
    Unusable(Reason),
    /// The host is kept free for recoveries.
    Spare,
    /// The host lacks a label.
    Label(String),
    /// The host has too little left of a resource.
    Capacity {
        /// Which.
        resource: String,
    },
    /// The fault domain holds as many members of a group as it may.
    AntiAffinity {
        /// Which group.
        group: GroupId,
        /// At which level: its name.
        level: String,
    },
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(Reason::NeverSeen) => f.write_str("never seen"),
            Self::Unusable(Reason::Dead) => f.write_str("down"),
            Self::Unusable(Reason::Suspected) => f.write_str("suspected"),
            Self::Unusable(Reason::Quarantined) => f.write_str("quarantined"),
            Self::Unusable(Reason::Assumed) => f.write_str("assumed to have failed"),
            Self::Spare => f.write_str("kept spare for recoveries"),
            Self::Label(label) => write!(f, "without label {label}"),
            Self::Capacity { resource } => write!(f, "too little {resource} left"),
            Self::AntiAffinity { group, level } => write!(f, "anti-affinity of group {group} per {level}"),
        }
    }
}

/// How many hosts one constraint excludes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exclusion {
    /// Which constraint.
    pub constraint: Constraint,
    /// How many hosts it is the first to exclude.
    pub hosts: u32,
    /// One of them.
    pub example: HostId,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hosts == 1 {
            write!(f, "{}: {}", self.example, self.constraint)
        } else {
            write!(f, "{} hosts (such as {}): {}", self.hosts, self.example, self.constraint)
        }
    }
}

/// A soft rule that a placement breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoftBreak {
    /// Whose rule.
    pub group: GroupId,
    /// At which level: its name.
    pub level: String,
    /// How many members one domain should hold at most.
    pub limit: u32,
}

impl fmt::Display for SoftBreak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "soft rule of group {}: more than {} per {}", self.group, self.limit, self.level)
    }
}
