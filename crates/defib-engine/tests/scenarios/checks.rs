//! The truth about the world, held against what the replicas believe, after every step.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::ledger::{Ledger, invariants};
use defib_model::{Event, EventKind, HostId, LogIndex, ReplicaId, VmId, chain::ChainVerifier};

use super::machines::Machine;

/// What was seen so far, and what did not hold.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    chain: ChainVerifier,
    hashes: BTreeMap<LogIndex, (ReplicaId, String)>,
    /// Where each VM is by the stream of events, and whether it was released from there.
    places: BTreeMap<VmId, (HostId, bool)>,
    violations: BTreeSet<String>,
}

impl Checks {
    fn violated(&mut self, what: String) {
        self.violations.insert(what);
    }

    /// What did not hold since the last call.
    pub(crate) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations).into_iter().collect()
    }

    /// I1: no VM runs twice at the same instant.
    pub(crate) fn at_most_one(&mut self, machines: &BTreeMap<HostId, Machine>) {
        let mut running: BTreeMap<&VmId, &HostId> = BTreeMap::new();
        let mut twice = Vec::new();
        for machine in machines.values() {
            for vm in machine.vms.iter().filter(|(_, instance)| instance.running).map(|(vm, _)| vm) {
                if let Some(other) = running.insert(vm, &machine.id) {
                    twice.push(format!("I1: vm {vm} runs on {other} and on {}", machine.id));
                }
            }
        }
        for what in twice {
            self.violated(what);
        }
    }

    /// A replica applied an entry: equal logs give equal ledgers, and the ledger agrees with itself.
    pub(crate) fn applied(&mut self, replica: ReplicaId, ledger: &Ledger) {
        // What differs once differs for good, and hashing is dear.
        if ledger.applied().0.is_multiple_of(8) {
            let hash = ledger.state_hash();
            let (first, expected) =
                self.hashes.entry(ledger.applied()).or_insert_with(|| (replica, hash.clone())).clone();
            if hash != expected {
                self.violated(format!("r{replica} and r{first} differ after entry {}", ledger.applied()));
            }
        }
        if let Err(detail) = invariants::check(ledger) {
            self.violated(detail);
        }
        if let Some(detail) = ledger.disarmed() {
            self.violated(format!("disarmed: {detail}"));
        }
    }

    /// I2 and I8, by the stream alone: it is whole, and no VM is placed anew before its release.
    pub(crate) fn event(&mut self, event: &Event) {
        if let Err(error) = self.chain.push(event) {
            self.violated(format!("I8: {error}"));
        }
        match &event.kind {
            EventKind::DeathProven { host, .. } => {
                for (at, released) in self.places.values_mut() {
                    *released |= at == host;
                }
            }
            EventKind::VmDown { vm, host, .. } => {
                if let Some((at, released)) = self.places.get_mut(vm) {
                    *released |= at == host;
                }
            }
            EventKind::VmPlaced { vm, host, .. } => {
                if let Some((at, false)) = self.places.insert(vm.clone(), (host.clone(), false)) {
                    self.violated(format!("I2: vm {vm} is placed on {host} and was not released from {at}"));
                }
            }
            _ => {}
        }
    }
}
