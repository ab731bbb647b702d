//! The whole world of a run, drawn from its seed before anything happens: who there is, how they are tuned, and what
//! goes wrong when.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use defib_model::{
    GroupId, Host, HostId, Inventory, Millis, Policy, Resources, Vm, VmId,
    inventory::{
        Definition, FaultDomain, FenceMethod, FencingLevel, Group, Priority, Readiness, RedfishTarget,
        SelfFence, SpreadRule,
    },
};

use crate::{draw, fault::Episode, rng::Rng};

/// What kind of worlds are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    /// Healthy networks, many hosts that die and come back: fast, for speed and for a first look.
    Smoke,
    /// Everything.
    Full,
    /// Everything, and clocks that drift further apart than the policy says.
    Drift,
    /// Hosts that are cut off, or stand still, while their BMCs are dark, for longer than a lease and a watchdog: only
    /// the expired lease can prove anything, and only the host itself can stop its VMs.
    Dark,
    /// The replicas, or the way to them, are gone for longer than a lease and a watchdog, and nothing else goes wrong.
    Outage,
    /// Hosts that are cut off by half, or stuck, while their BMCs are dark.
    Half,
    /// What is old comes again, or late, and leaders are deposed in the middle of what they do.
    Stale,
    /// BMCs and operators who vouch for what is not true.
    Liars,
    /// A clone of a host lives beside it.
    Twins,
    /// Replicas lose their power, and one of their disks has written something to the wrong place.
    Disks,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Smoke,
        Self::Full,
        Self::Drift,
        Self::Dark,
        Self::Outage,
        Self::Half,
        Self::Stale,
        Self::Liars,
        Self::Twins,
        Self::Disks,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Full => "full",
            Self::Drift => "drift",
            Self::Dark => "dark",
            Self::Outage => "outage",
            Self::Half => "half",
            Self::Stale => "stale",
            Self::Liars => "liars",
            Self::Twins => "twins",
            Self::Disks => "disks",
        }
    }
}

impl FromStr for Profile {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let wanted = |profile: &Self| profile.name() == name;
        Self::ALL
            .into_iter()
            .find(wanted)
            .ok_or_else(|| format!("there is no profile {name}; there are {names}"))
    }
}

/// What is peculiar to one host's hardware.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// Which one.
    pub id: HostId,
    /// The UUID of the machine, if its firmware tells one.
    pub machine: Option<String>,
    /// Its clock's error.
    pub ppm: i64,
    /// From power on to its agent.
    pub boot_ms: u64,
    /// How much later than set its watchdog bites, at most; still within the policy's bound.
    pub watchdog_late_permille: u64,
    /// How many networks its heartbeats take.
    pub paths: u8,
    /// How long its hypervisor needs for a start, at most.
    pub start_ms: u64,
}

/// How the replicas' log is tuned.
#[derive(Debug, Clone)]
pub struct LogPlan {
    /// A tick.
    pub tick_ms: u64,
    /// Ticks of silence that start an election.
    pub election_ticks: usize,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries that stay in the log behind a snapshot.
    pub keep: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// How long a sync takes.
    pub sync_us: u64,
}

/// A network's usual condition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Delay of everything.
    pub delay_us: u64,
    /// More of it, at random.
    pub jitter_us: u64,
    /// Random lateness that lets datagrams overtake each other.
    pub reorder_us: u64,
    /// Datagrams lost, of a thousand.
    pub loss: u32,
    /// Datagrams doubled, of a thousand.
    pub duplicate: u32,
    /// Old datagrams that come again, of a thousand.
    pub replay: u32,
    /// Forged datagrams, of a thousand.
    pub forge: u32,
    /// Datagrams, and messages between replicas, that come once more, seconds late, of a thousand.
    pub straggle: u32,
}

/// A run before it begins.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it was drawn from; also the source of all chance within the run.
    pub seed: u64,
    /// Of which kind it is.
    pub profile: Profile,
    /// How many replicas.
    pub replicas: usize,
    /// Their clocks' errors; more than there are replicas, for those that come later.
    pub replica_ppm: Vec<i64>,
    /// What operators declare.
    pub inventory: Inventory,
    /// How they tune it.
    pub policy: Policy,
    /// The hosts, in the order of their names; behind them clones of some, which bear the same names.
    pub hosts: Vec<HostPlan>,
    /// How long each VM's guest needs until its agent answers.
    pub guest_ms: BTreeMap<VmId, u64>,
    /// The network without faults.
    pub network: Conditions,
    /// The log.
    pub log: LogPlan,
    /// Replicas that are of an older release until they restart for the first time.
    pub older_releases: BTreeSet<u64>,
    /// What goes wrong, in the order of time.
    pub episodes: Vec<Episode>,
    /// How long the safety phase takes.
    pub safety_ms: u64,
    /// How long the liveness phase may take.
    pub liveness_ms: u64,
}

/// The methods of a host's fencing levels: `[1]` is one BMC, `[1, 2]` a BMC and then two outlets.
#[must_use]
pub fn fencing(host: &HostId, levels: &[usize]) -> Vec<FencingLevel> {
    let method = |level: usize, method: usize, methods: usize| {
        let uuid = if methods == 1 { format!("uuid-{host}") } else { format!("uuid-{host}-{method}") };
        FenceMethod::Redfish(RedfishTarget {
            address: format!("https://{host}-{level}-{method}.bmc"),
            uuid: Some(uuid),
            serial: None,
            system: None,
            pin: None,
            credentials: "env:BMC".into(),
            events: Default::default(),
        })
    };
    let level = |(level, methods): (usize, &usize)| {
        FencingLevel((0..*methods).map(|number| method(level, number, *methods)).collect())
    };
    levels.iter().enumerate().map(level).collect()
}

/// A name that is certainly allowed.
#[expect(clippy::expect_used, reason = "made of a letter and a number")]
pub(crate) fn host_id(number: usize) -> HostId {
    HostId::new(&format!("h{number}")).expect("a good name")
}

impl Plan {
    /// The number of each host; a clone has another one.
    pub(crate) fn host_numbers(&self) -> BTreeMap<HostId, usize> {
        let mut numbers = BTreeMap::new();
        for (at, host) in self.hosts.iter().enumerate() {
            numbers.entry(host.id.clone()).or_insert(at);
        }
        numbers
    }

    /// Draws everything.
    #[must_use]
    pub fn draw(seed: u64, profile: Profile) -> Self {
        let mut rng = Rng::new(seed, "plan");
        let smoke = profile == Profile::Smoke;
        let replicas = if !smoke && rng.permille(300) { 5 } else { 3 };
        let policy = draw::policy(&mut rng, profile);
        let mut inventory = inventory(&mut rng, profile);
        if matches!(profile, Profile::Outage | Profile::Half) {
            let mut rng = Rng::new(seed, "neighbour addresses");
            let lacking = [0, 0, 300, 800][rng.index(4)];
            for host in inventory.hosts.values_mut().filter(|_| rng.permille(lacking)) {
                host.neighbour_address = None;
            }
        }
        let epsilon = i64::from(policy.lease.drift_ppm);
        // Two clocks differ by at most ε: each is off by at most half of it. In the drift profile, by up to eight
        // times.
        let widest = if profile == Profile::Drift { epsilon * 4 } else { epsilon / 2 };
        let ppm = |rng: &mut Rng| if smoke { 0 } else { rng.below(2 * widest as u64 + 1) as i64 - widest };
        let hosts = inventory
            .hosts
            .keys()
            .map(|id| HostPlan {
                id: id.clone(),
                machine: None,
                ppm: ppm(&mut rng),
                boot_ms: if smoke { 300 } else { rng.between(500, 6000) },
                watchdog_late_permille: rng.below(1001),
                paths: if smoke { 1 } else { rng.between(1, 2) as u8 },
                start_ms: if smoke { 20 } else { rng.between(10, 200) },
            })
            .collect();
        let replica_ppm = (0..replicas + 4).map(|_| ppm(&mut rng)).collect();
        let guest_ms = inventory.vms.keys().map(|vm| (vm.clone(), rng.between(100, 1500))).collect();
        let network = Conditions {
            delay_us: if smoke { 100 } else { rng.between(50, 2000) },
            jitter_us: if smoke { 50 } else { rng.between(10, 3000) },
            ..Conditions::default()
        };
        let log = LogPlan {
            tick_ms: if smoke { 50 } else { 10 * rng.between(1, 4) },
            election_ticks: 10,
            snapshot_every: if smoke { 1_000_000 } else { rng.between(20, 400) },
            keep: rng.between(0, 50),
            segment_bytes: if smoke { 64 << 10 } else { 8192 << rng.below(4) },
            sync_us: if smoke { 100 } else { rng.between(20, 2000) },
        };
        let mut plan = Self {
            seed,
            profile,
            replicas,
            replica_ppm,
            inventory,
            policy,
            hosts,
            guest_ms,
            network,
            log,
            older_releases: if smoke { BTreeSet::new() } else { older_releases(seed, replicas) },
            episodes: Vec::new(),
            safety_ms: if smoke { 10_000 } else { rng.between(20_000, 60_000) },
            liveness_ms: 240_000,
        };
        if !matches!(profile, Profile::Smoke | Profile::Twins) {
            name_machines(&mut plan);
        }
        draw::episodes(&mut plan);
        plan
    }
}

/// In half of all worlds most hosts' firmware tells which machine it is. By chance of its own.
fn name_machines(plan: &mut Plan) {
    let mut rng = Rng::new(plan.seed, "machines");
    let told = rng.permille(500);
    for (number, host) in plan.hosts.iter_mut().enumerate() {
        host.machine = (told && rng.permille(800)).then(|| format!("machine{number}"));
    }
}

/// In half of all worlds each replica has an even chance. By chance of its own: nothing else depends on it.
fn older_releases(seed: u64, replicas: usize) -> BTreeSet<u64> {
    let mut rng = Rng::new(seed, "older releases");
    let mixed = rng.permille(500);
    (1..=replicas as u64).filter(|_| mixed && rng.permille(500)).collect()
}

/// Hosts on a tree of fault domains, VMs of all tiers, groups and dependencies; always valid.
fn inventory(rng: &mut Rng, profile: Profile) -> Inventory {
    let smoke = profile == Profile::Smoke;
    let hosts = if smoke { rng.between(12, 16) } else { rng.between(2, 12) } as usize;
    let levels = if smoke { 1 } else { rng.below(3) as usize };
    let mut inventory = Inventory {
        levels: ["zone", "rack"].iter().skip(2 - levels).map(ToString::to_string).collect(),
        ..Inventory::default()
    };
    let racks = rng.between(2, 4) as usize;
    let usual = match rng.below(4) {
        0 => SelfFence::None,
        1 => SelfFence::Trusted,
        _ => SelfFence::Watchdog,
    };
    for number in 1..=hosts {
        let id = host_id(number);
        let rack = number % racks;
        let domain = [format!("zone-{}", rack % 2), format!("rack-{rack}")];
        let self_fence = if rng.permille(800) {
            usual
        } else {
            [SelfFence::None, SelfFence::Trusted, SelfFence::Watchdog][rng.index(3)]
        };
        let levels_of_fencing: &[usize] = match rng.below(if smoke { 1 } else { 10 }) {
            7 => &[1, 2],
            8 => &[2],
            9 => &[],
            _ => &[1],
        };
        let host = Host {
            id: id.clone(),
            domain: FaultDomain(domain.into_iter().skip(2 - levels).collect()),
            capacity: Resources::new(8000, 32 * 1024),
            labels: if rng.permille(500) { BTreeSet::from(["gpu".to_string()]) } else { BTreeSet::new() },
            fencing: fencing(&id, levels_of_fencing),
            self_fence: if smoke { SelfFence::Watchdog } else { self_fence },
            spare: !smoke && rng.permille(80),
            neighbour_address: Some(format!("{id}:7000")),
            kdump_wait: None,
        };
        inventory.hosts.insert(id, host);
    }
    let count = if smoke { hosts } else { rng.between(1, 3 * hosts as u64) as usize };
    for number in 0..count {
        let mut vm = vm(rng, &inventory, number);
        if smoke {
            vm.first_host = Some(host_id(number + 1));
        }
        inventory.vms.insert(vm.id.clone(), vm);
    }
    if !smoke {
        groups(rng, &mut inventory);
    }
    // What can never hold is left out, so that every seed is a world.
    while inventory.validate().is_err() {
        if inventory.groups.pop_last().is_none() {
            for vm in inventory.vms.values_mut() {
                vm.requires.clear();
            }
        }
    }
    inventory
}

#[expect(clippy::expect_used, reason = "made of letters and a number")]
fn vm(rng: &mut Rng, inventory: &Inventory, number: usize) -> Vm {
    let id = VmId::new(&format!("v{number}")).expect("a good name");
    let hosts: Vec<&HostId> = inventory.hosts.keys().collect();
    let others: Vec<&VmId> = inventory.vms.keys().collect();
    let mut depends_on = BTreeSet::new();
    if rng.permille(150)
        && let Some(other) = rng.pick(&others)
    {
        depends_on.insert((*other).clone());
    }
    let readiness = if rng.permille(300) { Readiness::GuestAgent } else { Readiness::PoweredOn };
    let timeout = Millis(rng.between(2000, 10_000));
    Vm {
        id,
        priority: Priority::TIERS[rng.index(5)],
        resources: Resources::new(500 * rng.between(1, 4), 1024 * rng.between(1, 4)),
        requires: if rng.permille(100) { BTreeSet::from(["gpu".to_string()]) } else { BTreeSet::new() },
        depends_on,
        readiness,
        readiness_timeout: rng.permille(300).then_some(timeout),
        datastore: rng.permille(300).then(|| "nfs".to_string()),
        first_host: if rng.permille(300) { rng.pick(&hosts).map(|host| (*host).clone()) } else { None },
        definition: Definition { driver: "sim".into(), arguments: Vec::new() },
    }
}

#[expect(clippy::expect_used, reason = "made of letters and a number")]
fn groups(rng: &mut Rng, inventory: &mut Inventory) {
    let names: Vec<VmId> = inventory.vms.keys().cloned().collect();
    for number in 0..rng.below(4) {
        let id = GroupId::new(&format!("g{number}")).expect("a good name");
        let mut members = BTreeSet::new();
        for _ in 0..rng.between(2, 4) {
            members.extend(rng.pick(&names).cloned());
        }
        let level = rng.index(inventory.levels.len() + 1);
        let rules = vec![SpreadRule { level, limit: rng.between(1, 2) as u32, hard: rng.permille(600) }];
        inventory.groups.insert(id.clone(), Group { id, members, rules });
    }
}
