//! The world: parties, links and the log, and one tick of it. Every message arrives within the tick in which it was
//! sent unless a fault says otherwise, so that a failure is as fast as it can be and each delay is chosen, not drawn.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{Hash, Hasher},
    sync::Arc,
};

use defib_engine::{
    controller::{Controller, Input, Role},
    guard::{Electorate, Neighbour, Timing},
    ledger::Ledger,
    observer::Observer,
};
use defib_model::{
    Command, Entry, EventKind, EventSeq, HostId, Instant, Inventory, Policy, ReplicaId, Resources, VmId,
    command::Operator,
    inventory::{
        Definition, FaultDomain, FenceMethod, FencingLevel, Host as Declared, Priority, Readiness,
        RedfishTarget, SelfFence, Vm,
    },
};

use super::{
    bounds::{Bounds, Mutant, timing},
    fault::Fault,
    message::{Message, Way},
    parties::{Clock, Host, Replica, digest},
    truth::{Fact, Facts, Invariant, fact_of},
};

/// More messages than this within one tick are a circle.
const MESSAGES_MAX: usize = 4096;
/// How many ticks a world runs in peace before it counts its first.
const PEACE: u16 = 14;

/// What never changes in a run.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) policy: Policy,
    pub(super) mutant: Option<Mutant>,
    pub(super) electorate: Electorate,
    pub(super) timing: Timing,
    pub(super) script: Vec<(u16, Fault)>,
}

/// Which links are broken: one bit per pair, so that a state is small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Links {
    pub(super) no_replicas: u8,
    pub(super) isolated: u8,
    pub(super) no_replica: u64,
    pub(super) no_neighbour: u64,
    pub(super) switch: bool,
    pub(super) switch_down: bool,
}

impl Links {
    pub(super) fn carries(self, way: Way) -> bool {
        match way {
            Way::Up(host, replica) | Way::Down(host, replica) => {
                (self.no_replicas | self.isolated) & (1 << host) == 0
                    && self.no_replica & (1 << (host * 8 + replica)) == 0
                    && !self.switch
                    && !(self.switch_down && matches!(way, Way::Down(..)))
            }
            Way::Across(one, other) => {
                self.isolated & (1 << one | 1 << other) == 0
                    && self.no_neighbour & (1 << (one.min(other) * 8 + one.max(other))) == 0
            }
            Way::Inside => true,
        }
    }
}

/// An invariant that does not hold, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which one.
    pub invariant: Invariant,
    /// In words.
    pub detail: String,
}

/// One state of the world.
#[derive(Debug, Clone)]
pub struct World {
    pub(super) setup: Arc<Setup>,
    /// Ticks since its beginning.
    pub(super) tick: u16,
    pub(super) hosts: Vec<Arc<Host>>,
    pub(super) replicas: Vec<Arc<Replica>>,
    pub(super) log: Arc<Vec<Entry>>,
    log_digest: u64,
    pub(super) leader: Option<u8>,
    pub(super) term: u64,
    /// The former leader that does not know that it is one.
    pub(super) deceived: Option<u8>,
    pub(super) links: Links,
    /// Which messages of the coming tick are late, and whether there was one.
    pub(super) lateness: Vec<(Fault, bool)>,
    late: Vec<(u16, Message)>,
    queue: VecDeque<Message>,
    /// When each replica last promised each host a lease, by the replica's clock: what its former lives promised
    /// counts too.
    pub(super) granted: BTreeMap<(u8, u8), Instant>,
    published: EventSeq,
    /// Faults that may still come.
    pub(super) faults_left: u8,
    /// The last of this tick, by its place in the menu: faults of one tick come in one order only.
    pub(super) last_fault: Option<u16>,
    /// Whether all faults so far were the controllers' own.
    pub(super) controllers_only: bool,
    /// A fault changed nothing: whatever follows was seen without it.
    pub(super) pointless: bool,
    pub(super) facts: Facts,
    pub(super) broken: Option<Broken>,
    /// What happened, in words, if somebody wants to read it.
    pub(super) story: Option<Vec<String>>,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.tick, self.leader, self.term, self.deceived, self.links, self.log_digest).hash(state);
        (self.faults_left, self.last_fault, self.controllers_only, self.pointless, self.facts).hash(state);
        self.broken.as_ref().map(|broken| broken.invariant).hash(state);
        self.granted.hash(state);
        digest(state, &self.late);
        for fault in &self.lateness {
            fault.hash(state);
        }
        for host in &self.hosts {
            digest(state, host);
        }
        for replica in &self.replicas {
            (replica.history, replica.applied, replica.alive, replica.frozen, replica.lags).hash(state);
            (replica.session, matches!(replica.role, Role::Leader { .. })).hash(state);
            digest(state, &replica.observer);
            digest(state, &replica.inbox);
        }
    }
}

/// Two states are one if they can't be told apart by what the checker keeps of them.
impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let of = |world: &Self| {
            let mut hasher = std::hash::DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        of(self) == of(other)
    }
}

fn host_id(number: u8) -> Option<HostId> {
    HostId::new(&format!("h{}", number + 1)).ok()
}

fn operator() -> Operator {
    Operator { name: String::from("operator"), reason: String::new() }
}

fn declared(id: &HostId) -> Declared {
    let target = RedfishTarget {
        address: format!("https://bmc-{id}"),
        uuid: Some(format!("uuid-{id}")),
        serial: None,
        system: None,
        pin: None,
        credentials: String::from("env:BMC"),
        events: Default::default(),
    };
    Declared {
        id: id.clone(),
        domain: FaultDomain(Vec::new()),
        capacity: Resources::new(1000, 1000),
        labels: BTreeSet::new(),
        fencing: vec![FencingLevel(vec![FenceMethod::Redfish(target)])],
        self_fence: SelfFence::Watchdog,
        spare: false,
        neighbour_address: Some(format!("{id}:1")),
        kdump_wait: None,
    }
}

fn inventory(hosts: &[HostId]) -> Inventory {
    let mut inventory = Inventory {
        hosts: hosts.iter().map(|id| (id.clone(), declared(id))).collect(),
        ..Inventory::default()
    };
    if let Ok(id) = VmId::new("vm") {
        let vm = Vm {
            id: id.clone(),
            priority: Priority::Medium,
            resources: Resources::new(100, 100),
            requires: BTreeSet::new(),
            depends_on: BTreeSet::new(),
            readiness: Readiness::PoweredOn,
            readiness_timeout: None,
            datastore: None,
            first_host: hosts.first().cloned(),
            definition: Definition::default(),
        };
        inventory.vms.insert(id, vm);
    }
    inventory
}

/// The ledger's own policy: what is checked here must not hide behind a brake.
fn ledger_policy() -> Policy {
    let mut policy = Policy::default();
    policy.brakes.hosts = 100;
    policy.brakes.hosts_per_domain = 100;
    policy.restart.start_timeout = defib_model::Millis(900);
    policy.detection.witness_delay = defib_model::Millis::ZERO;
    policy
}

impl World {
    /// A world that has run in peace until its VM runs and every lease has been held for long.
    #[must_use]
    pub(super) fn new(bounds: &Bounds, slow: u16) -> Self {
        let ids: Vec<HostId> = (0..bounds.hosts).filter_map(host_id).collect();
        let voters: BTreeSet<ReplicaId> = (1..=u64::from(bounds.replicas)).map(ReplicaId).collect();
        let told = timing(None);
        let setup = Setup {
            policy: timing(bounds.mutant),
            mutant: bounds.mutant,
            timing: Timing::from(&told.lease),
            electorate: Electorate {
                version: 1,
                hosts: ids
                    .iter()
                    .map(|id| (id.clone(), Neighbour { address: format!("{id}:1"), domain: Vec::new() }))
                    .collect(),
                replicas: voters.clone(),
            },
            script: bounds.script.clone(),
        };
        let hosts = ids
            .iter()
            .enumerate()
            .map(|(at, id)| Arc::new(Host::new(id.clone(), Clock::new(at as u64, slow & (1 << at) != 0))));
        let replicas = (0..u64::from(bounds.replicas)).map(|at| {
            let clock = Clock::new(100 + at, slow & (1 << (8 + at)) != 0);
            let id = ReplicaId(at + 1);
            Arc::new(Replica {
                id,
                clock,
                alive: true,
                frozen: false,
                lags: false,
                session: 1,
                inbox: Vec::new(),
                observer: Observer::new(id, 1, &setup.policy, clock.at(0)),
                controller: Controller::new(id, 1, Ledger::new(voters.clone())),
                role: Role::Follower,
                applied: 0,
                history: 0,
                due: None,
            })
        });
        let (hosts, replicas) = (hosts.collect(), replicas.collect());
        let mut world = Self {
            setup: Arc::new(setup),
            tick: 0,
            hosts,
            replicas,
            log: Arc::default(),
            log_digest: 0,
            leader: None,
            term: 0,
            deceived: None,
            links: Links::default(),
            lateness: Vec::new(),
            late: Vec::new(),
            queue: VecDeque::new(),
            granted: BTreeMap::new(),
            published: EventSeq(0),
            faults_left: bounds.faults,
            last_fault: None,
            controllers_only: true,
            pointless: false,
            facts: Facts::default(),
            broken: None,
            story: None,
        };
        world.live_in_peace(inventory(&ids));
        world
    }

    fn live_in_peace(&mut self, inventory: Inventory) {
        self.elect(0);
        for replica in 0..self.replica_count() {
            self.control(replica, Input::Woke);
        }
        let policy = Command::SetPolicy { policy: ledger_policy(), replaces: 0, operator: operator() };
        let inventory = Command::SetInventory { inventory, replaces: 0, operator: operator() };
        for command in [policy, inventory] {
            self.control(0, Input::Command(command));
            self.drain();
        }
        for _ in 0..PEACE {
            self.advance();
        }
        self.facts = Facts::default();
    }

    pub(super) const fn since_peace(&self) -> u16 {
        self.tick.saturating_sub(PEACE)
    }

    pub(super) fn host_count(&self) -> u8 {
        self.hosts.len() as u8
    }

    pub(super) fn replica_count(&self) -> u8 {
        self.replicas.len() as u8
    }

    pub(super) fn host(&mut self, host: u8) -> &mut Host {
        Arc::make_mut(&mut self.hosts[usize::from(host)])
    }

    pub(super) fn replica(&mut self, replica: u8) -> &mut Replica {
        Arc::make_mut(&mut self.replicas[usize::from(replica)])
    }

    /// The time that a host's clock shows.
    pub(super) fn host_now(&self, host: u8) -> Instant {
        self.hosts[usize::from(host)].clock.at(self.tick)
    }

    pub(super) fn replica_now(&self, replica: u8) -> Instant {
        self.replicas[usize::from(replica)].clock.at(self.tick)
    }

    pub(super) fn say(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.story.is_some() {
            let line = format!("tick {:>2}  {}", self.since_peace(), text(self));
            self.story.get_or_insert_default().push(line);
        }
    }

    pub(super) fn breaks(&mut self, invariant: Invariant, detail: String) {
        self.say(|_| format!("VIOLATED: {detail}"));
        self.broken.get_or_insert(Broken { invariant, detail });
    }

    /// What the script wants now, then one tick.
    pub(super) fn step(&mut self) {
        let now = self.since_peace();
        let setup = Arc::clone(&self.setup);
        for (_, fault) in setup.script.iter().filter(|(at, _)| *at == now) {
            self.suffer(*fault);
        }
        self.advance();
    }

    fn advance(&mut self) {
        self.tick += 1;
        self.last_fault = None;
        let now = self.tick;
        for host in 0..self.host_count() {
            self.machine(host);
            self.drain();
        }
        let (due, late): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.late).into_iter().partition(|(at, _)| *at <= now);
        self.late = late;
        for (_, message) in due {
            if self.links.carries(message.way()) {
                self.queue.push_back(message);
            }
        }
        self.drain();
        for host in 0..self.host_count() {
            self.agent(host);
        }
        self.drain();
        for replica in 0..self.replica_count() {
            self.watch(replica);
            self.drain();
        }
        for host in 0..self.host_count() {
            self.tend(host);
        }
        self.drain();
        self.pointless |= self.lateness.iter().any(|(_, used)| !used);
        self.lateness.clear();
        self.judge();
    }

    pub(super) fn send(&mut self, message: Message) {
        if !self.links.carries(message.way()) {
            return self.lost(message);
        }
        if let Some((kind, host, peer)) = message.lateness() {
            for (fault, used) in &mut self.lateness {
                if let Fault::Late { kind: late, host: of, peer: with, ticks } = *fault
                    && (late, of, with) == (kind, host, peer)
                {
                    *used = true;
                    self.late.push((self.tick + u16::from(ticks), message));
                    return;
                }
            }
        }
        self.queue.push_back(message);
    }

    /// Sends what no link carries and no fault delays.
    pub(super) fn queue_up(&mut self, message: Message) {
        self.queue.push_back(message);
    }

    /// Delivers until nothing is on its way.
    pub(super) fn drain(&mut self) {
        for _ in 0..MESSAGES_MAX {
            let Some(message) = self.queue.pop_front() else { return };
            self.deliver(message);
        }
        self.queue.clear();
        self.breaks(Invariant::Sound, String::from("messages circle without end"));
    }

    fn deliver(&mut self, message: Message) {
        if let Some((host, process)) = message.process() {
            let to = &self.hosts[usize::from(host)];
            if to.process != process || to.guard.is_none() {
                return self.lost(message);
            }
            if to.frozen {
                return self.host(host).inbox.push(message);
            }
            return self.reach_host(host, message);
        }
        if let Some((replica, session)) = message.session() {
            let to = &self.replicas[usize::from(replica)];
            if !to.alive || to.session != session {
                return;
            }
            if to.frozen {
                return self.replica(replica).inbox.push(message);
            }
            return self.reach_replica(replica, message);
        }
        if let Message::Question { host, process, to, asked_at } = message {
            let asked = &self.hosts[usize::from(to)];
            if asked.frozen {
                return self.host(to).inbox.push(message);
            }
            if let Some(guard) = &asked.guard {
                let answer = guard.answer(self.host_now(to));
                self.send(Message::Answer { host, process, by: to, asked_at, answer });
            }
        }
    }

    /// Commits what is proposed, if a majority hears of it.
    pub(super) fn commit(&mut self, replica: u8, entry: Entry) {
        let able = |world: &Self, number: u8| {
            let one = &world.replicas[usize::from(number)];
            one.alive && !one.frozen && world.deceived != Some(number)
        };
        let Some(leader) = self.leader else { return };
        let majority =
            (0..self.replica_count()).filter(|one| able(self, *one)).count() * 2 > self.replicas.len();
        if !able(self, leader) || !able(self, replica) || !majority {
            return;
        }
        let mut hasher = std::hash::DefaultHasher::new();
        self.log_digest.hash(&mut hasher);
        digest(&mut hasher, &entry);
        self.log_digest = hasher.finish();
        Arc::make_mut(&mut self.log).push(entry);
        // The leader first: it is what the judges read.
        self.catch_up(leader);
        for other in (0..self.replica_count()).filter(|other| *other != leader) {
            self.catch_up(other);
        }
    }

    pub(super) fn catch_up(&mut self, replica: u8) {
        loop {
            let one = &self.replicas[usize::from(replica)];
            if !one.alive || one.frozen || one.lags || self.deceived == Some(replica) {
                return;
            }
            let Some(entry) = self.log.get(one.applied).cloned() else { return };
            self.apply(replica, entry);
        }
    }

    /// What is new in the stream of a replica that is ahead of all others so far.
    pub(super) fn read_events(&mut self, replica: u8) {
        let ledger = self.replicas[usize::from(replica)].controller.ledger();
        let news: Vec<_> = ledger.events().since(self.published.next()).cloned().collect();
        let contradiction = ledger.disarmed().map(ToString::to_string);
        for event in news {
            self.published = event.seq;
            self.say(|_| format!("the log tells: {}", event.kind));
            if let Some(fact) = fact_of(&event.kind) {
                self.facts.add(fact);
            }
            if let EventKind::DeathProven { host, proof, .. } = &event.kind {
                let alive: Vec<String> = self
                    .hosts
                    .iter()
                    .filter(|one| one.id == *host)
                    .flat_map(|one| one.running.iter().map(|(vm, of)| format!("{vm} incarnation {of}")))
                    .collect();
                if !alive.is_empty() {
                    let detail = format!("{host} is proven dead ({proof}) and runs {}", alive.join(", "));
                    self.breaks(Invariant::ProofBeforeRestart, detail);
                }
            }
        }
        if let Some(detail) = contradiction {
            self.breaks(Invariant::Sound, detail);
        }
    }

    /// After each tick, over what is true.
    fn judge(&mut self) {
        let mut places: BTreeMap<VmId, Vec<HostId>> = BTreeMap::new();
        for host in &self.hosts {
            for (vm, _) in &host.running {
                places.entry(vm.clone()).or_default().push(host.id.clone());
            }
        }
        let first = self.hosts.first().map(|host| host.id.clone());
        for (vm, hosts) in &places {
            if hosts.len() > 1 {
                self.breaks(Invariant::AtMostOne, format!("{vm} runs {} times at once", hosts.len()));
            }
            let elsewhere = hosts.first() != first.as_ref();
            if elsewhere {
                self.facts.add(Fact::FailedOver);
            }
            if elsewhere && self.facts.has(Fact::Readmitted) {
                self.facts.add(Fact::Settled);
            }
        }
        self.judge_leases();
    }
}
