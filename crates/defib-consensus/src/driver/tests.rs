use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::replica::{MembershipChange, Role};
use crate::test_tls::certificates;

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

struct Member {
    driver: Driver,
    outputs: Receiver<DriverOutput>,
    /// What was applied: (index, data).
    applied: Vec<(u64, Vec<u8>)>,
    committed_own: Vec<ProposalId>,
    dropped: Vec<ProposalId>,
    reads: Vec<(u64, u64)>,
    restored: Option<SnapshotBytes>,
    membership: Membership,
    answers_snapshots: bool,
}

impl Member {
    /// Applies what came; true if something did.
    fn pump(&mut self, wait: Duration) -> bool {
        let output = match self.outputs.recv_timeout(wait) {
            Ok(output) => output,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        };
        match output {
            DriverOutput::Committed(entries) => {
                for entry in entries {
                    let last = self.applied.last().map(|(index, _)| *index);
                    assert!(last.is_none_or(|last| entry.index == last + 1), "{last:?} then {}", entry.index);
                    self.applied.push((entry.index, entry.data.to_vec()));
                    self.committed_own.extend(entry.proposal);
                }
            }
            DriverOutput::Dropped(ids) => self.dropped.extend(ids),
            DriverOutput::ReadReady { context, index } => {
                assert!(self.applied.last().is_some_and(|(applied, _)| *applied >= index));
                self.reads.push((context, index));
            }
            DriverOutput::Restore(snapshot) => {
                self.applied = vec![(snapshot.index, snapshot.data.to_vec())];
                self.restored = Some(snapshot);
            }
            DriverOutput::SnapshotWanted { .. } if self.answers_snapshots => {
                let index = self.applied.last().expect("asked after something was applied").0;
                let _asked_again =
                    self.driver.handle().snapshot_ready(index, Bytes::from(format!("state at {index}")));
            }
            DriverOutput::Membership(membership) => self.membership = membership,
            DriverOutput::Fatal(error) => panic!("fatal: {error}"),
            DriverOutput::SnapshotWanted { .. } | DriverOutput::ReadFailed { .. } | DriverOutput::Role(_) => {
            }
        }
        true
    }
}

struct Cluster {
    directories: BTreeMap<u64, TempDir>,
    tls: BTreeMap<u64, PeerTls>,
    addresses: BTreeMap<u64, PeerAddress>,
    members: BTreeMap<u64, Member>,
    next_id: u64,
    adjust: fn(&mut ReplicaConfig),
}

impl Cluster {
    fn new(replicas: &[u64], adjust: fn(&mut ReplicaConfig)) -> Self {
        let mut cluster = Self {
            directories: replicas.iter().map(|id| (*id, tempfile::tempdir().unwrap())).collect(),
            tls: certificates(replicas),
            addresses: BTreeMap::new(),
            members: BTreeMap::new(),
            next_id: 1,
            adjust,
        };
        let mut listeners: VecDeque<TcpListener> =
            replicas.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        for (id, listener) in replicas.iter().zip(&listeners) {
            cluster.set_address(*id, listener);
        }
        for id in replicas {
            cluster.start(*id, replicas[..3].to_vec(), listeners.pop_front().unwrap());
        }
        cluster
    }

    fn set_address(&mut self, id: u64, listener: &TcpListener) {
        let address = listener.local_addr().unwrap().to_string();
        self.addresses.insert(id, PeerAddress { address, server_name: format!("replica-{id}") });
    }

    fn start(&mut self, id: u64, voters: Vec<u64>, listener: TcpListener) {
        let mut replica = ReplicaConfig::new(0xdef1b, id, voters.clone());
        replica.join = !voters.contains(&id);
        replica.segment_bytes = 64 << 10;
        // Slow enough that a busy machine doesn't elect all the time.
        replica.election_ticks = 20;
        (self.adjust)(&mut replica);
        let config = DriverConfig {
            replica,
            data_dir: self.directories[&id].path().join("raft"),
            listener,
            peers: self.addresses.clone(),
            tls: self.tls[&id].clone(),
            tick: Duration::from_millis(10),
        };
        let (sender, outputs) = sync_channel(100_000);
        let driver = Driver::start(config, Box::new(move |output| sender.send(output).is_ok())).unwrap();
        let member = Member {
            driver,
            outputs,
            applied: Vec::new(),
            committed_own: Vec::new(),
            dropped: Vec::new(),
            reads: Vec::new(),
            restored: None,
            membership: Membership::default(),
            answers_snapshots: true,
        };
        self.members.insert(id, member);
    }

    fn kill(&mut self, id: u64) {
        self.members.remove(&id);
    }

    fn restart(&mut self, id: u64) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        self.set_address(id, &listener);
        for member in self.members.values() {
            member.driver.handle().set_peers(self.addresses.clone()).unwrap();
        }
        self.start(id, vec![1, 2, 3], listener);
    }

    #[expect(clippy::disallowed_methods, reason = "a real cluster needs a real deadline")]
    fn wait_for<T>(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for member in self.members.values_mut() {
                while member.pump(Duration::from_millis(1)) {}
            }
            if let Some(value) = condition(self) {
                return value;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}: {:?}", self.statuses());
        }
    }

    fn statuses(&self) -> Vec<(u64, Status)> {
        self.members.iter().map(|(id, member)| (*id, member.driver.handle().status())).collect()
    }

    fn leader(&mut self) -> u64 {
        self.wait_for("a leader that all agree on", |cluster| {
            let statuses = cluster.statuses();
            let (leader, status) = statuses.iter().find(|(_, status)| status.role.role == Role::Leader)?;
            let agreed = statuses
                .iter()
                .all(|(_, other)| other.role.leader == Some(*leader) && other.role.term == status.role.term);
            agreed.then_some(*leader)
        })
    }

    /// Proposes until it is committed, as the controller does.
    fn commit(&mut self, on: u64, data: &str) {
        let mut id = None;
        self.wait_for("a commit", |cluster| {
            let member = cluster.members.get_mut(&on).unwrap();
            match id {
                Some(id) if member.committed_own.contains(&id) => return Some(()),
                Some(given) if member.dropped.contains(&given) => id = None,
                Some(_) => {}
                None => {
                    cluster.next_id += 1;
                    let next = ProposalId(cluster.next_id);
                    member.driver.handle().propose(next, Bytes::copy_from_slice(data.as_bytes())).unwrap();
                    id = Some(next);
                }
            }
            None
        });
    }

    fn wait_all_applied(&mut self, data: &str) {
        self.wait_for("all replicas to apply", |cluster| {
            let mut everywhere = cluster.members.values().flat_map(|member| &member.applied);
            let index = everywhere.find(|(_, applied)| applied == data.as_bytes())?.0;
            // A snapshot that is young enough has it, and then it does not come by itself.
            let applied = |member: &Member| {
                member.applied.iter().any(|(_, applied)| applied == data.as_bytes())
                    || member.restored.as_ref().is_some_and(|restored| restored.index >= index)
            };
            cluster.members.values().all(applied).then_some(())
        });
    }
}

#[test]
fn three_replicas_commit_survive_the_leader_and_take_it_back() {
    let mut cluster = Cluster::new(&[1, 2, 3], |_| {});
    let leader = cluster.leader();
    cluster.commit(leader, "first");
    let follower = [1, 2, 3].into_iter().find(|id| *id != leader).unwrap();
    cluster.commit(follower, "through a follower");
    cluster.wait_all_applied("through a follower");

    cluster.kill(leader);
    cluster.commit(follower, "after the leader's death");
    cluster.restart(leader);
    cluster.commit(leader, "from the one that came back");
    cluster.wait_all_applied("from the one that came back");

    let states: Vec<_> = cluster.members.values().map(|member| member.applied.clone()).collect();
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "{states:?}");
    assert!(states[0].iter().any(|(_, data)| data == b"first"));
}

#[test]
fn the_leader_knows_how_far_each_replica_is() {
    let mut cluster = Cluster::new(&[1, 2, 3], |_| {});
    let leader = cluster.leader();
    cluster.commit(leader, "first");
    let level = |cluster: &Cluster, ids: &[u64]| {
        let handle = cluster.members[&leader].driver.handle();
        let (matched, last) = (handle.matched(), handle.status().last);
        ids.iter().all(|id| matched.get(id) == Some(&last)).then_some(matched)
    };
    let before = cluster.wait_for("all to be level", |cluster| level(cluster, &[1, 2, 3]));
    let follower = [1, 2, 3].into_iter().find(|id| *id != leader).unwrap();
    assert!(cluster.members[&follower].driver.handle().matched().is_empty(), "a follower can't know");
    cluster.kill(follower);
    cluster.commit(leader, "second");
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != follower).collect();
    let after = cluster.wait_for("the living to be level", |cluster| level(cluster, &others));
    assert_eq!(after[&follower], before[&follower], "the dead one stays where it was");
    assert!(after[&leader] > before[&leader]);
    // It also counts whom it hears: in the time of three answers of the others, not one of the dead.
    let heard = |cluster: &Cluster| cluster.members[&leader].driver.handle().heard();
    let mut before = heard(&cluster);
    cluster.wait_for("the dead one to be missed", |cluster| {
        let now = heard(cluster);
        others
            .iter()
            .filter(|id| **id != leader)
            .all(|id| now[id] >= before[id] + 3)
            .then(|| {
                let still = now[&follower] == before[&follower];
                before = now;
                still
            })?
            .then_some(())
    });
}

#[test]
fn reads_are_confirmed_on_leader_and_follower() {
    let mut cluster = Cluster::new(&[1, 2, 3], |_| {});
    let leader = cluster.leader();
    cluster.commit(leader, "value");
    for id in [1, 2, 3] {
        cluster.members[&id].driver.handle().read_index(id * 10).unwrap();
    }
    cluster.wait_for("three reads", |cluster| {
        cluster
            .members
            .iter()
            .all(|(id, member)| member.reads.iter().any(|(read, _)| *read == id * 10))
            .then_some(())
    });
    for member in cluster.members.values() {
        assert!(member.applied.iter().any(|(_, data)| data == b"value"), "the read came after the value");
    }
}

#[test]
fn a_replica_that_lags_too_far_gets_a_snapshot() {
    let mut cluster = Cluster::new(&[1, 2, 3], |config| {
        config.snapshot_every_entries = 20;
        config.keep_entries = 5;
    });
    let leader = cluster.leader();
    let laggard = [1, 2, 3].into_iter().find(|id| *id != leader).unwrap();
    cluster.commit(leader, "before");
    cluster.kill(laggard);
    for number in 0..60 {
        cluster.commit(leader, &format!("entry {number}"));
    }
    cluster.restart(laggard);
    cluster.commit(leader, "after");
    cluster.wait_all_applied("after");
    let restored = cluster.members[&laggard].restored.clone().expect("it was too far behind for the log");
    assert_eq!(restored.data, format!("state at {}", restored.index));
    // And the snapshot is there after its own restart.
    cluster.kill(laggard);
    cluster.restart(laggard);
    cluster.commit(leader, "again");
    cluster.wait_all_applied("again");
    assert!(cluster.members[&laggard].restored.as_ref().unwrap().index >= restored.index);
}

#[test]
fn a_new_replica_takes_the_place_of_a_lost_one() {
    let mut cluster = Cluster::new(&[1, 2, 3, 4], |_| {});
    let leader = cluster.leader_of(&[1, 2, 3]);
    cluster.commit(leader, "old");
    let lost = [1, 2, 3].into_iter().find(|id| *id != leader).unwrap();
    cluster.kill(lost);
    cluster.next_id += 1;
    let id = ProposalId(cluster.next_id);
    cluster.members[&leader]
        .driver
        .handle()
        .change_membership(id, MembershipChange::replace(lost, 4))
        .unwrap();
    cluster.wait_for("the new set", |cluster| {
        let expected: std::collections::BTreeSet<u64> =
            [1, 2, 3, 4].into_iter().filter(|id| *id != lost).collect();
        let done =
            |member: &Member| member.membership.voters == expected && member.membership.outgoing.is_empty();
        cluster.members.values().all(done).then_some(())
    });
    cluster.commit(4, "new");
    cluster.wait_all_applied("new");
    assert!(cluster.members[&4].restored.is_some(), "the new one begins with the leader's state");
}

impl Cluster {
    fn leader_of(&mut self, ids: &[u64]) -> u64 {
        self.wait_for("a leader", |cluster| {
            ids.iter()
                .copied()
                .find(|id| cluster.members[id].driver.handle().status().role.role == Role::Leader)
        })
    }
}

#[test]
fn the_directory_of_a_running_replica_is_refused() {
    let cluster = Cluster::new(&[1, 2, 3], |_| {});
    let error = FileDisk::open(cluster.directories[&1].path().join("raft")).unwrap_err();
    assert!(matches!(error, ConsensusError::InUse { .. }), "{error}");
}
