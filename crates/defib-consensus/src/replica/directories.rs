//! From which directory a message comes, and for which one it is.
//!
//! Every message to a peer begins with the sender's own directory and with those that it knows, the receiver's
//! above all. So a replica that was emptied is not listened to by whoever knew it before, and learns so from the
//! first message of any of them: nothing has to be asked, and no leader has to remember. Followers hardly ever
//! talk to each other; they know each other from the leader.

use bytes::{Buf, Bytes};

use super::Replica;
use crate::ConsensusError;
use crate::disk::Disk;
use crate::identity::DirectoryId;
use crate::store::FOUNDING;

/// What a message says of the directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) from: DirectoryId,
    /// Replicas that the sender knows, and their directories.
    pub(super) known: Vec<(u64, DirectoryId)>,
}

impl Envelope {
    /// `directory u128 | count u8 | count * (replica u64 | directory u128)`, little endian.
    pub(super) fn encode(&self) -> Vec<u8> {
        let known = self.known.get(..usize::from(u8::MAX)).unwrap_or(&self.known);
        let mut bytes = Vec::with_capacity(17 + 24 * known.len());
        bytes.extend_from_slice(&self.from.0.to_le_bytes());
        bytes.push(u8::try_from(known.len()).unwrap_or(u8::MAX));
        for (replica, directory) in known {
            bytes.extend_from_slice(&replica.to_le_bytes());
            bytes.extend_from_slice(&directory.0.to_le_bytes());
        }
        bytes
    }

    /// The envelope and Raft's message in it.
    pub(super) fn decode(mut bytes: Bytes) -> Option<(Self, Bytes)> {
        let directory = |bytes: &mut Bytes| {
            let number = bytes.try_get_u128_le().ok()?;
            (number != 0).then_some(DirectoryId(number))
        };
        let from = directory(&mut bytes)?;
        let count = bytes.try_get_u8().ok()?;
        let known = (0..count).map(|_| Some((bytes.try_get_u64_le().ok()?, directory(&mut bytes)?)));
        let known = known.collect::<Option<_>>()?;
        Some((Self { from, known }, bytes))
    }
}

impl<D: Disk> Replica<D> {
    /// What to say to a peer: how this replica knows it, and with `all` how it knows the other members too.
    pub(super) fn envelope(&self, to: u64, all: bool) -> Envelope {
        let members = self.raw.raft.prs();
        let told = self.peers.iter().filter(|(id, _)| *id == to || all && members.get(*id).is_some());
        Envelope { from: self.raw.store().directory(), known: told.collect() }
    }

    /// Whether a message's sender is who it was. The error is this replica's end: the sender knows another one.
    pub(super) fn check_directories(&self, from: u64, envelope: &Envelope) -> Result<bool, ConsensusError> {
        if self.peers.get(from).is_some_and(|known| known != envelope.from) {
            return Ok(false);
        }
        let (own, directory) = (self.config.replica, self.raw.store().directory());
        if envelope.known.iter().any(|(id, known)| *id == own && *known != directory) {
            return Err(ConsensusError::ForgottenDirectory { replica: own, peer: from });
        }
        Ok(true)
    }

    /// Remembers the directories of peers that weren't known yet: the first word counts.
    pub(super) fn remember_directories(
        &mut self,
        from: u64,
        envelope: Envelope,
    ) -> Result<(), ConsensusError> {
        let own = self.config.replica;
        let mut said = envelope.known;
        said.push((from, envelope.from));
        said.retain(|(id, _)| *id != own && self.peers.get(*id).is_none());
        if said.is_empty() {
            return Ok(());
        }
        self.peers.remember(self.raw.mut_store().log_mut().disk_mut(), said)
    }

    /// The other first replicas that are not known yet, while nothing is in the log.
    ///
    /// An emptied replica can't be told from one of a new cluster by anything that it has. If a majority was emptied,
    /// they would found the cluster a second time and forget the first. So no founder votes before it knows every other
    /// one: whoever remembers a first time has said so by then. It needs all of them once in the life of a cluster.
    #[must_use]
    pub fn unknown_founders(&self) -> Vec<u64> {
        let founding = self.raw.store().snapshot_index() == FOUNDING.0 && self.last_index() == FOUNDING.0;
        if !founding {
            return Vec::new();
        }
        let voters = self.membership().voters;
        let others = voters.into_iter().filter(|voter| *voter != self.config.replica);
        others.filter(|voter| self.peers.get(*voter).is_none()).collect()
    }
}
