//! How a run is tuned and what goes wrong in it.

use defib_model::{Millis, Policy, inventory::SelfFence, policy::LeasePolicy};

use crate::{
    fault::{BmcFault, Episode, Fault, Way},
    plan::{Plan, Profile},
    rng::Rng,
    worse,
};

/// A policy within what is allowed, with short waits so that much happens in a short time.
pub(crate) fn policy(rng: &mut Rng, profile: Profile) -> Policy {
    let mut policy = Policy::default();
    if profile == Profile::Smoke {
        policy.lease.lease = Millis(1500);
        policy.lease.watchdog = LeasePolicy::WATCHDOG_MIN;
        policy.lease.answer_freshness = Millis(500);
        policy.fencing.confirm_spacing = Millis(20);
        policy.detection.start_grace = Millis(500);
        policy.brakes.window = Millis(1000);
        policy.brakes.flap_limit = 1000;
        policy.brakes.percent = 100;
        policy.brakes.hosts_per_domain = 100;
        return policy;
    }
    let detection = &mut policy.detection;
    detection.heartbeat_interval = Millis([50, 100, 100, 200][rng.index(4)]);
    detection.ask_after_beats = rng.between(2, 4) as u32;
    let ask = detection.heartbeat_interval.times(u64::from(detection.ask_after_beats));
    detection.act_after = Millis(rng.between(2 * ask.0, 2 * ask.0 + 1000));
    detection.act_after_max = Millis(detection.act_after.0 + rng.between(500, 4000));
    detection.start_grace = Millis(rng.between(1000, 5000));
    detection.upgrade_grace = Millis(rng.between(3000, 15_000));
    let lease = &mut policy.lease;
    lease.lease = Millis(rng.between((10 * detection.heartbeat_interval.0).max(1000), 5000));
    lease.watchdog = Millis(1000 * rng.between(1, 5)).max(LeasePolicy::WATCHDOG_MIN);
    lease.drift_ppm = [200, 1000, 10_000, 50_000][rng.index(4)];
    lease.answer_freshness = Millis(rng.between(400, lease.watchdog.0.min(2500)));
    let fencing = &mut policy.fencing;
    fencing.confirm_reads = rng.between(2, 3) as u32;
    fencing.confirm_spacing = Millis(rng.between(20, 200));
    fencing.attempt_timeout = Millis(rng.between(1000, 8000));
    fencing.retry_pause = Millis(rng.between(200, 3000));
    fencing.retry_pause_max = fencing.retry_pause.times(4);
    let restart = &mut policy.restart;
    restart.starts_per_host = rng.between(1, 8) as u32;
    restart.starts_per_datastore = rng.between(1, 8) as u32;
    restart.starts_total = rng.between(1, 32) as u32;
    restart.tier_timeout = Millis(rng.between(2000, 15_000));
    restart.tier_delay = Millis(if rng.permille(300) { rng.between(100, 2000) } else { 0 });
    restart.start_timeout = Millis(rng.between(3000, 15_000));
    restart.attempts = rng.between(1, 5) as u32;
    restart.retry_after = Millis(rng.between(3000, 20_000));
    let brakes = &mut policy.brakes;
    brakes.hosts = rng.between(1, 3) as u32;
    brakes.percent = rng.between(0, 60) as u32;
    brakes.hosts_per_domain = rng.between(1, 3) as u32;
    brakes.window = Millis(rng.between(5000, 40_000));
    brakes.flap_limit = rng.between(1, 6) as u32;
    policy
}

/// Which faults a run has at all is drawn first, then each is drawn often: the swarm finds what the mean hides.
pub(crate) fn episodes(plan: &mut Plan) {
    draw(plan, &mut Rng::new(plan.seed, "faults"));
    plan.episodes.sort_by_key(|episode| episode.at_ms);
}

fn draw(plan: &mut Plan, rng: &mut Rng) {
    let few = match plan.profile {
        Profile::Smoke => return smoke(plan, rng),
        Profile::Outage => return worse::outage(plan, rng),
        Profile::Liars => return worse::liars(plan, rng),
        Profile::Twins => return worse::twins(plan, rng),
        Profile::Disks => return worse::disks(plan, rng),
        Profile::Dark => {
            dark(plan, rng);
            true
        }
        Profile::Half => {
            worse::half(plan, rng);
            true
        }
        Profile::Stale => {
            worse::stale(plan, rng);
            true
        }
        Profile::Full | Profile::Drift => false,
    };
    let groups = 7;
    let on: Vec<bool> = (0..groups).map(|_| rng.permille(550)).collect();
    let count = if few { rng.between(0, 6) } else { rng.between(3, 40) };
    for _ in 0..count {
        let group = rng.index(groups);
        if !on[group] {
            continue;
        }
        let at_ms = rng.below(plan.safety_ms);
        let fault = match group {
            0 => network(plan, rng),
            1 => partition(plan, rng),
            2 => replica(plan, rng),
            3 => disk(plan, rng),
            4 => agent(plan, rng),
            5 => bmc(plan, rng),
            _ => operator(plan, rng),
        };
        push(plan, rng, at_ms, fault);
    }
    // Hosts die in every run.
    for _ in 0..rng.between(1, 8) {
        let at_ms = rng.below(plan.safety_ms);
        let fault = host(plan, rng);
        push(plan, rng, at_ms, fault);
    }
}

fn push(plan: &mut Plan, rng: &mut Rng, at_ms: u64, fault: Option<Fault>) {
    let Some(fault) = fault else { return };
    let for_ms = match &fault {
        Fault::ReplicaPause { .. } | Fault::AgentPause { .. } => match rng.below(3) {
            0 => rng.between(20, 400),
            1 => rng.between(400, 3000),
            _ => rng.between(3000, 12_000),
        },
        Fault::PowerCut { .. } | Fault::MainsCut { .. } | Fault::RackCut { .. } if rng.permille(250) => {
            u64::MAX
        }
        Fault::ReplicaReplace { .. }
        | Fault::WallJump { .. }
        | Fault::LeaderMove { .. }
        | Fault::HostReset { .. }
        | Fault::VmCrash { .. }
        | Fault::FsyncError { .. }
        | Fault::OperatorFence { .. }
        | Fault::OperatorConfirm { .. }
        | Fault::OperatorPolicy { .. }
        | Fault::OperatorInventory { .. } => 0,
        _ => match rng.below(3) {
            0 => rng.between(50, 1500),
            1 => rng.between(1500, 8000),
            _ => rng.between(8000, 25_000),
        },
    };
    plan.episodes.push(Episode { at_ms, for_ms, fault });
}

/// Hosts that die one after the other and come back, as many as the cluster can take.
fn smoke(plan: &mut Plan, rng: &mut Rng) {
    let hosts = plan.hosts.len();
    let mut at_ms = rng.between(0, 100);
    let mut next = 0;
    while at_ms + 1500 < plan.safety_ms {
        let host = next % hosts;
        next += 1;
        plan.episodes.push(Episode { at_ms, for_ms: 700, fault: Fault::PowerCut { host } });
        at_ms += rng.between(80, 200);
    }
}

/// Hosts of which nobody hears anything any more, while nobody can switch them off or read their power.
fn dark(plan: &mut Plan, rng: &mut Rng) {
    for _ in 0..rng.between(1, 2) {
        let host = rng.index(plan.hosts.len());
        let at_ms = rng.below(plan.safety_ms / 3);
        let for_ms = plan.safety_ms - at_ms;
        let silent = if rng.permille(700) || trusted(plan, host) {
            Fault::HostCut { host }
        } else {
            Fault::AgentPause { host }
        };
        plan.episodes.push(Episode { at_ms, for_ms, fault: silent });
        let levels = &plan.inventory.hosts[&plan.hosts[host].id].fencing;
        let methods = levels.iter().map(|level| level.0.len());
        let places: Vec<(usize, usize)> = methods
            .enumerate()
            .flat_map(|(level, count)| (0..count).map(move |method| (level, method)))
            .collect();
        for (level, method) in places {
            let fault = Fault::Bmc { host, level, method, how: BmcFault::Hang };
            plan.episodes.push(Episode { at_ms, for_ms, fault });
        }
    }
    if rng.permille(300) {
        let at_ms = rng.below(plan.safety_ms / 2);
        let fault = if rng.permille(500) { Fault::SwitchCut } else { Fault::AllReplicasDown };
        plan.episodes.push(Episode { at_ms, for_ms: plan.safety_ms - at_ms, fault });
    }
}

fn network(_: &Plan, rng: &mut Rng) -> Option<Fault> {
    Some(match rng.below(6) {
        0 => Fault::Loss(rng.between(10, 300) as u32),
        1 => Fault::Duplicate(rng.between(10, 500) as u32),
        2 => Fault::Replay(rng.between(10, 500) as u32),
        3 => Fault::Forge(rng.between(10, 300) as u32),
        4 => Fault::Reorder(rng.between(1, 400)),
        _ => Fault::Delay(rng.between(1, 300)),
    })
}

fn way(rng: &mut Rng) -> Way {
    [Way::In, Way::Out, Way::Both][rng.index(3)]
}

fn partition(plan: &Plan, rng: &mut Rng) -> Option<Fault> {
    let (host, replica) = (rng.index(plan.hosts.len()), rng.index(plan.replicas));
    Some(match rng.below(9) {
        0 => Fault::HostCut { host },
        1 => Fault::HostFromReplicas { host, way: way(rng) },
        2 => Fault::HostFromReplica { host, replica, way: way(rng) },
        3 => Fault::HostFromNeighbours { host },
        4 => Fault::SwitchCut,
        5 => Fault::ReplicaCut { replica },
        6 => Fault::ReplicaDeaf { replica },
        7 => Fault::ReplicaPair { replica, other: (replica + 1) % plan.replicas, way: way(rng) },
        _ => Fault::BmcNetCut { replica },
    })
}

fn replica(plan: &Plan, rng: &mut Rng) -> Option<Fault> {
    let replica = rng.index(plan.replicas);
    Some(match rng.below(9) {
        0 | 1 => Fault::ReplicaPause { replica },
        2 => Fault::ReplicaCrash { replica, power: rng.permille(500) },
        3 | 4 => Fault::ReplicaCrashAtWrite { replica, after: rng.below(30), power: rng.permille(500) },
        5 => Fault::ReplicaSlowThreads { replica, ms: rng.between(1, 800) },
        6 => Fault::AllReplicasDown,
        7 => Fault::LeaderMove { replica },
        _ => Fault::WallJump { replica, ms: rng.between(0, 200_000_000) as i64 - 100_000_000 },
    })
}

fn disk(plan: &Plan, rng: &mut Rng) -> Option<Fault> {
    let replica = rng.index(plan.replicas);
    let once = |wanted: fn(&Fault) -> bool| plan.episodes.iter().any(|episode| wanted(&episode.fault));
    match rng.below(5) {
        0 => Some(Fault::FsyncError { replica }),
        1 => Some(Fault::DiskFull { replica }),
        2 => Some(Fault::SlowDisk { replica, ms: rng.between(2, 300) }),
        // More than a minority can't be lost, so each comes once in a run.
        3 if !once(|fault| matches!(fault, Fault::DiskCorrupt { .. })) => {
            Some(Fault::DiskCorrupt { replica })
        }
        _ if !once(|fault| matches!(fault, Fault::ReplicaReplace { .. })) => {
            Some(Fault::ReplicaReplace { replica })
        }
        _ => None,
    }
}

/// An operator who vouches for a host (`trust-self-fence`) vouches for its agent and its hypervisor: it is spared
/// from what would break that word.
fn trusted(plan: &Plan, host: usize) -> bool {
    plan.inventory.hosts[&plan.hosts[host].id].self_fence == SelfFence::Trusted
}

fn agent(plan: &Plan, rng: &mut Rng) -> Option<Fault> {
    let host = rng.index(plan.hosts.len());
    let fault = match rng.below(9) {
        0 | 1 => Fault::AgentPause { host },
        2 => Fault::AgentCrash { host },
        3 => Fault::AgentCrashAtWrite { host, after: rng.below(5) as u32, written: rng.permille(500) },
        4 => Fault::AgentDiskFull { host },
        5 => Fault::AgentUpgrade { host },
        6 => Fault::StopStuck { host },
        7 => return Some(Fault::StartFails { host }),
        _ => return Some(Fault::VmCrash { vm: rng.index(plan.inventory.vms.len()) }),
    };
    (!trusted(plan, host)).then_some(fault)
}

fn host(plan: &Plan, rng: &mut Rng) -> Option<Fault> {
    let host = rng.index(plan.hosts.len());
    Some(match rng.below(12) {
        0..=3 => Fault::PowerCut { host },
        4 | 5 => Fault::MainsCut { host },
        6 if !plan.inventory.levels.is_empty() => {
            let domain = &plan.inventory.hosts[&plan.hosts[host].id].domain;
            let level = rng.index(domain.0.len());
            Fault::RackCut { level, domain: domain.0[level].clone() }
        }
        7 => Fault::Flap { host },
        8 => Fault::HostShutdown { host },
        9 => Fault::ShutdownCalledOff { host },
        _ => Fault::HostReset { host },
    })
}

fn bmc(plan: &Plan, rng: &mut Rng) -> Option<Fault> {
    let host = rng.index(plan.hosts.len());
    let levels = &plan.inventory.hosts[&plan.hosts[host].id].fencing;
    let level = rng.index(levels.len());
    let methods = levels.get(level)?.0.len();
    let method = rng.index(methods);
    let how = match rng.below(8) {
        0 => BmcFault::Hang,
        1 => BmcFault::Slow(rng.between(100, 6000)),
        2 => BmcFault::Conflict,
        3 => BmcFault::Busy,
        4 => BmcFault::Ignores,
        5 if rng.permille(300) => BmcFault::LiesOff,
        6 => BmcFault::Wrong,
        _ => BmcFault::Reboots,
    };
    Some(Fault::Bmc { host, level, method, how })
}

fn operator(plan: &Plan, rng: &mut Rng) -> Option<Fault> {
    let host = rng.index(plan.hosts.len());
    Some(match rng.below(5) {
        0 => Fault::OperatorFence { host },
        1 => Fault::OperatorPause,
        2 => Fault::OperatorConfirm { host },
        3 => Fault::OperatorPolicy { how: rng.word() },
        _ => Fault::OperatorInventory { how: rng.word() },
    })
}
