//! Whose directory this is, and which one: a random number tells it from one that is set up later for the same
//! replica. The file is written last when a directory is set up, so it also says that the set-up was finished.

use crate::ConsensusError;
use crate::disk::Disk;
use crate::log::{Owner, is_segment, is_unwritten};
use crate::sealed::Sealed;

const FILE: Sealed = Sealed {
    name: "identity",
    temporary: "identity.tmp",
    magic: *b"defibid2",
    damaged: "the identity of this directory can't be read",
};

/// Which directory: drawn once, when it is set up, and never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryId(pub(crate) u128);

/// Owner and directory: `cluster u128 | replica u64 | directory u128`, little endian.
fn decode(said: &[u8]) -> Option<(Owner, DirectoryId)> {
    let (cluster, said) = said.split_first_chunk()?;
    let (replica, said) = said.split_first_chunk()?;
    let owner = Owner { cluster: u128::from_le_bytes(*cluster), replica: u64::from_le_bytes(*replica) };
    Some((owner, DirectoryId(u128::from_le_bytes(said.try_into().ok()?))))
}

/// Which directory it is, if it was set up, for this owner.
///
/// # Errors
/// If it was set up for another one, or the file is damaged.
pub(crate) fn read<D: Disk>(disk: &D, owner: Owner) -> Result<Option<DirectoryId>, ConsensusError> {
    let Some((found, directory)) = FILE.read(disk, decode)? else { return Ok(None) };
    if found != owner {
        return Err(ConsensusError::WrongIdentity {
            cluster: owner.cluster,
            replica: owner.replica,
            found_cluster: found.cluster,
            found_replica: found.replica,
        });
    }
    Ok(Some(directory))
}

/// Marks the directory as set up.
pub(crate) fn write<D: Disk>(
    disk: &mut D,
    owner: Owner,
    directory: DirectoryId,
) -> Result<(), ConsensusError> {
    let Owner { cluster, replica } = owner;
    let said = [&cluster.to_le_bytes()[..], &replica.to_le_bytes(), &directory.0.to_le_bytes()];
    FILE.replace(disk, &said.concat())
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
