//! The truth about the world, held against what the replicas believe, after every step.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::{
    controller::Controller,
    ledger::{Ledger, invariants},
};
use defib_model::{Event, EventKind, EventSeq, HostId, LogIndex, ReplicaId, VmId, chain::ChainVerifier};

use super::machines::Machine;

/// What was seen so far, and what did not hold.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    chain: ChainVerifier,
    hashes: BTreeMap<LogIndex, (ReplicaId, String)>,
    /// Where each VM is by the stream of events, and whether it was released from there.
    places: BTreeMap<VmId, (HostId, bool)>,
    /// All events so far: the kind of each, and what it follows from.
    told: BTreeMap<EventSeq, (String, Event)>,
    violations: BTreeSet<String>,
}

/// Of which kinds an event may be that one of this kind follows from. In angle brackets: it may follow from none.
fn causes(kind: &str) -> &'static str {
    match kind {
        "replicas-changed" | "sink-gap" => "<> operator-acted",
        "opinion-changed" => {
            "<> bmc-told opinion-changed host-suspected death-proven host-quarantined operator-acted"
        }
        "host-suspected" => "opinion-changed",
        "brake-engaged" | "path-degraded" => "opinion-changed host-suspected",
        "brake-released" => "brake-engaged",
        "host-confirmed" => "opinion-changed brake-released operator-acted",
        "recovery-abandoned" => {
            "opinion-changed brake-released host-suspected host-unconfirmed path-degraded"
        }
        "lease-expiry-voted" => "host-confirmed",
        "brake-overridden" | "policy-changed" | "inventory-changed" => "operator-acted",
        "fence-intended" => "host-confirmed fence-intended fence-failed host-unconfirmed operator-acted",
        "fence-failed" => "fence-intended",
        "host-unconfirmed" => "host-confirmed fence-failed host-unconfirmed",
        "death-proven" => {
            "<> fence-intended lease-expiry-voted host-suspected host-confirmed goodbye-said operator-acted \
             opinion-changed path-degraded"
        }
        "vm-placed" => "<> inventory-changed death-proven vm-unplaced vm-down vm-given-up",
        "vm-unplaced" => "<> inventory-changed death-proven vm-unplaced vm-down vm-given-up",
        "vm-running" => "vm-placed",
        "vm-ready" => "vm-running vm-ready vm-condition-changed vm-rebooted",
        "vm-down" => "vm-placed vm-running vm-ready vm-condition-changed vm-rebooted",
        "vm-given-up" => "vm-down",
        "vm-condition-changed" | "vm-rebooted" => "vm-running vm-ready vm-condition-changed vm-rebooted",
        "host-recovered" => {
            "death-proven vm-running vm-ready vm-given-up vm-placed vm-down opinion-changed operator-acted"
        }
        "host-readmitted" => "<> death-proven recovery-abandoned host-quarantined operator-acted",
        "host-quarantined" => "<> death-proven host-unconfirmed operator-acted",
        "proof-contradicted" => "death-proven host-quarantined operator-acted",
        "goodbye-said" | "operator-acted" | "disarmed" => "<> *",
        "leader-started"
        | "observer-started"
        | "heartbeats-forged"
        | "bmc-told"
        | "cluster-version-raised"
        | "fencing-tested"
        | "watchdog-changed"
        | "unprotected-changed"
        | "datastore-changed"
        | "join-token-used"
        | "command-refused"
        | "clock-compared"
        | "clock-set-back"
        | "head-signed" => "<>",
        other => panic!("say from what {other} follows"),
    }
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

    /// I10: a leader that has derived what it wants has overlooked no report.
    pub(crate) fn looked(&mut self, replica: ReplicaId, controller: &Controller) {
        let overlooked = controller.overlooked();
        if controller.leads() && !overlooked.is_empty() {
            self.violated(format!("I10: r{replica} overlooks what the agents of {overlooked:?} report"));
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
        if let Err(why) = self.follows(event) {
            self.violated(format!("event {}: {why}", event.seq));
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

    /// Each event follows from one that can have led to it: of a VM from the last one of the same VM, or from what took
    /// its host. So the way back from a VM that runs again leads over its placement to the proof of its host's death.
    fn follows(&mut self, event: &Event) -> Result<(), String> {
        let told = serde_json::to_value(&event.kind).map_err(|error| error.to_string())?;
        let kind = told["kind"].as_str().unwrap_or_default().to_owned();
        self.told.insert(event.seq, (kind.clone(), event.clone()));
        let allowed: Vec<&str> = causes(&kind).split(' ').collect();
        let Some(seq) = event.cause else {
            return if allowed.contains(&"<>") {
                Ok(())
            } else {
                Err(format!("{kind} follows from nothing"))
            };
        };
        let (other, cause) = self
            .told
            .get(&seq)
            .filter(|_| seq < event.seq)
            .ok_or_else(|| format!("{kind} follows from {seq}, which is none"))?;
        if !allowed.contains(&other.as_str()) && !allowed.contains(&"*") {
            return Err(format!("{kind} follows from {other} ({seq})"));
        }
        if let (Some(vm), Some(former)) = (event.kind.protected_vm(), cause.kind.protected_vm())
            && vm != former
        {
            return Err(format!("{kind} of vm {vm} follows from {other} of vm {former}"));
        }
        if let EventKind::VmRunning { vm, .. } = &event.kind
            && let EventKind::VmPlaced { from, .. } = &cause.kind
        {
            let mut way = vec![other.as_str()];
            let mut at = cause.cause;
            while let Some((kind, event)) = at.and_then(|seq| self.told.get(&seq)) {
                way.push(kind);
                at = event.cause;
            }
            let wanted = ["death-proven", "vm-down"];
            if from.is_some() && !way.iter().any(|kind| wanted.contains(kind)) {
                return Err(format!("vm {vm} runs elsewhere, and the way back is {way:?}"));
            }
        }
        Ok(())
    }
}
