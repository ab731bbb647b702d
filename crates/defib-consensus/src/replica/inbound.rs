//! Messages of peers: decoded, checked, and only then given to Raft, which panics on what makes no sense.

use bytes::Bytes;
use protobuf::Message as _;
use raft::StateRole;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType, SnapshotMetadata};

use super::Replica;
use super::directories::Envelope;
use super::membership::is_consistent;
use crate::disk::Disk;
use crate::{ConsensusError, NUMBERS_END};

impl<D: Disk> Replica<D> {
    /// Takes a message from the peer `from`, which the transport has authenticated. One that makes no sense
    /// is counted and ignored.
    ///
    /// # Errors
    /// If the message proves that this replica's directory lost entries that it had acknowledged, or that it was
    /// emptied. Final, as is an error of the disk.
    pub fn receive(&mut self, from: u64, bytes: &Bytes) -> Result<(), ConsensusError> {
        self.assert_idle();
        let Some((envelope, bytes)) = Envelope::decode(bytes.clone()) else {
            self.reject(from, "it does not say from which directory it comes");
            return Ok(());
        };
        if !self.check_directories(from, &envelope)? {
            self.reject(
                from,
                "its data directory was emptied or exchanged, so it has forgotten what it promised: \
                 replace that replica by one with a new id",
            );
            return Ok(());
        }
        let message = match Message::parse_from_carllerche_bytes(&bytes) {
            Ok(message) => message,
            Err(error) => {
                self.reject(from, &error.to_string());
                return Ok(());
            }
        };
        if let Err(reason) = self.check(from, &message) {
            self.reject(from, reason);
            return Ok(());
        }
        self.check_not_rolled_back(&message)?;
        self.remember_directories(from, envelope)?;
        if is_vote(&message) && !self.unknown_founders().is_empty() {
            return Ok(());
        }
        if self.raw.raft.prs().get(from).is_some() {
            let heard = self.heard.entry(from).or_default();
            *heard = heard.saturating_add(1);
        }
        let _dropped_or_from_a_stranger = self.raw.step(message);
        self.elections.redraw(&mut self.raw);
        Ok(())
    }

    fn reject(&mut self, from: u64, reason: &str) {
        self.rejected_messages += 1;
        tracing::warn!(from, reason, "ignored a message of a peer");
    }

    fn check(&self, from: u64, message: &Message) -> Result<(), &'static str> {
        use MessageType as Type;
        let kind = message.get_msg_type();
        // A hand-over that a follower passes on names the replica that shall lead as its sender.
        if message.from != from && kind != Type::MsgTransferLeader {
            return Err("it claims to be another peer's");
        }
        if message.to != self.config.replica {
            return Err("it is for another replica");
        }
        // Raft takes term 0 for a message from inside.
        let forwarded = matches!(kind, Type::MsgPropose | Type::MsgReadIndex);
        if (message.term == 0) != forwarded {
            return Err("its term makes no sense");
        }
        if message.term.max(message.index).max(message.commit) > NUMBERS_END {
            return Err("its numbers are such as no log reaches");
        }
        match kind {
            Type::MsgPropose => check_proposal(&message.entries),
            Type::MsgReadIndex | Type::MsgReadIndexResp if message.entries.len() != 1 => {
                Err("a read must have one entry")
            }
            Type::MsgAppend => self.check_append(message),
            Type::MsgAppendResponse if !message.reject && message.index > self.last_index() => {
                Err("it acknowledges entries that this replica never had")
            }
            // Raft passes on what it can't do itself, and panics if that came from outside.
            Type::MsgTransferLeader
                if self.raw.raft.state != StateRole::Leader || message.term != self.raw.raft.term =>
            {
                Err("a hand-over is for the leader of its term")
            }
            Type::MsgSnapshot => check_snapshot(message.get_snapshot().get_metadata(), message.term),
            Type::MsgHup
            | Type::MsgBeat
            | Type::MsgUnreachable
            | Type::MsgSnapStatus
            | Type::MsgCheckQuorum => Err("it is of a kind that never leaves a replica"),
            Type::MsgReadIndex
            | Type::MsgReadIndexResp
            | Type::MsgAppendResponse
            | Type::MsgRequestVote
            | Type::MsgRequestVoteResponse
            | Type::MsgHeartbeat
            | Type::MsgHeartbeatResponse
            | Type::MsgTransferLeader
            | Type::MsgTimeoutNow
            | Type::MsgRequestPreVote
            | Type::MsgRequestPreVoteResponse => Ok(()),
        }
    }

    fn check_append(&self, message: &Message) -> Result<(), &'static str> {
        let (mut index, mut term) = (message.index, message.log_term);
        // Raft takes term 0 for that of every entry that it does not have.
        if (index == 0) != (term == 0) {
            return Err("it follows an entry without a term");
        }
        for entry in message.entries.iter() {
            if index.checked_add(1) != Some(entry.index) || entry.term < term || entry.term > message.term {
                return Err("its entries are out of order");
            }
            (index, term) = (entry.index, entry.term);
            let held = self.raw.raft.raft_log.term(index);
            if index <= self.commit_index() && held.is_ok_and(|held| held != 0 && held != term) {
                return Err("it contradicts what is committed");
            }
        }
        Ok(())
    }

    /// A leader tells a follower in its heartbeat only of commits that the follower itself has acknowledged.
    fn check_not_rolled_back(&self, message: &Message) -> Result<(), ConsensusError> {
        let last = self.last_index();
        let current = message.term >= self.raw.raft.term;
        if message.get_msg_type() == MessageType::MsgHeartbeat && current && message.commit > last {
            return Err(ConsensusError::LostEntries {
                replica: self.config.replica,
                leader: message.from,
                acknowledged: message.commit,
                last,
            });
        }
        Ok(())
    }
}

fn is_vote(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgRequestVote | MessageType::MsgRequestPreVote)
}

fn check_proposal(entries: &[Entry]) -> Result<(), &'static str> {
    if entries.is_empty() {
        return Err("the proposal is empty");
    }
    for entry in entries {
        let readable = match entry.get_entry_type() {
            EntryType::EntryNormal => true,
            EntryType::EntryConfChangeV2 => ConfChangeV2::default().merge_from_bytes(&entry.data).is_ok(),
            EntryType::EntryConfChange => false,
        };
        if !readable {
            return Err("the proposed change of the replica set can't be read");
        }
    }
    Ok(())
}

fn check_snapshot(metadata: &SnapshotMetadata, term: u64) -> Result<(), &'static str> {
    if metadata.index == 0 || metadata.index > NUMBERS_END {
        return Err("the snapshot has no index");
    }
    if metadata.term == 0 || metadata.term > term {
        return Err("the snapshot's term makes no sense");
    }
    if !is_consistent(metadata.get_conf_state()) {
        return Err("the snapshot's replica set contradicts itself");
    }
    Ok(())
}
