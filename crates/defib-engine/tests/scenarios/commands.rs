//! What a scenario may say: one command a line, in an operator's words.

use std::collections::BTreeSet;

use defib_engine::ledger::Standing;
use defib_model::{
    Command, Epoch, GroupId, Host, HostId, Policy, ReplicaId, Resources, Vm, VmId,
    command::{Goodbye, Operator},
    inventory::{
        Definition, FaultDomain, FenceMethod, FencingLevel, Group, Priority, Readiness, RedfishTarget,
        SelfFence, SpreadRule,
    },
};

use super::{
    machines::{Bmc, Machine, StartFault},
    world::{Act, World},
};

/// A scenario under way: the world and the words for it.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) world: World,
    policy_changed: bool,
}

type Answer = Result<(), String>;

/// `name=value`, if there is one.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

/// `4GiB`, or MiB without a unit.
fn memory(text: &str) -> Result<u64, String> {
    text.strip_suffix("GiB").map_or_else(|| number(text), |gib| number(gib).map(|gib| gib * 1024))
}

fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.into())).map_err(|error| error.to_string())
}

fn names(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.into_iter().flat_map(|text| text.split(','))
}

impl Scenario {
    pub(crate) fn new() -> Self {
        Self { world: World::new(3), policy_changed: false }
    }

    /// Does what one line says; the answer is what is printed.
    pub(crate) fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let outcome = match words.split_first() {
            Some((command, rest)) => self.command(command, rest),
            None => Ok(()),
        };
        if let Err(why) = outcome {
            self.world.lines.push(format!("cannot {line}: {why}"));
        }
        for violation in self.world.checks.take() {
            self.world.lines.push(format!("VIOLATION {violation}"));
        }
        let lines = std::mem::take(&mut self.world.lines);
        lines.into_iter().map(|line| line + "\n").collect()
    }

    fn command(&mut self, command: &str, rest: &[&str]) -> Answer {
        match command {
            "cluster" => self.cluster(rest),
            "host" => self.host(rest),
            "vm" => self.vm(rest),
            "group" => self.group(rest),
            "policy" => self.policy(rest),
            "start" => self.start(rest),
            "run" => self.run(rest),
            "power" | "mains" | "freeze" | "thaw" | "network" | "bmc" | "agent" | "switch" | "guest"
            | "crash" => self.on_world(command, rest),
            "kill" | "pause" | "restart" | "deaf" => self.on_replica(command, rest),
            "operator" => self.operator(rest),
            "status" | "vms" | "explain" | "plan" | "invariants" | "count" => self.show(command, rest),
            _ => Err("no such command".into()),
        }
    }

    pub(crate) fn host_id(&self, name: Option<&&str>) -> Result<HostId, String> {
        let name = name.ok_or("name a host")?;
        let host = HostId::new(name).map_err(|error| error.reason.to_string())?;
        if self.world.inventory.hosts.contains_key(&host) {
            Ok(host)
        } else {
            Err(format!("there is no host {name}"))
        }
    }

    /// Hosts by name, by rack, or `all`.
    fn hosts(&self, name: Option<&&str>) -> Result<Vec<HostId>, String> {
        let name = *name.ok_or("name a host, a rack, or all")?;
        let hosts: Vec<HostId> = self
            .world
            .inventory
            .hosts
            .values()
            .filter(|host| {
                name == "all" || host.id.as_str() == name || host.domain.0.iter().any(|part| part == name)
            })
            .map(|host| host.id.clone())
            .collect();
        if hosts.is_empty() { Err(format!("there is no host or rack {name}")) } else { Ok(hosts) }
    }

    fn replica(name: Option<&&str>) -> Result<usize, String> {
        let name = name.ok_or("name a replica")?;
        let number = number(name.strip_prefix('r').ok_or("replicas are r1, r2, r3")?)?;
        usize::try_from(number.saturating_sub(1)).map_err(|error| error.to_string())
    }

    fn machine(&mut self, host: &HostId) -> Result<&mut Machine, String> {
        self.world.machines.get_mut(host).ok_or_else(|| "start first".to_string())
    }

    // ---- what there is -----------------------------------------------------------------------------

    fn cluster(&mut self, rest: &[&str]) -> Answer {
        let hosts = number(option(rest, "hosts").unwrap_or("4"))?;
        let racks = number(option(rest, "racks").unwrap_or("2"))?;
        if option(rest, "policy") == Some("fast") {
            self.world.policy = Policy::fast();
            self.policy_changed = true;
        }
        let self_fence: SelfFence = word(option(rest, "self-fence").unwrap_or("watchdog"))?;
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
                neighbour_address: None,
            };
            self.world.inventory.hosts.insert(id, host);
        }
        Ok(())
    }

    /// `host h1 cpu=8 memory=32GiB labels=a,b fencing=1,2 self-fence=none spare`
    fn host(&mut self, rest: &[&str]) -> Answer {
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
        Ok(())
    }

    fn vm(&mut self, rest: &[&str]) -> Answer {
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
            readiness_timeout: timeout.map(defib_model::Millis),
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
    fn group(&mut self, rest: &[&str]) -> Answer {
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
    fn policy(&mut self, rest: &[&str]) -> Answer {
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
    fn start(&mut self, rest: &[&str]) -> Answer {
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

    // ---- what happens ------------------------------------------------------------------------------

    /// `run 500`, `run until recovered h1`, `run until TEXT`; the latter give up after two minutes.
    fn run(&mut self, rest: &[&str]) -> Answer {
        let world = &mut self.world;
        match rest {
            ["until", "recovered", host] => {
                let text = format!("host {host}: recovered");
                if !Self::run_until(world, &text) {
                    return Err("it was not, within two minutes".into());
                }
            }
            ["until", text @ ..] => {
                if !Self::run_until(world, &text.join(" ")) {
                    return Err("nothing said so within two minutes".into());
                }
            }
            [span] => {
                world.run(number(span)?, |_| false);
            }
            _ => return Err("run MILLISECONDS, or run until TEXT".into()),
        }
        Ok(())
    }

    fn run_until(world: &mut World, text: &str) -> bool {
        world.run(120_000, |world| world.lines.iter().any(|line| line.contains(text)))
    }

    fn on_world(&mut self, command: &str, rest: &[&str]) -> Answer {
        let hosts = if command == "switch" { self.hosts(Some(&"all"))? } else { self.hosts(rest.first())? };
        let what = rest.get(1).copied().unwrap_or_default();
        let replicas: Vec<ReplicaId> = self.world.replicas.iter().map(|replica| replica.id).collect();
        for host in hosts {
            let now = self.world.now;
            let machine = self.machine(&host)?;
            match (command, what) {
                ("power", "off") => {
                    machine.lose_power();
                    self.world.lose_session(&host);
                }
                ("mains", "off") => {
                    machine.mains = false;
                    machine.lose_power();
                    self.world.lose_session(&host);
                }
                ("mains", "on") => machine.mains = true,
                ("power", "on" | "cycle") => {
                    machine.mains = true;
                    machine.begin_boot();
                    let (boots, span) = (machine.boots, self.world.boot_takes);
                    let span = rest.get(2).map_or(Ok(span), |span| number(span))?;
                    self.world.later(span, Act::Booted { host: host.clone(), boots });
                }
                ("freeze", _) => {
                    machine.frozen = true;
                    self.world.lose_session(&host);
                }
                ("thaw", _) => {
                    machine.frozen = false;
                    machine.petted = now;
                }
                ("network", "cut") => {
                    if let Some(from) = rest.get(2) {
                        machine.cut_from.insert(replicas[Self::replica(Some(from))?]);
                    } else {
                        machine.cut_from.extend(replicas.iter().copied());
                        machine.cut_from_neighbours = true;
                    }
                    self.world.lose_session(&host);
                }
                ("network", "heal") => {
                    machine.cut_from.clear();
                    machine.cut_from_neighbours = false;
                    machine.reported.clear();
                }
                ("switch", _) if rest.first() == Some(&"cut") => {
                    machine.cut_from.extend(replicas.iter().copied());
                    self.world.lose_session(&host);
                }
                ("switch", _) => {
                    machine.cut_from.clear();
                    machine.reported.clear();
                }
                ("bmc", _) => Self::bmc(machine, &rest[1..])?,
                ("agent", _) => self.agent(&host, &rest[1..])?,
                ("guest", _) => {}
                ("crash", vm) => {
                    let vm = VmId::new(vm).map_err(|error| error.reason.to_string())?;
                    let instance = machine.vms.get_mut(&vm).ok_or("no such VM there")?;
                    instance.running = false;
                    instance.readiness = None;
                }
                _ => return Err("no such word".into()),
            }
        }
        Ok(())
    }

    /// `bmc h1 dark`, `bmc h1 slow 2000`, `bmc h1 level=1 method=0 hang`
    fn bmc(machine: &mut Machine, rest: &[&str]) -> Answer {
        let level = option(rest, "level").map(number).transpose()?;
        let method = option(rest, "method").map(number).transpose()?;
        let words: Vec<&str> = rest.iter().filter(|word| !word.contains('=')).copied().collect();
        let parameter = || number(words.get(1).copied().unwrap_or("1"));
        let mode = match words.first().copied() {
            Some("ok") => Bmc::Ok,
            Some("slow") => Bmc::Slow(parameter()?),
            Some("hang") => Bmc::Hang,
            Some("dark") => Bmc::Dark,
            Some("lying") => Bmc::Lying,
            Some("refuses") => Bmc::Refuses(u32::try_from(parameter()?).unwrap_or(1)),
            Some("wrong") => Bmc::Wrong,
            _ => return Err("a BMC is ok, slow, hang, dark, lying, refuses or wrong".into()),
        };
        for (number, methods) in machine.levels.clone().into_iter().enumerate() {
            for at in 0..methods {
                let hit = level.is_none_or(|level| level == number as u64)
                    && method.is_none_or(|method| method == at as u64);
                if hit {
                    machine.bmcs.insert((number, at), mode.clone());
                }
            }
        }
        Ok(())
    }

    /// `agent h1 fails vm x times=2`, `agent h1 mute vm x`, `agent h1 restarts 3000`, `agent h1 shuts-down`,
    /// `agent h1 dies 4000`, `agent h1 forgets x`
    fn agent(&mut self, host: &HostId, rest: &[&str]) -> Answer {
        let world = &mut self.world;
        let machine = world.machines.get_mut(host).ok_or("no such host")?;
        match rest {
            [fault @ ("fails" | "mute"), "vm", vm, ..] => {
                let vm = VmId::new(vm).map_err(|error| error.reason.to_string())?;
                let times = u32::try_from(number(option(rest, "times").unwrap_or("1"))?).unwrap_or(1);
                let fault = if *fault == "fails" { StartFault::Fails } else { StartFault::Mute };
                machine.faults.insert(vm, (fault, times));
            }
            [how @ ("restarts" | "dies"), span] => {
                let (boot, epoch) = (machine.boot(), machine.epoch);
                machine.agent_up = false;
                if *how == "restarts" {
                    // The watchdog is set to outlast the lease before the agent goes.
                    machine.petted = machine.promises.values().copied().max().unwrap_or(world.now);
                    let goodbye = Goodbye::AgentRestart;
                    world.propose(Command::GoodbyeSaid { host: host.clone(), boot, epoch, goodbye });
                }
                world.later(number(span)?, Act::Heal { host: host.clone() });
                world.lose_session(host);
            }
            ["shuts-down"] => {
                let (boot, epoch, goodbye) = (machine.boot(), machine.epoch, Goodbye::Shutdown);
                machine.lose_power();
                world.propose(Command::GoodbyeSaid { host: host.clone(), boot, epoch, goodbye });
                world.lose_session(host);
            }
            ["forgets", vm] => {
                let vm = VmId::new(vm).map_err(|error| error.reason.to_string())?;
                machine.vms.remove(&vm);
                machine.seen.remove(&vm);
            }
            _ => return Err("an agent fails, is mute, restarts, dies, forgets or shuts-down".into()),
        }
        Ok(())
    }

    fn on_replica(&mut self, command: &str, rest: &[&str]) -> Answer {
        // `kill leader`
        let at = match rest.first() {
            Some(&"leader") => self.world.leader.ok_or("there is no leader")?,
            name => Self::replica(name)?,
        };
        let id = self.world.replicas.get(at).ok_or("there is no such replica")?.id;
        match command {
            "kill" => self.world.kill(at),
            "restart" => self.world.restart(at),
            "pause" => self.world.pause(at, number(rest.get(1).ok_or("for how long?")?)?),
            // `deaf r1 on`: it hears no host but is in touch with the other replicas.
            _ => {
                let heal = rest.get(1) == Some(&"off");
                for machine in self.world.machines.values_mut() {
                    if heal {
                        machine.cut_from.remove(&id);
                        machine.reported.remove(&id);
                    } else {
                        machine.cut_from.insert(id);
                    }
                }
                if rest.get(1) == Some(&"cut") || heal {
                    self.world.cut_replica(at, !heal);
                }
            }
        }
        Ok(())
    }

    fn operator(&mut self, rest: &[&str]) -> Answer {
        let epoch_of = |host: &HostId| {
            let held = self.world.newest().ledger().hosts().get(host).map_or(Epoch(0), |record| record.epoch);
            option(rest, "epoch").map_or(Ok(held), |epoch| number(epoch).map(Epoch))
        };
        let reason = option(rest, "reason").unwrap_or_default();
        let command = match rest {
            ["confirm-dead", host, ..] => {
                let host = self.host_id(Some(host))?;
                Command::ConfirmDead { epoch: epoch_of(&host)?, host, operator: operator(reason) }
            }
            ["fence", host, ..] => {
                let host = self.host_id(Some(host))?;
                Command::FenceHost { epoch: epoch_of(&host)?, host, operator: operator(reason) }
            }
            ["pause", ..] => Command::Pause { paused: true, operator: operator(reason) },
            ["resume", ..] => Command::Pause { paused: false, operator: operator(reason) },
            ["token", nonce, identity, ..] => {
                Command::JoinTokenUsed { nonce: (*nonce).into(), identity: (*identity).into() }
            }
            ["voters", voters, ..] => {
                let mut all = BTreeSet::new();
                for voter in voters.split(',') {
                    all.insert(ReplicaId(Self::replica(Some(&voter))? as u64 + 1));
                }
                Command::ReplicasChanged { voters: all }
            }
            ["policy", ..] => {
                let held = self.world.newest().ledger().policy_version();
                let replaces = option(rest, "replaces").map_or(Ok(held), number)?;
                Command::SetPolicy { policy: self.world.policy.clone(), replaces, operator: operator(reason) }
            }
            ["inventory", change @ ..] => {
                let replaces = self.world.newest().ledger().inventory_version();
                let mut inventory = self.world.inventory.clone();
                for one in change {
                    match one.split_once('=') {
                        Some(("without-host", host)) => inventory.hosts.retain(|id, _| id.as_str() != host),
                        Some(("without-vm", vm)) => {
                            inventory.vms.retain(|id, _| id.as_str() != vm);
                            for group in inventory.groups.values_mut() {
                                group.members.retain(|id| id.as_str() != vm);
                            }
                        }
                        _ => {}
                    }
                }
                Command::SetInventory { inventory, replaces, operator: operator(reason) }
            }
            _ => return Err("an operator can't".into()),
        };
        let judged = self.world.newest().ledger().judge(&command);
        match (&judged, rest.contains(&"unjudged")) {
            (Ok(text), _)
                if !matches!(command, Command::ReplicasChanged { .. } | Command::JoinTokenUsed { .. }) =>
            {
                self.world.lines.push(format!("to the operator: {text}"));
            }
            (Ok(_), _) | (Err(_), true) => {}
            (Err(why), false) => {
                self.world.lines.push(format!("to the operator: refused: {why}"));
                return Ok(());
            }
        }
        if let Command::SetInventory { inventory, .. } = &command {
            self.world.inventory = inventory.clone();
        }
        self.world.propose(command);
        // Until it is in the log.
        self.world.run(1, |_| false);
        Ok(())
    }

    // ---- what is seen ------------------------------------------------------------------------------

    fn show(&mut self, command: &str, rest: &[&str]) -> Answer {
        let mut lines = Vec::new();
        match command {
            "status" => {
                let ledger = self.world.newest().ledger();
                if ledger.paused() {
                    lines.push("paused".to_string());
                }
                for (host, record) in ledger.hosts() {
                    let standing = match record.standing {
                        Standing::NeverSeen => "never seen",
                        Standing::Active => "in use",
                        Standing::Condemned => "condemned",
                        Standing::Dead => "dead",
                    };
                    let quarantined = if record.quarantined { ", quarantined" } else { "" };
                    lines.push(format!("host {host}: {standing}, epoch {}{quarantined}", record.epoch));
                }
                for (id, recovery) in ledger.open_recoveries() {
                    lines.push(format!("recovery {id} of host {}: {}", recovery.host, recovery.phase));
                }
            }
            "vms" => {
                for (vm, record) in self.world.newest().ledger().vms() {
                    let truth: Vec<&str> = self
                        .world
                        .machines
                        .values()
                        .filter(|machine| machine.vms.get(vm).is_some_and(|instance| instance.running))
                        .map(|machine| machine.id.as_str())
                        .collect();
                    let truth = if truth.is_empty() {
                        "runs nowhere".into()
                    } else {
                        format!("runs on {}", truth.join(" and "))
                    };
                    let held = record
                        .occupied_host()
                        .map_or_else(|| "recorded nowhere".into(), |host| format!("recorded on {host}"));
                    lines.push(format!("vm {vm}: incarnation {}, {held}, {truth}", record.incarnation));
                }
            }
            "explain" => {
                let host = self.host_id(rest.first())?;
                let now = self.world.now;
                let controller = match self.world.leader {
                    Some(leader) => &self.world.replicas[leader],
                    None => return Err("there is no leader".into()),
                };
                let recovery =
                    controller.controller.ledger().hosts().get(&host).and_then(|record| record.recovery);
                let Some(recovery) = recovery else { return Err("it has no recovery".into()) };
                let waits = controller.controller.explain(controller.clock(now), recovery);
                if waits.is_empty() {
                    lines.push("waits for nothing".into());
                }
                lines.extend(waits.into_iter().map(|line| format!("waits for {line}")));
            }
            "plan" => {
                let lost = self.hosts(rest.get(1))?.into_iter().collect();
                let plan = self.world.newest().ledger().index().placer.what_if_hosts(&lost);
                for planned in plan.placements {
                    let broken: Vec<String> = planned.broken.iter().map(ToString::to_string).collect();
                    let broken = if broken.is_empty() {
                        String::new()
                    } else {
                        format!(", breaking {}", broken.join("; "))
                    };
                    lines.push(format!("vm {} would restart on {}{broken}", planned.vm, planned.host));
                }
                for left in plan.unplaced {
                    let why: Vec<String> = left.exclusions.iter().map(ToString::to_string).collect();
                    lines.push(format!("vm {} would have no place: {}", left.vm, why.join("; ")));
                }
            }
            "count" => {
                let running = self
                    .world
                    .machines
                    .values()
                    .flat_map(|machine| machine.vms.values())
                    .filter(|instance| instance.running)
                    .count();
                lines.push(format!("{running} VMs run"));
            }
            _ => {
                let checked = defib_engine::ledger::invariants::check(self.world.newest().ledger());
                lines.push(
                    checked.map_or_else(|detail| format!("VIOLATION {detail}"), |()| "all hold".into()),
                );
            }
        }
        self.world.lines.extend(lines);
        Ok(())
    }
}

fn operator(reason: &str) -> Operator {
    Operator { name: "ada".into(), reason: reason.replace('_', " ") }
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
                        })
                    })
                    .collect(),
            )
        })
        .collect()
}
