use defib_model::{BootId, Epoch, command::LifeSign, policy::LeasePolicy};

use super::{tests::*, *};

/// A round trip of a probe.
const TAKES: u64 = 5;

fn reached(asked_at: u64, boot: u128) -> Reached {
    Reached { boot: BootId(boot), asked_at: MS(asked_at), neighbour: host("h1") }
}

/// Questions about a host, when they were asked.
fn asked(world: &World, at: usize) -> Vec<u64> {
    let about = |proposal: &Proposal| match proposal {
        Proposal::Probe(hosts) => hosts.contains(&world.hosts[at].0),
        Proposal::Opinions(_) | Proposal::LeasesExpired(_) | Proposal::Witnessed(_) => false,
    };
    world.said.iter().filter(|(_, said)| about(said)).map(|(when, _)| *when).collect()
}

fn witnessed(world: &World) -> usize {
    world.said.iter().filter(|(_, said)| matches!(said, Proposal::Witnessed(_))).count()
}

fn last(world: &World, at: usize) -> Option<(u64, Opinion)> {
    world.opinions_of(at).last().copied()
}

/// Lets time pass; each question about h0 is answered.
fn run_answered(world: &mut World, millis: u64) {
    for _ in 0..millis {
        world.run(1, 100);
        if let Some(asked) = asked(world, 0).last().copied()
            && asked + TAKES == world.now
        {
            let slot = world.hosts[0].1;
            assert_eq!(world.observer.reached(MS(world.now), slot, reached(asked, 1)), Heed::Counted);
        }
    }
}

/// h0 is not heard any more.
fn cut(policy: &Policy) -> World {
    let mut world = World::new(3, policy);
    world.run(1000, 100);
    world.hosts[0].2 = false;
    world
}

#[test]
fn a_host_that_a_neighbour_reaches_is_voted_dead_when_it_stops_its_vms_and_not_before() {
    let mut world = cut(&Policy::default());
    run_answered(&mut world, 12_000);
    let opinions = world.opinions_of(0);
    let [(1300, Opinion::Asks), (at, Opinion::Dead)] = opinions[..] else { panic!("{opinions:?}") };
    let lease = Policy::default().lease;
    let stops = 1000 + lease.promise().0 + LeasePolicy::stop_after(lease.watchdog).0;
    assert!((stops..stops + 200).contains(&at), "{at}");
    assert_eq!(world.observer.probes_withheld(), 1);
    // Four questions in what makes a vote, and two when it was voted dead and still answers.
    let asked = asked(&world, 0);
    assert_eq!(asked[..4], [1300, 1550, 1800, 2050]);
    let later: Vec<u64> = asked.into_iter().filter(|asked| *asked > at).collect();
    assert!(later.len() > 1 && later.windows(2).all(|two| two[1] == two[0] + 500), "{later:?}");
    // No answer any more, and nobody asks for long.
    let before = world.now;
    world.run(10_000, 100);
    let newest = self::asked(&world, 0).pop().unwrap();
    assert!(newest <= before + 2000, "{newest}");
}

#[test]
fn what_proves_its_death_by_its_lease_comes_as_early_as_without_neighbours() {
    let mut voted = Vec::new();
    for answered in [true, false] {
        let mut world = cut(&Policy::default());
        let mut condemned = false;
        for _ in 0..12_000 {
            if answered {
                run_answered(&mut world, 1)
            } else {
                world.run(1, 100)
            }
            if !condemned && last(&world, 0).is_some_and(|(_, opinion)| opinion == Opinion::Dead) {
                condemned = true;
                let view = HostView {
                    epoch: Epoch(2),
                    grantable: false,
                    condemned: true,
                    recorded: Opinion::Dead,
                    ..view()
                };
                let host = world.hosts[0].0.clone();
                world.observer.watch(MS(world.now), &host, view);
            }
        }
        let first = world.said.iter().find(|(_, said)| matches!(said, Proposal::LeasesExpired(_)));
        voted.push(first.unwrap().0);
    }
    // To the moment at which it is looked at again.
    assert!(voted[0].abs_diff(voted[1]) < RECHECK.0, "{voted:?}");
}

#[test]
fn that_no_neighbour_reaches_it_changes_nothing() {
    let mut world = cut(&Policy::default());
    world.run(1500, 100);
    assert_eq!(world.opinions_of(0), [(1300, Opinion::Asks), (2000, Opinion::Dead)]);
    assert_eq!((asked(&world, 0).len(), world.observer.probes_withheld()), (3, 0));
}

#[test]
fn who_dies_after_the_last_answer_is_voted_dead_as_soon_after_it_as_a_silence_lasts_that_makes_a_vote() {
    let mut world = cut(&Policy::default());
    run_answered(&mut world, 2000);
    let answered = asked(&world, 0).iter().rev().find(|at| **at + TAKES <= world.now).copied().unwrap();
    world.run(1500, 100);
    let (at, opinion) = last(&world, 0).unwrap();
    assert_eq!(opinion, Opinion::Dead);
    assert!((answered + 1000..answered + 1000 + RECHECK.0 + 10).contains(&at), "{answered} {at}");
}

#[test]
fn an_answer_counts_once_in_the_boot_in_use_after_the_last_heartbeat_and_where_it_was_asked_for() {
    let mut world = World::new(3, &Policy::default());
    world.run(1000, 100);
    let slot = world.hosts[0].1;
    let hears = |world: &mut World, asked_at, boot| {
        world.observer.reached(MS(world.now), slot, reached(asked_at, boot))
    };
    // Nobody asked.
    assert_eq!(hears(&mut world, 1000, 1), Heed::Known);
    world.hosts[0].2 = false;
    world.run(400, 100);
    assert_eq!(hears(&mut world, 1300, 2), Heed::OtherBoot);
    assert_eq!(hears(&mut world, 1000, 1), Heed::Known, "a heartbeat came later");
    assert_eq!(hears(&mut world, 1401, 1), Heed::Known, "it is of the future");
    assert_eq!(hears(&mut world, 1300, 1), Heed::Counted);
    assert_eq!(hears(&mut world, 1300, 1), Heed::Known);
    assert_eq!(hears(&mut world, 1200, 1), Heed::Known, "a later one was answered");
    // What is replayed holds up nothing.
    for _ in 0..10 {
        world.run(100, 100);
        assert_eq!(hears(&mut world, 1300, 1), Heed::Known);
    }
    assert_eq!(last(&world, 0).unwrap(), (2300, Opinion::Dead));
}

#[test]
fn the_policy_says_how_long_a_vote_waits_and_whether_neighbours_are_asked_at_all() {
    let mut policy = Policy::default();
    policy.detection.witness_delay = Millis(2000);
    let mut world = cut(&policy);
    run_answered(&mut world, 4000);
    let (at, opinion) = last(&world, 0).unwrap();
    assert!(opinion == Opinion::Dead && (4000..4000 + RECHECK.0 + 10).contains(&at), "{at}");
    policy.detection.witness_delay = Millis::ZERO;
    let mut world = cut(&policy);
    world.run(2000, 100);
    assert_eq!(last(&world, 0), Some((2000, Opinion::Dead)));
    assert_eq!(asked(&world, 0), [0; 0]);
}

#[test]
fn the_log_is_told_until_it_shows_it_and_anew_in_the_next_silence() {
    let mut world = cut(&Policy::default());
    run_answered(&mut world, 2000);
    // As long as the log shows nothing.
    assert!((3..=4).contains(&witnessed(&world)), "{}", witnessed(&world));
    let host = world.hosts[0].0.clone();
    let known = HostView { recorded: Opinion::Asks, sign_recorded: true, ..view() };
    world.observer.watch(MS(world.now), &host, known);
    let before = witnessed(&world);
    run_answered(&mut world, 1000);
    assert_eq!(witnessed(&world), before);
    world.hosts[0].2 = true;
    world.run(1000, 100);
    world.observer.watch(MS(world.now), &host, view());
    world.hosts[0].2 = false;
    // A path that was silent for so long is given more time before anybody asks.
    run_answered(&mut world, 3000);
    assert!(witnessed(&world) > before);
}

/// What the log was told of h0's signs of life, and when.
fn told(world: &World) -> Vec<(u64, bool)> {
    let signs = world.said.iter().flat_map(|(at, said)| {
        let witnessed = if let Proposal::Witnessed(witnessed) = said { witnessed.as_slice() } else { &[] };
        witnessed.iter().map(move |one| (*at, one.sign != LifeSign::Nothing))
    });
    signs.collect()
}

#[test]
fn the_log_hears_as_long_as_a_boot_lives_that_was_voted_dead_and_at_once_when_it_does_so_no_more() {
    let mut world = cut(&Policy::default());
    let mut recorded = false;
    let mut go = |world: &mut World, millis: u64, answers: bool| {
        for _ in 0..millis {
            if answers {
                run_answered(world, 1)
            } else {
                world.run(1, 100)
            }
            if let Some((_, lives)) = told(world).last().filter(|(_, lives)| *lives != recorded) {
                recorded = *lives;
                let opinion = last(world, 0).map_or(Opinion::Alive, |(_, opinion)| opinion);
                let known = HostView { recorded: opinion, sign_recorded: recorded, ..view() };
                let host = world.hosts[0].0.clone();
                world.observer.watch(MS(world.now), &host, known);
            }
        }
    };
    go(&mut world, 19_000, true);
    assert!(last(&world, 0).is_some_and(|(at, opinion)| opinion == Opinion::Dead && at < 12_000));
    let lives = told(&world);
    assert!(lives.iter().all(|(_, lives)| *lives), "{lives:?}");
    // Again now and then, within the time that the log remembers it.
    assert!(lives[0].0 < 1310 && lives.len() >= 4, "{lives:?}");
    assert!(lives.windows(2).all(|two| two[1].0 - two[0].0 <= 5010), "{lives:?}");
    // It dies.
    let died = world.now;
    go(&mut world, 5000, false);
    let after = told(&world).split_off(lives.len());
    let over: Vec<u64> = after.iter().filter(|(_, lives)| !lives).map(|(at, _)| *at).collect();
    assert!(matches!(over[..], [at] if at > died && at <= died + 2010), "{after:?}");
    assert_eq!(after.last().map(|(_, lives)| *lives), Some(false), "{after:?}");
}

#[test]
fn when_very_many_fall_silent_only_so_many_are_asked_about_at_once() {
    let mut world = World::new(400, &Policy::default());
    world.run(1000, 100);
    for at in 0..180 {
        world.hosts[at].2 = false;
    }
    let before = world.said.len();
    world.run(549, 100);
    let asked: usize = world.said[before..]
        .iter()
        .map(|(_, said)| match said {
            Proposal::Probe(hosts) => hosts.len(),
            Proposal::Opinions(_) | Proposal::LeasesExpired(_) | Proposal::Witnessed(_) => 0,
        })
        .sum();
    assert_eq!(asked, 64);
}
