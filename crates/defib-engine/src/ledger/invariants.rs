//! Invariants that the ledger can check of itself. A violation disarms instead of guessing.

use alloc::{format, string::String};

use super::{
    Ledger,
    records::{Place, ReleaseRecord, Standing},
};

/// Cheap enough for every command: looks at VMs whose start is not confirmed, and at hosts with VMs.
#[must_use]
pub(super) fn check_touched(ledger: &Ledger) -> Option<String> {
    for vm in &ledger.index.pending {
        let Some(record) = ledger.vms.get(vm) else { continue };
        if let Place::Intended { host, host_epoch, release, .. } = &record.place {
            let standing = ledger.hosts.get(host).map(|host| host.standing);
            if standing == Some(Standing::Dead) || standing == Some(Standing::NeverSeen) {
                return Some(format!("I2: vm {vm} is intended on host {host}, which is not in use"));
            }
            if ledger.hosts.get(host).is_some_and(|host| host.epoch < *host_epoch) {
                return Some(format!("I3: vm {vm} is intended in a future epoch of host {host}"));
            }
            if let ReleaseRecord::Death { host: from, proof } = release
                && proof.epoch > ledger.hosts.get(from).map_or(proof.epoch, |host| host.epoch)
            {
                return Some(format!("I2: vm {vm} was released by a proof of a future epoch of host {from}"));
            }
        }
    }
    None
}

/// Everything, for tests, the simulator and `state` checks: walks all hosts and VMs.
///
/// # Errors
/// The first invariant that does not hold, and how.
pub fn check(ledger: &Ledger) -> Result<(), String> {
    if let Some(detail) = check_touched(ledger) {
        return Err(detail);
    }
    for (id, record) in &ledger.vms {
        match record.occupied_host() {
            Some(host) => {
                if !ledger.index.on_host.get(host).is_some_and(|there| there.contains(id)) {
                    return Err(format!("index: vm {id} is missing on host {host}"));
                }
                if ledger.hosts.get(host).is_some_and(|host| host.standing == Standing::Dead) {
                    return Err(format!("I10: vm {id} is left on dead host {host}"));
                }
            }
            None => {
                let declared = ledger.inventory.vms.get(id);
                let wanted = declared
                    .is_some_and(|vm| vm.priority != defib_model::inventory::Priority::Disabled)
                    && record.wants_place();
                if wanted != ledger.index.waiting.contains(id) {
                    return Err(format!("I10: vm {id} is forgotten"));
                }
            }
        }
    }
    for (host, record) in &ledger.hosts {
        let in_use = matches!(record.standing, Standing::Active | Standing::Condemned);
        if in_use != ledger.index.in_use.contains(host) {
            return Err(format!("index: host {host} is {:?}", record.standing));
        }
        if in_use && record.boot.is_some_and(|boot| record.is_over(boot)) {
            return Err(format!("I2: host {host} is in use in a boot that is proven to be over"));
        }
    }
    for (host, vms) in &ledger.index.on_host {
        for vm in vms {
            if ledger.vms.get(vm).and_then(|record| record.occupied_host()) != Some(host) {
                return Err(format!("index: vm {vm} is not on host {host}"));
            }
        }
    }
    if ledger.electorate_is_stale() {
        return Err(
            "I11: those who count in the double quorum are not those who can vouch, and nothing waits".into(),
        );
    }
    if !ledger.index.inherits_breach {
        ledger.index.placer.check().map_err(|detail| format!("I6: {detail}"))?;
    }
    for (id, recovery) in &ledger.recoveries {
        if recovery.phase.is_over() == ledger.index.open.contains(id) {
            return Err(format!("index: recovery {id} is open and over"));
        }
    }
    Ok(())
}
