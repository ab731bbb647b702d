//! Choosing: the order of planning, the score of a place, and one step of rearrangement.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::ToString,
    vec::Vec,
};
use core::cmp::Reverse;

use defib_model::inventory::Priority;

use super::{
    Constraint, Exclusion, Placer, Plan, PlanOptions, Planned, Reason, SoftBreak, Unplaced, Usability,
    index::Occupancy,
};

/// How many placements of the same plan are tried to be moved for a VM that finds no place.
pub const SWAPS_TRIED: usize = 64;

/// How good a place is: compared field by field, less is better. Between equals the host with more room
/// wins, then the earlier name: that is the order in which hosts are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Soft rules that it breaks.
    broken: u32,
    /// Members of the VM's groups that share its domains already.
    crowd: u32,
    /// The VM failed there lately.
    avoided: bool,
}

const BEST: Score = Score { broken: 0, crowd: 0, avoided: false };

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
        if first_placement && slot.spare {
            return Some(Constraint::Spare);
        }
        if let Some(label) = wanted.requires.iter().find(|label| !slot.labels.contains(*label)) {
            return Some(Constraint::Label(label.clone()));
        }
        if let Some(resource) = occupancy.short_of(host, &wanted.need) {
            return Some(Constraint::Capacity { resource: self.resource_names[resource].clone() });
        }
        for rule in &wanted.rules {
            let slot = &self.domains.rules[*rule];
            if slot.hard && occupancy.members(&self.domains, *rule, host) >= slot.limit {
                let level = self.level_names.get(slot.level).map_or_else(|| "host".to_string(), Clone::clone);
                return Some(Constraint::AntiAffinity { group: slot.group.clone(), level });
            }
        }
        None
    }

    fn score(&self, occupancy: &Occupancy, vm: usize, host: usize, avoided: bool) -> Score {
        let (mut broken, mut crowd) = (0_u32, 0_u32);
        for rule in &self.vms[vm].rules {
            let slot = &self.domains.rules[*rule];
            let members = occupancy.members(&self.domains, *rule, host);
            crowd = crowd.saturating_add(members);
            if !slot.hard && members >= slot.limit {
                broken = broken.saturating_add(1);
            }
        }
        Score { broken, crowd, avoided }
    }

    /// The best host for a VM, or `None`.
    fn best(
        &self,
        occupancy: &Occupancy,
        vm: usize,
        options: &PlanOptions,
        without: &BTreeSet<usize>,
    ) -> Option<usize> {
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
            return Some(host);
        }
        let mut best: Option<(Score, usize)> = None;
        for host in occupancy.by_room() {
            if !fits(host) {
                continue;
            }
            let avoided = avoid.is_some_and(|avoid| avoid.contains(&self.hosts[host].id));
            let score = self.score(occupancy, vm, host, avoided);
            if best.is_none_or(|(held, _)| score < held) {
                best = Some((score, host));
                if score == BEST {
                    break;
                }
            }
        }
        best.map(|(_, host)| host)
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
        let mut unplaced = Vec::new();
        for vm in wanted {
            if let Some(host) = self.best(occupancy, vm, options, without) {
                occupancy.add(&self.hosts, &self.vms, &self.domains, vm, host);
                placed.push(vm);
            } else if self.make_room(occupancy, vm, &placed, options, without) {
                placed.push(vm);
            } else {
                unplaced.push(Unplaced {
                    vm: self.vms[vm].id.clone(),
                    exclusions: self.exclusions(occupancy, vm, options, without),
                });
            }
        }
        let placements = placed
            .into_iter()
            .filter_map(|vm| {
                let host = occupancy.host_of(vm)?;
                Some(Planned {
                    vm: self.vms[vm].id.clone(),
                    host: self.hosts[host].id.clone(),
                    broken: self.broken(occupancy, vm, host),
                })
            })
            .collect();
        Plan { placements, unplaced }
    }

    /// Moves one earlier placement of this plan elsewhere, if that lets `vm` in. Never one of a higher tier.
    fn make_room(
        &self,
        occupancy: &mut Occupancy,
        vm: usize,
        placed: &[usize],
        options: &PlanOptions,
        without: &BTreeSet<usize>,
    ) -> bool {
        let first_placement = options.first_placements.contains(&self.vms[vm].id);
        let tier: Priority = self.vms[vm].priority;
        let mut move_one = |other: usize| {
            let Some(host) = occupancy.host_of(other) else { return false };
            occupancy.remove(&self.hosts, &self.vms, &self.domains, other);
            if self.admissible(occupancy, vm, host, first_placement).is_none() {
                occupancy.add(&self.hosts, &self.vms, &self.domains, vm, host);
                if let Some(elsewhere) = self.best(occupancy, other, options, without) {
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
            .filter(|other| self.vms[**other].priority >= tier)
            .take(SWAPS_TRIED)
            .any(|other| move_one(*other))
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

    /// Why no host will do; every host counts once, for the first constraint that excludes it.
    fn exclusions(
        &self,
        occupancy: &Occupancy,
        vm: usize,
        options: &PlanOptions,
        without: &BTreeSet<usize>,
    ) -> Vec<Exclusion> {
        let first_placement = options.first_placements.contains(&self.vms[vm].id);
        let mut counted: BTreeMap<Constraint, (u32, usize)> = BTreeMap::new();
        for host in 0..self.hosts.len() {
            let constraint = if without.contains(&host) {
                Some(Constraint::Unusable(Reason::Assumed))
            } else {
                self.admissible(occupancy, vm, host, first_placement)
            };
            if let Some(constraint) = constraint {
                let (count, _) = counted.entry(constraint).or_insert((0, host));
                *count = count.saturating_add(1);
            }
        }
        let mut exclusions: Vec<Exclusion> = counted
            .into_iter()
            .map(|(constraint, (hosts, example))| Exclusion {
                constraint,
                hosts,
                example: self.hosts[example].id.clone(),
            })
            .collect();
        exclusions.sort_by_key(|exclusion| Reverse(exclusion.hosts));
        exclusions
    }
}
