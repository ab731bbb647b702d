//! A whole replica set in one thread for tests: simulated disks, a network that can be cut, and checkers that
//! stand outside.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::directories::Envelope;
use super::*;
use crate::disk::{Crash, MemoryDisk};

pub(super) struct Member {
    pub(super) replica: Option<Replica<MemoryDisk>>,
    pub(super) disk: MemoryDisk,
    pub(super) config: ReplicaConfig,
    /// The state machine: everything applied, by index. A snapshot is this list, encoded.
    pub(super) applied: BTreeMap<u64, Bytes>,
    pub(super) own: BTreeSet<ProposalId>,
    pub(super) dropped: BTreeSet<ProposalId>,
    pub(super) reads: BTreeMap<u64, u64>,
    pub(super) reads_failed: BTreeSet<u64>,
    pub(super) restores: usize,
    pub(super) memberships: Vec<Membership>,
    snapshot_wanted: bool,
    /// That a snapshot is wanted gets lost: whoever is asked is too busy.
    pub(super) ignores_snapshots: bool,
    pub(super) failure: Option<ConsensusError>,
}

impl Member {
    pub(super) fn role(&self) -> RoleChange {
        self.replica.as_ref().map(Replica::role).unwrap_or_default()
    }

    pub(super) fn has(&self, data: &str) -> bool {
        self.applied.values().any(|applied| applied == data.as_bytes())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, data) in &self.applied {
            bytes.extend_from_slice(&index.to_le_bytes());
            bytes.extend_from_slice(&(data.len() as u64).to_le_bytes());
            bytes.extend_from_slice(data);
        }
        bytes
    }

    fn decode(&mut self, bytes: &Bytes) {
        let mut rest = bytes.clone();
        self.applied.clear();
        let word = |rest: &mut Bytes| u64::from_le_bytes(rest.split_to(8).as_ref().try_into().unwrap());
        while !rest.is_empty() {
            let index = word(&mut rest);
            let length = usize::try_from(word(&mut rest)).unwrap();
            self.applied.insert(index, rest.split_to(length));
        }
    }
}

pub(super) struct Cluster {
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) network: VecDeque<(u64, PeerMessage)>,
    /// Ordered pairs that can't reach each other.
    pub(super) cut: BTreeSet<(u64, u64)>,
    pub(super) messages: u64,
    next_id: u64,
    /// What any replica applied at an index: all must agree.
    truth: BTreeMap<u64, (u64, Bytes)>,
    /// Who led which term: never two.
    leaders: BTreeMap<u64, u64>,
    incarnation: u64,
}

pub(super) fn config(id: u64) -> ReplicaConfig {
    let mut config = ReplicaConfig::new(9, id, vec![1, 2, 3]);
    config.join = id > 3;
    config.segment_bytes = 8192;
    config.snapshot_every_entries = 1_000_000;
    config.keep_entries = 3;
    config
}

pub(super) fn quiet() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

impl Cluster {
    pub(super) fn new(ids: &[u64]) -> Self {
        Self::with(ids, |_| {})
    }

    pub(super) fn with(ids: &[u64], adjust: impl Fn(&mut ReplicaConfig)) -> Self {
        let mut cluster = Self {
            members: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            messages: 0,
            next_id: 1,
            truth: BTreeMap::new(),
            leaders: BTreeMap::new(),
            incarnation: 1,
        };
        for id in ids {
            let mut config = config(*id);
            adjust(&mut config);
            cluster.add(config, MemoryDisk::new());
        }
        cluster
    }

    pub(super) fn add(&mut self, config: ReplicaConfig, disk: MemoryDisk) {
        let id = config.replica;
        let member = Member {
            replica: None,
            disk,
            config,
            applied: BTreeMap::new(),
            own: BTreeSet::new(),
            dropped: BTreeSet::new(),
            reads: BTreeMap::new(),
            reads_failed: BTreeSet::new(),
            restores: 0,
            memberships: Vec::new(),
            snapshot_wanted: false,
            ignores_snapshots: false,
            failure: None,
        };
        self.members.insert(id, member);
        self.start(id).unwrap();
    }

    /// Starts a replica on what its disk holds.
    pub(super) fn start(&mut self, id: u64) -> Result<(), ConsensusError> {
        self.incarnation += 1;
        let member = self.members.get_mut(&id).unwrap();
        member.config.incarnation = self.incarnation;
        member.config.directory = u128::from(self.incarnation);
        member.failure = None;
        let (replica, snapshot) = Replica::open(member.config.clone(), member.disk.clone(), &quiet())?;
        member.applied.clear();
        if let Some(snapshot) = snapshot {
            member.decode(&snapshot.data);
        }
        member.replica = Some(replica);
        self.work(id);
        Ok(())
    }

    /// The process ends and the power fails.
    pub(super) fn crash(&mut self, id: u64, crash: Crash) {
        let member = self.members.get_mut(&id).unwrap();
        member.replica = None;
        member.disk.crash(crash);
    }

    pub(super) fn restart(&mut self, id: u64, crash: Crash) {
        self.crash(id, crash);
        self.start(id).unwrap_or_else(|error| panic!("replica {id}: {error}"));
    }

    pub(super) fn replica(&mut self, id: u64) -> &mut Replica<MemoryDisk> {
        self.members.get_mut(&id).unwrap().replica.as_mut().expect("it runs")
    }

    pub(super) fn work(&mut self, id: u64) {
        loop {
            let Some(replica) = self.members.get_mut(&id).and_then(|member| member.replica.as_mut()) else {
                return;
            };
            let Some(output) = replica.ready() else { return };
            self.take(id, output);
            let persisted = self.replica(id).persist();
            match persisted {
                Ok(output) => self.take(id, output),
                Err(error) => return self.fail(id, error),
            }
            let member = self.members.get_mut(&id).unwrap();
            if std::mem::take(&mut member.snapshot_wanted)
                && !member.ignores_snapshots
                && let Some(index) = member.applied.keys().next_back().copied()
            {
                let data = member.encode();
                if let Err(error) = self.replica(id).save_snapshot(index, &data) {
                    return self.fail(id, error);
                }
            }
        }
    }

    fn fail(&mut self, id: u64, error: ConsensusError) {
        let member = self.members.get_mut(&id).unwrap();
        member.replica = None;
        member.failure = Some(error);
    }

    fn take(&mut self, id: u64, output: Output) {
        self.messages += output.messages.len() as u64;
        self.network.extend(output.messages.into_iter().map(|message| (id, message)));
        let member = self.members.get_mut(&id).unwrap();
        if let Some(snapshot) = output.restore {
            member.decode(&snapshot.data);
            member.restores += 1;
            for (index, data) in &member.applied {
                assert_eq!(self.truth.get(index).map(|(_, data)| data), Some(data), "snapshot of {id}");
            }
        }
        for entry in output.committed {
            let known = self.truth.entry(entry.index).or_insert_with(|| (entry.term, entry.data.clone()));
            assert_eq!(*known, (entry.term, entry.data.clone()), "replica {id} differs at {}", entry.index);
            let last = member.applied.keys().next_back().copied().unwrap_or(FOUNDING.0);
            assert_eq!(entry.index, last + 1, "no gaps at {id}");
            member.applied.insert(entry.index, entry.data);
            member.own.extend(entry.proposal);
        }
        member.reads.extend(output.reads);
        member.reads_failed.extend(output.reads_failed);
        member.dropped.extend(output.dropped);
        member.memberships.extend(output.membership);
        if let Some(role) = output.role.filter(|role| role.role == Role::Leader) {
            let leader = *self.leaders.entry(role.term).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", role.term);
        }
        member.snapshot_wanted |= output.snapshot_wanted.is_some();
    }

    /// Saves a snapshot of what a replica has applied.
    pub(super) fn save_snapshot(&mut self, id: u64) -> u64 {
        let member = &self.members[&id];
        let index = *member.applied.keys().next_back().unwrap();
        let data = member.encode();
        assert!(self.replica(id).save_snapshot(index, &data).unwrap());
        index
    }

    /// Delivers one message; false if none is left.
    pub(super) fn deliver_one(&mut self) -> bool {
        let Some((from, message)) = self.network.pop_front() else { return false };
        let to = message.to;
        let reachable = !self.cut.contains(&(from, to))
            && self.members.get(&to).is_some_and(|member| member.replica.is_some());
        if message.snapshot && self.members.get(&from).is_some_and(|member| member.replica.is_some()) {
            self.replica(from).report_snapshot(to, reachable);
            self.work(from);
        }
        if reachable {
            let received = self.replica(to).receive(from, &message.bytes);
            if let Err(error) = received {
                self.fail(to, error);
                return true;
            }
            self.work(to);
        }
        true
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..200_000 {
            if !self.deliver_one() {
                return;
            }
        }
        panic!("the network never comes to rest");
    }

    pub(super) fn tick_one(&mut self, id: u64) {
        if let Some(replica) = self.members.get_mut(&id).and_then(|member| member.replica.as_mut()) {
            replica.tick();
            if let Err(error) = replica.maintain() {
                self.fail(id, error);
            }
            self.work(id);
        }
    }

    pub(super) fn tick(&mut self, ticks: usize) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for _ in 0..ticks {
            for id in &ids {
                self.tick_one(*id);
            }
            self.settle();
        }
    }

    /// Cuts these off from all others, both ways.
    pub(super) fn isolate(&mut self, isolated: &[u64]) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for a in isolated {
            for b in ids.iter().filter(|id| !isolated.contains(id)) {
                self.cut.insert((*a, *b));
                self.cut.insert((*b, *a));
            }
        }
    }

    pub(super) fn leader(&mut self) -> u64 {
        for _ in 0..200 {
            // An isolated one may still believe that it leads; the highest term is right.
            let leaders = self.members.iter().filter(|(_, member)| member.role().role == Role::Leader);
            if let Some((id, _)) = leaders.max_by_key(|(_, member)| member.role().term) {
                return *id;
            }
            self.tick(1);
        }
        panic!("no leader");
    }

    pub(super) fn propose(&mut self, on: u64, data: &str) -> ProposalId {
        self.next_id += 1;
        let id = ProposalId(self.next_id);
        self.replica(on).propose([(id, Bytes::copy_from_slice(data.as_bytes()))]);
        self.work(on);
        id
    }

    /// Proposes until committed.
    pub(super) fn commit(&mut self, on: u64, data: &str) {
        for _ in 0..50 {
            let id = self.propose(on, data);
            for _ in 0..30 {
                self.settle();
                if self.members[&on].own.contains(&id) {
                    return;
                }
                if self.members[&on].dropped.contains(&id) {
                    break;
                }
                self.tick(1);
            }
            self.tick(5);
        }
        let replicas: Vec<_> = self
            .members
            .values()
            .map(|member| {
                (&member.replica, member.replica.as_ref().map(Replica::membership), &member.failure)
            })
            .collect();
        panic!("{data} never commits on {on}: {replicas:#?}");
    }

    pub(super) fn change(&mut self, on: u64, change: &MembershipChange) -> ProposalId {
        self.next_id += 1;
        let id = ProposalId(self.next_id);
        self.replica(on).change_membership(id, change);
        self.work(on);
        id
    }

    fn directory(&self, id: u64) -> Option<DirectoryId> {
        let replica = self.members.get(&id)?.replica.as_ref()?;
        Some(replica.raw.store().directory())
    }

    /// As its sender would send it.
    pub(super) fn envelop(&self, from: u64, message: &Message) -> Bytes {
        let from = self.directory(from).expect("it runs");
        let known = self.directory(message.to).map(|directory| (message.to, directory));
        let envelope = Envelope { from, known: known.into_iter().collect() };
        [envelope.encode(), message.write_to_bytes().unwrap()].concat().into()
    }

    /// Every one knows every other one, as if they had heard each other.
    pub(super) fn introduce(&mut self) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for (id, peer) in ids.iter().flat_map(|id| ids.iter().map(move |peer| (*id, *peer))) {
            if id != peer {
                let from = self.directory(peer).expect("it runs");
                self.replica(id).remember_directories(peer, Envelope { from, known: Vec::new() }).unwrap();
            }
        }
    }

    pub(super) fn other_than(&self, ids: &[u64]) -> u64 {
        self.members.keys().copied().find(|id| !ids.contains(id)).unwrap()
    }
}
