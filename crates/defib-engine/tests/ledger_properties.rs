//! Random commands, sensible and not, in any order: after each of them the ledger's invariants hold, and the same log
//! always gives the same ledger, also across a snapshot.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use defib_engine::{
    ledger::{Ledger, invariants},
    placement::PlanOptions,
};
use defib_model::{
    BootId, ClusterTime, ClusterVersion, Command, EffectId, Entry, Epoch, EventKind, EventSeq, Host, HostId,
    HostNote, Incarnation, Inventory, LogIndex, Opinion, Policy, RecoveryId, ReplicaId, Resources, Subject,
    UnixMillis, Vm, VmCondition, VmId, VmNote,
    chain::ChainVerifier,
    command::{
        AgentReport, ExpiryVote, FenceResult, Goodbye, LifeSign, Operator, OpinionChange, Placement,
        PowerOffReading, ReplicaOrder, StartResult, Unplaced, VmReport, Witnessed,
    },
    inventory::{
        Definition, FaultDomain, FenceMethod, FencingLevel, Priority, Readiness, RedfishTarget, SelfFence,
    },
};
use proptest::{collection::vec, prelude::*};

const HOSTS: u8 = 4;
const VMS: u8 = 5;

/// What to do, to whom, and three numbers that say how.
type Dice = (u8, u8, u8, u8, u8);

fn host_id(at: u8) -> HostId {
    HostId::new(&format!("h{}", at % HOSTS)).unwrap()
}

fn vm_id(at: u8) -> VmId {
    VmId::new(&format!("v{}", at % VMS)).unwrap()
}

fn boot(host: &HostId, at: u8) -> BootId {
    let number = host.as_str().bytes().map(u128::from).sum::<u128>();
    BootId(number * 10 + u128::from(at % 3))
}

fn operator() -> Operator {
    Operator { name: "ada".into(), reason: "why not".into() }
}

fn inventory() -> Inventory {
    let mut inventory = Inventory { levels: vec!["rack".into()], ..Inventory::default() };
    for at in 0..HOSTS {
        let id = host_id(at);
        let target = RedfishTarget {
            address: format!("https://{id}.bmc"),
            uuid: Some(format!("uuid-{id}")),
            serial: None,
            system: None,
            pin: None,
            credentials: "env:BMC".into(),
            events: Default::default(),
        };
        let host = Host {
            domain: FaultDomain(vec![format!("rack-{}", at % 2)]),
            fencing: vec![FencingLevel(vec![FenceMethod::Redfish(target)])],
            self_fence: if at == 0 { SelfFence::None } else { SelfFence::Trusted },
            ..Host::new(id.clone(), Resources::new(3000, 8192))
        };
        inventory.hosts.insert(id, host);
    }
    for at in 0..VMS {
        let id = vm_id(at);
        let vm = Vm {
            priority: Priority::TIERS[usize::from(at) % 3],
            ..Vm::new(id.clone(), Resources::new(1000, 1024), Definition::default())
        };
        inventory.vms.insert(id, vm);
    }
    inventory
}

/// The truth that follows from the stream of events alone.
#[derive(Debug, Default)]
struct Stream {
    chain: ChainVerifier,
    read: EventSeq,
    /// Where each VM may run, until it is released from there.
    places: BTreeMap<VmId, HostId>,
}

impl Stream {
    fn follow(&mut self, ledger: &Ledger) -> Result<(), TestCaseError> {
        for event in ledger.events().since(self.read.next()) {
            self.read = event.seq;
            prop_assert!(self.chain.push(event).is_ok(), "I8");
            match &event.kind {
                EventKind::DeathProven { host, .. } => self.places.retain(|_, at| at != host),
                EventKind::VmDown { vm, host, .. } if self.places.get(vm) == Some(host) => {
                    self.places.remove(vm);
                }
                EventKind::VmPlaced { vm, host, .. } => {
                    let before = self.places.insert(vm.clone(), host.clone());
                    prop_assert_eq!(before, None, "I2: vm {} is placed while it may run", vm);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn readings(host: &HostId, dice: u8) -> Vec<PowerOffReading> {
    let identity = format!("uuid-{host}");
    vec![PowerOffReading {
        level: 0,
        method: usize::from(dice % 7 == 6),
        identity,
        reads: u32::from(dice % 4) + 1,
    }]
}

fn opinion(dice: u8) -> Opinion {
    [Opinion::Alive, Opinion::Asks, Opinion::Dead, Opinion::Dead][usize::from(dice % 4)]
}

fn vm_report(ledger: &Ledger, at: u8, running: bool) -> VmReport {
    let vm = vm_id(at);
    let incarnation = ledger.vms().get(&vm).map_or(Incarnation(1), |record| record.incarnation);
    // Now and then of an older one.
    let incarnation = if at > 200 { Incarnation(incarnation.0.saturating_sub(1)) } else { incarnation };
    let readiness = running.then_some(Readiness::PoweredOn);
    let condition = VmCondition::ALL[usize::from(at) % VmCondition::ALL.len()];
    VmReport { vm, incarnation, running, readiness, note: VmNote { condition, ..VmNote::default() } }
}

/// Now and then a VM runs somewhere unprotected, or a datastore is gone.
fn host_note(vm: u8, dice: u8) -> HostNote {
    let mut note = HostNote::default();
    if dice.is_multiple_of(8) {
        note.unprotected.insert("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0".into(), vm_id(vm).to_string());
    }
    if dice.is_multiple_of(5) {
        note.unreachable.insert("fast".into(), "its pool is not active".into());
    }
    note.machine = dice.is_multiple_of(3).then(|| if vm.is_multiple_of(4) { "there" } else { "here" }.into());
    note
}

/// Mostly what somebody might say in this state, sometimes what nobody should.
fn command(ledger: &Ledger, (what, who, a, b, c): Dice) -> Command {
    let host = host_id(who);
    let record = ledger.hosts().get(&host);
    let epoch = record.map_or(Epoch(0), |record| record.epoch);
    let epoch = if a > 230 { Epoch(epoch.0.saturating_sub(1)) } else { epoch };
    let recovery = record.and_then(|record| record.recovery).unwrap_or_else(|| RecoveryId(u64::from(a)));
    let attempt = ledger.recoveries().get(&recovery).and_then(|recovery| recovery.fence.as_ref());
    let attempt = attempt.map_or(0, |fence| fence.attempt);
    let observer = ReplicaId(u64::from(b % 3) + 1);
    let vm = vm_id(b);
    match what % 24 {
        0..=3 => {
            let changes = vec![OpinionChange { host, epoch, opinion: opinion(a), silent_ms: u64::from(c) }];
            Command::Opinions { observer, session: 1, changes }
        }
        4 if c % 2 == 0 => {
            let signs = [LifeSign::Reached { neighbour: host_id(a) }, LifeSign::Heard, LifeSign::Nothing];
            let sign = signs[usize::from(a % 3)].clone();
            let hosts = vec![Witnessed { host, epoch, sign }];
            Command::HostsWitnessed { observer, session: 1, hosts }
        }
        4 | 5 => Command::LeasesExpired {
            observer,
            session: 1,
            votes: vec![ExpiryVote { host, epoch, electorate: 0 }],
        },
        6 => Command::PowerFoundOff { readings: readings(&host, b), host, epoch },
        7 => Command::FenceIntended { recovery, attempt: attempt + 1, level: 0 },
        8 => {
            let result = if b % 2 == 0 {
                FenceResult::Off(readings(&host, c))
            } else {
                FenceResult::Unknown { detail: "no answer".into() }
            };
            Command::FenceEnded { recovery, attempt, result }
        }
        9 | 10 => {
            let wanted: Vec<VmId> = ledger.index().waiting.iter().cloned().collect();
            let plan = ledger.index().placer.plan(&wanted, &PlanOptions::default());
            let placements = plan.placements.into_iter().map(|planned| Placement {
                incarnation: ledger.vms()[&planned.vm].incarnation.next(),
                host_epoch: ledger.hosts()[&planned.host].epoch,
                vm: planned.vm,
                host: planned.host,
                because: planned.because.to_string(),
                broken: vec![],
            });
            let unplaced = plan.unplaced.into_iter().map(|left| Unplaced {
                reasons: left.exclusions.iter().map(ToString::to_string).collect(),
                vm: left.vm,
            });
            Command::Place { placements: placements.collect(), unplaced: unplaced.collect() }
        }
        11 => {
            // What no planner would say.
            let incarnation =
                ledger.vms().get(&vm).map_or(Incarnation(1), |record| record.incarnation.next());
            let placement = Placement {
                vm,
                incarnation,
                host,
                host_epoch: epoch,
                because: String::new(),
                broken: vec![],
            };
            Command::Place { placements: vec![placement], unplaced: vec![] }
        }
        12 | 13 => {
            let placed = ledger.vms().get(&vm).and_then(|record| record.occupied_host().cloned());
            let result = if c % 3 == 0 {
                StartResult::NotRunning { detail: "it failed".into(), tried: true }
            } else {
                StartResult::Running
            };
            let effect = EffectId { cause: ledger.applied(), subject: Subject::Vm(vm.clone()), attempt: 1 };
            let incarnation = vm_report(ledger, b, true).incarnation;
            Command::StartEnded { effect, vm, incarnation, host: placed.unwrap_or(host), result }
        }
        14 | 15 => Command::AgentReported(AgentReport {
            boot: record.and_then(|record| record.boot).filter(|_| c < 200).unwrap_or_else(|| boot(&host, c)),
            host,
            epoch,
            watchdog_armed: c % 2 == 0,
            vms: vec![vm_report(ledger, a, b % 4 > 0)],
            note: host_note(b, c),
        }),
        16..=18 => {
            let vms = if c > 200 { vec![vm_report(ledger, a, true)] } else { vec![] };
            Command::Readmit { boot: boot(&host, b), host, epoch, vms, note: host_note(a, c) }
        }
        19 => match b % 5 {
            0 => Command::ConfirmDead { host, epoch, operator: operator() },
            1 => Command::FenceHost { host, epoch, operator: operator() },
            2 => Command::LiftQuarantine { host, operator: operator() },
            3 => Command::ReplicasOrdered {
                order: ReplicaOrder::Lead { id: ReplicaId(u64::from(a)) },
                operator: operator(),
            },
            _ => Command::Pause { paused: c % 4 == 0, operator: operator() },
        },
        20 => {
            let boot = record.and_then(|record| record.boot).unwrap_or_else(|| boot(&host, b));
            let goodbye = if c % 2 == 0 { Goodbye::Shutdown } else { Goodbye::AgentRestart };
            Command::GoodbyeSaid { host, boot, epoch, goodbye }
        }
        21 => {
            // A VM or a host leaves, or all that ever left are back.
            let mut changed = inventory();
            match b % 4 {
                0 => drop(changed.vms.remove(&vm_id(a))),
                1 => drop(changed.hosts.remove(&host)),
                _ => {}
            }
            let replaces = ledger.inventory_version();
            Command::SetInventory { inventory: changed, replaces, operator: operator() }
        }
        22 => Command::ClockCompared {
            replica: ReplicaId(u64::from(a % 4) + 1),
            ahead_ms: (i64::from(b) - 128) * 7000,
        },
        _ => Command::Tick,
    }
}

fn entry(at: u64, command: Command) -> Entry {
    Entry { at: ClusterTime(at), wall: UnixMillis(at), proposer: ReplicaId(1), command }
}

fn opening() -> Vec<Entry> {
    let mut policy = Policy::default();
    policy.brakes.hosts = 3;
    policy.brakes.hosts_per_domain = 2;
    policy.restart.attempts = 2;
    policy.restart.retry_after = defib_model::Millis(2000);
    let mut commands = vec![Command::LeaderStarted { term: 1 }];
    commands.extend([1, 2, 3].map(|at| Command::ObserverStarted {
        observer: ReplicaId(at),
        session: 1,
        supports: ClusterVersion::NEWEST,
    }));
    commands.push(Command::SetPolicy { policy, replaces: 0, operator: operator() });
    commands.push(Command::SetInventory { inventory: inventory(), replaces: 0, operator: operator() });
    for at in 0..HOSTS {
        let (host, note) = (host_id(at), HostNote::default());
        commands.push(Command::Readmit { boot: boot(&host, 0), host, epoch: Epoch(0), vms: vec![], note });
    }
    commands.into_iter().map(|command| entry(0, command)).collect()
}

fn new_ledger() -> Ledger {
    Ledger::new([1, 2, 3].map(ReplicaId).into())
}

fn sound(ledger: &Ledger) -> Result<(), TestCaseError> {
    prop_assert_eq!(invariants::check(ledger), Ok(()));
    prop_assert_eq!(ledger.disarmed(), None);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_said_the_invariants_hold_and_the_same_log_gives_the_same_ledger(
        dice in vec((any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()), 1..150),
        cut in 0..150_usize,
    ) {
        let (mut ledger, mut stream) = (new_ledger(), Stream::default());
        let mut log = opening();
        for (at, entry) in log.iter().enumerate() {
            ledger.apply(LogIndex(at as u64 + 1), entry);
        }
        let mut now = 0;
        for dice in dice {
            now += u64::from(dice.4) * 20;
            let mut entry = entry(now, command(&ledger, dice));
            // Clocks of replicas differ, by little or by days, and are set back and forth.
            let apart = [0, 0, 0, 3000, 12_000, 86_400_000][usize::from(dice.3 % 6)];
            entry.wall = UnixMillis(now.saturating_add(apart));
            entry.proposer = ReplicaId(u64::from(dice.2 % 5 == 0) + 1);
            ledger.apply(LogIndex(log.len() as u64 + 1), &entry);
            let said = format!("{:?}", entry.command);
            log.push(entry);
            stream.follow(&ledger)?;
            if let Err(broken) = sound(&ledger) {
                return Err(TestCaseError::fail(format!("{broken} after {said}")));
            }
        }
        // Another replica, which is restored from a snapshot somewhere on the way.
        let mut other = new_ledger();
        for (at, entry) in log.iter().enumerate() {
            if at == cut {
                let snapshot = serde_json::to_string(&other).unwrap();
                other = serde_json::from_str(&snapshot).unwrap();
                other.rebuild();
            }
            other.apply(LogIndex(at as u64 + 1), entry);
            // Applied once is applied for good.
            other.apply(LogIndex(at as u64 + 1), entry);
        }
        prop_assert_eq!(other.state_hash(), ledger.state_hash());
    }
}
