//! Scenarios that an operator can write: who there is, what happens when, and what the log should say then.
//!
//! Lines are commands; after a line `----` comes what they print, up to an empty line. The world is the simulator's
//! own, so a transcript of another HA manager can be played against the real engine. `docs/simulator.md` lists the
//! words.

mod words;

use std::collections::BTreeSet;

use defib_model::{
    GroupId, Host, HostId, Millis, Policy, Resources, Vm, VmId,
    inventory::{Definition, FaultDomain, Group, Priority, Readiness, SelfFence, SpreadRule},
};
use serde_json::{Value, json};

use crate::{
    clock::MS,
    plan::{Conditions, HostPlan, LogPlan, Plan, Profile, fencing, host_id},
    run::set_up,
    world::World,
};

/// What came of a scenario.
#[derive(Debug)]
pub struct Played {
    /// The file as it should read.
    pub written: String,
    /// Blocks that read otherwise: the line of their `----`, and how they differ.
    pub wrong: Vec<(usize, String)>,
    /// Which hosts were proven dead and when, and where every VM ended.
    pub result: Value,
}

impl Played {
    /// The differences, for people; a sentence if there are none.
    #[must_use]
    pub fn differences(&self, file: &str) -> String {
        if self.wrong.is_empty() {
            return format!("{file}: reads as expected");
        }
        self.wrong.iter().map(|(line, what)| format!("{file}:{line}\n{what}")).collect()
    }
}

/// Why a line could not be done.
type Answer = Result<(), String>;

/// `name=value`, if there is one.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

/// `200ms`, `8s`, or milliseconds without a unit.
fn span(text: &str) -> Result<u64, String> {
    if let Some(millis) = text.strip_suffix("ms") {
        return number(millis);
    }
    text.strip_suffix('s')
        .map_or_else(|| number(text), |seconds| number(seconds).map(|seconds| seconds * 1000))
}

/// `4GiB`, or MiB without a unit.
fn memory(text: &str) -> Result<u64, String> {
    text.strip_suffix("GiB").map_or_else(|| number(text), |gib| number(gib).map(|gib| gib * 1024))
}

fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::String(text.into())).map_err(|error| error.to_string())
}

fn names(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.into_iter().flat_map(|text| text.split(','))
}

/// A scenario under way.
#[derive(Debug)]
struct Scenario {
    plan: Plan,
    /// Hosts that have a clone.
    twins: Vec<HostId>,
    world: Option<World>,
    printed: String,
}

/// Plays a scenario.
#[must_use]
pub fn play(text: &str) -> Played {
    let mut scenario = Scenario::new();
    let (mut written, mut wrong) = (String::new(), Vec::new());
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        written.push_str(line);
        written.push('\n');
        if line == "----" {
            let mut expected = String::new();
            while let Some((_, line)) = lines.next_if(|(_, line)| !line.is_empty()) {
                expected.push_str(line);
                expected.push('\n');
            }
            let printed = std::mem::take(&mut scenario.printed);
            if expected != printed || printed.contains("VIOLATION") || printed.contains("cannot ") {
                wrong.push((number + 1, format!("--- expected\n{expected}--- printed\n{printed}")));
            }
            written.push_str(&printed);
        } else if !line.starts_with('#') {
            scenario.line(line);
        }
    }
    if !scenario.printed.is_empty() {
        wrong.push((text.lines().count(), format!("nothing expects\n{}", scenario.printed)));
    }
    Played { written, wrong, result: scenario.result() }
}

impl Scenario {
    fn new() -> Self {
        let plan = Plan {
            seed: 1,
            profile: Profile::Full,
            replicas: 3,
            replica_ppm: vec![0; 8],
            inventory: Default::default(),
            policy: Policy::default(),
            hosts: Vec::new(),
            guest_ms: Default::default(),
            network: Conditions { delay_us: 500, ..Conditions::default() },
            log: LogPlan {
                tick_ms: 10,
                election_ticks: 10,
                snapshot_every: 10_000,
                keep: 100,
                segment_bytes: 64 << 10,
                sync_us: 200,
            },
            older_releases: Default::default(),
            episodes: Vec::new(),
            safety_ms: 0,
            liveness_ms: 0,
        };
        Self { plan, twins: Vec::new(), world: None, printed: String::new() }
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((command, rest)) = words.split_first() else { return };
        let outcome = match (*command, self.world.is_some()) {
            ("seed", false) => rest.first().ok_or_else(|| "give a number".into()).and_then(|text| {
                self.plan.seed = number(text)?;
                Ok(())
            }),
            ("cluster", false) => self.cluster(rest),
            ("host", false) => self.host(rest),
            ("vm", false) => self.vm(rest),
            ("group", false) => self.group(rest),
            ("policy", false) => self.policy(rest),
            ("start", false) => self.start(),
            (_, false) => Err("it needs a cluster that was started; or there is no such command".into()),
            (_, true) => self.happens(command, rest),
        };
        self.flush();
        if let Err(why) = outcome {
            self.printed.push_str(&format!("cannot {line}: {why}\n"));
        }
    }

    /// Takes over what the world has recorded.
    fn flush(&mut self) {
        let Some(world) = &mut self.world else { return };
        for (at, text) in world.transcript.take() {
            self.printed.push_str(&format!("{at:>7}  {text}\n"));
        }
        if let Some(violation) = world.checks.violation() {
            let line = format!("VIOLATION {}: {}\n", violation.invariant, violation.text);
            if !self.printed.contains(&line) {
                self.printed.push_str(&line);
            }
        }
    }

    fn result(&self) -> Value {
        let Some(world) = &self.world else { return json!({}) };
        let fenced: Vec<Value> = world
            .deaths
            .iter()
            .map(|(at_ms, host, proof)| json!({ "host": host.as_str(), "at_ms": at_ms, "proof": proof }))
            .collect();
        let mut vms = serde_json::Map::new();
        for vm in world.plan.inventory.vms.keys() {
            let on = world.machines.iter().find_map(|machine| Some((machine, machine.running.get(vm)?)));
            let end = on.map_or(
                Value::Null,
                |(machine, incarnation)| json!({ "host": machine.id.as_str(), "incarnation": incarnation.0 }),
            );
            vms.insert(vm.to_string(), end);
        }
        json!({ "fenced": fenced, "vms": vms, "virtual_ms": world.millis() })
    }

    // ---- what there is -----------------------------------------------------------------------------

    fn cluster(&mut self, rest: &[&str]) -> Answer {
        let hosts = number(option(rest, "hosts").unwrap_or("4"))?;
        let racks = number(option(rest, "racks").unwrap_or("2"))?.max(1);
        if option(rest, "policy") == Some("fast") {
            self.plan.policy = Policy::fast();
        }
        self.plan.replicas = number(option(rest, "replicas").unwrap_or("3"))? as usize;
        if !matches!(self.plan.replicas, 1..=7) {
            return Err("there are 1 to 7 replicas".into());
        }
        let self_fence: SelfFence = word(option(rest, "self-fence").unwrap_or("watchdog"))?;
        self.plan.inventory.levels = vec!["rack".into()];
        for at in 0..hosts {
            let id = host_id(at as usize + 1);
            let rack = char::from(b'a' + u8::try_from(at % racks % 26).unwrap_or(0));
            let host = Host {
                id: id.clone(),
                domain: FaultDomain(vec![format!("rack-{rack}")]),
                capacity: Resources::new(8000, 32 * 1024),
                labels: BTreeSet::new(),
                fencing: fencing(&id, &[1]),
                self_fence,
                spare: false,
                neighbour_address: Some(format!("{id}:7000")),
                kdump_wait: None,
            };
            self.plan.inventory.hosts.insert(id, host);
        }
        Ok(())
    }

    fn known_host(&self, name: Option<&&str>) -> Result<HostId, String> {
        let name = name.ok_or("name a host")?;
        let host = HostId::new(name).map_err(|error| error.to_string())?;
        if self.plan.inventory.hosts.contains_key(&host) {
            Ok(host)
        } else {
            Err(format!("there is no host {name}"))
        }
    }

    /// `host h1 cpu=8 memory=32GiB labels=a,b fencing=1,2 self-fence=none spare twin`
    fn host(&mut self, rest: &[&str]) -> Answer {
        let id = self.known_host(rest.first())?;
        let Some(host) = self.plan.inventory.hosts.get_mut(&id) else { return Ok(()) };
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
                methods.push(number(level)? as usize);
            }
            host.fencing = fencing(&id, &methods);
        }
        host.labels.extend(names(option(rest, "labels")).map(String::from));
        host.spare |= rest.contains(&"spare");
        if rest.contains(&"twin") {
            self.twins.push(id);
        }
        Ok(())
    }

    /// `vm cp-1 priority=critical on=h1 cpu=2 memory=4GiB group=cp ready=guest-agent boot=1000 depends=a,b timeout=5s`
    fn vm(&mut self, rest: &[&str]) -> Answer {
        let name = *rest.first().ok_or("name a VM")?;
        // `w-1..w-4` stands for four VMs.
        let Some((first, last)) = name.split_once("..") else { return self.one_vm(name, rest) };
        let (stem, from) = first.rsplit_once('-').ok_or("name VMs as a-1..a-4")?;
        let (_, to) = last.rsplit_once('-').ok_or("name VMs as a-1..a-4")?;
        for at in number(from)?..=number(to)? {
            self.one_vm(&format!("{stem}-{at}"), rest)?;
        }
        Ok(())
    }

    fn one_vm(&mut self, name: &str, rest: &[&str]) -> Answer {
        let vm_id = |name: &str| VmId::new(name).map_err(|error| error.to_string());
        let id = vm_id(name)?;
        let depends_on = names(option(rest, "depends")).map(vm_id).collect::<Result<_, _>>()?;
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
            readiness_timeout: option(rest, "timeout").map(span).transpose()?.map(Millis),
            datastore: option(rest, "datastore").map(String::from),
            first_host: option(rest, "on").map(|host| self.known_host(Some(&host))).transpose()?,
            definition: Definition { driver: "sim".into(), arguments: Vec::new() },
        };
        self.plan.guest_ms.insert(id.clone(), option(rest, "boot").map_or(Ok(1000), span)?);
        for group in names(option(rest, "group")) {
            self.group_of(group)?.members.insert(id.clone());
        }
        self.plan.inventory.vms.insert(id, vm);
        Ok(())
    }

    fn group_of(&mut self, name: &str) -> Result<&mut Group, String> {
        let id = GroupId::new(name).map_err(|error| error.to_string())?;
        let new = Group { id: id.clone(), members: BTreeSet::new(), rules: Vec::new() };
        Ok(self.plan.inventory.groups.entry(id).or_insert(new))
    }

    /// `group cp per=rack limit=1 [soft]`
    fn group(&mut self, rest: &[&str]) -> Answer {
        let level = usize::from(option(rest, "per") != Some("rack"));
        let limit = number(option(rest, "limit").unwrap_or("1"))? as u32;
        let rule = SpreadRule { level, limit, hard: !rest.contains(&"soft") };
        self.group_of(rest.first().ok_or("name a group")?)?.rules.push(rule);
        Ok(())
    }

    /// `policy brakes.hosts=2 restart.tier-delay=500`; times are milliseconds.
    fn policy(&mut self, rest: &[&str]) -> Answer {
        let mut policy = serde_json::to_value(&self.plan.policy).map_err(|error| error.to_string())?;
        for setting in rest {
            let (path, value) = setting.split_once('=').ok_or("settings are field=value")?;
            let pointer = format!("/{}", path.replace('.', "/").replace('-', "_"));
            let place = policy.pointer_mut(&pointer).ok_or_else(|| format!("there is no policy {path}"))?;
            *place = span(value)?.into();
        }
        self.plan.policy = serde_json::from_value(policy).map_err(|error| error.to_string())?;
        self.plan.policy.validate().map_err(|(field, why)| format!("{field}: {why}"))
    }

    /// Boots everything, places and starts all VMs. Times count from here.
    fn start(&mut self) -> Answer {
        self.plan.inventory.validate().map_err(|error| error.to_string())?;
        self.plan.hosts = self
            .plan
            .inventory
            .hosts
            .keys()
            .chain(&self.twins)
            .map(|id| HostPlan {
                id: id.clone(),
                machine: None,
                ppm: 0,
                boot_ms: 5000,
                watchdog_late_permille: 1000,
                paths: 1,
                start_ms: 200,
            })
            .collect();
        let mut world = World::new(self.plan.clone(), true);
        let well = set_up(&mut world);
        world.origin = world.now;
        world.deaths.clear();
        let runs = world.all_vms_run();
        if well {
            world.transcript.clear();
        }
        self.world = Some(world);
        if runs { Ok(()) } else { Err("not every VM runs".into()) }
    }

    /// Lets time pass, `until` somebody says something; whether somebody did.
    fn pass(&mut self, millis: u64, until: Option<&str>) -> bool {
        let Some(world) = &mut self.world else { return false };
        let end = world.now + millis * MS;
        let step = if until.is_some() { MS } else { millis * MS };
        while world.now < end && !world.checks.violated() {
            world.run_until((world.now + step).min(end));
            if let Some(text) = until
                && world.transcript.says(text)
            {
                return true;
            }
        }
        false
    }
}
