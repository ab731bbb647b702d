//! Restart waves: which placed VM may start now.
//!
//! A tier waits for the readiness of every VM of the tiers before it, or for their timeouts; a VM waits for
//! what it depends on; starts are throttled per host, per datastore and in all. Time here is the leader's
//! own: a new leader begins to wait anew, which delays and never hurries.

mod explain;

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use defib_model::{
    Command, EffectId, Epoch, HostId, Incarnation, Instant, LogIndex, Millis, Subject, VmId,
    command::{AgentReport, StartResult},
    inventory::{Priority, Readiness, Vm},
    policy::RestartPolicy,
};

use super::{BurnOrder, Controller, Effect, OrderOutcome, Proposed, REDELIVER_AFTER, Role, StartOrder};
use crate::ledger::{Ledger, Place, Standing, VmRecord};

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Ordered; no answer yet.
    Sent,
    /// Could not be delivered, or refused for now, or perhaps lost: to be ordered again.
    Again { at: Instant, why: String },
    /// No answer for too long: cancelled, so that it can be placed anew.
    Cancelling { asked_at: Instant },
    /// It ended; the log does not show it yet.
    Ended(StartResult),
}

#[derive(Debug, Clone)]
struct Start {
    incarnation: Incarnation,
    host_epoch: Epoch,
    first_ordered: Instant,
    attempt: u32,
    state: State,
    /// Since when the host could not be reached with it, or refused it.
    hindered_since: Option<Instant>,
    /// The agent's session by which it was ordered is over: the order may be lost with it, or its answer.
    doubtful: bool,
}

impl Start {
    /// When it is cancelled unless it ends before. Who can't be reached, or may not start anything, has as long as a
    /// lease to change that; twice as long each time that no host even tried, or a cluster without leases would
    /// place its VMs around and around.
    fn cancelled_at(&self, ledger: &Ledger, vm: &VmId) -> Instant {
        let timeout = ledger.policy().restart.start_timeout;
        match (&self.state, self.hindered_since) {
            (State::Again { .. }, Some(since)) => {
                let untried = ledger.vms().get(vm).map_or(0, |record| record.untried).min(16);
                since.plus(ledger.policy().lease.lease.times(1 << untried).min(timeout))
            }
            // That is over: until the agent says so it is repeated.
            (State::Cancelling { asked_at }, _) => *asked_at,
            _ => self.first_ordered.plus(timeout),
        }
    }

    /// It could not be delivered, or was refused for now.
    fn hindered(&mut self, now: Instant, why: String) {
        self.hindered_since.get_or_insert(now);
        let doublings = (self.attempt / REDELIVERED_STEADILY).min(REDELIVER_DOUBLINGS);
        self.state = State::Again { at: now.plus(REDELIVER_AFTER.times(1 << doublings)), why };
    }
}

/// After so many deliveries of an order the pause before the next one doubles: a lease that was just lost, or not held
/// yet, is often there after a few beats …
const REDELIVERED_STEADILY: u32 = 5;
/// … and it doubles so often.
const REDELIVER_DOUBLINGS: u32 = 2;

/// The lowest tier that nothing before it blocks, since when, and the one that was open before.
#[derive(Debug, Clone, Copy)]
struct Gate {
    tier: Priority,
    before: Priority,
    since: Instant,
}

/// What is starting, as the leader knows it.
#[derive(Debug, Clone, Default)]
pub(super) struct Starts {
    running: BTreeMap<VmId, Start>,
    /// Since when a VM that is running has not been ready.
    unready_since: BTreeMap<VmId, Instant>,
    gate: Option<Gate>,
}

impl Starts {
    /// What is due after `looked`, when the starts were last derived. Not after the moment of the question: what has
    /// come due in between would be dropped, and nobody would wake for it.
    pub(super) fn next_deadline(&self, ledger: &Ledger, looked: Instant) -> Option<Instant> {
        let policy = &ledger.policy().restart;
        let mut next: Option<Instant> = None;
        let mut consider = |at: Instant| {
            // What lies in the past and still waits, waits for something else than time.
            if at > looked {
                next = Some(next.map_or(at, |held| held.min(at)));
            }
        };
        for (vm, start) in &self.running {
            match &start.state {
                State::Sent => consider(start.cancelled_at(ledger, vm)),
                State::Again { at, .. } => {
                    consider(*at);
                    consider(start.cancelled_at(ledger, vm));
                }
                State::Cancelling { asked_at } => consider(asked_at.plus(Millis(1000))),
                State::Ended(_) => {}
            }
        }
        for vm in &ledger.index().pending {
            let Some(declared) = ledger.inventory().vms.get(vm) else { continue };
            let timeout = declared.readiness_timeout.unwrap_or(policy.tier_timeout);
            if let Some(since) = self.since(vm) {
                consider(since.plus(timeout));
            }
            if !declared.depends_on.is_empty() || self.since(vm).is_none() {
                consider(looked.plus(Millis(1000)));
            }
        }
        if let Some(gate) = self.gate {
            consider(gate.since.plus(policy.tier_delay));
        }
        next
    }

    fn since(&self, vm: &VmId) -> Option<Instant> {
        self.running.get(vm).map(|start| start.first_ordered).or_else(|| self.unready_since.get(vm).copied())
    }
}

/// Starts under way, as the throttles count them.
#[derive(Debug, Default)]
struct Load {
    per_host: BTreeMap<HostId, u32>,
    per_datastore: BTreeMap<String, u32>,
    total: u32,
}

/// Which throttle holds a start.
#[derive(Debug, Clone, Copy)]
enum Throttle {
    Total,
    Host,
    Datastore,
}

impl Load {
    fn add(&mut self, host: HostId, datastore: Option<String>) {
        let add = |count: &mut u32| *count = count.saturating_add(1);
        add(self.per_host.entry(host).or_default());
        if let Some(datastore) = datastore {
            add(self.per_datastore.entry(datastore).or_default());
        }
        add(&mut self.total);
    }

    /// What keeps one more start from this host and this datastore.
    fn full(&self, policy: &RestartPolicy, host: &HostId, datastore: Option<&str>) -> Option<Throttle> {
        let on_datastore = datastore.and_then(|name| self.per_datastore.get(name)).copied().unwrap_or(0);
        if self.total >= policy.starts_total {
            Some(Throttle::Total)
        } else if self.per_host.get(host).copied().unwrap_or(0) >= policy.starts_per_host {
            Some(Throttle::Host)
        } else if datastore.is_some() && on_datastore >= policy.starts_per_datastore {
            Some(Throttle::Datastore)
        } else {
            None
        }
    }
}

fn is_ready(declared: &Vm, record: &VmRecord) -> bool {
    match record.place {
        Place::Intended { .. } => declared.readiness == Readiness::Placed,
        Place::Running { .. } => record.readiness.is_some_and(|reached| reached >= declared.readiness),
        Place::Never | Place::Lost { .. } | Place::Down { .. } | Place::GivenUp { .. } => false,
    }
}

impl Controller {
    pub(super) fn derive_starts(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Role::Leader { term } = self.role else { return };
        self.starts.running.retain(|vm, start| {
            self.ledger.inventory().vms.contains_key(vm)
                && self.ledger.vms().get(vm).is_some_and(|record| {
                    record.incarnation == start.incarnation && matches!(record.place, Place::Intended { .. })
                })
        });
        let pending = &self.ledger.index().pending;
        self.starts.unready_since.retain(|vm, _| pending.contains(vm));
        for vm in pending {
            if matches!(self.ledger.vms().get(vm).map(|record| &record.place), Some(Place::Running { .. })) {
                self.starts.unready_since.entry(vm.clone()).or_insert(now);
            }
        }
        self.carry_on_starts(now, term, effects);
        if self.ledger.index().pending.is_empty() {
            self.starts.gate = None;
            return;
        }
        let gate = self.gate(now);
        let mut load = self.load();
        // Of one tier the earlier placed goes first: the planner's order is the order of start.
        let mut candidates: Vec<(Priority, LogIndex, VmId)> = Vec::new();
        for vm in &self.ledger.index().pending {
            let (Some(declared), Some(record)) =
                (self.ledger.inventory().vms.get(vm), self.ledger.vms().get(vm))
            else {
                continue;
            };
            if let Place::Intended { index, .. } = record.place
                && !self.starts.running.contains_key(vm)
            {
                candidates.push((declared.priority, index, vm.clone()));
            }
        }
        if candidates.is_empty() {
            return;
        }
        candidates.sort();
        let urgency = self.urgency();
        let policy = self.ledger.policy().restart.clone();
        for (priority, index, vm) in candidates {
            let priority = urgency.get(&vm).copied().unwrap_or(priority).min(priority);
            if priority > gate || !self.ledger.may_act() || !self.dependencies_ready(now, &vm) {
                continue;
            }
            let Some(restart) = self.ledger.restart(&vm) else { continue };
            let host = restart.to().clone();
            let datastore = self.ledger.inventory().vms.get(&vm).and_then(|vm| vm.datastore.clone());
            if load.full(&policy, &host, datastore.as_deref()).is_some() {
                continue;
            }
            let start = Start {
                incarnation: restart.incarnation(),
                host_epoch: restart.host_epoch(),
                first_ordered: now,
                attempt: 1,
                state: State::Sent,
                hindered_since: None,
                doubtful: false,
            };
            self.starts.running.insert(vm.clone(), start);
            load.add(host, datastore);
            let effect = EffectId { cause: index, subject: Subject::Vm(vm), attempt: 1 };
            effects.push(Effect::Start(StartOrder { effect, restart, term }));
        }
    }

    /// The starts that are under way.
    fn load(&self) -> Load {
        let mut load = Load::default();
        for (vm, start) in &self.starts.running {
            // Nothing starts on a host that was taken out of use: what was ordered there must not hold up the rest
            // until its end is proven, which may take an operator. The same of a start that gave no answer in its
            // time: its host may be as dead, and a brake may keep that from being said.
            if matches!(start.state, State::Cancelling { .. }) {
                continue;
            }
            let Some(host) = self.ledger.vms().get(vm).and_then(VmRecord::occupied_host) else { continue };
            if self.ledger.hosts().get(host).is_none_or(|host| host.standing != Standing::Active) {
                continue;
            }
            let datastore = self.ledger.inventory().vms.get(vm).and_then(|vm| vm.datastore.clone());
            load.add(host.clone(), datastore);
        }
        load
    }

    /// The lowest tier that may start now.
    fn gate(&mut self, now: Instant) -> Priority {
        let policy = &self.ledger.policy().restart;
        let index = self.ledger.index();
        let lost = index.waiting.iter().filter(|vm| {
            // Lost and not judged yet: it will be placed, or told why not, within moments.
            self.ledger.vms().get(*vm).is_some_and(|record| {
                record.unplaced.is_empty() && matches!(record.place, Place::Lost { .. } | Place::Down { .. })
            })
        });
        let mut gate = Priority::Lowest;
        if mutated!(TiersAtOnce) {
            return gate;
        }
        for vm in index.pending.iter().chain(lost) {
            let (Some(declared), Some(record)) =
                (self.ledger.inventory().vms.get(vm), self.ledger.vms().get(vm))
            else {
                continue;
            };
            let timeout = declared.readiness_timeout.unwrap_or(policy.tier_timeout);
            // What could not even be ordered since it was placed has had its time, too.
            let overdue = match record.place {
                Place::Intended { since, .. } => self.cluster_now(now).since(since) >= timeout,
                Place::Never
                | Place::Running { .. }
                | Place::Lost { .. }
                | Place::Down { .. }
                | Place::GivenUp { .. } => false,
            };
            let timed_out = overdue || self.starts.since(vm).is_some_and(|since| now >= since.plus(timeout));
            if !timed_out && !is_ready(declared, record) {
                gate = gate.min(declared.priority);
            }
        }
        // A tier that opens because the one before it is ready still waits `tier-delay`.
        let opened = match self.starts.gate {
            Some(opened) if opened.tier == gate => opened,
            Some(former) if former.tier < gate => Gate { tier: gate, before: former.tier, since: now },
            Some(_) | None => Gate { tier: gate, before: gate, since: now },
        };
        self.starts.gate = Some(opened);
        if now < opened.since.plus(policy.tier_delay) { opened.before } else { gate }
    }

    /// The tiers of VMs that others wait for, where those are of a higher tier: a VM is as urgent as what depends on
    /// it, or the two would wait for each other for ever.
    fn urgency(&self) -> BTreeMap<VmId, Priority> {
        let mut urgency: BTreeMap<VmId, Priority> = BTreeMap::new();
        let index = self.ledger.index();
        // What has no place now, or runs already, must not push others ahead.
        let hopeful = |vm: &&VmId| {
            self.ledger.vms().get(*vm).is_some_and(|record| {
                record.unplaced.is_empty() && !matches!(record.place, Place::Running { .. })
            })
        };
        // Dependencies have no cycles, so each round settles one more step of the longest chain.
        loop {
            let mut changed = false;
            for vm in index.pending.iter().chain(&index.waiting).filter(hopeful) {
                let Some(declared) = self.ledger.inventory().vms.get(vm) else { continue };
                let own = urgency.get(vm).copied().unwrap_or(declared.priority).min(declared.priority);
                for other in &declared.depends_on {
                    let held = urgency.entry(other.clone()).or_insert(Priority::Disabled);
                    if own < *held {
                        *held = own;
                        changed = true;
                    }
                }
            }
            if !changed {
                return urgency;
            }
        }
    }

    fn dependencies_ready(&self, now: Instant, vm: &VmId) -> bool {
        let (Some(declared), Some(record)) = (self.ledger.inventory().vms.get(vm), self.ledger.vms().get(vm))
        else {
            return false;
        };
        let Place::Intended { since, .. } = record.place else { return false };
        let tier_timeout = self.ledger.policy().restart.tier_timeout;
        let timeout = declared.readiness_timeout.unwrap_or(tier_timeout);
        declared.depends_on.iter().filter(|_| !mutated!(IgnoreDependencies)).all(|other| {
            let (Some(other_declared), Some(other_record)) =
                (self.ledger.inventory().vms.get(other), self.ledger.vms().get(other))
            else {
                return true;
            };
            is_ready(other_declared, other_record)
                || matches!(other_record.place, Place::GivenUp { .. })
                // Not by the last entry's time: while everybody waits, nothing is committed.
                || self.cluster_now(now).since(since) >= timeout
        })
    }

    /// Orders under way: repeats what could not be delivered, cancels what gives no answer, proposes what ended.
    fn carry_on_starts(&mut self, now: Instant, term: u64, effects: &mut Vec<Effect>) {
        let mut ended: Vec<(VmId, Start, StartResult)> = Vec::new();
        for (vm, start) in &mut self.starts.running {
            let overdue = now >= start.cancelled_at(&self.ledger, vm);
            let Some(restart) = self.ledger.restart(vm) else { continue };
            let cause = match self.ledger.vms().get(vm).map(|record| &record.place) {
                Some(Place::Intended { index, .. }) => *index,
                Some(_) | None => continue,
            };
            let effect = |attempt| EffectId { cause, subject: Subject::Vm(vm.clone()), attempt };
            match &start.state {
                State::Ended(result) => ended.push((vm.clone(), start.clone(), result.clone())),
                State::Cancelling { asked_at } if now < asked_at.plus(Millis(1000)) => {}
                State::Cancelling { .. } if mutated!(SilenceIsStopped) => {
                    let detail = "it gave no answer".into();
                    start.state = State::Ended(StartResult::NotRunning { detail, tried: true });
                }
                State::Sent | State::Again { .. } | State::Cancelling { .. } if overdue => {
                    start.state = State::Cancelling { asked_at: now };
                    effects.push(Effect::Burn(BurnOrder {
                        effect: effect(0),
                        host: restart.to().clone(),
                        host_epoch: restart.host_epoch(),
                        vm: vm.clone(),
                        incarnation: restart.incarnation(),
                        term,
                    }));
                }
                // A new epoch of the host (it was readmitted) makes the old order void.
                State::Again { at, .. } if now >= *at || start.host_epoch != restart.host_epoch() => {
                    start.attempt = start.attempt.saturating_add(1);
                    start.host_epoch = restart.host_epoch();
                    start.state = State::Sent;
                    effects.push(Effect::Start(StartOrder { effect: effect(start.attempt), restart, term }));
                }
                State::Sent if start.host_epoch != restart.host_epoch() => {
                    start.attempt = start.attempt.saturating_add(1);
                    start.host_epoch = restart.host_epoch();
                    effects.push(Effect::Start(StartOrder { effect: effect(start.attempt), restart, term }));
                }
                State::Sent | State::Again { .. } | State::Cancelling { .. } => {}
            }
        }
        for (vm, start, result) in ended {
            let Some(record) = self.ledger.vms().get(&vm) else { continue };
            let Place::Intended { host, index, .. } = &record.place else { continue };
            let (host, cause) = (host.clone(), *index);
            let incarnation = start.incarnation;
            let effect = EffectId { cause, subject: Subject::Vm(vm.clone()), attempt: start.attempt };
            let key = Proposed::StartEnded(vm.clone(), incarnation);
            let command = || Command::StartEnded { effect, vm, incarnation, host, result };
            self.propose_once(now, key, command, effects);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the answer to an order, taken apart")]
    pub(super) fn ordered(
        &mut self,
        now: Instant,
        effect: EffectId,
        vm: VmId,
        incarnation: Incarnation,
        host: HostId,
        outcome: OrderOutcome,
        effects: &mut Vec<Effect>,
    ) {
        let occupied = self.ledger.vms().get(&vm).and_then(VmRecord::occupied_host);
        if occupied != Some(&host) {
            // A host speaks for what is its own: what another one says of it concludes nothing.
            return;
        }
        if let Some(start) = self.starts.running.get_mut(&vm)
            && start.incarnation == incarnation
        {
            let cancelling = matches!(start.state, State::Cancelling { .. });
            match outcome {
                OrderOutcome::Running => start.state = State::Ended(StartResult::Running),
                OrderOutcome::NotRunning { detail, tried } => {
                    start.state = State::Ended(StartResult::NotRunning { detail, tried });
                }
                OrderOutcome::Refused { detail } | OrderOutcome::Unknown { detail } if !cancelling => {
                    start.hindered(now, detail);
                }
                OrderOutcome::Refused { detail } | OrderOutcome::Unknown { detail }
                    if mutated!(SilenceIsStopped) =>
                {
                    start.state = State::Ended(StartResult::NotRunning { detail, tried: true });
                }
                OrderOutcome::Refused { .. } | OrderOutcome::Unknown { .. } => {}
            }
            return;
        }
        // The end of a VM that was recorded as running: its agent's durable word.
        if let OrderOutcome::NotRunning { detail, tried } = outcome
            && self.ledger.vms().get(&vm).is_some_and(|record| record.incarnation == incarnation)
        {
            let key = Proposed::StartEnded(vm.clone(), incarnation);
            let result = StartResult::NotRunning { detail, tried };
            let command = || Command::StartEnded { effect, vm, incarnation, host, result };
            self.propose_once(now, key, command, effects);
        }
    }

    /// The session of a host's agent is over: what was ordered by it may never have been read.
    pub(super) fn doubt_orders(&mut self, host: &HostId) {
        for (vm, start) in &mut self.starts.running {
            start.doubtful |= self.ledger.vms().get(vm).and_then(VmRecord::occupied_host) == Some(host);
        }
    }

    /// An agent reports, by a new session if the former one is over, and does not know a start that was ordered
    /// by that: the order died on its way, or with a process of the agent (which may not have lived to write it
    /// down), so it is given once more, instead of waiting for the whole `start-timeout`.
    ///
    /// Nothing is concluded from what a report does *not* say: what is not named may still be ordered by a
    /// message that is late, so only the agent's durable word (`NotRunning`) or the host's death releases the
    /// VM (I2). And the repetition is the same order: of the same incarnation, on the same host, minted anew
    /// from the committed placement with the host's present epoch and this leader's term, and refused if a
    /// newer of either was seen (I3). Whichever of the two comes first is written down before anything follows
    /// from it; the other one finds the incarnation seen, and starts nothing: not while it starts or runs, not
    /// when it is burnt. So at most one start comes of both, in whatever order and however late they arrive,
    /// and none on a host or in an epoch that they were not meant for.
    pub(super) fn repeat_orders(&mut self, now: Instant, report: &AgentReport) {
        for (vm, start) in &mut self.starts.running {
            if self.ledger.vms().get(vm).and_then(VmRecord::occupied_host) != Some(&report.host) {
                continue;
            }
            let named = report.vms.iter().any(|one| one.vm == *vm && one.incarnation == start.incarnation);
            match &mut start.state {
                State::Sent if start.doubtful && !named => {
                    start.hindered_since = None;
                    let why = String::from("its agent's session broke after it was ordered");
                    start.state = State::Again { at: now, why };
                }
                // It can be reached now.
                State::Again { at, .. } if start.doubtful => *at = now,
                State::Sent | State::Again { .. } | State::Cancelling { .. } | State::Ended(_) => {}
            }
            start.doubtful = false;
        }
    }
}
