//! What a scenario may say: one command a line, in an operator's words.

use defib_model::{ClusterVersion, HostId, command::Operator};

use super::{machines::Machine, world::World};

/// A scenario under way: the world and the words for it.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) world: World,
    pub(crate) policy_changed: bool,
}

/// Why a command can't be done.
pub(crate) type Answer = Result<(), String>;

/// `name=value`, if there is one.
pub(crate) fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

pub(crate) fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

/// `4GiB`, or MiB without a unit.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    text.strip_suffix("GiB").map_or_else(|| number(text), |gib| number(gib).map(|gib| gib * 1024))
}

pub(crate) fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.into())).map_err(|error| error.to_string())
}

pub(crate) fn names(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.into_iter().flat_map(|text| text.split(','))
}

impl Scenario {
    pub(crate) fn new() -> Self {
        Self { world: World::new(3), policy_changed: false }
    }

    /// All its replicas are of a release that supports this version at most.
    pub(crate) fn of_release(newest: ClusterVersion) -> Self {
        let mut scenario = Self::new();
        for replica in &mut scenario.world.replicas {
            replica.release = newest;
            replica.controller = replica.controller.clone().supporting(newest);
        }
        scenario
    }

    /// Does what one line says; the answer is what is printed.
    pub(crate) fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let outcome = match words.split_first() {
            Some((command, rest)) => self.command(command, rest),
            None => Ok(()),
        };
        if let Err(why) = outcome {
            self.world.lines.push(format!("cannot {line}: {why}"));
        }
        for violation in self.world.checks.take() {
            self.world.lines.push(format!("VIOLATION {violation}"));
        }
        let lines = std::mem::take(&mut self.world.lines);
        lines.into_iter().map(|line| line + "\n").collect()
    }

    fn command(&mut self, command: &str, rest: &[&str]) -> Answer {
        match command {
            "cluster" => self.cluster(rest),
            "host" => self.host(rest),
            "vm" => self.vm(rest),
            "group" => self.group(rest),
            "policy" => self.policy(rest),
            "start" => self.start(rest),
            "run" => self.run(rest),
            "power" | "mains" | "freeze" | "thaw" | "network" | "bmc" | "agent" | "switch" | "crash"
            | "clone" => self.on_world(command, rest),
            "hint" => self.hint(rest),
            "bus" => self.bus(rest),
            "guest" => self.guest(rest),
            "test-fencing" => self.test_fencing(rest),
            "quiet" => self.quiet(rest),
            "kill" | "pause" | "restart" | "release" | "deaf" => self.on_replica(command, rest),
            "operator" => self.operator(rest),
            "status" | "vms" | "explain" | "why" | "plan" | "invariants" | "count" | "story" => {
                self.show(command, rest)
            }
            _ => Err("no such command".into()),
        }
    }

    pub(crate) fn host_id(&self, name: Option<&&str>) -> Result<HostId, String> {
        let name = name.ok_or("name a host")?;
        let host = HostId::new(name).map_err(|error| error.reason.to_string())?;
        if self.world.inventory.hosts.contains_key(&host) {
            Ok(host)
        } else {
            Err(format!("there is no host {name}"))
        }
    }

    /// Hosts by name, by rack, or `all`.
    pub(crate) fn hosts(&self, name: Option<&&str>) -> Result<Vec<HostId>, String> {
        let name = *name.ok_or("name a host, a rack, or all")?;
        let hosts: Vec<HostId> = self
            .world
            .inventory
            .hosts
            .values()
            .filter(|host| {
                name == "all" || host.id.as_str() == name || host.domain.0.iter().any(|part| part == name)
            })
            .map(|host| host.id.clone())
            .collect();
        if hosts.is_empty() { Err(format!("there is no host or rack {name}")) } else { Ok(hosts) }
    }

    pub(crate) fn replica(name: Option<&&str>) -> Result<usize, String> {
        let name = name.ok_or("name a replica")?;
        let number = number(name.strip_prefix('r').ok_or("replicas are r1, r2, r3")?)?;
        usize::try_from(number.saturating_sub(1)).map_err(|error| error.to_string())
    }

    pub(crate) fn machine(&mut self, host: &HostId) -> Result<&mut Machine, String> {
        self.world.machines.get_mut(host).ok_or_else(|| "start first".to_string())
    }
}

/// The operator of all scenarios; `_` stands for a space.
pub(crate) fn operator(reason: &str) -> Operator {
    Operator { name: "ada".into(), reason: reason.replace('_', " ") }
}
