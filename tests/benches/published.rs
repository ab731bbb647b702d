//! What the core loop pays for the status that is published in etcd, and for a snapshot of the ledger: it copies, and
//! another thread makes JSON of the copy. And what a leader pays for a step, with the last reports of all agents at
//! hand.
//!
//! 5,000 hosts in 125 racks, 20 VMs on each; in peace, and while every fifth host is missed.

#![expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]

#[path = "common/mod.rs"]
mod common;

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Context as _, Result, ensure};
use common::{Figure, racks, size};
use defib_consensus::replica::{Membership, RoleChange};
use defib_controller::{
    core::View,
    etcd::{Domains, Report},
};
use defib_engine::{
    controller::{Controller, Effect, Input, Role},
    ledger::Ledger,
};
use defib_etcd::Keys;
use defib_model::{
    BootId, ClusterTime, ClusterVersion, Command, Entry, Epoch, HostId, HostNote, Incarnation, Inventory,
    Opinion, ReplicaId, Resources, UnixMillis, VmId, VmNote,
    command::{AgentReport, Committed, Operator, OpinionChange, Placement, VmReport},
    inventory::{Definition, Priority, Readiness, Vm},
};
use defib_wire::log::encode_snapshot;

const HOSTS: usize = 5000;
const HOSTS_PER_RACK: usize = 40;
const VMS_PER_HOST: usize = 20;

fn main() -> Result<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let rounds = size("DEFIB_BENCH_ROUNDS", 200).max(1);
    let mut ledger = settled()?;
    measure("peace", &ledger, rounds)?;
    snapshots(&ledger, (rounds / 10).max(1))?;
    steps(ledger.clone(), rounds)?;
    miss(&mut ledger, HOSTS / 5)?;
    measure("every_fifth_missed", &ledger, rounds)
}

fn measure(what: &str, ledger: &Ledger, rounds: usize) -> Result<()> {
    let controller = Controller::new(ReplicaId(1), 1, ledger.clone());
    let membership = Membership::default();
    let (now, role) = (defib_model::Instant(0), RoleChange::default());
    let view = View { controller: &controller, now, role, unled_since: None, membership: &membership };
    let keys = Keys::new("/defib/bench".into(), "/defib/bench/status".into());
    let (mut on_loop, mut beside) = (Vec::new(), Vec::new());
    // With the first one goes where hosts are, which changes with the inventory only.
    let mut domains = Domains::default();
    for _ in 0..=rounds {
        let known = domains.version();
        let start = Instant::now();
        let report = Report::read(&view, "bench", 1, 1, known);
        let took = start.elapsed().as_secs_f64() * 1e3;
        if known > 0 {
            on_loop.push(took);
        }
        let start = Instant::now();
        let entries = report.entries(&keys, &mut domains);
        beside.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(entries.len() > HOSTS, "{} entries", entries.len());
    }
    let name = |part: &str| format!("published_status_{HOSTS}_hosts_{what}_{part}");
    Figure::new(&name("on_loop"), "ms", "p99 <= 1").samples(&on_loop).print();
    Figure::new(&name("as_json"), "ms", "none: beside the loop").samples(&beside).print();
    Ok(())
}

fn snapshots(ledger: &Ledger, rounds: usize) -> Result<()> {
    let (mut on_loop, mut beside, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        let start = Instant::now();
        let copy = ledger.clone();
        on_loop.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        bytes = encode_snapshot(&copy)?.len();
        beside.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let name = |part: &str| format!("snapshot_{HOSTS}_hosts_{}_vms_{part}", HOSTS * VMS_PER_HOST);
    Figure::new(&name("on_loop"), "ms", "p99 <= 100: a beat").samples(&on_loop).print();
    Figure::new(&name("as_json"), "ms", "none: beside the loop").samples(&beside).print();
    Figure::new(&name("size"), "bytes", "<= 256 MiB").samples(&[bytes as f64]).print();
    Ok(())
}

/// In peace, on the leader: nothing but the time has changed, an agent says what it said before, an entry is committed.
fn steps(mut ledger: Ledger, rounds: usize) -> Result<()> {
    let mut reports = Vec::new();
    for number in 0..HOSTS {
        let report = report(&ledger, host(number)?);
        apply(&mut ledger, Command::AgentReported(report.clone()));
        reports.push(report);
    }
    let mut controller = Controller::new(ReplicaId(1), 1, ledger);
    for report in &reports {
        let _ = step(&mut controller, 0, Input::Reported(report.clone()));
    }
    let term = controller.ledger().term() + 1;
    let _ = step(&mut controller, 0, Input::Role(Role::Leader { term }));
    let entry = committed(&controller, Command::LeaderStarted { term });
    let _ = step(&mut controller, 0, entry);
    ensure!(controller.leads(), "it does not lead");
    let (mut woke, mut reported, mut applied) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let now = round as u64 + 1;
        let report = reports.get(round * 7 % HOSTS).context("there is one for each host")?;
        let opinion = if round % 2 == 0 { Opinion::Asks } else { Opinion::Alive };
        let change = OpinionChange { host: host(1)?, epoch: Epoch(1), opinion, silent_ms: 300 };
        let command = Command::Opinions { observer: ReplicaId(3), session: 1, changes: vec![change] };
        let entry = committed(&controller, command);
        for (samples, input) in [
            (&mut woke, Input::Woke),
            (&mut reported, Input::Reported(report.clone())),
            (&mut applied, entry),
        ] {
            let start = Instant::now();
            let effects = step(&mut controller, now, input);
            samples.push(start.elapsed().as_secs_f64() * 1e3);
            let proposes = effects.iter().any(|effect| matches!(effect, Effect::Propose(_)));
            ensure!(!proposes, "it is not settled: {effects:?}");
        }
    }
    let name = |part: &str| format!("step_{HOSTS}_hosts_{}_vms_{part}", HOSTS * VMS_PER_HOST);
    for (part, samples) in [("woke", &woke), ("reported", &reported), ("committed", &applied)] {
        Figure::new(&name(part), "ms", "p99 <= 0.2").samples(samples).print();
    }
    Ok(())
}

fn step(controller: &mut Controller, now: u64, input: Input) -> Vec<Effect> {
    controller.step(defib_model::Instant::from_millis(now), UnixMillis(now), input)
}

fn committed(controller: &Controller, command: Command) -> Input {
    let index = controller.ledger().applied().next();
    let entry =
        Entry { at: ClusterTime(index.0), wall: UnixMillis(index.0), proposer: ReplicaId(1), command };
    Input::Committed(Committed { index, entry })
}

/// That all VMs run which were placed there.
fn report(ledger: &Ledger, host: HostId) -> AgentReport {
    let vms = ledger.index().on_host.get(&host).into_iter().flatten().map(|vm| VmReport {
        vm: vm.clone(),
        incarnation: Incarnation(1),
        running: true,
        readiness: Some(Readiness::PoweredOn),
        note: VmNote::default(),
    });
    let record = ledger.hosts().get(&host);
    AgentReport {
        vms: vms.collect(),
        boot: record.and_then(|record| record.boot).unwrap_or(BootId(0)),
        epoch: record.map_or(Epoch(0), |record| record.epoch),
        watchdog_armed: false,
        note: HostNote::default(),
        host,
    }
}

fn apply(ledger: &mut Ledger, command: Command) {
    let index = ledger.applied().next();
    let at = ClusterTime(index.0);
    ledger.apply(index, &Entry { at, wall: UnixMillis(index.0), proposer: ReplicaId(1), command });
}

fn host(number: usize) -> Result<HostId> {
    Ok(HostId::new(&format!("host-{number:05}"))?)
}

/// Every host in use, and every VM has its place.
fn settled() -> Result<Ledger> {
    let mut ledger = Ledger::new((1..=3).map(ReplicaId).collect());
    apply(&mut ledger, Command::LeaderStarted { term: 1 });
    for observer in 1..=3 {
        apply(
            &mut ledger,
            Command::ObserverStarted {
                observer: ReplicaId(observer),
                session: 1,
                supports: ClusterVersion::NEWEST,
            },
        );
    }
    let operator = Operator { name: "bench".into(), reason: String::new() };
    let inventory = inventory()?;
    let vms: Vec<Vm> = inventory.vms.values().cloned().collect();
    apply(&mut ledger, Command::SetInventory { inventory, replaces: 0, operator });
    for number in 0..HOSTS {
        let boot = BootId(number as u128 + 1);
        apply(
            &mut ledger,
            Command::Readmit {
                host: host(number)?,
                epoch: Epoch(0),
                boot,
                vms: Vec::new(),
                note: HostNote::default(),
            },
        );
    }
    let placements = vms.into_iter().map(|vm| {
        let host = vm.first_host.context("each has a first host")?;
        let host_epoch = ledger.hosts().get(&host).context("it is in the inventory")?.epoch;
        let (because, broken) = (String::new(), Vec::new());
        Ok(Placement { vm: vm.id, incarnation: Incarnation(1), host, host_epoch, because, broken })
    });
    let placements = placements.collect::<Result<_>>()?;
    apply(&mut ledger, Command::Place { placements, unplaced: Vec::new() });
    let running: usize = ledger.index().on_host.values().map(BTreeSet::len).sum();
    ensure!(running == HOSTS * VMS_PER_HOST, "{running} VMs run or are to");
    Ok(ledger)
}

/// All observers miss so many hosts.
fn miss(ledger: &mut Ledger, missed: usize) -> Result<()> {
    let mut changes = Vec::new();
    for number in 0..missed {
        let host = host(number * 5)?;
        let epoch = ledger.hosts().get(&host).map_or(Epoch(0), |record| record.epoch);
        changes.push(OpinionChange { host, epoch, opinion: Opinion::Asks, silent_ms: 1000 });
    }
    for observer in 1..=3 {
        let changes = changes.clone();
        apply(ledger, Command::Opinions { observer: ReplicaId(observer), session: 1, changes });
    }
    ensure!(ledger.recoveries().len() == missed, "{} recoveries", ledger.recoveries().len());
    Ok(())
}

fn inventory() -> Result<Inventory> {
    let mut inventory = racks(HOSTS, HOSTS_PER_RACK)?;
    for number in 0..HOSTS * VMS_PER_HOST {
        let id = VmId::new(&format!("vm-{number:06}"))?;
        let vm = Vm {
            id: id.clone(),
            priority: Priority::Medium,
            resources: Resources::new(4000, 8192),
            requires: BTreeSet::new(),
            depends_on: BTreeSet::new(),
            readiness: Readiness::PoweredOn,
            readiness_timeout: None,
            datastore: None,
            first_host: Some(host(number / VMS_PER_HOST)?),
            definition: Definition { driver: "process".to_owned(), arguments: vec!["guest".to_owned()] },
        };
        inventory.vms.insert(id, vm);
    }
    inventory.validate()?;
    Ok(inventory)
}
