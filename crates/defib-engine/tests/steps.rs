//! What a step of a leader looks at: with thousands of agents, not at all that they ever reported, and none of what
//! matters is forgotten.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use std::collections::{BTreeMap, VecDeque};

use defib_engine::{
    controller::{Controller, Effect, Input, Role},
    ledger::{Ledger, Place},
};
use defib_model::{
    BootId, ClusterTime, Command, EffectId, Entry, Epoch, HostId, HostNote, Incarnation, Instant, Inventory,
    LogIndex, Opinion, ReplicaId, Resources, Subject, UnixMillis, VmCondition, VmId, VmNote,
    command::{AgentReport, Committed, Operator, OpinionChange, StartResult, VmReport},
    inventory::{Definition, Host, Readiness, SelfFence, Vm},
};
use proptest::{collection::vec, prelude::*};

const ME: ReplicaId = ReplicaId(1);

fn host(number: usize) -> HostId {
    HostId::new(&format!("host-{number:05}")).unwrap()
}

fn vm(number: usize) -> VmId {
    VmId::new(&format!("vm-{number:06}")).unwrap()
}

fn operator() -> Operator {
    Operator { name: "anna".into(), reason: String::new() }
}

fn inventory(hosts: usize, vms_each: usize) -> Inventory {
    let mut inventory = Inventory::default();
    for number in 0..hosts {
        let declared = Host {
            self_fence: SelfFence::Watchdog,
            ..Host::new(host(number), Resources::new(128_000, 512 * 1024))
        };
        inventory.hosts.insert(host(number), declared);
        for at in 0..vms_each {
            let id = vm(number * vms_each + at);
            let declared = Vm {
                first_host: Some(host(number)),
                ..Vm::new(
                    id.clone(),
                    Resources::new(1000, 1024),
                    Definition { driver: "process".into(), arguments: vec!["guest".into()] },
                )
            };
            inventory.vms.insert(id, declared);
        }
    }
    inventory
}

/// A lone replica that leads, and all that agents and the log can do to it.
struct World {
    controller: Controller,
    index: u64,
    now: u64,
    /// What truly runs, by host.
    run: BTreeMap<HostId, BTreeMap<VmId, Incarnation>>,
    boots: BTreeMap<HostId, u128>,
    burnt: Vec<(HostId, VmId)>,
    /// Proposed, and not in the log yet.
    pending: VecDeque<Command>,
    /// Whether what is proposed is in the log at once.
    at_once: bool,
}

impl World {
    fn new(inventory: Inventory) -> Self {
        let controller = Controller::new(ME, 1, Ledger::new([ME].into()));
        let mut world = Self {
            controller,
            index: 0,
            now: 1000,
            run: BTreeMap::new(),
            boots: BTreeMap::new(),
            burnt: Vec::new(),
            pending: VecDeque::new(),
            at_once: true,
        };
        world.step(Input::Role(Role::Leader { term: 1 }));
        world.step(Input::Command(Command::SetInventory { inventory, replaces: 0, operator: operator() }));
        world
    }

    /// All hosts are in use, all VMs run, and all agents have reported so.
    fn settled(hosts: usize, vms_each: usize) -> Self {
        let mut world = Self::new(inventory(hosts, vms_each));
        for _ in 0..8 {
            for number in 0..hosts {
                let report = world.report(&host(number));
                world.step(Input::Reported(report));
            }
            world.now += 1000;
            world.step(Input::Woke);
        }
        let mut places = world.controller.ledger().vms().values();
        assert!(places.all(|record| matches!(record.place, Place::Running { .. })));
        world
    }

    /// What a host's agent would report now.
    fn report(&self, of: &HostId) -> AgentReport {
        let vms = self.run.get(of).into_iter().flatten().map(|(vm, incarnation)| VmReport {
            vm: vm.clone(),
            incarnation: *incarnation,
            running: true,
            readiness: Some(Readiness::PoweredOn),
            note: VmNote::default(),
        });
        let record = self.controller.ledger().hosts().get(of);
        AgentReport {
            host: of.clone(),
            boot: BootId(7 + self.boots.get(of).copied().unwrap_or(0)),
            epoch: record.map_or(Epoch(0), |record| record.epoch),
            watchdog_armed: false,
            vms: vms.collect(),
            note: HostNote::default(),
        }
    }

    fn step(&mut self, input: Input) {
        let (now, wall) = (Instant::from_millis(self.now), UnixMillis(self.now));
        for effect in self.controller.step(now, wall, input) {
            match effect {
                Effect::Propose(Entry { command, .. }) => self.pending.push_back(command),
                Effect::Start(order) => {
                    let there = self.run.entry(order.restart.to().clone()).or_default();
                    there.insert(order.restart.vm().clone(), order.restart.incarnation());
                }
                Effect::Burn(order) => {
                    self.run.entry(order.host.clone()).or_default().remove(&order.vm);
                    self.burnt.push((order.host, order.vm));
                }
                _ => {}
            }
        }
        if self.controller.leads() {
            assert_eq!(self.controller.overlooked(), Vec::<&HostId>::new());
        }
        while self.at_once && self.commit_next() {}
    }

    fn commit_next(&mut self) -> bool {
        let Some(command) = self.pending.pop_front() else { return false };
        self.commit(command);
        true
    }

    fn commit(&mut self, command: Command) {
        self.index += 1;
        let (at, wall) = (ClusterTime(self.now), UnixMillis(self.now));
        let entry = Entry { at, wall, proposer: ME, command };
        self.step(Input::Committed(Committed { index: LogIndex(self.index), entry }));
    }

    fn opinion(&mut self, of: &HostId, opinion: Opinion) {
        let epoch = self.controller.ledger().hosts().get(of).map_or(Epoch(0), |record| record.epoch);
        let changes = vec![OpinionChange { host: of.clone(), epoch, opinion, silent_ms: 1000 }];
        self.commit(Command::Opinions { observer: ME, session: 1, changes });
    }

    fn ended(&mut self, vm: &VmId, host: &HostId, incarnation: Incarnation) {
        let result = StartResult::NotRunning { detail: "it ended".into(), tried: true };
        let effect = EffectId { cause: LogIndex(1), subject: Subject::Vm(vm.clone()), attempt: 1 };
        let (vm, host) = (vm.clone(), host.clone());
        self.commit(Command::StartEnded { effect, vm, incarnation, host, result });
    }
}

/// A VM's record changes by another word than a report: what was reported before means something else now.
#[test]
fn what_an_agent_reported_long_ago_is_looked_at_again_when_its_vm_has_another_place() {
    let mut world = World::settled(2, 1);
    let (from, vm) = (host(0), vm(0));
    let incarnation = world.run[&from][&vm];
    assert_eq!(world.burnt, []);
    // It ended there by its agent's word, while what the agent reported last says that it runs.
    world.now += 1000;
    world.ended(&vm, &from, incarnation);
    assert!(world.burnt.contains(&(from, vm)), "the old incarnation is burnt: {:?}", world.burnt);
}

type Dice = (u8, u8, u8, u8, u8);

const HOSTS: usize = 3;
const VMS_EACH: usize = 2;

/// A report that is true, or of the past, or not what the log has.
fn any_report(world: &World, of: &HostId, (a, b, c): (u8, u8, u8)) -> AgentReport {
    let mut report = world.report(of);
    let other = VmReport {
        vm: vm(usize::from(b) % (HOSTS * VMS_EACH + 1)),
        incarnation: Incarnation(u64::from(c % 4)),
        running: c < 128,
        readiness: Some(Readiness::PoweredOn),
        note: VmNote::default(),
    };
    match a % 10 {
        0 => report.vms.push(other),
        1 => drop(report.vms.pop()),
        2 => report.vms.iter_mut().take(1).for_each(|vm| vm.running = false),
        3 => report.epoch = Epoch(report.epoch.0.saturating_sub(1)),
        4 => report.boot = BootId(report.boot.0 + u128::from(b % 3)),
        5 => report.watchdog_armed = true,
        6 => drop(report.note.unprotected.insert(format!("uuid-{}", b % 2), "db".into())),
        7 => {
            let broken =
                VmNote { condition: VmCondition::Paused, reboots: u32::from(b % 3), ..VmNote::default() };
            report.vms.iter_mut().for_each(|vm| vm.note = broken.clone());
        }
        _ => {}
    }
    report
}

fn play(world: &mut World, (what, who, a, b, c): Dice) {
    let of = host(usize::from(who) % HOSTS);
    match what % 20 {
        0..=5 => {
            let report = any_report(world, &of, (a, b, c));
            world.step(Input::Reported(report));
        }
        6..=9 => drop(world.commit_next()),
        10 => drop(world.pending.pop_front()),
        11 | 12 => {
            let opinion = [Opinion::Asks, Opinion::Dead, Opinion::Alive, Opinion::Alive][usize::from(a % 4)];
            world.opinion(&of, opinion);
        }
        13 => {
            world.now += u64::from(a) * 40;
            world.step(Input::Woke);
        }
        14 => {
            let epoch = world.controller.ledger().hosts().get(&of).map_or(Epoch(0), |record| record.epoch);
            world.commit(Command::ConfirmDead { host: of, epoch, operator: operator() });
        }
        15 => {
            let vm = vm(usize::from(b) % (HOSTS * VMS_EACH));
            let record = world.controller.ledger().vms().get(&vm);
            if let Some((at, incarnation)) =
                record.and_then(|record| Some((record.occupied_host()?.clone(), record.incarnation)))
            {
                world.ended(&vm, &at, incarnation);
            }
        }
        16 => {
            let mut changed = inventory(HOSTS, VMS_EACH);
            if a % 2 == 0 {
                changed.vms.remove(&vm(usize::from(b) % (HOSTS * VMS_EACH)));
            }
            if a % 3 == 0 {
                changed.vms.retain(|_, vm| vm.first_host.as_ref() != Some(&of));
                changed.hosts.remove(&of);
            }
            let replaces = world.controller.ledger().inventory_version();
            world.commit(Command::SetInventory { inventory: changed, replaces, operator: operator() });
        }
        17 => world.step(Input::AgentLeft(of)),
        18 => {
            *world.boots.entry(of.clone()).or_default() += 1;
            world.run.remove(&of);
        }
        _ => {
            // A snapshot takes the place of the ledger, or the lead is lost and comes back.
            if a % 2 == 0 {
                let ledger = world.controller.ledger().clone();
                let _ = world.controller.restore(Instant::from_millis(world.now), ledger);
            } else {
                world.step(Input::Role(Role::Follower));
                world.pending.clear();
                let term = world.controller.ledger().term() + 1;
                world.step(Input::Role(Role::Leader { term }));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// [`World::step`] compares with a walk over all reports after each step.
    #[test]
    fn whatever_happens_a_leader_overlooks_no_report_that_asks_for_something(
        dice in vec((any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()), 1..150),
    ) {
        let mut world = World::settled(HOSTS, VMS_EACH);
        world.at_once = false;
        for dice in dice {
            play(&mut world, dice);
        }
    }
}
