//! A host as it truly is: power, boots, watchdog, and what its disk keeps.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::guard::{Durable, Order, ResumeHint};
use defib_model::{BootId, HostId, Incarnation, VmId, inventory::SelfFence};

use super::{Act, Agent, Hypervisor, World, bmc::BmcState};
use crate::{
    clock::{Clock, MS},
    plan::{HostPlan, Plan},
};

/// More boots than a machine has in a run.
const BOOTS: u128 = 1_000_000;

/// A host.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: HostId,
    number: u32,
    pub(crate) self_fence: SelfFence,
    /// Its power feed is there.
    pub(crate) mains: bool,
    pub(crate) powered: bool,
    pub(crate) booted: bool,
    pub(crate) boots: u32,
    /// Episodes that keep it off.
    pub(crate) held_off: u32,
    pub(crate) clock: Clock,
    ppm: i64,
    pub(crate) boot_ms: u64,
    late_permille: u64,
    /// What its watchdog is set to; 0: it is not armed.
    pub(crate) watchdog_set_ms: u64,
    pub(crate) petted: u64,
    watchdog_watched: bool,
    pub(crate) switched_off: BTreeSet<(usize, usize)>,
    pub(crate) bmcs: BTreeMap<(usize, usize), BmcState>,
    /// How many methods each fencing level has.
    pub(crate) levels: Vec<usize>,
    /// What its hypervisor truly runs.
    pub(crate) running: BTreeMap<VmId, Incarnation>,
    pub(crate) hypervisor: Hypervisor,
    pub(crate) start_fails: u32,
    pub(crate) stop_stuck: u32,
    pub(crate) durable: Option<Durable>,
    pub(crate) hint: Option<ResumeHint>,
    pub(crate) disk_full: u32,
    pub(crate) dies_at_write: Option<(u32, bool)>,
    pub(crate) agent: Option<Box<Agent>>,
    pub(crate) agent_life: u32,
    /// Reasons not to start the agent.
    pub(crate) agent_held: u32,
    pub(crate) paused_until: u64,
    pub(crate) paused_at: u64,
    pub(crate) deferred: Vec<Act>,
    /// The shutdown under way is to be called off.
    pub(crate) called_off: bool,
    /// Orders that were sent to its agents, and how often (of a thousand looks after the watchdog) one comes again.
    pub(crate) old_orders: Vec<(usize, Order)>,
    pub(crate) old_orders_permille: u32,
}

impl Machine {
    pub(crate) fn new(number: usize, host: &HostPlan, plan: &Plan) -> Self {
        let declared = &plan.inventory.hosts[&host.id];
        let levels: Vec<usize> = declared.fencing.iter().map(|level| level.0.len()).collect();
        let mut bmcs = BTreeMap::new();
        for (level, methods) in levels.iter().enumerate() {
            bmcs.extend((0..*methods).map(|method| ((level, method), BmcState::default())));
        }
        Self {
            id: host.id.clone(),
            number: number as u32,
            self_fence: declared.self_fence,
            mains: true,
            powered: false,
            booted: false,
            boots: 0,
            // A clone is no host that anybody has declared: it comes when an episode says so.
            held_off: u32::from(number >= plan.inventory.hosts.len()),
            clock: Clock::default(),
            ppm: host.ppm,
            boot_ms: host.boot_ms,
            late_permille: host.watchdog_late_permille,
            watchdog_set_ms: 0,
            petted: 0,
            watchdog_watched: false,
            switched_off: BTreeSet::new(),
            bmcs,
            levels,
            running: BTreeMap::new(),
            hypervisor: Hypervisor::default(),
            start_fails: 0,
            stop_stuck: 0,
            durable: None,
            hint: None,
            disk_full: 0,
            dies_at_write: None,
            agent: None,
            agent_life: 0,
            agent_held: 0,
            paused_until: 0,
            paused_at: 0,
            deferred: Vec::new(),
            called_off: false,
            old_orders: Vec::new(),
            old_orders_permille: 0,
        }
    }

    pub(crate) fn boot(&self) -> BootId {
        BootId(u128::from(self.number + 1) * BOOTS + u128::from(self.boots))
    }

    /// Which machine's boot this is.
    pub(crate) const fn of_boot(boot: u128) -> u128 {
        boot / BOOTS
    }

    /// When its watchdog bites, if it is not petted: at the latest what it was set to, by its own clock.
    fn bites_at(&self) -> u64 {
        let span = self.watchdog_set_ms * MS / 5 * 4;
        let late = self.watchdog_set_ms * MS / 5 * self.late_permille / 1000;
        self.clock.when(self.clock.local(self.petted).plus_nanos(span + late))
    }
}

impl World {
    /// The power goes: whatever ran is gone with it.
    pub(crate) fn lose_power(&mut self, host: usize) {
        self.kill_agent(host, true);
        let now = self.now;
        let machine = &mut self.machines[host];
        machine.powered = false;
        machine.booted = false;
        machine.watchdog_set_ms = 0;
        machine.hint = None;
        machine.paused_until = 0;
        machine.deferred.clear();
        let gone = std::mem::take(&mut machine.running);
        for vm in gone.keys() {
            self.checks.stopped(now, host, self.vm_numbers[vm]);
        }
    }

    pub(crate) fn power_on(&mut self, host: usize) {
        let machine = &mut self.machines[host];
        if machine.powered || !machine.mains || machine.held_off > 0 {
            return;
        }
        machine.powered = true;
        machine.switched_off.clear();
        self.begin_boot(host);
    }

    pub(crate) fn power_on_if(&mut self, host: usize, boots: u32) {
        if self.machines[host].boots == boots && !self.healing {
            self.power_on(host);
        }
    }

    fn begin_boot(&mut self, host: usize) {
        let machine = &mut self.machines[host];
        machine.boots += 1;
        let (boots, span) = (machine.boots, machine.boot_ms * MS);
        self.later(span, Act::Booted { host, boots });
    }

    /// It resets: by its watchdog, or by a fault of its own.
    pub(crate) fn reset(&mut self, host: usize) {
        if !self.machines[host].powered {
            return;
        }
        self.lose_power(host);
        self.machines[host].powered = true;
        self.begin_boot(host);
    }

    pub(crate) fn booted(&mut self, host: usize, boots: u32) {
        let now = self.now;
        let machine = &mut self.machines[host];
        if machine.boots != boots || !machine.powered || machine.booted {
            return;
        }
        machine.booted = true;
        // The clock of a boot counts from its beginning.
        machine.clock = Clock::showing(machine.boot_ms * MS, now, machine.ppm);
        let (id, boot) = (machine.id.clone(), machine.boot());
        self.say(|| format!("host {id} has booted: {boot}"));
        self.start_agent(host, boots);
    }

    /// An orderly shutdown has stopped everything and said goodbye.
    pub(crate) fn shut_down(&mut self, host: usize) {
        let id = self.machines[host].id.clone();
        if std::mem::take(&mut self.machines[host].called_off) {
            self.say(|| format!("host {id}: its shutdown is called off, its agent comes back"));
            self.kill_agent(host, false);
        } else {
            self.say(|| format!("host {id} shuts down"));
            // What it said last still leaves.
            self.kill_agent(host, true);
            self.lose_power(host);
        }
    }

    pub(crate) fn arm_watchdog(&mut self, host: usize) {
        let machine = &mut self.machines[host];
        if machine.watchdog_set_ms > 0 && !machine.watchdog_watched {
            machine.watchdog_watched = true;
            let (at, boots) = (machine.bites_at(), machine.boots);
            self.queue.push(at, Act::WatchdogDue { host, boots });
        }
    }

    pub(crate) fn watchdog_due(&mut self, host: usize, boots: u32) {
        let machine = &mut self.machines[host];
        machine.watchdog_watched = false;
        if machine.boots != boots || machine.watchdog_set_ms == 0 {
            return self.arm_watchdog(host);
        }
        if machine.bites_at() > self.now {
            return self.arm_watchdog(host);
        }
        let id = machine.id.clone();
        self.say(|| format!("the watchdog resets host {id}"));
        self.counts.watchdog_resets += 1;
        self.watchdog_bites(host);
        self.reset(host);
    }
}
