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
    observer.watch(MS(2), &host("h"), HostView { boot: Some(BootId(2)), ..view() });
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
