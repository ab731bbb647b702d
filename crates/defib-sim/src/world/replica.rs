//! A replica's process: how it starts, what it holds in memory, how it ends.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use defib_consensus::{
    ConsensusError,
    disk::{Crash, MemoryDisk},
    replica::{Membership, Output, Replica as Consensus, ReplicaConfig, RoleChange},
};
use defib_engine::{controller::Controller, ledger::Ledger, observer::Observer};
use defib_model::{ClusterVersion, Policy, ReplicaId};
use defib_wire::v1;

use super::{Act, End, World, log::RaftInput, observer::ObserverSession, probes::Asked};
use crate::clock::{Clock, MS};

/// How a replica stands, as the world knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its process runs.
    Up,
    /// It does not; it may be started again.
    Down,
    /// Its copy can't be trusted any more, or it was replaced: never started again.
    Gone,
}

/// A replica, running or not.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: u64,
    pub(crate) fate: Fate,
    /// Grows with every start; what belongs to an earlier life is void.
    pub(crate) life: u32,
    /// Reasons not to be started.
    pub(crate) held_down: u32,
    pub(crate) paused_until: u64,
    pub(crate) paused_at: u64,
    pub(crate) deferred: Vec<Act>,
    pub(crate) ppm: i64,
    pub(crate) clock: Clock,
    pub(crate) wall_error_ms: i64,
    pub(crate) disk: MemoryDisk,
    pub(crate) slow_sync_ms: u64,
    pub(crate) thread_lag_ms: u64,
    pub(crate) join: bool,
    /// The number of its last session, in a file beside the log.
    pub(crate) session: Option<u64>,
    /// Whether the process that dies next loses what it had not synced.
    pub(crate) power_fails: bool,
    pub(crate) run: Option<Box<Run>>,
}

/// What a running process holds in memory.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) raft: Consensus<MemoryDisk>,
    pub(crate) inbox: VecDeque<RaftInput>,
    /// The thread of the log waits for its disk, or is at work.
    pub(crate) busy: bool,
    pub(crate) pending: Option<Output>,
    pub(crate) announcing: bool,
    pub(crate) next_tick: u64,
    pub(crate) controller: Controller,
    pub(crate) observer: Observer,
    pub(crate) caught_up: bool,
    pub(crate) role: RoleChange,
    pub(crate) membership: Membership,
    pub(crate) applied: u64,
    pub(crate) next_proposal: u64,
    /// Operators' proposals: what they wait for.
    pub(crate) waiting: BTreeMap<u64, usize>,
    pub(crate) next_read: u64,
    /// Questions about silent hosts that are out, by their numbers.
    pub(crate) probes: BTreeMap<u64, Asked>,
    pub(crate) next_probe: u64,
    /// Reads that writes to a BMC wait for: task, method, and when it was asked.
    pub(crate) reads: BTreeMap<u64, (u64, usize, u64)>,
    pub(crate) core_armed: u64,
    /// Steps since the checker looked at all reports.
    pub(crate) looked: u32,
    pub(crate) observer_armed: u64,
    pub(crate) beats: BTreeMap<u64, ObserverSession>,
    /// Agents' sessions: host to (number, connection).
    pub(crate) agents: BTreeMap<usize, (u64, usize)>,
    /// The newest session of each host, open or not: under its key heartbeats count.
    pub(crate) heard_under: BTreeMap<usize, u64>,
    pub(crate) policy_news: v1::AgentPolicy,
    pub(crate) electorate_news: v1::Electorate,
    pub(crate) leads: bool,
    pub(crate) leads_term: u64,
    pub(crate) last_to_core: u64,
    /// The loop is at work on a message.
    pub(crate) core_busy: bool,
    /// Messages that wait for it.
    pub(crate) to_core: u32,
    pub(crate) last_to_observer: u64,
}

impl Replica {
    pub(crate) fn run(&mut self) -> Option<&mut Run> {
        self.run.as_deref_mut()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.fate == Fate::Up
    }

    pub(crate) fn ledger(&self) -> Option<&Ledger> {
        self.run.as_ref().map(|run| run.controller.ledger())
    }

    pub(crate) fn leads(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.controller.leads())
    }
}

/// How long a supervisor waits before it starts a process again.
const RESTART_AFTER: u64 = 300 * MS;

impl World {
    /// Adds a replica that will start at once.
    pub(crate) fn add_replica(&mut self, id: u64, join: bool) {
        let number = self.replicas.len();
        let ppm = self.plan.replica_ppm.get(number).copied().unwrap_or_default();
        let disk = MemoryDisk::new();
        if crate::mutants::ack_before_sync() {
            disk.lose_syncs();
        }
        self.replicas.push(Replica {
            id,
            fate: Fate::Down,
            life: 0,
            held_down: 0,
            paused_until: 0,
            paused_at: 0,
            deferred: Vec::new(),
            ppm,
            clock: Clock::default(),
            wall_error_ms: 0,
            disk,
            slow_sync_ms: 0,
            thread_lag_ms: 0,
            join,
            session: None,
            power_fails: false,
            run: None,
        });
        self.later(0, Act::StartReplica { replica: number, life: 0 });
    }

    pub(crate) fn lives(&self, replica: usize, life: u32) -> bool {
        let replica = &self.replicas[replica];
        replica.fate == Fate::Up && replica.life == life
    }

    /// Which of the world's replicas has an id.
    pub(crate) fn replica_number(&self, id: u64) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.id == id)
    }

    /// A supervisor starts the process.
    pub(crate) fn start_replica(&mut self, number: usize, life: u32) {
        let replica = &self.replicas[number];
        if replica.fate != Fate::Down || replica.life != life || replica.held_down > 0 {
            return;
        }
        let ids: Vec<u64> = (1..=self.plan.replicas as u64).collect();
        let mut config = ReplicaConfig::new(self.cluster, replica.id, ids);
        config.join = replica.join;
        config.incarnation = u64::from(replica.life) + 1;
        config.directory = u128::from(replica.id) << 64 | u128::from(config.incarnation);
        config.seed = self.plan.seed ^ replica.id;
        config.election_ticks = self.plan.log.election_ticks;
        config.segment_bytes = self.plan.log.segment_bytes;
        config.snapshot_every_entries = self.plan.log.snapshot_every;
        config.keep_entries = self.plan.log.keep;
        let opened = Consensus::open(config, replica.disk.clone(), &self.discard);
        let (raft, snapshot) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.replicas[number].fate = Fate::Up;
                return self.replica_fails(number, &error);
            }
        };
        let session = self.session_number(number);
        // Upgraded while it was down.
        let older = life == 0 && self.plan.older_releases.contains(&self.replicas[number].id);
        let release = if older { ClusterVersion::OLDEST } else { ClusterVersion::NEWEST };
        let (now, me) = (self.now, ReplicaId(self.replicas[number].id));
        let replica = &mut self.replicas[number];
        replica.life += 1;
        replica.fate = Fate::Up;
        replica.paused_until = 0;
        replica.deferred.clear();
        // A process counts from its own start.
        replica.clock = Clock::showing(0, now, replica.ppm);
        let voters = (1..=self.plan.replicas as u64).map(ReplicaId).collect();
        let membership = raft.membership();
        replica.run = Some(Box::new(Run {
            raft,
            inbox: VecDeque::new(),
            busy: true,
            pending: None,
            announcing: false,
            next_tick: 0,
            controller: Controller::new(me, session, Ledger::new(voters)).supporting(release),
            observer: Observer::new(me, session, &Policy::default(), replica.clock.local(now)),
            caught_up: false,
            role: RoleChange::default(),
            membership,
            applied: 0,
            next_proposal: 0,
            waiting: BTreeMap::new(),
            next_read: 0,
            probes: BTreeMap::new(),
            next_probe: 0,
            reads: BTreeMap::new(),
            core_armed: u64::MAX,
            looked: 0,
            observer_armed: u64::MAX,
            beats: BTreeMap::new(),
            agents: BTreeMap::new(),
            heard_under: BTreeMap::new(),
            policy_news: v1::AgentPolicy::default(),
            electorate_news: v1::Electorate::default(),
            leads: false,
            leads_term: 0,
            last_to_core: 0,
            core_busy: false,
            to_core: 0,
            last_to_observer: 0,
        }));
        let id = self.replicas[number].id;
        self.checks.links_changed(now);
        self.checks.reached_a_majority(now, id);
        self.checks.replica_began(id);
        self.counts.replica_starts += 1;
        self.who_reaches_a_majority();
        self.say(|| format!("replica r{id} starts"));
        if let Some(snapshot) = snapshot {
            self.restore(number, &snapshot);
        }
        self.begin_log(number);
    }

    /// One more than the last; where none is known, a guess from the wall clock.
    fn session_number(&mut self, number: usize) -> u64 {
        let guess = self.replica_wall(number).0 << 16;
        let session = self.replicas[number].session.map_or(guess, |last| last + 1);
        self.replicas[number].session = Some(session);
        session
    }

    pub(crate) fn replica_wall(&self, number: usize) -> defib_model::UnixMillis {
        let wall = self.wall().0 as i64 + self.replicas[number].wall_error_ms;
        defib_model::UnixMillis(wall.max(0) as u64)
    }

    /// The process ends. With `power` what it had not synced is lost, or torn.
    pub(crate) fn kill_replica(&mut self, number: usize, power: bool) {
        let replica = &mut self.replicas[number];
        if replica.fate != Fate::Up {
            return;
        }
        self.checks.links_changed(self.now);
        let replica = &mut self.replicas[number];
        replica.fate = Fate::Down;
        replica.run = None;
        replica.deferred.clear();
        replica.paused_until = 0;
        if power {
            let how = match self.chance.disk.below(4) {
                0 => Crash::LoseAll,
                1 => Crash::KeepAll,
                _ => Crash::Torn { seed: self.chance.disk.word() },
            };
            self.replicas[number].disk.crash(how);
        } else {
            self.replicas[number].disk.crash(Crash::Process);
        }
        self.replicas[number].power_fails = false;
        self.connections_break_at(End::Replica(number), power);
        let (life, span) = (self.replicas[number].life, RESTART_AFTER + self.chance.threads.below(500) * MS);
        self.later(span, Act::StartReplica { replica: number, life });
    }

    /// Its log can't go on.
    pub(crate) fn replica_fails(&mut self, number: usize, error: &ConsensusError) {
        let id = self.replicas[number].id;
        let planned = self.replicas[number].disk.is_down();
        self.say(|| {
            if planned {
                format!("replica r{id} dies at a write")
            } else {
                format!("replica r{id} ends: {error}")
            }
        });
        let power = planned && self.replicas[number].power_fails;
        self.kill_replica(number, power);
        if error.forgot() {
            self.checks.copy_refused(self.now, id, error);
            self.replicas[number].fate = Fate::Gone;
            if let ConsensusError::ForgottenDirectory { .. } = error {
                self.counts.copies_refused += 1;
                self.replace(number);
            }
        }
    }

    /// It is held to be lost: the others go on without it, under a new one.
    pub(crate) fn retire_replica(&mut self, number: usize) {
        self.kill_replica(number, false);
        self.replicas[number].fate = Fate::Gone;
    }

    /// What was committed, as far as any running replica has applied it.
    pub(crate) fn newest(&self) -> Option<&Ledger> {
        self.replicas.iter().filter_map(Replica::ledger).max_by_key(|ledger| ledger.applied())
    }

    /// The replica that leads and acts, in the highest term.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leading = self.replicas.iter().enumerate().filter(|(_, replica)| replica.leads());
        leading
            .max_by_key(|(_, replica)| replica.run.as_ref().map_or(0, |run| run.role.term))
            .map(|(number, _)| number)
    }

    /// The same, if it does not stand still: who does takes nobody's wishes.
    pub(crate) fn awake_leader(&self) -> Option<usize> {
        self.leader().filter(|leader| self.replicas[*leader].paused_until <= self.now)
    }

    /// Bytes of a random secret.
    pub(crate) fn secret(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.chance.secrets.word().to_le_bytes());
        }
        bytes
    }

    /// A proposal's bytes on their way to the log.
    pub(crate) fn hand_to_log(&mut self, number: usize, id: u64, bytes: Bytes) {
        self.raft_input(number, RaftInput::Propose(id, bytes));
    }
}
