//! What is derived from the records, so that no step has to walk all hosts or all VMs.

use alloc::collections::{BTreeMap, BTreeSet};

use defib_model::{HostId, HostNote, Inventory, RecoveryId, VmId, inventory::Priority};

use super::{
    Ledger,
    records::{HostRecord, Place, Recovery, Standing, VmRecord},
};
use crate::placement::{Placer, Reason, Usability};

/// Sets that follow from the records.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// Recoveries that are not over.
    pub open: BTreeSet<RecoveryId>,
    /// VMs that want a place and may have one.
    pub waiting: BTreeSet<VmId>,
    /// VMs that failed too often in a row.
    pub given_up: BTreeSet<VmId>,
    /// VMs that are placed but not ready.
    pub pending: BTreeSet<VmId>,
    /// Which VMs run, or may run, on a host.
    pub on_host: BTreeMap<HostId, BTreeSet<VmId>>,
    /// Hosts in use or condemned: those whose silence says something.
    pub in_use: BTreeSet<HostId>,
    /// Whether a host came or went there; false between commands, as `dirty`.
    pub(super) in_use_changed: bool,
    /// Hosts that announced a silence.
    pub expected_silent: BTreeSet<HostId>,
    /// Hosts whose record changed since the controller last looked.
    pub touched: BTreeSet<HostId>,
    /// Hosts whose agents' reports must be compared with the records again, since these changed after the controller
    /// last looked: where a VM is or was whose record changed, and whose report was recorded, which may not be its
    /// newest.
    pub(super) to_compare: BTreeSet<HostId>,
    /// Hosts that must be looked at before the present command is settled; empty between commands, so that
    /// a restored snapshot settles exactly like the log.
    pub(super) dirty: BTreeSet<HostId>,
    /// Grows whenever a VM that had no place might have one now.
    pub room_changes: u64,
    /// An inventory came into force by which what ran already breaks a rule: a host got smaller, a group stricter,
    /// a VM came back. Nobody placed it so, and nothing stops it for that.
    pub inherits_breach: bool,
    /// The planner's view of occupancy.
    pub placer: Placer,
}

/// Whether a host may receive VMs.
pub(crate) fn usability(record: &HostRecord) -> Usability {
    match record.standing {
        Standing::NeverSeen => Usability::Unusable(Reason::NeverSeen),
        Standing::Condemned | Standing::Dead => Usability::Unusable(Reason::Dead),
        Standing::Active if record.quarantined => Usability::Unusable(Reason::Quarantined),
        Standing::Active if record.recovery.is_some() => Usability::Unusable(Reason::Suspected),
        Standing::Active => Usability::Usable,
    }
}

impl Index {
    pub(crate) fn build(
        inventory: &Inventory,
        hosts: &BTreeMap<HostId, HostRecord>,
        vms: &BTreeMap<VmId, VmRecord>,
        recoveries: &BTreeMap<RecoveryId, Recovery>,
    ) -> Self {
        let mut index = Self {
            open: recoveries
                .iter()
                .filter(|(_, recovery)| !recovery.phase.is_over())
                .map(|(id, _)| *id)
                .collect(),
            placer: Placer::new(inventory),
            touched: hosts.keys().cloned().collect(),
            ..Self::default()
        };
        for (id, host) in hosts {
            index.placer.set_host(id, usability(host));
            index.placer.set_note(id, &host.note);
            if matches!(host.standing, Standing::Active | Standing::Condemned) {
                index.in_use.insert(id.clone());
            }
            if host.expected_silent_until.is_some() {
                index.expected_silent.insert(id.clone());
            }
        }
        for (id, record) in vms {
            index.vm_changed(inventory, id, record, None);
        }
        index.inherits_breach = index.placer.check().is_err();
        index
    }

    /// Follows what an agent says of its host.
    pub(super) fn host_noted(&mut self, host: &HostId, note: &HostNote) {
        self.placer.set_note(host, note);
        self.room_changes = self.room_changes.saturating_add(1);
    }

    /// Follows one VM's record; `before` is where it may have run until now.
    pub(crate) fn vm_changed(
        &mut self,
        inventory: &Inventory,
        id: &VmId,
        record: &VmRecord,
        before: Option<&HostId>,
    ) {
        let now = record.occupied_host();
        self.to_compare.extend(before.into_iter().chain(now).cloned());
        if before != now {
            if let Some(before) = before {
                if let Some(there) = self.on_host.get_mut(before) {
                    there.remove(id);
                    if there.is_empty() {
                        self.on_host.remove(before);
                    }
                }
                self.placer.release(id);
                self.room_changes = self.room_changes.saturating_add(1);
            }
            if let Some(now) = now {
                self.on_host.entry(now.clone()).or_default().insert(id.clone());
                self.placer.occupy(id, now);
            }
        }
        let declared = inventory.vms.get(id);
        let wanted = declared.is_some_and(|vm| vm.priority != Priority::Disabled) && record.wants_place();
        if wanted {
            if self.waiting.insert(id.clone()) {
                self.room_changes = self.room_changes.saturating_add(1);
            }
        } else {
            self.waiting.remove(id);
        }
        if matches!(record.place, Place::GivenUp { .. }) {
            self.given_up.insert(id.clone());
        } else {
            self.given_up.remove(id);
        }
        let ready = declared.is_none_or(|vm| record.readiness.is_some_and(|reached| reached >= vm.readiness));
        let pending = match record.place {
            Place::Intended { .. } => true,
            Place::Running { .. } => !ready,
            Place::Never | Place::Lost { .. } | Place::Down { .. } | Place::GivenUp { .. } => false,
        };
        if pending {
            self.pending.insert(id.clone());
        } else {
            self.pending.remove(id);
        }
    }
}

impl Ledger {
    /// The only way to change a VM's record.
    pub(super) fn update_vm(&mut self, id: &VmId, change: impl FnOnce(&mut VmRecord)) {
        let Some(record) = self.vms.get_mut(id) else { return };
        let before = record.occupied_host().cloned();
        change(record);
        self.index.vm_changed(&self.inventory, id, record, before.as_ref());
    }

    /// To be called after any change of a host's standing, recovery or quarantine.
    pub(super) fn host_changed(&mut self, id: &HostId) {
        self.touch(id);
        if let Some(record) = self.hosts.get(id) {
            let usable = usability(record);
            if usable == Usability::Usable {
                self.index.room_changes = self.index.room_changes.saturating_add(1);
            }
            self.index.placer.set_host(id, usable);
            let changed = if matches!(record.standing, Standing::Active | Standing::Condemned) {
                self.index.in_use.insert(id.clone())
            } else {
                self.index.in_use.remove(id)
            };
            self.index.in_use_changed |= changed;
            if record.expected_silent_until.is_some() {
                self.index.expected_silent.insert(id.clone());
            } else {
                self.index.expected_silent.remove(id);
            }
        }
    }
}
