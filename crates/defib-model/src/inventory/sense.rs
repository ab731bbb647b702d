//! What no operator can have meant, and what can never be.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    format,
    string::String,
    vec::Vec,
};
use core::cmp::Reverse;

use super::{Group, Host, Inventory, InventoryError, Priority, Readiness, SpreadRule, Vm};
use crate::{Millis, VmId};

/// The hypervisor drivers that there are.
const DRIVERS: [&str; 2] = ["process", "libvirt"];
const DAY: Millis = Millis(86_400_000);

const fn wrong<T>(field: String, message: String) -> Result<T, InventoryError> {
    Err(InventoryError { field, message })
}

fn suits(host: &Host, vm: &Vm) -> bool {
    host.capacity.fits(&vm.resources) && host.labels.is_superset(&vm.requires)
}

/// The first names of many.
fn some<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 8 { format!("{shown} and {} more", names.len().saturating_sub(8)) } else { shown }
}

/// A fault domain that may hold so many members of a group.
#[derive(Debug)]
struct Domain {
    limit: u64,
    /// Members that have a seat in it, by their number.
    seated: BTreeSet<usize>,
}

/// Seats for the members of a group on hosts that suit them, one VM after another. Whoever finds all full has another
/// one move over (a flow through the tree of domains), so that only what is impossible fails. Necessary, not
/// sufficient: that one host has room for two VMs is not looked at.
#[derive(Debug)]
struct Seats<'a> {
    members: &'a [&'a Vm],
    /// Each host with its domains, the narrowest first.
    hosts: Vec<(&'a Host, Vec<usize>)>,
    domains: Vec<Domain>,
    /// The host's number of each member that has a seat.
    seats: BTreeMap<usize, usize>,
}

impl<'a> Seats<'a> {
    fn new(inventory: &'a Inventory, rules: &[&SpreadRule], members: &'a [&'a Vm]) -> Self {
        let mut rules = rules.to_vec();
        rules.sort_by_key(|rule| Reverse(rule.level));
        let mut known: BTreeMap<(usize, Vec<&str>), usize> = BTreeMap::new();
        let mut domains: Vec<Domain> = Vec::new();
        let hosts = inventory.hosts.values().map(|host| {
            let of_rule = |(number, rule): (usize, &&SpreadRule)| {
                let key = (number, Inventory::domain_of(host, rule.level));
                *known.entry(key).or_insert_with(|| {
                    domains.push(Domain { limit: rule.limit.into(), seated: BTreeSet::new() });
                    domains.len().saturating_sub(1)
                })
            };
            (host, rules.iter().enumerate().map(of_rule).collect())
        });
        Self { members, hosts: hosts.collect(), domains, seats: BTreeMap::new() }
    }

    /// Members that can't all have seats; `None`: all can.
    fn crowd(mut self) -> Option<Vec<&'a Vm>> {
        (0..self.members.len()).find_map(|member| self.seat(member).err())
    }

    fn seat(&mut self, member: usize) -> Result<(), Vec<&'a Vm>> {
        // Who would move over for whom, and to which host that one goes.
        let mut movers: BTreeMap<usize, Option<(usize, usize)>> = BTreeMap::from([(member, None)]);
        let mut queue = VecDeque::from([member]);
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        while let Some(next) = queue.pop_front() {
            let Some(vm) = self.members.get(next) else { continue };
            for (number, (host, chain)) in self.hosts.iter().enumerate() {
                if !suits(host, vm) {
                    continue;
                }
                let mut is_free = true;
                for at in chain {
                    let Some(domain) = self.domains.get(*at) else { continue };
                    // What can be reached through it has been looked at.
                    if !seen.insert(*at) {
                        is_free = false;
                        break;
                    }
                    if domain.seated.len() as u64 >= domain.limit {
                        is_free = false;
                        for other in &domain.seated {
                            if !movers.contains_key(other) {
                                movers.insert(*other, Some((next, number)));
                                queue.push_back(*other);
                            }
                        }
                        break;
                    }
                }
                if is_free {
                    self.change_over(&movers, next, number);
                    return Ok(());
                }
            }
        }
        Err(movers.keys().filter_map(|number| self.members.get(*number).copied()).collect())
    }

    /// The last mover takes the free seat, and each before it the seat of the one behind.
    fn change_over(&mut self, movers: &BTreeMap<usize, Option<(usize, usize)>>, last: usize, free: usize) {
        let mut move_over = Some((last, free));
        while let Some((member, to)) = move_over {
            if let Some(from) = self.seats.insert(member, to) {
                self.each_domain(from, |domain| domain.seated.remove(&member));
            }
            self.each_domain(to, |domain| domain.seated.insert(member));
            move_over = movers.get(&member).copied().flatten();
        }
    }

    fn each_domain(&mut self, host: usize, change: impl Fn(&mut Domain) -> bool) {
        for at in self.hosts.get(host).map(|(_, chain)| chain.as_slice()).unwrap_or_default() {
            if let Some(domain) = self.domains.get_mut(*at) {
                change(domain);
            }
        }
    }
}

/// Bounds of [`Host::kdump_wait`]: what no kernel boots in, and what nobody wants to wait for.
const KDUMP_WAIT_MIN: Millis = Millis(1000);
const KDUMP_WAIT_MAX: Millis = Millis(600_000);

impl Inventory {
    /// Refuses what can be recorded and can't be meant: names that mean two things, wishes that nobody can fulfil.
    /// Asked where a document is read, unlike [`Self::validate`], which every replica asks again of what is
    /// committed: replicas of two versions must agree there.
    ///
    /// # Errors
    /// The first of them, by field.
    pub fn vet(&self) -> Result<(), InventoryError> {
        let mut levels: BTreeSet<&str> = BTreeSet::new();
        for level in &self.levels {
            let field = || String::from("fault-domain-levels");
            if level.trim().is_empty() {
                return wrong(field(), "a level has no name; name it, such as rack".into());
            }
            if level == "host" {
                return wrong(
                    field(),
                    "host is the level below the last without being named; leave it out".into(),
                );
            }
            if !levels.insert(level) {
                return wrong(field(), format!("{level} is there twice; name each level once"));
            }
        }
        self.vet_names()?;
        self.vet_fencing()?;
        let mut neighbours: BTreeMap<&str, &Host> = BTreeMap::new();
        for (id, host) in &self.hosts {
            let Some(address) = &host.neighbour_address else { continue };
            if let Some(other) = neighbours.insert(address, host) {
                return wrong(
                    format!("hosts.{id}.neighbour"),
                    format!(
                        "{address} is the address of host {} too: one of them would be asked for both; give each its own",
                        other.id
                    ),
                );
            }
        }
        for (id, host) in &self.hosts {
            let Some(wait) = host.kdump_wait else { continue };
            if !(KDUMP_WAIT_MIN..=KDUMP_WAIT_MAX).contains(&wait) {
                return wrong(
                    format!("hosts.{id}.kdump-wait"),
                    format!(
                        "{wait} is not between {KDUMP_WAIT_MIN} and {KDUMP_WAIT_MAX}; give what a capture kernel takes to boot"
                    ),
                );
            }
        }
        for (id, vm) in &self.vms {
            self.vet_vm(vm)
                .map_err(|(field, message)| InventoryError { field: format!("vms.{id}.{field}"), message })?;
        }
        self.groups.values().try_for_each(|group| self.vet_group(group))
    }

    fn vet_vm(&self, vm: &Vm) -> Result<(), (&'static str, String)> {
        let driver = &vm.definition.driver;
        if !DRIVERS.contains(&driver.as_str()) {
            return Err((
                "driver",
                format!("there is no driver {driver:?}; give one of: {}", DRIVERS.join(", ")),
            ));
        }
        if vm.definition.arguments.iter().any(|argument| argument.contains('\0')) {
            return Err(("arguments", "hold a NUL, which no program can be given".into()));
        }
        if vm.definition.arguments.first().is_none_or(String::is_empty) {
            let what = match driver.as_str() {
                "process" => "the program that process runs, and its arguments",
                _ => "what the driver needs to start the VM",
            };
            return Err(("arguments", format!("is empty; give {what}")));
        }
        if vm.readiness == Readiness::NodeReady {
            return Err((
                "readiness",
                format!(
                    "no driver can tell that a VM is {}: whatever waits for it would wait for its whole timeout; give {} \
                     (the guest answers) or {}",
                    vm.readiness,
                    Readiness::GuestAgent,
                    Readiness::PoweredOn
                ),
            ));
        }
        if let Some(timeout) = vm.readiness_timeout
            && (timeout == Millis::ZERO || timeout > DAY)
        {
            let why = format!("{timeout} is not between 1ms and {DAY}: its tier would not wait, or for good");
            return Err(("readiness-timeout", why));
        }
        if let Some(first) = &vm.first_host
            && let Some(host) = self.hosts.get(first)
            && !suits(host, vm)
        {
            let missing: Vec<&str> = vm.requires.difference(&host.labels).map(String::as_str).collect();
            let why = if missing.is_empty() {
                format!("host {first} is too small for it; name a larger one, or none")
            } else {
                format!(
                    "host {first} lacks the labels that it requires ({}); name another, or none",
                    missing.join(", ")
                )
            };
            return Err(("first-host", why));
        }
        if vm.priority != Priority::Disabled {
            let off = |id: &&VmId| self.vms.get(*id).is_some_and(|vm| vm.priority == Priority::Disabled);
            if let Some(other) = vm.depends_on.iter().find(off) {
                return Err((
                    "depends-on",
                    format!(
                        "VM {other} has the priority disabled, so nobody would start it and this one would wait for its \
                         whole timeout each time; leave the dependency out, or give {other} a priority"
                    ),
                ));
            }
        }
        Ok(())
    }

    fn vet_group(&self, group: &Group) -> Result<(), InventoryError> {
        let field = |name: &str| format!("groups.{}.{name}", group.id);
        let hard: Vec<&SpreadRule> = group.rules.iter().filter(|rule| rule.hard).collect();
        let members: Vec<&Vm> = group.members.iter().filter_map(|id| self.vms.get(id)).collect();
        for rule in &hard {
            let mut first: BTreeMap<Vec<&str>, Vec<&VmId>> = BTreeMap::new();
            for vm in &members {
                let Some(host) = vm.first_host.as_ref().and_then(|host| self.hosts.get(host)) else {
                    continue;
                };
                let together = first.entry(Self::domain_of(host, rule.level)).or_default();
                together.push(&vm.id);
                if together.len() as u64 > u64::from(rule.limit) {
                    let names: Vec<&str> = together.iter().map(|id| id.as_str()).collect();
                    return wrong(
                        field("members"),
                        format!(
                            "{} have their first-host in one {}, which may hold at most {}; give them others",
                            names.join(", "),
                            self.level_name(rule.level),
                            rule.limit
                        ),
                    );
                }
            }
        }
        let Some(crowd) = Seats::new(self, &hard, &members).crowd() else { return Ok(()) };
        let vms = crowd.iter().map(|vm| vm.id.as_str());
        let hosts = self.hosts.values().filter(|host| crowd.iter().any(|vm| suits(host, vm)));
        wrong(
            field("rules"),
            format!(
                "can never be satisfied: its hard rules leave no places for all of {} on the hosts that have what they ask for \
                 ({}); give more hosts those labels and that capacity, or loosen the rules",
                some(vms),
                some(hosts.map(|host| host.id.as_str()))
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::{
        GroupId, HostId, Resources,
        inventory::{Definition, FaultDomain},
    };

    fn host(name: &str, rack: &str) -> Host {
        Host {
            domain: FaultDomain(vec![rack.into()]),
            labels: [String::from(name)].into(),
            ..Host::new(HostId::new(name).unwrap(), Resources::new(4000, 8192))
        }
    }

    fn vm(name: &str) -> Vm {
        Vm::new(
            VmId::new(name).unwrap(),
            Resources::new(1000, 1024),
            Definition { driver: "process".into(), arguments: vec!["sleep".into()] },
        )
    }

    /// Every choice of the hosts on which three VMs may run, of four hosts in two racks; tried out by hand.
    #[test]
    fn a_group_is_refused_exactly_if_no_choice_of_hosts_keeps_its_hard_rules() {
        let names = ["h0", "h1", "h2", "h3"];
        let racks = ["r0", "r0", "r0", "r1"];
        let mut seen = BTreeSet::new();
        for (per_host, per_rack) in [(1_u32, 1_u32), (1, 2), (2, 2), (3, 2)] {
            for choice in 0..1_usize << 12 {
                let may = |vm: usize, host: usize| choice >> (vm * 4 + host) & 1 == 1;
                let mut inventory = Inventory { levels: vec!["rack".into()], ..Inventory::default() };
                for (number, (name, rack)) in names.iter().zip(racks).enumerate() {
                    let mut host = host(name, rack);
                    host.labels =
                        (0..3).filter(|vm| may(*vm, number)).map(|vm| format!("for-{vm}")).collect();
                    inventory.hosts.insert(host.id.clone(), host);
                }
                for number in 0..3 {
                    let mut vm = vm(&format!("v{number}"));
                    vm.requires = [format!("for-{number}")].into();
                    inventory.vms.insert(vm.id.clone(), vm);
                }
                let group = Group {
                    id: GroupId::new("g").unwrap(),
                    members: inventory.vms.keys().cloned().collect(),
                    rules: vec![
                        SpreadRule { level: 0, limit: per_rack, hard: true },
                        SpreadRule { level: 1, limit: per_host, hard: true },
                    ],
                };
                inventory.groups.insert(group.id.clone(), group);
                let keeps = |hosts: [usize; 3]| {
                    let count = |is_there: &dyn Fn(usize) -> bool| {
                        u32::try_from(hosts.iter().filter(|host| is_there(**host)).count()).unwrap()
                    };
                    hosts.iter().enumerate().all(|(vm, host)| may(vm, *host))
                        && (0..4).all(|one| count(&|host| host == one) <= per_host)
                        && ["r0", "r1"].iter().all(|rack| count(&|host| racks[host] == *rack) <= per_rack)
                };
                let possible = (0..64).any(|all| keeps([all & 3, all >> 2 & 3, all >> 4]));
                let vetted = inventory.vet();
                assert_eq!(vetted.is_ok(), possible, "{choice:b} {per_host} {per_rack}: {vetted:?}");
                seen.insert(possible);
            }
        }
        assert_eq!(seen.len(), 2);
    }
}
