//! Snapshot files: written beside, synced, renamed; checked when read.

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Snapshot};

use crate::disk::{Disk, remove_if_there};
use crate::log::Owner;
use crate::replica::membership::is_consistent;
use crate::{ConsensusError, NUMBERS_END};

const MAGIC: &[u8; 8] = b"defibsnp";
const VERSION: u32 = 1;
const HEADER: usize = 72;
const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".snap";
/// A snapshot from the leader while it is being written.
pub(crate) const INSTALLING: &str = "snapshot-install.tmp";
/// A snapshot of our own while it is being written, perhaps by another thread.
pub(crate) const SAVING: &str = "snapshot-save.tmp";
/// Written in steps, so that no single call takes a whole snapshot's time in the kernel.
const STEP: usize = 1 << 20;

/// Where a snapshot stands in the log, and who the replicas were.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SnapshotMeta {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) conf_state: ConfState,
}

fn file_name(index: u64, term: u64) -> String {
    format!("{PREFIX}{index:016x}-{term:016x}{SUFFIX}")
}

fn is_snapshot(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// Header and membership; the state follows in the file.
fn encode_head(owner: Owner, meta: &SnapshotMeta, data: &[u8]) -> Result<Vec<u8>, ConsensusError> {
    let conf = meta.conf_state.write_to_bytes().map_err(|error| ConsensusError::Raft(error.to_string()))?;
    let mut bytes = Vec::with_capacity(HEADER + conf.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&owner.cluster.to_le_bytes());
    for value in [owner.replica, meta.index, meta.term, conf.len() as u64, data.len() as u64] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.extend_from_slice(&conf);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), data);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// Writes a snapshot's file under its temporary name and syncs it. It counts only once [`publish`] has renamed it.
pub(crate) fn write_temporary<D: Disk>(
    disk: &mut D,
    temporary: &str,
    owner: Owner,
    meta: &SnapshotMeta,
    data: &[u8],
) -> Result<(), ConsensusError> {
    let head = encode_head(owner, meta, data)?;
    let write = |disk: &mut D| -> Result<(), ConsensusError> {
        remove_if_there(disk, temporary)?;
        disk.create(temporary)?;
        disk.write_at(temporary, 0, &head)?;
        let mut offset = head.len() as u64;
        for step in data.chunks(STEP) {
            disk.write_at(temporary, offset, step)?;
            offset += step.len() as u64;
        }
        disk.sync(temporary)?;
        Ok(())
    };
    let result = write(disk);
    if matches!(result, Err(ConsensusError::DiskFull { .. })) {
        remove_if_there(disk, temporary)?;
    }
    result
}

/// Makes the temporary file the snapshot, durably, and drops all older ones.
pub(crate) fn publish<D: Disk>(
    disk: &mut D,
    temporary: &str,
    meta: &SnapshotMeta,
) -> Result<(), ConsensusError> {
    let name = file_name(meta.index, meta.term);
    disk.rename(temporary, &name)?;
    disk.sync_directory()?;
    for file in disk.list()? {
        if is_snapshot(&file.name) && file.name < name {
            disk.remove(&file.name)?;
        }
    }
    Ok(())
}

/// Reads the newest snapshot. A damaged one is never passed over for an older one: the log behind that may be gone.
pub(crate) fn read_newest<D: Disk>(
    disk: &D,
    owner: Owner,
) -> Result<Option<(SnapshotMeta, Bytes)>, ConsensusError> {
    let newest = disk.list()?.into_iter().rfind(|file| is_snapshot(&file.name));
    let Some(file) = newest else { return Ok(None) };
    decode(Bytes::from(disk.read(&file.name)?), &file.name, owner).map(Some)
}

fn decode(bytes: Bytes, name: &str, owner: Owner) -> Result<(SnapshotMeta, Bytes), ConsensusError> {
    let damaged = |what: &str| ConsensusError::Corrupt {
        file: name.to_owned(),
        offset: 0,
        index: 0,
        what: what.to_owned(),
    };
    if bytes.len() < HEADER || &bytes[..8] != MAGIC {
        return Err(damaged("it is no snapshot, or shorter than its header"));
    }
    if bytes[8..12] != VERSION.to_le_bytes() {
        return Err(damaged("it was written by another version"));
    }
    let mut head = [0; HEADER];
    head.copy_from_slice(&bytes[..HEADER]);
    head[12..16].fill(0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &bytes[HEADER..]);
    if crc.to_le_bytes() != bytes[12..16] {
        return Err(damaged("its checksum is wrong"));
    }
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let mut cluster = [0; 16];
    cluster.copy_from_slice(&head[16..32]);
    let cluster = u128::from_le_bytes(cluster);
    if (cluster, word(32)) != (owner.cluster, owner.replica) {
        return Err(ConsensusError::WrongIdentity {
            cluster: owner.cluster,
            replica: owner.replica,
            found_cluster: cluster,
            found_replica: word(32),
        });
    }
    let conf_end = usize::try_from(word(56)).ok().and_then(|length| length.checked_add(HEADER));
    let conf_end =
        conf_end.filter(|end| *end <= bytes.len()).ok_or_else(|| damaged("its lengths don't fit"))?;
    if (bytes.len() - conf_end) as u64 != word(64) {
        return Err(damaged("its lengths don't fit"));
    }
    let mut conf_state = ConfState::default();
    conf_state
        .merge_from_bytes(&bytes[HEADER..conf_end])
        .map_err(|_| damaged("its membership can't be read"))?;
    if !is_consistent(&conf_state) || word(40) == 0 || word(40).max(word(48)) > NUMBERS_END {
        return Err(damaged("its place in the log or its membership makes no sense"));
    }
    Ok((SnapshotMeta { index: word(40), term: word(48), conf_state }, bytes.slice(conf_end..)))
}

impl SnapshotMeta {
    /// The metadata of a snapshot that came from a peer.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let metadata = snapshot.get_metadata();
        Self { index: metadata.index, term: metadata.term, conf_state: metadata.get_conf_state().clone() }
    }

    /// As Raft sends it.
    pub(crate) fn with_data(&self, data: Bytes) -> Snapshot {
        let mut snapshot = Snapshot { data, ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.index;
        metadata.term = self.term;
        metadata.set_conf_state(self.conf_state.clone());
        snapshot
    }
}
