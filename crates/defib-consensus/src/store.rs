//! What Raft reads: log, newest snapshot and membership, behind raft's `Storage` trait.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::ConsensusError;
use crate::disk::{Disk, remove_if_there};
use crate::identity::{self, DirectoryId};
use crate::log::{Batch, Log, Owner, Recovery, entry_size};
use crate::snapshot::{self, SnapshotMeta};

/// Log, snapshot and membership of one replica.
#[derive(Debug)]
pub(crate) struct Store<D> {
    log: Log<D>,
    owner: Owner,
    directory: DirectoryId,
    snapshot: SnapshotMeta,
    /// Who the replicas were from which applied index on, since the newest snapshot; never empty.
    conf_states: VecDeque<(u64, ConfState)>,
    /// A failure to read, where raft's trait can't carry it; the replica looks here.
    read_error: RefCell<Option<ConsensusError>>,
    /// A peer can only be brought up to date by a newer snapshot than there is.
    newer_wanted: Cell<bool>,
}

/// How an empty directory begins.
#[derive(Clone, Debug)]
pub(crate) enum Begin<'a> {
    /// As one of the first replicas of a new cluster. All of them begin with the very same snapshot.
    Founder(&'a [u64]),
    /// As a new replica that the leader will bring up to date.
    Joiner,
}

/// Index and term of the empty snapshot that every founder begins with. It isn't 0, so that a new replica,
/// which has nothing, is always sent a snapshot with the membership first.
pub(crate) const FOUNDING: (u64, u64) = (1, 1);

impl<D: Disk> Store<D> {
    /// Opens the directory, or sets it up as `new` if it is empty.
    pub(crate) fn open(
        mut disk: D,
        owner: Owner,
        new: DirectoryId,
        segment_bytes: u64,
        begin: &Begin<'_>,
    ) -> Result<(Self, Bytes), ConsensusError> {
        let set_up = identity::read(&disk, owner)?;
        if set_up.is_none() {
            identity::clear_unfinished(&mut disk, owner)?;
            if let Begin::Founder(voters) = begin {
                let mut conf_state = ConfState::default();
                let mut voters = voters.to_vec();
                voters.sort_unstable();
                conf_state.set_voters(voters);
                let meta = SnapshotMeta { index: FOUNDING.0, term: FOUNDING.1, conf_state };
                snapshot::write_temporary(&mut disk, snapshot::INSTALLING, owner, &meta, &[])?;
                snapshot::publish(&mut disk, snapshot::INSTALLING, &meta)?;
            }
        }
        for temporary in [snapshot::INSTALLING, snapshot::SAVING] {
            remove_if_there(&mut disk, temporary)?;
        }
        let found = snapshot::read_newest(&disk, owner)?;
        let mut log = Log::open(disk, owner, segment_bytes)?;
        // The log has a segment before the directory counts as set up, and never again none: so one without was lost.
        let directory = match set_up {
            Some(directory) => {
                log.check_begun()?;
                directory
            }
            None => {
                log.begin()?;
                identity::write(log.disk_mut(), owner, new)?;
                new
            }
        };
        let (meta, data) = found.unwrap_or_default();
        log.adopt_snapshot(meta.index, meta.term)?;
        log.check_commit()?;
        let conf_states = VecDeque::from([(meta.index, meta.conf_state.clone())]);
        let store = Self {
            log,
            owner,
            directory,
            snapshot: meta,
            conf_states,
            read_error: RefCell::new(None),
            newer_wanted: Cell::new(false),
        };
        Ok((store, data))
    }

    pub(crate) fn recovery(&self) -> Recovery {
        self.log.recovery()
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    pub(crate) fn directory(&self) -> DirectoryId {
        self.directory
    }

    pub(crate) fn snapshot_index(&self) -> u64 {
        self.snapshot.index
    }

    pub(crate) fn log(&self) -> &Log<D> {
        &self.log
    }

    pub(crate) fn log_mut(&mut self) -> &mut Log<D> {
        &mut self.log
    }

    /// Who the replicas are as of the newest applied change.
    pub(crate) fn conf_state(&self) -> &ConfState {
        self.conf_states.back().map_or(&self.snapshot.conf_state, |(_, conf_state)| conf_state)
    }

    /// Remembers who the replicas are from `index` on.
    pub(crate) fn set_conf_state(&mut self, index: u64, conf_state: ConfState) {
        self.conf_states.push_back((index, conf_state));
    }

    pub(crate) fn take_read_error(&self) -> Option<ConsensusError> {
        self.read_error.borrow_mut().take()
    }

    /// Whether a peer waits for a newer snapshot, since the last call.
    pub(crate) fn take_newer_wanted(&self) -> bool {
        self.newer_wanted.take()
    }

    /// The metadata of a snapshot at an applied index, if the log still reaches there and it would be newer
    /// than the last.
    pub(crate) fn snapshot_meta(&self, index: u64) -> Option<SnapshotMeta> {
        if index <= self.snapshot.index || index > self.log.last_index() {
            return None;
        }
        let term = self.log.term(index)?;
        let conf_state = self.conf_states.iter().rfind(|(since, _)| *since <= index)?.1.clone();
        Some(SnapshotMeta { index, term, conf_state })
    }

    /// Makes the temporary file, written for `meta`, the newest snapshot, and drops the log up to `keep`
    /// entries before it.
    pub(crate) fn publish_snapshot(&mut self, meta: SnapshotMeta, keep: u64) -> Result<(), ConsensusError> {
        snapshot::publish(self.log.disk_mut(), snapshot::SAVING, &meta)?;
        self.conf_states.retain(|(since, _)| *since > meta.index);
        self.conf_states.push_front((meta.index, meta.conf_state.clone()));
        let compact = meta.index.saturating_sub(keep);
        self.snapshot = meta;
        self.log.compact(compact)
    }

    /// Replaces everything by a snapshot from the leader: first the file, then the log begins anew behind it.
    pub(crate) fn install(&mut self, snapshot: &Snapshot) -> Result<(u64, u64), ConsensusError> {
        let meta = SnapshotMeta::of(snapshot);
        snapshot::write_temporary(
            self.log.disk_mut(),
            snapshot::INSTALLING,
            self.owner,
            &meta,
            &snapshot.data,
        )?;
        snapshot::publish(self.log.disk_mut(), snapshot::INSTALLING, &meta)?;
        self.conf_states = VecDeque::from([(meta.index, meta.conf_state.clone())]);
        let base = (meta.index, meta.term);
        self.snapshot = meta;
        Ok(base)
    }

    /// One durable write.
    pub(crate) fn append(&mut self, batch: &Batch<'_>) -> Result<(), ConsensusError> {
        self.log.append(batch)
    }
}

impl<D: Disk> Storage for Store<D> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.log.hard_state().clone(), self.conf_state().clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.log.first_index() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let mut entries = Vec::new();
        for index in low..high {
            let Some(entry) = self.log.entry(index) else {
                return Err(raft::Error::Store(StorageError::Unavailable));
            };
            size += entry_size(entry);
            if size > limit && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if let Some(term) = self.log.term(index) {
            return Ok(term);
        }
        if index == self.snapshot.index {
            return Ok(self.snapshot.term);
        }
        Err(raft::Error::Store(if index < self.log.first_index() {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let later = raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable);
        // A replica refuses a snapshot from before it was added.
        let conf_state = &self.snapshot.conf_state;
        let groups = [&conf_state.voters, &conf_state.learners, &conf_state.voters_outgoing];
        let knows_peer = groups.into_iter().any(|group| group.contains(&to));
        if self.snapshot.index < request_index || !knows_peer {
            self.newer_wanted.set(true);
            return Err(later);
        }
        match snapshot::read_newest(self.log.disk(), self.owner) {
            Ok(Some((meta, data))) if meta.index == self.snapshot.index => Ok(meta.with_data(data)),
            Ok(_) => Err(later),
            Err(error) => {
                *self.read_error.borrow_mut() = Some(error);
                Err(later)
            }
        }
    }
}
