//! Choosing: the order of planning, the score of a place, and one step of rearrangement.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::ToString,
    vec::Vec,
};
use core::cmp::Reverse;

use defib_model::{HostId, inventory::Priority};

use super::{
    Because, Constraint, Excluded, Exclusion, Placer, Plan, PlanOptions, Planned, Reason, SoftBreak,
    Unplaced, Usability,
    index::{Occupancy, Room},
};

/// How many placements of the same plan are tried to be moved for a VM that finds no place.
pub const SWAPS_TRIED: usize = 64;

/// How good a place is: compared field by field, less is better. Between equals the host with more room
/// wins, then the earlier name: that is the order in which hosts are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// The VM failed there lately: a wish for spread must not send it there again and again.
    avoided: bool,
    /// Soft rules that it breaks.
    broken: u32,
    /// Members of the VM's groups that share its domains already.
    crowd: u32,
}

const BEST: Score = Score { avoided: false, broken: 0, crowd: 0 };

impl Placer {
    /// The first constraint that forbids a place, if one does.
    pub(super) fn admissible(
        &self,
        occupancy: &Occupancy,
        vm: usize,
        host: usize,
        first_placement: bool,
    ) -> Option<Constraint> {
        let (slot, wanted) = (&self.hosts[host], &self.vms[vm]);
        if let Usability::Unusable(reason) = slot.usable {
            return Some(Constraint::Unusable(reason));
        }
        let elsewhere = self.elsewhere.get(&vm);
        if let Some(other) = elsewhere.and_then(|hosts| hosts.iter().find(|other| **other != host))
            && !mutated!(StartBesideUnprotected)
        {
            return Some(Constraint::RunsUnprotected { host: self.hosts[*other].id.clone() });
        }
        if first_placement
            && let Some(constraint) = self.namesake_of(vm)
            && !mutated!(StartBesideNamesake)
        {
            return Some(constraint);
        }
        // One that runs there already takes nothing that was kept free.
        if first_placement && slot.spare && elsewhere.is_none() {
            return Some(Constraint::Spare);
        }
        if let Some(label) = wanted.requires.iter().find(|label| !slot.labels.contains(*label))
            && !mutated!(IgnoreRequirements)
        {
            return Some(Constraint::Label(label.clone()));
        }
        if let Some(datastore) = wanted.datastore.as_ref().filter(|name| slot.unreachable.contains(*name))
            && !mutated!(IgnoreDatastores)
        {
            return Some(Constraint::Datastore(datastore.clone()));
        }
        if let Some(resource) = occupancy.short_of(host, &wanted.need)
            && !mutated!(IgnoreCapacity)
        {
            return Some(Constraint::Capacity { resource: self.resource_names[resource].clone() });
        }
        for rule in &wanted.rules {
            let slot = &self.domains.rules[*rule];
            if slot.hard
                && occupancy.members(&self.domains, *rule, host) >= slot.limit
                && !mutated!(IgnoreAntiAffinity)
            {
                let level = self.level_names.get(slot.level).map_or_else(|| "host".to_string(), Clone::clone);
                return Some(Constraint::AntiAffinity { group: slot.group.clone(), level });
            }
        }
        None
    }

    fn score(&self, occupancy: &Occupancy, vm: usize, host: usize, avoided: bool) -> Score {
        Score { avoided, ..self.score_up_to(occupancy, vm, host, self.level_names.len()) }
    }

    /// By the rules of all levels but the hosts' own.
    fn score_above_hosts(&self, occupancy: &Occupancy, vm: usize, host: usize) -> Score {
        self.score_up_to(occupancy, vm, host, self.level_names.len().saturating_sub(1))
    }

    fn score_up_to(&self, occupancy: &Occupancy, vm: usize, host: usize, level: usize) -> Score {
        let (mut broken, mut crowd) = (0_u32, 0_u32);
        for rule in &self.vms[vm].rules {
            let slot = &self.domains.rules[*rule];
            if slot.level > level {
                continue;
            }
            let members = occupancy.members(&self.domains, *rule, host);
            crowd = crowd.saturating_add(members);
            if !slot.hard && members >= slot.limit {
                broken = broken.saturating_add(1);
            }
        }
        Score { avoided: false, broken, crowd }
    }

    /// The best host for a VM and why, or `None`.
    fn best(
        &self,
        occupancy: &Occupancy,
        vm: usize,
        options: &PlanOptions,
        without: &BTreeSet<usize>,
    ) -> Option<(usize, Because)> {
        let id = &self.vms[vm].id;
        let first_placement = options.first_placements.contains(id);
        let avoid = options.avoid.get(id);
        let fits = |host: usize| {
            !without.contains(&host) && self.admissible(occupancy, vm, host, first_placement).is_none()
        };
        if first_placement
            && let Some(host) = self.vms[vm].first_host
            && fits(host)
        {
            return Some((host, Because::FirstHost));
        }
        if let Some(host) = options.prefer.get(id).and_then(|host| self.host_numbers.get(host)).copied()
            && fits(host)
            && self.score(occupancy, vm, host, false).broken == 0
        {
            return Some((host, Because::RanWell));
        }
        if avoid.is_none() && self.is_scored_by_domain(vm) {
            return self.best_by_domain(occupancy, vm, fits);
        }
        self.best_of_all(occupancy, vm, avoid, fits)
    }

    fn best_of_all(
        &self,
        occupancy: &Occupancy,
        vm: usize,
        avoid: Option<&BTreeSet<HostId>>,
        fits: impl Fn(usize) -> bool,
    ) -> Option<(usize, Because)> {
        let mut best: Option<(Score, usize)> = None;
        let mut others = false;
        for host in occupancy.by_room() {
            if !fits(host) {
                continue;
            }
            // Even when the best is found, one more is looked for: there is a choice, or there is none.
            others |= best.is_some();
            if best.is_some_and(|(held, _)| held == BEST) {
                break;
            }
            let avoided = avoid.is_some_and(|avoid| avoid.contains(&self.hosts[host].id));
            let score = self.score(occupancy, vm, host, avoided);
            if best.is_none_or(|(held, _)| score < held) {
                best = Some((score, host));
            }
        }
        let (score, host) = best?;
        let because = match avoid {
            _ if !others => Because::OnlyHost,
            Some(_) if score.avoided => Because::OnlyWhereItFailed,
            Some(_) => Because::NotWhereItFailed,
            None => self.by_score(vm, score),
        };
        Some((host, because))
    }

    /// What decided where there was a choice.
    fn by_score(&self, vm: usize, score: Score) -> Because {
        if self.vms[vm].rules.iter().any(|rule| self.scores(*rule)) {
            Because::FewestBeside { members: score.crowd }
        } else {
            Because::MostRoom
        }
    }

    /// Whether a rule makes one place better than another. A hard rule that allows one member does not: where there is
    /// one already no other may be.
    fn scores(&self, rule: usize) -> bool {
        let slot = &self.domains.rules[rule];
        !(slot.hard && slot.limit <= 1)
    }

    /// Whether some rule scores the places of a VM, and every rule that does scores whole domains alike: then the
    /// choice is first of the domain and then of the host.
    fn is_scored_by_domain(&self, vm: usize) -> bool {
        let mut scored = false;
        for rule in &self.vms[vm].rules {
            if self.scores(*rule) {
                if self.domains.rules[*rule].level >= self.level_names.len() {
                    return false;
                }
                scored = true;
            }
        }
        scored
    }

    /// The same host as by looking at all of them in the order of room, but one domain's score stands for all of
    /// its hosts, and only in the best domains hosts are looked at.
    fn best_by_domain(
        &self,
        occupancy: &Occupancy,
        vm: usize,
        fits: impl Fn(usize) -> bool,
    ) -> Option<(usize, Because)> {
        let examples = self.domains.examples().iter().enumerate();
        let mut domains: Vec<(Score, usize)> =
            examples.map(|(domain, host)| (self.score_above_hosts(occupancy, vm, *host), domain)).collect();
        domains.sort_unstable();
        let mut best: Option<(Score, Room)> = None;
        for &(score, domain) in &domains {
            if best.is_some_and(|(held, _)| held < score) {
                break;
            }
            let room = occupancy
                .by_room_in(domain)
                .take_while(|room| best.is_none_or(|(_, held)| *room < held))
                .find(|(_, host)| fits(*host));
            if let Some(room) = room {
                best = Some((score, room));
            }
        }
        let (score, (_, host)) = best?;
        let is_other = |other: usize| other != host && fits(other);
        let others =
            domains.iter().any(|(_, domain)| occupancy.by_room_in(*domain).any(|(_, other)| is_other(other)));
        Some((host, if others { self.by_score(vm, score) } else { Because::OnlyHost }))
    }

    pub(super) fn plan_on(
        &self,
        occupancy: &mut Occupancy,
        mut wanted: Vec<usize>,
        options: &PlanOptions,
        without: &BTreeSet<usize>,
    ) -> Plan {
        wanted.sort_by_key(|vm| {
            let slot = &self.vms[*vm];
            let bound =
                slot.rules.iter().any(|rule| self.domains.rules[*rule].hard) || !slot.requires.is_empty();
            (slot.priority, !bound, Reverse(slot.need[1]), Reverse(slot.need[0]), *vm)
        });
        wanted.dedup();
        let mut placed: Vec<usize> = Vec::with_capacity(wanted.len());
        let mut reasons: BTreeMap<usize, Because> = BTreeMap::new();
        let mut unplaced = Vec::new();
        for tier in wanted.chunk_by(|one, other| self.vms[*one].priority == self.vms[*other].priority) {
            let mut left = Vec::new();
            for vm in tier.iter().copied() {
                if let Some((host, because)) = self.best(occupancy, vm, options, without) {
                    occupancy.add(&self.hosts, &self.vms, &self.domains, vm, host);
                    placed.push(vm);
                    reasons.insert(vm, because);
                } else if let Some(moved) = self.make_room(occupancy, vm, &placed, options, without) {
                    placed.push(vm);
                    reasons.insert(vm, Because::RoomMade { moved: self.vms[moved].id.clone() });
                    reasons.insert(moved, Because::MovedFor { vm: self.vms[vm].id.clone() });
                } else {
                    left.push(vm);
                }
            }
            // Room that was made for a later one changes what is short where.
            left.retain(|vm| {
                let found = self.best(occupancy, *vm, options, without);
                if let Some((host, because)) = found.clone() {
                    occupancy.add(&self.hosts, &self.vms, &self.domains, *vm, host);
                    placed.push(*vm);
                    reasons.insert(*vm, because);
                }
                found.is_none()
            });
            unplaced.extend(left.into_iter().map(|vm| Unplaced {
                vm: self.vms[vm].id.clone(),
                exclusions: self.exclusions(occupancy, vm, options, without),
            }));
        }
        let placements = placed
            .into_iter()
            .filter_map(|vm| {
                let (host, because) = (occupancy.host_of(vm)?, reasons.remove(&vm)?);
                Some(Planned {
                    vm: self.vms[vm].id.clone(),
                    host: self.hosts[host].id.clone(),
                    because,
                    broken: self.broken(occupancy, vm, host),
                })
            })
            .collect();
        Plan { placements, unplaced }
    }

    /// Moves one earlier placement of this plan elsewhere, if that lets `vm` in; which one. Never one of a higher tier.
    fn make_room(
        &self,
        occupancy: &mut Occupancy,
        vm: usize,
        placed: &[usize],
        options: &PlanOptions,
        without: &BTreeSet<usize>,
    ) -> Option<usize> {
        let first_placement = options.first_placements.contains(&self.vms[vm].id);
        let tier: Priority = self.vms[vm].priority;
        let mut move_one = |other: usize| {
            let Some(host) = occupancy.host_of(other) else { return false };
            occupancy.remove(&self.hosts, &self.vms, &self.domains, other);
            if self.admissible(occupancy, vm, host, first_placement).is_none() {
                occupancy.add(&self.hosts, &self.vms, &self.domains, vm, host);
                if let Some((elsewhere, _)) = self.best(occupancy, other, options, without) {
                    occupancy.add(&self.hosts, &self.vms, &self.domains, other, elsewhere);
                    return true;
                }
                occupancy.remove(&self.hosts, &self.vms, &self.domains, vm);
            }
            occupancy.add(&self.hosts, &self.vms, &self.domains, other, host);
            false
        };
        placed
            .iter()
            .rev()
            .copied()
            .filter(|other| self.vms[*other].priority >= tier)
            .take(SWAPS_TRIED)
            .find(|other| move_one(*other))
    }

    fn broken(&self, occupancy: &Occupancy, vm: usize, host: usize) -> Vec<SoftBreak> {
        self.vms[vm]
            .rules
            .iter()
            .filter_map(|rule| {
                let slot = &self.domains.rules[*rule];
                // The VM itself is counted by now.
                (!slot.hard && occupancy.members(&self.domains, *rule, host) > slot.limit).then(|| {
                    SoftBreak {
                        group: slot.group.clone(),
                        level: self
                            .level_names
                            .get(slot.level)
                            .map_or_else(|| "host".to_string(), Clone::clone),
                        limit: slot.limit,
                    }
                })
            })
            .collect()
    }

    /// Every host that may not take a VM, by the first constraint that says so.
    pub(super) fn excluded(
        &self,
        occupancy: &Occupancy,
        vm: usize,
        without: &BTreeSet<usize>,
    ) -> Vec<Excluded> {
        let id = |host: usize| self.hosts[host].id.clone();
        self.by_constraint(occupancy, vm, false, without)
            .into_iter()
            .map(|(constraint, hosts)| Excluded { constraint, hosts: hosts.into_iter().map(id).collect() })
            .collect()
    }

    /// Why no host will do; every host counts once.
    fn exclusions(
        &self,
        occupancy: &Occupancy,
        vm: usize,
        options: &PlanOptions,
        without: &BTreeSet<usize>,
    ) -> Vec<Exclusion> {
        let first_placement = options.first_placements.contains(&self.vms[vm].id);
        let mut exclusions: Vec<Exclusion> = self
            .by_constraint(occupancy, vm, first_placement, without)
            .into_iter()
            .filter_map(|(constraint, hosts)| {
                let example = self.hosts[*hosts.first()?].id.clone();
                Some(Exclusion { constraint, hosts: u32::try_from(hosts.len()).unwrap_or(u32::MAX), example })
            })
            .collect();
        exclusions.sort_by_key(|exclusion| Reverse(exclusion.hosts));
        exclusions
    }

    /// The hosts that may not take a VM, in their order, by the first constraint that excludes each.
    fn by_constraint(
        &self,
        occupancy: &Occupancy,
        vm: usize,
        first_placement: bool,
        without: &BTreeSet<usize>,
    ) -> BTreeMap<Constraint, Vec<usize>> {
        let mut hosts: BTreeMap<Constraint, Vec<usize>> = BTreeMap::new();
        for host in 0..self.hosts.len() {
            let constraint = if without.contains(&host) {
                Some(Constraint::Unusable(Reason::Assumed))
            } else {
                self.admissible(occupancy, vm, host, first_placement)
            };
            if let Some(constraint) = constraint {
                hosts.entry(constraint).or_default().push(host);
            }
        }
        hosts
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::String, vec};

    use defib_model::inventory::{
        Definition, FaultDomain, Group, Host, Readiness, SelfFence, SpreadRule, Vm,
    };
    use defib_model::{GroupId, Inventory, Resources, VmId};

    use super::*;

    /// A generator of its own, so that a failure can be repeated.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }

    fn inventory(random: &mut Random) -> Inventory {
        let mut inventory =
            Inventory { levels: vec![String::from("row"), String::from("rack")], ..Inventory::default() };
        let hosts = 12;
        for number in 0..hosts {
            let id = HostId::new(&format!("h{number:02}")).unwrap();
            let domain = vec![format!("row{}", number / 6), format!("rack{}", number / 2)];
            let host = Host {
                id: id.clone(),
                domain: FaultDomain(domain),
                capacity: Resources::new(4000 + 1000 * random.below(4), 16_384),
                labels: BTreeSet::new(),
                fencing: vec![],
                self_fence: SelfFence::None,
                spare: random.below(8) == 0,
                neighbour_address: None,
                kdump_wait: None,
            };
            inventory.hosts.insert(id, host);
        }
        for group in 0..4 {
            let mut members = BTreeSet::new();
            for member in 0..8 {
                let id = VmId::new(&format!("v{group}-{member}")).unwrap();
                let vm = Vm {
                    id: id.clone(),
                    priority: Priority::Medium,
                    resources: Resources::new(500 + 500 * random.below(3), 1024),
                    requires: BTreeSet::new(),
                    depends_on: BTreeSet::new(),
                    readiness: Readiness::PoweredOn,
                    readiness_timeout: None,
                    datastore: None,
                    first_host: None,
                    definition: Definition { driver: "process".into(), arguments: vec!["x".into()] },
                };
                inventory.vms.insert(id.clone(), vm);
                members.insert(id);
            }
            let mut rules = vec![];
            for level in 0..3 {
                if random.below(2) == 0 {
                    let limit = 1 + u32::try_from(random.below(4)).unwrap();
                    rules.push(SpreadRule { level, limit, hard: random.below(2) == 0 });
                }
            }
            let id = GroupId::new(&format!("g{group}")).unwrap();
            inventory.groups.insert(id.clone(), Group { id, members, rules });
        }
        inventory
    }

    #[test]
    fn choosing_by_domain_finds_what_looking_at_all_hosts_finds() {
        let mut compared = 0;
        for seed in 1..300 {
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
            let inventory = inventory(&mut random);
            let mut placer = Placer::new(&inventory);
            let hosts: Vec<&HostId> = inventory.hosts.keys().collect();
            for host in &hosts {
                if random.below(6) > 0 {
                    placer.set_host(host, Usability::Usable);
                }
            }
            for vm in inventory.vms.keys() {
                let host = hosts[usize::try_from(random.below(hosts.len() as u64)).unwrap()];
                if random.below(3) > 0 && placer.admits(vm, host).is_ok() {
                    placer.occupy(vm, host);
                }
            }
            for vm in (0..placer.vms.len()).filter(|vm| placer.occupancy.host_of(*vm).is_none()) {
                if placer.is_scored_by_domain(vm) {
                    let fits = |host| placer.admissible(&placer.occupancy, vm, host, false).is_none();
                    let all = placer.best_of_all(&placer.occupancy, vm, None, fits);
                    assert_eq!(placer.best_by_domain(&placer.occupancy, vm, fits), all, "seed {seed}");
                    compared += usize::from(all.is_some());
                }
            }
        }
        assert!(compared > 500, "only {compared} choices were compared");
    }
}
