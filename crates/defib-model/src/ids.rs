//! Identifiers. One type per thing, so that a host can't be passed where a VM is meant.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use serde::{Deserialize, Serialize};

/// A name that is not allowed; says which and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidName {
    /// What was given, cut to 80 characters.
    pub given: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name {:?} {}", self.given, self.reason)
    }
}

impl core::error::Error for InvalidName {}

fn check_name(name: &str) -> Result<(), InvalidName> {
    let reason = if name.is_empty() {
        "is empty"
    } else if name.len() > 128 {
        "is longer than 128 bytes"
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        "has a character that is not a letter, a digit, '-', '_' or '.'"
    } else if !name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) {
        "does not begin with a letter or a digit"
    } else {
        return Ok(());
    };
    Err(InvalidName { given: name.chars().take(80).collect(), reason })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Takes a name of 1 to 128 letters, digits, `-`, `_` and `.` that begins with a letter or digit.
            ///
            /// # Errors
            /// Says which rule the name breaks.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                check_name(name).map(|()| Self(Arc::from(name)))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(&name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                Self::from(&*name.0)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

macro_rules! number {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $type(pub u64);

        impl $type {
            /// The number that follows; stays at the largest instead of wrapping.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

name!(
    /// An anti-affinity group of VMs.
    GroupId
);
name!(
    /// A physical machine that runs VMs; unique in the cluster.
    HostId
);
name!(
    /// A sink of the event stream, as the policy names it.
    SinkId
);
name!(
    /// A virtual machine; unique in the cluster and stable over its restarts.
    VmId
);

number!(
    /// A number per host that grows with every verdict and every readmission. An agent obeys its host's
    /// current epoch only.
    Epoch
);
number!(
    /// The number of an event: 1, 2, 3 … without a gap.
    EventSeq
);
number!(
    /// A number per VM that grows with every placement.
    Incarnation
);
number!(
    /// A position in the replicated log.
    LogIndex
);
number!(
    /// The case of one lost host.
    RecoveryId
);
number!(
    /// A controller replica; from 1.
    ReplicaId
);

/// What the kernel calls `boot_id`: new at every boot, so a new one proves that the former boot is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(pub u128);

impl BootId {
    /// Reads the usual 8-4-4-4-12 form, or 32 hexadecimal digits.
    ///
    /// # Errors
    /// When it is not 32 hexadecimal digits, dashes aside.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            given: text.chars().take(80).collect(),
            reason: "is not a boot id: 32 hexadecimal digits, with or without dashes",
        };
        let digits: Vec<u8> = text.trim().bytes().filter(|byte| *byte != b'-').collect();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(invalid());
        }
        let digits = core::str::from_utf8(&digits).map_err(|_| invalid())?;
        u128::from_str_radix(digits, 16).map(Self).map_err(|_| invalid())
    }
}

impl TryFrom<String> for BootId {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(&text)
    }
}

impl From<BootId> for String {
    fn from(boot: BootId) -> Self {
        alloc::format!("{boot}")
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            id >> 96,
            (id >> 80) & 0xffff,
            (id >> 64) & 0xffff,
            (id >> 48) & 0xffff,
            id & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whom an effect is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A host.
    Host(HostId),
    /// A VM.
    Vm(VmId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(f, "host {host}"),
            Self::Vm(vm) => write!(f, "vm {vm}"),
        }
    }
}

/// Names an effect on the world: the log entry that caused it, whom it is about, and which attempt it is.
/// Equal ids mean the same effect, so performing one twice must be harmless.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectId {
    /// The log entry from which the effect follows.
    pub cause: LogIndex,
    /// Whom it is about.
    pub subject: Subject,
    /// 1 for the first attempt.
    pub attempt: u32,
}

impl fmt::Display for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}#{}", self.cause, self.subject, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_name_that_could_break_a_path_or_a_shell_is_refused() {
        for bad in ["", "a b", "../x", "-rf", "h\n1", "ü"] {
            assert!(HostId::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(HostId::new("rack-1.host_7").unwrap().as_str(), "rack-1.host_7");
    }

    #[test]
    fn a_boot_id_reads_what_it_prints() {
        let text = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        assert_eq!(BootId::parse(text).unwrap().to_string(), text);
        assert!(BootId::parse("0f1e").is_err());
        assert!(BootId::parse("éééééééééééééééé").is_err());
    }
}
