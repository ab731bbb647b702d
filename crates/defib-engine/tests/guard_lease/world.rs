//! Three observers and some guards, each by its own drifting clock, over links that delay, lose and cut.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::{
    guard::{
        Answer, Config, Durable, Effect, Electorate, Guard, Input, LeaseState, Neighbour, Order, Timing,
        Verb, VmObserved,
    },
    ledger,
    observer::{Ack, Beat, HostView, Observer, Proposal, Slot},
};
use defib_model::{
    BootId, EffectId, Epoch, HostId, Incarnation, Instant, LogIndex, Millis, Opinion, Policy, ReplicaId,
    Subject, VmId, inventory::Definition,
};
use proptest::prelude::*;

pub(crate) const TICK: u64 = 5;
pub(crate) const REPLICAS: usize = 3;
const DRIFT_PPM: u32 = 20_000;

pub(crate) fn policy() -> Policy {
    let mut policy = Policy::default();
    policy.detection.heartbeat_interval = Millis(50);
    policy.detection.ask_after_beats = 3;
    policy.detection.act_after = Millis(300);
    policy.detection.start_grace = Millis(500);
    policy.lease.lease = Millis(1000);
    policy.lease.watchdog = Millis(2000);
    policy.lease.answer_freshness = Millis(400);
    policy.lease.drift_ppm = DRIFT_PPM;
    policy.validate().unwrap();
    policy
}

/// SplitMix64.
pub(crate) struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// A monotonic clock that starts anywhere and runs up to half of the drift too fast or too slow.
pub(crate) struct Clock {
    pub(crate) offset: u64,
    pub(crate) ppm: i64,
}

impl Clock {
    fn draw(dice: &mut Dice) -> Self {
        let half = i64::from(DRIFT_PPM) / 2 - 200;
        Self {
            offset: 10_000_000_000 + dice.below(1_000_000_000_000),
            ppm: dice.below(2 * half as u64) as i64 - half,
        }
    }

    pub(crate) fn at(&self, real_ms: u64) -> Instant {
        let nanos = real_ms as i64 * 1_000_000;
        Instant(self.offset + (nanos + nanos / 1_000_000 * self.ppm) as u64)
    }
}

pub(crate) enum Message {
    Beat { host: usize, replica: usize, sent_at: Instant, beat: Beat },
    Ack { host: usize, replica: usize, sent_at: Instant, ack: Ack },
    Question { from: usize, to: usize, asked_at: Instant },
    Answer { from: usize, to: usize, asked_at: Instant, answer: Answer },
    View { replica: usize, host: usize, view: HostView },
    Order { host: usize, order: Order },
}

pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) guard: Guard,
    pub(crate) clock: Clock,
    pub(crate) frozen_until: u64,
    pub(crate) sequence: u64,
    pub(crate) petted: u64,
    pub(crate) running: bool,
    /// Of its VM: the newest that was ordered.
    pub(crate) incarnation: Incarnation,
    /// When its leader orders a start again.
    pub(crate) order_at: u64,
    /// A stop that is under way ends here.
    pub(crate) stop_ends: Option<u64>,
    /// The hardware has reset it; it is up again then.
    pub(crate) reset: Option<u64>,
    pub(crate) boot: BootId,
    pub(crate) durable: Option<Durable>,
    pub(crate) epoch: Epoch,
    pub(crate) condemned: bool,
    pub(crate) votes: BTreeSet<usize>,
    pub(crate) proven: bool,
}

pub(crate) struct Replica {
    pub(crate) observer: Observer,
    pub(crate) clock: Clock,
    pub(crate) frozen_until: u64,
    pub(crate) slots: Vec<Slot>,
}

/// What a world may do to those who live in it; each one in so many.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    pub(crate) loss: u64,
    pub(crate) delay_max: u64,
    pub(crate) cuts: u64,
    pub(crate) freezes: u64,
    pub(crate) condemnations: u64,
    /// Whether stopped VMs are ordered anew and proven hosts are readmitted.
    pub(crate) restarts: bool,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) dice: Dice,
    pub(crate) weather: Weather,
    pub(crate) hosts: Vec<Host>,
    pub(crate) replicas: Vec<Replica>,
    /// Cut links between two parties (hosts, then replicas), and until when.
    pub(crate) cuts: BTreeMap<(usize, usize), u64>,
    pub(crate) messages: BTreeMap<(u64, u64), Message>,
    pub(crate) sent: u64,
    pub(crate) opinions: BTreeMap<(usize, usize), Opinion>,
    pub(crate) stops: usize,
    pub(crate) starts: usize,
    pub(crate) proofs: usize,
}

pub(crate) fn begin(id: &HostId, durable: Option<Durable>, boot: BootId, now: Instant) -> Guard {
    let config = Config { host: id.clone(), timing: Timing::from(&policy().lease) };
    Guard::new(config, durable, None, boot, now)
}

pub(crate) fn vm(host: usize) -> VmId {
    VmId::new(&format!("vm{host}")).unwrap()
}

pub(crate) fn view(host: &Host) -> HostView {
    HostView {
        epoch: host.epoch,
        watched: true,
        grantable: !host.condemned,
        boot: Some(host.boot),
        condemned: host.condemned,
        ..HostView::default()
    }
}

impl World {
    pub(crate) fn new(weather: Weather) -> Self {
        let mut dice = Dice(weather.seed);
        let policy = policy();
        let ids: Vec<HostId> = (0..weather.hosts).map(|at| HostId::new(&format!("h{at}")).unwrap()).collect();
        let electorate = Electorate {
            version: 1,
            hosts: ids
                .iter()
                .map(|id| (id.clone(), Neighbour { address: format!("{id}:1"), domain: vec![] }))
                .collect(),
            replicas: (1..=REPLICAS as u64).map(ReplicaId).collect(),
        };
        let known = ledger::Electorate {
            version: electorate.version,
            hosts: ids.iter().cloned().collect(),
            replicas: electorate.replicas.clone(),
        };
        let mut hosts = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let clock = Clock::draw(&mut dice);
            let seen = VmObserved { vm: vm(at), incarnation: Incarnation(1), running: true, readiness: None };
            let mut guard = begin(id, None, BootId(1), clock.at(0));
            for input in [
                Input::Electorate(electorate.clone()),
                Input::EpochTold { epoch: Epoch(1) },
                Input::Hypervisor(seen),
                Input::HypervisorListed,
            ] {
                guard.step(clock.at(0), input);
            }
            hosts.push(Host {
                id: id.clone(),
                guard,
                clock,
                frozen_until: 0,
                sequence: 0,
                petted: 0,
                running: true,
                incarnation: Incarnation(1),
                order_at: 0,
                stop_ends: None,
                reset: None,
                boot: BootId(1),
                durable: None,
                epoch: Epoch(1),
                condemned: false,
                votes: BTreeSet::new(),
                proven: false,
            });
        }
        let replicas = (0..REPLICAS)
            .map(|at| {
                let clock = Clock::draw(&mut dice);
                let start = clock.at(0);
                let mut observer = Observer::new(ReplicaId(at as u64 + 1), 1, &policy, start);
                observer.caught_up(start);
                observer.electorates(start, vec![known.clone()]);
                let slots = hosts.iter().map(|host| observer.watch(start, &host.id, view(host))).collect();
                Replica { observer, clock, frozen_until: 0, slots }
            })
            .collect();
        Self {
            now: 0,
            dice,
            weather,
            hosts,
            replicas,
            cuts: BTreeMap::new(),
            messages: BTreeMap::new(),
            sent: 0,
            opinions: BTreeMap::new(),
            stops: 0,
            starts: 0,
            proofs: 0,
        }
    }

    pub(crate) fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cuts.get(&(one.min(other), one.max(other))).is_some_and(|until| self.now < *until)
    }

    pub(crate) fn cut(&mut self, one: usize, other: usize, until: u64) {
        self.cuts.insert((one.min(other), one.max(other)), until);
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.is_cut(from, to) || self.dice.one_in(self.weather.loss) {
            return;
        }
        // Most are quick, some lie long in a queue.
        let limit = if self.dice.one_in(10) { self.weather.delay_max } else { 10 };
        let at = self.now + self.dice.below(limit + 1);
        self.post(at, message);
    }

    pub(crate) fn post(&mut self, at: u64, message: Message) {
        self.sent += 1;
        self.messages.insert((at, self.sent), message);
    }

    pub(crate) fn step(&mut self, at: usize, input: Input) {
        let host = &mut self.hosts[at];
        let effects = host.guard.step(host.clock.at(self.now), input);
        for effect in effects {
            match effect {
                Effect::StopVm { .. } => {
                    // Stopping takes what a hard stop may take: less than 2/5 of the watchdog's time.
                    let ends = self.now + self.dice.below(350);
                    let ends = self.hosts[at].stop_ends.unwrap_or(ends).min(ends);
                    self.hosts[at].stop_ends = Some(ends);
                    self.stops += 1;
                }
                Effect::AskNeighbours { hosts } => {
                    let asked_at = self.hosts[at].clock.at(self.now);
                    for (host, _) in hosts {
                        let to = self.hosts.iter().position(|one| one.id == host).unwrap();
                        self.send(at, to, Message::Question { from: at, to, asked_at });
                    }
                }
                Effect::StartVm { vm, incarnation, .. } => {
                    let host = &mut self.hosts[at];
                    assert!(!host.running, "a second start on {}", host.id);
                    host.running = true;
                    self.starts += 1;
                    self.step(at, Input::StartFinished { vm, incarnation, result: Ok(()) });
                }
                Effect::Persist(durable) => self.hosts[at].durable = Some(durable),
                Effect::Report { .. } => {}
            }
        }
    }

    pub(crate) fn deliver(&mut self, message: Message) {
        let hosts = self.hosts.len();
        let to_frozen = match &message {
            Message::Beat { replica, .. } | Message::View { replica, .. } => {
                self.replicas[*replica].frozen_until
            }
            Message::Ack { host, .. }
            | Message::Question { to: host, .. }
            | Message::Answer { to: host, .. }
            | Message::Order { host, .. } => {
                if self.hosts[*host].reset.is_some() {
                    return;
                }
                self.hosts[*host].frozen_until
            }
        };
        if to_frozen > self.now {
            return self.post(to_frozen, message);
        }
        match message {
            Message::Beat { host, replica, sent_at, beat } => {
                let one = &mut self.replicas[replica];
                let (now, slot) = (one.clock.at(self.now), one.slots[host]);
                if let Some(ack) = one.observer.heartbeat(now, slot, &beat).ack() {
                    self.send(hosts + replica, host, Message::Ack { host, replica, sent_at, ack });
                }
            }
            Message::View { replica, host, view } => {
                let one = &mut self.replicas[replica];
                one.observer.watch(one.clock.at(self.now), &self.hosts[host].id, view);
            }
            Message::Ack { host, replica, sent_at, ack } => {
                self.step(host, Input::Ack { replica: ReplicaId(replica as u64 + 1), sent_at, ack });
            }
            Message::Question { from, to, asked_at } => {
                let asked = &self.hosts[to];
                let answer = asked.guard.answer(asked.clock.at(self.now));
                self.send(to, from, Message::Answer { from: to, to: from, asked_at, answer });
            }
            Message::Answer { from, to, asked_at, answer } => {
                let host = self.hosts[from].id.clone();
                self.step(to, Input::NeighbourAnswer { host, asked_at, answer });
            }
            Message::Order { host, order } => self.step(host, Input::Order(order)),
        }
    }

    /// The log reaches every replica in its own time, but in order.
    pub(crate) fn tell_view(&mut self, host: usize) {
        let view = view(&self.hosts[host]);
        for replica in 0..REPLICAS {
            let waiting = self.messages.iter().rev().find_map(|((at, _), message)| match message {
                Message::View { replica: to, host: about, .. } if (*to, *about) == (replica, host) => {
                    Some(*at)
                }
                _ => None,
            });
            let at = (self.now + 1 + self.dice.below(200)).max(waiting.unwrap_or(0));
            self.post(at, Message::View { replica, host, view: view.clone() });
        }
    }

    pub(crate) fn judge(&mut self, host: usize, condemned: bool) {
        let one = &mut self.hosts[host];
        one.condemned = condemned;
        one.epoch = one.epoch.next();
        one.votes.clear();
        self.tell_view(host);
    }

    /// Bad weather.
    pub(crate) fn blow(&mut self) {
        let (hosts, parties) = (self.hosts.len(), self.hosts.len() + REPLICAS);
        if self.dice.one_in(self.weather.cuts) {
            let until = self.now + 200 + self.dice.below(6000);
            match self.dice.below(5) {
                // One host is alone.
                0 => {
                    let one = self.dice.below(hosts as u64) as usize;
                    (0..parties).filter(|other| *other != one).for_each(|other| self.cut(one, other, until));
                }
                // A host and all replicas don't hear each other.
                1 => {
                    let one = self.dice.below(hosts as u64) as usize;
                    (hosts..parties).for_each(|other| self.cut(one, other, until));
                }
                // All replicas are gone for all, or for most.
                2 | 3 => {
                    for one in 0..hosts {
                        if !self.dice.one_in(4) {
                            (hosts..parties).for_each(|other| self.cut(one, other, until));
                        }
                    }
                }
                // Some link.
                _ => {
                    let one = self.dice.below(parties as u64) as usize;
                    let other = self.dice.below(parties as u64) as usize;
                    self.cut(one, other, until);
                }
            }
        }
        if self.dice.one_in(self.weather.freezes) {
            let until = self.now + self.dice.below(2500);
            let who = self.dice.below(parties as u64) as usize;
            match who.checked_sub(hosts) {
                None => self.hosts[who].frozen_until = until,
                Some(replica) => self.replicas[replica].frozen_until = until,
            }
        }
        if self.dice.one_in(self.weather.condemnations) {
            let host = self.dice.below(hosts as u64) as usize;
            if !self.hosts[host].condemned {
                self.judge(host, true);
            } else if !self.hosts[host].proven && self.dice.one_in(3) {
                self.judge(host, false);
            }
        }
    }

    pub(crate) fn tick(&mut self) -> Result<(), TestCaseError> {
        self.now += TICK;
        let hosts = self.hosts.len();
        let watchdog = policy().lease.watchdog.0;
        for at in 0..hosts {
            if self.hosts[at].stop_ends.is_some_and(|ends| ends <= self.now) {
                self.hosts[at].stop_ends = None;
                self.hosts[at].running = false;
                if self.hosts[at].reset.is_none() {
                    // A frozen agent's children are told to stop all the same, but it hears of it later.
                    let incarnation = self.hosts[at].incarnation;
                    self.step(at, Input::StopFinished { vm: vm(at), incarnation, ok: true });
                }
            }
        }
        while let Some(entry) = self.messages.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let message = entry.remove();
            self.deliver(message);
        }
        for at in 0..hosts {
            let host = &mut self.hosts[at];
            // The hardware does what it is there for.
            if self.now.saturating_sub(host.petted) > watchdog && host.reset.is_none() {
                host.reset = Some(self.now + 1500);
                host.running = false;
                host.stop_ends = None;
            }
            if host.reset.is_some_and(|until| until <= self.now) {
                host.reset = None;
                host.petted = self.now + 2 * watchdog;
                host.boot = BootId(host.boot.0 + 1);
                host.guard = begin(&host.id, host.durable.clone(), host.boot, host.clock.at(self.now));
                self.step(at, Input::HypervisorListed);
                if !self.hosts[at].condemned {
                    // An epoch is given to one boot.
                    self.judge(at, false);
                }
            }
            let host = &mut self.hosts[at];
            if host.reset.is_some() || host.frozen_until > self.now {
                continue;
            }
            let now = host.clock.at(self.now);
            if host.guard.next_deadline().is_some_and(|due| due <= now) {
                self.step(at, Input::Woke);
            }
            let host = &mut self.hosts[at];
            if host.guard.may_pet(now) {
                host.petted = self.now;
            }
            self.order(at);
            let host = &mut self.hosts[at];
            if self.now.is_multiple_of(50) {
                host.sequence += 1;
                for replica in 0..REPLICAS {
                    let host = &self.hosts[at];
                    let id = ReplicaId(replica as u64 + 1);
                    let Some(beat) = host.guard.beat(now, id, host.sequence, 0) else { continue };
                    self.send(at, hosts + replica, Message::Beat { host: at, replica, sent_at: now, beat });
                }
            }
        }
        for replica in 0..REPLICAS {
            let one = &mut self.replicas[replica];
            let now = one.clock.at(self.now);
            if one.frozen_until > self.now || one.observer.next_deadline().is_none_or(|due| due > now) {
                continue;
            }
            for proposal in one.observer.woke(now) {
                self.propose(replica, proposal);
            }
        }
        for host in &self.hosts {
            prop_assert!(
                !(host.proven && host.running),
                "{} runs a VM at {} ms although its lease was proven to have run out; its guard says {:?}",
                host.id,
                self.now,
                host.guard.lease(host.clock.at(self.now))
            );
        }
        Ok(())
    }

    /// What a leader does: readmits who is clean, and orders what does not run. An order may take long.
    pub(crate) fn order(&mut self, at: usize) {
        let host = &self.hosts[at];
        if !self.weather.restarts || self.now < host.order_at {
            return;
        }
        self.hosts[at].order_at = self.now + 300 + self.dice.below(1000);
        let abandon = self.dice.one_in(6);
        let host = &self.hosts[at];
        if host.proven && !host.running {
            self.hosts[at].proven = false;
            self.judge(at, false);
        } else if host.condemned && !host.proven && abandon {
            self.judge(at, false);
        } else if !host.condemned && !host.running && host.stop_ends.is_none() {
            let host = &mut self.hosts[at];
            host.incarnation = host.incarnation.next();
            let (vm, incarnation) = (vm(at), host.incarnation);
            let effect = EffectId { cause: LogIndex(1), subject: Subject::Vm(vm.clone()), attempt: 1 };
            let verb = Verb::Start { vm, incarnation, definition: Definition::default() };
            let order = Order { boot: None, epoch: host.epoch, term: 1, effect, verb };
            let arrival = self.now + if self.dice.one_in(3) { self.dice.below(3000) } else { 5 };
            self.post(arrival, Message::Order { host: at, order: order.clone() });
            if self.dice.one_in(3) {
                // And once more, much later.
                let arrival = arrival + self.dice.below(6000);
                self.post(arrival, Message::Order { host: at, order });
            }
        }
    }

    pub(crate) fn propose(&mut self, replica: usize, proposal: Proposal) {
        match proposal {
            Proposal::Opinions(changes) => {
                for change in changes {
                    let at = self.hosts.iter().position(|host| host.id == change.host).unwrap();
                    self.opinions.insert((at, replica), change.opinion);
                    let dead = (0..REPLICAS)
                        .filter(|replica| self.opinions.get(&(at, *replica)) == Some(&Opinion::Dead))
                        .count();
                    if dead > REPLICAS / 2 && !self.hosts[at].condemned {
                        self.judge(at, true);
                    }
                }
            }
            Proposal::LeasesExpired(votes) => {
                for vote in votes {
                    let host = self.hosts.iter_mut().find(|host| host.id == vote.host).unwrap();
                    if host.condemned && vote.epoch == host.epoch {
                        host.votes.insert(replica);
                        if host.votes.len() > REPLICAS / 2 && !host.proven {
                            host.proven = true;
                            self.proofs += 1;
                        }
                    }
                }
            }
            // Nobody is reached here, which says nothing.
            Proposal::Witnessed(_) | Proposal::Probe(_) => {}
        }
    }

    pub(crate) fn run(&mut self, millis: u64, fair: bool) -> Result<(), TestCaseError> {
        let end = self.now + millis;
        while self.now < end {
            if !fair {
                self.blow();
            }
            self.tick()?;
        }
        Ok(())
    }

    pub(crate) fn running(&self) -> usize {
        self.hosts.iter().filter(|host| host.running).count()
    }

    pub(crate) fn lease(&self, at: usize) -> LeaseState {
        self.hosts[at].guard.lease(self.hosts[at].clock.at(self.now))
    }
}
