//! What hosts do by themselves: beat, hold leases, obey or refuse orders, report, reset themselves.

use defib_engine::{
    controller::{BurnOrder, Input, OrderOutcome, ProbeOrder, StartOrder},
    observer::{Beat, Reached},
};
use defib_model::{
    BootId, EffectId, Epoch, HostId, HostNote, Incarnation, Instant, Millis, VmId,
    command::AgentReport,
    inventory::{Readiness, SelfFence},
};

use super::{
    machines::{Instance, StartFault},
    world::{Act, Incoming, World},
};

/// An order on its way to an agent.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) start: bool,
    pub(crate) effect: EffectId,
    pub(crate) host: HostId,
    pub(crate) host_epoch: Epoch,
    pub(crate) vm: VmId,
    pub(crate) incarnation: Incarnation,
    pub(crate) term: u64,
}

impl Order {
    pub(crate) fn start(order: &StartOrder) -> Self {
        Self {
            start: true,
            effect: order.effect.clone(),
            host: order.restart.to().clone(),
            host_epoch: order.restart.host_epoch(),
            vm: order.restart.vm().clone(),
            incarnation: order.restart.incarnation(),
            term: order.term,
        }
    }

    pub(crate) fn burn(order: &BurnOrder) -> Self {
        Self {
            start: false,
            effect: order.effect.clone(),
            host: order.host.clone(),
            host_epoch: order.host_epoch,
            vm: order.vm.clone(),
            incarnation: order.incarnation,
            term: order.term,
        }
    }
}

/// How long a replica waits for an agent's answer.
const ORDER_TIMEOUT: u64 = 1000;
/// How often everything is reported though nothing is news.
const REPORT_AGAIN: u64 = 10_000;
/// How long a broken session goes unnoticed.
const SESSION_TIMEOUT: u64 = 5000;
/// How often a clone tries to get a session.
const CLONE_TRIES_AGAIN: u64 = 100;
/// Its boot.
const CLONES_BOOT: BootId = BootId(0xc1);

impl World {
    pub(crate) fn act_on_host(&mut self, act: Act) {
        match act {
            Act::Tick(host) => self.tick(&host),
            Act::Ack { host, boots, from, path, sent, ack } => {
                let (now, voters) = (self.now, self.voters());
                let Some(machine) = self.machines.get_mut(&host) else { return };
                if machine.boots != boots || !machine.hears_on(path, from) {
                    return;
                }
                machine.epoch = machine.epoch.max(ack.epoch);
                machine.stamps.insert(from, ack.stamp);
                if ack.granted {
                    machine.promise(now, from, sent + ack.lease_ms, &voters);
                }
            }
            Act::Admit { host, epoch } => {
                if let Some(machine) = self.machines.get_mut(&host) {
                    machine.epoch = machine.epoch.max(epoch);
                }
                self.report(&host);
            }
            Act::Order { from, session, order } => self.order(from, session, order),
            Act::Probe { from, session, asked_at, order } => self.probe(from, session, asked_at, order),
            Act::Started { from, session, boots, order } => self.started(from, session, boots, order),
            Act::Ended { from, session, boots, order, detail, tried } => {
                self.ended(from, session, boots, &order, detail, tried);
            }
            Act::Ready { host, vm, incarnation, readiness } => {
                if let Some(instance) =
                    self.machines.get_mut(&host).and_then(|machine| machine.vms.get_mut(&vm))
                    && instance.running
                    && instance.incarnation == incarnation
                {
                    instance.readiness = Some(readiness);
                    self.report(&host);
                }
            }
            Act::Switch { host, level } => {
                let off = self.machines.get_mut(&host).is_some_and(|machine| machine.switch(level));
                if off {
                    self.later(SESSION_TIMEOUT, Act::SessionEnds(host));
                }
            }
            Act::Read { from, session, attempt, question } => {
                let Some(machine) = self.machines.get(&question.host) else { return };
                let (reads, timeout) = (question.confirm_reads, question.timeout.0);
                let result = machine.read(question.level, reads, timeout, attempt.is_some());
                let recovery = question.recovery;
                let input = match attempt {
                    Some(attempt) => Input::Fenced { recovery, attempt, result },
                    None => Input::Asked { recovery, result },
                };
                self.tell_replica(0, from, session, Incoming::Input(Box::new(input)));
            }
            Act::Booted { host, boots } => {
                let Some(machine) = self.machines.get_mut(&host) else { return };
                if machine.boots == boots && machine.powered {
                    machine.booting = false;
                    machine.petted = self.now;
                    let boot = machine.boot();
                    self.say(&format!("(host {host} has booted: {boot})"));
                }
            }
            Act::SessionEnds(host) => self.session_ends(&host),
            Act::Clone(host, machine) => self.clone_speaks(&host, machine),
            Act::Heal { host } => {
                let now = self.now;
                if let Some(machine) = self.machines.get_mut(&host) {
                    machine.agent_up = true;
                    machine.sequence = Beat::sequence_at(Instant::from_millis(now));
                    machine.petted = now;
                    machine.reported.clear();
                }
                self.say(&format!("(the agent of host {host} is back)"));
            }
            _ => {}
        }
    }

    fn tick(&mut self, host: &HostId) {
        let interval = self.policy_now().detection.heartbeat_interval.0;
        self.later(interval, Act::Tick(host.clone()));
        let (now, voters) = (self.now, self.voters());
        let watchdog = self.policy_now().lease.watchdog.0;
        self.hear_who_counts(host);
        let excepted = self.neighbours_vouch(host);
        let Some(machine) = self.machines.get_mut(host) else { return };
        if !machine.agent_runs() {
            let runs = machine.powered && !machine.booting && now > machine.petted + watchdog;
            match machine.self_fence {
                SelfFence::Watchdog if runs => self.reset(host),
                SelfFence::Trusted if runs => self.revoke_storage(host),
                SelfFence::Watchdog | SelfFence::Trusted | SelfFence::None => {}
            }
            return;
        }
        machine.sequence += 1;
        let held = machine.holds_lease(now, &voters);
        if !held {
            machine.held_since = None;
        }
        // As the guard does: VMs are stopped at three fifths of the watchdog's time, and once that moment has
        // passed only a lease saves them.
        let too_late = now >= machine.petted + watchdog * 3 / 5;
        if held || (excepted && !too_late) {
            machine.petted = now;
        } else if too_late {
            let running = machine.vms.values().filter(|instance| instance.running).count();
            if running > 0 {
                machine.stop_everything();
                self.say(&format!("(host {host} has lost its lease and stops {running} VMs)"));
            }
        }
        self.beat(host);
        self.report(host);
    }

    fn beat(&mut self, host: &HostId) {
        let now = self.now;
        let mut beats = Vec::new();
        if let Some(machine) = self.machines.get(host) {
            for (number, replica) in self.replicas.iter().enumerate().filter(|(_, replica)| replica.alive) {
                let lease_held_ms = machine.held_since.map_or(0, |since| (now - since).max(1));
                for path in (0..machine.paths).filter(|path| machine.reaches_on(*path, replica.id)) {
                    let beat = Beat {
                        boot: machine.boot(),
                        sequence: machine.sequence,
                        epoch: machine.epoch,
                        path,
                        lease_held_ms,
                        vm_digest: 0,
                        echo: machine.stamps.get(&replica.id).copied(),
                        electorate: machine.electorate.as_ref().map_or(0, |known| known.version),
                        watchdog: Millis::ZERO,
                        answer_freshness: Millis::ZERO,
                    };
                    let incoming = Incoming::Beat { host: host.clone(), beat, sent: now };
                    beats.push((number, replica.session, incoming));
                }
            }
        }
        for (number, session, beat) in beats {
            self.tell_replica(1, number, session, beat);
        }
    }

    /// What replicas tell over the sessions that it has with them.
    fn hear_who_counts(&mut self, host: &HostId) {
        let Some(machine) = self.machines.get_mut(host) else { return };
        let reached = self.replicas.iter().filter(|one| one.alive && machine.reaches(one.id));
        let newest = reached
            .filter_map(|one| one.controller.ledger().electorates().last())
            .max_by_key(|electorate| electorate.version);
        if newest.map(|newest| newest.version) > machine.electorate.as_ref().map(|known| known.version) {
            machine.electorate = newest.cloned();
        }
    }

    /// I11: a strict majority of those who count answers that it holds no lease.
    fn neighbours_vouch(&self, host: &HostId) -> bool {
        let (now, voters) = (self.now, self.voters());
        let Some(own) = self.machines.get(host) else { return false };
        if !own.hears_neighbours() {
            return false;
        }
        let Some(electorate) = &own.electorate else { return false };
        let address = |id: &HostId| self.inventory.hosts.get(id)?.neighbour_address.as_ref();
        // Most scenarios are not about addresses, and give none.
        let no_addresses = self.inventory.hosts.keys().all(|id| address(id).is_none());
        let vouches = |id: &HostId| {
            let asked = *id == *host || no_addresses || address(id).is_some();
            self.machines.get(id).is_some_and(|other| {
                asked && other.agent_runs() && other.hears_neighbours() && !other.holds_lease(now, &voters)
            })
        };
        electorate.hosts.iter().filter(|id| vouches(id)).count() * 2 > electorate.hosts.len()
    }

    /// The watchdog was not petted in time.
    fn reset(&mut self, host: &HostId) {
        let Some(machine) = self.machines.get_mut(host) else { return };
        machine.begin_boot();
        let boots = machine.boots;
        self.say(&format!("(the watchdog resets host {host})"));
        self.later(self.boot_takes, Act::Booted { host: host.clone(), boots });
        self.later(SESSION_TIMEOUT, Act::SessionEnds(host.clone()));
    }

    /// The storage takes no write of the host any more, so nothing of ours runs there.
    fn revoke_storage(&mut self, host: &HostId) {
        let Some(machine) = self.machines.get_mut(host) else { return };
        if machine.vms.values().any(|instance| instance.running) {
            machine.stop_everything();
            self.say(&format!("(the storage shuts host {host} out)"));
        }
    }

    /// Tells every replica that it reaches what is news to it, and everything now and then.
    pub(crate) fn report(&mut self, host: &HostId) {
        let (mut news, mut takes) = (Vec::new(), 0);
        let now = self.now;
        if let Some(machine) = self.machines.get_mut(host) {
            if now >= machine.report_again {
                machine.report_again = now + REPORT_AGAIN;
                machine.reported.clear();
            }
            takes = machine.report_takes;
            let report = machine.report();
            for (number, replica) in self.replicas.iter().enumerate() {
                if machine.reaches(replica.id)
                    && replica.alive
                    && machine.reported.get(&replica.id) != Some(&report)
                {
                    machine.reported.insert(replica.id, report.clone());
                    news.push((number, replica.session, report.clone()));
                }
            }
        }
        for (number, session, report) in news {
            self.tell_replica(takes, number, session, Incoming::Input(Box::new(Input::Reported(report))));
        }
    }

    /// Another machine has the host's disk and certificate, and runs nothing. Replicas give it a session when its boot
    /// may speak for the host, and it reports.
    fn clone_speaks(&mut self, host: &HostId, machine: Option<String>) {
        self.later(CLONE_TRIES_AGAIN, Act::Clone(host.clone(), machine.clone()));
        for number in 0..self.replicas.len() {
            let replica = &self.replicas[number];
            let record = replica.controller.ledger().hosts().get(host);
            let Some(record) = record.filter(|_| replica.alive) else { continue };
            let waits = replica.controller.ledger().other_boot_waits(host, CLONES_BOOT, machine.as_deref());
            if waits.is_some() {
                continue;
            }
            let report = AgentReport {
                host: host.clone(),
                boot: CLONES_BOOT,
                epoch: record.epoch,
                watchdog_armed: false,
                vms: Vec::new(),
                note: HostNote { machine: machine.clone(), ..HostNote::default() },
            };
            let session = replica.session;
            self.tell_replica(1, number, session, Incoming::Input(Box::new(Input::Reported(report))));
        }
    }

    pub(crate) fn lose_session(&mut self, host: &HostId) {
        self.later(SESSION_TIMEOUT, Act::SessionEnds(host.clone()));
    }

    fn session_ends(&mut self, host: &HostId) {
        let mut gone = Vec::new();
        if let Some(machine) = self.machines.get_mut(host) {
            for (number, replica) in self.replicas.iter().enumerate() {
                if !machine.reaches(replica.id) {
                    machine.reported.remove(&replica.id);
                    gone.push((number, replica.session));
                }
            }
        }
        for (number, session) in gone {
            self.tell_replica(0, number, session, Incoming::Input(Box::new(Input::AgentLeft(host.clone()))));
        }
    }

    fn answer(&mut self, span: u64, from: usize, session: u64, order: &Order, outcome: OrderOutcome) {
        let input = Input::Ordered {
            effect: order.effect.clone(),
            vm: order.vm.clone(),
            incarnation: order.incarnation,
            host: order.host.clone(),
            outcome,
        };
        self.tell_replica(span, from, session, Incoming::Input(Box::new(input)));
    }

    /// A neighbour asks a silent host, and brings its answer.
    fn probe(&mut self, from: usize, session: u64, asked_at: Instant, order: ProbeOrder) {
        let replica = self.replicas[from].id;
        let Some(neighbour) = self.machines.get(&order.neighbour) else { return };
        let Some(machine) = self.machines.get(&order.host) else { return };
        let meet = neighbour.hears_neighbours() && machine.hears_neighbours();
        if !neighbour.reaches(replica) || !machine.agent_runs() || !meet {
            return;
        }
        let reached = Reached { boot: machine.boot(), asked_at, neighbour: order.neighbour };
        self.tell_replica(4, from, session, Incoming::Reached(order.host, reached));
    }

    fn order(&mut self, from: usize, session: u64, order: Order) {
        let (now, voters) = (self.now, self.voters());
        let replica = self.replicas[from].id;
        let Some(machine) = self.machines.get_mut(&order.host) else { return };
        if !machine.reaches(replica) {
            let detail = format!("no answer from the agent within {ORDER_TIMEOUT} ms");
            self.answer(ORDER_TIMEOUT, from, session, &order, OrderOutcome::Unknown { detail });
            return;
        }
        if order.term < machine.term || order.host_epoch < machine.epoch {
            let detail = format!("term {} or epoch {} is old", order.term, order.host_epoch);
            self.answer(1, from, session, &order, OrderOutcome::Refused { detail });
            return;
        }
        machine.term = order.term;
        machine.epoch = order.host_epoch;
        let seen = machine.seen.get(&order.vm).copied().unwrap_or(Incarnation(0));
        if !order.start {
            machine.seen.insert(order.vm.clone(), seen.max(order.incarnation));
            let boots = machine.boots;
            let (detail, tried) = ("stopped for good by order", seen >= order.incarnation);
            self.later(50, Act::Ended { from, session, boots, order, detail, tried });
            return;
        }
        if order.incarnation <= seen {
            let outcome = match machine.vms.get(&order.vm) {
                Some(instance) if instance.incarnation == order.incarnation && instance.running => {
                    OrderOutcome::Running
                }
                // It is starting: the answer comes when that has ended.
                None => return self.later(50, Act::Order { from, session, order }),
                Some(instance) if instance.incarnation < order.incarnation => {
                    return self.later(50, Act::Order { from, session, order });
                }
                Some(_) => OrderOutcome::NotRunning {
                    detail: format!("incarnation {} was stopped for good", order.incarnation),
                    tried: true,
                },
            };
            self.answer(1, from, session, &order, outcome);
            return;
        }
        if !machine.holds_lease(now, &voters) {
            let detail = String::from("the host holds no lease");
            self.answer(1, from, session, &order, OrderOutcome::Refused { detail });
            return;
        }
        let fault = machine.faults.get_mut(&order.vm).filter(|(_, left)| *left > 0).map(|(fault, left)| {
            *left -= 1;
            *fault
        });
        match fault {
            Some(StartFault::Mute) => {}
            Some(StartFault::Dies { back_after }) => {
                machine.agent_up = false;
                let host = order.host;
                self.say(&format!("(the agent of host {host} dies with the order that it just got)"));
                // The system closes its connections at once, and starts it again.
                self.later(1, Act::SessionEnds(host.clone()));
                self.later(back_after, Act::Heal { host });
            }
            Some(fault @ (StartFault::Fails | StartFault::Refuses)) => {
                machine.seen.insert(order.vm.clone(), order.incarnation);
                let boots = machine.boots;
                let (span, detail, tried) = match fault {
                    StartFault::Fails => (50, "qemu exited with status 1", true),
                    _ => (1, "this host shuts down", false),
                };
                self.later(span, Act::Ended { from, session, boots, order, detail, tried });
            }
            None => {
                machine.seen.insert(order.vm.clone(), order.incarnation);
                let boots = machine.boots;
                self.later(self.start_takes, Act::Started { from, session, boots, order });
            }
        }
    }

    /// An incarnation was stopped for good, or has never begun to run.
    fn ended(&mut self, from: usize, session: u64, boots: u64, order: &Order, detail: &str, tried: bool) {
        let Some(machine) = self.machines.get_mut(&order.host) else { return };
        if machine.boots != boots || !machine.powered {
            return;
        }
        if machine.vms.get(&order.vm).is_none_or(|instance| instance.incarnation <= order.incarnation) {
            let gone = Instance { incarnation: order.incarnation, running: false, readiness: None };
            machine.vms.insert(order.vm.clone(), gone);
        }
        if machine.reaches(self.replicas[from].id) {
            self.answer(1, from, session, order, OrderOutcome::NotRunning { detail: detail.into(), tried });
        }
        self.report(&order.host);
    }

    fn started(&mut self, from: usize, session: u64, boots: u64, order: Order) {
        let replica = self.replicas[from].id;
        let Some(machine) = self.machines.get_mut(&order.host) else { return };
        if machine.boots != boots
            || !machine.powered
            || machine.seen.get(&order.vm) != Some(&order.incarnation)
        {
            return;
        }
        if machine.vms.get(&order.vm).is_some_and(|instance| instance.incarnation >= order.incarnation) {
            return;
        }
        let readiness = Some(Readiness::PoweredOn);
        let instance = Instance { incarnation: order.incarnation, running: true, readiness };
        machine.vms.insert(order.vm.clone(), instance);
        let reaches = machine.reaches(replica);
        let declared = self.inventory.vms.get(&order.vm).map(|vm| vm.readiness);
        let boot = self.guest_boot.get(&order.vm).copied().unwrap_or(Some(1000));
        if let (Some(readiness), Some(boot)) =
            (declared.filter(|wanted| *wanted > Readiness::PoweredOn), boot)
        {
            let (host, vm, incarnation) = (order.host.clone(), order.vm.clone(), order.incarnation);
            self.later(boot, Act::Ready { host, vm, incarnation, readiness });
        }
        if reaches {
            self.answer(1, from, session, &order, OrderOutcome::Running);
        }
        let host = order.host;
        self.report(&host);
    }
}
