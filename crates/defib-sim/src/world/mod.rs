//! The simulated world: one thread, one queue, true time in nanoseconds.
//!
//! What is real here: the controllers, observers, ledgers and guards, the wire codec, and the replicas of the log on
//! disks that lose and tear. What is not: clocks, networks, disks, BMCs, hypervisors, and the shells between them,
//! whose translations are repeated here. Everything happens in the order of (time, order of scheduling), so the same
//! plan gives the same run, to the last bit.

mod agent;
mod bmc;
mod core;
mod episodes;
mod hypervisor;
mod log;
mod machine;
mod neighbours;
mod network;
mod observer;
mod operator;
mod probes;
mod queue;
mod replica;
mod sessions;
mod setup;

use std::collections::BTreeMap;

use defib_model::{HostId, UnixMillis, VmId};

pub(crate) use agent::Agent;
pub(crate) use bmc::Task;
pub(crate) use hypervisor::Hypervisor;
pub(crate) use machine::Machine;
pub(crate) use network::{End, Network};
pub(crate) use queue::{Act, Process, Queue};
pub(crate) use replica::{Fate, Replica};
pub(crate) use sessions::Connection;

use crate::{check::Checks, clock::MS, counts::Counts, plan::Plan, rng::Rng, transcript::Transcript};

/// One generator per concern.
#[derive(Debug)]
pub(crate) struct Chance {
    pub(crate) network: Rng,
    pub(crate) disk: Rng,
    pub(crate) bmc: Rng,
    pub(crate) hosts: Rng,
    pub(crate) threads: Rng,
    pub(crate) secrets: Rng,
    pub(crate) operators: Rng,
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    pub(crate) plan: Plan,
    /// True time in nanoseconds.
    pub(crate) now: u64,
    /// The moment from which the transcript counts.
    pub(crate) origin: u64,
    pub(crate) queue: Queue,
    pub(crate) chance: Chance,
    pub(crate) network: Network,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) host_numbers: BTreeMap<HostId, usize>,
    pub(crate) vm_numbers: BTreeMap<VmId, usize>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) tasks: BTreeMap<u64, Task>,
    pub(crate) next_task: u64,
    /// Episodes do no more harm from now on.
    pub(crate) healing: bool,
    pub(crate) checks: Checks,
    pub(crate) counts: Counts,
    /// Hosts whose death was proven: when, in the transcript's milliseconds, and by what.
    pub(crate) deaths: Vec<(u64, HostId, String)>,
    pub(crate) transcript: Transcript,
    /// The cluster's number, by which directories are told apart.
    pub(crate) cluster: u128,
    pub(crate) discard: slog::Logger,
}

/// The wall clock when a world begins.
const EPOCH_MS: u64 = 1_800_000_000_000;

impl World {
    /// A world in which nothing has happened: replicas about to start, hosts without power.
    #[must_use]
    pub fn new(plan: Plan, record: bool) -> Self {
        let seed = plan.seed;
        let chance = Chance {
            network: Rng::new(seed, "network"),
            disk: Rng::new(seed, "disk"),
            bmc: Rng::new(seed, "bmc"),
            hosts: Rng::new(seed, "hosts"),
            threads: Rng::new(seed, "threads"),
            secrets: Rng::new(seed, "secrets"),
            operators: Rng::new(seed, "operators"),
        };
        let mut world = Self {
            now: 0,
            origin: 0,
            queue: Queue::default(),
            chance,
            network: Network::new(plan.network, plan.replica_ppm.len(), plan.hosts.len()),
            replicas: Vec::new(),
            machines: plan.hosts.iter().enumerate().map(|(at, host)| Machine::new(at, host, &plan)).collect(),
            host_numbers: plan.host_numbers(),
            vm_numbers: plan.inventory.vms.keys().enumerate().map(|(at, vm)| (vm.clone(), at)).collect(),
            connections: Vec::new(),
            tasks: BTreeMap::new(),
            next_task: 1,
            healing: false,
            checks: Checks::new(&plan),
            counts: Counts::default(),
            deaths: Vec::new(),
            transcript: Transcript::new(record),
            cluster: u128::from(seed) | 1 << 100,
            discard: slog::Logger::root(slog::Discard, slog::o!()),
            plan,
        };
        for number in 0..world.plan.replicas {
            world.add_replica(number as u64 + 1, false);
        }
        world
    }

    /// The wall clock, right.
    pub(crate) const fn wall(&self) -> UnixMillis {
        UnixMillis(EPOCH_MS + self.now / MS)
    }

    /// Milliseconds since the transcript's zero.
    pub(crate) const fn millis(&self) -> u64 {
        self.now.saturating_sub(self.origin) / MS
    }

    /// Something that only the world knows; shown in brackets.
    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        if self.transcript.records() {
            let at = self.millis();
            self.transcript.push(at, format!("({})", text()));
        }
    }

    pub(crate) fn later(&mut self, span: u64, act: Act) {
        self.queue.push(self.now + span, act);
    }

    /// Lets everything happen that is due until `end`, or until a checker objects; whether none did.
    pub(crate) fn run_until(&mut self, end: u64) -> bool {
        while let Some((at, act)) = self.queue.pop_until(end) {
            self.now = self.now.max(at);
            self.counts.acts += 1;
            self.act(act);
            if self.checks.violated() {
                return false;
            }
        }
        self.now = self.now.max(end);
        true
    }

    fn act(&mut self, act: Act) {
        if let Some(process) = act.process()
            && let Some(until) = self.paused_until(process)
        {
            return self.defer(process, until, act);
        }
        match act {
            Act::Datagram { to, at } => self.datagram_arrives(to, at),
            Act::Raft(message) => self.raft_message(*message),
            Act::RaftTick { replica, life } => self.raft_tick(replica, life),
            Act::RaftSynced { replica, life } => self.raft_synced(replica, life),
            Act::RaftAnnounce { replica, life } => self.raft_announce(replica, life),
            Act::CoreDue { replica, life } => self.core_due(replica, life),
            Act::ObserverDue { replica, life } => self.observer_due(replica, life),
            Act::ToCore { replica, life, message } => {
                if self.lives(replica, life) {
                    self.core_takes(replica, *message);
                }
            }
            Act::ToObserver { replica, life, instruction } => {
                if self.lives(replica, life) {
                    self.observer_told(replica, *instruction);
                }
            }
            Act::StartReplica { replica, life } => self.start_replica(replica, life),
            Act::Resume(process) => self.resume(process),
            Act::Beat { host, life } => self.beat(host, life),
            Act::GuardDue { host, life } => self.guard_due(host, life),
            Act::Tend { host, life } => self.tend(host, life),
            Act::StartAgent { host, boots } => self.start_agent(host, boots),
            Act::Booted { host, boots } => self.booted(host, boots),
            Act::WatchdogDue { host, boots } => self.watchdog_due(host, boots),
            Act::Hypervisor { host, life, job } => self.hypervisor_step(host, life, job),
            Act::GuestReady { host, boots, vm, incarnation } => {
                self.guest_ready(host, boots, vm, incarnation)
            }
            Act::VmEnded { host, boots, vm, incarnation } => self.vm_ended(host, boots, vm, incarnation),
            Act::Connect { host, life, replica } => self.connect(host, life, replica),
            Act::Hello { connection } => self.hello(connection),
            Act::ToAgent { connection, message } => self.agent_hears(connection, *message),
            Act::ToReplica { connection, message } => self.replica_hears(connection, *message),
            Act::CheckConnection { connection, side } => self.check_connection(connection, side),
            Act::Question { from, to, life, asked } => self.neighbour_asked(from, to, life, asked),
            Act::Answer { from, to, life, asked, answer } => {
                self.neighbour_answered(from, to, life, asked, answer);
            }
            Act::Probe { to, carrier, probe } => self.probed(to, carrier, probe),
            Act::ProbeAnswer { carrier, answered } => self.probe_carried(carrier, *answered),
            Act::QuestionsOver { host, life, round } => self.questions_over(host, life, round),
            Act::Bmc { task, method, step } => self.bmc_step(task, method, step),
            Act::BmcObeys { host, level, method } => self.bmc_obeys(host, level, method),
            Act::TaskDue { task } => self.task_due(task),
            Act::Begin(number) => self.begin_episode(number),
            Act::End(number) => self.end_episode(number),
            Act::Operator { number, tries } => self.operator_acts(number, tries),
            Act::Replace { old, new } => self.replace_until_done(old, new),
            Act::Flap { host, left } => self.flap(host, left),
            Act::PowerOn { host, boots } => self.power_on_if(host, boots),
        }
    }

    /// Until when a process stands still, if it does.
    fn paused_until(&self, process: Process) -> Option<u64> {
        let until = match process {
            Process::Replica(replica) => self.replicas[replica].paused_until,
            Process::Agent(host) => self.machines[host].paused_until,
        };
        (until > self.now).then_some(until)
    }

    fn defer(&mut self, process: Process, _until: u64, act: Act) {
        match process {
            Process::Replica(replica) => self.replicas[replica].deferred.push(act),
            Process::Agent(host) => self.machines[host].deferred.push(act),
        }
    }

    /// A process stops; what reaches it waits.
    pub(crate) fn pause(&mut self, process: Process, until: u64) {
        let (paused_until, paused_at) = match process {
            Process::Replica(replica) => {
                let replica = &mut self.replicas[replica];
                (&mut replica.paused_until, &mut replica.paused_at)
            }
            Process::Agent(host) => {
                let machine = &mut self.machines[host];
                (&mut machine.paused_until, &mut machine.paused_at)
            }
        };
        if *paused_until <= self.now {
            *paused_at = self.now;
        }
        *paused_until = until.max(*paused_until);
        self.queue.push(until, Act::Resume(process));
        self.watch_connections_of(process);
    }

    /// It goes on: first what its threads have told each other, then what the network holds for it, then the deadlines.
    fn resume(&mut self, process: Process) {
        let deferred = match process {
            Process::Replica(replica) => {
                self.checks.links_changed(self.now);
                self.who_reaches_a_majority();
                self.checks.reached_a_majority(self.now, self.replicas[replica].id);
                std::mem::take(&mut self.replicas[replica].deferred)
            }
            Process::Agent(host) => {
                self.checks.agent_began(self.now, host);
                std::mem::take(&mut self.machines[host].deferred)
            }
        };
        // What waits in queues between threads is older than what those threads will say now.
        let (told, rest): (Vec<Act>, Vec<Act>) =
            deferred.into_iter().partition(|act| matches!(act, Act::ToCore { .. } | Act::ToObserver { .. }));
        let (received, rest): (Vec<Act>, Vec<Act>) =
            rest.into_iter().partition(|act| matches!(act, Act::Datagram { .. } | Act::Raft(_)));
        for act in told.into_iter().chain(received) {
            self.act(act);
        }
        if let Process::Replica(replica) = process {
            self.observer_was_late(replica);
        }
        let (timers, rest): (Vec<Act>, Vec<Act>) = rest.into_iter().partition(Act::is_timer);
        for act in rest.into_iter().chain(timers) {
            self.act(act);
        }
    }
}
