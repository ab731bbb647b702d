//! Commands about hosts: opinions, votes, evidence, fences, admission.

use alloc::{
    collections::BTreeSet,
    format,
    string::{String, ToString},
    vec::Vec,
};

use defib_model::{
    BootId, Epoch, EventKind, HostId, Opinion, RecoveryId, ReplicaId,
    command::{ExpiryVote, FenceResult, FencingTest, Goodbye, OpinionChange, PowerOffReading, VmReport},
    event::{Phase, ProofKind},
};

use super::{
    Ledger,
    records::{FenceRecord, OpinionRecord, Place, Standing, TestRecord},
};

impl Ledger {
    pub(super) fn observer_started(&mut self, observer: ReplicaId, session: u64) {
        if !self.voters.contains(&observer) {
            return self.refuse("observer-started", format!("r{observer} is not a voter"));
        }
        let held = self.observers.get(&observer).copied();
        if held == Some(session) {
            // Proposed again before its proposer saw it in the log.
            return;
        }
        if held.is_some_and(|held| held > session) {
            return self.refuse("observer-started", format!("session {session} of r{observer} is not new"));
        }
        self.observers.insert(observer, session);
        self.event(None, EventKind::ObserverStarted { observer });
    }

    /// Whether votes of this session count: later ones of a former life of the replica do not.
    fn session_counts(&self, observer: ReplicaId, session: u64) -> bool {
        self.voters.contains(&observer)
            && (self.observers.get(&observer) == Some(&session) || mutated!(VotesOfFormerLife))
    }

    pub(super) fn opinions(&mut self, observer: ReplicaId, session: u64, changes: &[OpinionChange]) {
        if !self.session_counts(observer, session) {
            return self.refuse("opinions", format!("session {session} of r{observer} is over"));
        }
        for change in changes {
            let Some(record) = self.hosts.get_mut(&change.host) else { continue };
            if (change.epoch != record.epoch && !mutated!(OpinionOfOldEpoch))
                || record.standing == Standing::NeverSeen
            {
                continue;
            }
            let held = record.opinions.get(&observer).copied().unwrap_or_default();
            if held.opinion == change.opinion {
                continue;
            }
            if change.opinion == Opinion::Alive {
                record.opinions.remove(&observer);
            } else {
                record
                    .opinions
                    .insert(observer, OpinionRecord { opinion: change.opinion, silent_ms: change.silent_ms });
            }
            let (recovery, doubt) = (record.recovery, record.doubt);
            let (host, from, to, silent_ms) =
                (change.host.clone(), held.opinion, change.opinion, change.silent_ms);
            let kind = EventKind::OpinionChanged { observer, host, from, to, silent_ms };
            if recovery.is_some() {
                self.event(recovery, kind);
            } else {
                // Doubts before a recovery lead to each other, and the last one to the recovery.
                let told = self.event_after(doubt, None, kind);
                if let Some(record) = self.hosts.get_mut(&change.host) {
                    record.doubt = (!record.opinions.is_empty()).then_some(told);
                }
            }
            self.touch(&change.host);
        }
    }

    pub(super) fn leases_expired(&mut self, observer: ReplicaId, session: u64, votes: &[ExpiryVote]) {
        if !self.session_counts(observer, session) {
            return self.refuse("leases-expired", format!("session {session} of r{observer} is over"));
        }
        for vote in votes {
            let Some(record) = self.hosts.get_mut(&vote.host) else { continue };
            // Only a condemned host is voted on: nobody grants to its epoch any more.
            if record.standing != Standing::Condemned || vote.epoch != record.epoch {
                continue;
            }
            if record.expiry_votes.insert(observer) {
                let recovery = record.recovery;
                let (host, epoch) = (vote.host.clone(), vote.epoch);
                self.event(recovery, EventKind::LeaseExpiryVoted { observer, host, epoch });
                self.touch(&vote.host);
            }
        }
    }

    /// What a level's readings prove: every method of it read off, often enough, by a BMC that said who it is.
    fn readings_prove(&self, host: &HostId, readings: &[PowerOffReading]) -> Result<(String, u32), String> {
        let Some(declared) = self.inventory.hosts.get(host) else {
            return Err("it is not in the inventory".into());
        };
        let Some(level) = readings.first().map(|reading| reading.level) else {
            return Err("no reading".into());
        };
        let Some(methods) = declared.fencing.get(level) else {
            return Err(format!("it has no fencing level {level}"));
        };
        let needed = self.policy.fencing.confirm_reads;
        for method in 0..methods.0.len() {
            let Some(reading) =
                readings.iter().find(|reading| reading.level == level && reading.method == method)
            else {
                return Err(format!("method {method} of level {level} was not read"));
            };
            if reading.reads < needed {
                return Err(format!(
                    "method {method} was read off {} times, {needed} are needed",
                    reading.reads
                ));
            }
            if reading.identity.is_empty() {
                return Err(format!("method {method} did not say which machine it is"));
            }
        }
        let identities: Vec<&str> = readings.iter().map(|reading| reading.identity.as_str()).collect();
        let reads = readings.iter().map(|reading| reading.reads).min().unwrap_or(0);
        Ok((identities.join(" and "), reads))
    }

    pub(super) fn power_found_off(&mut self, host: &HostId, epoch: Epoch, readings: &[PowerOffReading]) {
        let Some(record) = self.hosts.get(host) else { return };
        let Some(id) = record.recovery else {
            return self.refuse("power-found-off", format!("host {host} is not suspected any more"));
        };
        if record.epoch != epoch || record.standing == Standing::Dead {
            return self
                .refuse("power-found-off", format!("host {host} is in epoch {}, not {epoch}", record.epoch));
        }
        // A heartbeat since then would speak against it: the quorum must still miss the host.
        if record.opinions_at_least(Opinion::Asks, &self.voters) < self.quorum() && !mutated!(OffThoughHeard)
        {
            return self.refuse("power-found-off", format!("host {host} is heard by a quorum"));
        }
        if !self.may_act() {
            return self.refuse("power-found-off", "automatic action is stopped");
        }
        match self.readings_prove(host, readings) {
            Ok((identity, reads)) => self.prove(id, ProofKind::PowerFoundOff { identity, reads }),
            Err(why) => self.refuse("power-found-off", format!("host {host}: {why}")),
        }
    }

    pub(super) fn fence_intended(&mut self, id: RecoveryId, attempt: u32, level: usize) {
        let Some(recovery) = self.recoveries.get_mut(&id) else { return };
        let host = recovery.host.clone();
        let next = recovery.fence.as_ref().map_or(0, |fence| fence.attempt).saturating_add(1);
        let may = matches!(recovery.phase, Phase::Confirmed | Phase::Fencing | Phase::Unconfirmed);
        if !may || attempt != next {
            return self
                .refuse("fence-intended", format!("host {host}: attempt {attempt} is not the next one"));
        }
        let Some(record) = self.hosts.get(&host) else { return };
        if record.standing != Standing::Condemned {
            return self.refuse("fence-intended", format!("host {host} is not condemned"));
        }
        if !self.may_act() {
            return self.refuse("fence-intended", "automatic action is stopped");
        }
        let index = self.now.index;
        if let Some(recovery) = self.recoveries.get_mut(&id) {
            recovery.phase = Phase::Fencing;
            recovery.fence = Some(FenceRecord { attempt, level, index });
        }
        self.event(Some(id), EventKind::FenceIntended { host, attempt, level });
    }

    pub(super) fn fence_ended(&mut self, id: RecoveryId, attempt: u32, result: &FenceResult) {
        let Some(recovery) = self.recoveries.get(&id) else { return };
        let host = recovery.host.clone();
        let Some(fence) = recovery.fence.clone().filter(|fence| fence.attempt == attempt) else {
            return self
                .refuse("fence-ended", format!("host {host}: attempt {attempt} is not the present one"));
        };
        if recovery.phase != Phase::Fencing {
            return;
        }
        let detail = match result {
            FenceResult::Off(readings) => match self.readings_prove(&host, readings) {
                Ok((identity, reads)) => return self.prove(id, ProofKind::PowerFenced { identity, reads }),
                Err(why) => why,
            },
            FenceResult::StillOn { detail } => format!("still on: {detail}"),
            FenceResult::WrongMachine { detail } => {
                format!("wrong machine, no power action was sent: {detail}")
            }
            FenceResult::Unknown { detail } if mutated!(UnknownFenceProves) => {
                let identity = detail.clone();
                return self.prove(id, ProofKind::PowerFenced { identity, reads: 0 });
            }
            FenceResult::Unknown { detail } => format!("unknown: {detail}"),
        };
        let levels = self.inventory.hosts.get(&host).map_or(0, |host| host.fencing.len());
        let last = fence.level.saturating_add(1) >= levels;
        let next = if last {
            format!("all levels tried, again in {}", self.policy.fencing.retry_pause)
        } else {
            format!("level {} is next", fence.level.saturating_add(1))
        };
        let event =
            EventKind::FenceFailed { host: host.clone(), attempt, detail: format!("{detail}; {next}") };
        self.event(Some(id), event);
        if last {
            if let Some(recovery) = self.recoveries.get_mut(&id) {
                recovery.retry_at = self.at.plus(self.policy.fencing.retry_pause);
            }
            self.unconfirmed(id, &detail);
        } else if let Some(recovery) = self.recoveries.get_mut(&id) {
            recovery.phase = Phase::Confirmed;
        }
    }

    /// Records what tests of fencing methods found. That a method works, found for the first time, is no event.
    pub(super) fn fencing_tested(&mut self, tests: &[FencingTest]) {
        for test in tests {
            let Some(method) = self
                .inventory
                .hosts
                .get(&test.host)
                .and_then(|host| host.fencing.get(test.level)?.0.get(test.method))
            else {
                // The inventory has changed since.
                continue;
            };
            let method = method.to_string();
            let Some(record) = self.hosts.get_mut(&test.host) else { continue };
            let (level, trouble) = (test.level, test.trouble.clone());
            let known = record.fencing_test(test.level, test.method).cloned();
            if known.as_ref().is_some_and(|known| known.trouble == trouble) {
                continue;
            }
            // One trouble after the other: it has not worked since the first.
            let still = known.as_ref().filter(|known| known.trouble.is_some() && trouble.is_some());
            let since = still.map_or(self.at, |known| known.since);
            record.fencing_tests.retain(|held| (held.level, held.method) != (test.level, test.method));
            let found = TestRecord { level, method: test.method, trouble: trouble.clone(), since };
            record.fencing_tests.push(found);
            if known.is_some() || trouble.is_some() {
                let host = test.host.clone();
                self.event(None, EventKind::FencingTested { host, level, method, trouble });
            }
        }
    }

    /// The level that the next fence attempt of a recovery tries.
    #[must_use]
    pub fn next_fence_level(&self, id: RecoveryId) -> Option<usize> {
        let recovery = self.recoveries.get(&id)?;
        let levels = self.inventory.hosts.get(&recovery.host)?.fencing.len();
        let next = match (&recovery.fence, recovery.phase) {
            (None, _) | (_, Phase::Unconfirmed) => 0,
            // A fence whose outcome is unknown to a new leader is repeated, not skipped.
            (Some(fence), Phase::Fencing) => fence.level,
            (Some(fence), _) => fence.level.saturating_add(1),
        };
        (levels > 0).then(|| next % levels)
    }

    pub(super) fn readmit(&mut self, host: &HostId, epoch: Epoch, boot: BootId, vms: &[VmReport]) {
        let Some(record) = self.hosts.get(host) else {
            return self.refuse("readmit", format!("host {host} is not in the inventory"));
        };
        if (record.epoch != epoch && !mutated!(ReadmitOldEpoch)) || record.standing == Standing::Active {
            return self.refuse("readmit", format!("host {host} is in epoch {} already", record.epoch));
        }
        if record.is_over(boot) && !mutated!(ReadmitDeadBoot) {
            return self.boot_is_over(host, boot);
        }
        let missed = record.opinions_at_least(Opinion::Asks, &self.voters) >= self.quorum();
        if record.standing != Standing::NeverSeen && missed {
            return self.refuse("readmit", format!("host {host} is missed by a quorum of observers"));
        }
        let recovery = record.recovery.and_then(|id| self.recoveries.get(&id));
        if recovery.is_some_and(|recovery| recovery.phase == Phase::Fencing) && !mutated!(ReadmitWhileFencing)
        {
            // Power may be cut at any moment: first the fence ends, then the host may come back.
            return self.refuse("readmit", format!("host {host} is being fenced"));
        }
        if record.standing == Standing::Dead && record.quarantined {
            return self.refuse("readmit", format!("host {host} is quarantined"));
        }
        if let Some(stale) = vms.iter().find(|report| report.running && !self.may_run(host, report))
            && !mutated!(ReadmitWithStaleVms)
        {
            return self.refuse(
                "readmit",
                format!("host {host} still runs vm {} as incarnation {}", stale.vm, stale.incarnation),
            );
        }
        let was = record.standing;
        let former = record.boot;
        if let (Standing::Condemned, Some(former), Some(id)) = (was, former, record.recovery)
            && former != boot
        {
            self.prove(id, ProofKind::NewBoot { former, now: boot });
        }
        let Some(record) = self.hosts.get_mut(host) else { return };
        let window = self.policy.brakes.window.times(10);
        let now = self.at;
        record.returns.retain(|at| now.since(*at) < window);
        if was != Standing::NeverSeen {
            record.returns.push(now);
        }
        let returns = u32::try_from(record.returns.len()).unwrap_or(u32::MAX);
        if returns > self.policy.brakes.flap_limit && !record.quarantined {
            record.quarantined = true;
            self.event(None, EventKind::HostQuarantined { host: host.clone(), returns });
        }
        let Some(record) = self.hosts.get_mut(host) else { return };
        // What was never proven dead may run VMs, so it is let in to be managed, but gets no more of them.
        if record.quarantined && record.standing == Standing::Dead {
            return self.host_changed(host);
        }
        let recovery = record.recovery;
        record.epoch = record.epoch.next();
        record.standing = Standing::Active;
        if former != Some(boot) {
            record.end_boot();
            // Not known of this boot yet.
            record.watchdog_armed = false;
        }
        record.boot = Some(boot);
        record.opinions.clear();
        record.expiry_votes.clear();
        record.proof = None;
        record.contradicted = false;
        record.expected_silent_until = None;
        let epoch = record.epoch;
        let open = recovery.filter(|id| self.index.open.contains(id));
        let still_restarting =
            open.filter(|id| self.recoveries.get(id).is_some_and(|recovery| recovery.phase >= Phase::Fenced));
        if let Some(id) = open
            && still_restarting.is_none()
        {
            self.abandon(id, "the host is back before its death was proven");
        }
        if let Some(record) = self.hosts.get_mut(host) {
            record.recovery = None;
        }
        self.event(open, EventKind::HostReadmitted { host: host.clone(), epoch, boot });
        self.host_changed(host);
        // Incarnations recorded here keep their place; the agent's orders carry on from the new epoch.
        let here: Vec<_> = self.index.on_host.get(host).into_iter().flatten().cloned().collect();
        for vm in here {
            self.update_vm(&vm, |record| {
                if let Place::Intended { host_epoch, .. } = &mut record.place {
                    *host_epoch = epoch;
                }
            });
        }
        self.report_vms(host, vms);
    }

    /// A boot wants in that was proven to be over. Told once: it is the BMC that lied, or an impostor.
    fn boot_is_over(&mut self, host: &HostId, boot: BootId) {
        let Some(record) = self.hosts.get_mut(host) else { return };
        match &record.proof {
            Some(proof) if record.standing == Standing::Dead && record.boot == Some(boot) => {
                let proof = proof.kind().clone();
                if !core::mem::replace(&mut record.contradicted, true) {
                    self.event(None, EventKind::ProofContradicted { host: host.clone(), boot, proof });
                }
            }
            Some(_) | None => self.refuse("readmit", format!("boot {boot} of host {host} is over")),
        }
    }

    /// Only what was said in the present boot and epoch counts: a replica that was stopped for a while, or its
    /// peers' copies of the same word, bring it when the host has long been let in again.
    pub(super) fn goodbye_said(&mut self, host: &HostId, boot: BootId, epoch: Epoch, goodbye: Goodbye) {
        let Some(record) = self.hosts.get_mut(host) else { return };
        let of_now = record.boot == Some(boot) && record.epoch == epoch;
        if record.standing != Standing::Active || !(of_now || mutated!(GoodbyeOfThePast)) {
            return;
        }
        match goodbye {
            Goodbye::AgentRestart => {
                let grace = self.policy.detection.upgrade_grace;
                record.expected_silent_until = Some(self.at.plus(grace));
                let detail = format!("its agent restarts, VMs run on; silence is expected for {grace}");
                self.event(None, EventKind::GoodbyeSaid { host: host.clone(), detail });
                self.host_changed(host);
            }
            Goodbye::Shutdown => {
                let detail = "it shuts down, all its VMs were stopped".to_string();
                let id = match self.hosts.get(host).and_then(|record| record.recovery) {
                    Some(id) => id,
                    None => self.open_recovery(host),
                };
                self.event(Some(id), EventKind::GoodbyeSaid { host: host.clone(), detail });
                self.prove(id, ProofKind::CleanShutdown);
            }
        }
    }

    /// Whether a host may run what its agent reports: the newest incarnation, placed there.
    #[must_use]
    pub fn may_run(&self, host: &HostId, report: &VmReport) -> bool {
        self.vms.get(&report.vm).is_some_and(|record| {
            record.occupied_host() == Some(host) && record.incarnation == report.incarnation
        })
    }

    /// All hosts that may be running something now, for the checkers.
    #[must_use]
    pub fn hosts_in_use(&self) -> BTreeSet<HostId> {
        self.index.on_host.keys().cloned().collect()
    }
}
