//! The few operations on one directory that the log needs, so that the same log runs on a real disk and on a
//! simulated one.

mod file;
mod memory;

#[cfg(test)]
mod conformance;

use std::io;

pub use file::FileDisk;
pub use memory::{Crash, MemoryDisk};

/// One operation on one file failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of {file} failed")]
pub struct DiskError {
    /// `create`, `write`, `read`, `sync`, `sync directory`, `rename`, `remove`, `truncate` or `list`.
    pub operation: &'static str,
    /// The file's name, or its full path where the disk is real.
    pub file: String,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

impl DiskError {
    /// Whether there was no space left: on the disk, in the quota, or within the limit of the process.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self.source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }
}

/// A file in the directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileInfo {
    /// Its name, without a path.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
}

/// One flat directory. Contents become durable with [`Disk::sync`], names with [`Disk::sync_directory`];
/// until then a crash may keep any part of what was written, sector by sector, in any order.
pub trait Disk: Send + 'static {
    /// All files, ordered by name.
    ///
    /// # Errors
    /// If the directory can't be read.
    fn list(&self) -> Result<Vec<FileInfo>, DiskError>;

    /// Creates an empty file.
    ///
    /// # Errors
    /// If it exists already, or the disk is full or broken.
    fn create(&mut self, name: &str) -> Result<(), DiskError>;

    /// Writes all of `data` at `offset`, growing the file with zeros where needed. On an error any part may be written.
    ///
    /// # Errors
    /// If the file doesn't exist, or the disk is full or broken.
    fn write_at(&mut self, name: &str, offset: u64, data: &[u8]) -> Result<(), DiskError>;

    /// Reads the whole file.
    ///
    /// # Errors
    /// If the file doesn't exist or can't be read.
    fn read(&self, name: &str) -> Result<Vec<u8>, DiskError>;

    /// Makes the contents durable. After an error nothing may be assumed about the file, and it must not be
    /// called again.
    ///
    /// # Errors
    /// If the file doesn't exist or the disk is broken.
    fn sync(&mut self, name: &str) -> Result<(), DiskError>;

    /// Makes all creations, renames and removals durable.
    ///
    /// # Errors
    /// If the disk is broken.
    fn sync_directory(&mut self) -> Result<(), DiskError>;

    /// Renames a file, replacing the target if it exists. Atomic.
    ///
    /// # Errors
    /// If the file doesn't exist or the disk is broken.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError>;

    /// Removes a file.
    ///
    /// # Errors
    /// If the file doesn't exist or the disk is broken.
    fn remove(&mut self, name: &str) -> Result<(), DiskError>;

    /// Sets a file's length, filling with zeros where it grows.
    ///
    /// # Errors
    /// If the file doesn't exist, or the disk is full or broken.
    fn truncate(&mut self, name: &str, length: u64) -> Result<(), DiskError>;
}

/// Removes a temporary file that is of no use any more.
pub(crate) fn remove_if_there<D: Disk>(disk: &mut D, name: &str) -> Result<(), crate::ConsensusError> {
    if disk.list()?.iter().any(|file| file.name == name) {
        disk.remove(name)?;
    }
    Ok(())
}
