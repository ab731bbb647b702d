//! The planner against a naive twin: the rules read straight from the inventory, every host tried.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::placement::{Because, Constraint, Placer, PlanOptions, Reason, Usability};
use defib_model::{
    GroupId, Host, HostId, Inventory, Resources, Vm, VmId,
    inventory::{Definition, FaultDomain, Group, Priority, Readiness, SelfFence, SpreadRule},
};
use proptest::{collection::vec, prelude::*};

/// A host: rack, CPUs, GiB, GPU, spare, in use.
type HostDice = (u8, u64, u64, bool, bool, bool);
/// A VM: CPUs, GiB, tier, needs a GPU, where it runs already, failed on.
type VmDice = (u64, u64, usize, bool, Option<usize>, Option<usize>);
/// A group: members, and rules (per rack?, limit, hard?).
type GroupDice = (BTreeSet<usize>, Vec<(bool, u32, bool)>);

fn host_id(at: usize) -> HostId {
    HostId::new(&format!("h{at}")).unwrap()
}

fn vm_id(at: usize) -> VmId {
    VmId::new(&format!("v{at}")).unwrap()
}

/// What is known, and nothing that is derived from it.
#[derive(Debug, Clone)]
struct Twin {
    inventory: Inventory,
    usable: BTreeSet<HostId>,
    at: BTreeMap<VmId, HostId>,
}

impl Twin {
    fn domain(&self, host: &HostId, level: usize) -> String {
        let host = &self.inventory.hosts[host];
        if level == 0 { host.domain.0[0].clone() } else { host.id.to_string() }
    }

    fn level_name(level: usize) -> String {
        if level == 0 { "rack".into() } else { "host".into() }
    }

    fn used(&self, host: &HostId) -> (u64, u64) {
        let there = self.at.iter().filter(|(_, at)| *at == host).map(|(vm, _)| &self.inventory.vms[vm]);
        there.fold((0, 0), |(cpu, memory), vm| {
            (cpu + vm.resources.cpu_millis, memory + vm.resources.memory_mib)
        })
    }

    /// How many members of a group, other than `vm`, are in the domain of `host`.
    fn members(&self, group: &Group, vm: &VmId, host: &HostId, level: usize) -> u32 {
        let domain = self.domain(host, level);
        let there = group.members.iter().filter(|member| {
            *member != vm && self.at.get(*member).is_some_and(|at| self.domain(at, level) == domain)
        });
        u32::try_from(there.count()).unwrap()
    }

    fn rules<'a>(&'a self, vm: &'a VmId) -> impl Iterator<Item = (&'a Group, SpreadRule)> {
        let groups = self.inventory.groups.values().filter(move |group| group.members.contains(vm));
        groups.flat_map(|group| group.rules.iter().map(move |rule| (group, rule.clone())))
    }

    /// Everything that speaks against a place.
    fn against(&self, vm: &VmId, host: &HostId, first: bool) -> Vec<Constraint> {
        let (wanted, slot) = (&self.inventory.vms[vm], &self.inventory.hosts[host]);
        let mut all = Vec::new();
        if !self.usable.contains(host) {
            all.push(Constraint::Unusable(Reason::Dead));
        }
        if first && slot.spare {
            all.push(Constraint::Spare);
        }
        all.extend(wanted.requires.difference(&slot.labels).cloned().map(Constraint::Label));
        let (cpu, memory) = self.used(host);
        if cpu + wanted.resources.cpu_millis > slot.capacity.cpu_millis {
            all.push(Constraint::Capacity { resource: "CPU".into() });
        }
        if memory + wanted.resources.memory_mib > slot.capacity.memory_mib {
            all.push(Constraint::Capacity { resource: "memory".into() });
        }
        for (group, rule) in self.rules(vm).filter(|(_, rule)| rule.hard) {
            if self.members(group, vm, host, rule.level) >= rule.limit {
                let level = Self::level_name(rule.level);
                all.push(Constraint::AntiAffinity { group: group.id.clone(), level });
            }
        }
        all
    }

    fn feasible(&self, vm: &VmId, first: bool) -> Vec<HostId> {
        self.inventory.hosts.keys().filter(|host| self.against(vm, host, first).is_empty()).cloned().collect()
    }

    fn soft_broken(&self, vm: &VmId, host: &HostId) -> usize {
        self.rules(vm)
            .filter(|(group, rule)| !rule.hard && self.members(group, vm, host, rule.level) >= rule.limit)
            .count()
    }

    /// The same world before anything of a lower tier than this was planned.
    fn without_lower(&self, tier: Priority, planned: &BTreeSet<VmId>) -> Self {
        let mut twin = self.clone();
        twin.at.retain(|vm, _| !planned.contains(vm) || self.inventory.vms[vm].priority <= tier);
        twin
    }
}

#[derive(Debug, Clone)]
struct World {
    twin: Twin,
    placer: Placer,
    wanted: Vec<VmId>,
    options: PlanOptions,
}

fn build(hosts: &[HostDice], vms: &[VmDice], groups: &[GroupDice], first: bool) -> World {
    let mut inventory = Inventory { levels: vec!["rack".into()], ..Inventory::default() };
    let label = |wanted: bool| wanted.then(|| String::from("gpu")).into_iter().collect();
    for (at, (rack, cpu, memory, gpu, spare, _)) in hosts.iter().enumerate() {
        let id = host_id(at);
        let host = Host {
            id: id.clone(),
            domain: FaultDomain(vec![format!("rack-{rack}")]),
            capacity: Resources::new(cpu * 1000, memory * 1024),
            labels: label(*gpu),
            fencing: vec![],
            self_fence: SelfFence::None,
            spare: *spare,
            neighbour_address: None,
            kdump_wait: None,
        };
        inventory.hosts.insert(id, host);
    }
    for (at, (cpu, memory, tier, gpu, ..)) in vms.iter().enumerate() {
        let id = vm_id(at);
        let vm = Vm {
            id: id.clone(),
            priority: Priority::TIERS[*tier],
            resources: Resources::new(cpu * 1000, memory * 1024),
            requires: label(*gpu),
            depends_on: BTreeSet::new(),
            readiness: Readiness::PoweredOn,
            readiness_timeout: None,
            datastore: None,
            first_host: None,
            definition: Definition::default(),
        };
        inventory.vms.insert(id, vm);
    }
    for (at, (members, rules)) in groups.iter().enumerate() {
        let id = GroupId::new(&format!("g{at}")).unwrap();
        let members = members.iter().filter(|at| **at < vms.len()).map(|at| vm_id(*at)).collect();
        let rules = rules
            .iter()
            .map(|(rack, limit, hard)| SpreadRule { level: usize::from(!rack), limit: *limit, hard: *hard })
            .collect();
        inventory.groups.insert(id.clone(), Group { id, members, rules });
    }
    let mut placer = Placer::new(&inventory);
    let mut twin = Twin { inventory, usable: BTreeSet::new(), at: BTreeMap::new() };
    for (at, (.., in_use)) in hosts.iter().enumerate() {
        let usable = if *in_use { Usability::Usable } else { Usability::Unusable(Reason::Dead) };
        placer.set_host(&host_id(at), usable);
        if *in_use {
            twin.usable.insert(host_id(at));
        }
    }
    let mut options = PlanOptions::default();
    let mut wanted = Vec::new();
    for (at, (.., place, failed)) in vms.iter().enumerate() {
        let vm = vm_id(at);
        let place = place.map(|host| host_id(host % hosts.len()));
        if let Some(host) = place.filter(|host| twin.against(&vm, host, false).is_empty()) {
            placer.occupy(&vm, &host);
            twin.at.insert(vm, host);
            continue;
        }
        if first {
            options.first_placements.insert(vm.clone());
        }
        if let Some(failed) = failed {
            options.avoid.insert(vm.clone(), BTreeSet::from([host_id(failed % hosts.len())]));
        }
        wanted.push(vm);
    }
    World { twin, placer, wanted, options }
}

fn worlds() -> impl Strategy<Value = World> {
    let host =
        (0..3_u8, 1..7_u64, 1..7_u64, any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.85));
    let vm = (
        1..4_u64,
        1..4_u64,
        0..5_usize,
        prop::bool::weighted(0.2),
        prop::option::of(0..6_usize),
        prop::option::weighted(0.2, 0..6_usize),
    );
    let rule = (any::<bool>(), 1..3_u32, prop::bool::weighted(0.7));
    let group = (prop::collection::btree_set(0..9_usize, 1..6), vec(rule, 1..3));
    (vec(host, 1..6), vec(vm, 1..9), vec(group, 0..3), prop::bool::weighted(0.2))
        .prop_map(|(hosts, vms, groups, first)| build(&hosts, &vms, &groups, first))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_planner_and_its_naive_twin_admit_the_same_places(world in worlds()) {
        for vm in &world.wanted {
            for host in world.twin.inventory.hosts.keys() {
                let against = world.twin.against(vm, host, false);
                match world.placer.admits(vm, host) {
                    Ok(()) => prop_assert!(against.is_empty(), "{vm} on {host}: {against:?}"),
                    Err(why) => prop_assert!(against.contains(&why), "{vm} on {host}: {why} not in {against:?}"),
                }
            }
        }
    }

    #[test]
    fn one_vm_has_a_place_if_and_only_if_the_naive_twin_finds_one(world in worlds()) {
        for vm in &world.wanted {
            let first = world.options.first_placements.contains(vm);
            let feasible = world.twin.feasible(vm, first);
            let plan = world.placer.plan(std::slice::from_ref(vm), &world.options);
            let Some(planned) = plan.placements.first() else {
                prop_assert!(feasible.is_empty(), "{vm} could go to {feasible:?}");
                continue;
            };
            prop_assert!(feasible.contains(&planned.host));
            let failed_there = |host| world.options.avoid.get(vm).is_some_and(|avoid| avoid.contains(host));
            match &planned.because {
                Because::FirstHost => prop_assert!(first),
                Because::RanWell => prop_assert_eq!(world.options.prefer.get(vm), Some(&planned.host)),
                Because::OnlyHost => prop_assert_eq!(feasible.len(), 1, "{} had a choice", vm),
                Because::NotWhereItFailed => prop_assert!(!failed_there(&planned.host)),
                Because::OnlyWhereItFailed => prop_assert!(feasible.iter().all(failed_there)),
                Because::MostRoom => prop_assert!(feasible.len() > 1, "{} had no choice", vm),
                Because::FewestBeside { members } => {
                    let beside = |host: &HostId| -> u32 {
                        let rules = world.twin.rules(vm);
                        rules.map(|(group, rule)| world.twin.members(group, vm, host, rule.level)).sum()
                    };
                    prop_assert_eq!(*members, beside(&planned.host));
                }
                because => prop_assert!(false, "one alone moves nobody: {because}"),
            }
            let broken = world.twin.soft_broken(vm, &planned.host);
            prop_assert_eq!(planned.broken.len(), broken, "what is broken is named");
            // Where it failed it goes only if there is no other; a wish is broken only if none keeps it.
            let failed = world.options.avoid.get(vm).cloned().unwrap_or_default();
            let elsewhere: Vec<&HostId> = feasible.iter().filter(|host| !failed.contains(*host)).collect();
            prop_assert!(elsewhere.is_empty() || elsewhere.contains(&&planned.host));
            let choice = if elsewhere.is_empty() { feasible.iter().collect() } else { elsewhere };
            let least = choice.into_iter().map(|host| world.twin.soft_broken(vm, host)).min();
            prop_assert_eq!(Some(broken), least);
        }
    }

    #[test]
    fn every_host_that_may_not_take_a_vm_is_told_with_a_true_reason(world in worlds()) {
        let mut before = world.twin.clone();
        let mut placer = world.placer.clone();
        let lost: BTreeSet<HostId> = before.inventory.hosts.keys().take(1).cloned().collect();
        // One that is lost takes what nobody carries yet.
        for vm in &world.wanted {
            if let Some(host) = lost.iter().find(|host| placer.admits(vm, host).is_ok()) {
                placer.occupy(vm, host);
                before.at.insert(vm.clone(), host.clone());
            }
        }
        let (plan, told) = placer.what_if_explained(&lost);
        prop_assert_eq!(&plan, &placer.what_if_hosts(&lost), "explaining changes nothing");
        before.at.retain(|_, host| !lost.contains(host));
        let after_plan = {
            let mut after = before.clone();
            after.at.extend(plan.placements.iter().map(|one| (one.vm.clone(), one.host.clone())));
            after
        };
        prop_assert_eq!(told.len(), plan.placements.len() + plan.unplaced.len());
        for (vm, excluded) in &told {
            let mut others = after_plan.clone();
            others.at.remove(vm);
            let mut seen: BTreeSet<&HostId> = BTreeSet::new();
            for one in excluded {
                for host in &one.hosts {
                    prop_assert!(seen.insert(host), "{host} twice for {vm}");
                    let assumed = one.constraint == Constraint::Unusable(Reason::Assumed);
                    let is_true = if assumed {
                        lost.contains(host)
                    } else {
                        others.against(vm, host, false).contains(&one.constraint)
                    };
                    prop_assert!(is_true, "{vm} on {host}: {} is not true", one.constraint);
                }
            }
            for host in others.inventory.hosts.keys().filter(|host| !seen.contains(host)) {
                prop_assert!(others.against(vm, host, false).is_empty(), "{vm} on {host}: nobody says why not");
            }
        }
    }

    #[test]
    fn a_plan_breaks_no_hard_rule_and_leaves_no_higher_tier_out_for_a_lower_one(world in worlds()) {
        let plan = world.placer.plan(&world.wanted, &world.options);
        let mut after = world.twin.clone();
        let mut planned = BTreeSet::new();
        for one in &plan.placements {
            prop_assert!(after.at.insert(one.vm.clone(), one.host.clone()).is_none(), "{} twice", one.vm);
            planned.insert(one.vm.clone());
        }
        let unplaced: BTreeSet<VmId> = plan.unplaced.iter().map(|left| left.vm.clone()).collect();
        let all: BTreeSet<VmId> = world.wanted.iter().cloned().collect();
        prop_assert_eq!(&planned | &unplaced, all, "who is wanted is placed or told why not");
        prop_assert!(planned.is_disjoint(&unplaced));
        for one in &plan.placements {
            // Seen as the last one to come, each is allowed: so all are.
            let mut before = after.clone();
            before.at.remove(&one.vm);
            let first = world.options.first_placements.contains(&one.vm);
            let against = before.against(&one.vm, &one.host, first);
            prop_assert!(against.is_empty(), "{} on {}: {against:?}", one.vm, one.host);
        }
        for left in &plan.unplaced {
            let tier = world.twin.inventory.vms[&left.vm].priority;
            let then = after.without_lower(tier, &planned);
            let first = world.options.first_placements.contains(&left.vm);
            let feasible = then.feasible(&left.vm, first);
            prop_assert!(feasible.is_empty(), "I5: {} could go to {feasible:?}", left.vm);
            let counted: u32 = left.exclusions.iter().map(|exclusion| exclusion.hosts).sum();
            prop_assert_eq!(counted as usize, world.twin.inventory.hosts.len(), "every host counts once");
            for exclusion in &left.exclusions {
                let against = then.against(&left.vm, &exclusion.example, first);
                prop_assert!(
                    against.contains(&exclusion.constraint),
                    "{} on {}: {} is not true: {against:?}", left.vm, exclusion.example, exclusion.constraint
                );
                let true_of = world.twin.inventory.hosts.keys().filter(|host| {
                    then.against(&left.vm, host, first).contains(&exclusion.constraint)
                });
                prop_assert!(true_of.count() >= exclusion.hosts as usize, "{} counts too many", exclusion.constraint);
            }
        }
    }
}

/// Two hosts of one rack, the second without a session, and two VMs that may not share it: the larger is of the higher
/// tier, and only the second host has room for it.
#[test]
fn a_lower_tier_takes_no_place_from_a_higher_one_that_needs_a_host_without_a_session() {
    let hosts = [(0, 4, 1, false, false, true), (0, 4, 8, false, false, true)];
    let vms = [(1, 8, 1, false, None, None), (1, 1, 3, false, None, None)];
    let groups = [(BTreeSet::from([0, 1]), vec![(true, 1, true)])];
    let mut world = build(&hosts, &vms, &groups, false);
    let wanted = [vm_id(0), vm_id(1)];
    let placed = |world: &World| {
        let plan = world.placer.plan(&wanted, &world.options);
        plan.placements.into_iter().map(|planned| (planned.vm, planned.host)).collect::<Vec<_>>()
    };
    assert_eq!(placed(&world), [(vm_id(0), host_id(1))]);
    world.options.unreached = BTreeSet::from([host_id(1)]);
    assert_eq!(placed(&world), [(vm_id(0), host_id(1))], "nothing else has room for it");
    // Where nobody needs it, it is left alone.
    let mut world = build(&hosts, &vms[1..], &[], false);
    world.options.unreached = BTreeSet::from([host_id(1)]);
    let plan = world.placer.plan(&[vm_id(0)], &world.options);
    assert_eq!(plan.placements[0].host, host_id(0), "though the other has more room");
}
