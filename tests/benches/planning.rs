//! How long the engine takes to find places for everything that many dead hosts leave behind.
//!
//! 5,000 hosts in 125 racks, 20 VMs on each, every VM bound by hard anti-affinity per rack: small groups of
//! five with one member per rack, as control planes are, or large ones of 200 with at most two, which are
//! crowded everywhere.

#![expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]

#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, ensure};
use common::{Figure, racks, size};
use defib_engine::placement::{Placer, PlanOptions, Reason, Usability};
use defib_model::inventory::{Definition, Group, Priority, Readiness, SpreadRule, Vm};
use defib_model::{GroupId, HostId, Inventory, Resources, VmId};

const HOSTS: usize = 5000;
const HOSTS_PER_RACK: usize = 40;
const VMS_PER_HOST: usize = 20;

fn main() -> Result<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let rounds = size("DEFIB_BENCH_ROUNDS", 20).max(1);
    for (members, limit, kind) in [(5, 1, "groups_of_5"), (200, 2, "groups_of_200")] {
        let inventory = inventory(members, limit)?;
        if members == 5 {
            admission(&inventory, rounds);
        }
        for (dead, target) in [(50, "p99 <= 20"), (500, "p99 <= 200")] {
            let (samples, lost) = plan(&inventory, dead, rounds)?;
            Figure::new(&format!("planning_{lost}_lost_vms_{HOSTS}_hosts_{kind}"), "ms", target)
                .samples(&samples)
                .print();
        }
    }
    Ok(())
}

/// What admission control costs: a copy of the planner's books, which the core loop gives, and the plans for every host
/// and rack, which another thread makes.
fn admission(inventory: &Inventory, rounds: usize) {
    let placer = settled(inventory);
    let (mut copies, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let copy = placer.clone();
        copies.push(start.elapsed().as_secs_f64() * 1e3);
        if answers.len() < 3 {
            let start = Instant::now();
            let weak = copy.protection();
            answers.push(start.elapsed().as_secs_f64() * 1e3);
            drop(weak);
        }
    }
    Figure::new(&format!("admission_copy_{HOSTS}_hosts"), "ms", "p99 <= 20").samples(&copies).print();
    Figure::new(&format!("admission_answer_{HOSTS}_hosts"), "ms", "none: beside the loop")
        .samples(&answers)
        .print();
}

/// Every host in use, every VM on its first host.
fn settled(inventory: &Inventory) -> Placer {
    let mut placer = Placer::new(inventory);
    for host in inventory.hosts.keys() {
        placer.set_host(host, Usability::Usable);
    }
    for vm in inventory.vms.values() {
        if let Some(host) = &vm.first_host {
            placer.occupy(&vm.id, host);
        }
    }
    placer
}

/// Plans for the VMs of `dead` hosts, all in neighbouring racks; every plan is carried out and checked once.
fn plan(inventory: &Inventory, dead: usize, rounds: usize) -> Result<(Vec<f64>, usize)> {
    let mut placer = settled(inventory);
    let hosts: Vec<&HostId> = inventory.hosts.keys().collect();
    placer.check().map_err(anyhow::Error::msg)?;
    let dead: BTreeSet<&HostId> = hosts.iter().copied().take(dead).collect();
    let mut lost = Vec::new();
    for vm in inventory.vms.values() {
        if vm.first_host.as_ref().is_some_and(|host| dead.contains(host)) {
            placer.release(&vm.id);
            lost.push(vm.id.clone());
        }
    }
    for host in dead {
        placer.set_host(host, Usability::Unusable(Reason::Dead));
    }
    let mut samples = Vec::new();
    let mut last = None;
    for _ in 0..rounds {
        let start = Instant::now();
        let plan = placer.plan(&lost, &PlanOptions::default());
        samples.push(start.elapsed().as_secs_f64() * 1e3);
        last = Some(plan);
    }
    let plan = last.unwrap_or_default();
    ensure!(plan.unplaced.is_empty(), "{} VMs found no place", plan.unplaced.len());
    ensure!(plan.placements.len() == lost.len(), "{} of {} placed", plan.placements.len(), lost.len());
    for planned in plan.placements {
        placer.occupy(&planned.vm, &planned.host);
    }
    placer.check().map_err(anyhow::Error::msg)?;
    Ok((samples, lost.len()))
}

fn inventory(members: usize, limit: u32) -> Result<Inventory> {
    let mut inventory = racks(HOSTS, HOSTS_PER_RACK)?;
    let priorities = [Priority::Critical, Priority::High, Priority::Medium, Priority::Low];
    let sizes = [(2_000, 4096), (4_000, 8192), (8_000, 16_384), (4_000, 32_768)];
    let count = HOSTS * VMS_PER_HOST;
    for number in 0..count {
        let id = VmId::new(&format!("vm-{number:06}"))?;
        let group = GroupId::new(&format!("group-{:05}", number / members))?;
        // The members of a group are numbered in a row, and go to one rack after the other.
        let (rack, rest) = (number % (HOSTS / HOSTS_PER_RACK), number / (HOSTS / HOSTS_PER_RACK));
        let place = rack * HOSTS_PER_RACK + rest % HOSTS_PER_RACK;
        let (cpu, memory) = sizes[rest / HOSTS_PER_RACK % sizes.len()];
        let vm = Vm {
            id: id.clone(),
            priority: priorities[rest / 7 % priorities.len()],
            resources: Resources::new(cpu, memory),
            requires: BTreeSet::new(),
            depends_on: BTreeSet::new(),
            readiness: Readiness::PoweredOn,
            readiness_timeout: None,
            datastore: None,
            first_host: Some(HostId::new(&format!("host-{place:05}"))?),
            definition: Definition { driver: "process".to_owned(), arguments: vec!["guest".to_owned()] },
        };
        inventory.vms.insert(id.clone(), vm);
        let rules = || vec![SpreadRule { level: 0, limit, hard: true }];
        inventory
            .groups
            .entry(group.clone())
            .or_insert_with(|| Group { id: group, members: BTreeSet::new(), rules: rules() })
            .members
            .insert(id);
    }
    inventory.validate()?;
    Ok(inventory)
}
