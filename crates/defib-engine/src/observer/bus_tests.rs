use defib_model::BootId;

use super::{tests::*, *};

const LANE: Partition = Partition { topic: 0, number: 3 };
const BOOT: BootId = BootId(1);

/// A partition on which h0 speaks by the bus, and others do.
struct Bus {
    end: u64,
    sequence: u64,
}

impl Bus {
    fn begin(world: &mut World) -> Self {
        world.observer.bus_begins(LANE, MS(world.now), 100);
        Self { end: 100, sequence: 0 }
    }

    fn extent(&self, world: &World) -> Extent {
        Extent { asked_at: MS(world.now), read_to: self.end, first: 0, end: self.end }
    }

    fn mark(&self, world: &mut World) {
        assert!(!world.observer.bus_holds(LANE, &self.extent(world)));
    }

    /// Numbered as agents do: by the clock of the host's boot.
    fn beat(&mut self, world: &mut World, at: usize) -> Heed {
        let sequence = (self.sequence + 1).max(MS(world.now).0 / 1000);
        self.sequence = sequence;
        self.write(world, at, sequence)
    }

    fn write(&mut self, world: &mut World, at: usize, sequence: u64) -> Heed {
        let place = Place { partition: LANE, offset: self.end };
        self.end += 1;
        world.observer.bus_beat(MS(world.now), world.hosts[at].1, place, &BusBeat { boot: BOOT, sequence })
    }

    /// As long, with a mark each 100 ms, and after it beats of the hosts that are named.
    fn run(&mut self, world: &mut World, millis: u64, hosts: &[usize]) {
        for _ in 0..millis / 100 {
            self.mark(world);
            for at in hosts {
                self.beat(world, *at);
            }
            world.run(100, 100);
        }
    }
}

fn cut(count: usize) -> (World, Bus) {
    let mut world = World::new(count, &Policy::default());
    let mut bus = Bus::begin(&mut world);
    bus.run(&mut world, 1000, &[0, 1]);
    // From now on it is heard by the bus only.
    world.hosts[0].2 = false;
    (world, bus)
}

fn last(world: &World, at: usize) -> Option<Opinion> {
    world.opinions_of(at).last().map(|(_, opinion)| *opinion)
}

/// Lease and watchdog with their drift, after the last heartbeat.
fn runs_nothing_after() -> u64 {
    let lease = Policy::default().lease;
    lease.promise().0 + lease.watchdog.with_drift(lease.drift_ppm).0
}

#[test]
fn a_host_that_the_bus_hears_is_asked_about_and_voted_dead_when_its_vms_run_no_more() {
    let (mut world, mut bus) = cut(3);
    bus.run(&mut world, 9000, &[0, 1]);
    assert_eq!(world.opinions_of(0), [(1300, Opinion::Asks)]);
    assert_eq!(world.observer.bus_withheld(), 1);
    bus.run(&mut world, 2000, &[0, 1]);
    let (at, opinion) = *world.opinions_of(0).last().unwrap();
    assert_eq!(opinion, Opinion::Dead);
    assert!((1000 + runs_nothing_after()..1200 + runs_nothing_after()).contains(&at), "{at}");
}

#[test]
fn a_host_that_falls_silent_on_the_bus_too_is_voted_dead() {
    let (mut world, mut bus) = cut(3);
    bus.run(&mut world, 2000, &[0, 1]);
    assert_eq!(last(&world, 0), Some(Opinion::Asks));
    bus.run(&mut world, 1500, &[1]);
    assert_eq!(last(&world, 0), Some(Opinion::Dead));
}

#[test]
fn a_bus_that_says_nothing_of_anybody_proves_no_silence() {
    for asked in [true, false] {
        let (mut world, mut bus) = cut(3);
        bus.run(&mut world, 2000, &[0, 1]);
        // Either its brokers answer and nobody can write, or they do not answer.
        if asked {
            bus.run(&mut world, 6000, &[]);
        } else {
            world.run(6000, 100);
        }
        assert_eq!(last(&world, 0), Some(Opinion::Asks), "{asked}");
        world.run(4000, 100);
        assert_eq!(last(&world, 0), Some(Opinion::Dead), "{asked}: its VMs do not run any more");
    }
}

#[test]
fn an_outage_of_the_bus_accuses_nobody_and_delays_nothing_for_those_who_beat_on_paths() {
    let mut world = World::new(4, &Policy::default());
    let mut bus = Bus::begin(&mut world);
    bus.run(&mut world, 1000, &[0, 1, 2, 3]);
    world.run(20_000, 100);
    assert_eq!(world.said, []);
    world.hosts[2].2 = false;
    world.run(1500, 100);
    assert_eq!(last(&world, 2), Some(Opinion::Dead), "as without a bus");
    assert_eq!(world.observer.bus_withheld(), 0);
    assert!(world.observer.bus_caught_up_at().unwrap() <= MS(1000));
}

#[test]
fn what_is_read_late_counts_for_when_it_was_written() {
    let (mut world, mut bus) = cut(3);
    // Both go on for a second; then the host dies. Nothing of it is read yet.
    let mut unread = Vec::new();
    for _ in 0..10 {
        bus.mark(&mut world);
        unread.push((bus.end, bus.end + 1));
        bus.end += 2;
        world.run(100, 100);
    }
    for _ in 0..30 {
        bus.mark(&mut world);
        unread.push((u64::MAX, bus.end));
        bus.end += 1;
        world.run(100, 100);
    }
    // Then all of it at once: its last beat is three seconds old, and so is its silence.
    for (own, other) in unread {
        let mut read = |at: usize, offset: u64| {
            bus.sequence += 1;
            let beat = BusBeat { boot: BOOT, sequence: bus.sequence };
            let heed = world.observer.bus_beat(
                MS(world.now),
                world.hosts[at].1,
                Place { partition: LANE, offset },
                &beat,
            );
            assert_eq!(heed, Heed::Counted);
        };
        if own != u64::MAX {
            read(0, own);
        }
        read(1, other);
    }
    world.run(200, 100);
    assert_eq!(last(&world, 0), Some(Opinion::Dead));
}

#[test]
fn a_number_that_no_clock_can_have_reached_makes_nobody_deaf_to_the_beats_after_it() {
    // Nonsense; an hour ahead; and just more than is granted.
    for ahead in [u64::MAX, 3_600_000_000, 600_000] {
        let (mut world, mut bus) = cut(3);
        bus.mark(&mut world);
        let sequence = (MS(world.now).0 / 1000).saturating_add(ahead);
        assert_eq!(bus.write(&mut world, 0, sequence), Heed::Ahead, "{ahead}");
        bus.run(&mut world, 9000, &[0, 1]);
        assert_eq!(world.opinions_of(0), [(1300, Opinion::Asks)], "{ahead}");
    }
}

#[test]
fn a_number_that_is_as_far_ahead_as_is_granted_gets_nobody_voted_dead() {
    let (mut world, mut bus) = cut(3);
    bus.run(&mut world, 1000, &[0, 1]);
    for _ in 0..3 {
        bus.mark(&mut world);
        let ahead = MS(world.now).0 / 1000 + 499_000;
        assert_eq!(bus.write(&mut world, 0, ahead), Heed::Counted);
        // It is known until the clock has come so far, which is sooner than a silence lasts.
        assert_eq!(bus.beat(&mut world, 0), Heed::Known);
        bus.run(&mut world, 2000, &[0, 1]);
    }
    assert_eq!(world.opinions_of(0), [(1300, Opinion::Asks)]);
}

#[test]
fn whoever_writes_beside_an_agent_and_stops_makes_nobody_deaf_to_the_agent() {
    let (mut world, mut bus) = cut(3);
    // A collector by the same clock, which is a little faster on its way.
    for _ in 0..10 {
        bus.mark(&mut world);
        let sequence = MS(world.now).0 / 1000 + 30_000;
        assert_eq!(bus.write(&mut world, 0, sequence), Heed::Counted);
        bus.run(&mut world, 100, &[0, 1]);
    }
    bus.run(&mut world, 8000, &[0, 1]);
    assert_eq!(world.opinions_of(0), [(1300, Opinion::Asks)]);
}

#[test]
fn before_a_host_was_heard_on_a_path_no_number_is_the_highest() {
    let mut world = World::new(3, &Policy::default());
    world.hosts[0].2 = false;
    let mut bus = Bus::begin(&mut world);
    bus.mark(&mut world);
    assert_eq!(bus.write(&mut world, 0, u64::MAX), Heed::Counted, "nobody knows the host's clock");
    assert_eq!(bus.write(&mut world, 0, u64::MAX), Heed::Known, "again");
    assert_eq!(bus.beat(&mut world, 0), Heed::Counted);
    assert_eq!(bus.write(&mut world, 0, u64::MAX), Heed::Counted);
    // From its first beat on a path its clock is known, and what was beyond that is forgotten.
    world.hosts[0].2 = true;
    world.run(1000, 100);
    world.hosts[0].2 = false;
    bus.mark(&mut world);
    assert_eq!(bus.write(&mut world, 0, u64::MAX), Heed::Ahead);
    assert_eq!(bus.beat(&mut world, 0), Heed::Counted);
}

#[test]
fn replays_count_for_nothing() {
    let (mut world, mut bus) = cut(3);
    bus.run(&mut world, 1000, &[0, 1]);
    let slot = world.hosts[0].1;
    let newest = BusBeat { boot: BOOT, sequence: bus.sequence - 1 };
    // The same records again.
    let place = Place { partition: LANE, offset: bus.end - 2 };
    assert_eq!(world.observer.bus_beat(MS(world.now), slot, place, &newest), Heed::Known);
    // Written again, by whoever.
    bus.mark(&mut world);
    let place = Place { partition: LANE, offset: bus.end };
    assert_eq!(world.observer.bus_beat(MS(world.now), slot, place, &newest), Heed::Known);
    // What was heard on a path already, though never read.
    let heard = world.sequence;
    let place = Place { partition: LANE, offset: bus.end + 1 };
    assert_eq!(
        world.observer.bus_beat(MS(world.now), slot, place, &BusBeat { boot: BOOT, sequence: heard }),
        Heed::Known
    );
    bus.end += 2;
    bus.run(&mut world, 1500, &[1]);
    assert_eq!(last(&world, 0), Some(Opinion::Dead));
}

#[test]
fn beats_of_another_boot_or_of_an_unknown_time_count_for_nothing() {
    let mut world = World::new(3, &Policy::default());
    let slot = world.hosts[0].1;
    let beat = BusBeat { boot: BOOT, sequence: 1_000_000 };
    let place = |offset| Place { partition: LANE, offset };
    assert_eq!(
        world.observer.bus_beat(MS(world.now), slot, place(100), &beat),
        Heed::Undated,
        "no reading has begun"
    );
    world.observer.bus_begins(LANE, MS(0), 200);
    assert_eq!(
        world.observer.bus_beat(MS(world.now), slot, place(100), &beat),
        Heed::Known,
        "before the reading's begin"
    );
    let other = BusBeat { boot: BootId(2), ..beat };
    assert_eq!(world.observer.bus_beat(MS(world.now), slot, place(200), &other), Heed::OtherBoot);
    assert_eq!(world.observer.bus_beat(MS(world.now), slot, place(201), &beat), Heed::Counted);
}

#[test]
fn what_is_taken_away_unread_is_no_silence() {
    // The topic is made anew and is shorter; or its retention overtook the reader.
    for (first, end) in [(0, 5), (5000, 6000)] {
        let (mut world, mut bus) = cut(3);
        bus.run(&mut world, 1000, &[0, 1]);
        // Nothing is read for a while.
        world.run(900, 100);
        let extent = Extent { first, end, ..bus.extent(&world) };
        assert!(world.observer.bus_holds(LANE, &extent));
        assert!(world.observer.bus_holds(LANE, &bus.extent(&world)), "it is to be begun anew first");
        let beat = BusBeat { boot: BOOT, sequence: u64::MAX };
        let place = Place { partition: LANE, offset: bus.end };
        assert_eq!(
            world.observer.bus_beat(MS(world.now), world.hosts[0].1, place, &beat),
            Heed::Undated,
            "it was on its way"
        );
        world.run(2000, 100);
        assert_eq!(last(&world, 0), Some(Opinion::Asks), "nothing is read yet");
        world.observer.bus_begins(LANE, MS(world.now), end);
        bus.end = end;
        bus.run(&mut world, 900, &[1]);
        assert_eq!(last(&world, 0), Some(Opinion::Asks), "silence counts from there");
        bus.run(&mut world, 900, &[1]);
        assert_eq!(last(&world, 0), Some(Opinion::Dead));
    }
}

#[test]
fn what_came_while_a_partition_was_asked_takes_nothing_away() {
    let (mut world, mut bus) = cut(3);
    let asked = bus.extent(&world);
    for _ in 0..10 {
        bus.beat(&mut world, 1);
    }
    assert!(!world.observer.bus_holds(LANE, &asked), "it is read further than it reached then");
}

#[test]
fn a_beat_of_the_bus_takes_nothing_back_and_grants_nothing() {
    let (mut world, mut bus) = cut(3);
    bus.run(&mut world, 2000, &[1]);
    assert_eq!(last(&world, 0), Some(Opinion::Dead));
    let promised = world.observer.hosts[0].as_ref().unwrap().promised_until;
    // It shows life, which keeps other boots waiting, and judges nothing.
    let judged =
        |world: &World| world.said.iter().filter(|(_, said)| !matches!(said, Proposal::Witnessed(_))).count();
    let said = judged(&world);
    let id = world.hosts[0].0.clone();
    world.observer.watch(MS(world.now), &id, HostView { recorded: Opinion::Dead, ..view() });
    bus.run(&mut world, 3000, &[0, 1]);
    assert_eq!((last(&world, 0), judged(&world)), (Some(Opinion::Dead), said));
    assert_eq!(world.observer.hosts[0].as_ref().unwrap().promised_until, promised);
}

#[test]
fn an_event_of_a_bmc_brings_the_question_forward_for_the_silent_only() {
    let mut world = World::new(3, &Policy::default());
    let bus = Bus::begin(&mut world);
    world.run(1000, 100);
    bus.mark(&mut world);
    let event = |world: &mut World, at: usize, offset| {
        let place = Place { partition: LANE, offset };
        world.observer.bmc_event(MS(world.now), world.hosts[at].1, place)
    };
    assert_eq!(event(&mut world, 0, 100), Heed::Counted);
    assert_eq!(event(&mut world, 1, 101), Heed::Counted);
    world.hosts[0].2 = false;
    world.run(500, 100);
    assert_eq!(world.opinions_of(0), [(1150, Opinion::Asks)]);
    assert_eq!(world.opinions_of(1), [], "it beats");
    // That was long ago.
    world.run(12_000, 100);
    assert_eq!(event(&mut world, 1, 102), Heed::Known);
    let from = world.now;
    world.hosts[1].2 = false;
    world.run(500, 100);
    assert_eq!(world.opinions_of(1), [(from + 300, Opinion::Asks)]);
}

#[test]
fn a_flood_of_forged_events_asks_about_nobody_who_beats_and_once_about_one_who_misses_a_beat() {
    let mut world = World::new(3, &Policy::default());
    world.run(1000, 100);
    let flood = |world: &mut World, millis: u64| {
        for _ in 0..millis / 10 {
            for at in 0..3 {
                let _ = world.observer.bmc_told(MS(world.now), world.hosts[at].1);
            }
            world.run(10, 100);
        }
    };
    flood(&mut world, 3000);
    assert_eq!(world.said, [], "they beat");
    // It misses a beat each second, for six seconds.
    for _ in 0..6 {
        world.hosts[0].2 = false;
        flood(&mut world, 200);
        world.hosts[0].2 = true;
        flood(&mut world, 800);
    }
    let asked = world.opinions_of(0).iter().filter(|(_, opinion)| *opinion == Opinion::Asks).count();
    assert_eq!((asked, world.opinions_of(1).len()), (1, 0));
    let promised = |world: &World| world.observer.hosts[0].as_ref().unwrap().promised_until;
    let before = promised(&world);
    world.hosts[0].2 = false;
    let dead_from = world.now;
    let _ = world.observer.bmc_told(MS(world.now), world.hosts[0].1);
    assert_eq!(promised(&world), before, "an event grants nothing");
    flood(&mut world, 1500);
    let (at, opinion) = *world.opinions_of(0).last().unwrap();
    assert_eq!(opinion, Opinion::Dead);
    let act_after = Policy::default().detection.act_after.0;
    assert!(at + 100 >= dead_from + act_after, "{at}: events prove no death");
}

#[test]
fn what_a_bmc_tells_itself_counts_as_what_the_bus_tells_of_it() {
    let mut world = World::new(3, &Policy::default());
    world.run(1000, 100);
    let now = MS(world.now);
    assert_eq!(world.observer.bmc_told(now, world.hosts[0].1), Heed::Counted);
    assert_eq!(world.observer.bmc_told(now, world.hosts[0].1), Heed::Known, "again");
    world.hosts[0].2 = false;
    world.run(500, 100);
    assert_eq!(world.opinions_of(0), [(1150, Opinion::Asks)], "one beat that is late is enough");
}

#[test]
fn marks_are_bounded_and_a_long_lag_is_only_known_less_finely() {
    let (mut world, mut bus) = cut(3);
    for _ in 0..2000 {
        bus.mark(&mut world);
        bus.end += 1;
        world.now += 1;
    }
    let slot = world.hosts[0].1;
    let beat = BusBeat { boot: BOOT, sequence: bus.sequence + 1 };
    let place = Place { partition: LANE, offset: bus.end - 1 };
    assert_eq!(world.observer.bus_beat(MS(world.now), slot, place, &beat), Heed::Counted);
    assert!(world.observer.bus_caught_up_at().unwrap() >= MS(world.now - 2));
}

/// A topic was made anew with fewer partitions.
#[test]
fn a_partition_that_is_no_more_is_behind_in_nothing() {
    let (mut world, mut bus) = cut(3);
    let gone = Partition { number: LANE.number + 1, ..LANE };
    world.observer.bus_begins(gone, MS(world.now), 0);
    let before = MS(world.now);
    bus.run(&mut world, 5000, &[0]);
    assert_eq!(world.observer.bus_caught_up_at(), Some(before), "nobody tells where it ends");
    world.observer.bus_ends(gone);
    assert!(world.observer.bus_caught_up_at().unwrap() >= MS(world.now - 200));
}
