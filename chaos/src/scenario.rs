//! What a scenario file says: what is broken, when, and what must come of it. A file is one scenario, or, where it has
//! `each`, one for each value of a word in it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use defib_process::from_yaml;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::step::{Cut, Span, Step, Wanted};
use crate::words::Hosts;

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
    /// Each replica's data on a disk that can stall, be slow, and fail.
    pub(crate) shaky_disks: bool,
    /// Each replica has a wall clock of its own, which can jump.
    pub(crate) own_clocks: bool,
    /// So many of the VMs on the first host boot a Linux of their own.
    pub(crate) linux_guests: usize,
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
            shaky_disks: false,
            own_clocks: false,
            linux_guests: 0,
            wide_brakes: false,
            ipmi: false,
            trust_self_fence: true,
        }
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
    /// What each replica whose disk failed must have said when it ended.
    pub(crate) last_words: Option<String>,
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
        let victims = self.lab.victim_vms;
        ensure!(self.lab.linux_guests <= victims, "lab: linux-guests: the first host has {victims} VMs");
        ensure!(
            self.lab.disk_mib.is_none() || !self.lab.shaky_disks,
            "lab: a disk can be filled (disk-mib) or shaky (shaky-disks), not both"
        );
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
            if let Step::Relay(relay) = step {
                relay.check()?;
            }
            let lab = &self.lab;
            for (wants, has, told) in [
                (
                    matches!(step, Step::FillDisk(_)),
                    lab.disk_mib.is_some(),
                    "fill-disk wants a lab with disk-mib",
                ),
                (step.is_about_disks(), lab.shaky_disks, "only a lab with shaky-disks has such disks"),
                (step.is_about_clocks(), lab.own_clocks, "only a lab with own-clocks has clocks that jump"),
            ] {
                ensure!(has || !wants, "steps: {told}");
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
            (format!("{ONE}  - stall-disk: leader\n"), "shaky-disks"),
            (format!("{ONE}  - jump-clock: {{ of: leader, by: 1h }}\n"), "own-clocks"),
            (format!("{ONE}  - relay: {{ at: h1 }}\n"), "does nothing"),
            (format!("{ONE}  - relay: {{ at: h1, lose: 101 }}\n"), "lose is from"),
            (format!("{ONE}  - relay: {{ at: bmc of h1, lose: 5 }}\n"), "no cable of its own"),
        ] {
            let problem = problem(&text);
            assert!(problem.contains(told), "{problem} has no {told}");
        }
    }
}
