//! I5 (S8): no VM is ordered to start while one of a higher tier has a place, is not ready, and has not used up its
//! time.
//!
//! A leader's own time begins with the placement or later, so what has waited since the placement for less than its
//! timeout, by the leader's own count, is certainly not overdue.

use defib_engine::{
    ledger::{Ledger, Place},
    proof::Restart,
};
use defib_model::{ClusterTime, EffectId, Inventory, Millis, Vm, VmId, inventory::Readiness};

use super::Common;

/// What cluster time may lag behind the leader's own.
const SLACK: Millis = Millis(100);

/// Whether a VM depends on another, at whatever distance.
fn depends(inventory: &Inventory, vm: &VmId, on: &VmId, depth: usize) -> bool {
    depth < inventory.vms.len()
        && inventory.vms.get(vm).is_some_and(|declared| {
            declared.depends_on.iter().any(|other| other == on || depends(inventory, other, on, depth + 1))
        })
}

/// What a VM should still wait for, if it is ordered to start now: something that it depends on directly is neither
/// ready nor given up, and the VM's own time is not used up.
fn waits_in_vain(at: ClusterTime, ledger: &Ledger, own: &Vm) -> Option<String> {
    let Some(Place::Intended { since, .. }) = ledger.vms().get(&own.id).map(|record| &record.place) else {
        return None;
    };
    let timeout = own.readiness_timeout.unwrap_or_else(|| ledger.policy().restart.tier_timeout);
    if at.since(*since).plus(SLACK) >= timeout {
        return None;
    }
    let waited_for = |other: &&VmId| {
        let (Some(declared), Some(record)) = (ledger.inventory().vms.get(*other), ledger.vms().get(*other))
        else {
            return false;
        };
        let ready = match record.place {
            Place::Running { .. } => record.readiness.is_some_and(|reached| reached >= declared.readiness),
            Place::Intended { .. } => declared.readiness == Readiness::Placed,
            Place::GivenUp { .. } => true,
            Place::Never | Place::Lost { .. } | Place::Down { .. } => false,
        };
        !ready
    };
    let other = own.depends_on.iter().find(waited_for)?;
    Some(format!("vm {} is ordered to start while vm {other}, on which it depends, is not ready", own.id))
}

pub(super) fn ordered(
    common: &mut Common,
    now: u64,
    at: ClusterTime,
    ledger: &Ledger,
    restart: &Restart,
    effect: &EffectId,
) {
    // An order that is repeated was decided before.
    if effect.attempt != 1 {
        return;
    }
    let Some(own) = ledger.inventory().vms.get(restart.vm()) else { return };
    if let Some(text) = waits_in_vain(at, ledger, own) {
        common.violated("I5", now, text);
    }
    // A VM is as urgent as what waits for it.
    let waits = |vm: &&Vm| {
        !matches!(ledger.vms().get(&vm.id).map(|record| &record.place), Some(Place::Running { .. }))
            && depends(ledger.inventory(), &vm.id, restart.vm(), 0)
    };
    let waiting = ledger.inventory().vms.values().filter(waits).map(|vm| vm.priority).min();
    let priority = waiting.map_or(own.priority, |waiting| waiting.min(own.priority));
    for (id, declared) in &ledger.inventory().vms {
        if declared.priority >= priority {
            continue;
        }
        let Some(Place::Intended { since, .. }) = ledger.vms().get(id).map(|record| &record.place) else {
            continue;
        };
        // What waits for the very VM that is ordered, waits for it whatever its tier is.
        if declared.readiness == Readiness::Placed || depends(ledger.inventory(), id, restart.vm(), 0) {
            continue;
        }
        let timeout = declared.readiness_timeout.unwrap_or_else(|| ledger.policy().restart.tier_timeout);
        if at.since(*since).plus(SLACK) < timeout {
            let text = format!(
                "vm {} ({}) is ordered to start while vm {id} ({}) has had its place for {} only",
                restart.vm(),
                own.priority,
                declared.priority,
                at.since(*since)
            );
            common.violated("I5", now, text);
        }
    }
}
