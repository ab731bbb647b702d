//! One per replica: applies the log to the [`Ledger`] and, where its replica leads, derives effects from it.
//!
//! Two kinds of state meet here. The ledger is replicated and changes only by applying committed commands.
//! Everything else in [`Controller`] is soft: it may be lost at any moment, and it can yield proposals and
//! repeat effects, nothing more. Every effect on the world is *derived* from the ledger again and again
//! until reality agrees, so that a new leader simply goes on. After each call perform the returned effects
//! in order, then feed back what came of them.

mod bounded;
mod clocks;
mod effects;
mod handover;
mod leader;
mod probes;
mod readmission;
mod starts;
mod version;
mod view;
mod words;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use defib_model::{
    BootId, ClusterTime, ClusterVersion, Command, EffectId, Entry, Epoch, EventSeq, HostId, Incarnation,
    Instant, LogIndex, Millis, RecoveryId, ReplicaId, UnixMillis, VmId,
    command::{AgentReport, Committed, FenceResult, Goodbye},
};
pub use effects::{BurnOrder, Effect, FenceOrder, OrderOutcome, PowerQuestion, ProbeOrder, StartOrder};
pub use version::UnsupportedVersion;

use crate::{ledger::Ledger, observer::Proposal};

/// What a replica is to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// It leads in this term.
    Leader {
        /// The term.
        term: u64,
    },
    /// It follows, or there is no leader.
    #[default]
    Follower,
}

/// What may happen to a controller.
#[derive(Debug)]
pub enum Input {
    /// The log committed an entry.
    Committed(Committed),
    /// The replica's role changed.
    Role(Role),
    /// The replica's own observer wants to say something.
    Observed(Proposal),
    /// An agent reported over its session with this replica.
    Reported(AgentReport),
    /// An agent's session with this replica ended, or another one is about to take its place.
    AgentLeft(HostId),
    /// An agent announced a silence.
    Goodbye {
        /// Which host.
        host: HostId,
        /// In which boot it said so.
        boot: BootId,
        /// The newest epoch that it knew.
        epoch: Epoch,
        /// Why.
        goodbye: Goodbye,
    },
    /// Something outside says that the power of a host may have changed. It proves nothing; it makes the leader look.
    Hinted(HostId),
    /// A power question was answered.
    Asked {
        /// The recovery that it belonged to.
        recovery: RecoveryId,
        /// What was read; only `Off` means anything.
        result: FenceResult,
    },
    /// A fence ended.
    Fenced {
        /// The recovery that it belonged to.
        recovery: RecoveryId,
        /// Which attempt.
        attempt: u32,
        /// How.
        result: FenceResult,
    },
    /// An order to an agent ended.
    Ordered {
        /// The order's effect.
        effect: EffectId,
        /// Which VM.
        vm: VmId,
        /// Which incarnation.
        incarnation: Incarnation,
        /// Whose order.
        host: HostId,
        /// How it ended.
        outcome: OrderOutcome,
    },
    /// The shell proposes a command on somebody's behalf: an operator's, or a change of the replicas.
    Command(Command),
    /// Time has passed.
    Woke,
}

/// How soon a proposal that nobody has seen in the log is made again.
const REPROPOSE_AFTER: Millis = Millis(500);
/// How soon an order that could not be delivered is tried again.
const REDELIVER_AFTER: Millis = Millis(200);
/// How long the first placement of a VM waits for the host that it is declared for.
const FIRST_HOST_WAIT: Millis = Millis(30_000);
/// How long it waits for hosts that were never seen if it may go to any: the hosts of a site that starts come one
/// after the other, and the first one should not get everything.
const FIRST_SPREAD_WAIT: Millis = Millis(5000);

/// What a plan was made from: changes of room, first placements that wait no longer, VMs that rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PlannedAt {
    room_changes: u64,
    first: usize,
    resting: usize,
}

/// What was proposed and is not in the log yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Proposed {
    ObserverStarted,
    LeaderStarted,
    PowerFoundOff(RecoveryId),
    FenceIntended(RecoveryId, u32),
    FenceEnded(RecoveryId, u32),
    Place,
    StartEnded(VmId, Incarnation),
    Reported(HostId),
    Readmit(HostId, Epoch),
    ClockCompared(ReplicaId),
    Tick(ClusterTime),
}

/// A controller. See the module.
#[derive(Debug, Clone)]
pub struct Controller {
    me: ReplicaId,
    session: u64,
    supports: ClusterVersion,
    caught_up: bool,
    ledger: Ledger,
    role: Role,
    /// Where the leader's count of cluster time began: its own clock, and the cluster's.
    counting_from: (Instant, ClusterTime),
    wall: UnixMillis,
    /// When it last derived what is wanted: what was due by then was looked at, what is due later was not.
    looked: Instant,
    proposed: BTreeMap<Proposed, Instant>,
    asks: BTreeMap<RecoveryId, leader::Ask>,
    fences: BTreeMap<RecoveryId, leader::FenceInFlight>,
    reports: BTreeMap<HostId, AgentReport>,
    /// Hosts whose reports may ask for something: those that came or whose hosts or VMs changed since they were looked
    /// at, and those that were not settled then. All others have nothing to say, and there are thousands of them.
    look_at: BTreeSet<HostId>,
    /// When each report came: in cluster time, and after which log entry.
    reported_at: BTreeMap<HostId, (ClusterTime, LogIndex)>,
    /// When the sessions ended of hosts that have none since.
    left_at: BTreeMap<HostId, Instant>,
    burns: BTreeMap<(HostId, VmId, Incarnation), Instant>,
    starts: starts::Starts,
    planned_at: Option<PlannedAt>,
    first_seen: BTreeMap<VmId, Instant>,
    /// VMs that no host but one that just refused them fits, which incarnation it was, and until when they rest.
    resting: BTreeMap<VmId, (Incarnation, Instant)>,
    /// Whose agent was the last to be sent to a silent host.
    prober: Option<HostId>,
    /// Since when this leader has no session with most hosts that are heard, or last wanted to hand over for that.
    out_of_touch_since: Option<Instant>,
    /// How far the clock of each other replica was ahead of this one's, in milliseconds, when it last said something.
    clocks: BTreeMap<ReplicaId, i64>,
    words: words::Words,
    published: EventSeq,
    known_hosts: BTreeSet<HostId>,
    /// By which version it last looked at all reports: a newer one may ask for more of them.
    cluster_version: ClusterVersion,
    policy_version: u64,
    inventory_version: u64,
    electorate_version: u64,
}

impl Controller {
    /// A controller of replica `me` over a ledger that was recovered or is new. `session` is a number that
    /// no earlier life of this replica used.
    #[must_use]
    pub fn new(me: ReplicaId, session: u64, ledger: Ledger) -> Self {
        let published = ledger.events().head();
        Self {
            me,
            session,
            supports: ClusterVersion::NEWEST,
            caught_up: false,
            ledger,
            role: Role::Follower,
            counting_from: (Instant(0), ClusterTime(0)),
            wall: UnixMillis(0),
            looked: Instant(0),
            proposed: BTreeMap::new(),
            asks: BTreeMap::new(),
            fences: BTreeMap::new(),
            reports: BTreeMap::new(),
            look_at: BTreeSet::new(),
            reported_at: BTreeMap::new(),
            left_at: BTreeMap::new(),
            burns: BTreeMap::new(),
            starts: starts::Starts::default(),
            planned_at: None,
            first_seen: BTreeMap::new(),
            resting: BTreeMap::new(),
            prober: None,
            out_of_touch_since: None,
            clocks: BTreeMap::new(),
            words: words::Words::default(),
            published,
            known_hosts: BTreeSet::new(),
            cluster_version: ClusterVersion::OLDEST,
            policy_version: u64::MAX,
            inventory_version: u64::MAX,
            electorate_version: 0,
        }
    }

    /// The replicated state.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether this replica leads and has said so in the log: only then it acts.
    #[must_use]
    pub fn leads(&self) -> bool {
        match self.role {
            Role::Leader { term } => self.ledger.leader() == Some(self.me) && self.ledger.term() == term,
            Role::Follower => false,
        }
    }

    /// Whether a host's agent has reported to this replica in its present session.
    #[must_use]
    pub fn reports(&self, host: &HostId) -> bool {
        self.reports.contains_key(host)
    }

    /// The hosts whose agents have a session with this replica.
    #[must_use]
    pub fn reporting_hosts(&self) -> usize {
        self.reports.len()
    }

    /// How many words of each host's agent nobody will ever hear because it says too many, where that was lately.
    pub fn held_back_lately(&self, now: Instant) -> impl Iterator<Item = (&HostId, u64)> {
        self.words.held_back_lately(now)
    }

    /// How many words of all agents nobody will ever hear, since this replica began.
    #[must_use]
    pub fn held_back(&self) -> u64 {
        self.words.held_back()
    }

    /// Replaces the ledger by one from a snapshot.
    pub fn restore(&mut self, now: Instant, mut ledger: Ledger) -> Vec<Effect> {
        ledger.rebuild();
        self.ledger = ledger;
        self.policy_version = u64::MAX;
        self.inventory_version = u64::MAX;
        self.electorate_version = 0;
        self.published = self.ledger.events().head();
        let mut effects = Vec::new();
        self.after_apply(&mut effects);
        self.derive(now, &mut effects);
        effects
    }

    /// The only way in and out. `wall` is for people only.
    #[must_use]
    pub fn step(&mut self, now: Instant, wall: UnixMillis, input: Input) -> Vec<Effect> {
        self.wall = wall;
        let mut effects = Vec::new();
        match input {
            Input::Committed(committed) => self.committed(now, &committed, &mut effects),
            Input::Role(role) => self.role_changed(now, role),
            Input::Observed(proposal) => self.observed(now, proposal, &mut effects),
            Input::Reported(report) => {
                let after = (self.cluster_now(now), self.ledger.applied());
                self.reported_at.insert(report.host.clone(), after);
                self.left_at.remove(&report.host);
                if self.reports.get(&report.host) != Some(&report) {
                    self.words.replaced(now, &report.host);
                }
                self.repeat_orders(now, &report);
                self.look_at.insert(report.host.clone());
                self.reports.insert(report.host.clone(), report);
            }
            Input::AgentLeft(host) => {
                self.reports.remove(&host);
                self.reported_at.remove(&host);
                self.doubt_orders(&host);
                self.left_at.insert(host, now);
            }
            Input::Goodbye { host, boot, epoch, goodbye } => {
                if self.words.may_leave(now, &host, goodbye) {
                    self.propose(now, Command::GoodbyeSaid { host, boot, epoch, goodbye }, &mut effects);
                }
            }
            Input::Hinted(host) => self.hinted(now, &host),
            Input::Asked { recovery, result } => self.asked(now, recovery, result, &mut effects),
            Input::Fenced { recovery, attempt, result } => self.fenced(recovery, attempt, result),
            Input::Ordered { effect, vm, incarnation, host, outcome } => {
                self.ordered(now, effect, vm, incarnation, host, outcome, &mut effects);
            }
            Input::Command(command) => self.propose(now, command, &mut effects),
            Input::Woke => {}
        }
        self.derive(now, &mut effects);
        effects
    }

    /// When to call again with [`Input::Woke`] if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut consider = |at: Instant| next = Some(next.map_or(at, |held| held.min(at)));
        for at in self.proposed.values() {
            consider(at.plus(REPROPOSE_AFTER));
        }
        if !self.leads() {
            return next;
        }
        for ask in self.asks.values().filter(|ask| !ask.in_flight) {
            consider(ask.next_at);
        }
        for at in self.burns.values() {
            consider(at.plus(REPROPOSE_AFTER));
        }
        for at in self.first_seen.values() {
            // What is over and still waits, waits for something else than time.
            let waits = [at.plus(FIRST_SPREAD_WAIT), at.plus(FIRST_HOST_WAIT)];
            waits.into_iter().filter(|at| *at > self.looked).for_each(&mut consider);
        }
        self.resting
            .values()
            .map(|(_, until)| *until)
            .filter(|until| *until > self.looked)
            .for_each(&mut consider);
        self.handover_due().into_iter().chain(self.words.next_deadline()).for_each(&mut consider);
        if let Some(at) = self.starts.next_deadline(&self.ledger, self.looked) {
            consider(at);
        }
        if let Some(wait) = self.ledger.next_wait() {
            let (instant, cluster) = self.counting_from;
            consider(instant.plus(wait.since(cluster)));
        }
        // A deadline that has passed and changed nothing must not make the shell spin.
        next.map(|at| at.max(now.plus(Millis(1))))
    }

    /// Cluster time as this replica would stamp it now.
    #[must_use]
    pub fn cluster_now(&self, now: Instant) -> ClusterTime {
        match self.role {
            Role::Leader { .. } => {
                let (instant, cluster) = self.counting_from;
                cluster.plus(now.since(instant)).max(self.ledger.at())
            }
            Role::Follower => self.ledger.at(),
        }
    }

    fn committed(&mut self, now: Instant, committed: &Committed, effects: &mut Vec<Effect>) {
        self.ledger.apply(committed.index, &committed.entry);
        let (instant, cluster) = self.counting_from;
        if self.ledger.at() > cluster.plus(now.since(instant)) {
            // A new leader may still have to apply what its predecessors stamped. Counting goes on from there, or
            // cluster time would stand still until the count that began too low has caught up.
            self.counting_from = (now, self.ledger.at());
        }
        self.settled(now, &committed.entry.command);
        self.compare_clock(now, &committed.entry, effects);
        self.after_apply(effects);
    }

    /// What follows from a changed ledger on every replica, leader or not.
    fn after_apply(&mut self, effects: &mut Vec<Effect>) {
        if !self.caught_up && self.ledger.session_of(self.me) == Some(self.session) {
            self.caught_up = true;
            effects.push(Effect::CaughtUp);
        }
        if self.policy_version != self.ledger.policy_version() {
            self.policy_version = self.ledger.policy_version();
            effects.push(Effect::PolicyChanged);
        }
        let whole = self.inventory_version != self.ledger.inventory_version();
        self.watch(whole, effects);
        if whole {
            self.inventory_version = self.ledger.inventory_version();
            effects.push(Effect::InventoryChanged);
        }
        if self.cluster_version != self.ledger.version() {
            self.cluster_version = self.ledger.version();
            self.look_at.extend(self.reports.keys().cloned());
        }
        let electorate = self.ledger.electorates().last().map_or(0, |electorate| electorate.version);
        if self.electorate_version != electorate {
            self.electorate_version = electorate;
            effects.push(Effect::ElectorateChanged);
        }
        let head = self.ledger.events().head();
        if head > self.published {
            self.published = head;
            effects.push(Effect::Published { head });
        }
    }

    fn role_changed(&mut self, now: Instant, role: Role) {
        // A follower is told again when it learns of another leader: what it proposed may be lost with the former.
        if self.role == role && matches!(role, Role::Leader { .. }) {
            return;
        }
        self.role = role;
        self.counting_from = (now, self.ledger.at());
        // All that is in flight belongs to the former role; effects are derived anew.
        self.proposed.clear();
        self.asks.clear();
        // Not an order to power off: its worker lives on, and may have written a moment ago.
        self.fences.retain(|_, fence| fence.is_under_way());
        self.burns.clear();
        self.starts = starts::Starts::default();
        self.planned_at = None;
        self.first_seen.clear();
        self.resting.clear();
        self.out_of_touch_since = None;
        self.clocks.clear();
        self.words.look();
        self.look_at.extend(self.reports.keys().cloned());
    }

    fn observed(&mut self, now: Instant, proposal: Proposal, effects: &mut Vec<Effect>) {
        let (observer, session) = (self.me, self.session);
        if let Proposal::Probe(hosts) = proposal {
            return self.probe(&hosts, effects);
        }
        // Nobody would count it: this replica left the voters, or is not heard of yet.
        if self.ledger.session_of(observer) != Some(session) {
            return;
        }
        let command = match proposal {
            Proposal::Opinions(changes) => Command::Opinions { observer, session, changes },
            Proposal::LeasesExpired(votes) => Command::LeasesExpired { observer, session, votes },
            Proposal::Witnessed(hosts) => Command::HostsWitnessed { observer, session, hosts },
            Proposal::Probe(_) => return,
        };
        self.propose(now, command, effects);
    }

    fn propose(&self, now: Instant, mut command: Command, effects: &mut Vec<Effect>) {
        command.cut_texts();
        let entry = Entry { at: self.cluster_now(now), wall: self.wall, proposer: self.me, command };
        effects.push(Effect::Propose(entry));
    }

    /// Proposes once; again only if the log has not shown it for a while.
    fn propose_once(
        &mut self,
        now: Instant,
        key: Proposed,
        command: impl FnOnce() -> Command,
        effects: &mut Vec<Effect>,
    ) {
        if self.proposed.get(&key).is_some_and(|at| now < at.plus(REPROPOSE_AFTER)) {
            return;
        }
        self.proposed.insert(key, now);
        self.propose(now, command(), effects);
    }

    /// Forgets what was proposed once the log shows it.
    fn settled(&mut self, now: Instant, command: &Command) {
        let key = match command {
            Command::ObserverStarted { observer, .. } if *observer == self.me => Proposed::ObserverStarted,
            Command::LeaderStarted { .. } => Proposed::LeaderStarted,
            Command::PowerFoundOff { host, .. } => {
                let Some(recovery) = self.ledger.hosts().get(host).and_then(|host| host.recovery) else {
                    return;
                };
                self.forget_finding(now, recovery);
                Proposed::PowerFoundOff(recovery)
            }
            Command::FenceIntended { recovery, attempt, .. } => Proposed::FenceIntended(*recovery, *attempt),
            Command::FenceEnded { recovery, attempt, .. } => Proposed::FenceEnded(*recovery, *attempt),
            Command::Place { .. } => Proposed::Place,
            Command::StartEnded { vm, incarnation, .. } => Proposed::StartEnded(vm.clone(), *incarnation),
            Command::AgentReported(report) => Proposed::Reported(report.host.clone()),
            Command::Readmit { host, epoch, .. } => {
                // Refused: tried again after a while, not at once and for ever.
                if self.ledger.hosts().get(host).is_some_and(|record| record.epoch == *epoch) {
                    return;
                }
                Proposed::Readmit(host.clone(), *epoch)
            }
            Command::ClockCompared { replica, .. } => Proposed::ClockCompared(*replica),
            Command::Tick => {
                self.proposed.retain(|key, _| !matches!(key, Proposed::Tick(_)));
                return;
            }
            Command::ObserverStarted { .. }
            | Command::Opinions { .. }
            | Command::LeasesExpired { .. }
            | Command::FencingTested { .. }
            | Command::HostsWitnessed { .. }
            | Command::HeartbeatsForged { .. }
            | Command::BmcTold { .. }
            | Command::GoodbyeSaid { .. }
            | Command::ConfirmDead { .. }
            | Command::FenceHost { .. }
            | Command::LiftQuarantine { .. }
            | Command::Pause { .. }
            | Command::SetPolicy { .. }
            | Command::SetInventory { .. }
            | Command::DocumentRead { .. }
            | Command::ReplicasChanged { .. }
            | Command::ReplicasOrdered { .. }
            | Command::Delivered { .. }
            | Command::GiveUp { .. }
            | Command::HeadSigned { .. }
            | Command::JoinTokenUsed { .. } => return,
        };
        self.proposed.remove(&key);
    }

    fn derive(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.looked = now;
        // What is still wanted is proposed again below; what is not must not wake anybody.
        self.proposed.retain(|_, at| now < at.plus(REPROPOSE_AFTER));
        if !self.caught_up && self.ledger.voters().contains(&self.me) {
            let (observer, session, supports) = (self.me, self.session, self.supports);
            let command = || Command::ObserverStarted { observer, session, supports };
            self.propose_once(now, Proposed::ObserverStarted, command, effects);
        }
        let Role::Leader { term } = self.role else { return };
        if self.ledger.term() > term {
            // Another one leads, and this replica is about to be told.
            return;
        }
        if !self.leads() {
            self.propose_once(now, Proposed::LeaderStarted, || Command::LeaderStarted { term }, effects);
            return;
        }
        self.derive_tick(now, effects);
        self.derive_asks(now, effects);
        // Before the fences: a new boot proves the end of the one that would be fenced.
        self.derive_readmissions(now, effects);
        self.derive_fences(now, effects);
        self.derive_plan(now, effects);
        self.derive_starts(now, effects);
        self.derive_handover(now, effects);
    }

    fn derive_tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Some(wait) = self.ledger.next_wait() else { return };
        if wait <= self.cluster_now(now) {
            self.propose_once(now, Proposed::Tick(wait), || Command::Tick, effects);
        }
    }

    /// In words, what an open recovery waits for: what the ledger knows and what only the leader knows.
    #[must_use]
    pub fn explain(&self, now: Instant, recovery: RecoveryId) -> Vec<String> {
        let mut lines = self.ledger.waiting_on(recovery, self.cluster_now(now));
        lines.extend(self.explain_starts(now, recovery));
        lines
    }
}
