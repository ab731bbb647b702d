//! Small files that are read and replaced as a whole: a magic number, what they say, and a checksum over both.

use crate::ConsensusError;
use crate::disk::{Disk, remove_if_there};

/// Which file, what it begins with, and what an operator is told when it is damaged.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) name: &'static str,
    /// The name under which it is written first.
    pub(crate) temporary: &'static str,
    pub(crate) magic: [u8; 8],
    pub(crate) damaged: &'static str,
}

impl Sealed {
    /// What it says, as `decode` understands it; `None` if there is no such file.
    ///
    /// # Errors
    /// If the disk fails, the checksum or the magic number is wrong, or `decode` makes nothing of it.
    pub(crate) fn read<D: Disk, T>(
        &self,
        disk: &D,
        decode: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, ConsensusError> {
        if !disk.list()?.iter().any(|file| file.name == self.name) {
            return Ok(None);
        }
        let bytes = disk.read(self.name)?;
        let whole = bytes.split_last_chunk::<4>();
        let whole = whole.filter(|(said, crc)| crc32c::crc32c(said).to_le_bytes() == **crc);
        let said = whole.and_then(|(said, _)| said.strip_prefix(&self.magic));
        said.and_then(decode).map(Some).ok_or_else(|| ConsensusError::Corrupt {
            file: self.name.to_owned(),
            offset: 0,
            index: 0,
            what: self.damaged.to_owned(),
        })
    }

    /// Writes it beside, syncs it and renames it into place: after a crash either the old one or the new one is there.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn replace<D: Disk>(&self, disk: &mut D, said: &[u8]) -> Result<(), ConsensusError> {
        let mut bytes = [&self.magic, said].concat();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        remove_if_there(disk, self.temporary)?;
        disk.create(self.temporary)?;
        disk.write_at(self.temporary, 0, &bytes)?;
        disk.sync(self.temporary)?;
        disk.rename(self.temporary, self.name)?;
        disk.sync_directory()?;
        Ok(())
    }
}
