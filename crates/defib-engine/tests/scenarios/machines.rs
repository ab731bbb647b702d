//! The hosts, their agents and their BMCs: what the replicas can only hear about.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::ledger::Electorate;
use defib_model::{
    BootId, Epoch, HostId, HostNote, Incarnation, Policy, ReplicaId, VmId, VmNote,
    command::{AgentReport, FenceResult, PowerOffReading, VmReport},
    inventory::{Readiness, SelfFence},
};

/// How a BMC (or a PDU's outlet) behaves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Bmc {
    /// It answers and obeys.
    #[default]
    Ok,
    /// It answers this many milliseconds late.
    Slow(u64),
    /// It takes the connection and never answers.
    Hang,
    /// It has no power.
    Dark,
    /// It accepts the order and does nothing.
    Lying,
    /// It refuses this many orders (HTTP 409) before it obeys.
    Refuses(u32),
    /// It is another machine's.
    Wrong,
    /// It reads Off, whatever the host does.
    SaysOff,
}

/// What an agent does with the start of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartFault {
    /// Says that the hypervisor failed.
    Fails,
    /// Says at once that it did not even try.
    Refuses,
    /// Never answers and starts nothing.
    Mute,
    /// Its agent is killed before it has written the order down, and started again after this many milliseconds.
    Dies { back_after: u64 },
}

/// A VM on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) incarnation: Incarnation,
    pub(crate) running: bool,
    pub(crate) readiness: Option<Readiness>,
}

/// A host with its agent.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: HostId,
    pub(crate) number: u64,
    /// Outlets and BMCs that were switched off: (level, method).
    pub(crate) switched_off: BTreeSet<(usize, usize)>,
    /// The mains feed is there.
    pub(crate) mains: bool,
    pub(crate) powered: bool,
    pub(crate) booting: bool,
    /// The agent doesn't run: frozen, or being replaced.
    pub(crate) frozen: bool,
    pub(crate) agent_up: bool,
    pub(crate) cut_from: BTreeSet<ReplicaId>,
    /// Replicas that hear it and that it does not hear.
    pub(crate) deaf_to: BTreeSet<ReplicaId>,
    /// On how many paths it sends heartbeats; its sessions with the replicas and its neighbours take the first.
    pub(crate) paths: u8,
    /// Paths that are cut, from everybody.
    pub(crate) cut_paths: BTreeSet<u8>,
    pub(crate) cut_from_neighbours: bool,
    /// Who counts, as it was told last: durable.
    pub(crate) electorate: Option<Electorate>,
    pub(crate) boots: u64,
    pub(crate) epoch: Epoch,
    pub(crate) term: u64,
    pub(crate) sequence: u64,
    pub(crate) promises: BTreeMap<ReplicaId, u64>,
    pub(crate) held_since: Option<u64>,
    /// When the watchdog was petted last: when it was last covered, by its lease or by its neighbours' word.
    pub(crate) petted: u64,
    pub(crate) watchdog: bool,
    pub(crate) stamps: BTreeMap<ReplicaId, defib_model::Instant>,
    pub(crate) vms: BTreeMap<VmId, Instance>,
    /// The newest incarnation that it was ever ordered to start or burn: durable.
    pub(crate) seen: BTreeMap<VmId, Incarnation>,
    pub(crate) reported: BTreeMap<ReplicaId, AgentReport>,
    /// When everything is reported again, news or not.
    pub(crate) report_again: u64,
    /// How long a report is on its way.
    pub(crate) report_takes: u64,
    pub(crate) bmcs: BTreeMap<(usize, usize), Bmc>,
    /// How many methods each fencing level has.
    pub(crate) levels: Vec<usize>,
    pub(crate) faults: BTreeMap<VmId, (StartFault, u32)>,
    pub(crate) self_fence: SelfFence,
}

impl Machine {
    pub(crate) fn new(id: HostId, number: u64, levels: Vec<usize>, self_fence: SelfFence) -> Self {
        Self {
            id,
            number,
            switched_off: BTreeSet::new(),
            mains: true,
            powered: true,
            booting: false,
            frozen: false,
            agent_up: true,
            cut_from: BTreeSet::new(),
            deaf_to: BTreeSet::new(),
            paths: 1,
            cut_paths: BTreeSet::new(),
            cut_from_neighbours: false,
            electorate: None,
            boots: 1,
            epoch: Epoch(0),
            term: 0,
            sequence: 0,
            promises: BTreeMap::new(),
            held_since: None,
            petted: 0,
            watchdog: self_fence == SelfFence::Watchdog,
            stamps: BTreeMap::new(),
            vms: BTreeMap::new(),
            seen: BTreeMap::new(),
            reported: BTreeMap::new(),
            report_again: 0,
            report_takes: 2,
            bmcs: BTreeMap::new(),
            levels,
            faults: BTreeMap::new(),
            self_fence,
        }
    }

    pub(crate) fn boot(&self) -> BootId {
        BootId(u128::from(self.number * 100 + self.boots))
    }

    /// Whether its agent does anything.
    pub(crate) fn agent_runs(&self) -> bool {
        self.powered && !self.booting && !self.frozen && self.agent_up
    }

    /// Whether its session with a replica works.
    pub(crate) fn reaches(&self, replica: ReplicaId) -> bool {
        self.reaches_on(0, replica) && !self.deaf_to.contains(&replica)
    }

    /// Whether acknowledgements of its heartbeats of one path pass.
    pub(crate) fn hears_on(&self, path: u8, replica: ReplicaId) -> bool {
        self.reaches_on(path, replica) && !self.deaf_to.contains(&replica)
    }

    /// Whether its heartbeats of one path pass.
    pub(crate) fn reaches_on(&self, path: u8, replica: ReplicaId) -> bool {
        self.agent_runs() && !self.cut_from.contains(&replica) && !self.cut_paths.contains(&path)
    }

    /// Whether it and its neighbours hear each other.
    pub(crate) fn hears_neighbours(&self) -> bool {
        !self.cut_from_neighbours && !self.cut_paths.contains(&0)
    }

    /// Power is gone: whatever ran is gone with it.
    pub(crate) fn lose_power(&mut self) {
        self.powered = false;
        self.booting = false;
        self.frozen = false;
        self.agent_up = true;
        self.stop_everything();
        self.promises.clear();
        self.held_since = None;
        self.stamps.clear();
        self.reported.clear();
    }

    pub(crate) fn stop_everything(&mut self) {
        for instance in self.vms.values_mut() {
            instance.running = false;
            instance.readiness = None;
        }
    }

    /// A new boot begins: only what its agent keeps on disk is left.
    pub(crate) fn begin_boot(&mut self) {
        self.lose_power();
        self.powered = true;
        self.booting = true;
        self.boots += 1;
        self.sequence = 0;
        self.switched_off.clear();
    }

    /// How many promises are unexpired.
    pub(crate) fn holds_lease(&self, now: u64, voters: &BTreeSet<ReplicaId>) -> bool {
        let unexpired = |from: &&ReplicaId| self.promises.get(*from).is_some_and(|until| *until > now);
        voters.iter().filter(unexpired).count() > voters.len() / 2
    }

    pub(crate) fn promise(&mut self, now: u64, from: ReplicaId, until: u64, voters: &BTreeSet<ReplicaId>) {
        let held = self.holds_lease(now, voters);
        let promise = self.promises.entry(from).or_default();
        *promise = until.max(*promise);
        if !held && self.holds_lease(now, voters) {
            self.held_since = Some(now);
        }
    }

    pub(crate) fn report(&self) -> AgentReport {
        AgentReport {
            host: self.id.clone(),
            boot: self.boot(),
            epoch: self.epoch,
            watchdog_armed: self.watchdog,
            note: HostNote { machine: Some(format!("machine of {}", self.id)), ..HostNote::default() },
            vms: self
                .vms
                .iter()
                .map(|(vm, instance)| VmReport {
                    vm: vm.clone(),
                    incarnation: instance.incarnation,
                    running: instance.running,
                    readiness: instance.readiness,
                    note: VmNote::default(),
                })
                .collect(),
        }
    }

    fn bmc(&self, level: usize, method: usize) -> Bmc {
        if !self.mains && self.levels.get(level) == Some(&1) {
            return Bmc::Dark;
        }
        self.bmcs.get(&(level, method)).cloned().unwrap_or_default()
    }

    /// What one outlet or BMC reads.
    fn reads_off(&self, level: usize, method: usize) -> bool {
        // A BMC knows the host's state; a PDU's outlet only its own.
        if self.levels.get(level) == Some(&1) {
            !self.powered
        } else {
            self.switched_off.contains(&(level, method))
        }
    }

    /// How long an attempt on a level takes, readings included.
    pub(crate) fn bmc_takes(&self, level: usize, policy: &Policy, timeout: u64) -> u64 {
        let methods = self.levels.get(level).copied().unwrap_or(0);
        let readings = policy.fencing.confirm_spacing.0 * u64::from(policy.fencing.confirm_reads - 1);
        (0..methods)
            .map(|method| match self.bmc(level, method) {
                Bmc::Ok | Bmc::Refuses(_) | Bmc::Wrong | Bmc::SaysOff => 20 + readings,
                Bmc::Slow(late) => (late + readings).min(timeout),
                Bmc::Hang | Bmc::Dark | Bmc::Lying => timeout,
            })
            .max()
            .unwrap_or(0)
    }

    /// What a test of one method finds: what an attempt to fence by it would fail for.
    pub(crate) fn test(&self, level: usize, method: usize) -> Option<String> {
        match self.bmc(level, method) {
            Bmc::Wrong => Some(format!("it says uuid-other, recorded is uuid-{}", self.id)),
            Bmc::Dark => Some("no route to its BMC".into()),
            Bmc::Hang => Some("no answer".into()),
            Bmc::Ok | Bmc::Slow(_) | Bmc::Lying | Bmc::Refuses(_) | Bmc::SaysOff => None,
        }
    }

    /// How long an order to switch off needs until it has its effect.
    pub(crate) fn switch_takes(&self, level: usize) -> u64 {
        let methods = self.levels.get(level).copied().unwrap_or(0);
        let late = |method| if let Bmc::Slow(late) = self.bmc(level, method) { late } else { 10 };
        (0..methods).map(late).max().unwrap_or(0)
    }

    /// The order to switch off arrives; whether the host lost its power by it.
    pub(crate) fn switch(&mut self, level: usize) -> bool {
        let methods = self.levels.get(level).copied().unwrap_or(0);
        // The identity of every method is checked before anything is switched.
        if (0..methods).any(|method| self.bmc(level, method) == Bmc::Wrong) {
            return false;
        }
        for method in 0..methods {
            match self.bmc(level, method) {
                Bmc::Ok | Bmc::Slow(_) => {
                    self.switched_off.insert((level, method));
                }
                Bmc::Refuses(0) => {
                    self.bmcs.insert((level, method), Bmc::Ok);
                    self.switched_off.insert((level, method));
                }
                Bmc::Refuses(left) => {
                    self.bmcs.insert((level, method), Bmc::Refuses(left - 1));
                }
                Bmc::Hang | Bmc::Dark | Bmc::Lying | Bmc::Wrong | Bmc::SaysOff => {}
            }
        }
        let off = methods > 0 && (0..methods).all(|method| self.switched_off.contains(&(level, method)));
        if off && self.powered {
            self.lose_power();
            return true;
        }
        false
    }

    /// What an attempt, or a question, of a level brings when it ends.
    pub(crate) fn read(&self, level: usize, reads: u32, timeout: u64, fence: bool) -> FenceResult {
        let methods = self.levels.get(level).copied().unwrap_or(0);
        let mut readings = Vec::new();
        for method in 0..methods {
            let bmc = self.bmc(level, method);
            let off = self.reads_off(level, method) || bmc == Bmc::SaysOff;
            match bmc {
                Bmc::Wrong => {
                    return FenceResult::WrongMachine {
                        detail: format!("it says uuid-other, recorded is uuid-{}", self.id),
                    };
                }
                Bmc::Dark => return FenceResult::Unknown { detail: "no route to its BMC".into() },
                Bmc::Hang => {
                    return FenceResult::Unknown { detail: format!("no answer within {timeout} ms") };
                }
                Bmc::Slow(late) if late >= timeout => {
                    return FenceResult::Unknown { detail: format!("no answer within {timeout} ms") };
                }
                Bmc::Refuses(_) if fence && !off => {
                    return FenceResult::StillOn { detail: "409 Conflict".into() };
                }
                Bmc::Lying if fence && !off => {
                    return FenceResult::StillOn {
                        detail: format!("204 No Content, but On after {timeout} ms"),
                    };
                }
                Bmc::Ok | Bmc::Slow(_) | Bmc::Refuses(_) | Bmc::Lying | Bmc::SaysOff if off => {
                    let identity = if methods == 1 {
                        format!("uuid-{}", self.id)
                    } else {
                        format!("uuid-{}-{method}", self.id)
                    };
                    readings.push(PowerOffReading { level, method, identity, reads });
                }
                Bmc::Ok | Bmc::Slow(_) | Bmc::Refuses(_) | Bmc::Lying | Bmc::SaysOff => {
                    return FenceResult::StillOn { detail: "power reads On".into() };
                }
            }
        }
        FenceResult::Off(readings)
    }
}
