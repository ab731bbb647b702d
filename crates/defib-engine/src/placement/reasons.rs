//! Why there, and why not elsewhere: typed, with a sentence for people.

use alloc::{string::String, vec::Vec};
use core::fmt;

use defib_model::{GroupId, HostId, VmId};

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
    /// The very same machine, by its UUID, runs on another host without Defib's mark.
    RunsUnprotected {
        /// Where.
        host: HostId,
    },
    /// It never ran, and a domain of its name and of another UUID runs somewhere without Defib's mark.
    Namesake {
        /// Where.
        host: HostId,
    },
    /// The host is kept free for recoveries.
    Spare,
    /// The host lacks a label.
    Label(String),
    /// The host does not reach the VM's datastore.
    Datastore(String),
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

impl Constraint {
    /// Its kind in a word, for programs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unusable(_) => "not-in-use",
            Self::RunsUnprotected { .. } => "runs-unprotected",
            Self::Namesake { .. } => "namesake",
            Self::Spare => "spare",
            Self::Label(_) => "label",
            Self::Datastore(_) => "datastore",
            Self::Capacity { .. } => "capacity",
            Self::AntiAffinity { .. } => "anti-affinity",
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(Reason::NeverSeen) => f.write_str("never seen"),
            Self::Unusable(Reason::Dead) => f.write_str("down"),
            Self::Unusable(Reason::Suspected) => f.write_str("suspected"),
            Self::Unusable(Reason::Quarantined) => f.write_str("quarantined"),
            Self::Unusable(Reason::Assumed) => f.write_str("assumed to have failed"),
            Self::RunsUnprotected { host } => {
                write!(f, "it runs on {host} unprotected, and would run twice")
            }
            Self::Namesake { host } => write!(
                f,
                "a domain of its name, but with another UUID, runs on {host} unprotected: give it that UUID, or another name"
            ),
            Self::Spare => f.write_str("kept spare for recoveries"),
            Self::Label(label) => write!(f, "without label {label}"),
            Self::Datastore(datastore) => write!(f, "datastore {datastore} is not reached"),
            Self::Capacity { resource } => write!(f, "too little {resource} left"),
            Self::AntiAffinity { group, level } => write!(f, "anti-affinity of group {group} per {level}"),
        }
    }
}

/// What decided for a place, among those that every hard rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    /// It runs for the first time, and is declared to run there.
    FirstHost,
    /// It ran well there.
    RanWell,
    /// Nothing else fits.
    OnlyHost,
    /// Of those that fit it has the most room left.
    MostRoom,
    /// Its fault domains hold the fewest members of the VM's groups; among such it has the most room left.
    FewestBeside {
        /// How many they hold, counted per rule.
        members: u32,
    },
    /// It failed lately on others that fit, and not there.
    NotWhereItFailed,
    /// It failed there lately, and everywhere else that fits.
    OnlyWhereItFailed,
    /// Nothing was left, until another VM of the same plan was sent elsewhere.
    RoomMade {
        /// Which.
        moved: VmId,
    },
    /// Its better place was left to a VM that fits nowhere else.
    MovedFor {
        /// Which.
        vm: VmId,
    },
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstHost => f.write_str("declared to run there first"),
            Self::RanWell => f.write_str("it ran well there"),
            Self::OnlyHost => f.write_str("the only host that fits"),
            Self::MostRoom => f.write_str("most room left"),
            Self::FewestBeside { members: 0 } => f.write_str("apart from its groups, most room left"),
            Self::FewestBeside { members } => {
                write!(f, "fewest of its groups beside it ({members}), most room left")
            }
            Self::NotWhereItFailed => f.write_str("it has not failed there lately"),
            Self::OnlyWhereItFailed => f.write_str("it failed lately on all that fit"),
            Self::RoomMade { moved } => write!(f, "{moved} was sent elsewhere to make room"),
            Self::MovedFor { vm } => write!(f, "room was made for {vm}, which fits nowhere else"),
        }
    }
}

/// A host that may not take a VM, and the first constraint that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excluded {
    /// Which constraint.
    pub constraint: Constraint,
    /// The hosts, in the order of their names.
    pub hosts: Vec<HostId>,
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
