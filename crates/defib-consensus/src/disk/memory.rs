//! A simulated directory that knows what was synced, and can crash.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskError, FileInfo};

/// A disk writes whole sectors of this many bytes.
const SECTOR: usize = 512;

/// What a power cut does to everything that was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Crash {
    /// Nothing: only the process died. All of it is there to read, and still not safe.
    Process,
    /// All of it is lost.
    LoseAll,
    /// All of it had reached the disk by luck.
    KeepAll,
    /// Each sector, and each length, is kept or lost by a coin; of the changes of names a prefix is kept.
    Torn {
        /// Seed of the coins.
        seed: u64,
    },
}

#[derive(Clone, Debug, Default)]
struct Contents {
    /// What a reader sees now.
    now: Vec<u8>,
    /// What is on the platter for certain.
    durable: Vec<u8>,
    /// Byte ranges written since the last sync.
    dirty: Vec<(usize, usize)>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

fn change_names(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Link(name, file) => {
            names.insert(name.clone(), *file);
        }
        NameChange::Unlink(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, Contents>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced_names: Vec<NameChange>,
    next_file: u64,
    /// Operations that change something, counted so that a test can crash at each of them.
    changes: u64,
    syncs: u64,
    crash_at: Option<u64>,
    down: bool,
    space: Option<u64>,
    fail_sync: bool,
    lose_syncs: bool,
}

/// A simulated directory. Clones share the same directory, so a test keeps one and hands another to the log.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

impl MemoryDisk {
    /// An empty directory on a disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power and starts again: applies `crash` to all that was not synced, and clears planned faults.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.lock();
        state.crash_at = None;
        state.down = false;
        state.fail_sync = false;
        if matches!(crash, Crash::Process) {
            return;
        }
        let mut coin = Coin(match crash {
            Crash::Torn { seed } => seed ^ 0x9e37_79b9_7f4a_7c15,
            Crash::Process | Crash::LoseAll | Crash::KeepAll => 1,
        });
        let kept_names = match crash {
            Crash::Process | Crash::LoseAll => 0,
            Crash::KeepAll => state.unsynced_names.len(),
            Crash::Torn { .. } => coin.below(state.unsynced_names.len() + 1),
        };
        let changes = std::mem::take(&mut state.unsynced_names);
        for change in &changes[..kept_names] {
            change_names(&mut state.durable_names, change);
        }
        state.names = state.durable_names.clone();
        for contents in state.files.values_mut() {
            match crash {
                Crash::Process | Crash::LoseAll => {}
                Crash::KeepAll => contents.durable = contents.now.clone(),
                Crash::Torn { .. } => tear(contents, &mut coin),
            }
            contents.now = contents.durable.clone();
            contents.dirty.clear();
        }
        let named: Vec<u64> = state.names.values().copied().collect();
        state.files.retain(|file, _| named.contains(file));
    }

    /// From the `operation`th change on (counted from now, 0 is the next), every operation fails until [`Self::crash`].
    /// The operation itself takes effect before it fails, if it is a write.
    pub fn crash_after(&self, operation: u64) {
        let mut state = self.lock();
        state.crash_at = Some(state.changes + operation);
    }

    /// Whether a planned crash has happened and [`Self::crash`] was not called yet.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.lock().down
    }

    /// Whether a crash is planned that has not happened yet.
    #[must_use]
    pub fn crash_planned(&self) -> bool {
        let state = self.lock();
        state.crash_at.is_some() && !state.down
    }

    /// How many operations changed something so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// How many times file contents were synced so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Limits the bytes of all files together; `None` for no limit.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.lock().space = bytes;
    }

    /// The next sync of a file's contents fails, and what it should have synced is dropped, as Linux does.
    pub fn fail_next_sync(&self) {
        self.lock().fail_sync = true;
    }

    /// From now on syncs of contents are acknowledged and do nothing, as by a drive whose cache has no battery.
    pub fn lose_syncs(&self) {
        self.lock().lose_syncs = true;
    }

    /// Flips one bit, durably. Returns false if there is no such byte.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> bool {
        let mut state = self.lock();
        let Some(contents) = state.names.get(name).copied().and_then(|file| state.files.get_mut(&file))
        else {
            return false;
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for bytes in [&mut contents.now, &mut contents.durable] {
            match bytes.get_mut(offset) {
                Some(byte) => *byte ^= 1 << (bit & 7),
                None => return false,
            }
        }
        true
    }

    /// What was written at one place is found at another one, too, as after a write that a disk has misdirected. What
    /// does not fit there is left out; returns false if nothing was altered.
    pub fn misdirect(&self, from: (&str, u64), to: (&str, u64), length: u64) -> bool {
        let mut state = self.lock();
        let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let (begin, length, target) = (place(from.1), place(length), place(to.1));
        let (Some(from), Some(to)) = (state.names.get(from.0).copied(), state.names.get(to.0).copied())
        else {
            return false;
        };
        let Some(source) = state.files.get(&from).and_then(|file| file.durable.get(begin..)) else {
            return false;
        };
        let written = source[..length.min(source.len())].to_vec();
        let Some(contents) = state.files.get_mut(&to) else { return false };
        let mut altered = false;
        for bytes in [&mut contents.now, &mut contents.durable] {
            let room = bytes.get_mut(target..).unwrap_or_default();
            let fits = written.len().min(room.len());
            altered |= room[..fits] != written[..fits];
            room[..fits].copy_from_slice(&written[..fits]);
        }
        altered
    }

    /// A copy of everything that would survive the loss of all unsynced changes, as an old backup would be.
    #[must_use]
    pub fn durable_copy(&self) -> Self {
        let state = self.lock();
        let mut copy = State { next_file: state.next_file, ..State::default() };
        copy.names = state.durable_names.clone();
        copy.durable_names = state.durable_names.clone();
        for (file, contents) in &state.files {
            let bytes = contents.durable.clone();
            copy.files.insert(*file, Contents { now: bytes.clone(), durable: bytes, dirty: Vec::new() });
        }
        Self { state: Arc::new(Mutex::new(copy)) }
    }
}

/// Splitmix64: all the randomness that a torn write needs.
struct Coin(u64);

impl Coin {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    fn heads(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

fn tear(contents: &mut Contents, coin: &mut Coin) {
    if contents.now.len() != contents.durable.len() && coin.heads() {
        contents.durable.resize(contents.now.len(), 0);
    }
    let mut sectors: Vec<usize> =
        contents.dirty.iter().flat_map(|(start, end)| (start / SECTOR)..end.div_ceil(SECTOR)).collect();
    sectors.sort_unstable();
    sectors.dedup();
    // One power cut in four loses or keeps nearly all: short prefixes and suffixes are the likeliest in practice.
    let style = coin.below(4);
    let cut = coin.below(sectors.len() + 1);
    for (position, sector) in sectors.into_iter().enumerate() {
        let keep = match style {
            0 => position < cut,
            1 => position >= cut,
            _ => coin.heads(),
        };
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(contents.now.len());
        if keep && start < end {
            if contents.durable.len() < end {
                contents.durable.resize(end, 0);
            }
            contents.durable[start..end].copy_from_slice(&contents.now[start..end]);
        }
    }
}

fn failed(operation: &'static str, name: &str, source: io::Error) -> DiskError {
    DiskError { operation, file: name.to_owned(), source }
}

impl State {
    fn file(&mut self, operation: &'static str, name: &str) -> Result<&mut Contents, DiskError> {
        self.up(operation, name)?;
        let file = self.names.get(name).copied();
        file.and_then(|file| self.files.get_mut(&file))
            .ok_or_else(|| failed(operation, name, io::ErrorKind::NotFound.into()))
    }

    fn up(&self, operation: &'static str, name: &str) -> Result<(), DiskError> {
        if self.down {
            return Err(failed(operation, name, io::Error::other("the simulated disk is down")));
        }
        Ok(())
    }

    /// Counts a change; fails if the planned crash happens at it.
    fn change(&mut self, operation: &'static str, name: &str) -> Result<(), DiskError> {
        let number = self.changes;
        self.changes += 1;
        if self.crash_at.is_some_and(|at| number >= at) {
            self.down = true;
        }
        self.up(operation, name)
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|file| self.files.get(file))
            .map(|contents| contents.now.len() as u64)
            .sum()
    }

    fn grow(&self, operation: &'static str, name: &str, by: usize) -> Result<(), DiskError> {
        match self.space {
            Some(space) if by > 0 && self.used() + by as u64 > space => {
                Err(failed(operation, name, io::ErrorKind::StorageFull.into()))
            }
            _ => Ok(()),
        }
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> Result<Vec<FileInfo>, DiskError> {
        let state = self.lock();
        state.up("list", "")?;
        Ok(state
            .names
            .iter()
            .map(|(name, file)| FileInfo {
                name: name.clone(),
                length: state.files.get(file).map_or(0, |contents| contents.now.len() as u64),
            })
            .collect())
    }

    fn create(&mut self, name: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.up("create", name)?;
        if state.names.contains_key(name) {
            return Err(failed("create", name, io::ErrorKind::AlreadyExists.into()));
        }
        let file = state.next_file;
        state.next_file += 1;
        state.files.insert(file, Contents::default());
        state.names.insert(name.to_owned(), file);
        state.unsynced_names.push(NameChange::Link(name.to_owned(), file));
        state.change("create", name)
    }

    fn write_at(&mut self, name: &str, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let mut state = self.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(data.len());
        let length = state.file("write", name)?.now.len();
        state.grow("write", name, end.saturating_sub(length))?;
        let contents = state.file("write", name)?;
        if length < end {
            contents.now.resize(end, 0);
        }
        contents.now[start..end].copy_from_slice(data);
        contents.dirty.push((start, end));
        state.change("write", name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, DiskError> {
        let mut state = self.lock();
        state.file("read", name).map(|contents| contents.now.clone())
    }

    fn sync(&mut self, name: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.file("sync", name)?;
        // A crash at a sync happens before it.
        state.change("sync", name)?;
        state.syncs += 1;
        if state.lose_syncs {
            return Ok(());
        }
        let fails = std::mem::take(&mut state.fail_sync);
        let contents = state.file("sync", name)?;
        contents.dirty.clear();
        if fails {
            return Err(failed("sync", name, io::Error::from_raw_os_error(libc::EIO)));
        }
        contents.durable = contents.now.clone();
        Ok(())
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.up("sync directory", "")?;
        state.change("sync directory", "")?;
        state.unsynced_names.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.file("rename", from)?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        change_names(&mut state.names, &change);
        state.unsynced_names.push(change);
        state.change("rename", from)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.file("remove", name)?;
        let change = NameChange::Unlink(name.to_owned());
        change_names(&mut state.names, &change);
        state.unsynced_names.push(change);
        state.change("remove", name)
    }

    fn truncate(&mut self, name: &str, length: u64) -> Result<(), DiskError> {
        let mut state = self.lock();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let now = state.file("truncate", name)?.now.len();
        state.grow("truncate", name, length.saturating_sub(now))?;
        let contents = state.file("truncate", name)?;
        contents.now.resize(length, 0);
        contents.dirty.push((now.min(length), now.max(length)));
        state.change("truncate", name)
    }
}
