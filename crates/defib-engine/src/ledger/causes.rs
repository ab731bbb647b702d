//! What each event follows from: the one place that says so, for every kind.
//!
//! A cause is the one event without which this one would not have come, or the last of several. What comes from
//! outside (silence, an agent's word, a person) has none. So from any event the way back leads to what began it: from a
//! VM that runs again over proof, fence, verdict and suspicion to the first doubt, each VM by its own way, whatever
//! happened to others meanwhile.

use defib_model::{EventKind, EventSeq, HostId, Millis, RecoveryId, VmId, event::ProofKind};
use serde::{Deserialize, Serialize};

use super::{
    Ledger,
    events::Birth,
    records::{Recovery, Standing},
};

/// The newest event of each kind in a recovery from which others follow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trail {
    suspected: Option<EventSeq>,
    brake: Option<EventSeq>,
    condemned: Option<EventSeq>,
    /// A fence, its failure, or that nothing proves the death.
    fence: Option<EventSeq>,
    expiry_vote: Option<EventSeq>,
}

/// A doubt that comes later does not follow from what a BMC told.
const BMC_LEADS_FOR: Millis = Millis(10_000);

impl Ledger {
    /// Records an event; returns its number.
    pub(super) fn event(&mut self, recovery: Option<RecoveryId>, kind: EventKind) -> EventSeq {
        let cause = self.cause_of(recovery.and_then(|id| self.recoveries.get(&id)), &kind);
        self.event_after(cause, recovery, kind)
    }

    /// Records an event that follows from another one.
    pub(super) fn event_after(
        &mut self,
        cause: Option<EventSeq>,
        recovery: Option<RecoveryId>,
        kind: EventKind,
    ) -> EventSeq {
        let birth =
            Birth { index: self.now.index, ordinal: self.now.ordinal, at: self.at, wall: self.dated() };
        self.now.ordinal = self.now.ordinal.saturating_add(1);
        let seq = self.events.push(birth, recovery, cause.filter(|seq| seq.0 > 0), kind.clone());
        self.remember(seq, recovery, &kind);
        seq
    }

    fn cause_of(&self, recovery: Option<&Recovery>, kind: &EventKind) -> Option<EventSeq> {
        let trail = recovery.map(|recovery| &recovery.trail);
        let newest = recovery.map(|recovery| recovery.last_event);
        let doubt = |host: &HostId| self.hosts.get(host).and_then(|record| record.doubt);
        let told = |host: &HostId| self.hosts.get(host).and_then(|record| record.told);
        let died = |host: &HostId| {
            told(host).filter(|_| self.hosts.get(host).is_some_and(|host| host.standing == Standing::Dead))
        };
        let of_vm = |vm: &VmId| self.vms.get(vm).and_then(|record| record.told);
        let acted = self.now.acted;
        match kind {
            // From outside. A BMC tells what somebody did to it, too, but not who.
            EventKind::LeaderStarted { .. }
            | EventKind::ObserverStarted { .. }
            | EventKind::HeartbeatsForged { .. }
            | EventKind::BmcTold { .. }
            | EventKind::ClusterVersionRaised { .. }
            | EventKind::FencingTested { .. }
            | EventKind::UnprotectedChanged { .. }
            | EventKind::DatastoreChanged { .. }
            | EventKind::WatchdogChanged { .. }
            | EventKind::JoinTokenUsed { .. }
            | EventKind::CommandRefused { .. }
            | EventKind::ClockCompared { .. }
            | EventKind::ClockSetBack { .. }
            | EventKind::HeadSigned { .. } => None,
            // Doubts lead to each other, and the last one to what is decided.
            EventKind::OpinionChanged { host, .. } => doubt(host)
                .or_else(|| died(host))
                .or_else(|| trail?.suspected)
                .or_else(|| self.bmc_led_to(host)),
            EventKind::HostSuspected { host } => doubt(host),
            EventKind::BrakeEngaged { host, .. } | EventKind::PathDegraded { host, .. } => {
                doubt(host).or_else(|| trail?.suspected)
            }
            EventKind::BrakeReleased { .. } => trail?.brake,
            EventKind::HostConfirmed { host, .. } => {
                // One that let go lets the verdict follow at once.
                let let_go = trail?.brake.filter(|seq| self.is_of_this_command(*seq));
                acted.or(let_go).or_else(|| doubt(host)).or(newest)
            }
            EventKind::LeaseExpiryVoted { .. } => trail?.condemned,
            EventKind::FenceIntended { .. }
            | EventKind::FenceFailed { .. }
            | EventKind::HostUnconfirmed { .. } => trail?.fence.or(trail?.condemned),
            EventKind::DeathProven { proof, .. } => {
                let trail = trail?;
                let led = match proof {
                    ProofKind::PowerFenced { .. } => trail.fence,
                    ProofKind::LeaseExpired { .. } => trail.expiry_vote,
                    ProofKind::OperatorWord { .. } => acted,
                    ProofKind::PowerFoundOff { .. } => trail.condemned.or(trail.suspected),
                    ProofKind::NewBoot { .. } | ProofKind::CleanShutdown => None,
                };
                led.or(newest)
            }
            EventKind::VmPlaced { vm, .. }
            | EventKind::VmUnplaced { vm, .. }
            | EventKind::VmRunning { vm, .. }
            | EventKind::VmReady { vm, .. }
            | EventKind::VmDown { vm, .. }
            | EventKind::VmGivenUp { vm, .. }
            | EventKind::VmConditionChanged { vm, .. }
            | EventKind::VmRebooted { vm, .. } => of_vm(vm),
            EventKind::RecoveryAbandoned { .. }
            | EventKind::HostRecovered { .. }
            | EventKind::GoodbyeSaid { .. }
            | EventKind::OperatorActed { .. } => newest,
            EventKind::HostReadmitted { host, .. } => told(host).or(newest),
            EventKind::HostQuarantined { host, .. } | EventKind::ProofContradicted { host, .. } => told(host),
            EventKind::BrakeOverridden { .. }
            | EventKind::PolicyChanged { .. }
            | EventKind::InventoryChanged { .. }
            | EventKind::SinkGap { .. } => acted,
            EventKind::ReplicasChanged { .. } => self.replicas_ordered,
            EventKind::Disarmed { .. } => {
                Some(self.events.head()).filter(|seq| self.is_of_this_command(*seq))
            }
        }
    }

    /// What its BMC told last, if that was just now: whoever was told of it asks sooner.
    fn bmc_led_to(&self, host: &HostId) -> Option<EventSeq> {
        let (seq, at) = self.hosts.get(host)?.bmc_told?;
        (self.at.since(at) <= BMC_LEADS_FOR).then_some(seq)
    }

    fn is_of_this_command(&self, seq: EventSeq) -> bool {
        self.events.since(seq).next().is_some_and(|event| event.seq == seq && event.index == self.now.index)
    }

    /// Keeps what later events follow from.
    fn remember(&mut self, seq: EventSeq, recovery: Option<RecoveryId>, kind: &EventKind) {
        if let Some(recovery) = recovery.and_then(|id| self.recoveries.get_mut(&id)) {
            if recovery.opened_by == EventSeq(0) {
                recovery.opened_by = seq;
            }
            recovery.last_event = seq;
            let trail = &mut recovery.trail;
            match kind {
                EventKind::HostSuspected { .. } => trail.suspected = Some(seq),
                EventKind::BrakeEngaged { .. } | EventKind::BrakeReleased { .. } => trail.brake = Some(seq),
                EventKind::HostConfirmed { .. } => trail.condemned = Some(seq),
                EventKind::LeaseExpiryVoted { .. } => trail.expiry_vote = Some(seq),
                EventKind::FenceIntended { .. }
                | EventKind::FenceFailed { .. }
                | EventKind::HostUnconfirmed { .. } => trail.fence = Some(seq),
                _ => {}
            }
        }
        match kind {
            EventKind::OpinionChanged { host, .. } => {
                if let Some(record) = self.hosts.get_mut(host) {
                    record.doubt = (!record.opinions.is_empty()).then_some(seq);
                }
            }
            EventKind::DeathProven { host, .. } | EventKind::HostQuarantined { host, .. } => {
                self.told_of_host(host, Some(seq));
            }
            EventKind::HostReadmitted { host, .. } => self.told_of_host(host, None),
            EventKind::OperatorActed { .. } => self.now.acted = Some(seq),
            EventKind::ReplicasChanged { .. } => self.replicas_ordered = None,
            _ => kind.protected_vm().into_iter().for_each(|vm| self.told_of_vm(vm, seq)),
        }
    }

    /// The next fence of a recovery follows from what an operator did just now.
    pub(super) fn fence_was_ordered(&mut self, id: RecoveryId) {
        let acted = self.now.acted;
        if let Some(recovery) = self.recoveries.get_mut(&id)
            && recovery.trail.fence.is_some()
        {
            recovery.trail.fence = acted;
        }
    }

    /// What follows of a host that is dead or held back follows from this.
    pub(super) fn told_of_host(&mut self, host: &HostId, seq: Option<EventSeq>) {
        if let Some(record) = self.hosts.get_mut(host) {
            record.told = seq;
        }
    }

    /// What follows of a VM follows from this.
    pub(super) fn told_of_vm(&mut self, vm: &VmId, seq: EventSeq) {
        if let Some(record) = self.vms.get_mut(vm) {
            record.told = Some(seq);
        }
    }
}
