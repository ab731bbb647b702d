//! Which directory each peer has, as it said when it was first heard.
//!
//! A replica that lost its directory must not come back under its number: it has forgotten what it promised. It can't
//! know that itself, and a leader that acknowledged with it may have restarted since. So every replica remembers the
//! directory of each other one, durably and for good, and takes no message from another directory of the same replica.

use std::collections::BTreeMap;

use crate::ConsensusError;
use crate::disk::Disk;
use crate::identity::DirectoryId;
use crate::sealed::Sealed;

const FILE: Sealed = Sealed {
    name: "peers",
    temporary: "peers.tmp",
    magic: *b"defibpe1",
    damaged: "which directory each peer has can't be read",
};
/// Replica and directory.
const RECORD: usize = 24;

#[derive(Debug, Default)]
pub(crate) struct KnownPeers(BTreeMap<u64, DirectoryId>);

impl KnownPeers {
    /// Reads what is there; a directory without the file knows nobody yet.
    ///
    /// # Errors
    /// If the disk fails or the file is damaged.
    pub(crate) fn open<D: Disk>(disk: &D) -> Result<Self, ConsensusError> {
        Ok(Self(FILE.read(disk, decode)?.unwrap_or_default()))
    }

    pub(crate) fn get(&self, peer: u64) -> Option<DirectoryId> {
        self.0.get(&peer).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, DirectoryId)> {
        self.0.iter().map(|(peer, directory)| (*peer, *directory))
    }

    /// Remembers peers' directories. When this returns, they survive a power cut.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn remember<D: Disk>(
        &mut self,
        disk: &mut D,
        peers: Vec<(u64, DirectoryId)>,
    ) -> Result<(), ConsensusError> {
        self.0.extend(peers);
        let said = self
            .0
            .iter()
            .flat_map(|(peer, directory)| peer.to_le_bytes().into_iter().chain(directory.0.to_le_bytes()));
        FILE.replace(disk, &said.collect::<Vec<_>>())
    }
}

fn decode(said: &[u8]) -> Option<BTreeMap<u64, DirectoryId>> {
    let record = |record: &[u8]| {
        let (peer, directory) = record.split_first_chunk::<8>()?;
        let directory = <[u8; 16]>::try_from(directory).ok()?;
        Some((u64::from_le_bytes(*peer), DirectoryId(u128::from_le_bytes(directory))))
    };
    said.chunks(RECORD).map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Crash, MemoryDisk};

    #[test]
    fn what_was_remembered_survives_a_power_cut_and_damage_is_refused() {
        let mut disk = MemoryDisk::new();
        let mut peers = KnownPeers::open(&disk).unwrap();
        assert_eq!(peers.get(2), None);
        peers.remember(&mut disk, vec![(2, DirectoryId(22))]).unwrap();
        peers.remember(&mut disk, vec![(3, DirectoryId(u128::MAX))]).unwrap();
        disk.crash(Crash::LoseAll);
        let peers = KnownPeers::open(&disk).unwrap();
        assert_eq!((peers.get(2), peers.get(3)), (Some(DirectoryId(22)), Some(DirectoryId(u128::MAX))));
        let length = disk.read(FILE.name).unwrap().len() as u64;
        for offset in 0..length {
            assert!(disk.flip_bit(FILE.name, offset, 1));
            let error = KnownPeers::open(&disk).unwrap_err();
            assert!(matches!(error, ConsensusError::Corrupt { .. }), "{error}");
            assert!(disk.flip_bit(FILE.name, offset, 1));
        }
    }
}
