//! How episodes begin and end: each is counted, so that two of a kind overlap without healing each other.

use defib_consensus::replica::MembershipChange;
use defib_model::inventory::SelfFence;
use defib_wire::v1;

use super::{Act, End, Fate, Process, World, log::RaftInput, operator::RESUME};
use crate::{
    clock::MS,
    fault::{BmcFault, Fault, Way},
    plan::Profile,
};

impl World {
    /// Puts all episodes of the plan into the queue; they count from now.
    pub(crate) fn schedule_episodes(&mut self) {
        self.checks.faults_begin();
        for number in 0..self.plan.episodes.len() {
            let at = self.now + self.plan.episodes[number].at_ms * MS;
            self.queue.push(at, Act::Begin(number));
        }
    }

    pub(crate) fn begin_episode(&mut self, number: usize) {
        if self.healing {
            return;
        }
        let episode = self.plan.episodes[number].clone();
        if !self.apply(number, &episode.fault, true, episode.for_ms) {
            return;
        }
        self.counts.fault(episode.fault.kind());
        self.say(|| {
            format!(
                "FAULT {}",
                episode.to_string().trim_start().split_once("  ").map_or("", |(_, text)| text)
            )
        });
        if episode.for_ms > 0 && episode.for_ms < u64::MAX {
            self.later(episode.for_ms * MS, Act::End(number));
        }
    }

    pub(crate) fn end_episode(&mut self, number: usize) {
        if self.healing {
            return;
        }
        let fault = self.plan.episodes[number].fault.clone();
        self.apply(number, &fault, false, 0);
        self.say(|| format!("over: {} #{number}", fault.kind()));
    }

    fn cut(&mut self, one: End, other: End, way: Way, cut: bool) {
        if way != Way::Out {
            self.network.cut(other, one, cut);
        }
        if way != Way::In {
            self.network.cut(one, other, cut);
        }
    }

    fn all_hosts(&self) -> impl Iterator<Item = End> + use<> {
        (0..self.machines.len()).map(End::Host)
    }

    fn all_replicas(&self) -> impl Iterator<Item = End> + use<> {
        (0..self.plan.replica_ppm.len()).map(End::Replica)
    }

    /// Begins or ends a fault; `false`: it makes no sense now and is left out.
    #[expect(clippy::too_many_lines, reason = "one line per kind of fault")]
    pub(crate) fn apply(&mut self, number: usize, fault: &Fault, on: bool, for_ms: u64) -> bool {
        let until = self.now + for_ms.min(1_000_000) * MS;
        // Who is vouched for and breaks that word is nobody's fault but the operator's.
        if let Fault::AgentPause { host } | Fault::StopStuck { host } = *fault
            && self.plan.profile == Profile::Liars
            && self.machines[host].self_fence == SelfFence::Trusted
        {
            self.checks.excuse(host);
        }
        match *fault {
            Fault::Loss(permille) => {
                let now = &mut self.network.now;
                now.loss = if on { now.loss + permille } else { now.loss.saturating_sub(permille) };
            }
            Fault::Duplicate(permille) => {
                let now = &mut self.network.now;
                now.duplicate =
                    if on { now.duplicate + permille } else { now.duplicate.saturating_sub(permille) };
            }
            Fault::Replay(permille) => {
                let now = &mut self.network.now;
                now.replay = if on { now.replay + permille } else { now.replay.saturating_sub(permille) };
            }
            Fault::Forge(permille) => {
                let now = &mut self.network.now;
                now.forge = if on { now.forge + permille } else { now.forge.saturating_sub(permille) };
            }
            Fault::Straggle(permille) => {
                let now = &mut self.network.now;
                now.straggle =
                    if on { now.straggle + permille } else { now.straggle.saturating_sub(permille) };
            }
            Fault::Reorder(ms) => {
                let now = &mut self.network.now;
                now.reorder_us = if on { now.reorder_us + ms * 1000 } else { now.reorder_us - ms * 1000 };
            }
            Fault::Delay(ms) => {
                let now = &mut self.network.now;
                now.delay_us = if on { now.delay_us + ms * 1000 } else { now.delay_us - ms * 1000 };
            }
            Fault::HostCut { host } => {
                for other in self.all_hosts().chain(self.all_replicas()) {
                    self.cut(End::Host(host), other, Way::Both, on);
                }
            }
            Fault::HostFromReplicas { host, way } => {
                self.all_replicas().for_each(|other| self.cut(End::Host(host), other, way, on));
            }
            Fault::HostFromReplica { host, replica, way } => {
                self.cut(End::Host(host), End::Replica(replica), way, on);
            }
            Fault::HostFromNeighbours { host } => {
                self.all_hosts().for_each(|other| self.cut(End::Host(host), other, Way::Both, on));
            }
            Fault::SwitchCut => {
                for host in self.all_hosts() {
                    self.all_replicas().for_each(|other| self.cut(host, other, Way::Both, on));
                }
            }
            Fault::ReplicaCut { replica } => {
                let bmcs = (0..self.machines.len()).map(End::Bmc);
                let replicas = self.all_replicas().filter(|other| *other != End::Replica(replica));
                for other in replicas.chain(self.all_hosts()).chain(bmcs) {
                    self.cut(End::Replica(replica), other, Way::Both, on);
                }
            }
            Fault::ReplicaDeaf { replica } => {
                self.all_hosts().for_each(|host| self.cut(End::Replica(replica), host, Way::Both, on));
            }
            Fault::ReplicaPair { replica, other, way } => {
                self.cut(End::Replica(replica), End::Replica(other), way, on);
            }
            Fault::BmcNetCut { replica } => {
                for host in 0..self.machines.len() {
                    self.cut(End::Replica(replica), End::Bmc(host), Way::Both, on);
                }
            }
            Fault::ReplicaPause { replica } if on => {
                if !self.replicas[replica].is_up() {
                    return false;
                }
                self.pause(Process::Replica(replica), until);
            }
            Fault::AgentPause { host } if on => {
                if self.machines[host].agent.is_none() {
                    return false;
                }
                self.pause(Process::Agent(host), until);
            }
            Fault::ReplicaCrash { replica, power } => return self.hold_down(replica, on, power),
            Fault::AllReplicasDown => {
                (0..self.replicas.len()).for_each(|replica| {
                    self.hold_down(replica, on, false);
                });
            }
            Fault::ReplicaCrashAtWrite { replica, after, power } if on => {
                if !self.replicas[replica].is_up() {
                    return false;
                }
                self.replicas[replica].power_fails = power;
                self.replicas[replica].disk.crash_after(after);
            }
            Fault::ReplicaSlowThreads { replica, ms } => {
                let lag = &mut self.replicas[replica].thread_lag_ms;
                *lag = if on { *lag + ms } else { lag.saturating_sub(ms) };
            }
            Fault::FsyncError { replica } if on => self.replicas[replica].disk.fail_next_sync(),
            Fault::DiskFull { replica } => {
                let space = on.then_some(0);
                self.replicas[replica].disk.set_space(space);
            }
            Fault::SlowDisk { replica, ms } => {
                let slow = &mut self.replicas[replica].slow_sync_ms;
                *slow = if on { *slow + ms } else { slow.saturating_sub(ms) };
            }
            Fault::DiskCorrupt { replica } if on => return self.corrupt(replica, false),
            Fault::DiskMisdirect { replica } if on => return self.corrupt(replica, true),
            Fault::ReplicaReplace { replica } if on => {
                return self.one_may_be_lost() && self.replace(replica);
            }
            Fault::WallJump { replica, ms } if on => self.replicas[replica].wall_error_ms += ms,
            Fault::LeaderMove { replica } if on => {
                let id = self.replicas[replica].id;
                let Some(leader) = self.awake_leader() else { return false };
                self.raft_input(leader, RaftInput::Transfer(id));
            }
            Fault::AgentCrash { host } => {
                let held = &mut self.machines[host].agent_held;
                if on {
                    *held += 1;
                    self.kill_agent(host, false);
                } else {
                    *held = held.saturating_sub(1);
                    let boots = self.machines[host].boots;
                    self.later(0, Act::StartAgent { host, boots });
                }
            }
            Fault::AgentCrashAtWrite { host, after, written } if on => {
                self.machines[host].dies_at_write = Some((after, written));
            }
            Fault::OldOrders { host, permille } => {
                let old = &mut self.machines[host].old_orders_permille;
                *old = if on { *old + permille } else { old.saturating_sub(permille) };
            }
            Fault::AgentDiskFull { host } => {
                let full = &mut self.machines[host].disk_full;
                *full = if on { *full + 1 } else { full.saturating_sub(1) };
            }
            Fault::AgentUpgrade { host } => {
                let held = &mut self.machines[host].agent_held;
                if on {
                    *held += 1;
                    self.say_goodbye(host, v1::GoodbyeKind::AgentRestart);
                    self.kill_agent(host, false);
                } else {
                    *held = held.saturating_sub(1);
                    let boots = self.machines[host].boots;
                    self.later(0, Act::StartAgent { host, boots });
                }
            }
            Fault::HostShutdown { host } => {
                let held = &mut self.machines[host].held_off;
                if on {
                    *held += 1;
                    self.begin_leaving(host);
                } else {
                    *held = held.saturating_sub(1);
                    self.power_on(host);
                }
            }
            Fault::ShutdownCalledOff { host } if on => {
                self.machines[host].called_off = true;
                self.begin_leaving(host);
            }
            Fault::PowerCut { host } => self.power_cut(host, on),
            Fault::MainsCut { host } => self.mains_cut(host, on),
            Fault::RackCut { level, ref domain } => {
                for host in 0..self.machines.len() {
                    let id = &self.machines[host].id;
                    if self.plan.inventory.hosts[id].domain.0.get(level) == Some(domain) {
                        self.mains_cut(host, on);
                    }
                }
            }
            Fault::HostReset { host } if on => self.reset(host),
            Fault::Flap { host } if on => {
                let left = 2 + self.chance.hosts.below(6) as u32;
                self.later(0, Act::Flap { host, left });
            }
            Fault::Twin { twin } => self.twin(twin, on),
            Fault::VmCrash { vm } if on => self.vm_crashes(vm),
            Fault::StartFails { host } => {
                let fails = &mut self.machines[host].start_fails;
                *fails = if on { *fails + 1 } else { fails.saturating_sub(1) };
            }
            Fault::StopStuck { host } => {
                let stuck = &mut self.machines[host].stop_stuck;
                *stuck = if on { *stuck + 1 } else { stuck.saturating_sub(1) };
            }
            Fault::Bmc { host, level, method, how } => {
                if on && how == BmcFault::LiesOff {
                    self.checks.excuse(host);
                }
                if let Some(bmc) = self.machines[host].bmcs.get_mut(&(level, method)) {
                    bmc.set(how, on);
                }
            }
            Fault::OperatorPause if !on => self.later(0, Act::Operator { number: RESUME, tries: 0 }),
            Fault::OperatorFence { .. }
            | Fault::OperatorPause
            | Fault::OperatorConfirm { .. }
            | Fault::OperatorPolicy { .. }
            | Fault::OperatorInventory { .. }
                if on =>
            {
                self.later(0, Act::Operator { number, tries: 0 });
            }
            _ => {}
        }
        self.checks.links_changed(self.now);
        self.links_changed();
        true
    }

    fn power_cut(&mut self, host: usize, on: bool) {
        let held = &mut self.machines[host].held_off;
        if on {
            *held += 1;
            self.lose_power(host);
        } else {
            *held = held.saturating_sub(1);
            self.power_on(host);
        }
    }

    /// A clone, from a copy of the disk as it is now, has power while the episode lasts.
    fn twin(&mut self, twin: usize, on: bool) {
        let first = self.host_numbers[&self.machines[twin].id];
        if on {
            self.machines[twin].durable = self.machines[first].durable.clone();
        }
        self.power_cut(twin, !on);
    }

    fn mains_cut(&mut self, host: usize, on: bool) {
        if on {
            self.machines[host].mains = false;
        } else if self.machines[host].held_off <= 1 {
            self.machines[host].mains = true;
        }
        self.power_cut(host, on);
    }

    fn hold_down(&mut self, replica: usize, on: bool, power: bool) -> bool {
        if on {
            self.replicas[replica].held_down += 1;
            self.kill_replica(replica, power);
        } else {
            let it = &mut self.replicas[replica];
            it.held_down = it.held_down.saturating_sub(1);
            let life = it.life;
            self.later(0, Act::StartReplica { replica, life });
        }
        true
    }

    pub(crate) fn flap(&mut self, host: usize, left: u32) {
        if self.healing {
            return;
        }
        self.reset(host);
        if left > 0 {
            let span = self.machines[host].boot_ms + self.chance.hosts.between(500, 4000);
            self.later(span * MS, Act::Flap { host, left: left - 1 });
        }
    }

    /// Whether all replicas that count are well, and they are as many as ever: then one may be lost for good.
    fn one_may_be_lost(&self) -> bool {
        let Some(membership) =
            self.leader().and_then(|leader| self.replicas[leader].run.as_ref()).map(|run| &run.membership)
        else {
            return false;
        };
        // One that is up and has applied nothing may be about to find out that it has lost its memory: no operator who
        // sees that in the status takes another one away.
        let well = |id: &u64| {
            let replica = self.replica_number(*id).map(|number| &self.replicas[number]);
            replica.is_some_and(|one| one.is_up() && one.run.as_ref().is_some_and(|run| run.applied > 0))
        };
        membership.outgoing.is_empty()
            && membership.voters.len() == self.plan.replicas
            && membership.voters.iter().all(well)
    }

    /// What was safe on a stopped replica's disk is altered, or files of it are lost; or what was written at one place
    /// is found at another one.
    fn corrupt(&mut self, replica: usize, misdirected: bool) -> bool {
        if !self.one_may_be_lost() || self.leader() == Some(replica) || !self.replicas[replica].is_up() {
            return false;
        }
        self.kill_replica(replica, false);
        let files = defib_consensus::disk::Disk::list(&self.replicas[replica].disk).unwrap_or_default();
        let mut emptied = false;
        if let Some(file) = self.chance.disk.pick(&files).cloned() {
            // Most of a segment is zeros behind its records; its beginning is what was synced long ago.
            let offset = self.chance.disk.below(file.length.clamp(1, 1024));
            let bit = self.chance.disk.below(8) as u8;
            self.checks.disk_altered(self.replicas[replica].id);
            let names = files.iter().map(|file| file.name.as_str());
            let segments: Vec<&str> = names.clone().filter(|name| name.ends_with(".segment")).collect();
            let lost = match offset % 8 {
                _ if misdirected => Vec::new(),
                0 => names.collect(),
                1 => segments,
                2 => segments.last().copied().into_iter().collect(),
                _ => Vec::new(),
            };
            emptied = !lost.is_empty() && lost.len() == files.len();
            if misdirected {
                let other = self.chance.disk.pick(&files).cloned().unwrap_or_else(|| file.clone());
                let from = self.chance.disk.below(other.length.clamp(1, 1024));
                let length = self.chance.disk.between(8, 512);
                let disk = &self.replicas[replica].disk;
                disk.misdirect((&other.name, from), (&file.name, offset), length);
            } else if lost.is_empty() {
                self.replicas[replica].disk.flip_bit(&file.name, offset, bit);
            }
            for name in &lost {
                let removed = defib_consensus::disk::Disk::remove(&mut self.replicas[replica].disk, name);
                removed.expect("a disk that just was listed");
            }
            if !lost.is_empty() {
                self.say(|| format!("files are lost: {lost:?}"));
            }
        }
        let life = self.replicas[replica].life;
        self.start_replica(replica, life);
        if emptied && self.replicas[replica].is_up() {
            // It can't know that it has forgotten something. Its peers do, and tell it; see `replica_fails`.
            return true;
        }
        // Its process was started again at once, and refused its copy, or did not notice. Either way an operator does
        // not trust that copy any more, and has it made anew from its peers.
        if !self.replicas[replica].is_up() {
            self.replicas[replica].fate = Fate::Gone;
            self.counts.copies_refused += 1;
        }
        self.replace(replica)
    }

    /// An operator gives the place of a replica to a new one.
    pub(crate) fn replace(&mut self, replica: usize) -> bool {
        let count = self.replicas.len();
        if !self.one_may_be_lost() && self.replicas[replica].fate != Fate::Gone
            || count >= self.plan.replica_ppm.len()
        {
            return false;
        }
        self.retire_replica(replica);
        let (old, new) = (self.replicas[replica].id, self.replicas.len() as u64 + 1);
        self.say(|| format!("replica r{old} is replaced by r{new}"));
        self.add_replica(new, true);
        self.agents_learn_of(count);
        self.replace_until_done(old, new);
        true
    }

    /// An operator repeats a change that came to nothing: it may have been told to one that leads no more.
    pub(crate) fn replace_until_done(&mut self, old: u64, new: u64) {
        if let Some(leader) = self.awake_leader()
            && let Some(run) = &self.replicas[leader].run
        {
            let members = &run.membership;
            if members.outgoing.is_empty() && members.voters.contains(&new) && !members.voters.contains(&old)
            {
                return;
            }
            self.raft_input(leader, RaftInput::Change(MembershipChange::replace(old, new)));
        }
        self.later(5_000 * MS, Act::Replace { old, new });
    }

    /// All that can be healed is; what is broken for good stays.
    pub(crate) fn heal(&mut self) {
        self.healing = true;
        self.checks.links_changed(self.now);
        self.network.heal_all();
        for host in 0..self.machines.len() {
            let machine = &mut self.machines[host];
            machine.disk_full = 0;
            machine.start_fails = 0;
            machine.stop_stuck = 0;
            machine.dies_at_write = None;
            machine.agent_held = 0;
            machine.called_off = false;
            machine.old_orders_permille = 0;
            let boots = machine.boots;
            self.later(0, Act::StartAgent { host, boots });
        }
        for replica in 0..self.replicas.len() {
            let it = &mut self.replicas[replica];
            it.held_down = 0;
            it.thread_lag_ms = 0;
            it.slow_sync_ms = 0;
            it.wall_error_ms = 0;
            it.disk.set_space(None);
            let life = it.life;
            self.later(0, Act::StartReplica { replica, life });
        }
        self.links_changed();
        // Again, for the case that the order to stop was still on its way.
        for span in [1, 20_000, 60_000] {
            self.later(span * MS, Act::Operator { number: RESUME, tries: 0 });
        }
    }
}
