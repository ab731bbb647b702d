//! Worlds for what chance draws too seldom: each profile here is a few mishaps that come together on purpose, at a
//! time and for as long as chance says.

use defib_model::{Millis, inventory::SelfFence, policy::LeasePolicy};

use crate::{
    fault::{BmcFault, Episode, Fault, Way},
    plan::Plan,
    rng::Rng,
};

impl Plan {
    fn happens(&mut self, at_ms: u64, for_ms: u64, fault: Fault) {
        self.episodes.push(Episode { at_ms, for_ms, fault });
    }

    /// Nobody can switch a host off, or read its power.
    fn bmcs(&mut self, host: usize, at_ms: u64, for_ms: u64, how: BmcFault) {
        let levels = &self.inventory.hosts[&self.hosts[host].id].fencing;
        let methods: Vec<usize> = levels.iter().map(|level| level.0.len()).collect();
        for (level, count) in methods.into_iter().enumerate() {
            for method in 0..count {
                self.happens(at_ms, for_ms, Fault::Bmc { host, level, method, how });
            }
        }
    }

    fn every_host_fences_itself_by(&mut self, draw: impl Fn() -> SelfFence) {
        self.inventory.hosts.values_mut().for_each(|host| host.self_fence = draw());
    }

    fn trusts(&self, host: usize) -> bool {
        self.inventory.hosts[&self.hosts[host].id].self_fence == SelfFence::Trusted
    }

    /// A host dies and comes back, so that something is decided.
    fn a_death(&mut self, rng: &mut Rng, at_ms: u64) {
        let host = rng.index(self.hosts.len());
        self.happens(at_ms, rng.between(500, 8000), Fault::PowerCut { host });
    }
}

/// The replicas, or the way to them, are gone for longer than any lease and watchdog, and nothing else goes wrong
/// meanwhile; or agents are upgraded, and nothing else goes wrong; or a host was dark for long, and the replicas are
/// restarted when it comes back, one of them with a disk that had fallen behind, and cut off from the others.
pub(crate) fn outage(plan: &mut Plan, rng: &mut Rng) {
    let lease = &mut plan.policy.lease;
    lease.watchdog = Millis(1000 * rng.between(4, 5));
    lease.answer_freshness = Millis(rng.between(400, 900));
    let longest = lease.lease.0 + lease.watchdog.0;
    plan.every_host_fences_itself_by(|| SelfFence::Watchdog);
    let mut at_ms = rng.between(200, 2000);
    let kind = rng.below(4);
    if kind == 0 {
        plan.policy.detection.upgrade_grace = Millis(rng.between(14_000, 18_000));
        for _ in 0..rng.between(1, 2) {
            let host = rng.index(plan.hosts.len());
            plan.happens(at_ms, rng.between(50, 1500), Fault::AgentUpgrade { host });
        }
        at_ms += 16_000;
    } else if kind < 3 {
        for _ in 0..rng.between(1, 2) {
            let for_ms = longest + rng.between(2000, 9000);
            let fault = if rng.permille(500) { Fault::SwitchCut } else { Fault::AllReplicasDown };
            plan.happens(at_ms, for_ms, fault);
            at_ms += for_ms + rng.between(8000, 14_000);
        }
    } else {
        let host = rng.index(plan.hosts.len());
        let dark_ms = plan.policy.detection.act_after_max.0 + longest + rng.between(0, 4000);
        plan.happens(at_ms, dark_ms, Fault::HostCut { host });
        plan.bmcs(host, at_ms, dark_ms + 3000, BmcFault::Hang);
        let restart = at_ms + dark_ms - rng.between(0, 600);
        let behind = rng.index(plan.replicas);
        if rng.permille(700) {
            let (from, ms) = (at_ms + plan.policy.detection.act_after.0, rng.between(1000, 9000));
            plan.happens(from, dark_ms, Fault::SlowDisk { replica: behind, ms });
            for other in (0..plan.replicas).filter(|other| *other != behind) {
                let pair = Fault::ReplicaPair { replica: behind, other, way: Way::Both };
                plan.happens(restart + 300, 3000, pair);
            }
        }
        for replica in 0..plan.replicas {
            let (at_ms, power) = (restart + rng.between(0, 200), rng.permille(700));
            plan.happens(at_ms, rng.between(50, 400), Fault::ReplicaCrash { replica, power });
        }
        at_ms += dark_ms + 8000;
    }
    plan.a_death(rng, at_ms);
    plan.safety_ms = at_ms + 8000;
}

/// Hosts that are cut off by half, or stuck, while their BMCs are dark: some still reach their neighbours, some one
/// replica; some stand still at the wrong moment, some can't stop their VMs.
pub(crate) fn half(plan: &mut Plan, rng: &mut Rng) {
    let lease = &mut plan.policy.lease;
    lease.lease = Millis(rng.between((10 * plan.policy.detection.heartbeat_interval.0).max(1000), 3500));
    lease.watchdog = Millis(1000 * rng.between(1, 4)).max(LeasePolicy::WATCHDOG_MIN);
    lease.answer_freshness = Millis(lease.answer_freshness.0.min(lease.watchdog.0));
    let watchdog = lease.watchdog.0;
    let usual = if rng.permille(150) { SelfFence::Trusted } else { SelfFence::Watchdog };
    plan.every_host_fences_itself_by(|| usual);
    for _ in 0..rng.between(1, 2) {
        let host = rng.index(plan.hosts.len());
        let at_ms = rng.between(200, plan.safety_ms / 3);
        let for_ms = plan.safety_ms - at_ms;
        plan.bmcs(host, at_ms, for_ms, BmcFault::Hang);
        match rng.below(6) {
            0 | 1 => {
                let way = [Way::In, Way::Out, Way::Both][rng.index(3)];
                plan.happens(at_ms, for_ms, Fault::HostFromReplicas { host, way });
            }
            2 => {
                let spared = rng.index(plan.replicas);
                for replica in (0..plan.replicas).filter(|replica| *replica != spared) {
                    plan.happens(at_ms, for_ms, Fault::HostFromReplica { host, replica, way: Way::Both });
                }
            }
            3 if !plan.trusts(host) => {
                // What promises it is on its way when it stops.
                let slow = Fault::Delay(rng.between(50, 300));
                plan.happens(at_ms.saturating_sub(1500), 3000, slow);
                let still = watchdog * rng.between(450, 750) / 1000;
                plan.happens(at_ms, still, Fault::AgentPause { host });
                plan.happens(at_ms + rng.between(5, still - 100), for_ms, Fault::HostCut { host });
            }
            4 if !plan.trusts(host) => {
                plan.happens(at_ms, for_ms, Fault::StopStuck { host });
                plan.happens(at_ms + 50, for_ms, Fault::HostCut { host });
            }
            _ => {
                // Its VMs are about to start elsewhere when a host loses one replica, perhaps the leader.
                plan.a_death(rng, at_ms);
                let act = plan.policy.detection.act_after.0;
                plan.hosts.iter_mut().for_each(|host| host.start_ms = rng.between(500, 5000));
                for host in 0..plan.hosts.len() {
                    let replica = rng.index(plan.replicas);
                    let cut = Fault::HostFromReplica { host, replica, way: Way::Both };
                    plan.happens(at_ms + act + rng.between(100, 2500), for_ms, cut);
                }
            }
        }
    }
    if rng.permille(250) {
        // A replica that hosts reach, and no other replica does.
        let (replica, at_ms) = (rng.index(plan.replicas), rng.below(plan.safety_ms / 2));
        for other in (0..plan.replicas).filter(|other| *other != replica) {
            plan.happens(at_ms, 12_000, Fault::ReplicaPair { replica, other, way: Way::Both });
        }
    }
    if rng.permille(400) {
        for _ in 0..rng.between(1, 6) {
            let (at_ms, how) = (rng.below(plan.safety_ms), rng.word());
            let fault = if rng.permille(800) {
                Fault::OperatorPolicy { how }
            } else {
                Fault::ReplicaReplace { replica: rng.index(plan.replicas) }
            };
            plan.happens(at_ms, 0, fault);
        }
    }
}

/// What is old comes again, or late: orders, datagrams, what a replica held back while it stood still; leaders are
/// deposed with fences under way, and replicas restarted with words on their way.
pub(crate) fn stale(plan: &mut Plan, rng: &mut Rng) {
    for host in &mut plan.hosts {
        host.boot_ms = rng.between(300, 1500);
    }
    let end = plan.safety_ms;
    if rng.permille(700) {
        for host in 0..plan.hosts.len() {
            plan.happens(0, end, Fault::OldOrders { host, permille: rng.between(50, 400) as u32 });
        }
    }
    if rng.permille(700) {
        plan.happens(0, end, Fault::Straggle(rng.between(5, 150) as u32));
    }
    if rng.permille(300) {
        // Hosts are nearly full.
        plan.inventory.vms.values_mut().for_each(|vm| vm.resources.cpu_millis = 2500);
    }
    if rng.permille(400) {
        for replica in 0..plan.replicas {
            plan.happens(0, end, Fault::SlowDisk { replica, ms: rng.between(20, 250) });
        }
    }
    let mut at_ms = rng.between(500, 2000);
    while at_ms + 2000 < end {
        let (host, replica) = (rng.index(plan.hosts.len()), rng.index(plan.replicas));
        let act = plan.policy.detection.act_after.0;
        match rng.below(9) {
            0 => plan.happens(at_ms, rng.between(200, 1500), Fault::PowerCut { host }),
            1 => plan.happens(at_ms, 0, Fault::Flap { host }),
            8 => {
                // The word of a boot that was never let in is kept by a replica that loses the host, and then leads.
                plan.happens(at_ms, 0, Fault::Flap { host });
                let cut = at_ms + plan.hosts[host].boot_ms + rng.between(0, 2500);
                let from = Fault::HostFromReplica { host, replica, way: Way::Both };
                plan.happens(cut, rng.between(3000, 6000), from);
                plan.happens(cut + rng.between(200, 2500), 0, Fault::LeaderMove { replica });
            }
            2 | 3 => {
                plan.happens(at_ms, rng.between(3000, 10_000), Fault::ReplicaPause { replica });
                let (at_ms, for_ms) = (at_ms + rng.between(10, 400), rng.between(50, 800));
                let leaves = if rng.permille(500) {
                    Fault::HostShutdown { host }
                } else {
                    Fault::ShutdownCalledOff { host }
                };
                plan.happens(at_ms, for_ms, leaves);
            }
            4 | 5 => {
                // Condemned and heard again, while its BMC does not do what it is told.
                let cut = act + rng.between(200, 2000);
                plan.happens(at_ms, cut, Fault::HostCut { host });
                let how = [BmcFault::Conflict, BmcFault::Ignores, BmcFault::Slow(rng.between(500, 3000))];
                plan.bmcs(host, at_ms, cut + 4000, how[rng.index(3)]);
                let deposed = if rng.permille(500) {
                    Fault::LeaderMove { replica }
                } else {
                    Fault::ReplicaPause { replica }
                };
                plan.happens(at_ms + act + rng.between(100, 2500), rng.between(300, 3000), deposed);
            }
            6 => {
                plan.happens(at_ms, rng.between(50, 1500), Fault::HostCut { host });
                let power = rng.permille(300);
                plan.happens(at_ms + rng.between(0, act), 50, Fault::ReplicaCrash { replica, power });
            }
            _ => {
                plan.happens(at_ms, 3000, Fault::PowerCut { host });
                let first = at_ms + rng.between(200, 1200);
                for _ in 0..rng.between(2, 10) {
                    let how = rng.word();
                    plan.happens(first + rng.between(0, 1500), 0, Fault::OperatorInventory { how });
                }
            }
        }
        at_ms += rng.between(300, 6000);
    }
}

/// Words that are false: BMCs with the right identity that read off whatever is true, and hosts whose agents stand
/// still although an operator vouches for them. Nobody can save their VMs; everything else must hold.
pub(crate) fn liars(plan: &mut Plan, rng: &mut Rng) {
    let trusted = rng.permille(500);
    plan.every_host_fences_itself_by(|| if trusted { SelfFence::Trusted } else { SelfFence::Watchdog });
    let lease = plan.policy.lease.lease.0 + plan.policy.lease.watchdog.0;
    let act = plan.policy.detection.act_after.0;
    for _ in 0..rng.between(1, 2) {
        let host = rng.index(plan.hosts.len());
        let mut at_ms = rng.between(200, 4000);
        if trusted {
            let for_ms = act + lease + rng.between(1000, 6000);
            plan.bmcs(host, at_ms, for_ms + 2000, BmcFault::Hang);
            plan.happens(at_ms, for_ms + rng.between(1000, 5000), Fault::StopStuck { host });
            plan.happens(at_ms, for_ms, Fault::AgentPause { host });
            continue;
        }
        if rng.permille(400) {
            // An operator has a host fenced that is heard, and its BMC first says nothing, then what is not true.
            let silent = plan.policy.fencing.attempt_timeout.0 + rng.between(0, 2500);
            plan.bmcs(host, at_ms, silent, BmcFault::Hang);
            plan.happens(at_ms + 20, 0, Fault::OperatorFence { host });
            plan.bmcs(host, at_ms + silent, 4000, BmcFault::LiesOff);
            continue;
        }
        let levels = plan.inventory.hosts[&plan.hosts[host].id].fencing.len();
        let whole = rng.permille(500) || levels == 0;
        while at_ms + 6000 < plan.safety_ms {
            let cut = act + rng.between(0, 2500);
            plan.happens(at_ms, cut, Fault::HostCut { host });
            // From the beginning, or only when a fence is under way or a reading on its way.
            let from = if whole { at_ms } else { at_ms + rng.between(cut / 2, cut) };
            plan.bmcs(host, from, rng.between(500, 4000), BmcFault::LiesOff);
            if !whole {
                let how =
                    if rng.permille(500) { BmcFault::Hang } else { BmcFault::Slow(rng.between(100, 1500)) };
                plan.bmcs(host, at_ms, from - at_ms, how);
            }
            at_ms += cut + rng.between(4000, 12_000);
        }
    }
    let at_ms = rng.below(plan.safety_ms / 2);
    plan.a_death(rng, at_ms);
}

/// A host has a clone, which comes when all is well or when a leader has just gone, and stays for long. Whoever is
/// heard is the host; of the clone an operator is told, and that is all. Others die meanwhile, so that much is placed.
pub(crate) fn twins(plan: &mut Plan, rng: &mut Rng) {
    let (host, replica) = (rng.index(plan.hosts.len()), rng.index(plan.replicas));
    let twin = plan.hosts.len();
    let mut clone = plan.hosts[host].clone();
    clone.boot_ms = rng.between(500, 6000);
    let at_ms = rng.between(200, plan.safety_ms / 2);
    for _ in 0..rng.between(1, 4) {
        let other = rng.index(plan.hosts.len());
        if other != host {
            let at_ms = rng.below(plan.safety_ms);
            plan.happens(at_ms, rng.between(500, 8000), Fault::PowerCut { host: other });
        }
    }
    plan.hosts.push(clone);
    plan.happens(at_ms, rng.between(5000, 30_000), Fault::Twin { twin });
    match rng.below(4) {
        0 => plan.happens(at_ms + rng.between(0, 8000), 0, Fault::LeaderMove { replica }),
        1 => {
            let (at_ms, power) = (at_ms + rng.between(0, 8000), rng.permille(500));
            plan.happens(at_ms, rng.between(50, 3000), Fault::ReplicaCrash { replica, power });
        }
        2 => {
            let cut = Fault::HostFromReplica { host, replica, way: Way::Both };
            plan.happens(at_ms, rng.between(1000, 12_000), cut);
        }
        _ => {}
    }
    if rng.permille(300) {
        // The first one dies while its clone lives: then the clone is what is left of the host.
        let dies = at_ms + plan.hosts[twin].boot_ms + rng.between(2000, 6000);
        plan.happens(dies, rng.between(500, 8000), Fault::PowerCut { host });
    }
    if !plan.trusts(host) && rng.permille(500) {
        // Whoever stands still while its clone asks is not dead: its machine is another one. Replicas that do not know
        // machines can't tell, so all do.
        for (number, host) in plan.hosts.iter_mut().enumerate() {
            host.machine = Some(format!("machine{number}"));
        }
        plan.older_releases.clear();
        let stands_still = at_ms + plan.hosts[twin].boot_ms + rng.between(0, 4000);
        plan.happens(stands_still, rng.between(500, 5000), Fault::AgentPause { host });
    }
}

/// Replicas lose their power at their writes, hosts die, and one disk finds what it wrote at another place. One copy is
/// lost then at most, whatever the others have synced or not.
pub(crate) fn disks(plan: &mut Plan, rng: &mut Rng) {
    plan.log.segment_bytes = 8192;
    plan.log.snapshot_every = rng.between(20, 120);
    let misdirected = rng.between(2000, plan.safety_ms * 3 / 4);
    let mut at_ms = rng.between(200, 2000);
    while at_ms + 3000 < plan.safety_ms {
        let replica = rng.index(plan.replicas);
        // Copies are made anew from peers, one at a time.
        if !(misdirected.saturating_sub(3000)..misdirected + 8000).contains(&at_ms) {
            let (after, power) = (rng.below(20), rng.permille(700));
            match rng.below(4) {
                0 => plan.happens(at_ms, 0, Fault::FsyncError { replica }),
                1 => plan.happens(at_ms, rng.between(50, 1500), Fault::DiskFull { replica }),
                _ => plan.happens(at_ms, 0, Fault::ReplicaCrashAtWrite { replica, after, power }),
            }
        }
        plan.a_death(rng, at_ms);
        at_ms += rng.between(2000, 9000);
    }
    let replica = rng.index(plan.replicas);
    plan.happens(misdirected, 0, Fault::DiskMisdirect { replica });
    if rng.permille(500) {
        let other = (replica + 1) % plan.replicas;
        plan.happens(misdirected + 1500, 0, Fault::DiskMisdirect { replica: other });
    }
}
