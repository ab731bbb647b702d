//! Commands about hosts: opinions, votes, evidence, admission.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::ToString,
    vec::Vec,
};

use defib_model::{
    BootId, ClusterVersion, Epoch, EventKind, HostId, HostNote, Millis, Opinion, ReplicaId,
    command::{BmcWord, ExpiryVote, Goodbye, LifeSign, OpinionChange, PowerOffReading, VmReport, Witnessed},
    event::{Phase, ProofKind},
};

use super::{
    Ledger,
    records::{OpinionRecord, Place, Standing},
};

/// An agent says goodbye to every replica, and each brings the word: within this time it is the same one.
const SAME_GOODBYE: Millis = Millis(2000);

impl Ledger {
    pub(super) fn observer_started(&mut self, observer: ReplicaId, session: u64, supports: ClusterVersion) {
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
        self.supports(observer, supports);
        // What its former life knew, this one must find out.
        for record in self.hosts.values_mut() {
            record.life_signs.remove(&observer);
        }
        self.event(None, EventKind::ObserverStarted { observer });
    }

    /// Whether votes of this session count: later ones of a former life of the replica do not.
    fn session_counts(&self, observer: ReplicaId, session: u64) -> bool {
        self.voters.contains(&observer)
            && (self.observers.get(&observer) == Some(&session) || mutated!(VotesOfFormerLife))
    }

    /// That somebody pretends to be a host is told and changes nothing else: what was forged was dropped.
    pub(super) fn heartbeats_forged(&mut self, observer: ReplicaId, forged: &BTreeMap<HostId, u64>) {
        if !self.voters.contains(&observer) {
            return self.refuse("heartbeats-forged", format!("r{observer} is not a voter"));
        }
        for (host, count) in forged {
            if self.hosts.contains_key(host) {
                let kind = EventKind::HeartbeatsForged { observer, host: host.clone(), count: *count };
                self.event(None, kind);
            }
        }
    }

    /// What a BMC says is told, and is what a doubt soon after it follows from. It changes nothing else.
    pub(super) fn bmc_told(&mut self, observer: ReplicaId, words: &[(HostId, BmcWord)]) {
        if self.version < ClusterVersion::BMC_EVENTS {
            return self.refuse("bmc-told", format!("the cluster is at version {}", self.version));
        }
        if !self.voters.contains(&observer) {
            return self.refuse("bmc-told", format!("r{observer} is not a voter"));
        }
        for (host, told) in words {
            if !self.hosts.contains_key(host) {
                continue;
            }
            let kind = EventKind::BmcTold { observer, host: host.clone(), told: told.clone() };
            let seq = self.event(None, kind);
            let at = self.at;
            if let Some(record) = self.hosts.get_mut(host) {
                record.bmc_told = Some((seq, at));
            }
        }
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
            record.witnesses.remove(&observer);
            if change.opinion == Opinion::Alive {
                record.life_signs.remove(&observer);
                record.opinions.remove(&observer);
            } else {
                let since = if held.opinion == Opinion::Alive { self.at } else { held.since };
                let (opinion, silent_ms) = (change.opinion, change.silent_ms);
                record.opinions.insert(observer, OpinionRecord { opinion, silent_ms, since });
            }
            let recovery = record.recovery;
            let (host, from, to, silent_ms) =
                (change.host.clone(), held.opinion, change.opinion, change.silent_ms);
            let kind = EventKind::OpinionChanged { observer, host, from, to, silent_ms };
            self.event(recovery, kind);
            self.touch(&change.host);
        }
    }

    /// An observer that misses a host tells whether its boot in use lives: then no other boot speaks for the host. That
    /// a neighbour reached it is for people, too, since an observer withholds its vote by itself: told by the first one
    /// of them, and by the next ones to whoever asks why nothing happens.
    pub(super) fn hosts_witnessed(&mut self, observer: ReplicaId, session: u64, hosts: &[Witnessed]) {
        if !self.session_counts(observer, session) {
            return self.refuse("hosts-witnessed", format!("session {session} of r{observer} is over"));
        }
        for Witnessed { host, epoch, sign } in hosts {
            let at = self.at;
            let Some(record) = self.hosts.get_mut(host) else { continue };
            let Some(held) = record.opinions.get(&observer).map(|held| held.opinion) else { continue };
            if *epoch != record.epoch || !matches!(record.standing, Standing::Active | Standing::Condemned) {
                continue;
            }
            if *sign == LifeSign::Nothing {
                record.life_signs.remove(&observer);
            } else {
                record.life_signs.insert(observer, at);
            }
            if let LifeSign::Reached { neighbour } = sign
                && record.standing == Standing::Active
                && held == Opinion::Asks
            {
                let (first, recovery) = (record.witnesses.is_empty(), record.recovery);
                record.witnesses.insert(observer, neighbour.clone());
                if first {
                    let (host, neighbour) = (host.clone(), neighbour.clone());
                    self.event(recovery, EventKind::PathDegraded { observer, host, neighbour });
                }
            }
            self.touch(host);
        }
    }

    pub(super) fn leases_expired(&mut self, observer: ReplicaId, session: u64, votes: &[ExpiryVote]) {
        if !self.session_counts(observer, session) {
            return self.refuse("leases-expired", format!("session {session} of r{observer} is over"));
        }
        let newest = self.electorates.last().map_or(0, |newest| newest.version);
        for vote in votes {
            let Some(record) = self.hosts.get_mut(&vote.host) else { continue };
            // Only a condemned host is voted on: nobody grants to its epoch any more.
            if record.standing != Standing::Condemned || vote.epoch != record.epoch {
                continue;
            }
            // The host may have heard of an electorate that the observer had not: it must look again.
            if vote.electorate > 0 && vote.electorate < newest {
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

    pub(super) fn readmit(
        &mut self,
        host: &HostId,
        epoch: Epoch,
        boot: BootId,
        vms: &[VmReport],
        note: &HostNote,
    ) {
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
        if record.standing == Standing::Condemned && record.boot != Some(boot) {
            // Its report proves the end of the former one first; a quorum hears the one in use.
            return self
                .refuse("readmit", format!("host {host} is not proven dead, so boot {boot} has to wait"));
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
            record.note.machine = None;
        }
        record.boot = Some(boot);
        record.opinions.clear();
        record.witnesses.clear();
        record.life_signs.clear();
        record.doubt = None;
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
        self.host_noted(host, note);
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
        let told = self.version >= ClusterVersion::CONTRADICTIONS;
        let Some(record) = self.hosts.get_mut(host) else { return };
        match &record.proof {
            Some(proof) if record.standing == Standing::Dead && record.boot == Some(boot) => {
                let (proof, recovery) = (proof.kind().clone(), record.recovery.filter(|_| told));
                if !core::mem::replace(&mut record.contradicted, true) {
                    self.event(recovery, EventKind::ProofContradicted { host: host.clone(), boot, proof });
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
                let until = self.at.plus(grace);
                if record.expected_silent_until.is_some_and(|held| until.since(held) < SAME_GOODBYE) {
                    return;
                }
                record.expected_silent_until = Some(until);
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
