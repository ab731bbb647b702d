//! What a lab's cluster consists of: hosts on racks, VMs on hosts, groups. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use defib_model::inventory::{
    Definition, FaultDomain, Group, Host, Priority, Readiness, SelfFence, SpreadRule, Vm,
};
use defib_model::{GroupId, HostId, Inventory, Millis, Resources, VmId};

/// The fewest hosts: below this no majority of them is left when one fails. Only with five there are three racks, and a
/// third control-plane VM.
pub const HOSTS_MIN: usize = 4;
/// The most: a laptop has so many ports and processes to spare.
pub const HOSTS_MAX: usize = 64;

/// How large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Hosts, two to a rack.
    pub hosts: usize,
    /// VMs on the first host, the one that scenarios strike.
    pub victim_vms: usize,
    /// VMs on every other host, control-plane VMs included.
    pub other_vms: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { hosts: 8, victim_vms: 12, other_vms: 3 }
    }
}

/// The name of the host with this number, from 1.
#[must_use]
pub fn host_name(number: usize) -> String {
    format!("h{number}")
}

/// The rack of the host with this number, from 1.
#[must_use]
pub fn rack_of(number: usize) -> String {
    format!("r{}", number.div_ceil(2))
}

/// The inventory, without addresses and fencing: those are known when processes run.
///
/// # Errors
/// When the size is out of bounds.
pub fn inventory(size: Size, guest: &Path, oracle: &Path) -> anyhow::Result<Inventory> {
    ensure!(
        (HOSTS_MIN..=HOSTS_MAX).contains(&size.hosts),
        "{} hosts are not between {HOSTS_MIN} and {HOSTS_MAX}",
        size.hosts
    );
    ensure!((1..=1000).contains(&size.victim_vms), "the first host needs 1 to 1000 VMs");
    ensure!((1..=1000).contains(&size.other_vms), "every other host needs 1 to 1000 VMs");
    let mut inventory = Inventory { levels: vec!["rack".to_owned()], ..Inventory::default() };
    // Room for the victim's VMs, and elsewhere for a share of them.
    let cores = (size.victim_vms.max(size.other_vms) as u64 + 4).max(16);
    for number in 1..=size.hosts {
        let id = HostId::new(&host_name(number))?;
        let mut capacity = Resources::new(cores * 1000, cores * 4096);
        // A resource that not every host has: it shows in the plan's reasons.
        if number == 1 || number.is_multiple_of(2) {
            capacity.named.insert("gpu".to_owned(), 1);
        }
        let host = Host {
            id: id.clone(),
            domain: FaultDomain(vec![rack_of(number)]),
            capacity,
            labels: BTreeSet::new(),
            fencing: Vec::new(),
            self_fence: SelfFence::Trusted,
            spare: false,
            neighbour_address: None,
            kdump_wait: None,
        };
        inventory.hosts.insert(id, host);
    }
    let mut builder = Builder { inventory, guest: text(guest)?, oracle: text(oracle)? };
    builder.victim(size.victim_vms)?;
    for number in 2..=size.hosts {
        builder.other(number, size.other_vms)?;
    }
    let mut inventory = builder.inventory;
    let id = GroupId::new("control-plane")?;
    let members = inventory.vms.keys().filter(|vm| vm.as_str().starts_with("cp-")).cloned().collect();
    let group = Group { id: id.clone(), members, rules: vec![SpreadRule { level: 0, limit: 1, hard: true }] };
    inventory.groups.insert(id, group);
    inventory.validate()?;
    Ok(inventory)
}

fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is no UTF-8", path.display()))
}

struct Builder {
    inventory: Inventory,
    guest: String,
    oracle: String,
}

struct Kind {
    priority: Priority,
    cores: u64,
    readiness: Readiness,
    boot_ms: u64,
    named: BTreeMap<String, u64>,
}

impl Kind {
    fn plain(priority: Priority) -> Self {
        Self { priority, cores: 1, readiness: Readiness::PoweredOn, boot_ms: 0, named: BTreeMap::new() }
    }

    fn control_plane() -> Self {
        Self { cores: 2, readiness: Readiness::GuestAgent, boot_ms: 25, ..Self::plain(Priority::Critical) }
    }
}

impl Builder {
    /// The control plane's first member, then about a fifth high, half medium, the rest low.
    fn victim(&mut self, count: usize) -> anyhow::Result<()> {
        self.add("cp-1", 1, Kind::control_plane(), &[])?;
        let rest = count - 1;
        let (high, medium) = (rest.div_ceil(5), rest.div_ceil(2));
        for number in 1..count {
            if number <= high {
                let kind =
                    Kind { readiness: Readiness::GuestAgent, boot_ms: 15, ..Kind::plain(Priority::High) };
                self.add(&format!("db-{number}"), 1, kind, &[])?;
            } else if number <= high + medium {
                self.add(&format!("web-{}", number - high), 1, Kind::plain(Priority::Medium), &["db-1"])?;
            } else if number < rest {
                self.add(&format!("batch-{}", number - high - medium), 1, Kind::plain(Priority::Low), &[])?;
            } else {
                let named = [("gpu".to_owned(), 1)].into();
                self.add("ml-1", 1, Kind { named, ..Kind::plain(Priority::Low) }, &[])?;
            }
        }
        Ok(())
    }

    fn other(&mut self, number: usize, count: usize) -> anyhow::Result<()> {
        let control_plane = match number {
            3 => Some("cp-2"),
            5 => Some("cp-3"),
            _ => None,
        };
        if let Some(name) = control_plane {
            self.add(name, number, Kind::control_plane(), &[])?;
        }
        let priorities = [Priority::High, Priority::Medium, Priority::Low];
        for place in usize::from(control_plane.is_some())..count {
            let name = format!("svc-{number}-{}", place + 1);
            self.add(&name, number, Kind::plain(priorities[place % priorities.len()]), &[])?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str, host: usize, kind: Kind, depends_on: &[&str]) -> anyhow::Result<()> {
        let id = VmId::new(name)?;
        let mut resources = Resources::new(kind.cores * 1000, kind.cores * 2048);
        resources.named = kind.named;
        let depends_on: Result<BTreeSet<VmId>, _> = depends_on.iter().map(|name| VmId::new(name)).collect();
        let arguments = [&self.guest, "--oracle", &self.oracle, "--boot", &format!("{}ms", kind.boot_ms)];
        let vm = Vm {
            id: id.clone(),
            priority: kind.priority,
            resources,
            requires: BTreeSet::new(),
            depends_on: depends_on?,
            readiness: kind.readiness,
            readiness_timeout: Some(Millis(30_000)),
            datastore: Some("ds1".to_owned()),
            first_host: Some(HostId::new(&host_name(host))?),
            definition: Definition {
                driver: "process".to_owned(),
                arguments: arguments.into_iter().map(str::to_owned).collect(),
            },
        };
        self.inventory.vms.insert(id, vm);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(size: Size) -> Inventory {
        inventory(size, Path::new("/bin/guest"), Path::new("/tmp/o")).unwrap()
    }

    #[test]
    fn the_default_has_eight_hosts_in_four_racks_and_a_victim_with_twelve_vms() {
        let inventory = of(Size::default());
        let racks: BTreeSet<_> = inventory.hosts.values().map(|host| host.domain.clone()).collect();
        assert_eq!((inventory.hosts.len(), racks.len(), inventory.vms.len()), (8, 4, 12 + 7 * 3));
        let on_victim: Vec<&Vm> = inventory
            .vms
            .values()
            .filter(|vm| vm.first_host.as_ref().is_some_and(|host| host.as_str() == "h1"))
            .collect();
        assert_eq!(on_victim.len(), 12);
        let priorities: BTreeSet<Priority> = on_victim.iter().map(|vm| vm.priority).collect();
        assert_eq!(priorities.len(), 4, "critical, high, medium and low");
        assert_eq!(inventory.groups.values().next().unwrap().members.len(), 3);
    }

    #[test]
    fn every_size_that_is_allowed_makes_a_valid_inventory() {
        for hosts in [HOSTS_MIN, 7, 9, HOSTS_MAX] {
            for victim_vms in [1, 2, 3, 5, 50] {
                let inventory = of(Size { hosts, victim_vms, other_vms: 1 });
                assert_eq!(inventory.vms.len(), victim_vms + hosts - 1, "{hosts} hosts");
            }
        }
        let size = Size { hosts: HOSTS_MIN - 1, ..Size::default() };
        assert!(inventory(size, Path::new("/g"), Path::new("/o")).is_err());
    }
}
