//! The hosts' side of a tick: the machine, its watchdog and its hypervisor, and the shell around the guard.

use defib_engine::{
    controller::OrderOutcome,
    guard::{self, Effect, Electorate, Guard, Input, LeaseState, Outcome, Refusal, StopReason, VmObserved},
};
use defib_model::{BootId, Epoch, Incarnation, VmId};

use super::{
    message::Message,
    truth::{Fact, Invariant, released},
    world::World,
};

impl World {
    /// What hardware and hypervisor do by themselves.
    pub(super) fn machine(&mut self, host: u8) {
        let (tick, now) = (self.tick, self.host_now(host));
        let watchdog = self.setup.timing.watchdog;
        if self.hosts[usize::from(host)].off_at == Some(tick) {
            self.host(host).power_ends();
            self.say(|_| format!("h{} switches itself off", host + 1));
        }
        for (vm, incarnation) in std::mem::take(&mut self.host(host).stops) {
            let one = self.host(host);
            one.running.retain(|(running, of)| *running != vm || *of > incarnation);
            let process = one.process;
            self.say(|_| format!("h{} has stopped {vm} up to incarnation {incarnation}", host + 1));
            self.send(Message::Stopped { host, process, vm, incarnation });
        }
        if self.hosts[usize::from(host)].watchdog_fires(now, watchdog) {
            self.say(|_| format!("the watchdog resets h{}", host + 1));
            if !self.hosts[usize::from(host)].running.is_empty() {
                self.facts.add(Fact::WatchdogReset);
                self.vm_lost(host, "its watchdog");
            }
            let one = self.host(host);
            one.power_ends();
            one.boots(tick + 2);
        }
        if self.hosts[usize::from(host)].up_at == Some(tick) {
            self.begin(host);
        }
    }

    /// A VM ends although nobody but the controllers had trouble.
    fn vm_lost(&mut self, host: u8, by: &str) {
        if self.controllers_only {
            let detail = format!("h{} loses its VM by {by}, and only the controllers had trouble", host + 1);
            self.breaks(Invariant::OutageStopsNothing, detail);
        }
    }

    /// An agent's process begins.
    fn begin(&mut self, host: u8) {
        let now = self.host_now(host);
        let timing = self.setup.timing;
        let one = self.host(host);
        one.up_at = None;
        one.process += 1;
        let config = guard::Config { host: one.id.clone(), timing };
        let boot = BootId(one.boot);
        one.guard = Some(Guard::new(config, one.durable.clone(), one.hint.take(), boot, now));
        let found = one.running.iter().map(|(vm, incarnation)| {
            Input::Hypervisor(VmObserved {
                vm: vm.clone(),
                incarnation: *incarnation,
                running: true,
                readiness: None,
            })
        });
        let mut inputs: Vec<Input> = found.collect();
        inputs.push(Input::HypervisorListed);
        self.say(|_| format!("an agent begins on h{}, boot {}", host + 1, boot.0));
        for input in inputs {
            self.guard(host, input);
        }
    }

    /// What the agent does once per tick, unless it is frozen.
    pub(super) fn agent(&mut self, host: u8) {
        let now = self.host_now(host);
        let one = &self.hosts[usize::from(host)];
        let Some(guard) = one.guard.as_ref().filter(|_| !one.frozen) else { return };
        if guard.next_deadline().is_some_and(|due| due <= now) {
            self.guard(host, Input::Woke);
        }
        self.tend(host);
        self.open_sessions(host);
        self.host(host).sequence += 1;
        let one = &self.hosts[usize::from(host)];
        let mut beats = Vec::new();
        if let Some(guard) = &one.guard {
            for (replica, session) in &one.sessions {
                let id = self.replicas[usize::from(*replica)].id;
                let Some(beat) = guard.beat(now, id, one.sequence, 0) else { continue };
                let (process, replica, session) = (one.process, *replica, *session);
                beats.push(Message::Beat { host, process, replica, session, sent_at: now, beat });
            }
        }
        for beat in beats {
            self.send(beat);
        }
    }

    fn open_sessions(&mut self, host: u8) {
        for replica in 0..self.replica_count() {
            let (one, other) = (&self.hosts[usize::from(host)], &self.replicas[usize::from(replica)]);
            let session = other.session;
            let reaches = self.reaches(host, replica) && other.alive && !other.frozen;
            if !reaches || one.sessions.get(&replica) == Some(&session) {
                continue;
            }
            let ledger = other.controller.ledger();
            let Some(record) = ledger.hosts().get(&one.id) else { continue };
            let (epoch, process) = (record.epoch, one.process);
            // Who counts, and its number, are those of the log.
            let Some(newest) = ledger.electorates().last() else { continue };
            let mut electorate = Electorate { version: newest.version, ..self.setup.electorate.clone() };
            electorate.hosts.retain(|id, _| newest.hosts.contains(id));
            let one = self.host(host);
            one.sessions.insert(replica, session);
            one.reported.remove(&replica);
            self.guard(host, Input::Electorate(electorate));
            self.send(Message::Epoch { host, process, replica, epoch });
        }
    }

    /// The watchdog, the hint, the reports, and the end of a shutdown.
    pub(super) fn tend(&mut self, host: u8) {
        let (tick, now) = (self.tick, self.host_now(host));
        let one = self.host(host);
        let Some(guard) = one.guard.as_ref().filter(|_| !one.frozen) else { return };
        let covered = guard.may_pet(now);
        let exempt = matches!(guard.lease(now), LeaseState::Exempt { .. }) && !one.running.is_empty();
        one.hint = Some(guard.resume_hint());
        if covered {
            one.petted = now;
            if !one.armed {
                one.armed = true;
            }
            self.guard(host, Input::WatchdogArmed(true));
        }
        if exempt && self.since_peace() > 0 {
            self.facts.add(Fact::Exempt);
        }
        let one = self.host(host);
        let report = one.guard.as_ref().and_then(Guard::report);
        let mut news = Vec::new();
        for (replica, session) in &one.sessions {
            if let Some(report) = &report
                && one.reported.get(replica) != Some(report)
            {
                one.reported.insert(*replica, report.clone());
                news.push(Message::Report {
                    host,
                    replica: *replica,
                    session: *session,
                    report: report.clone(),
                });
            }
        }
        let over = one.guard.as_ref().filter(|guard| one.shutting_down && guard.shut_down());
        if let Some(epoch) = over.map(Guard::epoch) {
            let boot = BootId(one.boot);
            let goodbye = |(replica, session): (&u8, &u64)| Message::Goodbye {
                host,
                replica: *replica,
                session: *session,
                boot,
                epoch,
            };
            news.extend(one.sessions.iter().map(goodbye));
            one.process_ends();
            one.armed = false;
            one.off_at = Some(tick + 1);
        }
        for message in news {
            self.send(message);
        }
    }

    /// One input to a guard, and what it wants done.
    pub(super) fn guard(&mut self, host: u8, input: Input) {
        let now = self.host_now(host);
        let Some(guard) = &mut self.host(host).guard else { return };
        let effects = guard.step(now, input);
        for effect in effects {
            match effect {
                Effect::Persist(durable) => self.host(host).durable = Some(durable),
                Effect::StartVm { vm, incarnation, .. } => self.start(host, vm, incarnation),
                Effect::StopVm { vm, incarnation, reason } => {
                    let one = self.host(host);
                    let runs = one.running.iter().any(|(running, of)| *running == vm && *of <= incarnation);
                    one.stops.push((vm.clone(), incarnation));
                    self.say(|_| {
                        format!("h{} stops {vm} up to incarnation {incarnation}: {reason}", host + 1)
                    });
                    if runs && reason == StopReason::LeaseLost {
                        self.facts.add(Fact::SelfFenced);
                        self.vm_lost(host, "its own agent");
                    }
                }
                Effect::AskNeighbours { hosts } => {
                    let process = self.hosts[usize::from(host)].process;
                    for to in 0..self.host_count() {
                        if hosts.iter().any(|(id, _)| *id == self.hosts[usize::from(to)].id) {
                            self.send(Message::Question { host, process, to, asked_at: now });
                        }
                    }
                }
                Effect::Report { effect, vm, incarnation, outcome } => {
                    let outcome = match outcome {
                        Outcome::Started => OrderOutcome::Running,
                        Outcome::NotRunning { detail, tried } => OrderOutcome::NotRunning { detail, tried },
                        Outcome::Refused(refusal) => {
                            if !matches!(refusal, Refusal::NoLease) {
                                self.facts.add(Fact::StaleRefused);
                            }
                            OrderOutcome::Refused { detail: refusal.to_string() }
                        }
                    };
                    if let Some((replica, session)) = self.host(host).ordered_by.remove(&effect) {
                        let told =
                            Message::Outcome { host, replica, session, effect, vm, incarnation, outcome };
                        self.send(told);
                    }
                }
            }
        }
    }

    /// The hypervisor starts a VM, and the judges look.
    fn start(&mut self, host: u8, vm: VmId, incarnation: Incarnation) {
        self.say(|_| format!("h{} starts {vm} as incarnation {incarnation}", host + 1));
        let one = self.host(host);
        let stale = one.started.iter().any(|(started, of)| *started == vm && *of >= incarnation);
        one.started.insert((vm.clone(), incarnation));
        one.running.insert((vm.clone(), incarnation));
        if stale {
            let detail = format!("h{} starts {vm} as incarnation {incarnation} again", host + 1);
            self.breaks(Invariant::StaleOrdersDie, detail);
        }
        for other in 0..self.host_count() {
            if other != host
                && self.hosts[usize::from(other)].running.iter().any(|(running, _)| *running == vm)
            {
                let detail = format!("h{} starts {vm} while h{} runs it", host + 1, other + 1);
                self.breaks(Invariant::AtMostOne, detail);
            }
        }
        // The log, as whoever has applied most of it has it.
        let newest = self.replicas.iter().max_by_key(|replica| replica.applied);
        let why = newest.map(|replica| released(replica.controller.ledger(), &vm, incarnation));
        if let Some(Err(detail)) = why {
            self.breaks(Invariant::ProofBeforeRestart, detail);
        }
        self.guard(host, Input::StartFinished { vm, incarnation, result: Ok(()) });
    }

    fn learns(&mut self, host: u8, epoch: Epoch) {
        let one = self.host(host);
        one.seen_epoch = one.seen_epoch.max(epoch);
    }

    pub(super) fn reach_host(&mut self, host: u8, message: Message) {
        match message {
            Message::Ack { replica, sent_at, ack, .. } => {
                self.learns(host, ack.epoch);
                let replica = self.replicas[usize::from(replica)].id;
                self.guard(host, Input::Ack { replica, sent_at, ack });
            }
            Message::Epoch { epoch, .. } => {
                self.learns(host, epoch);
                self.guard(host, Input::EpochTold { epoch });
            }
            Message::Order { replica, session, order, .. } => {
                self.say(|_| {
                    let (vm, incarnation) = order.verb.subject();
                    let verb = if matches!(order.verb, guard::Verb::Start { .. }) { "start" } else { "burn" };
                    format!(
                        "h{} is ordered in epoch {} to {verb} {vm} incarnation {incarnation}",
                        host + 1,
                        order.epoch
                    )
                });
                let stale = order.epoch < self.hosts[usize::from(host)].seen_epoch;
                let started = self.hosts[usize::from(host)].started.len();
                self.host(host).ordered_by.insert(order.effect.clone(), (replica, session));
                self.learns(host, order.epoch);
                self.guard(host, Input::Order(order));
                if stale && self.hosts[usize::from(host)].started.len() > started {
                    let detail = format!("h{} obeys an order of an epoch that it knew to be over", host + 1);
                    self.breaks(Invariant::StaleOrdersDie, detail);
                }
            }
            Message::Answer { by, asked_at, answer, .. } => {
                let by = self.hosts[usize::from(by)].id.clone();
                self.guard(host, Input::NeighbourAnswer { host: by, asked_at, answer });
            }
            Message::Stopped { vm, incarnation, .. } => {
                self.guard(host, Input::StopFinished { vm, incarnation, ok: true });
            }
            _ => {}
        }
    }

    /// A message reaches nobody. Only who gives orders is told.
    pub(super) fn lost(&mut self, message: Message) {
        if let Message::Order { host, replica, session, order, .. } = message {
            let (vm, incarnation) = order.verb.subject();
            let (vm, effect) = (vm.clone(), order.effect.clone());
            let outcome = OrderOutcome::Unknown { detail: String::from("no session") };
            self.queue_up(Message::Outcome { host, replica, session, effect, vm, incarnation, outcome });
        }
    }

    /// I4: whoever believes to hold a lease has the unexpired word of a majority.
    pub(super) fn judge_leases(&mut self) {
        let lease = self.setup.timing.lease.with_drift(super::bounds::DRIFT_PPM);
        for host in 0..self.host_count() {
            let now = self.host_now(host);
            let held = self.hosts[usize::from(host)]
                .guard
                .as_ref()
                .is_some_and(|guard| matches!(guard.lease(now), LeaseState::Held { .. }));
            let word = (0..self.replica_count()).filter(|replica| {
                self.granted
                    .get(&(host, *replica))
                    .is_some_and(|at| self.replica_now(*replica) < at.plus(lease))
            });
            if held && word.count() * 2 <= self.replicas.len() {
                let detail = format!("h{} holds a lease that no majority grants any more", host + 1);
                self.breaks(Invariant::QuorumDecides, detail);
            }
        }
    }
}
