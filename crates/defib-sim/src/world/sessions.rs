//! Connections that agents keep to replicas: reports and outcomes one way, orders and news the other.

use std::collections::{BTreeMap, VecDeque};

use defib_engine::{
    controller::{Input, OrderOutcome},
    guard::{Electorate, Input as ToGuard, Neighbour, Order, Timing, Verb},
};
use defib_model::{
    BootId, Epoch, HostId, Incarnation, Millis, ReplicaId, VmId,
    command::{AgentReport, Goodbye},
};
use defib_wire::{
    datagram::SessionSecret,
    v1::{self, agent_message, controller_message, order, order_outcome},
};

use super::{Act, End, Process, World, agent::BeatSession, core::Message, observer::Instruction};
use crate::{clock::MS, mutants, plan::Profile};

/// One of the two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Agent,
    Replica,
}

/// A connection, as both ends see it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) host: usize,
    pub(crate) replica: usize,
    agent_life: u32,
    replica_life: u32,
    number: u64,
    agent_open: bool,
    replica_open: bool,
    last_to_agent: u64,
    last_to_replica: u64,
    /// What waits because its way is cut.
    stalled: VecDeque<Act>,
}

/// Without an answer for so long (two keep-alives), an end gives a connection up.
const KEEPALIVE: u64 = 2_000 * MS;
/// How long an agent waits for a connection.
const CONNECT_PATIENCE: u64 = 1_500 * MS;
/// Pause before an agent tries again: from this, doubling, to that.
pub(crate) const BACKOFF_MIN: u64 = 20 * MS;
const BACKOFF_MAX: u64 = 500 * MS;
/// How many orders to a host are kept, to come again.
const OLD_ORDERS: usize = 64;

impl World {
    /// An agent tries to connect.
    pub(crate) fn connect(&mut self, host: usize, life: u32, replica: usize) {
        if !self.agent_lives(host, life)
            || self.agent(host).is_none_or(|agent| agent.connections.contains_key(&replica))
        {
            return;
        }
        if !self.network.both_ways(End::Host(host), End::Replica(replica)) {
            return self.connect_again(host, life, replica, CONNECT_PATIENCE);
        }
        if !self.replicas[replica].is_up() {
            return self.connect_again(host, life, replica, 0);
        }
        let connection = self.connections.len();
        self.connections.push(Connection {
            host,
            replica,
            agent_life: life,
            replica_life: self.replicas[replica].life,
            number: 0,
            agent_open: true,
            replica_open: true,
            last_to_agent: 0,
            last_to_replica: 0,
            stalled: VecDeque::new(),
        });
        if let Some(agent) = self.agent(host) {
            agent.connections.insert(replica, connection);
        }
        // The handshakes, and hello.
        let span = (0..3).map(|_| self.stream_transit()).sum();
        self.later(span, Act::Hello { connection });
    }

    fn connect_again(&mut self, host: usize, life: u32, replica: usize, waited: u64) {
        let Some(agent) = self.agent(host) else { return };
        let backoff = agent.backoff.entry(replica).or_insert(BACKOFF_MIN);
        let span = waited + *backoff + (host as u64 * 31 + replica as u64) % 20 * MS;
        *backoff = (*backoff * 2).min(BACKOFF_MAX);
        self.later(span, Act::Connect { host, life, replica });
    }

    fn sides_alive(&self, connection: usize) -> (bool, bool) {
        let it = &self.connections[connection];
        (
            it.agent_open && self.agent_lives(it.host, it.agent_life),
            it.replica_open && self.lives(it.replica, it.replica_life),
        )
    }

    /// Hello reaches the replica: it opens a session, or says why not.
    pub(crate) fn hello(&mut self, connection: usize) {
        let (host, replica) = (self.connections[connection].host, self.connections[connection].replica);
        if self.sides_alive(connection) != (true, true)
            || !self.network.both_ways(End::Host(host), End::Replica(replica))
        {
            return self.close(connection, Side::Agent);
        }
        if self.replicas[replica].paused_until > self.now {
            let until = self.replicas[replica].paused_until;
            return self.queue.push(until, Act::Hello { connection });
        }
        let id = self.machines[host].id.clone();
        let Some(ledger) = self.replicas[replica].ledger() else { return };
        let machine = self.plan.hosts[host].machine.as_deref();
        let waits = ledger.other_boot_waits(&id, self.machines[host].boot(), machine).is_some();
        let epoch = ledger.hosts().get(&id).map(|record| record.epoch).filter(|_| !waits);
        let Some(epoch) = epoch else {
            // Not in the inventory (yet), or the boot in use is heard.
            self.connections[connection].replica_open = false;
            return self.close(connection, Side::Agent);
        };
        let (number, secret) = (self.chance.secrets.word(), self.secret());
        self.connections[connection].number = number;
        let replica_id = self.replicas[replica].id;
        let named = self.host_numbers[&id];
        let Some(run) = self.replicas[replica].run() else { return };
        let welcome = v1::Welcome {
            replica: replica_id,
            session_id: number,
            session_secret: secret.to_vec(),
            udp: Vec::new(),
            policy: Some(run.policy_news),
            epoch: epoch.0,
            leader: run.leads,
            cluster: "sim".into(),
            term: run.leads_term,
        };
        let electorate = run.electorate_news.clone();
        let former = run.agents.insert(named, (number, connection));
        let heard_under = run.heard_under.insert(named, number);
        self.push_to_agent(connection, controller_message::Message::Welcome(welcome));
        self.push_to_agent(connection, controller_message::Message::Electorate(electorate));
        if let Some((_, old)) = former {
            self.connections[old].replica_open = false;
            self.tell_core(replica, Message::Input(Input::AgentLeft(id.clone())));
            if self.connections[old].host != host {
                // A clone's: it is told, and asks again.
                self.later(MS, Act::CheckConnection { connection: old, side: Side::Agent });
            }
        }
        if let Some(former) = heard_under.filter(|_| !mutants::hear_former_boots()) {
            self.tell_observer(replica, Instruction::EndSession(former));
        }
        if let Ok(secret) = SessionSecret::from_bytes(&secret) {
            self.tell_observer(
                replica,
                Instruction::Session { session: number, host: id, machine: host, secret },
            );
        }
    }

    /// Hands a message to a host's session.
    pub(crate) fn send_to_agent(
        &mut self,
        replica: usize,
        host: &HostId,
        message: controller_message::Message,
    ) -> Result<(), String> {
        let session = self.host_numbers.get(host).copied().and_then(|number| {
            self.replicas[replica].run.as_ref().and_then(|run| run.agents.get(&number)).copied()
        });
        let Some((_, connection)) = session else {
            return Err(format!("the agent of host {host} has no session with this replica"));
        };
        self.push_to_agent(connection, message);
        Ok(())
    }

    pub(crate) fn send_to_all_agents(&mut self, replica: usize, message: &controller_message::Message) {
        let Some(run) = self.replicas[replica].run() else { return };
        let connections: Vec<usize> = run.agents.values().map(|(_, connection)| *connection).collect();
        for connection in connections {
            self.push_to_agent(connection, message.clone());
        }
    }

    fn push_to_agent(&mut self, connection: usize, message: controller_message::Message) {
        if self.plan.profile == Profile::Stale
            && let controller_message::Message::Order(order) = &message
            && let Some(order) = to_order(order.clone())
        {
            let it = &self.connections[connection];
            let old = &mut self.machines[it.host].old_orders;
            if old.len() >= OLD_ORDERS {
                old.remove(0);
            }
            old.push((it.replica, order));
        }
        let span = self.stream_transit();
        let at = (self.now + span).max(self.connections[connection].last_to_agent + 1);
        self.connections[connection].last_to_agent = at;
        self.queue.push(at, Act::ToAgent { connection, message: Box::new(message) });
    }

    /// An agent writes to a replica, if it has a session there.
    pub(crate) fn send_to_replica(&mut self, host: usize, replica: usize, message: agent_message::Message) {
        let Some(agent) = self.agent(host) else { return };
        if !agent.welcomed.contains(&replica) {
            return;
        }
        let Some(connection) = agent.connections.get(&replica).copied() else { return };
        let span = self.stream_transit();
        let at = (self.now + span).max(self.connections[connection].last_to_replica + 1);
        self.connections[connection].last_to_replica = at;
        self.queue.push(at, Act::ToReplica { connection, message: Box::new(message) });
    }

    /// Whether a message can arrive now; else it waits with the connection, or with the process.
    fn holds_up(&mut self, connection: usize, to: Side, act: Act) -> Option<Act> {
        let it = &self.connections[connection];
        let (host, replica) = (it.host, it.replica);
        let (from, end, process) = match to {
            Side::Agent => (End::Replica(replica), End::Host(host), Process::Agent(host)),
            Side::Replica => (End::Host(host), End::Replica(replica), Process::Replica(replica)),
        };
        if !self.network.both_ways(from, end) || !it.stalled.is_empty() {
            self.connections[connection].stalled.push_back(act);
            return None;
        }
        let until = match process {
            Process::Agent(host) => self.machines[host].paused_until,
            Process::Replica(replica) => self.replicas[replica].paused_until,
        };
        if until > self.now {
            match process {
                Process::Agent(host) => self.machines[host].deferred.push(act),
                Process::Replica(replica) => self.replicas[replica].deferred.push(act),
            }
            return None;
        }
        Some(act)
    }

    /// Links changed: what waited goes on, and who hears nothing any more will notice.
    pub(crate) fn links_changed(&mut self) {
        self.who_reaches_a_majority();
        for connection in 0..self.connections.len() {
            let it = &self.connections[connection];
            if !it.agent_open && !it.replica_open {
                continue;
            }
            if self.network.both_ways(End::Host(it.host), End::Replica(it.replica)) {
                let stalled = std::mem::take(&mut self.connections[connection].stalled);
                for act in stalled {
                    self.later(1, act);
                }
            } else {
                self.watch_connection(connection);
            }
        }
    }

    fn watch_connection(&mut self, connection: usize) {
        for side in [Side::Agent, Side::Replica] {
            let span = KEEPALIVE + self.chance.network.below(1000 * MS);
            self.later(span, Act::CheckConnection { connection, side });
        }
    }

    /// A process stands still: its peers will notice.
    pub(crate) fn watch_connections_of(&mut self, process: Process) {
        for connection in 0..self.connections.len() {
            let it = &self.connections[connection];
            let concerned = match process {
                Process::Replica(replica) => it.replica == replica,
                Process::Agent(host) => it.host == host,
            };
            if concerned && (it.agent_open || it.replica_open) {
                self.watch_connection(connection);
            }
        }
    }

    /// One end looks whether the other still answers.
    pub(crate) fn check_connection(&mut self, connection: usize, side: Side) {
        let it = &self.connections[connection];
        let linked = self.network.both_ways(End::Host(it.host), End::Replica(it.replica));
        let (agent, replica) = self.sides_alive(connection);
        let (host, number) = (it.host, it.replica);
        let (answers, paused) = match side {
            Side::Agent => {
                (replica && self.replicas[number].paused_until <= self.now, self.machines[host].paused_until)
            }
            Side::Replica => {
                (agent && self.machines[host].paused_until <= self.now, self.replicas[number].paused_until)
            }
        };
        if paused > self.now {
            return self.queue.push(paused + 1, Act::CheckConnection { connection, side });
        }
        if !linked || !answers {
            self.close(connection, side);
        }
    }

    /// One end gives a connection up.
    fn close(&mut self, connection: usize, side: Side) {
        let it = &mut self.connections[connection];
        let (host, replica, life, number) = (it.host, it.replica, it.agent_life, it.number);
        match side {
            Side::Agent if it.agent_open => {
                it.agent_open = false;
                if self.agent_lives(host, life)
                    && let Some(agent) = self.agent(host)
                    && agent.connections.get(&replica) == Some(&connection)
                {
                    agent.connections.remove(&replica);
                    agent.welcomed.remove(&replica);
                    self.connect_again(host, life, replica, 0);
                }
            }
            Side::Replica if it.replica_open => {
                it.replica_open = false;
                let replica_life = it.replica_life;
                if !self.lives(replica, replica_life) || number == 0 {
                    return;
                }
                // Heartbeats go on under its key until the next session begins.
                let id = self.machines[host].id.clone();
                let named = self.host_numbers[&id];
                let Some(run) = self.replicas[replica].run() else { return };
                if run.agents.get(&named).is_some_and(|(held, _)| *held == number) {
                    run.agents.remove(&named);
                    self.tell_core(replica, Message::Input(Input::AgentLeft(id)));
                }
            }
            Side::Agent | Side::Replica => {}
        }
    }

    /// A process has died: its peers learn of it at once, or, with the power, after a while.
    pub(crate) fn connections_break_at(&mut self, end: End, power: bool) {
        for connection in 0..self.connections.len() {
            let it = &self.connections[connection];
            let (side, concerned) = match end {
                End::Replica(replica) => (Side::Agent, it.replica == replica && it.agent_open),
                End::Host(host) => (Side::Replica, it.host == host && it.replica_open),
                End::Bmc(_) => continue,
            };
            if !concerned {
                continue;
            }
            let it = &mut self.connections[connection];
            match side {
                Side::Agent => it.replica_open = false,
                Side::Replica => it.agent_open = false,
            }
            let span = if power { KEEPALIVE + self.chance.network.below(1000 * MS) } else { self.transit() };
            self.later(span, Act::CheckConnection { connection, side });
        }
    }

    // ---- what is said ------------------------------------------------------------------------------

    pub(crate) fn replica_hears(&mut self, connection: usize, message: agent_message::Message) {
        let (host, replica) = (self.connections[connection].host, self.connections[connection].replica);
        if !self.sides_alive(connection).1 {
            return;
        }
        let act = Act::ToReplica { connection, message: Box::new(message) };
        let Some(Act::ToReplica { message, .. }) = self.holds_up(connection, Side::Replica, act) else {
            return;
        };
        let id = self.machines[host].id.clone();
        if let agent_message::Message::ProbeAnswered(answered) = *message {
            return self.probe_answered(replica, &id, answered);
        }
        if let Some(input) = heard(&id, *message) {
            self.tell_core(replica, input);
        }
    }

    pub(crate) fn agent_hears(&mut self, connection: usize, message: controller_message::Message) {
        let (host, replica) = (self.connections[connection].host, self.connections[connection].replica);
        if !self.sides_alive(connection).0 {
            return;
        }
        let act = Act::ToAgent { connection, message: Box::new(message) };
        let Some(Act::ToAgent { message, .. }) = self.holds_up(connection, Side::Agent, act) else { return };
        use controller_message::Message as Said;
        match *message {
            Said::Welcome(welcome) => self.welcomed(host, replica, &welcome),
            Said::Electorate(electorate) => {
                if let Some(electorate) = to_electorate(electorate) {
                    self.guard(host, ToGuard::Electorate(electorate));
                }
            }
            Said::Order(order) => {
                if let Some(order) = to_order(order) {
                    self.ordered(host, replica, order);
                }
            }
            Said::EpochChanged(changed) => {
                self.epoch_told(host, Epoch(changed.epoch));
                self.report_to(host, replica);
            }
            Said::Policy(policy) => self.timing(host, &policy),
            Said::LeaderChanged(changed) if changed.leader => self.report_to(host, replica),
            Said::LeaderChanged(_) => {}
            Said::ReportWanted(_) => self.report_to(host, replica),
            Said::ProbeWanted(wanted) => self.carry_probe(host, replica, &wanted),
        }
    }

    fn welcomed(&mut self, host: usize, replica: usize, welcome: &v1::Welcome) {
        if let Some(policy) = &welcome.policy {
            self.timing(host, policy);
        }
        self.epoch_told(host, Epoch(welcome.epoch));
        let Ok(secret) = SessionSecret::from_bytes(&welcome.session_secret) else { return };
        let Some(agent) = self.agent(host) else { return };
        agent.sessions.insert(replica, BeatSession::new(&secret, welcome.session_id));
        agent.welcomed.insert(replica);
        agent.backoff.insert(replica, BACKOFF_MIN);
        self.beat_now(host);
        self.report_to(host, replica);
    }

    fn epoch_told(&mut self, host: usize, epoch: Epoch) {
        let life = self.machines[host].agent_life;
        self.guard(host, ToGuard::EpochTold { epoch });
        if self.agent_lives(host, life) {
            self.checks.epoch_told(host, epoch);
        }
    }

    /// An order reaches the guard.
    fn ordered(&mut self, host: usize, replica: usize, order: Order) {
        let life = self.machines[host].agent_life;
        let Some(agent) = self.agent(host) else { return };
        agent.ordered_by.insert(order.effect.clone(), replica);
        agent.refused = None;
        self.guard(host, ToGuard::Order(order.clone()));
        // One that died on the way may have taken note of it, or not.
        if self.agent_lives(host, life)
            && self.agent(host).is_some_and(|agent| agent.refused.as_ref() != Some(&order.effect))
        {
            self.checks.order_obeyed(self.now, host, &order);
        }
    }

    /// Now and then an order that was sent once, whether it arrived or not, comes again.
    pub(crate) fn old_order(&mut self, host: usize) {
        let permille = self.machines[host].old_orders_permille;
        if permille == 0 || !self.chance.hosts.permille(permille) {
            return;
        }
        let old = &self.machines[host].old_orders;
        if let Some((replica, order)) = self.chance.hosts.pick(old).cloned() {
            self.ordered(host, replica, order);
        }
    }

    fn timing(&mut self, host: usize, policy: &v1::AgentPolicy) {
        // A replica that has no policy yet says nothing.
        if policy.lease_ms == 0 || policy.heartbeat_interval_ms == 0 {
            return;
        }
        let timing = Timing {
            lease: Millis(policy.lease_ms),
            watchdog: Millis(policy.watchdog_ms),
            answer_freshness: Millis(policy.answer_freshness_ms),
        };
        let Some(agent) = self.agent(host) else { return };
        agent.interval = Millis(policy.heartbeat_interval_ms.max(5));
        self.guard(host, ToGuard::Timing(timing));
    }
}

/// What an agent says, as an input. A host speaks only for itself.
fn heard(host: &HostId, said: agent_message::Message) -> Option<Message> {
    Some(match said {
        agent_message::Message::Hello(_)
        | agent_message::Message::Findings(_)
        | agent_message::Message::ProbeAnswered(_) => return None,
        agent_message::Message::Report(report) => {
            let report = AgentReport::try_from(report).ok().filter(|report| report.host == *host)?;
            Message::Input(Input::Reported(report))
        }
        agent_message::Message::Outcome(outcome) => Message::Input(Input::Ordered {
            effect: outcome.effect?.try_into().ok()?,
            vm: VmId::new(&outcome.vm).ok()?,
            incarnation: Incarnation(outcome.incarnation),
            host: host.clone(),
            outcome: match outcome.outcome? {
                order_outcome::Outcome::Running(_) => OrderOutcome::Running,
                order_outcome::Outcome::NotRunning(not) => {
                    OrderOutcome::NotRunning { detail: not.detail, tried: !not.never_tried }
                }
                order_outcome::Outcome::Refused(refused) => OrderOutcome::Refused { detail: refused.detail },
            },
        }),
        agent_message::Message::Goodbye(goodbye) => {
            let kind = v1::GoodbyeKind::try_from(goodbye.kind).ok()?;
            Message::Input(Input::Goodbye {
                host: host.clone(),
                boot: BootId::parse(&goodbye.boot_id).ok()?,
                epoch: Epoch(goodbye.epoch),
                goodbye: Goodbye::try_from(kind).ok()?,
            })
        }
    })
}

fn to_electorate(electorate: v1::Electorate) -> Option<Electorate> {
    let mut hosts = BTreeMap::new();
    for host in electorate.hosts {
        let neighbour = Neighbour { address: host.neighbour_address, domain: host.domain };
        hosts.insert(HostId::new(&host.host).ok()?, neighbour);
    }
    let replicas = electorate.replicas.into_iter().map(ReplicaId).collect();
    Some(Electorate { version: electorate.version, hosts, replicas })
}

fn to_order(order: v1::Order) -> Option<Order> {
    let effect = order.effect?.try_into().ok()?;
    let verb = match order.order? {
        order::Order::Start(start) => Verb::Start {
            vm: VmId::new(&start.vm).ok()?,
            incarnation: Incarnation(start.incarnation),
            definition: start.definition?.into(),
        },
        order::Order::Stop(stop) => {
            Verb::Stop { vm: VmId::new(&stop.vm).ok()?, incarnation: Incarnation(stop.incarnation) }
        }
        order::Order::Burn(burn) => {
            Verb::Burn { vm: VmId::new(&burn.vm).ok()?, incarnation: Incarnation(burn.incarnation) }
        }
    };
    let boot = if order.boot_id.is_empty() { None } else { Some(BootId::parse(&order.boot_id).ok()?) };
    Some(Order { boot, epoch: Epoch(order.epoch), term: order.term, effect, verb })
}
