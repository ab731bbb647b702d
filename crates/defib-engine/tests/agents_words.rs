//! What a host's agent may bring about by what it says: nothing about other hosts, and not as often as it likes.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use std::collections::BTreeMap;

use defib_engine::{
    controller::{Controller, Effect, Input, OrderOutcome, Role},
    ledger::Ledger,
};
use defib_model::{
    BootId, ClusterTime, Command, EffectId, Entry, Epoch, HostId, HostNote, Incarnation, Instant, Inventory,
    LogIndex, ReplicaId, Resources, UnixMillis, VmId,
    command::{AgentReport, Committed, Goodbye, Operator, Placement, StartResult, VmReport},
    inventory::{Definition, Host, Readiness, SelfFence, Vm},
};

fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

fn vm() -> VmId {
    VmId::new("v1").unwrap()
}

fn inventory() -> Inventory {
    let declared = |name: &str| Host {
        self_fence: SelfFence::Watchdog,
        ..Host::new(host(name), Resources::new(4000, 8192))
    };
    let v1 = Vm {
        first_host: Some(host("h1")),
        ..Vm::new(
            vm(),
            Resources::new(1000, 1024),
            Definition { driver: "process".into(), arguments: vec!["guest".into()] },
        )
    };
    let hosts = ["h1", "h2"].map(|name| (host(name), declared(name)));
    Inventory { hosts: hosts.into(), vms: BTreeMap::from([(vm(), v1)]), ..Inventory::default() }
}

/// A lone replica that leads: what it proposes is committed at once.
struct Leader {
    controller: Controller,
    index: u64,
    now: u64,
    committed: Vec<Command>,
    orders: Vec<EffectId>,
}

impl Leader {
    /// Both hosts are in use, and the VM is ordered to start on the first one.
    fn new() -> Self {
        let controller = Controller::new(ReplicaId(1), 1, Ledger::new([ReplicaId(1)].into()));
        let mut leader = Self { controller, index: 0, now: 1000, committed: Vec::new(), orders: Vec::new() };
        leader.step(Input::Role(Role::Leader { term: 1 }));
        let operator = Operator { name: "anna".into(), reason: String::new() };
        leader.step(Input::Command(Command::SetInventory { inventory: inventory(), replaces: 0, operator }));
        for name in ["h1", "h2"] {
            leader.step(Input::Reported(leader.report(name, false)));
        }
        let host_epoch = leader.epoch("h1");
        let placement = Placement {
            vm: vm(),
            incarnation: Incarnation(1),
            host: host("h1"),
            host_epoch,
            because: String::new(),
            broken: Vec::new(),
        };
        if leader.orders.is_empty() {
            let place = Command::Place { placements: vec![placement], unplaced: Vec::new() };
            leader.step(Input::Command(place));
        }
        assert_eq!(leader.orders.len(), 1, "{:?}", leader.committed);
        leader
    }

    fn epoch(&self, name: &str) -> Epoch {
        self.controller.ledger().hosts()[&host(name)].epoch
    }

    fn report(&self, name: &str, watchdog_armed: bool) -> AgentReport {
        let known = self.controller.ledger().vms().get(&vm());
        let here = known.filter(|record| record.occupied_host() == Some(&host(name)));
        let vms = here.into_iter().map(|record| VmReport {
            vm: vm(),
            incarnation: record.incarnation,
            running: true,
            readiness: Some(Readiness::PoweredOn),
            note: defib_model::VmNote::default(),
        });
        AgentReport {
            host: host(name),
            boot: BootId(7),
            epoch: self.controller.ledger().hosts().get(&host(name)).map_or(Epoch(0), |record| record.epoch),
            watchdog_armed,
            vms: vms.collect(),
            note: HostNote::default(),
        }
    }

    fn step(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let effects = self.controller.step(Instant::from_millis(self.now), UnixMillis(self.now), input);
            for effect in effects {
                match effect {
                    Effect::Propose(Entry { command, .. }) => {
                        self.index += 1;
                        self.committed.push(command.clone());
                        let (at, wall) = (ClusterTime(self.now), UnixMillis(self.now));
                        let entry = Entry { at, wall, proposer: ReplicaId(1), command };
                        inputs.push(Input::Committed(Committed { index: LogIndex(self.index), entry }));
                    }
                    Effect::Start(order) => self.orders.push(order.effect),
                    _ => {}
                }
            }
        }
    }

    /// Time passes; the controller is woken when it wants to be.
    fn pass(&mut self, millis: u64) {
        let until = self.now + millis;
        while let Some(at) = self.controller.next_deadline(Instant::from_millis(self.now)) {
            let at = at.0.div_ceil(1_000_000);
            if at > until {
                break;
            }
            self.now = at;
            self.step(Input::Woke);
        }
        self.now = until;
    }

    fn count(&self, of: impl Fn(&Command) -> bool) -> usize {
        self.committed.iter().filter(|command| of(command)).count()
    }

    fn ended(&self) -> Vec<&StartResult> {
        let ended = self.committed.iter().filter_map(|command| match command {
            Command::StartEnded { result, .. } => Some(result),
            _ => None,
        });
        ended.collect()
    }

    fn outcome(&mut self, name: &str, outcome: OrderOutcome) {
        let effect = self.orders[0].clone();
        let (vm, incarnation, host) = (vm(), Incarnation(1), host(name));
        self.step(Input::Ordered { effect, vm, incarnation, host, outcome });
    }
}

/// It runs there, perhaps: who believed another host's word would start a second one.
#[test]
fn what_another_host_says_of_a_start_concludes_nothing() {
    let mut leader = Leader::new();
    let said = || OrderOutcome::NotRunning { detail: "believe me".into(), tried: true };
    leader.outcome("h2", said());
    leader.outcome("h2", OrderOutcome::Running);
    leader.outcome("h2", OrderOutcome::Refused { detail: "no".into() });
    assert_eq!(leader.ended(), [&StartResult::Running; 0]);
    leader.outcome("h1", OrderOutcome::Running);
    assert_eq!(leader.ended(), [&StartResult::Running]);
    leader.outcome("h2", said());
    assert_eq!(leader.ended().len(), 1);
    leader.outcome("h1", said());
    assert_eq!(leader.ended().len(), 2, "its own word counts");
}

#[test]
fn a_watchdog_that_flickers_fills_no_log_and_is_never_believed_armed_when_it_is_not() {
    let mut leader = Leader::new();
    leader.outcome("h1", OrderOutcome::Running);
    let news = |leader: &Leader| leader.count(|command| matches!(command, Command::AgentReported(_)));
    let before = news(&leader);
    for _ in 0..5000 {
        leader.pass(2);
        for armed in [true, false] {
            leader.step(Input::Reported(leader.report("h1", armed)));
        }
        assert!(!leader.controller.ledger().hosts()[&host("h1")].watchdog_armed);
    }
    // 16 at first and one each two seconds, each with its end.
    let told = news(&leader) - before;
    assert!((32..=2 * (16 + 5 + 1)).contains(&told), "{told} in ten seconds");
    let held: Vec<_> = leader.controller.held_back_lately(Instant::from_millis(leader.now)).collect();
    assert!(held.len() == 1 && *held[0].0 == host("h1") && held[0].1 >= 4900, "{held:?}");
    assert!(leader.controller.held_back() >= 4900);
    // What it says last is told in its turn, though nobody says anything any more.
    leader.step(Input::Reported(leader.report("h1", true)));
    assert!(!leader.controller.ledger().hosts()[&host("h1")].watchdog_armed, "not yet");
    leader.pass(2100);
    assert!(leader.controller.ledger().hosts()[&host("h1")].watchdog_armed);
    // What a decision hangs on waits for nothing.
    let mut report = leader.report("h1", true);
    report.vms[0].running = false;
    leader.step(Input::Reported(report));
    assert_ne!(leader.controller.ledger().vms()[&vm()].occupied_host(), Some(&host("h1")));
}

#[test]
fn goodbyes_without_end_fill_no_log_and_hide_no_shutdown() {
    let mut leader = Leader::new();
    leader.outcome("h1", OrderOutcome::Running);
    let (host, boot, epoch) = (host("h1"), BootId(7), leader.epoch("h1"));
    let said = |leader: &mut Leader, goodbye| {
        leader.step(Input::Goodbye { host: host.clone(), boot, epoch, goodbye });
    };
    for _ in 0..1000 {
        leader.pass(1);
        said(&mut leader, Goodbye::AgentRestart);
    }
    let told = leader.count(|command| matches!(command, Command::GoodbyeSaid { .. }));
    assert!((16..=17).contains(&told), "{told} in a second");
    assert!(leader.controller.held_back() >= 983);
    said(&mut leader, Goodbye::Shutdown);
    let of = |command: &Command| matches!(command, Command::GoodbyeSaid { goodbye: Goodbye::Shutdown, .. });
    assert_eq!(leader.count(of), 1);
}
