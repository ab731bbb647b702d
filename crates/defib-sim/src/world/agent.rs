//! An agent's process: the thread of its guard, its heartbeats, the watchdog's keeper. Repeats
//! what `crates/defib-agent/src/guard_thread.rs` and its neighbours do, without sockets and threads.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::{
    guard::{self, Effect, Guard, Input, LeaseState, Outcome, ResumeHint, Timing},
    observer::{Ack, Beat},
};
use defib_model::{
    EffectId, Epoch, HostId, Incarnation, Instant, Millis, Policy, ReplicaId, VmId, command::AgentReport,
    inventory::SelfFence,
};
use defib_wire::{
    datagram::{DATAGRAM_LEN, Direction, OpeningSession, SealingSession, SessionSecret, peek_session},
    v1::{self, Heartbeat, agent_message},
};

use super::{Act, End, World, hypervisor::Job, sessions::BACKOFF_MIN};
use crate::clock::MS;

/// Beats whose sending time is remembered.
const SENT: usize = 1024;
/// How often the watchdog is looked after.
const TEND: Millis = Millis(200);
/// How often an unchanged report is sent again.
const REPORT_AGAIN: Millis = Millis(10_000);
/// How long a supervisor waits before it starts an agent again.
const RESTART_AFTER: u64 = 500 * MS;

/// An agent's side of a session for heartbeats.
#[derive(Debug)]
pub(crate) struct BeatSession {
    number: u64,
    sealing: SealingSession,
    opening: OpeningSession,
}

impl BeatSession {
    pub(crate) fn new(secret: &SessionSecret, number: u64) -> Self {
        Self {
            number,
            sealing: SealingSession::new(secret, number, Direction::ToReplica),
            opening: OpeningSession::new(secret, number, Direction::ToAgent),
        }
    }
}

/// What an agent's process holds in memory.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) guard: Guard,
    pub(crate) sessions: BTreeMap<usize, BeatSession>,
    pub(crate) connections: BTreeMap<usize, usize>,
    pub(crate) welcomed: BTreeSet<usize>,
    pub(crate) backoff: BTreeMap<usize, u64>,
    pub(crate) ordered_by: BTreeMap<EffectId, usize>,
    /// The order that was refused last.
    pub(crate) refused: Option<EffectId>,
    pub(crate) interval: Millis,
    sequence: u64,
    sent: Box<[(u64, Instant)]>,
    next_beat: Instant,
    beat_armed: u64,
    guard_armed: u64,
    next_hint: Instant,
    next_report: Instant,
    reported: Option<AgentReport>,
    /// The keeper has armed the watchdog in this life.
    keeper_armed_ms: Option<u64>,
    /// Since when neighbours are told that the lease is held.
    told_held: Option<Instant>,
    /// Questions under way, and whether there are more to ask.
    pub(crate) round: u32,
    pub(crate) asking: usize,
    pub(crate) queued: Option<Vec<(HostId, String)>>,
    /// It leaves when nothing runs any more, and says so.
    leaving: bool,
}

impl World {
    pub(crate) fn agent(&mut self, host: usize) -> Option<&mut Agent> {
        self.machines[host].agent.as_deref_mut()
    }

    pub(crate) fn agent_lives(&self, host: usize, life: u32) -> bool {
        let machine = &self.machines[host];
        machine.agent.is_some() && machine.agent_life == life
    }

    /// The system, or a supervisor, starts the agent.
    pub(crate) fn start_agent(&mut self, host: usize, boots: u32) {
        let now = self.now;
        let machine = &mut self.machines[host];
        if machine.boots != boots || !machine.booted || machine.agent.is_some() || machine.agent_held > 0 {
            return;
        }
        self.checks.agent_began(now, host);
        let machine = &mut self.machines[host];
        machine.agent_life += 1;
        machine.paused_until = 0;
        machine.deferred.clear();
        let local = machine.clock.local(now);
        let config =
            guard::Config { host: machine.id.clone(), timing: Timing::from(&Policy::default().lease) };
        let guard = Guard::new(config, machine.durable.clone(), machine.hint, machine.boot(), local);
        machine.agent = Some(Box::new(Agent {
            guard,
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            welcomed: BTreeSet::new(),
            backoff: BTreeMap::new(),
            ordered_by: BTreeMap::new(),
            refused: None,
            interval: Millis(100),
            sequence: Beat::sequence_at(local),
            sent: vec![(0, Instant(0)); SENT].into_boxed_slice(),
            next_beat: local,
            beat_armed: u64::MAX,
            guard_armed: u64::MAX,
            next_hint: local,
            next_report: local,
            reported: None,
            keeper_armed_ms: None,
            told_held: None,
            round: 0,
            asking: 0,
            queued: None,
            leaving: false,
        }));
        let life = machine.agent_life;
        self.later(0, Act::Tend { host, life });
        for replica in 0..self.replicas.len() {
            self.later(MS, Act::Connect { host, life, replica });
        }
        self.list_vms(host);
        self.arm_guard(host);
    }

    /// The agent's process ends; VMs run on.
    pub(crate) fn kill_agent(&mut self, host: usize, power: bool) {
        let machine = &mut self.machines[host];
        if machine.agent.take().is_none() {
            return;
        }
        machine.deferred.clear();
        machine.paused_until = 0;
        let boots = machine.boots;
        self.drop_jobs(host);
        self.connections_break_at(End::Host(host), power);
        if !power {
            let span = RESTART_AFTER + self.chance.hosts.below(500) * MS;
            self.later(span, Act::StartAgent { host, boots });
        }
    }

    // ---- the guard ---------------------------------------------------------------------------------

    /// One input to the guard, and what it wants.
    pub(crate) fn guard(&mut self, host: usize, input: Input) {
        let quiet = matches!(input, Input::Ack { .. } | Input::Woke | Input::NeighbourAnswer { .. });
        let local = self.machines[host].clock.local(self.now);
        let Some(agent) = self.agent(host) else { return };
        let epoch = agent.guard.epoch();
        let effects = agent.guard.step(local, input);
        let held = matches!(agent.guard.lease(local), LeaseState::Held { .. });
        agent.told_held = held.then(|| agent.told_held.unwrap_or(local));
        let report = !quiet || !effects.is_empty() || agent.guard.epoch() != epoch;
        for effect in effects {
            if !self.guard_effect(host, effect) {
                return;
            }
        }
        self.arm_guard(host);
        if report {
            self.report(host);
        }
    }

    /// `false`: the process has ended.
    fn guard_effect(&mut self, host: usize, effect: Effect) -> bool {
        match effect {
            Effect::Persist(durable) => return self.persist(host, durable),
            Effect::StartVm { vm, incarnation, not_after, .. } => {
                self.hypervisor(host, Job::Start { vm, incarnation, not_after });
            }
            Effect::StopVm { vm, incarnation, reason } => {
                let id = self.machines[host].id.clone();
                self.say(|| format!("host {id}: stop vm {vm} incarnation {incarnation}: {reason}"));
                self.stop_wanted(host, reason);
                self.hypervisor(host, Job::Stop { vm, incarnation });
            }
            Effect::AskNeighbours { hosts } => {
                let Some(agent) = self.agent(host) else { return false };
                if agent.asking > 0 {
                    agent.queued = Some(hosts);
                } else {
                    self.ask_neighbours(host, &hosts);
                }
            }
            Effect::Report { effect, vm, incarnation, outcome } => {
                self.report_outcome(host, &effect, &vm, incarnation, outcome);
            }
        }
        true
    }

    fn persist(&mut self, host: usize, durable: guard::Durable) -> bool {
        let machine = &mut self.machines[host];
        let mut dies = machine.disk_full > 0;
        let mut written = !dies;
        if let Some((left, takes_effect)) = &mut machine.dies_at_write {
            if *left == 0 {
                dies = true;
                written = *takes_effect;
                machine.dies_at_write = None;
            } else {
                *left -= 1;
            }
        }
        if written {
            machine.durable = Some(durable);
        }
        if dies {
            let id = machine.id.clone();
            self.say(|| format!("host {id}: its agent dies at a write"));
            self.kill_agent(host, false);
        }
        !dies
    }

    fn arm_guard(&mut self, host: usize) {
        let (now, life, clock) = (self.now, self.machines[host].agent_life, self.machines[host].clock);
        let Some(agent) = self.agent(host) else { return };
        let Some(due) = agent.guard.next_deadline() else { return };
        if agent.guard_armed <= now {
            return;
        }
        let at = clock.when(due).max(now);
        if at < agent.guard_armed {
            agent.guard_armed = at;
            self.queue.push(at, Act::GuardDue { host, life });
        }
    }

    pub(crate) fn guard_due(&mut self, host: usize, life: u32) {
        if !self.agent_lives(host, life) {
            return;
        }
        let (now, clock) = (self.now, self.machines[host].clock);
        let Some(agent) = self.agent(host) else { return };
        if agent.guard_armed > now {
            return;
        }
        agent.guard_armed = u64::MAX;
        if agent.guard.next_deadline().is_some_and(|due| due <= clock.local(now)) {
            self.guard(host, Input::Woke);
        } else {
            self.arm_guard(host);
        }
    }

    // ---- heartbeats --------------------------------------------------------------------------------

    /// A new session's first beat leaves at once.
    pub(crate) fn beat_now(&mut self, host: usize) {
        let local = self.machines[host].clock.local(self.now);
        let Some(agent) = self.agent(host) else { return };
        agent.next_beat = local;
        self.arm_beat(host);
    }

    fn arm_beat(&mut self, host: usize) {
        let (now, life, clock) = (self.now, self.machines[host].agent_life, self.machines[host].clock);
        let Some(agent) = self.agent(host) else { return };
        let at = clock.when(agent.next_beat).max(now);
        if at < agent.beat_armed {
            agent.beat_armed = at;
            self.queue.push(at, Act::Beat { host, life });
        }
    }

    pub(crate) fn beat(&mut self, host: usize, life: u32) {
        if !self.agent_lives(host, life) {
            return;
        }
        let now = self.now;
        let local = self.machines[host].clock.local(now);
        let paths = self.plan.hosts[host].paths;
        let Some(agent) = self.agent(host) else { return };
        if agent.beat_armed > now {
            return;
        }
        agent.beat_armed = u64::MAX;
        if agent.next_beat > local {
            return self.arm_beat(host);
        }
        agent.next_beat = agent.next_beat.plus(agent.interval).max(local.plus(Millis(1)));
        if agent.sessions.is_empty() {
            agent.next_beat = local.plus(agent.interval);
            return self.arm_beat(host);
        }
        agent.sequence += 1;
        let sequence = agent.sequence;
        agent.sent[sequence as usize % SENT] = (sequence, local);
        let sessions: Vec<usize> = agent.sessions.keys().copied().collect();
        // Neighbours who asked before were told that there is no lease: the claim begins after that.
        let told_held_ms = agent.told_held.map_or(0, |since| local.since(since).0);
        for number in sessions {
            let replica = ReplicaId(self.replicas[number].id);
            for path in 0..paths {
                let mut buffer = [0; DATAGRAM_LEN];
                let Some(agent) = self.agent(host) else { return };
                let Some(beat) = agent.guard.beat(local, replica, sequence, path) else { continue };
                let Some(session) = agent.sessions.get_mut(&number) else { continue };
                let message = Heartbeat {
                    boot_hi: (beat.boot.0 >> 64) as u64,
                    boot_lo: beat.boot.0 as u64,
                    sequence,
                    sent_at_ns: local.0,
                    epoch: beat.epoch.0,
                    path: u32::from(beat.path),
                    lease_held_ms: beat.lease_held_ms.min(told_held_ms).try_into().unwrap_or(u32::MAX),
                    vm_digest: beat.vm_digest,
                    flags: 0,
                    echo: beat.echo.map_or(0, |stamp| stamp.0),
                    electorate: beat.electorate,
                    watchdog_ms: beat.watchdog.0 as u32,
                    answer_freshness_ms: beat.answer_freshness.0 as u32,
                };
                if session.sealing.seal(&message, &mut buffer).is_ok() {
                    self.send_datagram(End::Host(host), End::Replica(number), &buffer);
                }
            }
        }
        self.arm_beat(host);
        self.report(host);
    }

    pub(crate) fn ack_arrives(&mut self, host: usize, mut datagram: [u8; DATAGRAM_LEN]) {
        let Some(agent) = self.machines[host].agent.as_deref_mut() else { return };
        let Ok(number) = peek_session(&datagram) else {
            self.counts.refused_datagrams += 1;
            return;
        };
        let Some((replica, session)) =
            agent.sessions.iter_mut().find(|(_, session)| session.number == number)
        else {
            return;
        };
        let Ok(ack) = session.opening.open(&mut datagram).and_then(|opened| opened.ack()) else {
            self.counts.refused_datagrams += 1;
            return;
        };
        let (sequence, sent_at) = agent.sent[ack.sequence as usize % SENT];
        if sequence != ack.sequence {
            return;
        }
        let ack = Ack {
            sequence,
            epoch: Epoch(ack.epoch),
            granted: ack.granted != 0,
            lease_ms: u64::from(ack.lease_ms),
            stamp: Instant(ack.stamp),
        };
        let replica = ReplicaId(self.replicas[*replica].id);
        self.guard(host, Input::Ack { replica, sent_at, ack });
    }

    // ---- watchdog, hint, report --------------------------------------------------------------------

    pub(crate) fn tend(&mut self, host: usize, life: u32) {
        if !self.agent_lives(host, life) {
            return;
        }
        let (now, clock) = (self.now, self.machines[host].clock);
        let local = clock.local(now);
        self.queue.push(clock.when(local.plus(TEND)), Act::Tend { host, life });
        let machine = &mut self.machines[host];
        let Some(agent) = machine.agent.as_deref_mut() else { return };
        let hint = agent.guard.resume_hint();
        if local >= agent.next_hint || machine.hint.is_some_and(|former| former.is_old(local, hint)) {
            agent.next_hint = local.plus(ResumeHint::EVERY);
            machine.hint = Some(hint);
        }
        let mut armed = false;
        if machine.self_fence == SelfFence::Watchdog && agent.guard.may_pet(local) {
            let bound = agent.guard.timing().watchdog.0;
            if agent.keeper_armed_ms != Some(bound) {
                armed = agent.keeper_armed_ms.is_none();
                agent.keeper_armed_ms = Some(bound);
                machine.watchdog_set_ms = (bound / 1000).max(1) * 1000;
            }
            machine.petted = now;
        }
        if armed {
            self.arm_watchdog(host);
            self.guard(host, Input::WatchdogArmed(true));
        }
        self.leave_if_empty(host);
        self.lease_truth(host);
        self.old_order(host);
    }

    /// What checkers know of leases, by the guard's own count.
    fn lease_truth(&mut self, host: usize) {
        let (now, clock) = (self.now, self.machines[host].clock);
        let Some(agent) = self.machines[host].agent.as_deref() else { return };
        if let LeaseState::Held { until, .. } = agent.guard.lease(clock.local(now)) {
            self.checks.lease_held(now, host, clock.when(until));
        } else {
            let around = self.around(host);
            self.checks.leaseless(now, host, &around);
        }
    }

    fn report(&mut self, host: usize) {
        let local = self.machines[host].clock.local(self.now);
        let Some(report) = self.report_of(host) else { return };
        let Some(agent) = self.agent(host) else { return };
        if agent.reported.as_ref() == Some(&report) && local < agent.next_report {
            return;
        }
        agent.next_report = local.plus(REPORT_AGAIN);
        let replicas: Vec<usize> = agent.welcomed.iter().copied().collect();
        let message = agent_message::Message::Report((&report).into());
        agent.reported = Some(report);
        for replica in replicas {
            self.send_to_replica(host, replica, message.clone());
            self.say_goodbye_again(host, replica);
        }
    }

    fn report_of(&mut self, host: usize) -> Option<AgentReport> {
        let mut report = self.agent(host)?.guard.report()?;
        report.note.machine.clone_from(&self.plan.hosts[host].machine);
        Some(report)
    }

    pub(crate) fn report_to(&mut self, host: usize, replica: usize) {
        let Some(report) = self.report_of(host) else { return };
        self.send_to_replica(host, replica, agent_message::Message::Report((&report).into()));
        self.say_goodbye_again(host, replica);
    }

    fn report_outcome(
        &mut self,
        host: usize,
        effect: &EffectId,
        vm: &VmId,
        incarnation: Incarnation,
        outcome: Outcome,
    ) {
        use v1::order_outcome::Outcome as Wire;
        let outcome = match outcome {
            Outcome::Started => Wire::Running(v1::Running {}),
            Outcome::NotRunning { detail, tried } => {
                self.checks.vouched(self.now, &self.machines[host], vm, incarnation);
                Wire::NotRunning(v1::NotRunning { detail, never_tried: !tried })
            }
            Outcome::Refused(refusal) => {
                self.counts.refused_orders += 1;
                if let Some(agent) = self.agent(host) {
                    agent.refused = Some(effect.clone());
                }
                let reason = v1::RefusalReason::Unspecified.into();
                Wire::Refused(v1::Refused { reason, detail: refusal.to_string() })
            }
        };
        let message = v1::OrderOutcome {
            effect: Some(effect.into()),
            vm: vm.to_string(),
            incarnation: incarnation.0,
            outcome: Some(outcome),
        };
        let replica = self.agent(host).and_then(|agent| agent.ordered_by.remove(effect));
        if let Some(replica) = replica {
            self.send_to_replica(host, replica, agent_message::Message::Outcome(message));
        }
    }

    // ---- goodbyes ----------------------------------------------------------------------------------

    pub(crate) fn say_goodbye(&mut self, host: usize, kind: v1::GoodbyeKind) {
        let Some(agent) = self.agent(host) else { return };
        let replicas: Vec<usize> = agent.welcomed.iter().copied().collect();
        for replica in replicas {
            self.say_goodbye_to(host, replica, kind);
        }
    }

    fn say_goodbye_to(&mut self, host: usize, replica: usize, kind: v1::GoodbyeKind) {
        let boot = self.machines[host].boot();
        if kind == v1::GoodbyeKind::Shutdown {
            self.checks.goodbye(self.now, host, boot);
        }
        let Some(agent) = self.agent(host) else { return };
        let epoch = agent.guard.epoch().0;
        let goodbye = v1::Goodbye { kind: kind.into(), boot_id: boot.to_string(), epoch };
        self.send_to_replica(host, replica, agent_message::Message::Goodbye(goodbye));
    }

    /// What a former process said, and still binds.
    fn say_goodbye_again(&mut self, host: usize, replica: usize) {
        if self.agent(host).is_some_and(|agent| agent.guard.says_goodbye_again()) {
            self.say_goodbye_to(host, replica, v1::GoodbyeKind::Shutdown);
        }
    }

    /// An orderly shutdown begins: all VMs stop, then the agent says so and ends.
    pub(crate) fn begin_leaving(&mut self, host: usize) {
        if let Some(agent) = self.agent(host) {
            agent.leaving = true;
            self.guard(host, Input::ShuttingDown);
        }
    }

    fn leave_if_empty(&mut self, host: usize) {
        let Some(agent) = self.agent(host) else { return };
        if agent.leaving && agent.guard.shut_down() {
            agent.leaving = false;
            self.say_goodbye(host, v1::GoodbyeKind::Shutdown);
            self.shut_down(host);
        }
    }

    /// What a newly drawn replica is to agents: one more to connect to.
    pub(crate) fn agents_learn_of(&mut self, replica: usize) {
        for host in 0..self.machines.len() {
            let life = self.machines[host].agent_life;
            if let Some(agent) = self.agent(host) {
                agent.backoff.insert(replica, BACKOFF_MIN);
                self.later(MS, Act::Connect { host, life, replica });
            }
        }
    }
}
