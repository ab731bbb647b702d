//! What is known about the power of a host, and what came of asking for a change.

use std::fmt;
use std::time::Duration;

use crate::{BmcError, ReportedIdentity};

/// Power state of a system as its BMC names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PowerState {
    /// It has power and may run.
    On,
    /// It has no power. The only state that proves anything.
    Off,
    /// On its way up.
    PoweringOn,
    /// On its way down: it may still run.
    PoweringOff,
    /// Execution is suspended, and may go on.
    Paused,
    /// None of the above, or not said (empty).
    Unknown(String),
}

impl PowerState {
    /// From the text of a `PowerState` property. Exact: what is spelled otherwise is unknown.
    pub fn parse(text: &str) -> Self {
        match text {
            "On" => Self::On,
            "Off" => Self::Off,
            "PoweringOn" => Self::PoweringOn,
            "PoweringOff" => Self::PoweringOff,
            "Paused" => Self::Paused,
            other => Self::Unknown(other.chars().filter(|c| !c.is_control()).take(64).collect()),
        }
    }
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On => f.write_str("On"),
            Self::Off => f.write_str("Off"),
            Self::PoweringOn => f.write_str("PoweringOn"),
            Self::PoweringOff => f.write_str("PoweringOff"),
            Self::Paused => f.write_str("Paused"),
            Self::Unknown(text) if text.is_empty() => f.write_str("no power state"),
            Self::Unknown(text) => write!(f, "unknown power state `{text}`"),
        }
    }
}

/// A power state that came in one answer with the identity recorded for the host. Drivers build one only after they
/// compared the two; so `state == Off` in it means: this very host is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerReading {
    /// Power state.
    pub state: PowerState,
    /// Identity in the same answer; it matched.
    pub identity: ReportedIdentity,
    /// Path or name of the system at the BMC.
    pub system: String,
    /// From asking to having read the answer.
    pub took: Duration,
}

impl PowerReading {
    /// True when this reading says that the host has no power.
    pub fn is_off(&self) -> bool {
        self.state == PowerState::Off
    }
}

/// What came of a request to change the power. None of them says what the power is: read it.
#[derive(Debug)]
pub enum ResetOutcome {
    /// The BMC took the request (2xx, a task included; a program that ended well).
    Accepted {
        /// What it answered.
        answer: String,
    },
    /// The BMC declined it (4xx), which it also does when there is nothing to change.
    Refused(BmcError),
    /// No answer, a broken connection or a fault of the BMC (5xx): it may or may not take effect.
    Unknown(BmcError),
    /// It was never sent: the gate was closed, or the system offers no such action, or the caller's deadline
    /// had passed.
    NotSent(BmcError),
}

impl fmt::Display for ResetOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { answer } => write!(f, "accepted ({answer})"),
            Self::Refused(cause) => write!(f, "refused ({})", cause.chain()),
            Self::Unknown(cause) => write!(f, "unknown ({})", cause.chain()),
            Self::NotSent(cause) => write!(f, "not sent ({})", cause.chain()),
        }
    }
}

/// How an attempt to switch a host off ended. Only [`FenceOutcome::Off`] is evidence.
#[derive(Debug)]
pub enum FenceOutcome {
    /// `readings` are the demanded number of consecutive readings, all `Off`, all of this host.
    Off {
        /// The readings, oldest first.
        readings: Vec<PowerReading>,
        /// How many power-off requests were sent; 0 when the host was off before we came.
        requests: u32,
    },
    /// The deadline passed, or the BMC refused for good, while it kept on answering with another state than `Off`.
    StillOn {
        /// The last state read.
        last: PowerState,
        /// What came of the last power-off request, if one was sent.
        last_request: Option<ResetOutcome>,
        /// How many power-off requests were sent.
        requests: u32,
    },
    /// The deadline passed without a readable answer at the end, or with too few readings. A power-off request may
    /// still take effect.
    Unreachable {
        /// The last trouble.
        cause: BmcError,
        /// How many power-off requests were sent.
        requests: u32,
    },
    /// The BMC that answers is not known to control this host. If `requests` is 0 nothing was sent.
    IdentityMismatch {
        /// What was found.
        cause: BmcError,
        /// How many power-off requests were sent while the identity still matched.
        requests: u32,
    },
    /// Trying again is useless until an operator acts: wrong certificate, wrong credentials, missing right,
    /// no such action.
    Refused {
        /// What an operator must mend.
        cause: BmcError,
        /// How many power-off requests were sent.
        requests: u32,
    },
    /// The gate closed: we lost the right to switch hosts off. Nothing was sent from then on.
    Revoked {
        /// How many power-off requests were sent before.
        requests: u32,
    },
}

impl FenceOutcome {
    /// The proof, if this is one.
    pub fn readings_off(&self) -> Option<&[PowerReading]> {
        match self {
            Self::Off { readings, .. } => Some(readings),
            Self::StillOn { .. }
            | Self::Unreachable { .. }
            | Self::IdentityMismatch { .. }
            | Self::Refused { .. }
            | Self::Revoked { .. } => None,
        }
    }

    /// How many power-off requests were sent.
    pub fn requests(&self) -> u32 {
        match self {
            Self::Off { requests, .. }
            | Self::StillOn { requests, .. }
            | Self::Unreachable { requests, .. }
            | Self::IdentityMismatch { requests, .. }
            | Self::Refused { requests, .. }
            | Self::Revoked { requests } => *requests,
        }
    }
}

impl fmt::Display for FenceOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off { readings, requests } => {
                write!(f, "off in {} readings after {requests} power-off request(s)", readings.len())
            }
            Self::StillOn { last, last_request, requests } => {
                write!(f, "still {last} after {requests} power-off request(s)")?;
                last_request.as_ref().map_or(Ok(()), |outcome| write!(f, ", the last one {outcome}"))
            }
            Self::Unreachable { cause, requests } => {
                write!(f, "not confirmed after {requests} power-off request(s): {}", cause.chain())
            }
            Self::IdentityMismatch { cause, requests } => {
                write!(f, "wrong machine, {requests} power-off request(s) sent: {}", cause.chain())
            }
            Self::Refused { cause, requests } => {
                write!(f, "impossible until mended, {requests} power-off request(s) sent: {}", cause.chain())
            }
            Self::Revoked { requests } => {
                write!(
                    f,
                    "stopped, because the right to switch hosts off was lost, after {requests} request(s)"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_word_is_off() {
        assert_eq!(PowerState::parse("Off"), PowerState::Off);
        for other in ["off", "OFF", "Off ", "", "PoweringOff", "Of\u{0}f", "Paused", "On"] {
            assert_ne!(PowerState::parse(other), PowerState::Off, "{other:?}");
        }
        assert_eq!(PowerState::parse("Hibernated\n"), PowerState::Unknown("Hibernated".into()));
    }
}
