//! What there is: hosts on their fault domains, VMs, groups. Versioned, replicated, changed by a command.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use serde::{Deserialize, Serialize};

mod fencing;
mod identity;
mod names;
mod sense;

pub use fencing::{
    CipherSuite, EventSource, FenceAgentTarget, FenceMethod, FencingLevel, IpmiTarget, RedfishTarget,
    SelfFence,
};
pub use identity::significant;

use crate::{GroupId, HostId, Millis, Resources, VmId};

/// A path of names, widest first: `zone/row/rack/chassis`. The names of the levels are the inventory's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultDomain(pub Vec<String>);

impl FaultDomain {
    /// The path down to and including `level` (0 is the widest); `None` if it is not that deep.
    #[must_use]
    pub fn prefix(&self, level: usize) -> Option<&[String]> {
        self.0.get(..=level)
    }
}

impl fmt::Display for FaultDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

/// A physical machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Host {
    /// Its unique name.
    pub id: HostId,
    /// Where it hangs.
    pub domain: FaultDomain,
    /// What it can give to VMs.
    pub capacity: Resources,
    /// Properties that VMs may require, such as a CPU model or an attached network.
    #[serde(default)]
    pub labels: BTreeSet<String>,
    /// Levels of fencing in the order of trial.
    #[serde(default)]
    pub fencing: Vec<FencingLevel>,
    /// Whether an expired lease may prove its death.
    #[serde(default)]
    pub self_fence: SelfFence,
    /// Kept free for recoveries: nothing is placed here by the first placement of a VM.
    #[serde(default)]
    pub spare: bool,
    /// Where its agent answers the neighbours' question, `address:port`.
    #[serde(default)]
    pub neighbour_address: Option<String>,
    /// How long a fence waits after the verdict for the word of this host's capture kernel, so that a crash can be
    /// dumped; `None`: it does not wait. What proves the death meanwhile ends the wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kdump_wait: Option<Millis>,
}

impl Host {
    /// A host of which nothing else is declared: every other field as a document that leaves it out gives it.
    #[must_use]
    pub fn new(id: HostId, capacity: Resources) -> Self {
        Self {
            id,
            domain: FaultDomain(Vec::new()),
            capacity,
            labels: BTreeSet::new(),
            fencing: Vec::new(),
            self_fence: SelfFence::default(),
            spare: false,
            neighbour_address: None,
            kdump_wait: None,
        }
    }
}

/// Who restarts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Control-plane VMs and the like.
    Critical,
    /// Before the usual.
    High,
    /// The usual.
    #[default]
    Medium,
    /// After the usual.
    Low,
    /// Last.
    Lowest,
    /// Never restarted by us.
    Disabled,
}

impl Priority {
    /// The tiers in the order of restart, without `Disabled`.
    pub const TIERS: [Self; 5] = [Self::Critical, Self::High, Self::Medium, Self::Low, Self::Lowest];
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
            Self::Lowest => "lowest",
            Self::Disabled => "disabled",
        })
    }
}

/// What a VM must reach before the next tier, or a VM that depends on it, may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// It has a place.
    Placed,
    /// The hypervisor runs it.
    #[default]
    PoweredOn,
    /// Its guest answers.
    GuestAgent,
    /// Kubernetes calls the machine ready.
    NodeReady,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Placed => "placed",
            Self::PoweredOn => "powered-on",
            Self::GuestAgent => "guest-agent",
            Self::NodeReady => "node-ready",
        })
    }
}

/// How to run a VM: which driver, and what only that driver understands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Definition {
    /// Name of the hypervisor driver, such as `process`.
    pub driver: String,
    /// The driver's own words: for `process` the command and its arguments.
    #[serde(default)]
    pub arguments: Vec<String>,
}

/// A virtual machine that is protected.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vm {
    /// Its unique name.
    pub id: VmId,
    /// Which tier restarts it.
    #[serde(default)]
    pub priority: Priority,
    /// What it needs of a host.
    pub resources: Resources,
    /// Labels that its host must have.
    #[serde(default)]
    pub requires: BTreeSet<String>,
    /// VMs that must be ready before it starts.
    #[serde(default)]
    pub depends_on: BTreeSet<VmId>,
    /// When it counts as ready.
    #[serde(default)]
    pub readiness: Readiness,
    /// How long its tier waits for it; `None`: the policy's.
    #[serde(default)]
    pub readiness_timeout: Option<Millis>,
    /// Where its disks are, for the throttle per datastore.
    #[serde(default)]
    pub datastore: Option<String>,
    /// Where it is to run first; `None`: anywhere.
    #[serde(default)]
    pub first_host: Option<HostId>,
    /// How to run it.
    pub definition: Definition,
}

impl Vm {
    /// A VM of which nothing else is declared: every other field as a document that leaves it out gives it.
    #[must_use]
    pub fn new(id: VmId, resources: Resources, definition: Definition) -> Self {
        Self {
            id,
            priority: Priority::default(),
            resources,
            requires: BTreeSet::new(),
            depends_on: BTreeSet::new(),
            readiness: Readiness::default(),
            readiness_timeout: None,
            datastore: None,
            first_host: None,
            definition,
        }
    }
}

/// At most `limit` members of a group in one fault domain of a level.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SpreadRule {
    /// Index into [`Inventory::levels`]; `levels.len()` stands for the host itself.
    pub level: usize,
    /// How many members one domain may hold; at least 1.
    pub limit: u32,
    /// A hard rule is never broken; a soft one is broken last, and the event says so.
    pub hard: bool,
}

/// An anti-affinity group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Group {
    /// Its unique name.
    pub id: GroupId,
    /// Its VMs.
    pub members: BTreeSet<VmId>,
    /// Its rules, all of which hold at once.
    pub rules: Vec<SpreadRule>,
}

/// Everything that the operators have declared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// Names of the fault-domain levels, widest first.
    pub levels: Vec<String>,
    /// All hosts.
    pub hosts: BTreeMap<HostId, Host>,
    /// All protected VMs.
    pub vms: BTreeMap<VmId, Vm>,
    /// All groups.
    pub groups: BTreeMap<GroupId, Group>,
}

/// What is wrong with an inventory, and where: `field` is a path such as `vms.cp-1.depends-on`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventoryError {
    /// Path of the offending field.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for InventoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl core::error::Error for InventoryError {}

impl Inventory {
    /// The name of a level as operators know it; `host` for the level below the last.
    #[must_use]
    pub fn level_name(&self, level: usize) -> &str {
        self.levels.get(level).map_or("host", String::as_str)
    }

    /// Everything that contradicts itself: unknown names, cycles, groups that can never be satisfied.
    ///
    /// # Errors
    /// The first contradiction, by field.
    pub fn validate(&self) -> Result<(), InventoryError> {
        let wrong = |field: String, message: String| Err(InventoryError { field, message });
        for (id, host) in &self.hosts {
            if host.domain.0.len() != self.levels.len() {
                return wrong(
                    format!("hosts.{id}.domain"),
                    format!(
                        "{:?} has {} names but fault-domain-levels has {}; give one name per level",
                        host.domain.to_string(),
                        host.domain.0.len(),
                        self.levels.len()
                    ),
                );
            }
            for (number, level) in host.fencing.iter().enumerate() {
                for (place, method) in level.0.iter().enumerate() {
                    if let Err((name, message)) = method.validate() {
                        return wrong(format!("hosts.{id}.fencing[{number}][{place}].{name}"), message);
                    }
                }
            }
        }
        self.distinct_targets(|identifier| Some(identifier.to_ascii_lowercase()))?;
        for (id, vm) in &self.vms {
            if let Some(host) = &vm.first_host
                && !self.hosts.contains_key(host)
            {
                return wrong(format!("vms.{id}.first-host"), format!("there is no host {host}"));
            }
            for other in &vm.depends_on {
                if !self.vms.contains_key(other) {
                    return wrong(format!("vms.{id}.depends-on"), format!("there is no VM {other}"));
                }
            }
            if !self
                .hosts
                .values()
                .any(|host| host.capacity.fits(&vm.resources) && host.labels.is_superset(&vm.requires))
            {
                return wrong(
                    format!("vms.{id}"),
                    "no host has the capacity and the labels that it asks for; it could never run".into(),
                );
            }
        }
        self.validate_dependencies()?;
        for (id, group) in &self.groups {
            for member in &group.members {
                if !self.vms.contains_key(member) {
                    return wrong(format!("groups.{id}.members"), format!("there is no VM {member}"));
                }
            }
            for rule in &group.rules {
                let name = self.level_name(rule.level);
                if rule.level > self.levels.len() {
                    return wrong(format!("groups.{id}.rules"), "names a level that does not exist".into());
                }
                if rule.limit == 0 {
                    return wrong(
                        format!("groups.{id}.rules"),
                        format!("limit per {name} is 0; give at least 1"),
                    );
                }
                if !rule.hard {
                    continue;
                }
                let domains: BTreeSet<Vec<&str>> =
                    self.hosts.values().map(|host| Self::domain_of(host, rule.level)).collect();
                let room = (domains.len() as u64).saturating_mul(u64::from(rule.limit));
                if room < group.members.len() as u64 {
                    return wrong(
                        format!("groups.{id}.rules"),
                        format!(
                            "can never be satisfied: {} members, but {} {name}(s) with at most {} each hold {room}",
                            group.members.len(),
                            domains.len(),
                            rule.limit
                        ),
                    );
                }
            }
        }
        Ok(())
    }

    /// The domain that holds `host` at `level`; the host itself below the last level.
    #[must_use]
    pub fn domain_of(host: &Host, level: usize) -> Vec<&str> {
        let mut path: Vec<&str> =
            host.domain.0.iter().take(level.saturating_add(1)).map(String::as_str).collect();
        if level >= host.domain.0.len() {
            path.push(host.id.as_str());
        }
        path
    }

    fn validate_dependencies(&self) -> Result<(), InventoryError> {
        // Kahn's algorithm: what can't be ordered is on a cycle, or behind one.
        let mut waiting: BTreeMap<&VmId, usize> =
            self.vms.iter().map(|(id, vm)| (id, vm.depends_on.len())).collect();
        let mut dependents: BTreeMap<&VmId, Vec<&VmId>> = BTreeMap::new();
        for (id, vm) in &self.vms {
            for other in &vm.depends_on {
                dependents.entry(other).or_default().push(id);
            }
        }
        let mut free: Vec<&VmId> =
            waiting.iter().filter(|(_, count)| **count == 0).map(|(id, _)| *id).collect();
        while let Some(id) = free.pop() {
            waiting.remove(id);
            for dependent in dependents.get(id).into_iter().flatten() {
                if let Some(count) = waiting.get_mut(*dependent) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        free.push(dependent);
                    }
                }
            }
        }
        let Some((first, _)) = waiting.first_key_value() else { return Ok(()) };
        // Walk along unresolved dependencies until a VM repeats: that is a cycle to show.
        let mut path: Vec<&VmId> = alloc::vec![*first];
        while let Some(last) = path.last() {
            let Some(next) = self
                .vms
                .get(*last)
                .and_then(|vm| vm.depends_on.iter().find(|other| waiting.contains_key(*other)))
            else {
                break;
            };
            if let Some(start) = path.iter().position(|id| *id == next) {
                path.drain(..start);
                path.push(next);
                break;
            }
            path.push(next);
        }
        let shown: Vec<&str> = path.iter().map(|id| id.as_str()).collect();
        Err(InventoryError {
            field: format!("vms.{}.depends-on", shown.first().copied().unwrap_or_default()),
            message: format!("cyclic dependency: {}", shown.join(" -> ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn host(id: &str, rack: &str) -> Host {
        Host {
            domain: FaultDomain(vec![rack.into()]),
            ..Host::new(HostId::new(id).unwrap(), Resources::new(4000, 8192))
        }
    }

    fn vm(id: &str, depends_on: &[&str]) -> Vm {
        Vm {
            depends_on: depends_on.iter().map(|id| VmId::new(id).unwrap()).collect(),
            ..Vm::new(VmId::new(id).unwrap(), Resources::new(1000, 1024), Definition::default())
        }
    }

    fn inventory(vms: Vec<Vm>) -> Inventory {
        let hosts = [host("h1", "r1"), host("h2", "r1")];
        Inventory {
            levels: vec!["rack".into()],
            hosts: hosts.into_iter().map(|host| (host.id.clone(), host)).collect(),
            vms: vms.into_iter().map(|vm| (vm.id.clone(), vm)).collect(),
            groups: BTreeMap::new(),
        }
    }

    #[test]
    fn a_dependency_cycle_is_shown_as_a_path() {
        let error =
            inventory(vec![vm("a", &["b"]), vm("b", &["c"]), vm("c", &["b"])]).validate().unwrap_err();
        assert_eq!(error.message, "cyclic dependency: b -> c -> b");
    }

    #[test]
    fn a_group_that_can_never_be_satisfied_is_refused_with_the_numbers() {
        let mut inventory = inventory(vec![vm("a", &[]), vm("b", &[])]);
        let id = GroupId::new("cp").unwrap();
        let members = inventory.vms.keys().cloned().collect();
        let rules = vec![SpreadRule { level: 0, limit: 1, hard: true }];
        inventory.groups.insert(id.clone(), Group { id, members, rules });
        let error = inventory.validate().unwrap_err();
        assert!(error.message.contains("2 members, but 1 rack(s) with at most 1 each hold 1"), "{error}");
    }

    #[test]
    fn the_level_below_the_last_is_the_host_itself() {
        let host = host("h1", "r1");
        assert_eq!(Inventory::domain_of(&host, 0), ["r1"]);
        assert_eq!(Inventory::domain_of(&host, 1), ["r1", "h1"]);
    }
}
