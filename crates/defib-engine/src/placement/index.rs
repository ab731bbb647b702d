//! The inventory in dense numbers, and the books: what is free where, who is where, and how many members of
//! each group each fault domain holds.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::cmp::Reverse;

use defib_model::{GroupId, HostId, Inventory, Resources, VmId, inventory::Priority};

use super::{Placer, Reason, Usability};

#[derive(Debug, Clone)]
pub(super) struct HostSlot {
    pub(super) id: HostId,
    pub(super) capacity: Vec<u64>,
    pub(super) labels: BTreeSet<String>,
    pub(super) spare: bool,
    pub(super) usable: Usability,
    /// Datastores that it does not reach.
    pub(super) unreachable: BTreeSet<String>,
}

#[derive(Debug, Clone)]
pub(super) struct VmSlot {
    pub(super) id: VmId,
    pub(super) priority: Priority,
    pub(super) need: Vec<u64>,
    pub(super) requires: BTreeSet<String>,
    /// Numbers of the rules that bind it.
    pub(super) rules: Vec<usize>,
    pub(super) first_host: Option<usize>,
    pub(super) datastore: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct RuleSlot {
    pub(super) group: GroupId,
    pub(super) level: usize,
    pub(super) limit: u32,
    pub(super) hard: bool,
    /// Its counters begin here in [`Occupancy::counts`], one for each domain of its level.
    first_counter: usize,
}

/// Which host hangs on which domain, per level; the last level is the host itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Domains {
    /// `of[level][host]`: number of the domain.
    of: Vec<Vec<usize>>,
    /// `names[level][domain]`.
    names: Vec<Vec<String>>,
    pub(super) rules: Vec<RuleSlot>,
    /// See [`Self::examples`].
    examples: Vec<usize>,
}

/// The hexadecimal digits of a UUID, however it is written.
pub(super) fn digits(uuid: &str) -> String {
    uuid.chars().filter(char::is_ascii_hexdigit).map(|digit| digit.to_ascii_lowercase()).collect()
}

/// The UUIDs in a definition that is XML.
fn uuids(definition: &str) -> impl Iterator<Item = String> + '_ {
    definition
        .split("<uuid>")
        .skip(1)
        .filter_map(|rest| rest.split('<').next())
        .map(digits)
        .filter(|digits| digits.len() == 32)
}

impl Domains {
    /// The domains of a level with their hosts.
    pub(super) fn members(&self, level: usize) -> Vec<(String, Vec<usize>)> {
        let Some(names) = self.names.get(level) else { return Vec::new() };
        let mut members: Vec<(String, Vec<usize>)> =
            names.iter().map(|name| (name.clone(), Vec::new())).collect();
        for (host, domain) in self.of.get(level).into_iter().flatten().enumerate() {
            if let Some((_, hosts)) = members.get_mut(*domain) {
                hosts.push(host);
            }
        }
        members
    }

    /// The domain of a host at the narrowest level above hosts, if there is one.
    pub(super) fn narrowest(&self, host: usize) -> Option<usize> {
        let level = self.of.len().checked_sub(2)?;
        self.of[level].get(host).copied()
    }

    /// One host of each domain of the narrowest level above hosts, by domain; empty if there is no such level.
    pub(super) fn examples(&self) -> &[usize] {
        &self.examples
    }

    fn counter(&self, rule: &RuleSlot, host: usize) -> usize {
        rule.first_counter + self.of[rule.level][host]
    }
}

/// Who is where, and what is left.
#[derive(Debug, Clone, Default)]
pub(super) struct Occupancy {
    place: Vec<Option<usize>>,
    on: Vec<BTreeSet<usize>>,
    free: Vec<Vec<u64>>,
    counts: Vec<u32>,
    /// Hosts by what they have left, most first; by number where equal.
    by_room: BTreeSet<Room>,
    /// The same for each domain of the narrowest level above hosts.
    by_room_in: Vec<BTreeSet<Room>>,
}

/// A host's place in the order of room: most room first, then by number.
pub(super) type Room = (Reverse<u64>, usize);

/// The share of a host that is free in its scarcest of CPU and memory, in millionths.
fn room(capacity: &[u64], free: &[u64]) -> u64 {
    (0..2)
        .map(|at| match (capacity.get(at), free.get(at)) {
            (Some(capacity), Some(free)) if *capacity > 0 => {
                u64::try_from(u128::from(*free) * 1_000_000 / u128::from(*capacity)).unwrap_or(u64::MAX)
            }
            _ => 0,
        })
        .min()
        .unwrap_or(0)
}

impl Occupancy {
    /// VMs on a host.
    pub(super) fn on(&self, host: usize) -> &BTreeSet<usize> {
        &self.on[host]
    }

    pub(super) fn host_of(&self, vm: usize) -> Option<usize> {
        self.place.get(vm).copied().flatten()
    }

    /// Hosts by room, most first.
    pub(super) fn by_room(&self) -> impl Iterator<Item = usize> + '_ {
        self.by_room.iter().map(|(_, host)| *host)
    }

    /// The hosts of a domain of the narrowest level above hosts, by room, most first.
    pub(super) fn by_room_in(&self, domain: usize) -> impl Iterator<Item = Room> + '_ {
        self.by_room_in.get(domain).into_iter().flatten().copied()
    }

    fn unlist(&mut self, domains: &Domains, capacity: &[u64], host: usize) {
        let room = (Reverse(room(capacity, &self.free[host])), host);
        self.by_room.remove(&room);
        if let Some(hosts) = domains.narrowest(host).and_then(|domain| self.by_room_in.get_mut(domain)) {
            hosts.remove(&room);
        }
    }

    fn list(&mut self, domains: &Domains, capacity: &[u64], host: usize) {
        let room = (Reverse(room(capacity, &self.free[host])), host);
        self.by_room.insert(room);
        if let Some(hosts) = domains.narrowest(host).and_then(|domain| self.by_room_in.get_mut(domain)) {
            hosts.insert(room);
        }
    }

    /// The first resource that `need` finds too little of.
    pub(super) fn short_of(&self, host: usize, need: &[u64]) -> Option<usize> {
        self.free[host].iter().zip(need).position(|(free, need)| free < need)
    }

    /// Members of a rule's group in the domain of a host.
    pub(super) fn members(&self, domains: &Domains, rule: usize, host: usize) -> u32 {
        self.counts[domains.counter(&domains.rules[rule], host)]
    }

    pub(super) fn add(
        &mut self,
        hosts: &[HostSlot],
        vms: &[VmSlot],
        domains: &Domains,
        vm: usize,
        host: usize,
    ) {
        self.place[vm] = Some(host);
        self.on[host].insert(vm);
        self.change(
            hosts,
            &vms[vm],
            domains,
            host,
            |free, need| free.saturating_sub(need),
            |count| count.saturating_add(1),
        );
    }

    pub(super) fn remove(&mut self, hosts: &[HostSlot], vms: &[VmSlot], domains: &Domains, vm: usize) {
        let Some(host) = self.place[vm].take() else { return };
        self.on[host].remove(&vm);
        self.change(hosts, &vms[vm], domains, host, u64::saturating_add, |count| count.saturating_sub(1));
        // More VMs than fit may have been found on it; then less comes back than was taken.
        let used: Vec<u64> = (0..self.free[host].len())
            .map(|at| self.on[host].iter().map(|other| vms[*other].need[at]).sum())
            .collect();
        if self.free[host]
            .iter()
            .zip(&hosts[host].capacity)
            .zip(&used)
            .any(|((free, all), used)| free + used > *all)
        {
            self.unlist(domains, &hosts[host].capacity, host);
            for (at, used) in used.iter().enumerate() {
                self.free[host][at] = hosts[host].capacity[at].saturating_sub(*used);
            }
            self.list(domains, &hosts[host].capacity, host);
        }
    }

    fn change(
        &mut self,
        hosts: &[HostSlot],
        vm: &VmSlot,
        domains: &Domains,
        host: usize,
        amount: impl Fn(u64, u64) -> u64,
        count: impl Fn(u32) -> u32,
    ) {
        let capacity = &hosts[host].capacity;
        self.unlist(domains, capacity, host);
        for (free, need) in self.free[host].iter_mut().zip(&vm.need) {
            *free = amount(*free, *need);
        }
        self.list(domains, capacity, host);
        for rule in &vm.rules {
            let counter = domains.counter(&domains.rules[*rule], host);
            self.counts[counter] = count(self.counts[counter]);
        }
    }

    pub(super) fn check(&self, placer: &Placer) -> Result<(), String> {
        for (number, host) in placer.hosts.iter().enumerate() {
            for (at, capacity) in host.capacity.iter().enumerate() {
                let used: u64 = self.on[number].iter().map(|vm| placer.vms[*vm].need[at]).sum();
                if used > *capacity {
                    let name = &placer.resource_names[at];
                    return Err(format!("host {} has {capacity} of {name}, but {used} are used", host.id));
                }
                if self.free[number][at] != capacity - used {
                    return Err(format!("the books of host {} are wrong", host.id));
                }
            }
        }
        for rule in placer.domains.rules.iter().filter(|rule| rule.hard) {
            let domains = placer.domains.names[rule.level].len();
            for domain in 0..domains {
                let members = self.counts[rule.first_counter + domain];
                if members > rule.limit {
                    return Err(format!(
                        "{} {} holds {members} members of group {}, {} are allowed",
                        placer.level_names.get(rule.level).map_or("host", String::as_str),
                        placer.domains.names[rule.level][domain],
                        rule.group,
                        rule.limit
                    ));
                }
            }
        }
        Ok(())
    }
}

fn amounts(names: &[String], resources: &Resources) -> Vec<u64> {
    let mut amounts = alloc::vec![resources.cpu_millis, resources.memory_mib];
    amounts.extend(names.iter().skip(2).map(|name| resources.named.get(name).copied().unwrap_or(0)));
    amounts
}

pub(super) fn build(inventory: &Inventory) -> Placer {
    let named: BTreeSet<&String> = inventory
        .hosts
        .values()
        .flat_map(|host| host.capacity.named.keys())
        .chain(inventory.vms.values().flat_map(|vm| vm.resources.named.keys()))
        .collect();
    let mut resource_names: Vec<String> = alloc::vec!["CPU".to_string(), "memory".to_string()];
    resource_names.extend(named.into_iter().cloned());
    let mut machines: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (number, vm) in inventory.vms.values().enumerate() {
        for uuid in vm.definition.arguments.iter().flat_map(|text| uuids(text)) {
            machines.entry(uuid).or_default().push(number);
        }
    }
    let host_numbers: BTreeMap<HostId, usize> =
        inventory.hosts.keys().cloned().enumerate().map(|(number, id)| (id, number)).collect();
    let vm_numbers: BTreeMap<VmId, usize> =
        inventory.vms.keys().cloned().enumerate().map(|(number, id)| (id, number)).collect();
    let hosts: Vec<HostSlot> = inventory
        .hosts
        .values()
        .map(|host| HostSlot {
            id: host.id.clone(),
            capacity: amounts(&resource_names, &host.capacity),
            labels: host.labels.clone(),
            spare: host.spare,
            usable: Usability::Unusable(Reason::NeverSeen),
            unreachable: BTreeSet::new(),
        })
        .collect();
    let mut domains = Domains::default();
    for level in 0..=inventory.levels.len() {
        let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
        let mut of = Vec::with_capacity(hosts.len());
        for host in inventory.hosts.values() {
            let name = Inventory::domain_of(host, level).join("/");
            let next = numbers.len();
            of.push(*numbers.entry(name).or_insert(next));
        }
        let mut names = alloc::vec![String::new(); numbers.len()];
        for (name, number) in numbers {
            names[number] = name;
        }
        if level == inventory.levels.len() {
            names = inventory.hosts.keys().map(ToString::to_string).collect();
        }
        domains.of.push(of);
        domains.names.push(names);
    }
    let mut vms: Vec<VmSlot> = inventory
        .vms
        .values()
        .map(|vm| VmSlot {
            id: vm.id.clone(),
            priority: vm.priority,
            need: amounts(&resource_names, &vm.resources),
            requires: vm.requires.clone(),
            rules: Vec::new(),
            first_host: vm.first_host.as_ref().and_then(|host| host_numbers.get(host).copied()),
            datastore: vm.datastore.clone(),
        })
        .collect();
    let mut counters = 0;
    for group in inventory.groups.values() {
        for rule in &group.rules {
            let Some(names) = domains.names.get(rule.level) else { continue };
            let number = domains.rules.len();
            let (width, level) = (names.len(), rule.level);
            let slot = RuleSlot {
                group: group.id.clone(),
                level,
                limit: rule.limit,
                hard: rule.hard,
                first_counter: counters,
            };
            domains.rules.push(slot);
            counters += width;
            for member in &group.members {
                if let Some(vm) = vm_numbers.get(member).and_then(|number| vms.get_mut(*number)) {
                    vm.rules.push(number);
                }
            }
        }
    }
    if let Some(level) = domains.of.len().checked_sub(2) {
        domains.examples = alloc::vec![0; domains.names[level].len()];
        for (host, domain) in domains.of[level].iter().enumerate() {
            domains.examples[*domain] = host;
        }
    }
    let by_room: BTreeSet<Room> = hosts
        .iter()
        .enumerate()
        .map(|(number, host)| (Reverse(room(&host.capacity, &host.capacity)), number))
        .collect();
    let mut by_room_in = alloc::vec![BTreeSet::new(); domains.examples.len()];
    for room in &by_room {
        if let Some(domain) = domains.narrowest(room.1) {
            by_room_in[domain].insert(*room);
        }
    }
    let occupancy = Occupancy {
        place: alloc::vec![None; vms.len()],
        on: alloc::vec![BTreeSet::new(); hosts.len()],
        free: hosts.iter().map(|host| host.capacity.clone()).collect(),
        counts: alloc::vec![0; counters],
        by_room,
        by_room_in,
    };
    Placer {
        hosts,
        host_numbers: Arc::new(host_numbers),
        vms: Arc::new(vms),
        vm_numbers: Arc::new(vm_numbers),
        level_names: Arc::new(inventory.levels.clone()),
        domains: Arc::new(domains),
        resource_names: Arc::new(resource_names),
        occupancy,
        machines: Arc::new(machines),
        elsewhere: BTreeMap::new(),
        namesakes: BTreeMap::new(),
    }
}
