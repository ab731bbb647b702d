//! One per host, in the agent: holds the lease, refuses stale orders, stops VMs that may not run on.
//!
//! Like a guest with a room key that expires: as long as the desk renews it, all is well. When it runs out the guest
//! leaves, unless most other guests' keys have run out too: then it is the desk that is gone, and everybody stays.
//!
//! # Coverage
//! A host's VMs may run while it is *covered*: while it holds the lease (promises of a majority of replicas, each
//! counted from when the heartbeat was sent), or while a strict majority of the hosts that count says that it holds
//! none either (the double quorum, design 4.1). From the moment at which coverage ends, the
//! watchdog is not petted, and at 3/5 of the watchdog's time the VMs are stopped hard; the rest is for the stopping
//! itself, and what does not end in it, the hardware ends. Once that moment has passed, only the lease saves the VMs,
//! not the neighbours any more: a majority of unexpired promises says that no majority of replicas has voted expiry;
//! the neighbours' answers say nothing of the past. A process that stood still until the watchdog's time was over has
//! been away, as below.
//!
//! # After a restart of the agent
//! A new process knows no promise. The former one may have lost its coverage at a moment L that the new one can't
//! know, and the VMs must be gone by L + watchdog. If the former process left a [`ResumeHint`] (written at most a
//! second late, so never later than the true L), that is L, and all goes on as if there had been no restart. If not,
//! or if L is long past, the VMs are stopped 2/5 of the watchdog's time after the start unless coverage comes first.
//! Where a hardware watchdog is armed the bound holds in any case: the former process petted it at L at the latest,
//! and this one does not before it is covered; so if the boot still runs, L + watchdog has not come, and the
//! neighbours' answers may save the VMs as ever. Where none is armed, nobody can stop VMs while their agent is dead,
//! so `trust-self-fence` vouches for that too; once L + watchdog has passed, a lease saves the VMs, or a
//! majority of hosts that has held none from L + watchdog on: no vote of expiry can have fallen before that moment,
//! and none since, because each needs a majority that held leases, and two majorities share a host. Answers of the
//! present alone say nothing of what fell meanwhile, and a replica that says that the host was condemned ends the VMs
//! at once. A new process never claims to hold a lease before it has one by its own count.
//!
//! # Orders
//! An order counts only in the newest epoch and term that were seen, and for the newest incarnation. All that is
//! written to the disk before anything follows from it. What "does not run" means is said in [`vms`](self): never
//! again, on this host. A guard never starts a VM by itself.
//!
//! # Shutdown
//! "I shut down, all my VMs were stopped" proves a death, and may arrive late: a frozen replica brings it when it goes
//! on. A shutdown can be called off, so the same boot may be back by then. Therefore the word binds: it is written
//! before it is said, and from then on nothing is started here in that epoch, by any process of this boot. The next
//! process says it again until it is taken and the host is let in under a new epoch, in which the word is void.
//!
//! # Change of timing
//! A shorter time counts at once. A longer one would let VMs run longer than observers wait that don't know of it
//! yet: it counts after the lease has been held without a break for two leases since it was told.

mod lease;
mod neighbours;
#[cfg(test)]
mod tests;
mod vms;
mod words;

use alloc::{string::ToString, vec::Vec};

use defib_model::{
    BootId, Epoch, HostNote, Instant, Millis, ReplicaId,
    command::{AgentReport, VmReport},
    policy::LeasePolicy,
};
use lease::Lease;
use neighbours::Neighbours;
use vms::{Permit, Vms};
pub use words::{
    Answer, Config, Durable, Effect, Electorate, Input, LeaseState, Neighbour, Order, Outcome, Refusal,
    ResumeHint, StopReason, Timing, Verb, VmMemory, VmObserved,
};

use crate::observer::{Ack, Beat};

/// Coverage has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Loss {
    since: Instant,
    stop_at: Instant,
}

/// A guard. See the module.
#[derive(Debug, Clone)]
pub struct Guard {
    config: Config,
    boot: BootId,
    now: Instant,
    epoch: Epoch,
    term: u64,
    electorate: Electorate,
    /// Something beside the VMs' memory has to be written.
    dirty: bool,
    lease: Lease,
    neighbours: Neighbours,
    /// Until when the neighbours' answers, or what the former process knew, cover.
    exempt_until: Instant,
    resume_until: Instant,
    loss: Option<Loss>,
    /// The moment to stop has passed without a lease: only a lease ends this.
    stopping: bool,
    /// The former process's bound had passed before this one began: when. Until something covers again, only a lease
    /// does, or neighbours that have held none from then on.
    absent_from: Option<Instant>,
    shutting_down: bool,
    left: Option<Epoch>,
    overtaken: bool,
    watchdog_armed: bool,
    longer: Option<(Timing, Instant)>,
    /// The epoch in which this process held a lease last.
    leased_in: Option<Epoch>,
    vms: Vms,
}

impl Guard {
    /// A guard of a host that now runs `boot`. `durable`: what was read from the disk. `resume`: what the former
    /// process of the agent left in this very boot; the shell drops it otherwise.
    #[must_use]
    pub fn new(
        mut config: Config,
        durable: Option<Durable>,
        resume: Option<ResumeHint>,
        boot: BootId,
        now: Instant,
    ) -> Self {
        let same_boot = durable.as_ref().is_some_and(|durable| durable.boot == boot);
        let durable = durable.filter(|_| !mutated!(ForgetOnRestart)).unwrap_or_default();
        let left = durable.left.filter(|_| same_boot && !mutated!(ForgetGoodbye));
        let timing = durable.timing.unwrap_or(config.timing);
        config.timing = timing;
        // No coverage lasts longer than this, so a hint that says so is wrong.
        let limit = now.plus(timing.lease.max(timing.answer_freshness));
        let resume_until =
            resume.filter(|_| same_boot).map_or(Instant(0), |hint| hint.covered_until.min(limit));
        let watchdog = timing.watchdog;
        let margin = now.plus(margin(watchdog));
        let (mut loss, mut absent_from) = (None, None);
        if now >= resume_until {
            loss = Some(match resume.filter(|_| same_boot) {
                None => Loss { since: now, stop_at: margin },
                Some(ResumeHint { covered_until: since }) if now >= since.plus(watchdog) => {
                    absent_from = Some(since.plus(watchdog));
                    Loss { since, stop_at: margin }
                }
                Some(ResumeHint { covered_until: since }) => {
                    let latest = since.plus(Millis(watchdog.0.saturating_mul(4) / 5));
                    Loss {
                        since,
                        stop_at: margin.min(latest).max(since.plus(LeasePolicy::stop_after(watchdog))),
                    }
                }
            });
        }
        Self {
            config,
            boot,
            now,
            epoch: durable.epoch,
            term: durable.term,
            electorate: durable.electorate,
            dirty: !same_boot,
            lease: Lease::none(now),
            neighbours: Neighbours::default(),
            exempt_until: Instant(0),
            resume_until,
            loss,
            stopping: false,
            absent_from,
            shutting_down: false,
            left,
            overtaken: false,
            watchdog_armed: false,
            longer: None,
            leased_in: None,
            vms: Vms::new(durable.vms, same_boot),
        }
    }

    /// Takes one input, or [`Input::Woke`] when [`Self::next_deadline`] has come. `now` is read after the input was
    /// received.
    pub fn step(&mut self, now: Instant, input: Input) -> Vec<Effect> {
        let now = now.max(self.now);
        self.now = now;
        let (mut urgent, mut effects) = (Vec::new(), Vec::new());
        // First what the passing of time alone has done: an input that was late must not undo it.
        self.lapse(now);
        self.take(now, input, &mut effects);
        self.cover(now);
        self.ask(now, &mut effects);
        let permit = self.permit(now);
        self.vms.reconcile(now, permit, &mut urgent, &mut effects);
        if self.shutting_down && self.vms.nothing_runs() && self.left != Some(self.epoch) {
            self.left = Some(self.epoch);
            self.dirty = true;
        }
        if self.vms.take_dirty() | core::mem::take(&mut self.dirty) {
            urgent.push(Effect::Persist(self.durable()));
        }
        urgent.append(&mut effects);
        urgent
    }

    fn take(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Ack { replica, sent_at, ack } => self.acknowledged(now, replica, sent_at, &ack),
            Input::Order(order) => self.order(now, &order, effects),
            Input::EpochTold { epoch } => self.adopt(epoch),
            Input::NeighbourAnswer { host, asked_at, answer } => {
                self.neighbours.answered(now, &host, asked_at.min(now), answer);
            }
            Input::Hypervisor(seen) => self.vms.observed(&seen),
            Input::HypervisorListed => self.vms.all_listed(),
            Input::StopFinished { vm, incarnation, ok } => self.vms.stopped(&vm, incarnation, ok),
            Input::StartFinished { vm, incarnation, result } => {
                self.vms.started(&vm, incarnation, result, effects)
            }
            Input::WatchdogArmed(armed) => self.watchdog_armed = armed,
            Input::Electorate(electorate) => {
                if electorate.version > self.electorate.version {
                    self.electorate = electorate;
                    self.lease.keep(&self.electorate.replicas);
                    self.lease.count(now, &self.electorate.replicas);
                    self.neighbours.keep(&self.electorate);
                    self.dirty = true;
                }
            }
            Input::Timing(timing) => self.retime(now, timing),
            Input::ShuttingDown => self.shutting_down = true,
            Input::Woke => {}
        }
    }

    /// What the passing of time has done since the last step.
    fn lapse(&mut self, now: Instant) {
        let end = self.coverage_end();
        let (watchdog, stopping) = (self.config.timing.watchdog, self.stopping);
        if self.loss.is_none() && now >= end {
            self.loss = Some(Loss { since: end, stop_at: end.plus(LeasePolicy::stop_after(watchdog)) });
        }
        if let Some(loss) = &mut self.loss
            && !stopping
            && self.absent_from.is_none()
            && now >= loss.since.plus(watchdog)
        {
            // It stood still beyond its bound, which is as if it had been away.
            self.absent_from = Some(loss.since.plus(watchdog));
            loss.stop_at = now.plus(margin(watchdog));
        }
        self.stopping = (stopping || self.loss.is_some_and(|loss| now >= loss.stop_at))
            && !mutated!(LeaseLossStopsNothing);
        self.lease.settle(now);
    }

    /// What the input has done to coverage.
    fn cover(&mut self, now: Instant) {
        let Timing { lease, watchdog, answer_freshness } = self.config.timing;
        let since = self.absent_from.filter(|_| !mutated!(ForgetAbsence));
        self.exempt_until = self
            .neighbours
            .exempt_until(now, &self.config.host, &self.electorate, answer_freshness, since)
            .filter(|_| !self.stopping_for_good() && !mutated!(NoExemption))
            .unwrap_or_default();
        if now < self.exempt_until {
            self.absent_from = None;
        }
        self.stopping |= self.stopping_for_good();
        if let Some((_, since)) = self.lease.held(now) {
            self.leased_in = Some(self.epoch);
            self.loss = None;
            self.stopping = false;
            self.absent_from = None;
            if let Some((longer, told)) = self.longer
                && since.max(told).plus(lease.times(2)) <= now
            {
                self.config.timing = longer;
                self.longer = None;
                self.dirty = true;
            }
        } else if now < self.exempt_until || now < self.resume_until {
            self.loss = None;
        } else {
            self.loss.get_or_insert_with(|| Loss {
                since: now,
                stop_at: now.plus(LeasePolicy::stop_after(watchdog)),
            });
        }
    }

    /// Its agent was away for too long, and a replica says that it was condemned.
    fn stopping_for_good(&self) -> bool {
        self.absent_from.is_some() && self.overtaken && !mutated!(GoOnThoughCondemned)
    }

    fn acknowledged(&mut self, now: Instant, replica: ReplicaId, sent_at: Instant, ack: &Ack) {
        if !self.electorate.replicas.contains(&replica) {
            return;
        }
        if ack.epoch > self.epoch {
            self.overtaken |= !ack.granted;
            self.adopt(ack.epoch);
        } else if ack.granted && ack.epoch == self.epoch {
            self.overtaken = false;
        }
        self.lease.acknowledged(now, replica, sent_at, ack, &self.electorate.replicas);
    }

    /// Promises are not bound to an epoch (an observer keeps what it promised through every change of epoch), so they
    /// stay.
    fn adopt(&mut self, epoch: Epoch) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.dirty = true;
        }
    }

    fn order(&mut self, now: Instant, order: &Order, effects: &mut Vec<Effect>) {
        let (vm, incarnation) = order.verb.subject();
        let mut refuse =
            |refusal| effects.push(vms::report(&order.effect, vm, incarnation, Outcome::Refused(refusal)));
        if let Some(meant) = order.boot.filter(|boot| *boot != self.boot && !mutated!(ObeyOtherBoot)) {
            return refuse(Refusal::OtherBoot { meant });
        }
        if order.term < self.term && !mutated!(ObeyOldTerm) {
            return refuse(Refusal::StaleTerm { current: self.term });
        }
        if order.term > self.term {
            self.term = order.term;
            self.dirty = true;
        }
        if order.epoch < self.epoch && !mutated!(ObeyOldEpoch) {
            return refuse(Refusal::StaleEpoch { current: self.epoch });
        }
        self.adopt(order.epoch);
        match &order.verb {
            Verb::Start { .. } if self.has_left() && !self.shutting_down => {
                effects.push(vms::report(&order.effect, vm, incarnation, Outcome::Refused(Refusal::Left)));
            }
            Verb::Start { vm, incarnation, definition } => {
                let permit = self.permit(now);
                let taken =
                    self.vms.order_start(permit, &order.effect, vm, *incarnation, definition, effects);
                if let Err(refusal) = taken {
                    effects.push(vms::report(&order.effect, vm, *incarnation, Outcome::Refused(refusal)));
                }
            }
            Verb::Stop { vm, incarnation } | Verb::Burn { vm, incarnation } => {
                self.vms.order_burn(&order.effect, vm, *incarnation);
            }
        }
    }

    fn retime(&mut self, now: Instant, timing: Timing) {
        let held = &mut self.config.timing;
        let short = Timing {
            lease: timing.lease,
            watchdog: timing.watchdog.min(held.watchdog),
            answer_freshness: timing.answer_freshness.min(held.answer_freshness),
        };
        self.dirty |= *held != short;
        *held = short;
        self.longer = (short != timing).then_some((timing, now));
        if let Some(loss) = &mut self.loss {
            loss.stop_at = loss.stop_at.min(loss.since.plus(LeasePolicy::stop_after(timing.watchdog)));
        }
    }

    /// Asks the neighbours from when half of the lease has run out unrenewed, and as long as there is none.
    fn ask(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if now < self.worry_at(now) {
            return;
        }
        let (host, freshness) = (&self.config.host, self.config.timing.answer_freshness);
        if let Some(hosts) = self.neighbours.ask(now, host, &self.electorate, freshness) {
            effects.push(Effect::AskNeighbours { hosts });
        }
    }

    fn worry_at(&self, now: Instant) -> Instant {
        let half = Millis(self.config.timing.lease.0 / 2);
        self.lease.held(now).map_or(Instant(0), |(until, _)| until.minus(half))
    }

    fn permit(&self, now: Instant) -> Permit {
        let stop_all = if self.shutting_down {
            Some(StopReason::ShuttingDown)
        } else {
            self.stopping.then_some(StopReason::LeaseLost)
        };
        let lease = self.lease.held(now).map(|(until, _)| until);
        let lease = if mutated!(StartWithoutLease) { Some(now.plus(Millis(1000))) } else { lease };
        let lease_comes = self.leased_in != Some(self.epoch);
        Permit { start: lease.filter(|_| stop_all.is_none()), stop_all, lease_comes }
    }

    fn coverage_end(&self) -> Instant {
        self.lease.until().max(self.exempt_until).max(self.resume_until)
    }

    fn durable(&self) -> Durable {
        Durable {
            epoch: self.epoch,
            boot: self.boot,
            term: self.term,
            vms: self.vms.memory().clone(),
            electorate: self.electorate.clone(),
            left: self.left,
            timing: Some(self.config.timing),
        }
    }

    /// When to call [`Self::step`] with [`Input::Woke`] at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let now = self.now;
        let freshness = self.config.timing.answer_freshness;
        let asks = !self.electorate.hosts.is_empty();
        let ask = asks.then(|| self.worry_at(now).max(self.neighbours.next_ask(freshness)));
        let change = match self.loss {
            Some(loss) => (!self.stopping).then_some(loss.stop_at),
            None => Some(self.coverage_end()),
        };
        let soonest = [ask, change, self.vms.next_deadline()].into_iter().flatten().min()?;
        // What is due already was dealt with in the last step as far as it could be.
        Some(soonest.max(now.plus(Millis(1))))
    }

    /// The right to run VMs at `now`.
    #[must_use]
    pub fn lease(&self, now: Instant) -> LeaseState {
        if let Some((until, since)) = self.lease.held(now) {
            return LeaseState::Held { until, since };
        }
        let end = self.coverage_end();
        match self.loss {
            Some(Loss { since, stop_at }) => LeaseState::Lost { since, stop_at },
            None if now < end => LeaseState::Exempt { until: end },
            None => LeaseState::Lost {
                since: end,
                stop_at: end.plus(LeasePolicy::stop_after(self.config.timing.watchdog)),
            },
        }
    }

    /// For how long the lease has been held without a break; 0: it isn't held.
    #[must_use]
    pub fn lease_held_ms(&self, now: Instant) -> u64 {
        self.lease.held(now).map_or(0, |(_, since)| now.since(since).0)
    }

    /// What to answer a neighbour that asks.
    #[must_use]
    pub fn answer(&self, now: Instant) -> Answer {
        Answer { holds_lease: self.lease.held(now).is_some(), without_for: self.lease.without_for(now) }
    }

    /// Whether the hardware watchdog may be petted. Read the clock right before, pet right after: a pet that comes
    /// late lengthens the bound by as much. Arm the watchdog only once this has been true, or an isolated host resets
    /// in a circle.
    #[must_use]
    pub fn may_pet(&self, now: Instant) -> bool {
        match self.lease(now) {
            LeaseState::Held { .. } => true,
            LeaseState::Exempt { .. } => !self.stopping,
            LeaseState::Lost { .. } => mutated!(PetWithoutLease) || mutated!(LeaseLossStopsNothing),
        }
    }

    /// What the next process of the agent, in this boot, should know; for a volatile file, about once a second.
    #[must_use]
    pub fn resume_hint(&self) -> ResumeHint {
        let covered_until = match self.loss {
            Some(loss) => loss.since,
            // VMs that are being stopped must not be found covered.
            None if self.stopping => Instant(0),
            None => self.coverage_end(),
        };
        ResumeHint { covered_until }
    }

    /// The next heartbeat to a replica; `None` from this host when it has [shut down](Self::shut_down): whoever heard
    /// it after its goodbye would let it in again.
    #[must_use]
    pub fn beat(&self, now: Instant, replica: ReplicaId, sequence: u64, path: u8) -> Option<Beat> {
        (!self.shut_down()).then(|| Beat {
            boot: self.boot,
            sequence,
            epoch: self.epoch,
            path,
            lease_held_ms: self.lease_held_ms(now),
            vm_digest: self.vm_digest(),
            echo: self.lease.stamp(replica),
            electorate: self.electorate.version,
            watchdog: self.config.timing.watchdog,
            answer_freshness: self.config.timing.answer_freshness,
        })
    }

    /// What to report of this host; `None` until the hypervisor has named what it runs, and when it has
    /// [shut down](Self::shut_down), as [`Self::beat`].
    #[must_use]
    pub fn report(&self) -> Option<AgentReport> {
        if self.shut_down() {
            return None;
        }
        let vms = self.vms.report()?;
        let (host, boot, epoch) = (self.config.host.clone(), self.boot, self.epoch);
        Some(AgentReport {
            host,
            boot,
            epoch,
            watchdog_armed: self.watchdog_armed,
            vms,
            note: HostNote::default(),
        })
    }

    /// Changes whenever the report of the VMs does: FNV-1a, 64 bits.
    #[must_use]
    pub fn vm_digest(&self) -> u64 {
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        let mut take = |bytes: &[u8]| {
            for byte in bytes {
                digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for VmReport { vm, incarnation, running, readiness, note: _ } in
            self.vms.report().into_iter().flatten()
        {
            take(vm.as_str().as_bytes());
            take(&[0, u8::from(running)]);
            take(&incarnation.0.to_le_bytes());
            take(readiness.map(|reached| reached.to_string()).unwrap_or_default().as_bytes());
            take(&[0xff]);
        }
        digest
    }

    /// The boot in which it runs.
    #[must_use]
    pub const fn boot(&self) -> BootId {
        self.boot
    }

    /// The newest epoch that was seen.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The highest term of a leader that was seen.
    #[must_use]
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// Who counts.
    #[must_use]
    pub const fn electorate(&self) -> &Electorate {
        &self.electorate
    }

    /// Whether a replica refused the lease because this host's epoch is over, and none has granted it since: the host
    /// was condemned. The shell then reports its VMs at once, so that a leader can readmit it.
    #[must_use]
    pub const fn overtaken(&self) -> bool {
        self.overtaken
    }

    /// The times that it counts by now.
    #[must_use]
    pub const fn timing(&self) -> Timing {
        self.config.timing
    }

    /// Whether it was told to shut down and it is certain that no VM runs here: it stays so, in this epoch. Only now
    /// may it be said.
    #[must_use]
    pub fn shut_down(&self) -> bool {
        self.shutting_down && self.has_left() && self.vms.nothing_runs()
    }

    /// Whether a former process of this boot said in this epoch that the host shuts down, and nothing runs: it did
    /// not, and that must be said again with every report, until the host is let in under a new epoch.
    #[must_use]
    pub fn says_goodbye_again(&self) -> bool {
        self.has_left() && !self.shutting_down && self.vms.nothing_runs()
    }

    fn has_left(&self) -> bool {
        self.left == Some(self.epoch)
    }
}

/// How long a process that was away, or stood still, may look for coverage before it stops the VMs.
const fn margin(watchdog: Millis) -> Millis {
    Millis(watchdog.0.saturating_mul(2) / 5)
}
