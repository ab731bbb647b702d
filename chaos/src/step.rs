//! What is done in a scenario, one thing after the other.

use std::time::Duration;

use anyhow::ensure;
use defib_lab::redfish::Faults;
use defib_model::EventKind;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::cuts::Network;
use crate::relay::fate::Weather;
use crate::words::{End, Hosts, Processes, Replicas};

/// One thing that is done, or waited for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Step {
    /// The plug is pulled; the BMC has power of its own.
    PlugOut(Hosts),
    /// The plug is pulled, and the BMC hangs on it, too.
    PlugOutWithBmc(Hosts),
    /// The plug is put in again, and the host switched on.
    PowerOn(Hosts),
    /// Every process of the host is stopped; it has power.
    Freeze(Hosts),
    /// They go on.
    Thaw(Hosts),
    /// `kill -9`.
    Kill(Processes),
    /// SIGTERM: an agent says goodbye, as it does for an upgrade.
    Terminate(Processes),
    /// SIGSTOP.
    Pause(Processes),
    /// SIGCONT for all that was stopped by `pause`.
    Resume(Everything),
    /// What was killed and does not come back by itself is started again.
    Start(Everything),
    /// Agents that end are not started again.
    HoldAgent(Hosts),
    /// They are again.
    ReleaseAgent(Hosts),
    /// A network lets nothing through.
    Cut(Cut),
    /// Cables lose, delay, reorder and duplicate.
    Relay(Relay),
    /// All cuts and cables are mended.
    Heal(Everything),
    /// The BMC answers nobody.
    BmcDark(Hosts),
    /// The BMC answers again.
    BmcLight(Hosts),
    /// The BMC does something wrong.
    BmcFaults(BmcFaults),
    /// The disk of a replica is full.
    FillDisk(Replicas),
    /// And has room again.
    FreeDisk(Everything),
    /// Every write to the disk of a replica waits.
    StallDisk(Replicas),
    /// Every write to the disk of a replica takes so much longer.
    SlowDisk(Slow),
    /// Every write to the disk of a replica fails.
    BreakDisk(Replicas),
    /// All disks are well again.
    MendDisks(Everything),
    /// The wall clock of a replica jumps.
    JumpClock(Jump),
    /// All wall clocks are right again.
    SetClocks(Everything),
    /// Somebody starts a VM once more, behind everybody's back: the test of the oracle.
    StartTwice(Twice),
    /// An operator says this to `defib`.
    Operator(String),
    /// An event comes.
    WaitFor(Wanted),
    /// The lost VMs run elsewhere, and the recoveries of struck hosts are closed.
    Recovered(Within),
    /// Everything is in use and runs.
    Whole(Within),
    /// Time passes.
    Pass(Span),
}

/// All of it: `everything`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Everything {
    /// All.
    Everything,
}

/// A cut.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Cut {
    /// Nothing from here …
    pub(crate) from: End,
    /// … comes here.
    pub(crate) to: End,
    /// The other way it does.
    #[serde(default)]
    pub(crate) one_way: bool,
    /// Only on this network.
    #[serde(default)]
    pub(crate) network: Option<Network>,
    /// Only so many packets of a hundred are lost.
    #[serde(default)]
    pub(crate) percent: Option<u8>,
}

/// What a relay in cables does to frames, each way.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Relay {
    /// In whose cables.
    pub(crate) at: End,
    /// Only in that of this network.
    #[serde(default)]
    pub(crate) network: Option<Network>,
    /// They take so much longer …
    #[serde(default)]
    pub(crate) delay: Span,
    /// … by so much more or less.
    #[serde(default)]
    pub(crate) jitter: Span,
    /// So many of a hundred are lost.
    #[serde(default)]
    pub(crate) lose: u8,
    /// So many of a hundred come twice.
    #[serde(default)]
    pub(crate) duplicate: u8,
    /// So many of a hundred are overtaken by those behind them.
    #[serde(default)]
    pub(crate) reorder: u8,
}

impl Relay {
    /// For the relay itself.
    pub(crate) const fn weather(&self) -> Weather {
        let Self { delay, jitter, lose, duplicate, reorder, .. } = *self;
        Weather { delay: delay.0, jitter: jitter.0, lose, duplicate, reorder }
    }

    /// That it makes sense.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.weather() != Weather::default(), "steps: relay: it does nothing to any frame");
        for (word, share) in [("lose", self.lose), ("duplicate", self.duplicate), ("reorder", self.reorder)] {
            ensure!(share <= 100, "steps: relay: {word} is from 0 to 100");
        }
        ensure!(self.jitter.0 <= self.delay.0, "steps: relay: jitter is at most delay");
        ensure!(!matches!(self.at, End::Bmcs(_)), "steps: relay: a BMC has no cable of its own here");
        Ok(())
    }
}

/// A disk that is slow.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Slow {
    /// Whose.
    pub(crate) of: Replicas,
    /// Each write takes so much longer.
    pub(crate) by: Span,
}

/// A clock that jumps.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Jump {
    /// Whose.
    pub(crate) of: Replicas,
    /// From the right time by so much: `1h`, `-1h`.
    #[serde(deserialize_with = "seconds")]
    pub(crate) by: i64,
}

/// Forwards, or, with a minus before it, backwards.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let (sign, length) = text.strip_prefix('-').map_or((1, text.as_str()), |length| (-1, length));
    let length = humantime::parse_duration(length).map_err(serde::de::Error::custom)?;
    if length < Duration::from_secs(3600) {
        return Err(serde::de::Error::custom(
            "a jump of less than an hour could not be told from a slow lab",
        ));
    }
    Ok(sign * i64::try_from(length.as_secs()).map_err(serde::de::Error::custom)?)
}

/// A BMC's faults, as its emulator takes them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct BmcFaults {
    /// Whose.
    pub(crate) of: Hosts,
    /// All faults; none: it is well.
    pub(crate) faults: Faults,
}

/// A second instance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Twice {
    /// Of this VM …
    pub(crate) vm: String,
    /// … on this host.
    pub(crate) on: String,
}

/// A length of time, such as `8s`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// How long something may take.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Within {
    /// So long.
    pub(crate) within: Span,
}

/// An event, by its kind and what it says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Wanted {
    /// Its kind.
    #[serde(deserialize_with = "kind")]
    pub(crate) event: String,
    /// About this host.
    #[serde(default)]
    pub(crate) host: Option<String>,
    /// About this VM.
    #[serde(default)]
    pub(crate) vm: Option<String>,
    /// An opinion: this one.
    #[serde(default)]
    pub(crate) to: Option<String>,
    /// How long it may take.
    #[serde(default)]
    pub(crate) within: Option<Span>,
}

/// A kind of event that there is.
fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    match serde_json::from_value::<EventKind>(serde_json::json!({ "kind": name })) {
        Err(error) if error.to_string().contains("unknown variant") => Err(serde::de::Error::custom(error)),
        _ => Ok(name),
    }
}

impl Wanted {
    /// Whether this is it.
    pub(crate) fn is(&self, kind: &EventKind) -> bool {
        let Ok(Value::Object(fields)) = serde_json::to_value(kind) else { return false };
        let says = |name: &str, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| fields.get(name).and_then(Value::as_str) == Some(wanted))
        };
        says("kind", &Some(self.event.clone()))
            && says("host", &self.host)
            && says("vm", &self.vm)
            && says("to", &self.to)
    }

    /// In words.
    pub(crate) fn text(&self) -> String {
        let of = [&self.host, &self.vm, &self.to].into_iter().flatten();
        of.fold(self.event.clone(), |text, word| format!("{text} {word}"))
    }
}

impl Step {
    /// Whether it breaks something.
    pub(crate) const fn breaks(&self) -> bool {
        matches!(
            self,
            Self::PlugOut(_)
                | Self::PlugOutWithBmc(_)
                | Self::Freeze(_)
                | Self::Kill(_)
                | Self::Terminate(_)
                | Self::Pause(_)
                | Self::Cut(_)
                | Self::Relay(_)
                | Self::StallDisk(_)
                | Self::SlowDisk(_)
                | Self::BreakDisk(_)
                | Self::JumpClock(_)
                | Self::BmcDark(_)
                | Self::BmcFaults(_)
                | Self::FillDisk(_)
                | Self::HoldAgent(_)
                | Self::StartTwice(_)
        )
    }

    /// Whether it wants disks that can be broken.
    pub(crate) const fn is_about_disks(&self) -> bool {
        matches!(self, Self::StallDisk(_) | Self::SlowDisk(_) | Self::BreakDisk(_) | Self::MendDisks(_))
    }

    /// Whether it wants clocks that can jump.
    pub(crate) const fn is_about_clocks(&self) -> bool {
        matches!(self, Self::JumpClock(_) | Self::SetClocks(_))
    }

    /// The hosts that it is done to.
    pub(crate) const fn hosts(&self) -> Option<&Hosts> {
        match self {
            Self::PlugOut(hosts)
            | Self::PlugOutWithBmc(hosts)
            | Self::PowerOn(hosts)
            | Self::Freeze(hosts)
            | Self::Thaw(hosts)
            | Self::HoldAgent(hosts)
            | Self::ReleaseAgent(hosts)
            | Self::BmcDark(hosts)
            | Self::BmcLight(hosts)
            | Self::BmcFaults(BmcFaults { of: hosts, .. })
            | Self::Relay(Relay { at: End::Hosts(hosts), .. })
            | Self::Kill(Processes::Agents(hosts) | Processes::Libvirtds(hosts))
            | Self::Pause(Processes::Agents(hosts) | Processes::Libvirtds(hosts)) => Some(hosts),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use defib_process::from_yaml;

    use super::*;

    #[test]
    fn clocks_jump_forwards_and_backwards() {
        let by =
            |text: &str| from_yaml::<Jump>("j", &format!("of: leader\nby: {text}\n")).map(|jump| jump.by);
        assert_eq!((by("1h").unwrap(), by("-90m").unwrap()), (3600, -5400));
        assert!(by("soon").is_err() && by("59m").is_err());
    }

    #[test]
    fn an_event_is_known_by_what_it_says() {
        let wanted = |text: &str| from_yaml::<Wanted>("w", text).unwrap();
        let host = defib_model::HostId::new("h1").unwrap();
        let event = EventKind::HostSuspected { host };
        assert!(
            wanted("event: host-suspected").is(&event)
                && wanted("event: host-suspected\nhost: h1").is(&event)
        );
        assert!(!wanted("event: host-suspected\nhost: h2").is(&event));
        assert!(!wanted("event: host-suspected\nvm: cp-1").is(&event));
        assert!(!wanted("event: host-confirmed").is(&event));
    }
}
