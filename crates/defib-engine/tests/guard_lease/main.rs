//! The safety of leases (design 4.1), with everything in it that can hurt: three observers and some guards, each by
//! its own drifting clock, over links that delay, lose and cut, with frozen processes on both sides. Whatever
//! happens: from the moment at which a majority of observers has voted that a host's lease ran out, no VM runs there.

#![allow(clippy::unwrap_used, reason = "a test")]

mod world;

use defib_engine::guard::{Effect, Input, LeaseState, Order, Outcome, Refusal, Verb};
use defib_model::{EffectId, Epoch, Incarnation, LogIndex, Subject, inventory::Definition};
use proptest::prelude::*;
use world::*;

fn calm(hosts: usize) -> Weather {
    let never = u64::MAX;
    Weather {
        seed: 7,
        hosts,
        loss: never,
        delay_max: 10,
        cuts: never,
        freezes: never,
        condemnations: never,
        restarts: false,
    }
}

fn weather() -> impl Strategy<Value = Weather> {
    // One in so many ticks, as a power of two: from a breeze to a storm.
    let often = |from: u32, to: u32| (from..=to).prop_map(|power| 1_u64 << power);
    let delay_max = prop_oneof![Just(10), 10_u64..400, 400_u64..4000];
    (any::<u64>(), 1_usize..=6, often(2, 10), delay_max, often(6, 11), often(6, 13), often(6, 12)).prop_map(
        |(seed, hosts, loss, delay_max, cuts, freezes, condemnations)| Weather {
            seed,
            hosts,
            loss,
            delay_max,
            cuts,
            freezes,
            condemnations,
            restarts: true,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(160),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn where_a_majority_voted_expiry_no_vm_runs(weather in weather()) {
        let mut world = World::new(weather);
        world.run(3000, true)?;
        world.run(20_000, false)?;
        // Whatever was cut stays cut for a while: votes that are wrong come now.
        world.run(5000, true)?;
        if std::env::var_os("DEFIB_SHOW").is_some() {
            eprintln!(
                "{} proofs, {} of {} running, {} stops, {} starts",
                world.proofs,
                world.running(),
                world.hosts.len(),
                world.stops,
                world.starts
            );
        }
    }
}

#[test]
fn an_isolated_host_stops_its_vms_and_is_proven_dead_soon_after_lease_and_watchdog() {
    let mut world = World::new(calm(4));
    world.run(3000, true).unwrap();
    for other in 1..4 + REPLICAS {
        world.cut(0, other, u64::MAX);
    }
    let cut_at = world.now;
    while world.hosts[0].running {
        world.run(TICK, true).unwrap();
    }
    let stopped_after = world.now - cut_at;
    assert!((2000..3000).contains(&stopped_after), "{stopped_after} ms");
    while world.proofs == 0 {
        world.run(TICK, true).unwrap();
        assert!(world.now - cut_at < 5000, "not proven");
    }
    let proven_after = world.now - cut_at;
    assert!((2950..3600).contains(&proven_after), "{proven_after} ms");
    assert_eq!(world.running(), 3);
}

#[test]
fn a_switch_that_cuts_all_hosts_from_all_replicas_stops_no_vm_and_proves_no_death() {
    let mut world = World::new(calm(5));
    world.run(3000, true).unwrap();
    for host in 0..5 {
        for replica in 5..5 + REPLICAS {
            world.cut(host, replica, 60_000);
        }
    }
    world.run(57_000, true).unwrap();
    assert!(matches!(world.lease(0), LeaseState::Exempt { .. }));
    // They come back, and all is well.
    world.run(5000, true).unwrap();
    assert_eq!((world.running(), world.stops, world.proofs), (5, 0, 0));
    assert!(matches!(world.lease(0), LeaseState::Held { .. }));
}

#[test]
fn a_host_that_stays_cut_off_when_the_controllers_come_back_stops_before_its_death_is_proven() {
    let mut world = World::new(calm(3));
    world.run(3000, true).unwrap();
    for host in 0..3 {
        for replica in 3..3 + REPLICAS {
            world.cut(host, replica, if host == 0 { u64::MAX } else { 10_000 });
        }
    }
    world.run(7000, true).unwrap();
    assert_eq!((world.running(), world.proofs), (3, 0), "nobody has a lease, so everybody runs on");
    // From 10 s on two of three hosts hold leases; the third hears that from them and must go.
    while world.proofs == 0 {
        world.run(TICK, true).unwrap();
        assert!(world.now < 16_000, "not proven");
    }
    assert!(world.now >= 12_400, "proven at {} ms", world.now);
    assert_eq!(world.running(), 2);
}

#[test]
fn an_order_to_start_is_obeyed_under_the_lease_only() {
    let mut world = World::new(calm(3));
    let order = |attempt| {
        Input::Order(Order {
            boot: None,
            epoch: Epoch(1),
            term: 1,
            effect: EffectId { cause: LogIndex(9), subject: Subject::Vm(vm(9)), attempt },
            verb: Verb::Start {
                vm: vm(9),
                incarnation: Incarnation(u64::from(attempt)),
                definition: Definition::default(),
            },
        })
    };
    let starts = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::StartVm { .. }));
    let now = world.hosts[0].clock.at(world.now);
    let effects = world.hosts[0].guard.step(now, order(1));
    assert!(!starts(&effects), "{effects:?}");
    let refused = |effect: &Effect| {
        matches!(effect, Effect::Report { outcome: Outcome::Refused(Refusal::NoLease), .. })
    };
    assert!(effects.iter().any(refused), "{effects:?}");
    world.run(1000, true).unwrap();
    let now = world.hosts[0].clock.at(world.now);
    let effects = world.hosts[0].guard.step(now, order(1));
    assert!(starts(&effects), "a refusal promises nothing: {effects:?}");
    // Nor is it a start for ever: whoever performs it late must not.
    let LeaseState::Held { until, .. } = world.hosts[0].guard.lease(now) else { panic!("there is a lease") };
    let in_time =
        |effect: &Effect| matches!(effect, Effect::StartVm { not_after, .. } if *not_after == until);
    assert!(effects.iter().any(in_time), "{effects:?}");
}

#[test]
fn who_burns_an_incarnation_says_whether_its_start_was_tried() {
    let mut world = World::new(calm(3));
    world.run(1000, true).unwrap();
    let now = world.hosts[0].clock.at(world.now);
    let mut give = |number: usize, incarnation: u64, start: bool| {
        let (vm, incarnation) = (vm(number), Incarnation(incarnation));
        let effect = EffectId { cause: LogIndex(9), subject: Subject::Vm(vm.clone()), attempt: 1 };
        let verb = if start {
            Verb::Start { vm, incarnation, definition: Definition::default() }
        } else {
            Verb::Burn { vm, incarnation }
        };
        let order = Order { boot: None, epoch: Epoch(1), term: 1, effect, verb };
        world.hosts[0].guard.step(now, Input::Order(order))
    };
    let tried = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Report { outcome: Outcome::NotRunning { tried, .. }, .. } => Some(*tried),
            _ => None,
        })
    };
    // The order never came, and never will count if it comes yet. Asked again, it says the same.
    assert_eq!(tried(&give(8, 1, false)), Some(false));
    assert_eq!(tried(&give(8, 1, true)), Some(false), "the order that was late");
    assert_eq!(tried(&give(8, 1, false)), Some(false));
    // It was started, and what came of it is not known yet.
    assert!(give(9, 1, true).iter().any(|effect| matches!(effect, Effect::StartVm { .. })));
    assert_eq!(tried(&give(9, 1, false)), None, "it is being stopped first");
    let stopped = Input::StopFinished { vm: vm(9), incarnation: Incarnation(1), ok: true };
    assert_eq!(tried(&world.hosts[0].guard.step(now, stopped)), Some(true));
    // A host that shuts down starts nothing, and that is no failure of the VM.
    let _ = world.hosts[0].guard.step(now, Input::ShuttingDown);
    let effect = EffectId { cause: LogIndex(9), subject: Subject::Vm(vm(7)), attempt: 1 };
    let verb = Verb::Start { vm: vm(7), incarnation: Incarnation(1), definition: Definition::default() };
    let order = Order { boot: None, epoch: Epoch(1), term: 1, effect, verb };
    assert_eq!(tried(&world.hosts[0].guard.step(now, Input::Order(order))), Some(false));
}
