use alloc::vec::Vec;

use defib_model::{BootId, Epoch, Opinion, Policy, ReplicaId};

use super::{
    Beat, HostView, Observer,
    tests::{MS, World, host, view},
};

#[test]
fn a_late_datagram_of_a_former_boot_counts_for_nothing() {
    let mut observer = Observer::new(ReplicaId(1), 1, &Policy::default(), MS(0));
    observer.caught_up(MS(0));
    let slot = observer.watch(MS(0), &host("h"), view());
    let beat = |boot, sequence| Beat::bare(BootId(boot), sequence, Epoch(1));
    assert!(observer.heartbeat(MS(1), slot, &beat(1, 100)).ack().is_some());
    let over = [Some(BootId(1)), None, None, None];
    observer.watch(MS(2), &host("h"), HostView { boot: Some(BootId(2)), over, ..view() });
    assert!(observer.heartbeat(MS(2), slot, &beat(2, 1)).ack().is_some(), "a new boot counts from 1");
    assert!(observer.heartbeat(MS(3), slot, &beat(1, 101)) == super::Heard::Nothing);
}

/// Two machines with one name: a disk was copied, or a certificate.
#[test]
fn another_boot_speaks_for_the_one_in_use_neither_while_it_is_heard_nor_when_it_falls_silent() {
    let mut world = World::new(3, &Policy::default());
    let (id, slot, _) = world.hosts[0].clone();
    let both = |world: &mut World, span: u64| {
        for _ in 0..span / 100 {
            world.run(100, 100);
            let other = Beat { boot: BootId(2), sequence: world.sequence, ..world.beat_of(0) };
            let ack =
                world.observer.heartbeat(MS(world.now), slot, &other).ack().expect("it hears its epoch");
            assert!(!ack.granted && ack.epoch == Epoch(1), "{ack:?}");
        }
    };
    both(&mut world, 2000);
    world.sequence = (world.sequence / 2 + 1) * 2;
    assert!(world.beat(0, 1).is_some_and(|ack| ack.granted), "the one that was let in keeps its lease");
    let cut = world.now;
    world.hosts[0].2 = false;
    both(&mut world, 2000);
    let opinions: Vec<Opinion> = world.opinions_of(0).into_iter().map(|(_, opinion)| opinion).collect();
    assert_eq!(opinions, [Opinion::Asks, Opinion::Dead], "silent since {cut}");
    // Let in itself, it is heard.
    world.observer.watch(MS(world.now), &id, HostView { epoch: Epoch(2), boot: Some(BootId(2)), ..view() });
    assert_eq!(world.observer.opinion(slot), Some(Opinion::Alive));
}

/// A host is dead, two machines bear its name and both are up: whichever is let in must be heard, also if the other one
/// spoke in between.
#[test]
fn a_boot_that_is_let_in_is_heard_though_another_one_spoke_after_it() {
    let mut observer = Observer::new(ReplicaId(1), 1, &Policy::default(), MS(0));
    observer.caught_up(MS(0));
    let slot = observer.watch(MS(0), &host("h"), view());
    let beat = |boot, sequence, epoch| Beat::bare(BootId(boot), sequence, Epoch(epoch));
    assert!(observer.heartbeat(MS(1), slot, &beat(1, 100, 1)).ack().is_some());
    let over = [Some(BootId(1)), None, None, None];
    let dead = HostView { epoch: Epoch(2), watched: false, grantable: false, dead: true, over, ..view() };
    observer.watch(MS(2), &host("h"), dead);
    assert!(observer.heartbeat(MS(3), slot, &beat(2, 10, 2)).ack().is_some());
    assert!(observer.heartbeat(MS(4), slot, &beat(3, 20, 2)).ack().is_some());
    assert!(
        observer.heartbeat(MS(5), slot, &beat(2, 11, 2)).ack().is_some(),
        "neither was in use, neither is over"
    );
    assert_eq!(
        observer.heartbeat(MS(6), slot, &beat(1, 101, 2)),
        super::Heard::Nothing,
        "this one was, and is"
    );
    let admitted = HostView { epoch: Epoch(3), boot: Some(BootId(2)), over, ..view() };
    observer.watch(MS(7), &host("h"), admitted);
    assert_eq!(
        observer.heartbeat(MS(8), slot, &beat(2, 11, 3)),
        super::Heard::Nothing,
        "its numbers are known"
    );
    assert!(observer.heartbeat(MS(9), slot, &beat(2, 12, 3)).ack().is_some_and(|ack| ack.granted));
}
