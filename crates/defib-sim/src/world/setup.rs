//! How a world begins, and whether it is well in the end.

use defib_engine::ledger::Place;
use defib_model::inventory::Priority;

use super::{
    Act, Replica, World,
    operator::{SET_INVENTORY, SET_POLICY},
};
use crate::clock::MS;

impl World {
    /// Hosts get power, operators declare what there is.
    pub(crate) fn begin(&mut self) {
        for host in 0..self.machines.len() {
            self.power_on(host);
        }
        self.later(100 * MS, Act::Operator { number: SET_POLICY, tries: 0 });
        self.later(200 * MS, Act::Operator { number: SET_INVENTORY, tries: 0 });
    }

    /// Every VM runs, or the ledger says why it has no place.
    pub(crate) fn all_is_placed(&self) -> bool {
        let Some(ledger) = self.newest() else { return false };
        ledger.inventory_version() > 0
            && self.machines.iter().all(|machine| machine.booted || machine.held_off > 0)
            && ledger
                .vms()
                .values()
                .all(|record| matches!(record.place, Place::Running { .. }) || !record.unplaced.is_empty())
            && (self.plan.inventory.vms.values().any(|vm| vm.priority == Priority::Disabled)
                || self.all_vms_run()
                || ledger.vms().values().any(|record| !record.unplaced.is_empty()))
    }

    /// What is not well, with a majority healed.
    pub(crate) fn unwell(&mut self) -> Option<(&'static str, String)> {
        let Some(leader) = self.leader() else { return Some(("L1", "nobody leads".into())) };
        let reachable: Vec<bool> =
            self.machines.iter().map(|machine| machine.booted && machine.agent.is_some()).collect();
        let ledger = self.replicas[leader].ledger()?;
        if let Err(unwell) = self.checks.nothing_is_forgotten(ledger, &self.machines, &reachable) {
            return Some(unwell);
        }
        // Replicas that came to the same place must be in the same state; the stream must be read to its end.
        let applied = ledger.applied();
        let behind = self
            .replicas
            .iter()
            .filter(|replica| replica.ledger().is_some_and(|ledger| ledger.applied() < applied));
        if let Some(behind) = behind.map(|replica| replica.id).next() {
            return Some(("L4", format!("r{behind} has not caught up")));
        }
        let ledgers: Vec<_> =
            self.replicas.iter().filter_map(|replica| Some((replica.id, replica.ledger()?))).collect();
        for (id, ledger) in ledgers {
            self.checks.restored(self.now, id, ledger);
        }
        None
    }

    /// What the leader waits for, in its own words.
    pub(crate) fn explain(&mut self) {
        let at = self.millis();
        let Some(leader) = self.leader() else { return };
        let local = self.replicas[leader].clock.local(self.now);
        let Some(run) = &self.replicas[leader].run else { return };
        let ledger = run.controller.ledger();
        for (vm, record) in ledger.vms() {
            if !matches!(record.place, Place::Running { .. }) {
                let text = format!("(vm {vm}: incarnation {}, {:?})", record.incarnation, record.place);
                self.transcript.push(at, text);
            }
        }
        for (id, recovery) in ledger.open_recoveries() {
            for line in run.controller.explain(local, id) {
                let text = format!("({}, {}: waits for {line})", recovery.host, recovery.phase);
                self.transcript.push(at, text);
            }
        }
    }

    /// A number that any difference between two runs would change.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut take = |value: u64| hash = (hash ^ value).wrapping_mul(0x0100_0000_01b3);
        for number in [self.now, self.counts.acts, self.counts.beats, self.counts.proposals, self.counts.lost]
        {
            take(number);
        }
        for ledger in self.replicas.iter().filter_map(Replica::ledger) {
            ledger.events().head_hash().bytes().for_each(|byte| take(u64::from(byte)));
        }
        hash
    }
}
