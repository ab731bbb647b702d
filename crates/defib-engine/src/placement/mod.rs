//! Where VMs go: the pure function that all of planning is.
//!
//! Restarting, first placement, "what if this rack failed" and "would everything restart" ask the same
//! question of the same code. Hard rules are never broken: capacity in every dimension, labels, hard
//! anti-affinity per fault-domain level, hosts that are not in use. Soft rules are broken last, and named.
//!
//! Tiers are planned strictly in order, so no lower tier takes what a higher one could use. Within a tier the
//! constrained come first, then the big ones (first fit decreasing). It is a heuristic: when a VM finds no
//! place, one earlier placement of this plan, of the same or a lower tier, may move to make room (one step, the
//! [`SWAPS_TRIED`] newest); deeper rearrangements are not searched.

mod index;
mod plan;
mod reasons;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

use defib_model::{HostId, HostNote, Inventory, VmId, inventory::Priority};
use index::{Domains, HostSlot, Occupancy, VmSlot};
pub use plan::SWAPS_TRIED;
pub use reasons::{Because, Constraint, Excluded, Exclusion, Reason, SoftBreak, Usability};

/// What a plan must heed beyond the rules.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Hosts where a VM failed lately: taken only if there is no other.
    pub avoid: BTreeMap<VmId, BTreeSet<HostId>>,
    /// Where a VM ran well: taken if no rule is broken by it, soft ones included.
    pub prefer: BTreeMap<VmId, HostId>,
    /// VMs that run for the first time: they prefer their declared host and leave the spares alone.
    pub first_placements: BTreeSet<VmId>,
    /// Hosts that can't be told anything now: taken only if some VM finds no place without them.
    pub unreached: BTreeSet<HostId>,
}

/// A VM and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Which VM.
    pub vm: VmId,
    /// Where.
    pub host: HostId,
    /// What decided for it.
    pub because: Because,
    /// Soft rules that this breaks.
    pub broken: Vec<SoftBreak>,
}

/// A VM without a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaced {
    /// Which VM.
    pub vm: VmId,
    /// Why no host will do: together they count every host once.
    pub exclusions: Vec<Exclusion>,
}

/// Places for VMs, in the order of planning, and who has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Who goes where.
    pub placements: Vec<Planned>,
    /// Who stays without a place.
    pub unplaced: Vec<Unplaced>,
}

/// A fault domain whose failure now would leave VMs without a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unprotected {
    /// Its level; `host` is the narrowest.
    pub level: String,
    /// Which one, as a path from the widest level; a host by its name.
    pub domain: String,
    /// The VMs.
    pub vms: Vec<VmId>,
}

/// An inventory with dense numbers, and who is where. Follows changes one by one. What only another inventory
/// changes is shared between clones, so that a clone costs what a plan costs anyway.
#[derive(Debug, Clone, Default)]
pub struct Placer {
    hosts: Vec<HostSlot>,
    host_numbers: Arc<BTreeMap<HostId, usize>>,
    vms: Arc<Vec<VmSlot>>,
    vm_numbers: Arc<BTreeMap<VmId, usize>>,
    level_names: Arc<Vec<String>>,
    domains: Arc<Domains>,
    resource_names: Arc<Vec<String>>,
    occupancy: Occupancy,
    /// VMs by the UUIDs in their definitions.
    machines: Arc<BTreeMap<String, Vec<usize>>>,
    /// Where the machine that a VM is runs without being ours.
    elsewhere: BTreeMap<usize, BTreeSet<usize>>,
    /// Where another machine of a VM's name does.
    namesakes: BTreeMap<usize, BTreeSet<usize>>,
}

impl Placer {
    /// Nobody placed yet, and no host usable.
    #[must_use]
    pub fn new(inventory: &Inventory) -> Self {
        index::build(inventory)
    }

    /// Whether a host may receive VMs.
    pub fn set_host(&mut self, host: &HostId, usable: Usability) {
        if let Some(slot) = self.host_numbers.get(host).and_then(|number| self.hosts.get_mut(*number)) {
            slot.usable = usable;
        }
    }

    /// What the agent of a host says of it.
    pub fn set_note(&mut self, host: &HostId, note: &HostNote) {
        let Some(number) = self.host_numbers.get(host).copied() else { return };
        if let Some(slot) = self.hosts.get_mut(number) {
            slot.unreachable = note.unreachable.keys().cloned().collect();
        }
        for places in [&mut self.elsewhere, &mut self.namesakes] {
            places.retain(|_, hosts| {
                hosts.remove(&number);
                !hosts.is_empty()
            });
        }
        for (uuid, name) in &note.unprotected {
            let (same, namesake) = self.meant(uuid, name);
            let same: Vec<usize> = same.to_vec();
            for vm in same {
                self.elsewhere.entry(vm).or_default().insert(number);
            }
            if let Some(vm) = namesake {
                self.namesakes.entry(vm).or_default().insert(number);
            }
        }
    }

    /// The VMs that a domain is, by its UUID; and the one that only has its name.
    fn meant(&self, uuid: &str, name: &str) -> (&[usize], Option<usize>) {
        let same = self.machines.get(&index::digits(uuid)).map(Vec::as_slice).unwrap_or_default();
        let namesake = VmId::new(name).ok().and_then(|vm| self.vm_numbers.get(&vm)).copied();
        (same, namesake.filter(|vm| !same.contains(vm)))
    }

    /// The VMs that may be among the domains that run somewhere unprotected.
    #[must_use]
    pub fn unprotected_of(&self, note: &HostNote) -> BTreeSet<VmId> {
        let meant = note.unprotected.iter().flat_map(|(uuid, name)| {
            let (same, namesake) = self.meant(uuid, name);
            same.iter().copied().chain(namesake)
        });
        meant.filter_map(|vm| self.vms.get(vm)).map(|vm| vm.id.clone()).collect()
    }

    /// What forbids the first start of a VM: a machine of its name that runs unprotected. Whoever declared it may well
    /// have meant that one, and got its UUID wrong.
    #[must_use]
    pub fn namesake(&self, vm: &VmId) -> Option<Constraint> {
        self.vm_numbers.get(vm).and_then(|vm| self.namesake_of(*vm))
    }

    fn namesake_of(&self, vm: usize) -> Option<Constraint> {
        let host = self.namesakes.get(&vm)?.first()?;
        Some(Constraint::Namesake { host: self.hosts.get(*host)?.id.clone() })
    }

    /// A VM runs or is intended on a host; it leaves where it was.
    pub fn occupy(&mut self, vm: &VmId, host: &HostId) {
        self.release(vm);
        if let (Some(vm), Some(host)) = (self.vm_numbers.get(vm), self.host_numbers.get(host)) {
            self.occupancy.add(&self.hosts, &self.vms, &self.domains, *vm, *host);
        }
    }

    /// A VM is nowhere.
    pub fn release(&mut self, vm: &VmId) {
        if let Some(vm) = self.vm_numbers.get(vm) {
            self.occupancy.remove(&self.hosts, &self.vms, &self.domains, *vm);
        }
    }

    /// Whether a VM may be placed on a host now, by all hard rules.
    ///
    /// # Errors
    /// The constraint that forbids it.
    pub fn admits(&self, vm: &VmId, host: &HostId) -> Result<(), Constraint> {
        let (Some(vm), Some(host)) = (self.vm_numbers.get(vm), self.host_numbers.get(host)) else {
            return Err(Constraint::Unusable(Reason::NeverSeen));
        };
        self.admissible(&self.occupancy, *vm, *host, false).map_or(Ok(()), Err)
    }

    /// Places for `wanted`; changes nothing.
    #[must_use]
    pub fn plan(&self, wanted: &[VmId], options: &PlanOptions) -> Plan {
        let number = |vm: &VmId| self.vm_numbers.get(vm).copied();
        let unreached: BTreeSet<usize> =
            options.unreached.iter().filter_map(|host| self.host_numbers.get(host).copied()).collect();
        let plan_without = |without: &BTreeSet<usize>| {
            let wanted = wanted.iter().filter_map(number).collect();
            self.plan_on(&mut self.occupancy.clone(), wanted, options, without)
        };
        let mut plan = plan_without(&unreached);
        if !unreached.is_empty() && !plan.unplaced.is_empty() {
            // All of them anew: what was left out must not find that a lower tier took what it could use.
            let whole = plan_without(&BTreeSet::new());
            let same =
                whole.unplaced.iter().map(|left| &left.vm).eq(plan.unplaced.iter().map(|left| &left.vm));
            if same {
                plan.unplaced = whole.unplaced;
            } else {
                plan = whole;
            }
        }
        plan
    }

    /// What would become of the VMs of these hosts if all of them failed now.
    #[must_use]
    pub fn what_if_hosts(&self, lost: &BTreeSet<HostId>) -> Plan {
        let lost: BTreeSet<usize> =
            lost.iter().filter_map(|host| self.host_numbers.get(host).copied()).collect();
        self.what_if(&mut self.occupancy.clone(), &lost, |_, _| {})
    }

    /// The same, and for every VM that is asked about each host that may not take it, when all others of the plan
    /// have their places. Hosts that are missing there would do, but are no better.
    #[must_use]
    pub fn what_if_explained(&self, lost: &BTreeSet<HostId>) -> (Plan, BTreeMap<VmId, Vec<Excluded>>) {
        let lost: BTreeSet<usize> =
            lost.iter().filter_map(|host| self.host_numbers.get(host).copied()).collect();
        let mut excluded = BTreeMap::new();
        let plan = self.what_if(&mut self.occupancy.clone(), &lost, |occupancy, vm| {
            let place = occupancy.host_of(vm);
            occupancy.remove(&self.hosts, &self.vms, &self.domains, vm);
            excluded.insert(self.vms[vm].id.clone(), self.excluded(occupancy, vm, &lost));
            if let Some(host) = place {
                occupancy.add(&self.hosts, &self.vms, &self.domains, vm, host);
            }
        });
        (plan, excluded)
    }

    /// `occupancy` is as before when this returns. `explain` is called for each VM when the plan is made.
    fn what_if(
        &self,
        occupancy: &mut Occupancy,
        lost: &BTreeSet<usize>,
        mut explain: impl FnMut(&mut Occupancy, usize),
    ) -> Plan {
        let victims: Vec<(usize, usize)> = lost
            .iter()
            .flat_map(|host| occupancy.on(*host).iter().map(|vm| (*vm, *host)).collect::<Vec<_>>())
            .collect();
        for (vm, _) in &victims {
            occupancy.remove(&self.hosts, &self.vms, &self.domains, *vm);
        }
        let wanted: Vec<usize> = victims
            .iter()
            .map(|(vm, _)| *vm)
            .filter(|vm| self.vms[*vm].priority != Priority::Disabled)
            .collect();
        let plan = self.plan_on(occupancy, wanted.clone(), &PlanOptions::default(), lost);
        for vm in wanted {
            explain(occupancy, vm);
        }
        for (vm, host) in victims {
            occupancy.remove(&self.hosts, &self.vms, &self.domains, vm);
            occupancy.add(&self.hosts, &self.vms, &self.domains, vm, host);
        }
        plan
    }

    /// Admission control: every host and every fault domain whose failure now would leave VMs without a
    /// place, and which VMs. It plans for each of them, so it takes its time.
    #[must_use]
    pub fn protection(&self) -> Vec<Unprotected> {
        let mut occupancy = self.occupancy.clone();
        let mut weak = Vec::new();
        for level in 0..=self.level_names.len() {
            for (domain, members) in self.domains.members(level) {
                let lost: BTreeSet<usize> = members.iter().copied().collect();
                let plan = self.what_if(&mut occupancy, &lost, |_, _| {});
                if !plan.unplaced.is_empty() {
                    weak.push(Unprotected {
                        level: self.level_names.get(level).map_or("host", String::as_str).to_string(),
                        domain,
                        vms: plan.unplaced.into_iter().map(|left| left.vm).collect(),
                    });
                }
            }
        }
        weak
    }

    /// Checks that what is placed breaks no hard rule, and that the books are right.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        self.occupancy.check(self)
    }
}
