//! I6 (S7): capacity, labels and hard anti-affinity hold for every placement, counted naively from the committed
//! places.

use defib_engine::ledger::Ledger;
use defib_model::{HostId, Inventory, Resources, VmId};

use super::Common;

/// The first rule that a host breaks with what is placed on it, `vm` included; `None` if it breaks none.
pub(crate) fn broken(ledger: &Ledger, vm: &VmId, host: &HostId) -> Option<String> {
    let inventory = ledger.inventory();
    let (declared, on) = (inventory.vms.get(vm)?, inventory.hosts.get(host)?);
    if !on.labels.is_superset(&declared.requires) {
        return Some(format!("host {host} lacks labels that vm {vm} requires"));
    }
    let place_of = |other: &VmId| {
        if other == vm {
            Some(host)
        } else {
            ledger.vms().get(other).and_then(|record| record.occupied_host())
        }
    };
    let mut used = Resources::default();
    for (other, there) in &inventory.vms {
        if place_of(other) == Some(host) {
            used.add(&there.resources);
        }
    }
    if !on.capacity.fits(&used) {
        return Some(format!("host {host} would have to give {used:?} and has {:?}", on.capacity));
    }
    for (id, group) in inventory.groups.iter().filter(|(_, group)| group.members.contains(vm)) {
        for rule in group.rules.iter().filter(|rule| rule.hard) {
            let domain = Inventory::domain_of(on, rule.level);
            let together = group.members.iter().filter(|member| {
                place_of(member)
                    .and_then(|host| inventory.hosts.get(host))
                    .is_some_and(|host| Inventory::domain_of(host, rule.level) == domain)
            });
            let count = together.count();
            if count > rule.limit as usize {
                return Some(format!(
                    "{count} members of group {id} would be in {domain:?}, at most {}",
                    rule.limit
                ));
            }
        }
    }
    None
}

pub(super) fn placed(common: &mut Common, now: u64, vm: &VmId, host: &HostId, ledger: &Ledger) {
    if let Some(rule) = broken(ledger, vm, host) {
        common.violated("I6", now, format!("vm {vm} is placed on host {host}, but {rule}"));
    }
}
