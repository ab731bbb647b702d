//! What a scenario file says: what is broken, when, and what must come of it. A file is one scenario, or, where it has
//! `each`, one for each value of a word in it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use defib_lab::redfish::Faults;
use defib_model::EventKind;
use defib_process::from_yaml;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::cuts::Network;
use crate::words::{End, Hosts, Processes, Replicas};

/// One scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Scenario {
    /// The name of its file, with the value of `each`.
    #[serde(skip)]
    pub(crate) name: String,
    /// In one sentence.
    pub(crate) about: String,
    /// Whose incident this was, where it happened to somebody.
    #[serde(default)]
    pub(crate) incident: Option<String>,
    /// Whether CI plays it.
    #[serde(default)]
    pub(crate) ci: bool,
    /// The lab that it wants.
    #[serde(default)]
    pub(crate) lab: Lab,
    /// What happens, one after the other.
    pub(crate) steps: Vec<Step>,
    /// What must have come of it, beyond the invariants.
    #[serde(default)]
    pub(crate) must: Must,
}

/// What is built.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Lab {
    /// Hosts, two to a rack.
    pub(crate) hosts: usize,
    /// VMs on the first host.
    pub(crate) victim_vms: usize,
    /// VMs on each other host.
    pub(crate) other_vms: usize,
    /// 20 ms beats instead of 100 ms.
    pub(crate) fast: bool,
    /// Heartbeats on the management network, too.
    pub(crate) second_path: bool,
    /// Each replica's data on a disk of so many MiB that can be filled.
    pub(crate) disk_mib: Option<u32>,
    /// Brakes that let one host after the other be struck.
    pub(crate) wide_brakes: bool,
    /// BMCs that speak IPMI instead of Redfish: `ipmi_sim`.
    pub(crate) ipmi: bool,
    /// What proves the death of a host whose BMC says nothing: its lease, if this is set.
    pub(crate) trust_self_fence: bool,
}

impl Default for Lab {
    fn default() -> Self {
        Self {
            hosts: 4,
            victim_vms: 3,
            other_vms: 1,
            fast: false,
            second_path: false,
            disk_mib: None,
            wide_brakes: false,
            ipmi: false,
            trust_self_fence: true,
        }
    }
}

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
    /// All cuts are mended.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// What must have come of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Must {
    /// The hosts that lose their VMs. Without it: those whose plug was pulled or that were frozen.
    pub(crate) strike: Option<Vec<String>>,
    /// Per host the proofs one of which must be the last one in the stream.
    pub(crate) prove: BTreeMap<String, Vec<String>>,
    /// Events that must not come after the first fault.
    pub(crate) never: Vec<Wanted>,
    /// Events that must have come.
    pub(crate) tell: Vec<Wanted>,
    /// No host is condemned, fenced or taken for dead.
    pub(crate) accuse_nobody: bool,
    /// Every VM that ran before still runs, the same instance.
    pub(crate) stop_nothing: bool,
    /// How often a BMC may be told to switch, at most.
    pub(crate) switch_at_most: BTreeMap<String, usize>,
    /// Invariants that must be found broken, and no others: only where something was broken that they forbid.
    pub(crate) find_broken: Vec<String>,
    /// How long after the first fault each step may be over.
    pub(crate) limits: Limits,
}

/// Time limits, from the first fault.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Limits {
    /// A quorum condemned the host.
    pub(crate) verdict: Option<Span>,
    /// Its death is proven.
    pub(crate) proof: Option<Span>,
    /// QEMU of the last VM runs elsewhere.
    pub(crate) process: Option<Span>,
    /// The last guest beats elsewhere.
    pub(crate) guest: Option<Span>,
    /// No proof may be earlier.
    pub(crate) proof_not_before: Option<Span>,
}

impl Scenario {
    /// All scenarios of a file.
    ///
    /// # Errors
    /// What is wrong in it.
    pub(crate) fn read(file: &str, text: &str) -> anyhow::Result<Vec<Self>> {
        let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or(file);
        let Value::Object(mut document) = from_yaml(file, text)? else { bail!("{file}: is no document") };
        let Some(each) = document.remove("each") else {
            // Read once more, for places in what is said of mistakes.
            let scenario = Self { name: stem.to_owned(), ..from_yaml(file, text)? };
            scenario.check().with_context(|| file.to_owned())?;
            return Ok(vec![scenario]);
        };
        let Value::Object(each) = each else { bail!("{file}: each: words with lists of values belong here") };
        let mut combinations = vec![Vec::new()];
        for (word, values) in &each {
            let Value::Array(values) = values else { bail!("{file}: each: {word} wants a list") };
            ensure!(!values.is_empty(), "{file}: each: {word} has no values");
            ensure!(
                text.contains(&format!("${word}")),
                "{file}: each: {word} is not used: say ${word} somewhere"
            );
            let mut longer = Vec::new();
            for former in &combinations {
                for value in values {
                    let value =
                        value.as_str().with_context(|| format!("{file}: each: {word}: texts belong here"))?;
                    let mut one: Vec<(String, String)> = former.clone();
                    one.push((word.clone(), value.to_owned()));
                    longer.push(one);
                }
            }
            combinations = longer;
        }
        let mut all = Vec::new();
        for values in combinations {
            let mut name = stem.to_owned();
            for (_, value) in &values {
                name.push('.');
                name.extend(value.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }));
            }
            let mut one = Value::Object(document.clone());
            for (word, value) in &values {
                replace(&mut one, &format!("${word}"), value);
            }
            let scenario: Self = serde_json::from_value(one).with_context(|| format!("{file}: {name}"))?;
            let scenario = Self { name, ..scenario };
            scenario.check().with_context(|| format!("{file}: {}", scenario.name))?;
            all.push(scenario);
        }
        Ok(all)
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.steps.is_empty(), "steps: there are none");
        ensure!(self.steps.iter().any(Step::breaks), "steps: nothing is broken");
        let known: Vec<String> = (1..=self.lab.hosts).map(defib_lab::cluster::layout::host_name).collect();
        let hosts = self
            .must
            .prove
            .keys()
            .chain(self.must.switch_at_most.keys())
            .chain(self.must.strike.iter().flatten());
        for host in hosts {
            ensure!(known.contains(host), "must: the lab has no host {host}");
        }
        for step in &self.steps {
            if let Some(Hosts::Named(names)) = step.hosts() {
                let missing = names.iter().find(|name| !known.contains(name));
                ensure!(missing.is_none(), "steps: the lab has no host {}", missing.map_or("", |name| name));
            }
            if let Step::Cut(Cut { percent: Some(percent), .. }) = step {
                ensure!((1..=100).contains(percent), "steps: cut: percent is from 1 to 100");
            }
            if let Step::FillDisk(_) = step {
                ensure!(self.lab.disk_mib.is_some(), "steps: fill-disk wants a lab with disk-mib");
            }
        }
        Ok(())
    }

    /// Hosts whose VMs are lost; `resolve` names the members of a group.
    pub(crate) fn struck(&self, resolve: impl Fn(&Hosts) -> Vec<String>) -> Vec<String> {
        if let Some(named) = &self.must.strike {
            return named.clone();
        }
        let mut struck = Vec::new();
        for step in &self.steps {
            if let Step::PlugOut(hosts) | Step::PlugOutWithBmc(hosts) | Step::Freeze(hosts) = step {
                struck.extend(resolve(hosts));
            }
        }
        struck.sort();
        struck.dedup();
        struck
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
                | Self::BmcDark(_)
                | Self::BmcFaults(_)
                | Self::FillDisk(_)
                | Self::HoldAgent(_)
                | Self::StartTwice(_)
        )
    }

    /// The hosts that it is done to.
    const fn hosts(&self) -> Option<&Hosts> {
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
            | Self::Kill(Processes::Agents(hosts) | Processes::Libvirtds(hosts))
            | Self::Pause(Processes::Agents(hosts) | Processes::Libvirtds(hosts)) => Some(hosts),
            _ => None,
        }
    }
}

fn replace(value: &mut Value, word: &str, by: &str) {
    match value {
        Value::String(text) => {
            // A number or a truth stays one.
            let new = text.replace(word, by);
            *value = match (*text == word).then(|| serde_json::from_str(by)) {
                Some(Ok(plain @ (Value::Bool(_) | Value::Number(_)))) => plain,
                _ => Value::String(new),
            };
        }
        Value::Array(values) => values.iter_mut().for_each(|value| replace(value, word, by)),
        Value::Object(fields) => {
            let old = std::mem::take(fields);
            let renamed = |(name, mut value): (String, Value)| {
                replace(&mut value, word, by);
                (name.replace(word, by), value)
            };
            *fields = old.into_iter().map(renamed).collect::<Map<_, _>>();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "about: x\nsteps:\n  - plug-out: h1\n  - recovered: { within: 9s }\n";

    fn problem(text: &str) -> String {
        format!("{:#}", Scenario::read("a.yaml", text).unwrap_err())
    }

    #[test]
    fn a_file_is_one_scenario_of_its_name_and_strikes_what_it_unplugs() {
        let all = Scenario::read("dir/power-cut.yaml", ONE).unwrap();
        let [one] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((one.name.as_str(), one.lab.hosts), ("power-cut", 4));
        let named = |hosts: &Hosts| if let Hosts::Named(names) = hosts { names.clone() } else { Vec::new() };
        assert_eq!(one.struck(named), ["h1"]);
    }

    #[test]
    fn a_file_with_each_is_one_scenario_per_value() {
        let text = "about: kills $who after $event\neach: { who: [leader, agent of h2], event: [death-proven] }\nsteps:\n  - wait-for: { event: $event }\n  - kill: $who\n";
        let names: Vec<_> =
            Scenario::read("k.yaml", text).unwrap().into_iter().map(|one| (one.name, one.about)).collect();
        // Words come in the order of their names.
        assert_eq!(names[0], ("k.death-proven.leader".into(), "kills leader after death-proven".into()));
        assert_eq!(names[1].0, "k.death-proven.agent-of-h2");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, told) in [
            (ONE.replace("plug-out", "plug-in"), "plug-in"),
            (ONE.replace("h1", "h9"), "no host h9"),
            (ONE.replace("9s", "9"), "time unit"),
            (format!("{ONE}must: {{ never: [{{ event: host-confused }}] }}\n"), "host-confused"),
            (format!("{ONE}must: {{ prove: {{ h7: [new-boot] }} }}\n"), "no host h7"),
            (format!("{ONE}each: {{ who: [leader] }}\n"), "who is not used"),
            ("about: x\nsteps:\n  - whole: { within: 9s }\n".to_owned(), "nothing is broken"),
            (format!("{ONE}  - fill-disk: leader\n"), "disk-mib"),
        ] {
            let problem = problem(&text);
            assert!(problem.contains(told), "{problem} has no {told}");
        }
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
