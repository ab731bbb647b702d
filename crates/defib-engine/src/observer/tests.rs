use defib_model::{BootId, Epoch};

use super::*;

pub(super) fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

pub(super) fn view() -> HostView {
    HostView {
        epoch: Epoch(1),
        watched: true,
        grantable: true,
        boot: Some(BootId(1)),
        over: [None; 4],
        condemned: false,
        dead: false,
        muted_for: None,
        recorded: Opinion::Alive,
        vote_recorded: false,
        sign_recorded: false,
    }
}

pub(super) const MS: fn(u64) -> Instant = Instant::from_millis;

/// Hosts that all beat at their interval, and an observer that hears those that are up.
pub(super) struct World {
    pub(super) observer: Observer,
    pub(super) hosts: Vec<(HostId, Slot, bool)>,
    pub(super) now: u64,
    pub(super) sequence: u64,
    pub(super) stamps: Vec<Option<Instant>>,
    pub(super) held_from: u64,
    /// What the hosts say of their watchdog.
    watchdog: Millis,
    pub(super) said: Vec<(u64, Proposal)>,
}

fn electorate(version: u64, hosts: core::ops::Range<usize>) -> Electorate {
    let hosts = hosts.map(|at| host(&alloc::format!("h{at}"))).collect();
    Electorate { version, hosts, replicas: [1, 2, 3].map(ReplicaId).into() }
}

impl World {
    pub(super) fn new(count: usize, policy: &Policy) -> Self {
        let mut observer = Observer::new(ReplicaId(1), 1, policy, MS(0));
        observer.caught_up(MS(0));
        let hosts: Vec<_> = (0..count)
            .map(|number| {
                let host = host(&alloc::format!("h{number}"));
                let slot = observer.watch(MS(0), &host, view());
                (host, slot, true)
            })
            .collect();
        observer.electorates(MS(0), alloc::vec![electorate(1, 0..count)]);
        let (stamps, watchdog) = (alloc::vec![None; count], Millis::ZERO);
        Self { observer, hosts, now: 0, sequence: 0, stamps, held_from: 0, watchdog, said: Vec::new() }
    }

    /// What a host would say now.
    pub(super) fn beat_of(&self, at: usize) -> Beat {
        Beat {
            boot: BootId(1),
            sequence: self.sequence,
            epoch: Epoch(1),
            path: 0,
            lease_held_ms: self.now.saturating_sub(self.held_from),
            vm_digest: 0,
            echo: self.stamps[at],
            electorate: 1,
            watchdog: self.watchdog,
            answer_freshness: Millis::ZERO,
        }
    }

    pub(super) fn beat(&mut self, at: usize, epoch: u64) -> Option<Ack> {
        let beat = Beat { epoch: Epoch(epoch), ..self.beat_of(at) };
        let (now, slot) = (MS(self.now), self.hosts[at].1);
        let heard = self.observer.heartbeat(now, slot, &beat);
        if heard != Heard::Nothing {
            self.observer.tells_time(now, slot, beat.boot, now);
        }
        let ack = heard.ack();
        if let Some(ack) = ack {
            self.stamps[at] = Some(ack.stamp);
        }
        ack
    }

    /// Lets `millis` pass in steps of 1 ms, with beats every `interval`.
    pub(super) fn run(&mut self, millis: u64, interval: u64) {
        for _ in 0..millis {
            self.now += 1;
            if self.now.is_multiple_of(interval) {
                self.sequence += 1;
                for at in 0..self.hosts.len() {
                    if self.hosts[at].2 {
                        self.beat(at, 1);
                    }
                }
            }
            self.wake();
        }
    }

    fn wake(&mut self) {
        if self.observer.next_deadline().is_some_and(|due| due <= MS(self.now)) {
            for proposal in self.observer.woke(MS(self.now)) {
                self.said.push((self.now, proposal));
            }
        }
    }

    pub(super) fn opinions_of(&self, at: usize) -> Vec<(u64, Opinion)> {
        let mut all = Vec::new();
        for (when, proposal) in &self.said {
            if let Proposal::Opinions(changes) = proposal {
                for change in changes.iter().filter(|change| change.host == self.hosts[at].0) {
                    if all.last().is_none_or(|(_, last)| *last != change.opinion) {
                        all.push((*when, change.opinion));
                    }
                }
            }
        }
        all
    }
}

#[test]
fn a_silent_host_is_asked_about_after_three_beats_and_voted_dead_after_a_second() {
    let mut world = World::new(3, &Policy::default());
    world.run(1000, 100);
    world.hosts[0].2 = false;
    world.run(1500, 100);
    let opinions = world.opinions_of(0);
    assert_eq!(opinions, [(1300, Opinion::Asks), (2000, Opinion::Dead)]);
    assert!(world.opinions_of(1).is_empty());
}

#[test]
fn an_opinion_that_the_ledger_does_not_show_is_proposed_again() {
    let mut world = World::new(3, &Policy::default());
    world.run(1000, 100);
    world.hosts[0].2 = false;
    world.run(3000, 100);
    let times = world.said.len();
    assert!(times >= 4, "{:?}", world.said);
    let slot = HostView { recorded: Opinion::Dead, ..view() };
    let id = world.hosts[0].0.clone();
    world.observer.watch(MS(world.now), &id, slot);
    world.run(3000, 100);
    assert_eq!(world.said.len(), times, "recorded as it is: nothing more to say");
}

#[test]
fn two_heartbeats_take_a_bad_opinion_back() {
    let mut world = World::new(3, &Policy::default());
    world.run(1000, 100);
    world.hosts[0].2 = false;
    world.run(400, 100);
    let recorded = HostView { recorded: Opinion::Asks, ..view() };
    let id = world.hosts[0].0.clone();
    world.observer.watch(MS(world.now), &id, recorded);
    world.hosts[0].2 = true;
    world.run(300, 100);
    assert_eq!(world.opinions_of(0).last().unwrap().1, Opinion::Alive);
}

#[test]
fn an_observer_that_hears_less_than_half_asks_but_accuses_nobody() {
    let mut world = World::new(8, &Policy::default());
    world.run(1000, 100);
    for at in 0..5 {
        world.hosts[at].2 = false;
    }
    world.run(5000, 100);
    for at in 0..5 {
        assert_eq!(world.opinions_of(at).len(), 1, "h{at}");
        assert_eq!(world.opinions_of(at)[0].1, Opinion::Asks);
    }
    // Two of them are heard again: now a majority is. The others get the time that hosts have after a start to come
    // back as well, and then the votes follow.
    world.hosts[0].2 = true;
    world.hosts[1].2 = true;
    world.run(5000, 100);
    assert_eq!(world.opinions_of(4).last().unwrap().1, Opinion::Asks);
    world.run(1500, 100);
    assert_eq!(world.opinions_of(4).last().unwrap().1, Opinion::Dead);
}

#[test]
fn a_vote_that_is_not_in_the_log_is_withheld_while_the_observer_is_cut_off() {
    let mut world = World::new(8, &Policy::default());
    world.run(1000, 100);
    world.hosts[0].2 = false;
    world.run(1500, 100);
    assert_eq!(world.opinions_of(0).last().unwrap().1, Opinion::Dead);
    // Nobody takes it to the log: no leader. Then the observer hears nobody any more.
    for at in 1..8 {
        world.hosts[at].2 = false;
    }
    world.run(1000, 100);
    assert_eq!(world.opinions_of(0).last().unwrap().1, Opinion::Asks);
    let changes = world.opinions_of(0).len();
    world.run(5000, 100);
    assert_eq!(world.opinions_of(0).len(), changes, "it goes on asking");
    // One that the log shows stays: it was given in time.
    let id = world.hosts[0].0.clone();
    world.observer.watch(MS(world.now), &id, HostView { recorded: Opinion::Dead, ..view() });
    world.said.clear();
    world.run(2000, 100);
    assert_eq!(world.opinions_of(0), []);
}

#[test]
fn a_vote_that_is_not_in_the_log_is_withheld_when_the_observer_stood_still() {
    let mut world = World::new(8, &Policy::default());
    world.run(1000, 100);
    world.hosts[0].2 = false;
    world.run(1500, 100);
    assert_eq!(world.opinions_of(0).last().unwrap().1, Opinion::Dead);
    // Nobody took it to the log, and for ten seconds nobody was heard: the host may be back since.
    world.now += 10_000;
    world.observer.stalled(MS(world.now), Millis(10_000));
    world.wake();
    assert_eq!(world.opinions_of(0).last().unwrap().1, Opinion::Asks);
    // The others are heard again at once; it is given the time that hosts have to come back.
    world.run(5000, 100);
    assert_eq!(world.opinions_of(0).last().unwrap().1, Opinion::Asks);
    world.run(1500, 100);
    assert_eq!(world.opinions_of(0).last().unwrap().1, Opinion::Dead);
}

#[test]
fn a_stall_of_the_observer_itself_worsens_no_opinion() {
    let mut world = World::new(3, &Policy::fast());
    world.run(1000, 20);
    // 800 ms in which nothing is read; the kernel lost what came meanwhile.
    world.now += 800;
    world.observer.stalled(MS(world.now), Millis(800));
    world.wake();
    world.run(1000, 20);
    assert!(world.said.is_empty(), "{:?}", world.said);
}

#[test]
fn five_percent_loss_at_20_ms_beats_brings_no_vote_in_an_hour() {
    let mut world = World::new(3, &Policy::fast());
    let mut random = 12345_u64;
    for _ in 0..180_000 {
        world.now += 20;
        world.sequence += 1;
        for at in 0..3 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if (random >> 33) % 100 >= 5 {
                world.beat(at, 1);
            }
        }
        world.wake();
    }
    for at in 0..3 {
        assert!(world.opinions_of(at).iter().all(|(_, opinion)| *opinion != Opinion::Dead));
    }
}

#[test]
fn a_heartbeat_is_granted_only_by_a_caught_up_observer_and_in_the_current_epoch() {
    let mut observer = Observer::new(ReplicaId(1), 1, &Policy::default(), MS(0));
    let slot = observer.watch(MS(0), &host("h"), view());
    let beat = |sequence, epoch| Beat::bare(BootId(1), sequence, Epoch(epoch));
    assert!(!observer.heartbeat(MS(1), slot, &beat(1, 1)).ack().unwrap().granted, "not caught up");
    observer.caught_up(MS(2));
    assert!(observer.heartbeat(MS(3), slot, &beat(2, 1)).ack().unwrap().granted);
    assert!(!observer.heartbeat(MS(4), slot, &beat(3, 0)).ack().unwrap().granted, "an older epoch");
    assert_eq!(observer.heartbeat(MS(5), slot, &beat(3, 1)), Heard::Nothing, "a repetition");
    observer.watch(MS(6), &host("h"), HostView { grantable: false, epoch: Epoch(2), ..view() });
    let ack = observer.heartbeat(MS(7), slot, &beat(4, 2)).ack().unwrap();
    assert!(!ack.granted && ack.epoch == Epoch(2), "condemned");
}

#[test]
fn a_boot_that_was_not_let_in_is_heard_and_granted_nothing() {
    let mut observer = Observer::new(ReplicaId(1), 1, &Policy::default(), MS(0));
    observer.caught_up(MS(0));
    let slot = observer.watch(MS(0), &host("h"), view());
    let beat = |boot, sequence, epoch| Beat::bare(BootId(boot), sequence, Epoch(epoch));
    assert!(observer.heartbeat(MS(1), slot, &beat(1, 1, 1)).ack().unwrap().granted);
    assert!(
        !observer.heartbeat(MS(2), slot, &beat(2, 1, 1)).ack().unwrap().granted,
        "the log knows of boot 1 only"
    );
    observer.watch(MS(3), &host("h"), HostView { epoch: Epoch(3), boot: Some(BootId(2)), ..view() });
    assert!(
        observer.heartbeat(MS(4), slot, &beat(2, 2, 3)).ack().unwrap().granted,
        "let in under an epoch of its own"
    );
}

/// A process that is upgraded knows nothing of what the former one counted.
#[test]
fn a_new_process_of_an_agent_is_heard_at_once_in_the_same_boot() {
    let mut world = World::new(3, &Policy::default());
    world.run(60_000, 10);
    let first = Beat::sequence_at(MS(world.now));
    assert!(first > world.sequence, "it goes on above what was said");
    world.sequence = first;
    world.run(100, 10);
    let silent = world.observer.silent_for(world.hosts[0].1, MS(world.now));
    assert!(silent.is_some_and(|silent| silent <= Millis(10)), "{silent:?}");
    assert!(world.said.is_empty(), "{:?}", world.said);
}

fn condemn(world: &mut World, at: usize) {
    let id = world.hosts[at].0.clone();
    let condemned =
        HostView { epoch: Epoch(2), grantable: false, condemned: true, recorded: Opinion::Dead, ..view() };
    world.observer.watch(MS(world.now), &id, condemned);
}

fn votes(world: &World) -> Vec<u64> {
    world
        .said
        .iter()
        .filter(|(_, proposal)| matches!(proposal, Proposal::LeasesExpired(_)))
        .map(|(when, _)| *when)
        .collect()
}

#[test]
fn a_lease_is_voted_expired_only_after_lease_and_watchdog_with_drift() {
    let mut world = World::new(3, &Policy::default());
    world.run(20_000, 100);
    world.hosts[0].2 = false;
    world.run(2000, 100);
    condemn(&mut world, 0);
    world.run(12_000, 100);
    let first = *votes(&world).first().expect("a vote");
    let wait = Policy::default().lease.expiry_wait().0;
    assert!(first >= 20_000 + wait, "{first}");
    assert!(first <= 20_000 + wait + 500, "{first}");
}

#[test]
fn no_lease_is_voted_expired_while_the_majority_of_hosts_lost_theirs() {
    let mut world = World::new(3, &Policy::default());
    world.run(20_000, 100);
    world.hosts[0].2 = false;
    world.run(2000, 100);
    condemn(&mut world, 0);
    // The others are heard, but say that they have held a lease for 3 s only.
    world.held_from = 27_000;
    world.run(9_000, 100);
    assert!(votes(&world).is_empty(), "{:?}", votes(&world));
    // Once they have held it long enough, an isolated host has no good answer left to live on.
    world.run(10_000, 100);
    let first = *votes(&world).first().expect("a vote");
    let wait = Policy::default().lease.majority_wait().0;
    assert!(first >= 27_000 + wait && first <= 27_000 + wait + 500, "{first}");
}

#[test]
fn a_restarted_observer_waits_a_full_lease_before_it_votes() {
    let mut world = World::new(3, &Policy::default());
    world.hosts[0].2 = false;
    condemn(&mut world, 0);
    world.run(10_000, 100);
    assert!(votes(&world).is_empty());
}

#[test]
fn the_queue_stays_within_a_small_multiple_of_the_hosts() {
    let mut world = World::new(50, &Policy::fast());
    for round in 0..20 {
        world.hosts[round % 50].2 = round % 2 == 0;
        world.run(500, 20);
        assert!(world.observer.queued() <= 50 * 4 + 64, "{}", world.observer.queued());
    }
}

#[test]
fn a_host_that_is_let_in_again_is_not_accused_of_its_former_silence() {
    let mut world = World::new(3, &Policy::default());
    world.run(20_000, 100);
    world.hosts[0].2 = false;
    world.run(3000, 100);
    condemn(&mut world, 0);
    assert_eq!(world.observer.opinion(world.hosts[0].1), Some(Opinion::Dead));
    let at = world.now;
    world.observer.watch(MS(at), &host("h0"), HostView { epoch: Epoch(3), ..view() });
    world.said.clear();
    world.run(200, 100);
    assert!(world.said.is_empty(), "{:?}", world.said);
    // If it stays silent it is accused anew, as soon as anybody else.
    world.run(1100, 100);
    assert_eq!(world.observer.opinion(world.hosts[0].1), Some(Opinion::Dead));
}

#[test]
fn a_replica_that_knows_no_leader_grants_nothing() {
    let mut world = World::new(1, &Policy::default());
    world.sequence = 1;
    assert!(world.beat(0, 1).unwrap().granted);
    // Two replicas that were removed unheard could keep a host's lease alive for ever.
    world.observer.in_touch(false);
    world.sequence = 2;
    assert!(!world.beat(0, 1).unwrap().granted);
    world.observer.in_touch(true);
    world.sequence = 3;
    assert!(world.beat(0, 1).unwrap().granted);
}

#[test]
fn hosts_that_joined_do_not_outvote_those_by_which_a_silent_host_still_goes() {
    let mut world = World::new(7, &Policy::default());
    world.run(20_000, 100);
    // h0 and two neighbours are cut off together; they know of themselves only, and vouch for each other.
    for at in 0..3 {
        world.hosts[at].2 = false;
    }
    let electorates = alloc::vec![electorate(1, 0..3), electorate(2, 0..7)];
    world.observer.electorates(MS(world.now), electorates);
    world.run(2000, 100);
    condemn(&mut world, 0);
    world.run(60_000, 100);
    assert!(
        votes(&world).is_empty(),
        "four of seven is no majority of the former three: {:?}",
        votes(&world)
    );
    // One that had heard of the new electorate asks all seven.
    world.observer.electorates(MS(world.now), alloc::vec![electorate(1, 0..7)]);
    world.run(1000, 100);
    assert!(!votes(&world).is_empty());
}

#[test]
fn an_electorate_that_nobody_remembers_proves_nothing() {
    let mut world = World::new(3, &Policy::default());
    world.run(20_000, 100);
    world.hosts[0].2 = false;
    world.observer.electorates(MS(world.now), alloc::vec![electorate(5, 0..3)]);
    world.run(2000, 100);
    condemn(&mut world, 0);
    world.run(30_000, 100);
    assert!(votes(&world).is_empty());
}

#[test]
fn a_host_that_goes_by_a_longer_watchdog_is_waited_for_that_long() {
    let mut world = World::new(3, &Policy::default());
    world.watchdog = Millis(30_000);
    world.run(20_000, 100);
    world.hosts[0].2 = false;
    world.run(2000, 100);
    condemn(&mut world, 0);
    world.run(60_000, 100);
    let first = *votes(&world).first().expect("a vote");
    let wait = Policy::default().lease.or_longer(Millis(30_000), Millis::ZERO).expiry_wait().0;
    assert!(first >= 20_000 + wait && first <= 20_000 + wait + 500, "{first}");
}

#[test]
fn an_announced_silence_says_nothing_of_the_network() {
    let mut world = World::new(4, &Policy::default());
    world.run(1000, 100);
    // Two say that they will be silent, and are; one more is heard no more. Of those that ought to be heard that is
    // half.
    for at in 0..2 {
        let id = world.hosts[at].0.clone();
        let muted_for = Some(Millis(20_000));
        world.observer.watch(MS(world.now), &id, HostView { muted_for, ..view() });
        world.hosts[at].2 = false;
    }
    world.hosts[2].2 = false;
    world.run(1500, 100);
    assert_eq!(world.opinions_of(2).last().unwrap().1, Opinion::Dead);
    // The last one falls silent: all that is left is what was announced, and nobody is accused on the word of that.
    world.hosts[3].2 = false;
    world.run(5000, 100);
    assert!(world.observer.isolated());
    assert_eq!(world.opinions_of(3).last().unwrap().1, Opinion::Asks);
    // Nor is whoever announced it: their BMCs are asked, once the silence is as long as one that would be accused.
    for at in 0..2 {
        assert_eq!(world.opinions_of(at), [(2000, Opinion::Asks)], "h{at}");
    }
    // When the announced time is over they ought to be heard as well.
    for host in &mut world.hosts[2..] {
        host.2 = true;
    }
    world.run(20_000, 100);
    assert_eq!(world.opinions_of(0).last().unwrap().1, Opinion::Dead);
}

#[test]
fn whoever_is_silent_beyond_what_it_announced_is_asked_about_like_any_other() {
    let mut policy = Policy::default();
    (policy.detection.act_after, policy.detection.act_after_max) = (Millis(30_000), Millis(30_000));
    let mut world = World::new(2, &policy);
    world.run(1000, 100);
    let id = world.hosts[0].0.clone();
    world.observer.watch(MS(world.now), &id, HostView { muted_for: Some(Millis(2000)), ..view() });
    world.hosts[0].2 = false;
    world.run(3000, 100);
    assert_eq!(world.opinions_of(0), [(3300, Opinion::Asks)]);
}

#[test]
fn hosts_that_join_one_after_the_other_delay_no_accusation() {
    let mut world = World::new(1, &Policy::default());
    world.run(1000, 100);
    // Three more are let in at once, and heard one after the other: most are not, for a while.
    for number in 1..4 {
        let host = host(&alloc::format!("h{number}"));
        let slot = world.observer.watch(MS(world.now), &host, view());
        world.hosts.push((host, slot, false));
        world.stamps.push(None);
    }
    for number in 1..4 {
        world.hosts[number].2 = true;
        world.run(100, 100);
    }
    world.run(700, 100);
    let cut = world.now;
    world.hosts[0].2 = false;
    world.run(1500, 100);
    assert_eq!(world.opinions_of(0), [(cut + 300, Opinion::Asks), (cut + 1000, Opinion::Dead)]);
}

#[test]
fn hosts_that_come_back_last_from_an_outage_are_given_time() {
    let mut world = World::new(4, &Policy::default());
    world.run(1000, 100);
    for host in &mut world.hosts {
        host.2 = false;
    }
    world.run(3000, 100);
    for host in &mut world.hosts[1..] {
        host.2 = true;
    }
    world.said.clear();
    world.run(4900, 100);
    let opinions = world.opinions_of(0);
    assert!(!opinions.iter().any(|(_, opinion)| *opinion == Opinion::Dead), "{opinions:?}");
    world.run(2000, 100);
    assert!(world.opinions_of(0).iter().any(|(_, opinion)| *opinion == Opinion::Dead));
}

#[test]
fn a_replica_that_has_just_started_grants_its_first_leases_when_the_hosts_have_found_it() {
    let granted = |world: &mut World, at: usize, now: u64| {
        (world.now, world.sequence) = (now, world.sequence + 2);
        world.beat(at, 1).unwrap().granted
    };
    // All hosts come: each but the last is told to wait, for however long the others take.
    let mut world = World::new(4, &Policy::default());
    for (at, now) in [(0, 100), (1, 2000), (0, 2100), (2, 4400), (1, 4500)] {
        assert!(!granted(&mut world, at, now), "h{at} at {now} ms");
    }
    assert!(granted(&mut world, 3, 6800), "all have come");
    assert!((0..4).all(|at| granted(&mut world, at, 6900)));
    // A host is gone: it is waited for no longer than half a lease after the last that came.
    let mut world = World::new(4, &Policy::default());
    assert_eq!(Policy::default().lease.lease, Millis(5000));
    for (at, now) in [(0, 100), (1, 200), (2, 1000), (0, 3499)] {
        assert!(!granted(&mut world, at, now), "h{at} at {now} ms");
    }
    assert!(granted(&mut world, 0, 3500));
    assert!(granted(&mut world, 3, 3600) && granted(&mut world, 1, 3600));
    // Nobody waits for one that may hold no lease, nor for one that leaves.
    let mut world = World::new(3, &Policy::default());
    let (condemned, gone) = (world.hosts[1].0.clone(), world.hosts[2].0.clone());
    world.observer.watch(MS(1), &condemned, HostView { grantable: false, condemned: true, ..view() });
    world.observer.forget(&gone);
    assert!(granted(&mut world, 0, 100));
}
