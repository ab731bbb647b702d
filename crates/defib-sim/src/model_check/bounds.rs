//! What is explored: how large the world is, how long it lives, what may happen in it and how often.

use defib_model::{Millis, Policy};

use super::fault::{Fault, Kind};

/// The length of one step of the world: one beat.
pub(super) const TICK: Millis = Millis(300);
/// Clocks run at their full pace or at two thirds of it, so ε is one half.
pub(super) const DRIFT_PPM: u32 = 500_000;

/// What the observers and guards of this world are told: two beats of lease, three of watchdog, one of freshness.
/// Shorter than any operator may choose, because what counts are the orders in which things can happen.
#[must_use]
pub(super) fn timing(mutant: Option<Mutant>) -> Policy {
    let mut policy = Policy::default();
    policy.detection.heartbeat_interval = TICK;
    policy.detection.ask_after_beats = 2;
    policy.detection.act_after = TICK.times(3);
    policy.detection.act_after_max = TICK.times(3);
    policy.detection.start_grace = TICK.times(2);
    // What withholds a vote for a while can't make two VMs run, and its timers would make many more worlds.
    policy.detection.witness_delay = Millis::ZERO;
    policy.lease.lease = TICK.times(2);
    policy.lease.watchdog = TICK.times(3);
    policy.lease.answer_freshness = TICK;
    policy.lease.drift_ppm = DRIFT_PPM;
    match mutant {
        Some(Mutant::NoDriftInTheWait) => policy.lease.drift_ppm = 0,
        Some(Mutant::NoWatchdogInTheWait) => policy.lease.watchdog = Millis::ZERO,
        Some(Mutant::NoMajorityOfHosts | Mutant::ForgetfulRestart | Mutant::GoodbyeOfAnyBoot) | None => {}
    }
    policy
}

/// Deliberate mistakes, made around the core rather than in it. Each must be caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// Observers believe that every host that is heard holds its lease.
    NoMajorityOfHosts,
    /// Observers wait for the lease and the watchdog by their own clocks, as if nobody's ran differently.
    NoDriftInTheWait,
    /// Observers wait for the lease only.
    NoWatchdogInTheWait,
    /// A replica that begins anew grants and votes at once, as if its former life had promised nothing.
    ForgetfulRestart,
    /// A goodbye counts for whichever boot the log knows when it comes.
    GoodbyeOfAnyBoot,
}

/// One exploration.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Its name.
    pub name: &'static str,
    /// How many hosts; the VM runs on the first.
    pub hosts: u8,
    /// How many replicas; the first leads.
    pub replicas: u8,
    /// How many ticks it lasts.
    pub ticks: u16,
    /// How many faults may happen beside those of the script, at any ticks.
    pub faults: u8,
    /// Before which tick the last of them happens at the latest.
    pub until: u16,
    /// Which ones.
    pub menu: Vec<Fault>,
    /// Faults that happen in every run, and after which tick.
    pub script: Vec<(u16, Fault)>,
    /// Whose clocks are slow, one run each: bits 0… hosts, bits 8… replicas.
    pub slow: Vec<u16>,
    /// A deliberate mistake.
    pub mutant: Option<Mutant>,
}

/// Clocks: all alike; the first host slow; every other party slow; the first replica slow.
const CLOCKS: [u16; 4] = [0, 0x0001, 0x0706, 0x0100];

fn late(kind: Kind, hosts: &[u8], peers: &[u8], ticks: &[u8]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for host in hosts {
        for peer in
            peers.iter().filter(|peer| !matches!(kind, Kind::Question | Kind::Answer) || *peer != host)
        {
            faults.extend(ticks.iter().map(|ticks| Fault::Late {
                kind,
                host: *host,
                peer: *peer,
                ticks: *ticks,
            }));
        }
    }
    faults
}

/// What can happen to the lease of the first host and to the double quorum around it.
fn lease_menu() -> Vec<Fault> {
    let mut menu = vec![
        Fault::AgentRestart { host: 0, hint: true },
        Fault::AgentRestart { host: 0, hint: false },
        Fault::AgentRestart { host: 1, hint: true },
        Fault::AgentFrozen(0),
        Fault::AgentFrozen(1),
        Fault::Reboot(0),
        Fault::NoReplicas(0),
        Fault::NoReplicas(1),
        Fault::Isolated(0),
        Fault::NoReplica(0, 0),
        Fault::NoReplica(0, 1),
        Fault::NoNeighbour(0, 1),
        Fault::NoNeighbour(0, 2),
        Fault::Switch,
        Fault::SwitchDown,
        Fault::ReplicaRestart(0),
        Fault::ReplicaRestart(1),
        Fault::ReplicaLags(1),
        Fault::ReplicaFrozen(1),
        Fault::Outage,
    ];
    menu.extend(late(Kind::Beat, &[0], &[0, 1], &[1, 3]));
    menu.extend(late(Kind::Ack, &[0], &[0, 1], &[1]));
    menu.extend(late(Kind::Beat, &[1], &[0], &[3]));
    menu.extend(late(Kind::Question, &[0], &[1, 2], &[1]));
    menu.extend(late(Kind::Answer, &[0], &[1, 2], &[1]));
    menu
}

/// What can happen to proofs by power and by boot, to orders, and to the way back.
fn power_menu() -> Vec<Fault> {
    let mut menu = vec![
        Fault::Power(0),
        Fault::Reboot(0),
        Fault::Reboot(1),
        Fault::Bmc(0),
        Fault::AgentRestart { host: 0, hint: true },
        Fault::AgentFrozen(0),
        Fault::Shutdown(0),
        Fault::Shutdown(1),
        Fault::NoReplicas(0),
        Fault::NoReplica(0, 0),
        Fault::NoReplica(0, 1),
        Fault::Isolated(0),
        Fault::ReplicaRestart(0),
        Fault::ReplicaLags(1),
        Fault::ReplicaLags(2),
        Fault::ReplicaFrozen(1),
        Fault::Elected(1),
        Fault::ElectedBehind(1),
        Fault::Undeceived,
    ];
    menu.extend(late(Kind::Report, &[0, 1], &[0, 1], &[2, 5]));
    menu.extend(late(Kind::Order, &[0, 1], &[0], &[1, 3]));
    menu.extend(late(Kind::Bmc, &[0], &[0], &[3]));
    menu.extend(late(Kind::Goodbye, &[0, 1], &[0], &[6]));
    menu
}

impl Bounds {
    fn new(name: &'static str, menu: Vec<Fault>, script: &[(u16, Fault)], faults: u8) -> Self {
        Self {
            name,
            hosts: 3,
            replicas: 3,
            ticks: 13,
            faults,
            until: 11,
            menu,
            script: script.to_vec(),
            slow: CLOCKS.to_vec(),
            mutant: None,
        }
    }

    /// What `cargo test` explores: every single fault, from several beginnings.
    #[must_use]
    pub fn quick() -> Vec<Self> {
        Self::all(1)
    }

    /// What the heavy suite explores: every pair of faults, from the same beginnings.
    #[must_use]
    pub fn full() -> Vec<Self> {
        Self::all(2)
    }

    fn all(faults: u8) -> Vec<Self> {
        let dark = (0, Fault::Bmc(0));
        vec![
            Self::new("lease", lease_menu(), &[dark], faults),
            Self::new("isolated", lease_menu(), &[dark, (1, Fault::Isolated(0))], faults),
            Self::new("unheard", lease_menu(), &[dark, (1, Fault::NoReplicas(0))], faults),
            Self::new("switch", lease_menu(), &[dark, (1, Fault::Switch)], faults),
            Self::new("acks-lost", lease_menu(), &[dark, (1, Fault::SwitchDown)], faults),
            Self::new("outage", lease_menu(), &[dark, (1, Fault::Outage), (4, Fault::Outage)], faults),
            Self::new("power", power_menu(), &[], faults),
            Self::new("power-cut", power_menu(), &[(1, Fault::Power(0))], faults),
            Self::new("reboot", power_menu(), &[(1, Fault::Reboot(0))], faults),
            Self::new("fenced", power_menu(), &[(1, Fault::NoReplicas(0))], faults),
            Self::new("spare-back", power_menu(), &[(2, Fault::Reboot(1)), (4, Fault::Power(0))], faults),
            Self::new(
                "spare-was-off",
                power_menu(),
                &[(1, Fault::Shutdown(1)), (3, Fault::Power(1)), (6, Fault::Power(0))],
                faults,
            ),
        ]
    }
}
