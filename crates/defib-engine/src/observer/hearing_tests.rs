use alloc::{vec, vec::Vec};

use defib_model::{Instant, Opinion, Policy};

use super::{
    Beat, HostView, Proposal,
    tests::{MS, World, view},
};

/// Lets `millis` pass with a beat of the first host each 100 ms, which says so of its lease, and echoes the answers
/// that come back; the other hosts are well.
fn first_host_beats(world: &mut World, millis: u64, held: bool, hears: bool, last: &mut Option<Instant>) {
    world.hosts[0].2 = false;
    for _ in 0..millis / 100 {
        world.run(99, 100);
        world.now += 1;
        let beat = Beat { lease_held_ms: if held { 1000 } else { 0 }, echo: *last, ..world.beat_of(0) };
        let ack = world.observer.heartbeat(MS(world.now), world.hosts[0].1, &beat).ack();
        if hears && let Some(ack) = ack {
            *last = Some(ack.stamp);
        }
        world.now -= 1;
        world.run(1, 100);
    }
}

fn opinions(world: &World) -> Vec<Opinion> {
    world.opinions_of(0).into_iter().map(|(_, opinion)| opinion).collect()
}

#[test]
fn a_host_that_speaks_and_hears_nobody_is_voted_dead_when_its_lease_is_over() {
    let mut world = World::new(3, &Policy::default());
    let mut echo = None;
    first_host_beats(&mut world, 1000, true, true, &mut echo);
    // Answers get lost from here; it counts on its lease until 6 s.
    first_host_beats(&mut world, 5000, true, false, &mut echo);
    assert!(opinions(&world).is_empty(), "it holds its lease");
    first_host_beats(&mut world, 2000, false, false, &mut echo);
    let said = world.opinions_of(0);
    assert_eq!(said.iter().map(|(_, opinion)| *opinion).collect::<Vec<_>>(), [Opinion::Asks, Opinion::Dead]);
    assert!(said[0].0 >= 6300 && said[1].0 <= 7500, "{said:?}");
    // Its beats alone take nothing back; that it hears does.
    first_host_beats(&mut world, 2000, false, false, &mut echo);
    assert_eq!(opinions(&world).last(), Some(&Opinion::Dead));
    let recorded = HostView { recorded: Opinion::Dead, ..view() };
    let id = world.hosts[0].0.clone();
    world.observer.watch(MS(world.now), &id, recorded);
    first_host_beats(&mut world, 1000, true, true, &mut echo);
    assert_eq!(opinions(&world).last(), Some(&Opinion::Alive));
}

#[test]
fn an_answer_of_a_former_life_of_the_replica_is_no_sign_that_a_host_hears() {
    let mut world = World::new(3, &Policy::default());
    first_host_beats(&mut world, 8000, false, false, &mut Some(MS(1_000_000)));
    assert_eq!(opinions(&world), [Opinion::Asks, Opinion::Dead]);
}

#[test]
fn a_host_that_hears_is_not_deaf_though_it_holds_no_lease() {
    let mut world = World::new(3, &Policy::default());
    first_host_beats(&mut world, 20_000, false, true, &mut None);
    assert!(opinions(&world).is_empty(), "other replicas may be down: that is not its fault");
}

#[test]
fn who_is_promised_nothing_can_not_be_found_deaf() {
    let mut world = World::new(3, &Policy::default());
    let id = world.hosts[0].0.clone();
    world.observer.watch(MS(0), &id, HostView { grantable: false, ..view() });
    first_host_beats(&mut world, 20_000, false, false, &mut None);
    assert!(opinions(&world).is_empty());
}

#[test]
fn the_first_beat_after_a_silence_does_not_make_a_host_deaf() {
    let mut world = World::new(3, &Policy::default());
    let mut echo = None;
    first_host_beats(&mut world, 1000, true, true, &mut echo);
    world.run(10_000, 100);
    assert_eq!(opinions(&world), vec![Opinion::Asks, Opinion::Dead], "it was silent");
    first_host_beats(&mut world, 200, false, true, &mut echo);
    assert_eq!(world.observer.opinion(world.hosts[0].1), Some(Opinion::Alive), "two beats are enough");
}

#[test]
fn a_beat_that_another_path_overtook_does_not_make_a_host_deaf() {
    let mut world = World::new(3, &Policy::default());
    let mut echo = None;
    for _ in 0..200 {
        // What the second path brings was sent before there was a lease, long ago.
        let old = Beat {
            path: 1,
            sequence: world.sequence / 2 + 1,
            lease_held_ms: 0,
            echo: None,
            ..world.beat_of(0)
        };
        first_host_beats(&mut world, 100, true, true, &mut echo);
        let _ = world.observer.heartbeat(MS(world.now), world.hosts[0].1, &old);
    }
    assert!(opinions(&world).is_empty());
}

#[test]
fn when_most_hosts_are_deaf_nobody_is_voted_dead() {
    let mut world = World::new(3, &Policy::default());
    world.hosts.iter_mut().for_each(|host| host.2 = false);
    for _ in 0..200 {
        world.run(99, 100);
        world.now += 1;
        world.sequence += 1;
        for at in 0..3 {
            let beat = Beat { lease_held_ms: 0, echo: None, ..world.beat_of(at) };
            let _ = world.observer.heartbeat(MS(world.now), world.hosts[at].1, &beat);
        }
        world.now -= 1;
        world.run(1, 100);
    }
    assert!(world.observer.isolated());
    let dead = world.said.iter().any(|(_, proposal)| match proposal {
        Proposal::Opinions(changes) => changes.iter().any(|change| change.opinion == Opinion::Dead),
        Proposal::LeasesExpired(_) => true,
        Proposal::Witnessed(_) | Proposal::Probe(_) => false,
    });
    assert!(!dead, "{:?}", world.said);
}

#[test]
fn of_a_host_that_holds_a_lease_and_hears_this_observer_every_other_beat_is_answered() {
    let mut world = World::new(1, &Policy::default());
    let answered = |world: &mut World| {
        let mut answers = 0;
        for _ in 0..10 {
            (world.now, world.sequence) = (world.now + 100, world.sequence + 1);
            answers += usize::from(world.beat(0, 1).is_some_and(|ack| ack.granted));
        }
        answers
    };
    (world.now, world.sequence) = (100, 2);
    world.beat(0, 1);
    assert_eq!(answered(&mut world), 5);
    let (slot, promised) = (world.hosts[0].1, world.now);
    let again = world.observer.heartbeat(MS(world.now), slot, &world.beat_of(0));
    assert_eq!(again, super::Heard::Nothing, "a repetition");
    // Its answers don't arrive: it is told each time. Nor does it hold a lease: it is.
    let stamp = world.stamps[0];
    world.now = promised + 3000;
    for _ in 0..4 {
        (world.now, world.sequence) = (world.now + 100, world.sequence + 1);
        world.stamps[0] = stamp;
        assert!(world.beat(0, 1).is_some());
    }
    for _ in 0..4 {
        (world.now, world.sequence) = (world.now + 100, world.sequence + 1);
        world.held_from = world.now;
        assert!(world.beat(0, 1).is_some());
    }
}
