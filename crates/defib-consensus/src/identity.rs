//! Whose directory this is, and which one: a random number tells it from one that is set up later for the same
//! replica. The file is written last when a directory is set up, so it also says that the set-up was finished.

use crate::ConsensusError;
use crate::disk::{Disk, replace_file};
use crate::log::{Owner, is_segment, is_unwritten};

const FILE: &str = "identity";
const TEMPORARY: &str = "identity.tmp";
const MAGIC: &[u8; 8] = b"defibid2";

/// Which directory: drawn once, when it is set up, and never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryId(pub(crate) u128);

fn encode(owner: Owner, directory: DirectoryId) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&owner.cluster.to_le_bytes());
    bytes.extend_from_slice(&owner.replica.to_le_bytes());
    bytes.extend_from_slice(&directory.0.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Which directory it is, if it was set up, for this owner.
///
/// # Errors
/// If it was set up for another one, or the file is damaged.
pub(crate) fn read<D: Disk>(disk: &D, owner: Owner) -> Result<Option<DirectoryId>, ConsensusError> {
    if !disk.list()?.iter().any(|file| file.name == FILE) {
        return Ok(None);
    }
    let bytes = disk.read(FILE)?;
    let damaged = bytes.len() != 52
        || !bytes.starts_with(MAGIC)
        || crc32c::crc32c(&bytes[..48]).to_le_bytes() != bytes[48..52];
    if damaged {
        return Err(ConsensusError::Corrupt {
            file: FILE.to_owned(),
            offset: 0,
            index: 0,
            what: "the identity of this directory can't be read".to_owned(),
        });
    }
    let (mut cluster, mut replica, mut directory) = ([0; 16], [0; 8], [0; 16]);
    cluster.copy_from_slice(&bytes[8..24]);
    replica.copy_from_slice(&bytes[24..32]);
    directory.copy_from_slice(&bytes[32..48]);
    let found = Owner { cluster: u128::from_le_bytes(cluster), replica: u64::from_le_bytes(replica) };
    if found != owner {
        return Err(ConsensusError::WrongIdentity {
            cluster: owner.cluster,
            replica: owner.replica,
            found_cluster: found.cluster,
            found_replica: found.replica,
        });
    }
    Ok(Some(DirectoryId(u128::from_le_bytes(directory))))
}

/// Marks the directory as set up.
pub(crate) fn write<D: Disk>(
    disk: &mut D,
    owner: Owner,
    directory: DirectoryId,
) -> Result<(), ConsensusError> {
    replace_file(disk, TEMPORARY, FILE, &encode(owner, directory))
}

/// Removes what an interrupted set-up left behind. Refuses if a log was written: then the identity is what got lost.
pub(crate) fn clear_unfinished<D: Disk>(disk: &mut D, owner: Owner) -> Result<(), ConsensusError> {
    let files = disk.list()?;
    for file in &files {
        if is_segment(&file.name) && !is_unwritten(disk, owner, &file.name)? {
            return Err(ConsensusError::Corrupt {
                file: file.name.clone(),
                offset: 0,
                index: 0,
                what: "there is a log but no identity file".to_owned(),
            });
        }
    }
    for file in files {
        if file.name.ends_with(".tmp") || file.name.starts_with("snapshot-") || is_segment(&file.name) {
            disk.remove(&file.name)?;
        }
    }
    disk.sync_directory()?;
    Ok(())
}
