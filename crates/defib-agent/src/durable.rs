//! What the agent must never forget, in small files that a crash leaves either old or new, never between: what the
//! guard has seen, and where the VMs of this boot live.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use defib_engine::guard::Durable;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::places::Places;

const GUARD: &str = "guard.json";
const PLACES: &str = "places.json";
const VERSION: u32 = 1;

/// A state that can't be trusted or kept.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// The file can't be read or written.
    #[error(
        "{path} can't be read or written; the agent keeps what it must never forget there: mend the disk or its permissions"
    )]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is damaged: which epochs and incarnations were seen is not known any more.
    #[error(
        "{path} is damaged ({why}). The agent won't guess which orders are old. Make sure that no VM runs on this host, \
         then move the file away and start the agent: the leader readmits the host"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How it shows.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    sha256: String,
    state: String,
}

fn digest(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The file's content for a state.
///
/// # Errors
/// When a part of it has no JSON form.
pub fn encode(state: &impl Serialize) -> Result<String, serde_json::Error> {
    let state = serde_json::to_string(state)?;
    serde_json::to_string(&Envelope { version: VERSION, sha256: digest(&state), state })
}

/// The state in a file's content.
///
/// # Errors
/// How it shows that the file is damaged.
pub fn decode<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let envelope: Envelope = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if envelope.version != VERSION {
        return Err(format!("it has layout {}, this release reads {VERSION}", envelope.version));
    }
    if digest(&envelope.state) != envelope.sha256 {
        return Err("its checksum does not fit".into());
    }
    serde_json::from_str(&envelope.state).map_err(|error| error.to_string())
}

/// The files, by their folder.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// A store in `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(directory: &Path) -> Result<Self, DurableError> {
        let at = |source| DurableError::Io { path: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(at)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// A store in `directory` that only reads: it makes nothing.
    #[must_use]
    pub fn look(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// What the guard wrote last; `None` if nothing ever was.
    ///
    /// # Errors
    /// When it can't be read, or is damaged.
    pub fn read(&self) -> Result<Option<Durable>, DurableError> {
        self.read_file(GUARD)
    }

    /// Writes what the guard must never forget. When this returns it is on the disk.
    ///
    /// # Errors
    /// When the disk does not take it; what was there before is still there.
    pub fn write(&self, durable: &Durable) -> Result<(), DurableError> {
        self.write_file(GUARD, durable)
    }

    /// Where the VMs of the last boot live that an agent began in; `None` if none ever did.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_places(&self) -> Result<Option<Places>, DurableError> {
        self.read_file(PLACES)
    }

    /// Writes where the VMs of this boot live.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_places(&self, places: &Places) -> Result<(), DurableError> {
        self.write_file(PLACES, places)
    }

    fn read_file<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, DurableError> {
        let path = self.directory.join(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(DurableError::Damaged { path, why: "it is no text".into() });
            }
            Err(source) => return Err(DurableError::Io { path, source }),
        };
        decode(&text).map(Some).map_err(|why| DurableError::Damaged { path, why })
    }

    /// Temporary file, fsync, rename, fsync of the folder.
    fn write_file(&self, name: &str, state: &impl Serialize) -> Result<(), DurableError> {
        let path = self.directory.join(name);
        let temporary = self.directory.join(format!("{name}.new"));
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(encode(state)?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| DurableError::Io { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use defib_model::Epoch;

    fn durable(epoch: u64) -> Durable {
        Durable { epoch: Epoch(epoch), term: 3, ..Durable::default() }
    }

    #[test]
    fn what_was_written_is_read_back_and_nothing_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.read().unwrap(), None);
        store.write(&durable(4)).unwrap();
        store.write(&durable(5)).unwrap();
        assert_eq!(store.read().unwrap(), Some(durable(5)));
    }

    #[test]
    fn a_half_written_successor_does_not_hide_what_was_written_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.write(&durable(4)).unwrap();
        fs::write(dir.path().join("guard.json.new"), "{\"version\":1,\"sha").unwrap();
        assert_eq!(store.read().unwrap(), Some(durable(4)));
    }

    #[test]
    fn any_damaged_byte_is_noticed_and_the_message_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.write(&durable(4)).unwrap();
        let path = dir.path().join("guard.json");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x01;
            fs::write(&path, &bad).unwrap();
            match store.read() {
                Err(error) => assert!(error.to_string().contains("move the file away"), "{error}"),
                Ok(read) => panic!("byte {at} went unnoticed: {read:?}"),
            }
        }
    }

    #[test]
    fn a_disk_that_takes_nothing_is_an_error_and_leaves_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.write(&durable(4)).unwrap();
        // A folder in the way of the temporary file stands for a disk that does not take it.
        fs::create_dir(dir.path().join("guard.json.new")).unwrap();
        assert!(store.write(&durable(5)).is_err());
        assert_eq!(store.read().unwrap(), Some(durable(4)));
    }
}
