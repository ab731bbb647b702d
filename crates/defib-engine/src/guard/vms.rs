//! The VMs of a host: which incarnations may run here, which do, and what was promised about them.
//!
//! An incarnation goes one way only: seen → starting → running → burnt. It is burnt as soon as it is not certain any
//! more that it runs: when it ended by itself, when it was stopped for whatever reason, when its start failed, when
//! the host or the agent restarted and it was not found. So "does not run" is never said of one that a late order
//! could still start.

use alloc::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    string::{String, ToString},
    vec::Vec,
};

use defib_model::{
    EffectId, Incarnation, Instant, Millis, VmId, VmNote,
    command::VmReport,
    inventory::{Definition, Readiness},
    policy::LeasePolicy,
};

use super::words::{Effect, Outcome, Refusal, StopReason, VmMemory, VmObserved};

/// How soon a stop that was not confirmed is asked for again: while there is time for that.
const STOP_RETRY: Millis = Millis(400);
const _: () = assert!(STOP_RETRY.0 * 5 <= LeasePolicy::WATCHDOG_MIN.0 * 2, "VMs are stopped at 3/5 of it");

/// How many orders may wait for the end of one VM; an older one's leader will ask again.
const WAITING_MAX: usize = 16;

/// Somebody waits to hear that an incarnation does not run.
#[derive(Debug, Clone)]
struct Waiting {
    effect: EffectId,
    incarnation: Incarnation,
    detail: String,
    reason: StopReason,
}

/// A start that waits for an older incarnation to be gone, or for the hypervisor's list.
#[derive(Debug, Clone)]
struct Pending {
    effect: EffectId,
    incarnation: Incarnation,
    definition: Definition,
}

#[derive(Debug, Clone, Default)]
struct Vm {
    running: BTreeMap<Incarnation, Option<Readiness>>,
    starting: Option<Incarnation>,
    /// What was asked to stop, up to which incarnation, and when to ask again.
    stopping: Option<(Incarnation, Instant)>,
    pending: Option<Pending>,
    waiting: Vec<Waiting>,
}

impl Vm {
    fn may_run(&self) -> impl Iterator<Item = Incarnation> {
        self.running.keys().copied().chain(self.starting)
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty()
            && self.starting.is_none()
            && self.stopping.is_none()
            && self.pending.is_none()
            && self.waiting.is_empty()
    }
}

/// What the rest of the guard lets VMs do at this moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permit {
    /// Starts are allowed, since the lease is held until then.
    pub(super) start: Option<Instant>,
    /// Everything must stop, and why.
    pub(super) stop_all: Option<StopReason>,
    /// In the present epoch no lease was held yet.
    pub(super) lease_comes: bool,
}

/// All VMs of a host.
#[derive(Debug, Clone, Default)]
pub(super) struct Vms {
    memory: BTreeMap<VmId, VmMemory>,
    vms: BTreeMap<VmId, Vm>,
    /// Incarnations that were burnt before anybody tried to start them.
    untried: BTreeMap<VmId, Incarnation>,
    /// The hypervisor has named all that it runs.
    listed: bool,
    /// The memory has changed since it was last taken for the disk.
    dirty: bool,
}

impl Vms {
    /// Begins with what was remembered. After a boot of the host nothing that was remembered runs.
    pub(super) fn new(mut memory: BTreeMap<VmId, VmMemory>, same_boot: bool) -> Self {
        let mut dirty = false;
        if !same_boot {
            for one in memory.values_mut() {
                dirty |= !one.burnt;
                one.burnt = true;
            }
        }
        Self { memory, vms: BTreeMap::new(), untried: BTreeMap::new(), listed: false, dirty }
    }

    pub(super) const fn memory(&self) -> &BTreeMap<VmId, VmMemory> {
        &self.memory
    }

    /// Whether the memory has to be written; asking takes note.
    pub(super) fn take_dirty(&mut self) -> bool {
        core::mem::take(&mut self.dirty)
    }

    /// Whether the hypervisor has named all that it runs, and none of it does any more.
    pub(super) fn nothing_runs(&self) -> bool {
        self.listed && self.vms.values().all(|vm| vm.may_run().next().is_none())
    }

    /// An order to start. `Err` refuses it.
    pub(super) fn order_start(
        &mut self,
        permit: Permit,
        effect: &EffectId,
        vm: &VmId,
        incarnation: Incarnation,
        definition: &Definition,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let known = self.memory.get(vm);
        if let Some(known) =
            known.filter(|known| known.incarnation > incarnation && !mutated!(StartOldIncarnation))
        {
            return Err(Refusal::StaleIncarnation { newest: known.incarnation });
        }
        let state = self.vms.entry(vm.clone()).or_default();
        let seen = known.is_some_and(|known| known.incarnation == incarnation);
        let burnt = seen && known.is_some_and(|known| known.burnt) && !mutated!(StartBurnt);
        if seen && !burnt && permit.stop_all.is_none() && state.running.contains_key(&incarnation) {
            effects.push(report(effect, vm, incarnation, Outcome::Started));
            return Ok(());
        }
        if burnt || permit.start.is_none() {
            if seen && !burnt {
                // It came before and may be on its way, or run: leave it to what becomes of it.
                return Ok(());
            }
            let (detail, reason) = match permit.stop_all {
                _ if burnt => ("this incarnation was here and is over", StopReason::Stale),
                Some(StopReason::ShuttingDown) => ("this host shuts down", StopReason::ShuttingDown),
                // It may come in the next moment: the first beats of an epoch are not answered yet, however long there
                // was none before.
                Some(StopReason::LeaseLost) if permit.lease_comes => return Err(Refusal::NoLease),
                None => return Err(Refusal::NoLease),
                Some(_) => ("this host holds no lease", StopReason::LeaseLost),
            };
            if !burnt {
                self.untried.insert(vm.clone(), incarnation);
            }
            self.burn(vm, incarnation, Some(effect));
            self.wait(vm, effect, incarnation, detail.into(), reason);
            return Ok(());
        }
        if seen && state.starting == Some(incarnation) {
            return Ok(());
        }
        state.pending = Some(Pending { effect: effect.clone(), incarnation, definition: definition.clone() });
        self.remember(vm, VmMemory { incarnation, burnt: false, effect: Some(effect.clone()) });
        Ok(())
    }

    /// An order to stop, or to promise never to start.
    pub(super) fn order_burn(&mut self, effect: &EffectId, vm: &VmId, incarnation: Incarnation) {
        if self.memory.get(vm).is_none_or(|known| known.incarnation < incarnation) {
            self.untried.insert(vm.clone(), incarnation);
        }
        self.burn(vm, incarnation, None);
        self.wait(vm, effect, incarnation, "stopped by order".into(), StopReason::Ordered);
    }

    pub(super) fn started(
        &mut self,
        vm: &VmId,
        incarnation: Incarnation,
        result: Result<(), String>,
        effects: &mut Vec<Effect>,
    ) {
        let state = self.vms.entry(vm.clone()).or_default();
        if state.starting == Some(incarnation) {
            state.starting = None;
        }
        match result {
            Ok(()) => {
                let held = state.running.entry(incarnation).or_default();
                *held = (*held).max(Some(Readiness::PoweredOn));
                self.recall(vm, incarnation);
                let good =
                    self.memory.get(vm).filter(|known| known.incarnation == incarnation && !known.burnt);
                if let Some(effect) = good.and_then(|known| known.effect.as_ref()) {
                    effects.push(report(effect, vm, incarnation, Outcome::Started));
                }
            }
            Err(detail) => {
                // What a failed start has left behind counts as running until its stop is confirmed.
                state.running.insert(incarnation, None);
                let effect = self.memory.get(vm).filter(|known| known.incarnation == incarnation);
                let effect = effect.and_then(|known| known.effect.clone());
                self.burn(vm, incarnation, None);
                if let Some(effect) = effect {
                    self.wait(vm, &effect, incarnation, detail, StopReason::StartFailed);
                }
            }
        }
    }

    pub(super) fn stopped(&mut self, vm: &VmId, incarnation: Incarnation, certain: bool) {
        let Some(state) = self.vms.get_mut(vm) else { return };
        if !certain {
            return;
        }
        if state.stopping.is_some_and(|(up_to, _)| up_to <= incarnation) {
            state.stopping = None;
        }
        state.running.retain(|one, _| *one > incarnation);
        state.starting = state.starting.filter(|one| *one > incarnation);
        self.over(vm, incarnation, "it was stopped");
    }

    pub(super) fn observed(&mut self, seen: &VmObserved) {
        let state = self.vms.entry(seen.vm.clone()).or_default();
        if seen.running {
            let held = state.running.entry(seen.incarnation).or_default();
            *held = (*held).max(seen.readiness);
            self.recall(&seen.vm, seen.incarnation);
        } else if state.running.remove(&seen.incarnation).is_some() {
            self.over(&seen.vm, seen.incarnation, "it ended by itself");
        }
    }

    /// The hypervisor has named all that it runs.
    pub(super) fn all_listed(&mut self) {
        self.listed = true;
        let names: Vec<(VmId, Incarnation)> =
            self.memory.iter().map(|(vm, known)| (vm.clone(), known.incarnation)).collect();
        for (vm, incarnation) in names {
            self.over(&vm, incarnation, "it was not found running when its agent started");
        }
    }

    /// Brings what runs in line with what may run.
    pub(super) fn reconcile(
        &mut self,
        now: Instant,
        permit: Permit,
        urgent: &mut Vec<Effect>,
        effects: &mut Vec<Effect>,
    ) {
        let mut names: BTreeSet<VmId> = self.vms.keys().cloned().collect();
        if permit.stop_all.is_some() && !self.listed {
            // The hypervisor has not said yet what runs: all that may run is stopped.
            names.extend(self.memory.keys().cloned());
        }
        for vm in names {
            self.reconcile_one(now, &vm, permit, urgent, effects);
        }
        self.vms.retain(|_, vm| !vm.is_idle());
    }

    fn reconcile_one(
        &mut self,
        now: Instant,
        vm: &VmId,
        permit: Permit,
        urgent: &mut Vec<Effect>,
        effects: &mut Vec<Effect>,
    ) {
        let known =
            self.memory.get(vm).map_or((Incarnation(0), false), |known| (known.incarnation, known.burnt));
        let unlisted = (!self.listed && !known.1 && permit.stop_all.is_some()).then_some(known.0);
        let state = self.vms.entry(vm.clone()).or_default();
        let stale = |one: &Incarnation| *one < known.0 || (*one == known.0 && known.1);
        let unwanted =
            state.may_run().filter(|one| permit.stop_all.is_some() || stale(one)).chain(unlisted).max();
        match (unwanted, state.stopping) {
            (None, _) => state.stopping = None,
            (Some(up_to), Some((asked, again))) if asked >= up_to && now < again => {}
            (Some(up_to), _) => {
                state.stopping = Some((up_to, now.plus(STOP_RETRY)));
                let (vm, incarnation) = (vm.clone(), up_to);
                if let Some(reason) = permit.stop_all {
                    urgent.push(Effect::StopVm { vm, incarnation, reason });
                } else {
                    let reason = state.waiting.last().map_or(StopReason::Stale, |waiting| waiting.reason);
                    effects.push(Effect::StopVm { vm, incarnation, reason });
                }
            }
        }
        if let Some(pending) = state
            .pending
            .take_if(|pending| unwanted.is_none() && state.running.contains_key(&pending.incarnation))
        {
            // It was found running after its order had come again.
            effects.push(report(&pending.effect, vm, pending.incarnation, Outcome::Started));
        }
        if state.pending.is_some() && (permit.start.is_none() || permit.stop_all.is_some()) {
            if let Some(pending) = state.pending.take() {
                self.untried.insert(vm.clone(), pending.incarnation);
                self.burn(vm, pending.incarnation, None);
                let detail = "this host lost its lease before the start".to_string();
                self.wait(vm, &pending.effect, pending.incarnation, detail, StopReason::LeaseLost);
            }
        } else if let Some(not_after) = permit.start
            && self.listed
            && state.may_run().next().is_none()
            && state.stopping.is_none()
            && let Some(Pending { incarnation, definition, .. }) = state.pending.take()
        {
            state.starting = Some(incarnation);
            effects.push(Effect::StartVm { vm: vm.clone(), incarnation, definition, not_after });
        }
        self.resolve(vm, effects);
    }

    /// Tells those who wait, as far as it has become certain.
    fn resolve(&mut self, vm: &VmId, effects: &mut Vec<Effect>) {
        let untried = self.untried.get(vm).copied();
        let Some(state) = self.vms.get_mut(vm).filter(|_| self.listed) else { return };
        let oldest = state.running.keys().copied().chain(state.starting).min();
        state.waiting.retain(|waiting| {
            if oldest.is_some_and(|oldest| oldest <= waiting.incarnation) && !mutated!(VouchBeforeStopped) {
                return true;
            }
            let tried = untried != Some(waiting.incarnation);
            let outcome = Outcome::NotRunning { detail: waiting.detail.clone(), tried };
            effects.push(report(&waiting.effect, vm, waiting.incarnation, outcome));
            false
        });
    }

    /// When a stop must be asked for again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.vms.values().filter_map(|vm| vm.stopping).map(|(_, again)| again).min()
    }

    /// All VMs that ever were here; `None` until the hypervisor has named what it runs. One that does not run is
    /// named only if it never will again.
    pub(super) fn report(&self) -> Option<Vec<VmReport>> {
        if !self.listed {
            return None;
        }
        let mut reports = Vec::new();
        for (vm, known) in &self.memory {
            let state = self.vms.get(vm);
            for (incarnation, readiness) in state.into_iter().flat_map(|state| &state.running) {
                let (vm, incarnation, readiness) = (vm.clone(), *incarnation, *readiness);
                reports.push(VmReport { vm, incarnation, running: true, readiness, note: VmNote::default() });
            }
            let may_run = state.is_some_and(|state| state.may_run().any(|one| one == known.incarnation));
            if known.burnt && !may_run {
                let (vm, incarnation, note) = (vm.clone(), known.incarnation, VmNote::default());
                reports.push(VmReport { vm, incarnation, running: false, readiness: None, note });
            }
        }
        Some(reports)
    }

    /// No incarnation up to this one is ever started here (again).
    fn burn(&mut self, vm: &VmId, incarnation: Incarnation, effect: Option<&EffectId>) {
        match self.memory.entry(vm.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(VmMemory { incarnation, burnt: true, effect: effect.cloned() });
                self.dirty = true;
            }
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                if known.incarnation < incarnation {
                    *known = VmMemory { incarnation, burnt: true, effect: effect.cloned() };
                    self.dirty = true;
                } else if known.incarnation == incarnation && !known.burnt {
                    known.burnt = true;
                    self.dirty = true;
                }
            }
        }
        if let Some(state) = self.vms.get_mut(vm)
            && let Some(pending) = state.pending.take_if(|pending| pending.incarnation <= incarnation)
        {
            // Whoever ordered it hears that it never will run.
            self.untried.insert(vm.clone(), pending.incarnation);
            let detail = "withdrawn before it started".to_string();
            self.wait(vm, &pending.effect, pending.incarnation, detail, StopReason::Ordered);
        }
    }

    /// An incarnation that was running, or was to be, does not run: it is burnt, and whoever ordered it is told.
    fn over(&mut self, vm: &VmId, incarnation: Incarnation, detail: &str) {
        let Some(known) = self.memory.get(vm) else { return };
        let busy = self.vms.get(vm).is_some_and(|state| {
            state.may_run().any(|one| one == known.incarnation)
                || state.pending.as_ref().is_some_and(|pending| pending.incarnation == known.incarnation)
        });
        if known.burnt || known.incarnation > incarnation || busy {
            return;
        }
        let (incarnation, effect) = (known.incarnation, known.effect.clone());
        self.burn(vm, incarnation, None);
        if let Some(effect) = effect {
            self.wait(vm, &effect, incarnation, detail.into(), StopReason::Stale);
        }
    }

    /// A VM that runs and was not remembered is remembered.
    fn recall(&mut self, vm: &VmId, incarnation: Incarnation) {
        if self.memory.get(vm).is_none_or(|known| known.incarnation < incarnation) {
            self.remember(vm, VmMemory { incarnation, burnt: false, effect: None });
        }
    }

    fn remember(&mut self, vm: &VmId, memory: VmMemory) {
        if self.memory.get(vm) != Some(&memory) {
            self.memory.insert(vm.clone(), memory);
            self.dirty = true;
        }
    }

    fn wait(
        &mut self,
        vm: &VmId,
        effect: &EffectId,
        incarnation: Incarnation,
        detail: String,
        reason: StopReason,
    ) {
        let waiting = &mut self.vms.entry(vm.clone()).or_default().waiting;
        // The same order twice is answered once.
        waiting.retain(|one| one.effect != *effect || one.incarnation != incarnation);
        if waiting.len() >= WAITING_MAX {
            waiting.remove(0);
        }
        waiting.push(Waiting { effect: effect.clone(), incarnation, detail, reason });
    }
}

pub(super) fn report(effect: &EffectId, vm: &VmId, incarnation: Incarnation, outcome: Outcome) -> Effect {
    Effect::Report { effect: effect.clone(), vm: vm.clone(), incarnation, outcome }
}
