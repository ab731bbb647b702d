//! The replica set under crashes, torn writes, losses and partitions. The checkers in [`super::cluster`] look
//! after every step: no two leaders in a term, no two replicas that differ at an index. Here is checked that
//! nothing acknowledged is lost, and that it lives on afterwards.

use proptest::prelude::*;

use super::cluster::Cluster;
use super::*;
use crate::disk::Crash;

/// A script that touches everything that writes: votes, entries, conflicts, snapshots, a change of the replica set.
/// Replica `victim` crashes at the `crash_at`th write from the beginning of the script on. True if it came to that.
fn script_survives(victim: u64, crash_at: u64, crash: Crash) -> bool {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.members[&victim].disk.crash_after(crash_at);
    let mut crashed = false;
    // The first election needs them all.
    for _ in 0..200 {
        if crashed || cluster.members.values().any(|member| member.role().leader.is_some()) {
            break;
        }
        cluster.tick(1);
        if cluster.members[&victim].disk.is_down() {
            crashed = true;
            cluster.restart(victim, crash);
        }
    }
    let mut acknowledged = Vec::new();
    for step in 0..14 {
        let leader = cluster.leader();
        match step {
            4 => cluster.isolate(&[victim]),
            7 => cluster.cut.clear(),
            5 | 9 if cluster.members[&leader].applied.len() > 2 && leader != victim => {
                cluster.save_snapshot(leader);
            }
            _ => {}
        }
        if step == 11 {
            cluster.change(
                leader,
                &MembershipChange::remove(
                    [1, 2, 3].into_iter().find(|id| *id != leader && *id != victim).unwrap_or(leader),
                ),
            );
        }
        let data = format!("step {step} {}", "x".repeat(step * 150));
        if cluster.members[&leader].replica.is_some() {
            let id = cluster.propose(leader, &data);
            cluster.tick(2);
            if cluster.members[&leader].own.contains(&id) {
                acknowledged.push(data);
            }
        }
        if cluster.members[&victim].disk.is_down() {
            crashed = true;
            cluster.restart(victim, crash);
        }
    }
    cluster.cut.clear();
    if cluster.members[&victim].disk.crash_planned() {
        cluster.restart(victim, crash);
    }
    cluster.tick(40);
    let leader = cluster.leader();
    cluster.commit(leader, "the end");
    cluster.tick(5);
    let members = cluster.replica(leader).membership();
    for id in members.voters {
        assert!(cluster.members[&id].failure.is_none(), "{id}: {:?}", cluster.members[&id].failure);
        for data in acknowledged.iter().map(String::as_str).chain(["the end"]) {
            assert!(cluster.members[&id].has(data), "replica {id} lost {data:?}, crash at {crash_at}");
        }
    }
    crashed
}

#[test]
fn a_crash_at_every_single_write_loses_nothing_acknowledged() {
    for victim in [1, 2] {
        let mut points = 0;
        for crash_at in 0.. {
            let mut crashed = false;
            for crash in [Crash::Process, Crash::LoseAll, Crash::KeepAll, Crash::Torn { seed: crash_at }] {
                crashed |= script_survives(victim, crash_at, crash);
            }
            if !crashed {
                break;
            }
            points += 1;
        }
        assert!(points > 30, "{points} crash points");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Tick { replica: u64, ticks: usize },
    Deliver { messages: usize },
    Lose,
    Duplicate,
    Delay,
    Propose { replica: u64 },
    Read { replica: u64 },
    Crash { replica: u64, seed: u64 },
    CrashAtWrite { replica: u64, write: u64, seed: u64 },
    Isolate { replica: u64 },
    Heal,
    Snapshot { replica: u64 },
    Transfer { replica: u64 },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let replica = || 1..=3_u64;
    let event = prop_oneof![
        8 => (replica(), 1..15_usize).prop_map(|(replica, ticks)| Event::Tick { replica, ticks }),
        12 => (1..12_usize).prop_map(|messages| Event::Deliver { messages }),
        2 => Just(Event::Lose),
        1 => Just(Event::Duplicate),
        2 => Just(Event::Delay),
        5 => replica().prop_map(|replica| Event::Propose { replica }),
        1 => replica().prop_map(|replica| Event::Read { replica }),
        1 => (replica(), any::<u64>()).prop_map(|(replica, seed)| Event::Crash { replica, seed }),
        1 => (replica(), 0..6_u64, any::<u64>())
            .prop_map(|(replica, write, seed)| Event::CrashAtWrite { replica, write, seed }),
        1 => replica().prop_map(|replica| Event::Isolate { replica }),
        2 => Just(Event::Heal),
        1 => replica().prop_map(|replica| Event::Snapshot { replica }),
        1 => replica().prop_map(|replica| Event::Transfer { replica }),
    ];
    prop::collection::vec(event, 20..250)
}

struct World {
    cluster: Cluster,
    crash_seeds: [u64; 4],
    proposed: u64,
    /// Acknowledged to the proposer, which may have crashed since.
    acknowledged: Vec<String>,
    names: BTreeMap<(u64, ProposalId), String>,
}

impl World {
    fn step(&mut self, event: &Event) {
        let cluster = &mut self.cluster;
        match *event {
            Event::Tick { replica, ticks } => (0..ticks).for_each(|_| cluster.tick_one(replica)),
            Event::Deliver { messages } => {
                for _ in 0..messages {
                    cluster.deliver_one();
                }
            }
            Event::Lose => {
                if let Some((from, message)) = cluster.network.pop_front()
                    && message.snapshot
                    && cluster.members[&from].replica.is_some()
                {
                    cluster.replica(from).report_snapshot(message.to, false);
                    cluster.work(from);
                }
            }
            Event::Duplicate => {
                let copy = cluster.network.front().filter(|(_, message)| !message.snapshot).cloned();
                cluster.network.extend(copy);
            }
            Event::Delay => {
                if let Some(message) = cluster.network.pop_front() {
                    cluster.network.push_back(message);
                }
            }
            Event::Propose { replica } if cluster.members[&replica].replica.is_some() => {
                self.proposed += 1;
                let name = format!(
                    "proposal {} {}",
                    self.proposed,
                    "y".repeat(usize::try_from(self.proposed * 37 % 600).unwrap())
                );
                let id = cluster.propose(replica, &name);
                self.names.insert((replica, id), name);
            }
            Event::Read { replica } if cluster.members[&replica].replica.is_some() => {
                cluster.replica(replica).read_index(1);
                cluster.work(replica);
            }
            Event::Crash { replica, seed } => cluster.restart(replica, Crash::Torn { seed }),
            Event::CrashAtWrite { replica, write, seed } => {
                self.crash_seeds[usize::try_from(replica).unwrap()] = seed;
                cluster.members[&replica].disk.crash_after(write);
            }
            Event::Isolate { replica } => cluster.isolate(&[replica]),
            Event::Heal => cluster.cut.clear(),
            Event::Snapshot { replica } => {
                let member = &cluster.members[&replica];
                let snapshot =
                    member.replica.as_ref().map_or(0, |replica| replica.raw.store().snapshot_index());
                let newest = member.applied.keys().next_back().copied();
                if newest.is_some_and(|newest| newest > snapshot)
                    && !member.disk.is_down()
                    && member.replica.is_some()
                    && !member.disk.crash_planned()
                {
                    cluster.save_snapshot(replica);
                }
            }
            Event::Transfer { replica } if cluster.members[&replica].replica.is_some() => {
                cluster.replica(replica).transfer_leader(replica % 3 + 1);
                cluster.work(replica);
            }
            Event::Propose { .. } | Event::Read { .. } | Event::Transfer { .. } => {}
        }
        self.note_acknowledged();
        for replica in 1..=3 {
            if self.cluster.members[&replica].disk.is_down() {
                let seed = self.crash_seeds[usize::try_from(replica).unwrap()];
                self.cluster.restart(replica, Crash::Torn { seed });
            }
        }
    }

    fn note_acknowledged(&mut self) {
        let members = &self.cluster.members;
        let done = self.names.extract_if(.., |(replica, id), _| members[replica].own.contains(id));
        self.acknowledged.extend(done.map(|(_, name)| name));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_acknowledged_is_lost_and_it_lives_on(events in events(), seed: u64) {
        let cluster = Cluster::with(&[1, 2, 3], |config| {
            config.seed = seed;
            config.snapshot_every_entries = 30;
        });
        let (acknowledged, names) = Default::default();
        let mut world = World { cluster, crash_seeds: [seed; 4], proposed: 0, acknowledged, names };
        for event in &events {
            world.step(event);
        }
        let World { mut cluster, acknowledged, .. } = world;
        cluster.cut.clear();
        for id in 1..=3 {
            if cluster.members[&id].replica.is_none() || cluster.members[&id].disk.crash_planned() {
                cluster.restart(id, Crash::Torn { seed });
            }
        }
        cluster.tick(60);
        let leader = cluster.leader();
        cluster.commit(leader, "the end");
        cluster.tick(5);
        for (id, member) in &cluster.members {
            prop_assert!(member.failure.is_none(), "{}: {:?}", id, member.failure);
            for name in acknowledged.iter().map(String::as_str).chain(["the end"]) {
                prop_assert!(member.has(name), "{} lost {}", id, name);
            }
        }
    }
}
