//! Whose directory this is. The file is written last when a directory is set up, so it also says that the
//! set-up was finished.

use crate::ConsensusError;
use crate::disk::Disk;
use crate::log::Owner;

const FILE: &str = "identity";
const TEMPORARY: &str = "identity.tmp";
const MAGIC: &[u8; 8] = b"defibid1";

fn encode(owner: Owner) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&owner.cluster.to_le_bytes());
    bytes.extend_from_slice(&owner.replica.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Whether the directory was set up, for this owner.
///
/// # Errors
/// If it was set up for another one, or the file is damaged.
pub(crate) fn check<D: Disk>(disk: &D, owner: Owner) -> Result<bool, ConsensusError> {
    if !disk.list()?.iter().any(|file| file.name == FILE) {
        return Ok(false);
    }
    let bytes = disk.read(FILE)?;
    let damaged = bytes.len() != 36
        || !bytes.starts_with(MAGIC)
        || crc32c::crc32c(&bytes[..32]).to_le_bytes() != bytes[32..36];
    if damaged {
        return Err(ConsensusError::Corrupt {
            file: FILE.to_owned(),
            offset: 0,
            index: 0,
            what: "the identity of this directory can't be read".to_owned(),
        });
    }
    let (mut cluster, mut replica) = ([0; 16], [0; 8]);
    cluster.copy_from_slice(&bytes[8..24]);
    replica.copy_from_slice(&bytes[24..32]);
    let found = Owner { cluster: u128::from_le_bytes(cluster), replica: u64::from_le_bytes(replica) };
    if found != owner {
        return Err(ConsensusError::WrongIdentity {
            cluster: owner.cluster,
            replica: owner.replica,
            found_cluster: found.cluster,
            found_replica: found.replica,
        });
    }
    Ok(true)
}

/// Marks the directory as set up.
pub(crate) fn write<D: Disk>(disk: &mut D, owner: Owner) -> Result<(), ConsensusError> {
    disk.create(TEMPORARY)?;
    disk.write_at(TEMPORARY, 0, &encode(owner))?;
    disk.sync(TEMPORARY)?;
    disk.rename(TEMPORARY, FILE)?;
    disk.sync_directory()?;
    Ok(())
}

/// Removes what an interrupted set-up left behind. Refuses if there is a log: then the identity is what got lost.
pub(crate) fn clear_unfinished<D: Disk>(disk: &mut D) -> Result<(), ConsensusError> {
    let files = disk.list()?;
    if let Some(log) = files.iter().find(|file| file.name.starts_with("log-")) {
        return Err(ConsensusError::Corrupt {
            file: log.name.clone(),
            offset: 0,
            index: 0,
            what: "there is a log but no identity file".to_owned(),
        });
    }
    for file in files {
        if file.name.ends_with(".tmp") || file.name.starts_with("snapshot-") {
            disk.remove(&file.name)?;
        }
    }
    disk.sync_directory()?;
    Ok(())
}
