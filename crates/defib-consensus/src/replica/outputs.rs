//! What a replica asks its driver to do, and how it comes about.

use std::fmt;

use bytes::Bytes;
use protobuf::Message as _;
use raft::StateRole;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};

use super::{Membership, ProposalId, Replica, SNAPSHOT_AGAIN};
use crate::disk::Disk;
use crate::log::entry_size;

/// What to do. Both [`Replica::ready`] and [`Replica::persist`] return one; do all of it, in the order of the fields.
#[derive(Debug, Default)]
pub struct Output {
    /// Send these, in order for each peer. They may be lost, late or doubled, but not changed. From `ready`:
    /// nothing of what they say needs to be durable here. From `persist`: it is durable.
    pub messages: Vec<PeerMessage>,
    /// Replace the whole state by this snapshot. It is durable. What was committed before it is not handed
    /// out any more.
    pub restore: Option<SnapshotBytes>,
    /// Apply these, in order. They are durable on a majority, and never change. Indexes have no gaps, except
    /// at a `restore`.
    pub committed: Vec<CommittedEntry>,
    /// The replica set changed, by one of `committed` or by `restore`.
    pub membership: Option<Membership>,
    /// Reads (context, index) that may be answered now, after `committed` was applied.
    pub reads: Vec<(u64, u64)>,
    /// Reads that got no answer in time; ask again.
    pub reads_failed: Vec<u64>,
    /// Proposals whose outcome this replica will not learn for certain: never proposed, or the leader
    /// changed, or no answer. They may still commit.
    pub dropped: Vec<ProposalId>,
    /// The role, the leader or the term changed.
    pub role: Option<RoleChange>,
    /// The log has grown enough: hand a snapshot of the state as of this index or a later applied one to
    /// [`Replica::save_snapshot`]. Whoever can't may let it be: it is asked for again.
    pub snapshot_wanted: Option<u64>,
}

/// Bytes for one peer.
#[derive(Clone)]
pub struct PeerMessage {
    /// The replica that it is for.
    pub to: u64,
    /// It carries a snapshot: large, and [`Replica::report_snapshot`] must be called for it.
    pub snapshot: bool,
    /// What [`Replica::receive`] takes on the other side.
    pub bytes: Bytes,
}

impl fmt::Debug for PeerMessage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PeerMessage")
            .field("to", &self.to)
            .field("snapshot", &self.snapshot)
            .field("length", &self.bytes.len())
            .finish()
    }
}

/// An entry that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedEntry {
    /// Its place in the log.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// What was proposed. Empty for entries of Raft's own: nothing to apply, but the index counts.
    pub data: Bytes,
    /// Set if this run of this process proposed it.
    pub proposal: Option<ProposalId>,
}

/// The whole state as of an index.
#[derive(Clone, PartialEq, Eq)]
pub struct SnapshotBytes {
    /// The last index that it includes.
    pub index: u64,
    /// The term of that index.
    pub term: u64,
    /// What the state machine gave.
    pub data: Bytes,
}

impl fmt::Debug for SnapshotBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SnapshotBytes")
            .field("index", &self.index)
            .field("term", &self.term)
            .field("length", &self.data.len())
            .finish()
    }
}

/// A replica's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It follows a leader, or waits for one.
    #[default]
    Follower,
    /// It stands for election, or asks whether it may.
    Candidate,
    /// It leads. Another one may already lead in a later term: only a commit or a confirmed read proves otherwise.
    Leader,
}

/// Role, leader and term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoleChange {
    /// This replica's part.
    pub role: Role,
    /// Who leads, as far as this replica knows.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
}

/// Appends of no more than `bytes_max` bytes of entries each, unless a single one is larger. Raft appends to a message
/// that has not left yet whatever comes next for the same peer, without any bound; its limit is one for what it reads
/// from the log at a time.
fn split(mut message: Message, bytes_max: u64) -> Vec<Message> {
    let bytes: u64 = message.entries.iter().map(entry_size).sum();
    if message.get_msg_type() != MessageType::MsgAppend || bytes <= bytes_max {
        return vec![message];
    }
    let entries = message.take_entries();
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    let cut = |message: &mut Message, part: &mut Vec<Entry>| {
        let last = part.last().map(|last| (last.index, last.term))?;
        let mut one = message.clone();
        one.set_entries(std::mem::take(part).into());
        (message.index, message.log_term) = last;
        Some(one)
    };
    for entry in entries {
        let size = entry_size(&entry);
        if bytes + size > bytes_max {
            parts.extend(cut(&mut message, &mut part));
            bytes = 0;
        }
        bytes += size;
        part.push(entry);
    }
    parts.extend(cut(&mut message, &mut part));
    parts
}

impl<D: Disk> Replica<D> {
    pub(super) fn encode(&mut self, messages: Vec<Message>) -> Vec<PeerMessage> {
        let told = messages.iter().filter(|message| message.get_msg_type() == MessageType::MsgAppend);
        self.announced = self.announced.max(told.map(|message| message.commit).max().unwrap_or(0));
        let encode = |message: Message| {
            use MessageType::{MsgAppend, MsgAppendResponse};
            // The many messages of a busy log needn't repeat what each heartbeat says.
            let all = !matches!(message.get_msg_type(), MsgAppend | MsgAppendResponse);
            let mut bytes = self.envelope(message.to, all).encode();
            bytes.reserve(usize::try_from(message.compute_size()).unwrap_or(0));
            message.write_to_vec(&mut bytes).expect("a message in memory always encodes");
            let bytes = bytes.into();
            PeerMessage {
                to: message.to,
                snapshot: message.get_msg_type() == MessageType::MsgSnapshot,
                bytes,
            }
        };
        messages
            .into_iter()
            .filter(|message| message.to != self.config.replica)
            .flat_map(|message| split(message, self.config.max_message_bytes))
            .map(encode)
            .collect()
    }

    /// Hands out committed entries; applies those that change the replica set.
    pub(super) fn deliver(&mut self, entries: Vec<Entry>, output: &mut Output) {
        for entry in entries {
            let proposal = self.own_proposal(&entry.context);
            if let Some(id) = proposal {
                self.pending.remove(&id);
            }
            self.delivered = entry.index;
            self.bytes_since_snapshot += entry_size(&entry);
            let data = match entry.get_entry_type() {
                EntryType::EntryNormal => entry.data,
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_membership(entry.index, &entry.data, output);
                    Bytes::new()
                }
            };
            output.committed.push(CommittedEntry { index: entry.index, term: entry.term, data, proposal });
        }
    }

    fn apply_membership(&mut self, index: u64, data: &[u8], output: &mut Output) {
        let mut change = ConfChangeV2::default();
        if change.merge_from_bytes(data).is_err() {
            tracing::error!(
                index,
                "a change of the replica set can't be read; every replica ignores it alike"
            );
            return;
        }
        match self.raw.apply_conf_change(&change) {
            Ok(conf_state) => {
                output.membership = Some(Membership::from_raft(&conf_state));
                self.raw.mut_store().set_conf_state(index, conf_state);
                self.step_down_if_removed();
            }
            // The same on every replica, since it depends on the log only.
            Err(error) => {
                tracing::warn!(index, %error, "a change of the replica set makes no sense; ignored")
            }
        }
    }

    /// Raft 0.7 lets a leader that was removed go on, and then looks for its own progress in vain.
    fn step_down_if_removed(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
            // It may have queued messages as leader, which a follower must not send after its next write.
            raft.msgs.clear();
        }
    }

    /// The parts of an output that don't come from raft's ready.
    pub(super) fn finish(&mut self, output: &mut Output) {
        self.elections.redraw(&mut self.raw);
        output.reads = self.reads.take_deliverable(self.delivered);
        output.reads_failed = self.reads.take_failed();
        let role = RoleChange {
            role: match self.raw.raft.state {
                StateRole::Leader => Role::Leader,
                StateRole::Follower => Role::Follower,
                StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            },
            leader: Some(self.raw.raft.leader_id).filter(|leader| *leader != raft::INVALID_ID),
            term: self.raw.raft.term,
        };
        if role != self.role {
            if (role.leader, role.term) != (self.role.leader, self.role.term) {
                self.dropped.extend(std::mem::take(&mut self.pending).into_keys());
            }
            self.role = role;
            output.role = Some(role);
        }
        output.dropped = std::mem::take(&mut self.dropped);
        let behind = self.delivered - self.raw.store().snapshot_index().min(self.delivered);
        let enough = self.raw.store().take_newer_wanted()
            || behind >= self.config.snapshot_every_entries
            || self.bytes_since_snapshot >= self.config.snapshot_every_bytes;
        if enough && behind > 0 && self.snapshot_asked == 0 {
            self.snapshot_asked = SNAPSHOT_AGAIN;
            output.snapshot_wanted = Some(self.delivered);
        }
        if self.in_flight.is_none() && self.reads.start_waiting() {
            self.raw.read_index(self.reads.round_context());
        }
    }
}
