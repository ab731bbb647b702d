//! Words for what there is: hosts, VMs, groups, policy; and the start of it all.

use std::collections::BTreeSet;

use defib_model::{
    Command, GroupId, Host, HostId, Millis, Policy, Resources, Vm, VmId,
    inventory::{
        Definition, FaultDomain, FenceMethod, FencingLevel, Group, Priority, Readiness, RedfishTarget,
        SelfFence, SpreadRule,
    },
};

use super::{
    commands::{Answer, Scenario, memory, names, number, operator, option, word},
    machines::Machine,
    world::Act,
};

impl Scenario {
    pub(crate) fn cluster(&mut self, rest: &[&str]) -> Answer {
        let hosts = number(option(rest, "hosts").unwrap_or("4"))?;
        let racks = number(option(rest, "racks").unwrap_or("2"))?;
        if option(rest, "policy") == Some("fast") {
            self.world.policy = Policy::fast();
            self.policy_changed = true;
        }
        self.world.paths = u8::try_from(number(option(rest, "paths").unwrap_or("1"))?).unwrap_or(1);
        let self_fence: SelfFence = word(option(rest, "self-fence").unwrap_or("watchdog"))?;
        let probes = rest.contains(&"probes");
        let racks_used = racks.max(1);
        self.world.inventory.levels = vec!["rack".into()];
        for at in 0..hosts {
            let id = HostId::new(&format!("h{}", at + 1)).map_err(|error| error.reason.to_string())?;
            let rack = char::from(b'a' + u8::try_from(at % racks_used).unwrap_or(0));
            let host = Host {
                id: id.clone(),
                domain: FaultDomain(vec![format!("rack-{rack}")]),
                capacity: Resources::new(8000, 32 * 1024),
                labels: BTreeSet::new(),
                fencing: fencing(&id, &[1]),
                self_fence,
                spare: false,
                neighbour_address: probes.then(|| format!("10.0.0.{}:7001", at + 1)),
                kdump_wait: None,
            };
            self.world.inventory.hosts.insert(id, host);
        }
        Ok(())
    }

    /// `host h1 cpu=8 memory=32GiB labels=a,b fencing=1,2 self-fence=none spare no-neighbour kdump-wait=20000`
    pub(crate) fn host(&mut self, rest: &[&str]) -> Answer {
        let id = self.host_id(rest.first())?;
        let Some(host) = self.world.inventory.hosts.get_mut(&id) else { return Ok(()) };
        if let Some(cpu) = option(rest, "cpu") {
            host.capacity.cpu_millis = number(cpu)? * 1000;
        }
        if let Some(text) = option(rest, "memory") {
            host.capacity.memory_mib = memory(text)?;
        }
        if let Some(self_fence) = option(rest, "self-fence") {
            host.self_fence = word(self_fence)?;
        }
        if let Some(levels) = option(rest, "fencing") {
            let mut methods = Vec::new();
            for level in levels.split(',').filter(|level| *level != "none") {
                methods.push(usize::try_from(number(level)?).unwrap_or(1));
            }
            host.fencing = fencing(&id, &methods);
        }
        host.labels.extend(names(option(rest, "labels")).map(String::from));
        host.spare |= rest.contains(&"spare");
        if let Some(wait) = option(rest, "kdump-wait") {
            host.kdump_wait = Some(Millis(number(wait)?));
        }
        if rest.contains(&"no-neighbour") {
            host.neighbour_address = None;
        }
        Ok(())
    }

    pub(crate) fn vm(&mut self, rest: &[&str]) -> Answer {
        let mut every = Vec::new();
        // `w-1..w-4` stands for four VMs.
        let name = *rest.first().ok_or("name a VM")?;
        if let Some((first, last)) = name.split_once("..") {
            let (stem, from) = first.rsplit_once('-').ok_or("name VMs as a-1..a-4")?;
            let (_, to) = last.rsplit_once('-').ok_or("name VMs as a-1..a-4")?;
            for at in number(from)?..=number(to)? {
                every.push(format!("{stem}-{at}"));
            }
        } else {
            every.push(name.to_string());
        }
        for name in every {
            self.one_vm(&name, rest)?;
        }
        Ok(())
    }

    fn one_vm(&mut self, name: &str, rest: &[&str]) -> Answer {
        let vm_id = |name: &str| VmId::new(name).map_err(|error| error.reason.to_string());
        let id = vm_id(name)?;
        let mut depends_on = BTreeSet::new();
        for other in names(option(rest, "depends")) {
            depends_on.insert(vm_id(other)?);
        }
        let first_host = option(rest, "on").map(|host| self.host_id(Some(&host))).transpose()?;
        let timeout = option(rest, "timeout").map(number).transpose()?;
        let vm = Vm {
            id: id.clone(),
            priority: option(rest, "priority").map_or(Ok(Priority::Medium), word)?,
            resources: Resources::new(
                number(option(rest, "cpu").unwrap_or("1"))? * 1000,
                memory(option(rest, "memory").unwrap_or("1GiB"))?,
            ),
            requires: names(option(rest, "requires")).map(String::from).collect(),
            depends_on,
            readiness: option(rest, "ready").map_or(Ok(Readiness::PoweredOn), word)?,
            readiness_timeout: timeout.map(Millis),
            datastore: option(rest, "datastore").map(String::from),
            first_host,
            definition: Definition::default(),
        };
        if let Some(boot) = option(rest, "boot") {
            let boot = if boot == "never" { None } else { Some(number(boot)?) };
            self.world.guest_boot.insert(id.clone(), boot);
        }
        for group in names(option(rest, "group")) {
            let group = GroupId::new(group).map_err(|error| error.reason.to_string())?;
            self.world
                .inventory
                .groups
                .entry(group.clone())
                .or_insert_with(|| Group { id: group, members: BTreeSet::new(), rules: Vec::new() })
                .members
                .insert(id.clone());
        }
        self.world.inventory.vms.insert(id, vm);
        Ok(())
    }

    /// `group cp per=rack limit=1 [soft]`
    pub(crate) fn group(&mut self, rest: &[&str]) -> Answer {
        let name = rest.first().ok_or("name a group")?;
        let id = GroupId::new(name).map_err(|error| error.reason.to_string())?;
        let level = usize::from(option(rest, "per") != Some("rack"));
        let limit = u32::try_from(number(option(rest, "limit").unwrap_or("1"))?).unwrap_or(1);
        let rule = SpreadRule { level, limit, hard: !rest.contains(&"soft") };
        self.world
            .inventory
            .groups
            .entry(id.clone())
            .or_insert_with(|| Group { id, members: BTreeSet::new(), rules: Vec::new() })
            .rules
            .push(rule);
        Ok(())
    }

    /// `policy brakes.hosts=2 restart.tier-delay=500`; numbers of time are milliseconds.
    pub(crate) fn policy(&mut self, rest: &[&str]) -> Answer {
        let mut policy = serde_json::to_value(&self.world.policy).map_err(|error| error.to_string())?;
        for setting in rest {
            let (path, value) = setting.split_once('=').ok_or("settings are field=value")?;
            let pointer = format!("/{}", path.replace('.', "/").replace('-', "_"));
            let place = policy.pointer_mut(&pointer).ok_or_else(|| format!("there is no policy {path}"))?;
            *place = number(value)?.into();
        }
        self.world.policy = serde_json::from_value(policy).map_err(|error| error.to_string())?;
        self.policy_changed = true;
        if !self.world.machines.is_empty() {
            let replaces = self.world.newest().ledger().policy_version();
            let policy = self.world.policy.clone();
            self.world.propose(Command::SetPolicy { policy, replaces, operator: operator("") });
        }
        Ok(())
    }

    /// Boots everything, places and starts all VMs; `loud` prints how, `cold` stops before hosts are there.
    pub(crate) fn start(&mut self, rest: &[&str]) -> Answer {
        let world = &mut self.world;
        world.inventory.validate().map_err(|error| error.to_string())?;
        for number in 0..world.replicas.len() {
            world.step(number, defib_engine::controller::Input::Woke);
        }
        world.expect_election();
        world.run(1000, |_| false);
        if self.policy_changed {
            let policy = world.policy.clone();
            world.propose(Command::SetPolicy { policy, replaces: 0, operator: operator("") });
        }
        let inventory = world.inventory.clone();
        for (at, host) in inventory.hosts.values().enumerate() {
            let levels = host.fencing.iter().map(|level| level.0.len()).collect();
            let mut machine = Machine::new(host.id.clone(), at as u64 + 1, levels, host.self_fence);
            machine.paths = world.paths;
            if rest.contains(&"cold") {
                machine.lose_power();
                machine.boots = 0;
            }
            world.machines.insert(host.id.clone(), machine);
            // Hosts don't beat in step.
            world.later(1 + at as u64 * 7, Act::Tick(host.id.clone()));
        }
        world.propose(Command::SetInventory { inventory, replaces: 0, operator: operator("") });
        if rest.contains(&"cold") {
            world.run(1000, |_| false);
        } else {
            let runs = world.run(60_000, |world| {
                world.inventory.vms.values().filter(|vm| vm.priority != Priority::Disabled).all(|vm| {
                    let running = |machine: &Machine| {
                        machine.vms.get(&vm.id).is_some_and(|one| {
                            one.running && one.readiness >= Some(vm.readiness.max(Readiness::PoweredOn))
                        })
                    };
                    world.machines.values().any(running)
                })
            });
            if !runs && !rest.contains(&"loud") {
                world.lines.push("not every VM runs".into());
                return Ok(());
            }
            // Long enough that leases have been held without a break.
            world.run(10_000, |_| false);
        }
        world.origin = if rest.contains(&"loud") { 0 } else { world.now };
        if !rest.contains(&"loud") {
            world.lines.clear();
        }
        Ok(())
    }
}

/// `[1]`: one BMC. `[1, 2]`: a BMC, then two PDUs that must both succeed.
fn fencing(host: &HostId, levels: &[usize]) -> Vec<FencingLevel> {
    levels
        .iter()
        .enumerate()
        .map(|(level, methods)| {
            FencingLevel(
                (0..*methods)
                    .map(|method| {
                        FenceMethod::Redfish(RedfishTarget {
                            address: format!("https://{host}-{level}-{method}.bmc"),
                            uuid: Some(if *methods == 1 {
                                format!("uuid-{host}")
                            } else {
                                format!("uuid-{host}-{method}")
                            }),
                            serial: None,
                            system: None,
                            pin: None,
                            credentials: "env:BMC".into(),
                            events: Default::default(),
                        })
                    })
                    .collect(),
            )
        })
        .collect()
}
