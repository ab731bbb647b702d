//! What only a leader derives: questions, fences and plans.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::ToString,
    vec::Vec,
};
use core::mem::Discriminant;

use defib_model::{
    Command, HostId, Instant, Millis, Opinion, RecoveryId, VmId,
    command::{FenceResult, Placement, Unplaced},
    event::Phase,
    text::cut_all,
};

use super::{
    Controller, Effect, FIRST_HOST_WAIT, FIRST_SPREAD_WAIT, FenceOrder, PlannedAt, PowerQuestion, Proposed,
    REDELIVER_AFTER, bounded::bounded,
};
use crate::{
    ledger::{Place, Recovery, Standing},
    placement::PlanOptions,
};

/// How often the rest of a VM doubles at most, to 1.6 s.
const REST_DOUBLINGS: u32 = 3;

/// A question under way, or the time of the next one.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) in_flight: bool,
    pub(super) next_at: Instant,
    /// How many questions were asked; the levels are asked in turn.
    count: usize,
    /// The level that was asked last.
    level: usize,
    /// What kind of answer each level gave last.
    kinds: BTreeMap<usize, Discriminant<FenceResult>>,
    /// A level answers otherwise than it did, since the last fence: worth a fence before its time.
    news: bool,
    /// A reading of off that is not in the log yet.
    found: Option<FenceResult>,
    /// A hint came while a question was under way, which may have been answered before.
    hinted: bool,
    /// So many hints may still bring a question forward.
    hints_left: u8,
    /// A question from this moment on gives hints back.
    hints_back_at: Instant,
}

impl Ask {
    fn new(now: Instant) -> Self {
        Self {
            in_flight: false,
            next_at: now,
            count: 0,
            level: 0,
            kinds: BTreeMap::new(),
            news: false,
            found: None,
            hinted: false,
            hints_left: HINTS_MAX,
            hints_back_at: now,
        }
    }
}

/// A fence that this leader ordered.
#[derive(Debug, Clone)]
pub(super) struct FenceInFlight {
    attempt: u32,
    result: Option<FenceResult>,
}

impl FenceInFlight {
    /// Its worker has not ended yet.
    pub(super) const fn is_under_way(&self) -> bool {
        self.result.is_none()
    }
}

/// Time between two questions while nothing is decided.
const ASK_AGAIN_SUSPECTED: Millis = Millis(250);
/// The same while nothing proves a death.
const ASK_AGAIN_UNCONFIRMED: Millis = Millis(1000);
/// So many questions hints bring about in the time of one: whoever forges events can't make a BMC busy.
const HINTS_MAX: u8 = 3;

impl Controller {
    fn question(&self, id: RecoveryId, recovery: &Recovery, level: usize) -> Option<PowerQuestion> {
        let declared = self.ledger.inventory().hosts.get(&recovery.host)?;
        let fencing = &self.ledger.policy().fencing;
        Some(PowerQuestion {
            recovery: id,
            host: recovery.host.clone(),
            level,
            methods: declared.fencing.get(level)?.clone(),
            confirm_reads: fencing.confirm_reads,
            confirm_spacing: fencing.confirm_spacing,
            timeout: fencing.attempt_timeout,
        })
    }

    /// Asking is free: as soon as a quorum asks, and again while nothing is proven.
    pub(super) fn derive_asks(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let open: BTreeSet<RecoveryId> = self
            .ledger
            .open_recoveries()
            .filter(|(_, recovery)| {
                matches!(
                    recovery.phase,
                    Phase::Suspected | Phase::Confirmed | Phase::Fencing | Phase::Unconfirmed
                )
            })
            .map(|(id, _)| id)
            .collect();
        self.asks.retain(|id, _| open.contains(id));
        for id in open {
            let Some(recovery) = self.ledger.recoveries().get(&id) else { continue };
            let host = recovery.host.clone();
            let (phase, levels) = (
                recovery.phase,
                self.ledger.inventory().hosts.get(&host).map_or(0, |host| host.fencing.len()),
            );
            let waits = self.ledger.kdump_waits(id, self.cluster_now(now)).is_some();
            let ask = self.asks.entry(id).or_insert_with(|| Ask::new(now));
            if let Some(FenceResult::Off(readings)) = ask.found.clone() {
                let Some(epoch) = self.ledger.hosts().get(&host).map(|host| host.epoch) else { continue };
                let command = || Command::PowerFoundOff { host, epoch, readings };
                self.propose_once(now, Proposed::PowerFoundOff(id), command, effects);
                continue;
            }
            // While a fence is under way its own readings say all there is to say.
            let idle = matches!(phase, Phase::Suspected | Phase::Unconfirmed) || waits;
            if !idle || ask.in_flight || ask.next_at > now || levels == 0 {
                continue;
            }
            let level = ask.count % levels;
            ask.level = level;
            ask.in_flight = true;
            if ask.hints_back_at <= now {
                ask.hints_left = HINTS_MAX;
                ask.hints_back_at = now.plus(ASK_AGAIN_SUSPECTED);
            }
            ask.count = ask.count.saturating_add(1);
            if let Some(question) =
                self.ledger.recoveries().get(&id).and_then(|recovery| self.question(id, recovery, level))
            {
                effects.push(Effect::Ask(question));
            }
        }
    }

    /// A hint is as good as the time for the next question, and no better; and few of them are.
    pub(super) fn hinted(&mut self, now: Instant, host: &HostId) {
        let ledger = &self.ledger;
        let of_host = |id: &RecoveryId| ledger.recoveries().get(id).is_some_and(|one| one.host == *host);
        for (_, ask) in self.asks.iter_mut().filter(|(id, _)| of_host(id)) {
            // A second one during one question says nothing that the first did not.
            if ask.hints_left == 0 || ask.hinted {
                continue;
            }
            ask.hints_left -= 1;
            ask.next_at = ask.next_at.min(now);
            ask.hinted = ask.in_flight;
        }
    }

    pub(super) fn asked(
        &mut self,
        now: Instant,
        id: RecoveryId,
        result: FenceResult,
        _effects: &mut Vec<Effect>,
    ) {
        let suspected =
            self.ledger.recoveries().get(&id).is_some_and(|recovery| recovery.phase == Phase::Suspected);
        let Some(ask) = self.asks.get_mut(&id) else { return };
        ask.in_flight = false;
        ask.next_at = now.plus(if suspected { ASK_AGAIN_SUSPECTED } else { ASK_AGAIN_UNCONFIRMED });
        if core::mem::take(&mut ask.hinted) {
            ask.next_at = now;
        }
        let held = ask.kinds.insert(ask.level, core::mem::discriminant(&result));
        let other = held.is_some_and(|held| held != core::mem::discriminant(&result));
        ask.news |= other && !matches!(result, FenceResult::Unknown { .. });
        if matches!(result, FenceResult::Off(_)) {
            ask.found = Some(result);
        }
    }

    /// A finding was judged by the ledger: if it was refused (the host was heard meanwhile), it must be asked for
    /// again, not proposed for ever.
    pub(super) fn forget_finding(&mut self, now: Instant, id: RecoveryId) {
        if let Some(ask) = self.asks.get_mut(&id) {
            ask.found = None;
            ask.next_at = now.plus(ASK_AGAIN_SUSPECTED);
        }
    }

    pub(super) fn derive_fences(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let mut wanted: BTreeMap<RecoveryId, u32> = BTreeMap::new();
        let open: Vec<(RecoveryId, Recovery)> = self
            .ledger
            .open_recoveries()
            .filter(|(_, recovery)| {
                matches!(recovery.phase, Phase::Confirmed | Phase::Fencing | Phase::Unconfirmed)
            })
            .map(|(id, recovery)| (id, recovery.clone()))
            .collect();
        for (id, recovery) in open {
            let ours = recovery.fence.as_ref().is_some_and(|fence| fence.index > self.ledger.led_since());
            if recovery.phase == Phase::Fencing && ours {
                let Some(fence) = &recovery.fence else { continue };
                wanted.insert(id, fence.attempt);
                if let Some(ask) = self.asks.get_mut(&id) {
                    ask.news = false;
                }
                self.carry_on_fence(now, id, &recovery, fence.attempt, fence.level, effects);
                continue;
            }
            let news = self.asks.get(&id).is_some_and(|ask| ask.news);
            if recovery.phase == Phase::Unconfirmed && self.cluster_now(now) < recovery.retry_at && !news {
                continue;
            }
            if self.ledger.kdump_waits(id, self.cluster_now(now)).is_some() {
                continue;
            }
            // A host that a quorum hears again is readmitted rather than fenced, unless an operator wants it off, or
            // a former leader's order may still be on its way: then nobody lets the host in, and what was begun is
            // brought to an end.
            let missed = self.ledger.hosts().get(&recovery.host).is_some_and(|host| {
                host.opinions_at_least(Opinion::Asks, self.ledger.voters()) >= self.ledger.quorum()
            });
            let begun = recovery.phase == Phase::Fencing;
            if (!missed && !recovery.by_operator && !begun) || !self.ledger.may_act() {
                continue;
            }
            let Some(level) = self.ledger.next_fence_level(id) else { continue };
            let attempt = recovery.fence.as_ref().map_or(0, |fence| fence.attempt).saturating_add(1);
            let command = || Command::FenceIntended { recovery: id, attempt, level };
            self.propose_once(now, Proposed::FenceIntended(id, attempt), command, effects);
        }
        // An order that may still be on its way to a BMC is remembered until it ends.
        self.fences.retain(|id, fence| wanted.get(id) == Some(&fence.attempt) || fence.is_under_way());
    }

    /// Whether an order to power off may still take effect, as far as this leader knows.
    pub(super) fn fence_under_way(&self, id: RecoveryId) -> bool {
        self.fences.get(&id).is_some_and(FenceInFlight::is_under_way)
    }

    fn carry_on_fence(
        &mut self,
        now: Instant,
        id: RecoveryId,
        recovery: &Recovery,
        attempt: u32,
        level: usize,
        effects: &mut Vec<Effect>,
    ) {
        match self.fences.get(&id).filter(|fence| fence.attempt == attempt) {
            None => {
                self.fences.insert(id, FenceInFlight { attempt, result: None });
                if let Some(question) = self.question(id, recovery, level) {
                    effects.push(Effect::Fence(FenceOrder { question, attempt }));
                }
            }
            Some(FenceInFlight { result: Some(result), .. }) => {
                let result = result.clone();
                let command = || Command::FenceEnded { recovery: id, attempt, result };
                self.propose_once(now, Proposed::FenceEnded(id, attempt), command, effects);
            }
            Some(FenceInFlight { result: None, .. }) => {}
        }
    }

    pub(super) fn fenced(&mut self, id: RecoveryId, attempt: u32, result: FenceResult) {
        if let Some(fence) = self.fences.get_mut(&id)
            && fence.attempt == attempt
        {
            fence.result = Some(result);
        }
    }

    /// Plans all VMs that want a place, whenever one more wants one or there is more room.
    pub(super) fn derive_plan(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let index = self.ledger.index();
        if index.waiting.is_empty() || !self.ledger.may_act() {
            self.first_seen.clear();
            self.resting.clear();
            return;
        }
        let never_seen = |host: &HostId| {
            self.ledger.hosts().get(host).is_some_and(|host| host.standing == Standing::NeverSeen)
        };
        // Asked of thousands, and seldom needed.
        let mut some_unseen: Option<bool> = None;
        let mut held = false;
        let mut wanted: Vec<VmId> = Vec::new();
        let mut first: Vec<VmId> = Vec::new();
        for vm in &index.waiting {
            if !matches!(self.ledger.vms().get(vm).map(|record| &record.place), Some(Place::Never)) {
                wanted.push(vm.clone());
                continue;
            }
            let declared = self.ledger.inventory().vms.get(vm).and_then(|vm| vm.first_host.as_ref());
            let (unseen, wait) = match declared {
                Some(host) => (never_seen(host) || self.long_unreached(now, host), FIRST_HOST_WAIT),
                None => {
                    let any = || self.ledger.hosts().keys().any(never_seen);
                    (*some_unseen.get_or_insert_with(any), FIRST_SPREAD_WAIT)
                }
            };
            let since = *self.first_seen.entry(vm.clone()).or_insert(now);
            if unseen && now < since.plus(wait) {
                held = true;
            } else {
                first.push(vm.clone());
            }
        }
        if !held {
            self.first_seen.clear();
        }
        // The mark covers what is held or rests, so that the end of a wait is noticed.
        let mut mark = PlannedAt {
            room_changes: self.ledger.index().room_changes,
            first: first.len(),
            resting: self.resting(now),
        };
        if self.planned_at == Some(mark) || self.proposed.contains_key(&Proposed::Place) {
            return;
        }
        if wanted.is_empty() && first.is_empty() {
            return;
        }
        let mut options = PlanOptions::default();
        for vm in &wanted {
            let Some(record) = self.ledger.vms().get(vm) else { continue };
            if !record.failed_on.is_empty() {
                options.avoid.insert(vm.clone(), record.failed_on.clone());
            } else if let Place::Down { host } = &record.place
                && record.attempts == 0
            {
                // It ran there for long: its host is well, and its disk is near.
                options.prefer.insert(vm.clone(), host.clone());
            }
        }
        options.first_placements = first.iter().cloned().collect();
        let in_use = self.ledger.index().in_use.iter();
        options.unreached = in_use
            .filter(|host| self.long_unreached(now, host) && !mutated!(PlaceOnUnreached))
            .cloned()
            .collect();
        wanted.extend(first);
        let plan = self.ledger.index().placer.plan(&wanted, &options);
        let tried: Vec<_> = plan
            .placements
            .into_iter()
            .filter(|planned| !self.rests(now, &planned.vm, &planned.host))
            .collect();
        mark.resting = self.resting(now);
        self.planned_at = Some(mark);
        let mut placements = Vec::with_capacity(tried.len());
        for planned in tried {
            let (Some(vm), Some(host)) =
                (self.ledger.vms().get(&planned.vm), self.ledger.hosts().get(&planned.host))
            else {
                continue;
            };
            placements.push(Placement {
                incarnation: vm.incarnation.next(),
                host_epoch: host.epoch,
                because: planned.because.to_string(),
                broken: planned.broken.iter().map(ToString::to_string).collect(),
                vm: planned.vm,
                host: planned.host,
            });
        }
        let mut unplaced: Vec<Unplaced> = plan
            .unplaced
            .into_iter()
            .map(|left| Unplaced {
                // As they will be recorded, or they would differ from that for ever.
                reasons: cut_all(left.exclusions.iter().map(ToString::to_string).collect()),
                vm: left.vm,
            })
            .filter(|left| {
                self.ledger.vms().get(&left.vm).is_some_and(|record| record.unplaced != left.reasons)
            })
            .collect();
        if placements.is_empty() && unplaced.is_empty() {
            return;
        }
        if !bounded(&mut placements, &mut unplaced) {
            self.planned_at = None;
        }
        self.propose_once(now, Proposed::Place, || Command::Place { placements, unplaced }, effects);
    }

    /// Whether a VM waits before it is placed again where its start failed, or was refused untried (a host that shuts
    /// down, say), which only happens when no other host fits. Each time doubles the wait: else both would go round and
    /// round, and a hypervisor that is just restarted would cost a VM all its attempts.
    fn rests(&mut self, now: Instant, vm: &VmId, host: &HostId) -> bool {
        let Some(record) = self.ledger.vms().get(vm) else { return false };
        // The first failure may be chance.
        let times = record.untried.max(record.attempts.saturating_sub(1));
        if times == 0 || !record.failed_on.contains(host) {
            return false;
        }
        let wait = REDELIVER_AFTER.times(1 << times.min(REST_DOUBLINGS));
        let (_, until) =
            *self.resting.entry(vm.clone()).or_insert_with(|| (record.incarnation, now.plus(wait)));
        now < until
    }

    /// How many VMs rest; who was placed since then, does not any more.
    fn resting(&mut self, now: Instant) -> usize {
        let vms = self.ledger.vms();
        self.resting.retain(|vm, (incarnation, _)| {
            vms.get(vm).is_some_and(|record| record.wants_place() && record.incarnation == *incarnation)
        });
        self.resting.values().filter(|(_, until)| now < *until).count()
    }
}
