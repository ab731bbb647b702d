//! What agents say of their hosts and VMs beyond what runs.

use alloc::vec::Vec;

use defib_model::{EventKind, HostId, HostNote, VmId, VmNote};

use super::Ledger;

impl Ledger {
    /// What a host's agent says of it: what runs there unprotected, and what it does not reach, which placement heeds;
    /// and which machine it is, which does not change within a boot.
    pub(super) fn host_noted(&mut self, host: &HostId, note: &HostNote) {
        let Some(record) = self.hosts.get_mut(host) else { return };
        let mut note = note.as_read_by(self.version);
        if !note.is_news_after(&record.note) {
            return;
        }
        note.machine = record.note.machine.take().or(note.machine);
        let held = core::mem::replace(&mut record.note, note.clone());
        let (before, after) =
            (self.index.placer.unprotected_of(&held), self.index.placer.unprotected_of(&note));
        let [appeared, gone] = [(&after, &before), (&before, &after)]
            .map(|(vms, without)| vms.difference(without).cloned().collect::<Vec<VmId>>());
        for (vms, runs) in [(appeared, true), (gone, false)] {
            for vm in vms {
                self.event(None, EventKind::UnprotectedChanged { vm, host: host.clone(), runs });
            }
        }
        for (datastore, why) in &note.unreachable {
            if !held.unreachable.contains_key(datastore) {
                let (host, datastore, trouble) = (host.clone(), datastore.clone(), Some(why.clone()));
                self.event(None, EventKind::DatastoreChanged { host, datastore, trouble });
            }
        }
        for datastore in held.unreachable.keys().filter(|held| !note.unreachable.contains_key(*held)) {
            let (host, datastore) = (host.clone(), datastore.clone());
            self.event(None, EventKind::DatastoreChanged { host, datastore, trouble: None });
        }
        self.index.host_noted(host, &note);
    }

    /// What a hypervisor says of a VM beyond whether it runs: recorded and told, and nothing follows from it.
    pub(super) fn noted(&mut self, vm: &VmId, host: &HostId, note: &VmNote) {
        let Some(record) = self.vms.get(vm).filter(|record| note.is_news_after(&record.note)) else { return };
        let (recovery, incarnation) = (record.recovery, record.incarnation);
        let changed = note.condition != record.note.condition;
        // An agent that restarted has forgotten those that it had seen.
        let rebooted = note.reboots > record.note.reboots;
        self.update_vm(vm, |record| record.note = note.clone());
        if changed {
            let (vm, host, detail) = (vm.clone(), host.clone(), note.detail.clone());
            let condition = note.condition;
            self.event(recovery, EventKind::VmConditionChanged { vm, host, incarnation, condition, detail });
        }
        if rebooted {
            let (vm, host, reboots) = (vm.clone(), host.clone(), note.reboots);
            self.event(recovery, EventKind::VmRebooted { vm, host, incarnation, reboots });
        }
    }
}
