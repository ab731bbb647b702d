//! A real directory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::{Disk, DiskError, FileInfo};
use crate::ConsensusError;

/// A real directory, locked for this process while the value lives. Files are private to the owner.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    directory: File,
    _lock: Option<Flock<File>>,
    open: BTreeMap<String, File>,
}

impl FileDisk {
    /// Creates the directory if needed and locks it.
    ///
    /// # Errors
    /// If it can't be created or opened, or another process holds it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ConsensusError> {
        let path = path.as_ref().to_path_buf();
        let failed =
            |operation, source| ConsensusError::Disk { operation, file: path.display().to_string(), source };
        if !path.is_dir() {
            std::fs::create_dir_all(&path).map_err(|error| failed("create directory", error))?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)
                    .and_then(|parent| parent.sync_all())
                    .map_err(|error| failed("sync parent directory", error))?;
            }
        }
        let directory = File::open(&path).map_err(|error| failed("open", error))?;
        let lock = directory.try_clone().map_err(|error| failed("open", error))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == nix::errno::Errno::EWOULDBLOCK {
                ConsensusError::InUse { directory: path.display().to_string() }
            } else {
                failed("lock", errno.into())
            }
        })?;
        Ok(Self { path, directory, _lock: Some(lock), open: BTreeMap::new() })
    }

    /// A second way into the same directory, for another thread. It doesn't hold the lock; the first one must
    /// outlive it.
    pub(crate) fn second(&self) -> Result<Self, ConsensusError> {
        let directory = self.directory.try_clone().map_err(|source| ConsensusError::Disk {
            operation: "open",
            file: self.path.display().to_string(),
            source,
        })?;
        Ok(Self { path: self.path.clone(), directory, _lock: None, open: BTreeMap::new() })
    }

    fn failed(&self, operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> DiskError + use<> {
        let file = self.path.join(name).display().to_string();
        move |source| DiskError { operation, file, source }
    }

    fn opened(&mut self, operation: &'static str, name: &str) -> Result<&File, DiskError> {
        if !self.open.contains_key(name) {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(self.path.join(name))
                .map_err(self.failed(operation, name))?;
            self.open.insert(name.to_owned(), file);
        }
        Ok(&self.open[name])
    }
}

impl Disk for FileDisk {
    fn list(&self) -> Result<Vec<FileInfo>, DiskError> {
        let read = || -> io::Result<Vec<FileInfo>> {
            let mut files = Vec::new();
            for entry in std::fs::read_dir(&self.path)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_file() {
                    files.push(FileInfo {
                        name: entry.file_name().to_string_lossy().into_owned(),
                        length: metadata.len(),
                    });
                }
            }
            files.sort();
            Ok(files)
        };
        read().map_err(self.failed("list", ""))
    }

    fn create(&mut self, name: &str) -> Result<(), DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path.join(name))
            .map_err(self.failed("create", name))?;
        self.open.insert(name.to_owned(), file);
        Ok(())
    }

    fn write_at(&mut self, name: &str, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let failed = self.failed("write", name);
        self.opened("write", name)?.write_all_at(data, offset).map_err(failed)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, DiskError> {
        std::fs::read(self.path.join(name)).map_err(self.failed("read", name))
    }

    fn sync(&mut self, name: &str) -> Result<(), DiskError> {
        let failed = self.failed("sync", name);
        self.opened("sync", name)?.sync_data().map_err(failed)
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        self.directory.sync_all().map_err(self.failed("sync directory", ""))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        std::fs::rename(self.path.join(from), self.path.join(to)).map_err(self.failed("rename", from))?;
        self.open.remove(to);
        if let Some(file) = self.open.remove(from) {
            self.open.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.open.remove(name);
        std::fs::remove_file(self.path.join(name)).map_err(self.failed("remove", name))
    }

    fn truncate(&mut self, name: &str, length: u64) -> Result<(), DiskError> {
        let failed = self.failed("truncate", name);
        self.opened("truncate", name)?.set_len(length).map_err(failed)
    }
}
