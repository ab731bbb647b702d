//! What happened in a run, or in many: for the summary, and to see that nothing was never exercised.

use std::collections::BTreeMap;

use defib_model::{EventKind, Opinion, event::ProofKind};

use crate::fault::Fault;

/// Counters of a run; they add up over runs.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "each is the number of what its name says")]
pub struct Counts {
    pub acts: u64,
    pub beats: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub replayed: u64,
    pub forged: u64,
    pub refused_datagrams: u64,
    pub refused_orders: u64,
    pub proposals: u64,
    pub snapshots: u64,
    pub restores: u64,
    pub replica_starts: u64,
    pub copies_refused: u64,
    pub vm_starts: u64,
    pub lease_stops: u64,
    pub watchdog_resets: u64,
    pub probes_answered: u64,
    pub bmc_writes: u64,
    pub fenced_off: u64,
    pub operator_commands: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Decisions by kind of event, and branches of the recovery machine.
    pub branches: BTreeMap<&'static str, u64>,
}

/// Every branch of the recovery machine that a large suite must have taken.
pub const BRANCHES: [&str; 38] = [
    "leader-started",
    "observer-started",
    "replicas-changed",
    "cluster-version-raised",
    "opinion-asks",
    "opinion-dead",
    "opinion-alive",
    "lease-expiry-voted",
    "path-degraded",
    "host-suspected",
    "host-confirmed",
    "recovery-abandoned",
    "brake-engaged",
    "brake-released",
    "fence-intended",
    "fence-failed",
    "host-unconfirmed",
    "proof-power-found-off",
    "proof-power-fenced",
    "proof-lease-expired",
    "proof-new-boot",
    "proof-clean-shutdown",
    "proof-operator-word",
    "vm-placed",
    "vm-unplaced",
    "vm-running",
    "vm-ready",
    "vm-down",
    "vm-given-up",
    "host-recovered",
    "host-readmitted",
    "host-quarantined",
    "goodbye-said",
    "watchdog-changed",
    "operator-acted",
    "policy-changed",
    "inventory-changed",
    "command-refused",
];

const fn branch(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::LeaderStarted { .. } => "leader-started",
        EventKind::ObserverStarted { .. } => "observer-started",
        EventKind::ReplicasChanged { .. } => "replicas-changed",
        EventKind::OpinionChanged { to: Opinion::Asks, .. } => "opinion-asks",
        EventKind::OpinionChanged { to: Opinion::Dead, .. } => "opinion-dead",
        EventKind::OpinionChanged { to: Opinion::Alive, .. } => "opinion-alive",
        EventKind::LeaseExpiryVoted { .. } => "lease-expiry-voted",
        EventKind::HostSuspected { .. } => "host-suspected",
        EventKind::HostConfirmed { .. } => "host-confirmed",
        EventKind::RecoveryAbandoned { .. } => "recovery-abandoned",
        EventKind::BrakeEngaged { .. } => "brake-engaged",
        EventKind::BrakeReleased { .. } => "brake-released",
        EventKind::BrakeOverridden { .. } => "brake-overridden",
        EventKind::PathDegraded { .. } => "path-degraded",
        EventKind::HeartbeatsForged { .. } => "heartbeats-forged",
        EventKind::FenceIntended { .. } => "fence-intended",
        EventKind::FenceFailed { .. } => "fence-failed",
        EventKind::FencingTested { .. } => "fencing-tested",
        EventKind::HostUnconfirmed { .. } => "host-unconfirmed",
        EventKind::DeathProven { proof, .. } => match proof {
            ProofKind::PowerFoundOff { .. } => "proof-power-found-off",
            ProofKind::PowerFenced { .. } => "proof-power-fenced",
            ProofKind::LeaseExpired { .. } => "proof-lease-expired",
            ProofKind::NewBoot { .. } => "proof-new-boot",
            ProofKind::CleanShutdown => "proof-clean-shutdown",
            ProofKind::OperatorWord { .. } => "proof-operator-word",
        },
        EventKind::VmPlaced { .. } => "vm-placed",
        EventKind::VmUnplaced { .. } => "vm-unplaced",
        EventKind::VmRunning { .. } => "vm-running",
        EventKind::VmReady { .. } => "vm-ready",
        EventKind::VmDown { .. } => "vm-down",
        EventKind::VmGivenUp { .. } => "vm-given-up",
        EventKind::VmConditionChanged { .. } => "vm-condition-changed",
        EventKind::VmRebooted { .. } => "vm-rebooted",
        EventKind::UnprotectedChanged { .. } => "unprotected-changed",
        EventKind::DatastoreChanged { .. } => "datastore-changed",
        EventKind::HostRecovered { .. } => "host-recovered",
        EventKind::HostReadmitted { .. } => "host-readmitted",
        EventKind::HostQuarantined { .. } => "host-quarantined",
        EventKind::GoodbyeSaid { .. } => "goodbye-said",
        EventKind::WatchdogChanged { .. } => "watchdog-changed",
        EventKind::OperatorActed { .. } => "operator-acted",
        EventKind::PolicyChanged { .. } => "policy-changed",
        EventKind::InventoryChanged { .. } => "inventory-changed",
        EventKind::ProofContradicted { .. } => "proof-contradicted",
        EventKind::JoinTokenUsed { .. } => "join-token-used",
        EventKind::CommandRefused { .. } => "command-refused",
        EventKind::Disarmed { .. } => "disarmed",
        EventKind::BmcTold { .. } => "bmc-told",
        EventKind::ClusterVersionRaised { .. } => "cluster-version-raised",
        EventKind::ClockSetBack { .. } => "clock-set-back",
        EventKind::ClockCompared { .. } => "clock-compared",
        EventKind::SinkGap { .. } => "sink-gap",
        EventKind::HeadSigned { .. } => "head-signed",
    }
}

impl Counts {
    pub(crate) fn event(&mut self, kind: &EventKind) {
        *self.branches.entry(branch(kind)).or_default() += 1;
    }

    pub(crate) fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Hosts whose death was proven and whose VMs were all seen to.
    #[must_use]
    pub fn failovers(&self) -> u64 {
        self.branches.get("host-recovered").copied().unwrap_or(0)
    }

    /// Adds what another run counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, one) in [
            (&mut self.acts, other.acts),
            (&mut self.beats, other.beats),
            (&mut self.lost, other.lost),
            (&mut self.duplicated, other.duplicated),
            (&mut self.replayed, other.replayed),
            (&mut self.forged, other.forged),
            (&mut self.refused_datagrams, other.refused_datagrams),
            (&mut self.refused_orders, other.refused_orders),
            (&mut self.proposals, other.proposals),
            (&mut self.snapshots, other.snapshots),
            (&mut self.restores, other.restores),
            (&mut self.replica_starts, other.replica_starts),
            (&mut self.copies_refused, other.copies_refused),
            (&mut self.vm_starts, other.vm_starts),
            (&mut self.lease_stops, other.lease_stops),
            (&mut self.watchdog_resets, other.watchdog_resets),
            (&mut self.probes_answered, other.probes_answered),
            (&mut self.bmc_writes, other.bmc_writes),
            (&mut self.fenced_off, other.fenced_off),
            (&mut self.operator_commands, other.operator_commands),
        ] {
            *sum += one;
        }
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for (kind, count) in &other.branches {
            *self.branches.entry(kind).or_default() += count;
        }
    }

    /// What the profile `full` should exercise and never did: kinds of faults, branches, and a replica that refuses its
    /// copy of the log.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let faults = Fault::KINDS
            .iter()
            .filter(|kind| !self.faults.contains_key(**kind) && !Fault::ELSEWHERE.contains(kind));
        let branches = BRANCHES.iter().filter(|branch| !self.branches.contains_key(**branch));
        let refused = (self.copies_refused == 0).then_some("copy-refused");
        faults.chain(branches).copied().chain(refused).collect()
    }
}
