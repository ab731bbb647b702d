//! BMCs and outlets, and a replica's workers that read and switch them. Repeats what `crates/defib-act` and
//! `crates/defib-bmc` do over HTTPS: look first, ask, look until it is proven, and only readings count.

use std::collections::BTreeMap;

use defib_engine::controller::{Input, PowerQuestion};
use defib_model::command::{FenceResult, PowerOffReading};

use super::{Act, End, Replica, World, core::Message, log::RaftInput};
use crate::{clock::MS, fault::BmcFault, mutants};

/// How one BMC, or one outlet, is at the moment: faults that are on, by number of episodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct BmcState {
    hang: u32,
    slow_ms: u64,
    conflict: u32,
    busy: u32,
    ignores: u32,
    lies: u32,
    wrong: u32,
    dark: u32,
}

impl BmcState {
    /// A fault begins, or ends.
    pub(crate) fn set(&mut self, fault: BmcFault, on: bool) {
        let count = match fault {
            BmcFault::Hang => &mut self.hang,
            BmcFault::Slow(ms) => {
                self.slow_ms = if on { self.slow_ms + ms } else { self.slow_ms.saturating_sub(ms) };
                return;
            }
            BmcFault::Conflict => &mut self.conflict,
            BmcFault::Busy => &mut self.busy,
            BmcFault::Ignores => &mut self.ignores,
            BmcFault::LiesOff => &mut self.lies,
            BmcFault::Wrong => &mut self.wrong,
            BmcFault::Reboots => &mut self.dark,
        };
        *count = if on { *count + 1 } else { count.saturating_sub(1) };
    }

    pub(crate) fn heal(&mut self) {
        *self = Self::default();
    }
}

/// What a worker was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskKind {
    Ask,
    Fence { attempt: u32 },
}

/// What one request brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    On,
    Off,
    Wrong,
    Busy,
    Accepted,
    Refused,
}

/// A step of one method of a task.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Look,
    Arrives { write: bool },
    Answered(Answer),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Judged {
    Off(u32),
    StillOn(String),
    Wrong,
    Unknown(String),
}

#[derive(Debug, Default)]
struct Method {
    off: u32,
    requests: u32,
    accepted: u32,
    /// Whether the machine at the other end of the connection was the wrong one when it was looked at.
    wrong: bool,
    failures: u32,
    next_request: u64,
    poll_ms: u64,
    /// Whether the last good answer read on.
    on: bool,
    trouble: bool,
    result: Option<Judged>,
}

/// A worker of a replica, reading or switching one level of one host.
#[derive(Debug)]
pub(crate) struct Task {
    replica: usize,
    life: u32,
    host: usize,
    kind: TaskKind,
    question: PowerQuestion,
    deadline: u64,
    methods: Vec<Method>,
}

const POLL_MIN_MS: u64 = 10;
const POLL_MAX_MS: u64 = 250;
const ACCEPTED_MAX: u32 = 4;
const RESEND_AFTER: u64 = 2_000 * MS;

impl World {
    pub(crate) fn begin_task(&mut self, replica: usize, question: PowerQuestion, kind: TaskKind) {
        let Some(host) = self.host_numbers.get(&question.host).copied() else { return };
        let id = self.next_task;
        self.next_task += 1;
        let deadline = self.now + question.timeout.as_nanos();
        let methods: Vec<Method> = question.methods.0.iter().map(|_| Method::default()).collect();
        let count = methods.len();
        let life = self.replicas[replica].life;
        self.tasks.insert(id, Task { replica, life, host, kind, question, deadline, methods });
        for method in 0..count {
            self.later(0, Act::Bmc { task: id, method, step: Step::Look });
        }
        self.queue.push(deadline, Act::TaskDue { task: id });
    }

    pub(crate) fn bmc_step(&mut self, id: u64, method: usize, step: Step) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (replica, host, deadline) = (task.replica, task.host, task.deadline);
        if !self.lives(replica, task.life) {
            self.tasks.remove(&id);
            return;
        }
        let paused = self.replicas[replica].paused_until;
        if paused > self.now && !matches!(step, Step::Arrives { .. }) {
            return self.queue.push(paused, Act::Bmc { task: id, method, step });
        }
        if self.now >= deadline || task.methods[method].result.is_some() {
            return;
        }
        match step {
            Step::Look => {
                let span = self.stream_transit();
                if self.network.both_ways(End::Replica(replica), End::Bmc(host)) {
                    self.later(span, Act::Bmc { task: id, method, step: Step::Arrives { write: false } });
                }
            }
            Step::Arrives { write } => self.request_arrives(id, method, write),
            Step::Answered(answer) => self.request_answered(id, method, answer),
        }
    }

    /// The BMC itself.
    fn request_arrives(&mut self, id: u64, method: usize, write: bool) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (host, level, replica) = (task.host, task.question.level, task.replica);
        let machine = &self.machines[host];
        let Some(bmc) = machine.bmcs.get(&(level, method)) else { return };
        // A BMC dies with the feed of its host; an outlet has another one.
        let single = machine.levels.get(level) == Some(&1);
        if bmc.hang > 0 || bmc.dark > 0 || (single && !machine.mains) {
            return;
        }
        let off = if single { !machine.powered } else { machine.switched_off.contains(&(level, method)) };
        let slow = bmc.slow_ms;
        // A connection does not move to another machine.
        let wrong = if write { task.methods[method].wrong } else { bmc.wrong > 0 };
        let answer = if wrong {
            Answer::Wrong
        } else if bmc.busy > 0 {
            Answer::Busy
        } else if write {
            if bmc.conflict > 0 { Answer::Refused } else { Answer::Accepted }
        } else if off || bmc.lies > 0 {
            Answer::Off
        } else {
            Answer::On
        };
        let lied = answer == Answer::Off && !off;
        let obeys = answer == Answer::Accepted && bmc.ignores == 0;
        if lied {
            self.checks.excuse(host);
        }
        if write {
            self.counts.bmc_writes += 1;
            if answer == Answer::Wrong {
                self.checks.wrong_machine_written(self.now, host);
            }
        }
        if let Some(method) = self.tasks.get_mut(&id).and_then(|task| task.methods.get_mut(method)) {
            method.wrong = wrong;
        }
        if obeys {
            let span = slow * MS + self.chance.bmc.between(5, 120) * MS;
            self.later(span, Act::BmcObeys { host, level, method });
        }
        let span = self.stream_transit() + slow * MS + self.chance.bmc.between(1, 20) * MS;
        if self.network.both_ways(End::Replica(replica), End::Bmc(host)) {
            self.later(span, Act::Bmc { task: id, method, step: Step::Answered(answer) });
        }
    }

    /// An order that was accepted is obeyed.
    pub(crate) fn bmc_obeys(&mut self, host: usize, level: usize, method: usize) {
        let machine = &mut self.machines[host];
        machine.switched_off.insert((level, method));
        let methods = machine.levels.get(level).copied().unwrap_or(0);
        let off = (0..methods).all(|method| machine.switched_off.contains(&(level, method)));
        if !off || !machine.powered {
            return;
        }
        let id = machine.id.clone();
        self.say(|| format!("host {id} is switched off"));
        self.counts.fenced_off += 1;
        self.lose_power(host);
        // Somebody comes and looks, and switches it on again.
        if !self.healing && self.chance.operators.permille(700) {
            let (boots, span) =
                (self.machines[host].boots, self.chance.operators.between(3_000, 20_000) * MS);
            self.later(span, Act::PowerOn { host, boots });
        }
    }

    fn request_answered(&mut self, id: u64, number: usize, answer: Answer) {
        let now = self.now;
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let spacing = task.question.confirm_spacing.as_nanos();
        let wanted = task.question.confirm_reads.max(1);
        let ask = task.kind == TaskKind::Ask;
        let replica = task.replica;
        let method = &mut task.methods[number];
        let mut pause = 0;
        match answer {
            Answer::Off => {
                method.off += 1;
                (method.trouble, method.failures) = (false, 0);
                if method.off >= wanted {
                    method.result = Some(Judged::Off(method.off));
                    return self.task_maybe_done(id);
                }
                pause = spacing;
            }
            Answer::On if ask => {
                method.result = Some(Judged::StillOn("its BMC reads On".into()));
                return self.task_maybe_done(id);
            }
            Answer::Wrong => {
                method.result = Some(Judged::Wrong);
                return self.task_maybe_done(id);
            }
            Answer::Busy if ask => {
                method.result = Some(Judged::Unknown("503 Service Unavailable".into()));
                return self.task_maybe_done(id);
            }
            Answer::On => {
                (method.off, method.on, method.trouble) = (0, true, false);
                if method.accepted < ACCEPTED_MAX && now >= method.next_request {
                    return self.ask_gate(id, number, replica);
                }
                method.poll_ms = (method.poll_ms * 2).clamp(POLL_MIN_MS, POLL_MAX_MS);
                pause = method.poll_ms * MS;
            }
            Answer::Accepted => {
                method.accepted += 1;
                method.failures = 0;
                method.poll_ms = 0;
                method.next_request = now + RESEND_AFTER;
            }
            Answer::Refused => {
                method.failures += 1;
                method.poll_ms = 0;
                method.next_request = now + backoff(method.failures);
            }
            Answer::Busy => {
                method.failures += 1;
                (method.off, method.trouble) = (0, true);
                pause = backoff(method.failures);
            }
        }
        self.later(pause, Act::Bmc { task: id, method: number, step: Step::Look });
    }

    /// Before each write: does this replica still lead, and does the intent still stand?
    fn ask_gate(&mut self, id: u64, method: usize, replica: usize) {
        let now = self.now;
        if mutants::fence_without_lead() {
            return self.gate_answered(replica, id, method, now, true);
        }
        let Some(run) = self.replicas[replica].run() else { return };
        run.next_read += 1;
        let context = run.next_read;
        run.reads.insert(context, (id, method, now));
        self.raft_input(replica, RaftInput::Read(context));
    }

    pub(crate) fn gate_answered(
        &mut self,
        replica: usize,
        id: u64,
        method: usize,
        asked: u64,
        confirmed: bool,
    ) {
        let Some(task) = self.tasks.get(&id) else { return };
        let TaskKind::Fence { attempt } = task.kind else { return };
        let (recovery, host, deadline) = (task.question.recovery, task.host, task.deadline);
        if self.now >= deadline {
            return;
        }
        let stands = mutants::fence_without_lead() || self.intent_stands(replica, recovery, attempt);
        if !confirmed || !stands {
            if let Some(task) = self.tasks.get_mut(&id) {
                let detail = "this replica does not lead any more".to_string();
                task.methods[method].result = Some(Judged::Unknown(detail));
            }
            return self.task_maybe_done(id);
        }
        // As the gate's answers do: whoever was confirmed so long ago may have a successor by now.
        let election = self.plan.log.tick_ms * self.plan.log.election_ticks as u64 * MS;
        if self.now - asked >= election && !mutants::fence_without_lead() {
            return self.ask_gate(id, method, replica);
        }
        let writer = self.replicas[replica].id;
        self.checks.bmc_write(self.now, writer, &self.machines[host].id, attempt, asked);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.methods[method].requests += 1;
        }
        let span = self.stream_transit();
        if self.network.both_ways(End::Replica(replica), End::Bmc(host)) {
            self.later(span, Act::Bmc { task: id, method, step: Step::Arrives { write: true } });
        }
    }

    pub(crate) fn task_due(&mut self, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let paused = self.replicas[task.replica].paused_until;
        if paused > self.now {
            return self.queue.push(paused, Act::TaskDue { task: id });
        }
        for method in task.methods.iter_mut().filter(|method| method.result.is_none()) {
            let requests = method.requests;
            method.result = Some(if method.on && method.off == 0 && !method.trouble {
                Judged::StillOn(format!("its BMC reads On after {requests} requests to power off"))
            } else {
                Judged::Unknown(format!("no usable answer in time ({requests} requests to power off)"))
            });
        }
        self.task_maybe_done(id);
    }

    fn task_maybe_done(&mut self, id: u64) {
        let Some(task) = self.tasks.get(&id) else { return };
        if task.methods.iter().any(|method| method.result.is_none()) {
            return;
        }
        let Some(task) = self.tasks.remove(&id) else { return };
        if !self.lives(task.replica, task.life) {
            return;
        }
        let result = judge(&task);
        let recovery = task.question.recovery;
        let input = match task.kind {
            TaskKind::Ask => Input::Asked { recovery, result },
            TaskKind::Fence { attempt } => Input::Fenced { recovery, attempt, result },
        };
        self.tell_core(task.replica, Message::Input(input));
    }
}

/// The attempts in which the replica that leads has written to a host's BMCs and does not know yet what came of it.
pub(crate) fn fences_under_way(
    tasks: &BTreeMap<u64, Task>,
    leader: Option<(usize, &Replica)>,
    host: usize,
) -> Vec<u32> {
    let Some((number, replica)) = leader else { return Vec::new() };
    let under_way = |task: &&Task| {
        task.host == host
            && task.replica == number
            && replica.life == task.life
            && task.methods.iter().any(|method| method.requests > 0 && method.result.is_none())
    };
    let attempt = |task: &Task| match task.kind {
        TaskKind::Fence { attempt } => Some(attempt),
        TaskKind::Ask => None,
    };
    tasks.values().filter(under_way).filter_map(attempt).collect()
}

const fn backoff(failures: u32) -> u64 {
    let doubled = 50 << if failures < 6 { failures } else { 6 };
    (if doubled < 2000 { doubled } else { 2000 }) * MS
}

fn judge(task: &Task) -> FenceResult {
    let (level, methods) = (task.question.level, task.methods.len());
    let (mut readings, mut wrong, mut on, mut unknown) = (Vec::new(), false, None, None);
    for (number, method) in task.methods.iter().enumerate() {
        match &method.result {
            Some(Judged::Off(reads)) => {
                let host = &task.question.host;
                let identity =
                    if methods == 1 { format!("uuid-{host}") } else { format!("uuid-{host}-{number}") };
                readings.push(PowerOffReading { level, method: number, identity, reads: *reads });
            }
            Some(Judged::StillOn(detail)) => on = Some(detail.clone()),
            Some(Judged::Unknown(detail)) => unknown = Some(detail.clone()),
            Some(Judged::Wrong) => wrong = true,
            None => unknown = Some("no answer".into()),
        }
    }
    if wrong {
        FenceResult::WrongMachine { detail: "its identity is not the recorded one".into() }
    } else if let Some(detail) = on {
        FenceResult::StillOn { detail }
    } else if unknown.is_some() || readings.is_empty() {
        FenceResult::Unknown { detail: unknown.unwrap_or_default() }
    } else {
        FenceResult::Off(readings)
    }
}
