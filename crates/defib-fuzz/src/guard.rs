//! The guard of a host, told anything by anybody: replicas, leaders, neighbours, its hypervisor.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Result, Unstructured};
use defib_engine::{
    guard::{
        Answer, Config, Durable, Effect, Electorate, Guard, Input, LeaseState, Neighbour, Order, Outcome,
        ResumeHint, Timing, Verb, VmObserved,
    },
    observer::Ack,
};
use defib_model::{
    BootId, EffectId, Epoch, Incarnation, Instant, LogIndex, Millis, ReplicaId, Subject, VmId,
    inventory::Definition,
};

use crate::draw;

const STEPS_MAX: usize = 300;
const CENTURY: Millis = Millis(3_200_000_000_000);

/// What a guard must never do, whatever it is told.
#[derive(Default)]
pub(crate) struct Watch {
    ordered: BTreeSet<(VmId, Incarnation)>,
    /// The newest incarnation of which it said that it never runs here (again).
    over: BTreeMap<VmId, Incarnation>,
    /// What is on the disk, as far as it was asked to write.
    durable: Option<Durable>,
}

impl Watch {
    pub(crate) fn step(&mut self, guard: &mut Guard, now: Instant, input: Input) {
        let before = guard.epoch();
        if let Input::Order(Order { verb: Verb::Start { vm, incarnation, .. }, epoch, .. }) = &input
            && *epoch >= before
        {
            self.ordered.insert((vm.clone(), *incarnation));
        }
        let effects = guard.step(now, input);
        assert!(guard.epoch() >= before, "an epoch was forgotten");
        assert!(effects.len() < 1000, "{} effects of one step", effects.len());
        for effect in effects {
            match effect {
                Effect::Persist(durable) => self.durable = Some(durable),
                Effect::StartVm { vm, incarnation, .. } => {
                    let key = (vm, incarnation);
                    assert!(self.ordered.contains(&key), "it starts {key:?} by itself");
                    let over = self.over.get(&key.0).is_some_and(|over| *over >= incarnation);
                    assert!(!over, "{key:?} comes back after it was said to be over");
                    assert!(
                        matches!(guard.lease(now), LeaseState::Held { .. }),
                        "{key:?} starts without a lease"
                    );
                    let known = self.durable.as_ref().and_then(|durable| durable.vms.get(&key.0));
                    let durable = known.is_some_and(|known| known.incarnation == incarnation && !known.burnt);
                    assert!(durable, "{key:?} starts before it is on the disk: {known:?}");
                }
                Effect::Report { vm, incarnation, outcome: Outcome::NotRunning { .. }, .. } => {
                    let over = self.over.entry(vm).or_default();
                    *over = (*over).max(incarnation);
                }
                Effect::StopVm { .. } | Effect::AskNeighbours { .. } | Effect::Report { .. } => {}
            }
        }
        if let Some(deadline) = guard.next_deadline() {
            assert!(deadline > now, "a deadline that has passed is a busy loop");
        }
        let _ =
            (guard.report(), guard.vm_digest(), guard.answer(now), guard.may_pet(now), guard.resume_hint());
        let _ = guard.beat(now, ReplicaId(1), 1, 0);
    }
}

pub(crate) fn guard(data: &[u8]) {
    // Too few bytes are a shorter story.
    let _ = story(&mut Unstructured::new(data));
}

pub(crate) fn fresh(durable: Option<Durable>, now: Instant) -> Guard {
    let policy = defib_model::Policy::default();
    let config = Config { host: draw::host_named(1), timing: Timing::from(&policy.lease) };
    Guard::new(config, durable, None, BootId(1), now)
}

fn story(u: &mut Unstructured<'_>) -> Result<()> {
    let mut now = Instant::from_millis(u.int_in_range(0..=1_000_000)?);
    let mut guard = fresh(None, now);
    let mut watch = Watch::default();
    if !draw::one_in(u, 4)? {
        let replicas = [ReplicaId(1), ReplicaId(2), ReplicaId(3)].into();
        let hosts = (1..=5)
            .map(|number| (draw::host_named(number), Neighbour { address: "a:1".into(), domain: Vec::new() }))
            .collect();
        watch.step(&mut guard, now, Input::Electorate(Electorate { version: 1, hosts, replicas }));
        watch.step(&mut guard, now, Input::HypervisorListed);
    }
    for _ in 0..STEPS_MAX {
        if u.is_empty() {
            break;
        }
        now = match u.int_in_range(0..=9_u8)? {
            // Not those after the end of all clocks, which a promise of centuries brings about.
            0 => guard.next_deadline().filter(|due| due.since(now) < CENTURY).unwrap_or(now),
            1 => now.plus(Millis(u.arbitrary::<u32>()?.into())),
            // A shell whose clock reads went wrong.
            2 => now.minus(draw::span(u)?),
            _ => now.plus(Millis(u.int_in_range(0..=300)?)),
        };
        if draw::one_in(u, 40)? {
            let hint = u.arbitrary::<bool>()?.then(|| guard.resume_hint());
            guard = restart(u, watch.durable.clone(), hint, now)?;
            continue;
        }
        let input = input(u, &guard, now)?;
        watch.step(&mut guard, now, input);
    }
    Ok(())
}

/// The agent's next process; perhaps on a host that has booted.
fn restart(
    u: &mut Unstructured<'_>,
    durable: Option<Durable>,
    hint: Option<ResumeHint>,
    now: Instant,
) -> Result<Guard> {
    let policy = draw::policy(u)?;
    let config = Config { host: draw::host_named(1), timing: Timing::from(&policy.lease) };
    Ok(Guard::new(config, durable, hint, BootId(u.int_in_range(1..=2)?), now))
}

fn electorate(u: &mut Unstructured<'_>, version: u64) -> Result<Electorate> {
    let mut electorate = Electorate { version, ..Electorate::default() };
    for _ in 0..u.int_in_range(0..=5_u8)? {
        electorate.hosts.insert(draw::host(u)?, Neighbour { address: String::new(), domain: Vec::new() });
        electorate.replicas.insert(draw::replica(u)?);
    }
    Ok(electorate)
}

fn epoch(u: &mut Unstructured<'_>, guard: &Guard) -> Result<Epoch> {
    let held = guard.epoch().0;
    Ok(Epoch(match u.int_in_range(0..=15_u8)? {
        0 => u.arbitrary()?,
        1 => held.saturating_add(1),
        2 => held.saturating_sub(1),
        _ => held,
    }))
}

fn input(u: &mut Unstructured<'_>, guard: &Guard, now: Instant) -> Result<Input> {
    let vm = draw::vm(u)?;
    let incarnation = Incarnation(if draw::one_in(u, 32)? { u.arbitrary()? } else { u.int_in_range(0..=6)? });
    Ok(match u.int_in_range(0..=19_u8)? {
        0..=5 => {
            let sent_at = now.minus(draw::span(u)?);
            let granted = !draw::one_in(u, 6)?;
            let lease_ms = if draw::one_in(u, 24)? { u.arbitrary()? } else { 5000 };
            let sequence = u.arbitrary::<u16>()?.into();
            let ack =
                Ack { sequence, epoch: epoch(u, guard)?, granted, lease_ms, stamp: Instant(u.arbitrary()?) };
            Input::Ack { replica: draw::replica(u)?, sent_at, ack }
        }
        6..=9 => {
            let verb = match u.int_in_range(0..=4_u8)? {
                0 => Verb::Stop { vm: vm.clone(), incarnation },
                1 => Verb::Burn { vm: vm.clone(), incarnation },
                _ => Verb::Start { vm: vm.clone(), incarnation, definition: Definition::default() },
            };
            let effect =
                EffectId { cause: LogIndex(u.int_in_range(1..=9)?), subject: Subject::Vm(vm), attempt: 1 };
            let term = if draw::one_in(u, 16)? { u.arbitrary()? } else { guard.term() };
            let boot = u.arbitrary::<bool>()?.then(|| guard.boot());
            Input::Order(Order { boot, epoch: epoch(u, guard)?, term, effect, verb })
        }
        10 => Input::EpochTold { epoch: epoch(u, guard)? },
        11 => {
            let answer = Answer { holds_lease: draw::one_in(u, 4)?, without_for: Millis(u.arbitrary()?) };
            Input::NeighbourAnswer { host: draw::host(u)?, asked_at: now.minus(draw::span(u)?), answer }
        }
        12 => Input::Hypervisor(VmObserved {
            vm,
            incarnation,
            running: u.arbitrary()?,
            readiness: draw::readiness(u)?,
        }),
        13 => Input::StopFinished { vm, incarnation, ok: !draw::one_in(u, 4)? },
        14 | 15 => {
            let result = if draw::one_in(u, 3)? { Err("no".to_owned()) } else { Ok(()) };
            Input::StartFinished { vm, incarnation, result }
        }
        16 => {
            let version = guard.electorate().version.saturating_add(u.int_in_range(0..=1)?);
            Input::Electorate(electorate(u, version)?)
        }
        17 => Input::Timing(Timing::from(&draw::policy(u)?.lease)),
        18 if draw::one_in(u, 8)? => Input::ShuttingDown,
        18 => Input::WatchdogArmed(u.arbitrary()?),
        _ => Input::Woke,
    })
}
