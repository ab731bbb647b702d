//! Three replicas with real controllers and observers, a log, and hosts, in virtual milliseconds.
//!
//! Everything happens in the order of (time, order of scheduling): the same scenario gives the same
//! transcript, always.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::{
    controller::{Controller, Effect, Input, ProbeOrder, Role},
    observer::{Ack, Beat, Heard, Reached},
};
use defib_model::{
    ClusterVersion, Command, Entry, EventKind, EventSeq, HostId, Incarnation, Instant, Inventory, LogIndex,
    Policy, ReplicaId, UnixMillis, VmId, command::Committed, inventory::Readiness,
};

use super::{agents::Order, bus::Bus, checks::Checks, machines::Machine, replica::Replica};

/// How long the replicas need to elect a leader.
const ELECTION: u64 = 300;

/// What reaches a replica.
#[derive(Debug)]
pub(crate) enum Incoming {
    Beat { host: HostId, beat: Beat, sent: u64 },
    Input(Box<Input>),
    Stalled(u64),
    Reached(HostId, Reached),
    Repropose,
    Role(Role),
}

/// What is going to happen.
#[derive(Debug)]
pub(crate) enum Act {
    Commit {
        from: usize,
        entry: Entry,
    },
    CatchUp(usize),
    ToReplica {
        to: usize,
        session: u64,
        incoming: Incoming,
    },
    Elect,
    Tick(HostId),
    Ack {
        host: HostId,
        boots: u64,
        from: ReplicaId,
        path: u8,
        sent: u64,
        ack: Ack,
    },
    Admit {
        host: HostId,
        epoch: defib_model::Epoch,
    },
    Order {
        from: usize,
        session: u64,
        order: Order,
    },
    Started {
        from: usize,
        session: u64,
        boots: u64,
        order: Order,
    },
    Ended {
        from: usize,
        session: u64,
        boots: u64,
        order: Order,
        detail: &'static str,
        tried: bool,
    },
    Ready {
        host: HostId,
        vm: VmId,
        incarnation: Incarnation,
        readiness: Readiness,
    },
    Probe {
        from: usize,
        session: u64,
        asked_at: Instant,
        order: ProbeOrder,
    },
    Switch {
        host: HostId,
        level: usize,
    },
    Read {
        from: usize,
        session: u64,
        attempt: Option<u32>,
        question: defib_engine::controller::PowerQuestion,
    },
    Booted {
        host: HostId,
        boots: u64,
    },
    SessionEnds(HostId),
    /// The clone of a host tries to be it, and says on which machine it runs, or not.
    Clone(HostId, Option<String>),
    Heal {
        host: HostId,
    },
    BusTick,
}

/// The whole world of one scenario.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    /// The moment that counts as 0 in the transcript.
    pub(crate) origin: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Act>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) log: Vec<Entry>,
    pub(crate) leader: Option<usize>,
    pub(crate) term: u64,
    pub(crate) machines: BTreeMap<HostId, Machine>,
    pub(crate) inventory: Inventory,
    pub(crate) policy: Policy,
    pub(crate) checks: Checks,
    printed: EventSeq,
    /// Opinions and votes are not printed.
    pub(crate) quiet: bool,
    /// So many questions were asked.
    pub(crate) questions: u64,
    /// What is to be printed: the operator's log, and the world's own doings in brackets.
    pub(crate) lines: Vec<String>,
    /// How long each VM's guest needs to become ready; `None`: for ever.
    pub(crate) guest_boot: BTreeMap<VmId, Option<u64>>,
    /// How long a hypervisor needs to start a VM.
    pub(crate) start_takes: u64,
    /// How long a host needs to boot.
    pub(crate) boot_takes: u64,
    /// On how many paths hosts send heartbeats.
    pub(crate) paths: u8,
    /// A message bus, where there is one.
    pub(crate) bus: Option<Bus>,
}

impl World {
    pub(crate) fn new(replicas: u64) -> Self {
        let voters: BTreeSet<ReplicaId> = (1..=replicas).map(ReplicaId).collect();
        Self {
            now: 0,
            origin: 0,
            order: 0,
            queue: BTreeMap::new(),
            replicas: (1..=replicas)
                .map(|number| Replica::new(number, 1, &voters, 0, ClusterVersion::NEWEST))
                .collect(),
            log: Vec::new(),
            leader: None,
            term: 0,
            machines: BTreeMap::new(),
            inventory: Inventory::default(),
            policy: Policy::default(),
            checks: Checks::default(),
            printed: EventSeq(0),
            quiet: false,
            questions: 0,
            lines: Vec::new(),
            guest_boot: BTreeMap::new(),
            start_takes: 200,
            boot_takes: 20_000,
            paths: 1,
            bus: None,
        }
    }

    pub(crate) fn say(&mut self, text: &str) {
        let at = self.now.saturating_sub(self.origin);
        self.lines.push(format!("{at:>7}  {text}"));
    }

    pub(crate) fn later(&mut self, span: u64, act: Act) {
        self.order += 1;
        self.queue.insert((self.now + span, self.order), act);
    }

    pub(crate) fn tell_replica(&mut self, span: u64, to: usize, session: u64, incoming: Incoming) {
        self.later(span, Act::ToReplica { to, session, incoming });
    }

    /// Lets time pass; stops early when `until` holds.
    pub(crate) fn run(&mut self, span: u64, until: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + span;
        if until(self) {
            return true;
        }
        loop {
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            let woken = self.replicas.iter().filter(|replica| replica.alive).filter_map(|replica| {
                let observer = replica.observer.next_deadline().map(|at| replica.millis(at));
                let due = [observer, replica.due].into_iter().flatten().min()?;
                Some(due.max(replica.paused_until))
            });
            let Some(next) = queued.into_iter().chain(woken).min() else { break };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= self.now) {
                let Some((_, act)) = self.queue.pop_first() else { break };
                self.act(act);
                self.checks.at_most_one(&self.machines);
            }
            for number in 0..self.replicas.len() {
                self.wake(number);
            }
            if until(self) {
                return true;
            }
        }
        self.now = end;
        false
    }

    fn wake(&mut self, number: usize) {
        let now = self.now;
        let replica = &mut self.replicas[number];
        if !replica.alive || replica.paused_until > now {
            return;
        }
        let clock = replica.clock(now);
        if replica.observer.next_deadline().is_some_and(|at| at <= clock) {
            for proposal in replica.observer.woke(clock) {
                self.step(number, Input::Observed(proposal));
            }
        }
        if self.replicas[number].due.is_some_and(|due| due <= now) {
            self.step(number, Input::Woke);
        }
    }

    /// One input to one controller, and what it asks for.
    pub(crate) fn step(&mut self, number: usize, input: Input) {
        let now = self.now;
        let applies = matches!(input, Input::Committed(_));
        let replica = &mut self.replicas[number];
        let clock = replica.clock(now);
        let effects = replica.controller.step(clock, UnixMillis(now), input);
        replica.due = replica.controller.next_deadline(clock).map(|at| replica.millis(at));
        self.checks.looked(replica.id, &replica.controller);
        if applies {
            self.checks.applied(replica.id, replica.controller.ledger());
        }
        for effect in effects {
            self.effect(number, effect);
        }
        if applies {
            self.publish(number);
        }
    }

    /// Prints what is new in the stream of a replica that is ahead of the transcript.
    fn publish(&mut self, number: usize) {
        let events: Vec<_> =
            self.replicas[number].controller.ledger().events().since(self.printed.next()).cloned().collect();
        for event in events {
            self.checks.event(&event);
            self.printed = event.seq;
            let opinion =
                matches!(event.kind, EventKind::OpinionChanged { .. } | EventKind::LeaseExpiryVoted { .. });
            if !(self.quiet && opinion) {
                self.say(&event.kind.to_string());
            }
        }
    }

    fn effect(&mut self, number: usize, effect: Effect) {
        let session = self.replicas[number].session;
        let now = self.now;
        match effect {
            Effect::Propose(entry) => self.later(1, Act::Commit { from: number, entry }),
            Effect::Ask(question) => {
                self.questions += 1;
                let takes = self.machines.get(&question.host).map_or(1, |machine| {
                    machine.bmc_takes(question.level, &self.policy_now(), question.timeout.0)
                });
                self.later(takes, Act::Read { from: number, session, attempt: None, question });
            }
            Effect::Fence(order) => {
                let (host, level) = (order.question.host.clone(), order.question.level);
                let timeout = order.question.timeout.0;
                let takes = self
                    .machines
                    .get(&host)
                    .map_or(1, |machine| machine.bmc_takes(level, &self.policy_now(), timeout));
                let switches = self.machines.get(&host).map_or(1, |machine| machine.switch_takes(level));
                let takes = if switches > 10 { (takes + switches).min(timeout) } else { takes };
                self.later(switches.min(takes), Act::Switch { host, level });
                let attempt = Some(order.attempt);
                self.later(takes, Act::Read { from: number, session, attempt, question: order.question });
            }
            Effect::Probe(order) => {
                let asked_at = self.replicas[number].clock(now);
                self.later(2, Act::Probe { from: number, session, asked_at, order });
            }
            Effect::Start(order) => {
                self.later(1, Act::Order { from: number, session, order: Order::start(&order) });
            }
            Effect::Burn(order) => {
                self.later(1, Act::Order { from: number, session, order: Order::burn(&order) });
            }
            Effect::Admit { host, epoch } => {
                if self.machines.get(&host).is_some_and(|machine| machine.reaches(self.replicas[number].id)) {
                    self.later(1, Act::Admit { host, epoch });
                }
            }
            Effect::HandOver { to, .. } => {
                self.say(&format!("r{}: hands the lead to r{to}", self.replicas[number].id));
                let to = self.replicas.iter().position(|replica| replica.id == to);
                self.take_lead(to);
            }
            Effect::Watch { host, view } => {
                let replica = &mut self.replicas[number];
                let clock = replica.clock(now);
                replica.observer.watch(clock, &host, view);
            }
            Effect::Forget { host } => self.replicas[number].observer.forget(&host),
            Effect::CaughtUp => {
                let replica = &mut self.replicas[number];
                let clock = replica.clock(now);
                replica.observer.caught_up(clock);
            }
            Effect::PolicyChanged => {
                let replica = &mut self.replicas[number];
                let clock = replica.clock(now);
                let policy = replica.controller.ledger().policy().clone();
                replica.observer.configure(clock, &policy);
            }
            Effect::ElectorateChanged => {
                let replica = &mut self.replicas[number];
                let (clock, electorates) = (replica.clock(now), replica.controller.ledger().electorates());
                replica.observer.electorates(clock, electorates.to_vec());
            }
            Effect::InventoryChanged | Effect::Published { .. } => {}
        }
    }

    /// Who votes, where it is known best.
    pub(crate) fn voters(&self) -> BTreeSet<ReplicaId> {
        self.newest().ledger().voters().clone()
    }

    /// The policy in force where it is known best.
    pub(crate) fn policy_now(&self) -> Policy {
        self.newest().ledger().policy().clone()
    }

    /// The controller that has applied most.
    pub(crate) fn newest(&self) -> &Controller {
        let at = |replica: &Replica| replica.controller.ledger().applied();
        let mut newest = &self.replicas[0];
        for replica in &self.replicas {
            if at(replica) > at(newest)
                || (self.leader.is_some_and(|leader| self.replicas[leader].id == replica.id)
                    && at(replica) == at(newest))
            {
                newest = replica;
            }
        }
        &newest.controller
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Commit { from, entry } => self.commit(from, entry),
            Act::CatchUp(number) => self.catch_up(number),
            Act::ToReplica { to, session, incoming } => self.incoming(to, session, incoming),
            Act::Elect => self.elect(),
            Act::BusTick => self.bus_tick(),
            other => self.act_on_host(other),
        }
    }

    fn commit(&mut self, from: usize, entry: Entry) {
        let now = self.now;
        let Some(leader) = self.leader else { return };
        // Who still believes to lead and does not proposes into the void.
        let deluded = from != leader && matches!(self.replicas[from].role, Role::Leader { .. });
        let voters = self.voters();
        let connected = |replica: &&Replica| replica.connected(now) && voters.contains(&replica.id);
        let quorum = self.replicas.iter().filter(connected).count() * 2 > voters.len();
        if deluded || !quorum || !self.replicas[from].connected(now) || !self.replicas[leader].connected(now)
        {
            return;
        }
        self.log.push(entry);
        self.catch_up(leader);
        for number in 0..self.replicas.len() {
            self.catch_up(number);
        }
    }

    fn catch_up(&mut self, number: usize) {
        while self.replicas[number].connected(self.now) && self.replicas[number].applied < self.log.len() {
            let at = self.replicas[number].applied;
            self.replicas[number].applied += 1;
            let committed = Committed { index: LogIndex(at as u64 + 1), entry: self.log[at].clone() };
            self.step(number, Input::Committed(committed));
        }
    }

    fn incoming(&mut self, to: usize, session: u64, incoming: Incoming) {
        let now = self.now;
        let replica = &mut self.replicas[to];
        if !replica.alive || replica.session != session {
            return;
        }
        if replica.paused_until > now {
            let span = replica.paused_until - now;
            self.tell_replica(span, to, session, incoming);
            return;
        }
        let clock = replica.clock(now);
        match incoming {
            Incoming::Beat { host, beat, sent } => {
                let Some(slot) = replica.observer.slot(&host) else { return };
                let from = replica.id;
                let heard = replica.observer.heartbeat(clock, slot, &beat);
                if heard != Heard::Nothing {
                    replica.observer.tells_time(clock, slot, beat.boot, Instant::from_millis(sent));
                }
                if let Some(ack) = heard.ack() {
                    let Some(boots) = self.machines.get(&host).map(|machine| machine.boots) else { return };
                    let path = beat.path;
                    self.later(1, Act::Ack { host, boots, from, path, sent, ack });
                }
            }
            Incoming::Input(input) => self.step(to, *input),
            Incoming::Reached(host, reached) => {
                if let Some(slot) = replica.observer.slot(&host) {
                    let _ = replica.observer.reached(clock, slot, reached);
                }
            }
            Incoming::Stalled(span) => replica.observer.stalled(clock, defib_model::Millis(span)),
            Incoming::Repropose => replica.observer.repropose(clock),
            Incoming::Role(role) => {
                replica.role = role;
                self.step(to, Input::Role(role));
            }
        }
    }

    // ---- the replicas' fate ----------------------------------------------------------------------

    /// Elects a leader if there is none that a majority reaches.
    pub(crate) fn elect(&mut self) {
        let now = self.now;
        let voters = self.voters();
        let eligible: Vec<usize> = (0..self.replicas.len())
            .filter(|number| {
                let replica = &self.replicas[*number];
                replica.connected(now) && voters.contains(&replica.id)
            })
            .collect();
        let quorum = eligible.len() * 2 > voters.len();
        if quorum && self.leader.is_some_and(|leader| eligible.contains(&leader)) {
            return;
        }
        // Who has applied most has the newest log; of equals the first.
        let next = quorum
            .then(|| {
                eligible
                    .iter()
                    .copied()
                    .min_by_key(|number| (usize::MAX - self.replicas[*number].applied, *number))
            })
            .flatten();
        self.take_lead(next);
    }

    fn take_lead(&mut self, next: Option<usize>) {
        let former = std::mem::replace(&mut self.leader, next);
        if let Some(former) = former.filter(|former| self.leader != Some(*former)) {
            let session = self.replicas[former].session;
            self.tell_replica(0, former, session, Incoming::Role(Role::Follower));
        }
        if let Some(leader) = self.leader {
            self.term += 1;
            let session = self.replicas[leader].session;
            self.tell_replica(0, leader, session, Incoming::Role(Role::Leader { term: self.term }));
            let id = self.replicas[leader].id;
            // Agents report anew to who leads.
            for machine in self.machines.values_mut() {
                machine.reported.remove(&id);
            }
            for number in 0..self.replicas.len() {
                if !self.replicas[number].connected(self.now) {
                    continue;
                }
                let session = self.replicas[number].session;
                self.tell_replica(0, number, session, Incoming::Repropose);
            }
        }
    }

    pub(crate) fn expect_election(&mut self) {
        self.later(ELECTION, Act::Elect);
    }

    pub(crate) fn kill(&mut self, number: usize) {
        self.replicas[number].alive = false;
        if self.leader == Some(number) {
            self.expect_election();
        }
    }

    pub(crate) fn restart(&mut self, number: usize) {
        let Replica { id: ReplicaId(id), session, release, .. } = self.replicas[number];
        let session = session + 1;
        let voters = self.replicas.iter().map(|replica| replica.id).collect();
        self.replicas[number] = Replica::new(id, session, &voters, self.now, release);
        if self.leader == Some(number) {
            self.leader = None;
        }
        for machine in self.machines.values_mut() {
            machine.reported.remove(&ReplicaId(id));
        }
        self.later(1, Act::CatchUp(number));
        self.expect_election();
    }

    pub(crate) fn pause(&mut self, number: usize, span: u64) {
        let session = self.replicas[number].session;
        self.replicas[number].paused_until = self.now + span;
        // A shell that finds itself late says so before it reads what came meanwhile.
        self.tell_replica(0, number, session, Incoming::Stalled(span));
        self.expect_election();
        self.later(span, Act::CatchUp(number));
        self.later(span, Act::Elect);
    }

    pub(crate) fn cut_replica(&mut self, number: usize, cut: bool) {
        self.replicas[number].cut = cut;
        if !cut {
            self.later(1, Act::CatchUp(number));
        }
        self.expect_election();
    }

    /// Proposes on somebody's behalf, through the leader.
    pub(crate) fn propose(&mut self, command: Command) {
        if let Some(leader) = self.leader {
            self.step(leader, Input::Command(command));
        }
    }
}
