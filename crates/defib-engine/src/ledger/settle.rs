//! What follows from the state without any further command: suspicion, verdict, brake, expiry, completion.
//!
//! Level-triggered: it looks at open recoveries and at hosts that changed, as often as anybody likes.

use alloc::{
    collections::BTreeSet,
    format,
    string::{String, ToString},
    vec::Vec,
};

use defib_model::{
    ClusterTime, EventKind, EventSeq, HostId, Millis, Opinion, RecoveryId, VmId,
    event::{Phase, ProofKind},
    inventory::Priority,
};

use super::{
    Ledger,
    causes::Trail,
    records::{FencePace, OpinionRecord, Place, Recovery, Standing},
};
use crate::proof::ProofRecord;

impl Ledger {
    pub(super) fn settle(&mut self) {
        let over: Vec<HostId> = self
            .index
            .expected_silent
            .iter()
            .filter(|host| {
                self.hosts
                    .get(*host)
                    .and_then(|host| host.expected_silent_until)
                    .is_none_or(|until| until <= self.at)
            })
            .cloned()
            .collect();
        for host in over {
            if let Some(record) = self.hosts.get_mut(&host) {
                record.expected_silent_until = None;
            }
            self.host_changed(&host);
        }
        self.settle_given_up();
        while let Some(host) = self.index.dirty.pop_first() {
            self.settle_suspicion(&host);
        }
        let crowd = self.crowd();
        let open: Vec<RecoveryId> = self.index.open.iter().copied().collect();
        for id in open {
            let Some(recovery) = self.recoveries.get(&id) else { continue };
            match recovery.phase {
                Phase::Suspected => self.settle_verdict(id, crowd.as_deref()),
                Phase::Confirmed | Phase::Fencing | Phase::Unconfirmed => self.settle_expiry(id),
                Phase::Fenced | Phase::Restarting => self.settle_completion(id),
                Phase::Recovered | Phase::Abandoned => {}
            }
        }
        // What closed above may be suspected anew at once.
        while let Some(host) = self.index.dirty.pop_first() {
            self.settle_suspicion(&host);
        }
        self.index.dirty.clear();
        self.settle_electorate();
    }

    /// Nothing is forgotten (I10): what failed too often is tried once more now and then.
    fn settle_given_up(&mut self) {
        let due: Vec<VmId> = self.index.given_up.iter().filter(|vm| self.retry_due(vm)).cloned().collect();
        for vm in due {
            self.update_vm(&vm, |record| {
                if let Place::GivenUp { host } = &record.place
                    && !mutated!(GiveUpForEver)
                {
                    record.place = Place::Down { host: host.clone() };
                    record.failed_on.clear();
                }
            });
        }
    }

    fn retry_due(&self, vm: &VmId) -> bool {
        let after = self.policy.restart.retry_after;
        self.vms.get(vm).is_some_and(|record| record.changed.plus(after) <= self.at)
    }

    /// A quorum that asks opens a recovery, of a host that announced its silence as well: a question harms nobody.
    fn settle_suspicion(&mut self, host: &HostId) {
        let Some(record) = self.hosts.get(host) else { return };
        if record.standing == Standing::Active
            && record.recovery.is_none()
            && record.opinions_at_least(Opinion::Asks, &self.voters) >= self.quorum()
        {
            let id = self.open_recovery(host);
            self.event(Some(id), EventKind::HostSuspected { host: host.clone() });
        }
    }

    /// Opens a recovery in phase suspected; the first event of it says why.
    pub(super) fn open_recovery(&mut self, host: &HostId) -> RecoveryId {
        let id = self.next_recovery;
        self.next_recovery = id.next();
        let doubt = self.hosts.get(host).and_then(|record| record.doubt);
        self.recoveries.insert(
            id,
            Recovery {
                host: host.clone(),
                phase: Phase::Suspected,
                opened: self.at,
                opened_by: EventSeq(0),
                last_event: doubt.unwrap_or(EventSeq(0)),
                trail: Trail::default(),
                by_operator: false,
                brake: None,
                fence: None,
                retry_at: self.at,
                fence_pace: FencePace::default(),
                unproven: None,
                vms: BTreeSet::new(),
            },
        );
        self.index.open.insert(id);
        if let Some(record) = self.hosts.get_mut(host) {
            record.recovery = Some(id);
        }
        self.host_changed(host);
        id
    }

    /// So many hosts in use are missed by a quorum at once that the network is to blame rather than they: the
    /// brake that follows. Each observer by itself accuses nobody then; this holds what was voted before, and tells.
    fn crowd(&self) -> Option<String> {
        let quorum = self.quorum();
        let missed = |recovery: &Recovery| {
            self.hosts.get(&recovery.host).is_some_and(|record| {
                record.standing != Standing::Dead
                    && record.expected_silent_until.is_none()
                    && record.opinions_at_least(Opinion::Asks, &self.voters) >= quorum
            })
        };
        let silent = self.open_recoveries().filter(|(_, recovery)| missed(recovery)).count();
        let in_use = self.index.in_use.len();
        let heard = in_use.saturating_sub(silent);
        (silent > 0 && (heard == 0 || heard.saturating_mul(2) < in_use)).then(|| {
            format!(
                "{silent} of {in_use} hosts in use are silent at once, so the network is suspected rather than they; while less than half are heard, only a reading of Off or an operator (host fence, host confirm-dead) condemns any"
            )
        })
    }

    /// The verdict: a quorum votes dead, and no brake holds.
    fn settle_verdict(&mut self, id: RecoveryId, crowd: Option<&str>) {
        let Some(recovery) = self.recoveries.get(&id) else { return };
        let host = recovery.host.clone();
        let Some(record) = self.hosts.get(&host) else { return };
        let quorum = self.quorum();
        if record.opinions_at_least(Opinion::Asks, &self.voters) < quorum {
            return self.abandon(id, "heard again by a quorum");
        }
        let dead = record.opinions_at_least(Opinion::Dead, &self.voters);
        if !self.may_act() || record.expected_silent_until.is_some() {
            return;
        }
        // It is told when a verdict would be due: until then a reading of Off may settle the case.
        let due = self.at >= recovery.opened.plus(self.policy.detection.act_after);
        let crowd = crowd.filter(|_| due || dead >= quorum);
        let used_up = || self.brakes.holds(&host, self.at, &self.inventory, &self.policy);
        let holds = crowd.map(String::from).or_else(|| (dead >= quorum).then(used_up).flatten());
        if let Some(detail) = holds {
            if recovery.brake.is_none() {
                if let Some(recovery) = self.recoveries.get_mut(&id) {
                    recovery.brake = Some(detail.clone());
                }
                self.event(Some(id), EventKind::BrakeEngaged { host, detail });
            }
            return;
        }
        if let Some(recovery) = self.recoveries.get_mut(&id)
            && recovery.brake.take().is_some()
        {
            self.event(Some(id), EventKind::BrakeReleased { host: host.clone() });
        }
        if dead < if mutated!(VerdictOfOne) { 1 } else { quorum } {
            return;
        }
        if !mutated!(BrakeForgets) {
            self.brakes.record(self.at, &host);
        }
        self.condemn(id, &format!("{dead} of {} observers vote dead", self.voters.len()));
    }

    /// Takes the right to run VMs from the host of a recovery: a new epoch that nobody is granted.
    pub(super) fn condemn(&mut self, id: RecoveryId, detail: &str) {
        let Some(recovery) = self.recoveries.get_mut(&id) else { return };
        let host = recovery.host.clone();
        recovery.phase = Phase::Confirmed;
        // Whoever orders a fence gets it; a crash that may be dumped is left alone for a while.
        let waits = self.inventory.hosts.get(&host).and_then(|host| host.kdump_wait);
        recovery.retry_at = self.at.plus(waits.filter(|_| !recovery.by_operator).unwrap_or(Millis::ZERO));
        let Some(record) = self.hosts.get_mut(&host) else { return };
        if record.standing == Standing::Active {
            record.epoch = record.epoch.next();
            record.standing = Standing::Condemned;
            record.expiry_votes.clear();
        }
        let epoch = record.epoch;
        self.event(Some(id), EventKind::HostConfirmed { host: host.clone(), epoch, detail: detail.into() });
        self.host_changed(&host);
        if mutated!(RestartWithoutProof) {
            return self.prove(id, ProofKind::CleanShutdown);
        }
        let methods = self.inventory.hosts.get(&host).map_or(0, |host| host.fencing.len());
        if methods == 0 {
            self.unconfirmed(id, "no fencing method is configured for it");
        }
    }

    /// Nothing proves the death for now: says so once per reason.
    pub(super) fn unconfirmed(&mut self, id: RecoveryId, reason: &str) {
        let Some(recovery) = self.recoveries.get(&id) else { return };
        let host = recovery.host.clone();
        let lease = match self.expiry_may_prove(&host) {
            Ok(()) => format!(
                "its lease proves it {} after its last heartbeat, if more than half of the hosts that count hold theirs then",
                self.expiry_wait()
            ),
            Err(why) => format!("its lease can't prove it: {why}"),
        };
        let detail = format!(
            "{reason}; {lease}; an operator who knows better may run: defib host confirm-dead {host}"
        );
        let Some(recovery) = self.recoveries.get_mut(&id) else { return };
        recovery.phase = Phase::Unconfirmed;
        if recovery.unproven.as_deref() == Some(detail.as_str()) {
            return;
        }
        recovery.unproven = Some(detail.clone());
        self.event(Some(id), EventKind::HostUnconfirmed { host, detail });
    }

    /// An expired lease proves death where it may.
    fn settle_expiry(&mut self, id: RecoveryId) {
        let Some(recovery) = self.recoveries.get(&id) else { return };
        let host = recovery.host.clone();
        let Some(record) = self.hosts.get(&host) else { return };
        let voters: Vec<_> =
            record.expiry_votes.iter().filter(|voter| self.voters.contains(voter)).copied().collect();
        if record.standing != Standing::Condemned
            || self.first_fence_is_due(recovery)
            || voters.len() < if mutated!(ExpiryOfOneVoter) { 1 } else { self.quorum() }
            || !self.may_act()
            || self.expiry_may_prove(&host).is_err()
        {
            return;
        }
        self.prove(id, ProofKind::LeaseExpired { voters });
    }

    /// Whether the first attempt to power a host off that an operator ordered is about to begin, or under way. The
    /// operator gets it though the lease would be proof enough; the next ones are made beside the lease.
    fn first_fence_is_due(&self, recovery: &Recovery) -> bool {
        let methods = self.inventory.hosts.get(&recovery.host).map_or(0, |host| host.fencing.len());
        methods > 0
            && recovery.by_operator
            && matches!(recovery.phase, Phase::Confirmed | Phase::Fencing)
            && recovery.fence.as_ref().is_none_or(|fence| fence.attempt <= 1)
    }

    /// Commits the proof: the host is dead, its VMs are lost, they want a new place.
    pub(super) fn prove(&mut self, id: RecoveryId, kind: ProofKind) {
        let Some(recovery) = self.recoveries.get(&id) else { return };
        let host = recovery.host.clone();
        let Some(record) = self.hosts.get_mut(&host) else { return };
        if record.standing == Standing::Dead {
            return;
        }
        if record.standing == Standing::Active {
            record.epoch = record.epoch.next();
            record.expiry_votes.clear();
        }
        record.standing = Standing::Dead;
        record.contradicted = false;
        if kind.ends_the_boot() {
            record.end_boot();
        }
        // Who hears it after this, hears something new.
        let dead = OpinionRecord { opinion: Opinion::Dead, silent_ms: 0, since: self.at };
        record.opinions = self.voters.iter().map(|voter| (*voter, dead)).collect();
        record.witnesses.clear();
        record.life_signs.clear();
        record.doubt = None;
        let proof = ProofRecord { epoch: record.epoch, kind: kind.clone(), index: self.now.index };
        record.proof = Some(proof.clone());
        let epoch = record.epoch;
        let proven = self.event(Some(id), EventKind::DeathProven { host: host.clone(), epoch, proof: kind });
        let lost: Vec<VmId> = self.index.on_host.get(&host).into_iter().flatten().cloned().collect();
        for vm in &lost {
            let from = host.clone();
            let proof = proof.clone();
            self.told_of_vm(vm, proven);
            self.update_vm(vm, |record| {
                record.place = Place::Lost { from };
                record.attempts = 0;
                record.untried = 0;
                record.lost_by = Some(proof);
                record.readiness = None;
                record.recovery = Some(id);
                record.unplaced.clear();
            });
        }
        let protected: BTreeSet<VmId> = lost
            .into_iter()
            .filter(|vm| self.inventory.vms.get(vm).is_some_and(|vm| vm.priority != Priority::Disabled))
            .collect();
        if let Some(recovery) = self.recoveries.get_mut(&id) {
            recovery.phase = Phase::Restarting;
            recovery.brake = None;
            recovery.unproven = None;
            recovery.vms = protected;
        }
        self.host_changed(&host);
        self.settle_completion(id);
    }

    /// Every VM of the recovery runs, belongs to a later recovery, or was handed to a human.
    fn settle_completion(&mut self, id: RecoveryId) {
        let Some(recovery) = self.recoveries.get(&id) else { return };
        let (mut restarted, mut left, mut passed_on) = (0_usize, 0_usize, 0_usize);
        for vm in &recovery.vms {
            let Some(record) = self.vms.get(vm) else { continue };
            if record.recovery.is_some_and(|other| other != id) {
                passed_on = passed_on.saturating_add(1);
                continue;
            }
            match record.place {
                Place::Running { .. } => restarted = restarted.saturating_add(1),
                Place::GivenUp { .. } => left = left.saturating_add(1),
                Place::Never | Place::Intended { .. } | Place::Lost { .. } | Place::Down { .. } => return,
            }
        }
        let host = recovery.host.clone();
        self.event(Some(id), EventKind::HostRecovered { host: host.clone(), restarted, left, passed_on });
        self.close(id, Phase::Recovered);
    }

    pub(super) fn abandon(&mut self, id: RecoveryId, detail: &str) {
        let Some(host) = self.recoveries.get(&id).map(|recovery| recovery.host.clone()) else { return };
        self.event(Some(id), EventKind::RecoveryAbandoned { host, detail: String::from(detail) });
        self.close(id, Phase::Abandoned);
    }

    fn close(&mut self, id: RecoveryId, phase: Phase) {
        let Some(recovery) = self.recoveries.get_mut(&id) else { return };
        recovery.phase = phase;
        let host = recovery.host.clone();
        let vms: Vec<VmId> = recovery.vms.iter().cloned().collect();
        for vm in vms {
            self.update_vm(&vm, |record| {
                if record.recovery == Some(id) {
                    record.recovery = None;
                }
            });
        }
        self.index.open.remove(&id);
        if let Some(record) = self.hosts.get_mut(&host)
            && record.recovery == Some(id)
            && record.standing == Standing::Active
        {
            record.recovery = None;
        }
        self.host_changed(&host);
        self.prune_recoveries();
    }

    /// In words, what the ledger waits for in a recovery at a moment; empty when it is over.
    #[must_use]
    pub fn waiting_on(&self, id: RecoveryId, now: ClusterTime) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(recovery) = self.recoveries.get(&id) else { return lines };
        let Some(record) = self.hosts.get(&recovery.host) else { return lines };
        if recovery.phase.is_over() {
            return lines;
        }
        if self.paused {
            lines.push("an operator paused automatic action; resume with: defib resume".into());
        }
        if let Some(detail) = &self.disarmed {
            lines.push(format!("DISARMED: {detail}"));
        }
        let quorum = self.quorum();
        match recovery.phase {
            Phase::Suspected => {
                let dead = record.opinions_at_least(Opinion::Dead, &self.voters);
                lines.push(format!(
                    "a reading of Off from its BMC, or {quorum} votes of dead ({dead} so far)"
                ));
                lines.extend(record.expected_silent_until.map(|until| {
                    let wait = until.since(now);
                    format!("its agent said that it restarts: nobody votes for {wait} more, a reading of Off counts")
                }));
                lines.extend(record.witnesses_in_words());
                lines.extend(recovery.brake.iter().map(|brake| format!("brake: {brake}")));
            }
            Phase::Confirmed => lines.push(match self.kdump_waits(id, now) {
                Some(wait) => format!(
                    "its capture kernel's word (kdump-wait), or another proof, for {} s more; then it is fenced",
                    wait.0.div_ceil(1000)
                ),
                None => "the leader to begin the fence".to_string(),
            }),
            Phase::Fencing | Phase::Unconfirmed => {
                lines.extend(recovery.unproven.iter().map(|why| format!("a proof of its death: {why}")));
                if recovery.phase == Phase::Fencing {
                    lines.push(format!(
                        "fence attempt {} (level {}) to be read back",
                        recovery.fence.as_ref().map_or(0, |fence| fence.attempt),
                        recovery.fence.as_ref().map_or(0, |fence| fence.level)
                    ));
                } else if let Some(wait) = self.next_fence_in(id, now) {
                    let rounds = recovery.fence_pace.rounds;
                    let alike = if self.policy.fencing.pause_after(rounds) > self.policy.fencing.retry_pause {
                        format!(
                            ", since {rounds} ended alike (defib host fence {} to try at once)",
                            recovery.host
                        )
                    } else {
                        String::new()
                    };
                    lines.push(format!("the next fence attempt in {wait}{alike}"));
                }
                if self.expiry_may_prove(&recovery.host).is_ok() {
                    let votes = record.expiry_votes.len();
                    lines.push(format!("{quorum} votes that its lease has run out ({votes} so far)"));
                }
            }
            Phase::Fenced | Phase::Restarting => {
                for vm in &recovery.vms {
                    let Some(record) = self.vms.get(vm) else { continue };
                    match &record.place {
                        Place::Lost { .. } | Place::Down { .. } | Place::Never
                            if record.unplaced.is_empty() =>
                        {
                            lines.push(format!("vm {vm}: a place"));
                        }
                        Place::Lost { .. } | Place::Down { .. } | Place::Never => {
                            lines.push(format!("vm {vm}: no place: {}", record.unplaced.join("; ")));
                        }
                        Place::Intended { host, .. } => lines.push(format!("vm {vm}: to run on {host}")),
                        Place::Running { .. } | Place::GivenUp { .. } => {}
                    }
                }
            }
            Phase::Recovered | Phase::Abandoned => {}
        }
        lines
    }
}
