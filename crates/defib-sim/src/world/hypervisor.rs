//! A host's hypervisor, and the agent's thread that owns it: one job after the other.

use std::collections::{BTreeMap, VecDeque};

use defib_engine::guard::{Input, StopReason, VmObserved};
use defib_model::{
    Incarnation, Instant, VmId,
    inventory::{Priority, Readiness},
};

use super::{Act, End, World};
use crate::{check::Around, clock::MS};

/// What the thread is told.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    Start { vm: VmId, incarnation: Incarnation, not_after: Instant },
    Stop { vm: VmId, incarnation: Incarnation },
}

/// The thread's queue.
#[derive(Debug, Default)]
pub(crate) struct Hypervisor {
    jobs: VecDeque<Job>,
    /// Counts the steps, so that one of a dropped job is void.
    step: u32,
    begun: bool,
}

fn observed(vm: &VmId, incarnation: Incarnation, readiness: Option<Readiness>) -> Input {
    Input::Hypervisor(VmObserved { vm: vm.clone(), incarnation, running: readiness.is_some(), readiness })
}

impl World {
    pub(crate) fn hypervisor(&mut self, host: usize, job: Job) {
        let hypervisor = &mut self.machines[host].hypervisor;
        hypervisor.jobs.push_back(job);
        if hypervisor.jobs.len() == 1 {
            self.next_job(host);
        }
    }

    /// The thread died with its process: a start that has not reached the hypervisor never will.
    pub(crate) fn drop_jobs(&mut self, host: usize) {
        let hypervisor = &mut self.machines[host].hypervisor;
        hypervisor.jobs.clear();
        hypervisor.begun = false;
        hypervisor.step += 1;
    }

    fn next_job(&mut self, host: usize) {
        let longest = self.plan.hosts[host].start_ms;
        let life = self.machines[host].agent_life;
        let hypervisor = &mut self.machines[host].hypervisor;
        let Some(job) = hypervisor.jobs.front() else { return };
        let span = match job {
            Job::Start { .. } => self.chance.hosts.between(5, longest) / 2,
            Job::Stop { .. } => self.chance.hosts.between(1, longest.min(60)) / 2,
        };
        hypervisor.begun = false;
        hypervisor.step += 1;
        let job = hypervisor.step;
        self.later(span * MS + 1, Act::Hypervisor { host, life, job });
    }

    /// Half of a job is done, or all of it.
    pub(crate) fn hypervisor_step(&mut self, host: usize, life: u32, job: u32) {
        if !self.agent_lives(host, life) || self.machines[host].hypervisor.step != job {
            return;
        }
        let Some(front) = self.machines[host].hypervisor.jobs.front().cloned() else { return };
        if !self.machines[host].hypervisor.begun {
            if let Job::Start { vm, incarnation, not_after } = &front {
                if self.machines[host].clock.local(self.now) >= *not_after {
                    self.machines[host].hypervisor.jobs.pop_front();
                    let result = Err("the lease ended before the start".to_string());
                    self.guard(
                        host,
                        Input::StartFinished { vm: vm.clone(), incarnation: *incarnation, result },
                    );
                    return self.next_job(host);
                }
                self.vm_begins(host, vm, *incarnation);
            }
            let hypervisor = &mut self.machines[host].hypervisor;
            hypervisor.begun = true;
            hypervisor.step += 1;
            let job = hypervisor.step;
            let span = self.chance.hosts.between(1, 20) * MS;
            return self.later(span, Act::Hypervisor { host, life, job });
        }
        self.machines[host].hypervisor.jobs.pop_front();
        match front {
            Job::Start { vm, incarnation, .. } => {
                let result = match self.machines[host].running.get(&vm) {
                    Some(running) if *running == incarnation && self.machines[host].start_fails == 0 => {
                        Ok(())
                    }
                    Some(running) if *running != incarnation => Err(format!("incarnation {running} runs")),
                    _ => Err("qemu exited with status 1".to_string()),
                };
                self.guard(host, Input::StartFinished { vm, incarnation, result });
            }
            Job::Stop { vm, incarnation } => {
                let machine = &mut self.machines[host];
                let runs = machine.running.get(&vm).is_some_and(|running| *running <= incarnation);
                let ok = !runs || machine.stop_stuck == 0;
                if runs && ok {
                    machine.running.remove(&vm);
                    self.checks.stopped(self.now, host, self.vm_numbers[&vm]);
                }
                self.guard(host, Input::StopFinished { vm, incarnation, ok });
            }
        }
        self.next_job(host);
    }

    fn vm_begins(&mut self, host: usize, vm: &VmId, incarnation: Incarnation) {
        let fails = self.machines[host].start_fails > 0;
        // A start that fails may leave something behind that runs.
        if self.machines[host].running.contains_key(vm) || (fails && self.chance.hosts.permille(700)) {
            return;
        }
        let Some(number) = self.vm_numbers.get(vm).copied() else { return };
        self.machines[host].running.insert(vm.clone(), incarnation);
        self.counts.vm_starts += 1;
        let id = self.machines[host].id.clone();
        self.say(|| format!("vm {vm} runs on host {id} as incarnation {incarnation}"));
        self.checks.started(self.now, host, number, incarnation);
        let boots = self.machines[host].boots;
        let span = self.plan.guest_ms.get(vm).copied().unwrap_or(500) * MS;
        self.later(span, Act::GuestReady { host, boots, vm: number, incarnation });
    }

    pub(crate) fn guest_ready(&mut self, host: usize, boots: u32, vm: usize, incarnation: Incarnation) {
        let Some(vm) = self.checks.vm_name(vm) else { return };
        let machine = &self.machines[host];
        if machine.boots != boots || machine.running.get(&vm) != Some(&incarnation) || machine.agent.is_none()
        {
            return;
        }
        self.guard(host, observed(&vm, incarnation, Some(Readiness::GuestAgent)));
    }

    /// An agent that starts finds what runs.
    pub(crate) fn list_vms(&mut self, host: usize) {
        let running: Vec<(VmId, Incarnation)> =
            self.machines[host].running.iter().map(|(vm, incarnation)| (vm.clone(), *incarnation)).collect();
        for (vm, incarnation) in running {
            self.guard(host, observed(&vm, incarnation, Some(Readiness::PoweredOn)));
            let boots = self.machines[host].boots;
            let (number, span) = (self.vm_numbers[&vm], 500 * MS);
            self.later(span, Act::GuestReady { host, boots, vm: number, incarnation });
        }
        self.guard(host, Input::HypervisorListed);
    }

    /// A VM ends by itself.
    pub(crate) fn vm_crashes(&mut self, vm: usize) {
        let Some(name) = self.checks.vm_name(vm) else { return };
        for host in 0..self.machines.len() {
            let Some(incarnation) = self.machines[host].running.remove(&name) else { continue };
            let id = self.machines[host].id.clone();
            self.say(|| format!("vm {name} ends by itself on host {id}"));
            self.checks.stopped(self.now, host, vm);
            let boots = self.machines[host].boots;
            self.later(MS, Act::VmEnded { host, boots, vm, incarnation });
        }
    }

    /// The agent's thread notices that a VM has ended.
    pub(crate) fn vm_ended(&mut self, host: usize, boots: u32, vm: usize, incarnation: Incarnation) {
        let Some(name) = self.checks.vm_name(vm) else { return };
        let machine = &self.machines[host];
        if machine.boots == boots && machine.running.get(&name) != Some(&incarnation) {
            self.guard(host, observed(&name, incarnation, None));
        }
    }

    /// A guard stops a VM: for checkers, what the world knows about why it may have to.
    pub(crate) fn stop_wanted(&mut self, host: usize, reason: StopReason) {
        if reason == StopReason::LeaseLost {
            self.counts.lease_stops += 1;
            let around = self.around(host);
            self.checks.stopped_for_lease(self.now, host, &around);
        }
    }

    /// The same for a watchdog that bites while VMs run.
    pub(crate) fn watchdog_bites(&mut self, host: usize) {
        let steady = self.machines[host].agent.is_some() && self.machines[host].paused_until <= self.now;
        if steady && !self.machines[host].running.is_empty() && self.machines[host].stop_stuck == 0 {
            let around = self.around(host);
            self.checks.stopped_for_lease(self.now, host, &around);
        }
    }

    /// What the world around a host is like.
    pub(crate) fn around(&self, host: usize) -> Around {
        let told = self.machines[host].agent.as_ref().map(|agent| &agent.guard.electorate().hosts);
        let member = |host: usize| told.and_then(|hosts| hosts.get(&self.machines[host].id));
        let asked = |other: &usize| member(*other).is_some_and(|other| !other.address.is_empty());
        Around {
            reachable: self.healthy_neighbours(host).into_iter().filter(asked).collect(),
            electorate: told.map_or(usize::MAX, BTreeMap::len),
            counts: member(host).is_some(),
            calm: self.network.now == self.network.usual,
            replicas_well: self.replicas_are_well(host),
            boot: self.machines[host].boot(),
        }
    }

    /// Hosts that would have answered this one.
    fn healthy_neighbours(&self, host: usize) -> Vec<usize> {
        (0..self.host_numbers.len())
            .filter(|other| {
                *other != host
                    && self.machines[*other].agent.is_some()
                    && self.machines[*other].paused_until <= self.now
                    && self.network.both_ways(End::Host(host), End::Host(*other))
            })
            .collect()
    }

    /// Whether all replicas that count are well, reach each other, and are reached by a host.
    fn replicas_are_well(&self, host: usize) -> bool {
        let Some(ledger) = self.newest() else { return false };
        let voters: Vec<Option<usize>> =
            ledger.voters().iter().map(|voter| self.replica_number(voter.0)).collect();
        voters.iter().all(|number| {
            number.is_some_and(|number| {
                let replica = &self.replicas[number];
                let replicas = voters.iter().flatten().filter(|other| **other != number);
                replica.is_up()
                    && replica.paused_until <= self.now
                    && replica.thread_lag_ms == 0
                    && replica.slow_sync_ms == 0
                    && self.network.both_ways(End::Host(host), End::Replica(number))
                    && replicas
                        .into_iter()
                        .all(|other| self.network.both_ways(End::Replica(number), End::Replica(*other)))
            })
        })
    }

    /// Protected VMs, and whether each runs somewhere.
    pub(crate) fn all_vms_run(&self) -> bool {
        self.plan.inventory.vms.values().all(|vm| {
            vm.priority == Priority::Disabled
                || self.machines.iter().any(|machine| machine.running.contains_key(&vm.id))
        })
    }
}
