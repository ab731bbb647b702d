//! One member of the replica set as a pure value: no clock, no thread, no socket; its only I/O is the
//! [`Disk`] that it is given.
//!
//! The caller feeds inputs ([`Replica::tick`], [`Replica::receive`], [`Replica::propose`], …) and then, until
//! it answers `None`, calls [`Replica::ready`], does what the [`Output`] says, calls [`Replica::persist`],
//! and does what that says. Between `ready` and `persist` no input may be given.

mod directories;
mod elections;
mod inbound;
pub(crate) mod membership;
mod outputs;
mod reads;

#[cfg(test)]
mod cluster;
#[cfg(test)]
mod directory_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{Config, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};

use crate::ConsensusError;
use crate::disk::{Disk, remove_if_there};
use crate::identity::DirectoryId;
use crate::known_peers::KnownPeers;
use crate::log::{Batch, Owner, Recovery};
use crate::snapshot::{self, SnapshotMeta};
use crate::store::{Begin, FOUNDING, Store};

use elections::Elections;
pub use membership::{Membership, MembershipChange};
pub use outputs::{CommittedEntry, Output, PeerMessage, Role, RoleChange, SnapshotBytes};
use reads::Reads;

/// A name that a proposer gives to its proposal; unique within one run of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId(pub u64);

/// How one replica behaves. All replicas of a cluster should agree on the ticks.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// The cluster; every replica of it has the same.
    pub cluster: u128,
    /// This replica, never 0, never used again once it was removed or lost its directory.
    pub replica: u64,
    /// A number that is different in every run of the process; tells this run's proposals and reads from an
    /// earlier run's.
    pub incarnation: u64,
    /// A random number, never 0, that becomes the directory's own when it is set up: peers tell by it a directory that
    /// was emptied and set up anew.
    pub directory: u128,
    /// Seed of the election timeouts' jitter.
    pub seed: u64,
    /// The first voters. Only used on an empty directory, and then the same on all of them.
    pub initial_voters: Vec<u64>,
    /// Start an empty directory as a new replica that waits for the leader to add it, instead of as a founder.
    pub join: bool,
    /// Ticks between heartbeats of the leader.
    pub heartbeat_ticks: usize,
    /// Ticks without a heartbeat before an election, at least; at most twice as many.
    pub election_ticks: usize,
    /// Bytes of a log segment.
    pub segment_bytes: u64,
    /// Ask for a snapshot after so many entries.
    pub snapshot_every_entries: u64,
    /// Ask for a snapshot after so many bytes of entries.
    pub snapshot_every_bytes: u64,
    /// Entries before the snapshot that stay, for replicas that lag a little.
    pub keep_entries: u64,
    /// Bytes of entries in one message to a peer.
    pub max_message_bytes: u64,
    /// Messages on their way to one peer.
    pub max_inflight: usize,
    /// Bytes of proposals that aren't committed yet; more are dropped.
    pub max_uncommitted_bytes: u64,
}

impl ReplicaConfig {
    /// The defaults, for one of the first replicas of a cluster.
    #[must_use]
    pub fn new(cluster: u128, replica: u64, initial_voters: Vec<u64>) -> Self {
        Self {
            cluster,
            replica,
            incarnation: 1,
            directory: u128::from(replica),
            seed: replica,
            initial_voters,
            join: false,
            heartbeat_ticks: 1,
            election_ticks: 10,
            segment_bytes: 16 << 20,
            snapshot_every_entries: 10_000,
            snapshot_every_bytes: 32 << 20,
            keep_entries: 2_000,
            max_message_bytes: 1 << 20,
            // With the former less than what may wait for a peer's socket, or the first of them would be dropped.
            max_inflight: 24,
            max_uncommitted_bytes: 16 << 20,
        }
    }
}

/// Largest single proposal, in bytes.
pub const MAX_PROPOSAL_BYTES: usize = 4 << 20;

/// A proposal whose entry was not seen committed yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Ticks after which its fate counts as unknown.
    ticks_left: usize,
}

/// Ticks after which a snapshot that was asked for and did not come is asked for again: a request may get lost, with a
/// caller who is busy, or while the last snapshot is still being written.
const SNAPSHOT_AGAIN: u32 = 100;

/// One member of the replica set.
pub struct Replica<D: Disk> {
    raw: RawNode<Store<D>>,
    config: ReplicaConfig,
    elections: Elections,
    reads: Reads,
    pending: BTreeMap<ProposalId, Pending>,
    dropped: Vec<ProposalId>,
    in_flight: Option<raft::Ready>,
    role: RoleChange,
    /// The last index that was handed out as committed or within a snapshot.
    delivered: u64,
    bytes_since_snapshot: u64,
    /// Ticks until a snapshot that was asked for may be asked for again.
    snapshot_asked: u32,
    rejected_messages: u64,
    /// Which directory each peer has.
    peers: KnownPeers,
    /// The commit index that the last append told the followers.
    announced: u64,
    /// Messages of each member since it is one.
    heard: BTreeMap<u64, u64>,
}

impl<D: Disk> fmt::Debug for Replica<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Replica")
            .field("id", &self.config.replica)
            .field("role", &self.role)
            .field("commit", &self.commit_index())
            .field("delivered", &self.delivered)
            .field("last", &self.last_index())
            .finish_non_exhaustive()
    }
}

impl<D: Disk> Replica<D> {
    /// Opens the directory, or sets it up if it is empty. Also returns the state to begin with, if a snapshot
    /// was ever taken; what was committed after it comes as [`Output::committed`].
    ///
    /// # Errors
    /// If the configuration can't work, the directory is another replica's, or what was safe in it is damaged.
    pub fn open(
        config: ReplicaConfig,
        disk: D,
        logger: &slog::Logger,
    ) -> Result<(Self, Option<SnapshotBytes>), ConsensusError> {
        let owner = Owner { cluster: config.cluster, replica: config.replica };
        let begin = if config.join { Begin::Joiner } else { Begin::Founder(&config.initial_voters) };
        if config.replica == 0 {
            return Err(ConsensusError::Configuration("replica id 0 is reserved".to_owned()));
        }
        if !config.join && !config.initial_voters.contains(&config.replica) {
            return Err(ConsensusError::Configuration(format!(
                "replica {} is not among the initial voters {:?}; list it, or set join = true",
                config.replica, config.initial_voters
            )));
        }
        if config.directory == 0 {
            return Err(ConsensusError::Configuration("directory 0 is reserved".to_owned()));
        }
        let directory = DirectoryId(config.directory);
        let (mut store, data) = Store::open(disk, owner, directory, config.segment_bytes, &begin)?;
        let peers = KnownPeers::open(store.log_mut().disk_mut())?;
        let snapshot = (store.snapshot_index() > FOUNDING.0).then(|| {
            let index = store.snapshot_index();
            SnapshotBytes { index, term: store.log().term(index).unwrap_or_default(), data }
        });
        let delivered = store.snapshot_index();
        let elections = Elections::new(&config);
        let raft_config = Config {
            id: config.replica,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: delivered,
            max_size_per_msg: config.max_message_bytes,
            max_inflight_msgs: config.max_inflight,
            check_quorum: true,
            pre_vote: true,
            // Replaced by our own draw wherever raft has drawn; see `Elections`.
            min_election_tick: config.election_ticks,
            max_election_tick: 2 * config.election_ticks,
            read_only_option: ReadOnlyOption::Safe,
            // Told with the next append, or by `announce_commit`.
            skip_bcast_commit: true,
            batch_append: true,
            priority: 0,
            max_uncommitted_size: config.max_uncommitted_bytes.max(config.max_message_bytes),
            max_committed_size_per_ready: 8 << 20,
        };
        raft_config.validate().map_err(|error| ConsensusError::Configuration(error.to_string()))?;
        let raw = RawNode::new(&raft_config, store, logger)?;
        let mut replica = Self {
            raw,
            elections,
            reads: Reads::new(&config),
            pending: BTreeMap::new(),
            dropped: Vec::new(),
            in_flight: None,
            role: RoleChange::default(),
            delivered,
            bytes_since_snapshot: 0,
            snapshot_asked: 0,
            rejected_messages: 0,
            peers,
            announced: 0,
            heard: BTreeMap::new(),
            config,
        };
        replica.elections.redraw(&mut replica.raw);
        Ok((replica, snapshot))
    }

    /// One tick passed.
    pub fn tick(&mut self) {
        self.raw.tick();
        self.snapshot_asked = self.snapshot_asked.saturating_sub(1);
        let members = self.raw.raft.prs();
        self.heard.retain(|id, _| members.get(*id).is_some());
        if self.reads.tick() {
            self.raw.read_index(self.reads.round_context());
        }
        let expired = self.pending.extract_if(.., |_, pending| {
            pending.ticks_left = pending.ticks_left.saturating_sub(1);
            // The leader's own proposals are in its log: they commit, or it ceases to lead.
            pending.ticks_left == 0 && self.role.role != Role::Leader
        });
        self.dropped.extend(expired.map(|(id, _)| id));
        self.leave_joint_if_stuck();
        self.elections.redraw(&mut self.raw);
    }

    /// Housekeeping that must not delay a commit: call it once per tick when nothing is waiting.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn maintain(&mut self) -> Result<(), ConsensusError> {
        let hard_state = self.raw.raft.hard_state();
        let log = self.raw.mut_store().log_mut();
        log.mark(&hard_state)?;
        log.prepare_spare(512 << 10)
    }

    /// Proposes entries, in order. Each ends as a [`CommittedEntry`] that carries its id, or in
    /// [`Output::dropped`], or first there and then committed after all. Empty data and data above
    /// [`MAX_PROPOSAL_BYTES`] is dropped.
    pub fn propose(&mut self, proposals: impl IntoIterator<Item = (ProposalId, Bytes)>) {
        let mut entries = Vec::new();
        let mut ids = Vec::new();
        let mut size = 0;
        for (id, data) in proposals {
            if data.is_empty() || data.len() > MAX_PROPOSAL_BYTES {
                self.dropped.push(id);
                continue;
            }
            if size + data.len() > MAX_PROPOSAL_BYTES && !entries.is_empty() {
                self.propose_entries(std::mem::take(&mut ids), std::mem::take(&mut entries));
                size = 0;
            }
            size += data.len();
            let context = self.context(id).into();
            entries.push(Entry { data, context, ..Entry::default() });
            ids.push(id);
        }
        if !entries.is_empty() {
            self.propose_entries(ids, entries);
        }
    }

    /// Proposes a change of the replica set. Whatever changes who votes goes through joint consensus. It ends like a
    /// proposal; the leader drops it at once while another change is under way. Where a follower passes it on to a
    /// leader that refuses it, it commits as an entry without a membership.
    pub fn change_membership(&mut self, id: ProposalId, change: &MembershipChange) {
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        let Ok(data) = change.to_raft().write_to_bytes() else {
            self.dropped.push(id);
            return;
        };
        // Raft would put an empty entry in the place of a change that it refuses, and nobody would learn of it.
        let raft = &self.raw.raft;
        let under_way = raft.state == StateRole::Leader
            && (raft.has_pending_conf() || !raft.prs().conf().to_conf_state().voters_outgoing.is_empty());
        if change.is_empty() || under_way {
            self.dropped.push(id);
            return;
        }
        entry.data = data.into();
        entry.context = self.context(id).into();
        self.propose_entries(vec![id], vec![entry]);
    }

    fn propose_entries(&mut self, ids: Vec<ProposalId>, entries: Vec<Entry>) {
        self.assert_idle();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.replica;
        message.set_entries(entries.into());
        if self.raw.step(message).is_ok() {
            let ticks_left = 2 * self.config.election_ticks;
            self.pending.extend(ids.into_iter().map(|id| (id, Pending { ticks_left })));
        } else {
            self.dropped.extend(ids);
        }
    }

    /// Asks for a linearizable read: [`Output::reads`] names `context` once everything that was committed
    /// before this call has been handed out, confirmed by a majority; or [`Output::reads_failed`] does.
    pub fn read_index(&mut self, context: u64) {
        self.assert_idle();
        if self.reads.request(context) {
            self.raw.read_index(self.reads.round_context());
        }
    }

    /// Asks the leader to hand over to `to`. May silently fail: watch the role.
    pub fn transfer_leader(&mut self, to: u64) {
        self.assert_idle();
        self.raw.transfer_leader(to);
    }

    /// Starts an election now, without waiting for the timeout. For tests and for a lone replica.
    pub fn campaign(&mut self) {
        self.assert_idle();
        // Without a vote there is nobody to win, and Raft would find that nobody stands against it.
        if self.raw.raft.promotable() {
            let _refused_if_pointless = self.raw.campaign();
        }
        self.elections.redraw(&mut self.raw);
    }

    /// Whether the leader has committed something that it has not told its followers yet: they would learn it
    /// with the next append or heartbeat.
    #[must_use]
    pub fn has_unannounced_commit(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && self.commit_index() > self.announced
    }

    /// Tells the followers what is committed. Worth a message of its own only when nothing else is about to be sent.
    pub fn announce_commit(&mut self) {
        self.assert_idle();
        self.announced = self.commit_index();
        self.raw.ping();
    }

    /// A message to `peer` was lost.
    pub fn report_unreachable(&mut self, peer: u64) {
        self.assert_idle();
        self.raw.report_unreachable(peer);
    }

    /// A snapshot to `peer` was sent whole, or was not. Must be called for each one.
    pub fn report_snapshot(&mut self, peer: u64, sent: bool) {
        self.assert_idle();
        let status = if sent { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(peer, status);
    }

    /// What must be done next, or `None` if nothing. The output's messages may leave at once, even if they
    /// name entries that this replica has not made durable yet: only a leader sends such, and it doesn't
    /// count itself before [`Self::persist`].
    pub fn ready(&mut self) -> Option<Output> {
        self.assert_idle();
        self.elections.redraw(&mut self.raw);
        let own =
            !self.dropped.is_empty() || self.reads.has_failed() || self.reads.can_deliver(self.delivered);
        if !self.raw.has_ready() && !own {
            return None;
        }
        let mut ready = self.raw.ready();
        let mut output = Output { messages: self.encode(ready.take_messages()), ..Output::default() };
        for state in ready.take_read_states() {
            self.reads.confirmed(state.index, &state.request_ctx);
        }
        self.deliver(ready.take_committed_entries(), &mut output);
        self.in_flight = Some(ready);
        self.finish(&mut output);
        Some(output)
    }

    /// Makes durable what the last [`Self::ready`] needs, with at most one sync. The output's messages say
    /// that it is durable.
    ///
    /// # Errors
    /// Any error is final: the replica must not be used again and the process should end.
    pub fn persist(&mut self) -> Result<Output, ConsensusError> {
        let Some(mut ready) = self.in_flight.take() else { return Ok(Output::default()) };
        let mut output = Output::default();
        let mut reset = None;
        let store = self.raw.mut_store();
        if let Some(error) = store.take_read_error() {
            return Err(error);
        }
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot();
            reset = Some(store.install(snapshot)?);
            let meta = SnapshotMeta::of(snapshot);
            self.delivered = meta.index;
            self.bytes_since_snapshot = 0;
            self.snapshot_asked = 0;
            output.membership = Some(Membership::from_raft(&meta.conf_state));
            if meta.index > FOUNDING.0 {
                let data = snapshot.data.clone();
                output.restore = Some(SnapshotBytes { index: meta.index, term: meta.term, data });
            }
        }
        if ready.must_sync() {
            // The hard state goes with every batch, the commit index included: a change of the replica set
            // that was applied before the entries of this batch were written is then known again after a
            // restart, before any vote.
            let hard_state = self.raw.raft.hard_state();
            self.raw.mut_store().append(&Batch { hard_state, entries: ready.entries(), reset })?;
        }
        let messages = ready.take_persisted_messages();
        output.messages = self.encode(messages);
        let mut light = self.raw.advance_append(ready);
        output.messages.extend(self.encode(light.take_messages()));
        let committed = light.take_committed_entries();
        self.deliver(committed, &mut output);
        self.raw.advance_apply();
        self.finish(&mut output);
        Ok(output)
    }

    /// Takes the state as of an applied `index`, so that the log before it can go. Answers false if it is of
    /// no use: older than the last one.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn save_snapshot(&mut self, index: u64, data: &[u8]) -> Result<bool, ConsensusError> {
        let Some(meta) = self.snapshot_meta(index) else { return Ok(false) };
        let store = self.raw.mut_store();
        let owner = store.owner();
        snapshot::write_temporary(store.log_mut().disk_mut(), snapshot::SAVING, owner, &meta, data)?;
        self.publish_snapshot(meta)?;
        Ok(true)
    }

    /// The first half of [`Self::save_snapshot`] for a caller that writes the file elsewhere, with
    /// `snapshot::write_temporary`.
    pub(crate) fn snapshot_meta(&mut self, index: u64) -> Option<SnapshotMeta> {
        self.snapshot_asked = 0;
        if index > self.delivered {
            return None;
        }
        self.raw.store().snapshot_meta(index)
    }

    /// The second half. Does nothing if a newer snapshot came from the leader meanwhile.
    pub(crate) fn publish_snapshot(&mut self, meta: SnapshotMeta) -> Result<(), ConsensusError> {
        self.assert_idle();
        if meta.index <= self.raw.store().snapshot_index() {
            return remove_if_there(self.raw.mut_store().log_mut().disk_mut(), snapshot::SAVING);
        }
        let keep = self.config.keep_entries;
        self.bytes_since_snapshot = 0;
        self.raw.mut_store().publish_snapshot(meta, keep)
    }

    /// The role as of the last output.
    #[must_use]
    pub fn role(&self) -> RoleChange {
        self.role
    }

    /// The newest index that is known to be committed.
    #[must_use]
    pub fn commit_index(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// On the leader: up to which index each member of the replica set, itself included, is known to hold the
    /// log durably. Empty on others, who don't know.
    #[must_use]
    pub fn matched(&self) -> BTreeMap<u64, u64> {
        if self.raw.raft.state != StateRole::Leader {
            return BTreeMap::new();
        }
        self.raw.raft.prs().iter().map(|(id, progress)| (*id, progress.matched)).collect()
    }

    /// On the leader: how many messages each other member has sent it so far. Each that lives answers every heartbeat,
    /// so one whose number grows lives. Empty on others.
    #[must_use]
    pub fn heard(&self) -> BTreeMap<u64, u64> {
        if self.raw.raft.state == StateRole::Leader { self.heard.clone() } else { BTreeMap::new() }
    }

    /// The newest index that was handed out.
    #[must_use]
    pub fn delivered_index(&self) -> u64 {
        self.delivered
    }

    /// The last index of the log, committed or not.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// The first index that the log still holds.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.raw.store().log().first_index()
    }

    /// Who the replicas are, as of the newest applied change.
    #[must_use]
    pub fn membership(&self) -> Membership {
        Membership::from_raft(self.raw.store().conf_state())
    }

    /// What was found when the log was opened.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.raw.store().recovery()
    }

    /// Messages of peers that made no sense and were ignored.
    #[must_use]
    pub fn rejected_messages(&self) -> u64 {
        self.rejected_messages
    }

    fn assert_idle(&self) {
        assert!(self.in_flight.is_none(), "persist must follow ready before the next input");
    }

    fn context(&self, id: ProposalId) -> Vec<u8> {
        let mut context = Vec::with_capacity(24);
        for value in [self.config.replica, self.config.incarnation, id.0] {
            context.extend_from_slice(&value.to_le_bytes());
        }
        context
    }

    /// The id of a proposal of this very process.
    fn own_proposal(&self, context: &[u8]) -> Option<ProposalId> {
        let (own, id) = context.split_at_checked(16)?;
        let own = own[..8] == self.config.replica.to_le_bytes()
            && own[8..] == self.config.incarnation.to_le_bytes();
        own.then_some(ProposalId(u64::from_le_bytes(id.try_into().ok()?)))
    }

    /// A leader that was deposed in between may leave a joint configuration that nobody ends.
    fn leave_joint_if_stuck(&mut self) {
        let raft = &self.raw.raft;
        if raft.state == StateRole::Leader
            && !raft.has_pending_conf()
            && raft.lead_transferee.is_none()
            && !raft.prs().conf().to_conf_state().voters_outgoing.is_empty()
        {
            let _tried_again_on_the_next_tick =
                self.raw.propose_conf_change(Vec::new(), ConfChangeV2::default());
        }
    }
}
