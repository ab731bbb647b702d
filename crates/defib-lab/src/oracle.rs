//! The double-run oracle: who really ran, when, told by the guests themselves.
//!
//! Every guest keeps a small record in a directory that all hosts share, and renews it every few
//! milliseconds. The record's file is its own (`VM/HOST.INCARNATION.PID`), so two running instances of one VM
//! can't hide behind each other: their lives, from first to last beat, overlap. The controller and the agents
//! know nothing of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::clock::{monotonic_ns, process_made_ns};

const MAGIC: u64 = u64::from_le_bytes(*b"DEFIBVM2");
const FIELDS: usize = 7;
const BYTES: usize = FIELDS * 8;
/// How exactly the system tells when a process was made.
const TICK_NS: u64 = 10_000_000;

/// One instance of a VM, as it wrote itself down. Times are `CLOCK_MONOTONIC` nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Which VM.
    pub vm: String,
    /// On which host.
    pub host: String,
    /// Which incarnation.
    pub incarnation: u64,
    /// Its process.
    pub pid: i32,
    /// When its process was made, at the latest: the system counts this in ticks of 10 ms.
    pub made_ns: u64,
    /// First beat.
    pub started_ns: u64,
    /// Last beat so far.
    pub last_ns: u64,
    /// When its guest was up; 0: not yet.
    pub ready_ns: u64,
    /// Beats so far.
    pub beats: u64,
    /// Longest time between two beats.
    pub longest_gap_ns: u64,
}

impl Life {
    /// Whether its process is there still, though it may not have written for long: a busy machine makes guests late.
    #[must_use]
    pub fn has_process(&self) -> bool {
        // Of a process that has ended and waits to be collected, nothing is left to read here.
        let runs = fs::read(format!("/proc/{}/cmdline", self.pid)).is_ok_and(|words| !words.is_empty());
        // Another one may have got its number meanwhile.
        runs && process_made_ns(self.pid).is_ok_and(|made| made.abs_diff(self.made_ns) <= 2 * TICK_NS)
    }
}

/// The guest's end: keeps one record.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    made_ns: u64,
    started_ns: u64,
    last_ns: u64,
    ready_ns: u64,
    beats: u64,
    longest_gap_ns: u64,
}

impl Recorder {
    /// Creates the record with its first beat.
    ///
    /// # Errors
    /// When it can't be written, or exists.
    pub fn create(directory: &Path, vm: &str, host: &str, incarnation: u64) -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        Self::witness(directory, vm, host, incarnation, pid, monotonic_ns())
    }

    /// Creates the record of a guest that can't keep one itself, with a first beat at `first_ns`: somebody saw it, and
    /// its process, which is `pid`.
    ///
    /// # Errors
    /// When it can't be written, or exists, or the process is gone.
    pub fn witness(
        directory: &Path,
        vm: &str,
        host: &str,
        incarnation: u64,
        pid: i32,
        first_ns: u64,
    ) -> io::Result<Self> {
        let folder = directory.join(vm);
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{host}.{incarnation}.{pid}"));
        let made_ns = process_made_ns(pid)?;
        let file = File::options().write(true).create_new(true).open(path)?;
        let mut recorder = Self {
            file,
            made_ns,
            started_ns: first_ns,
            last_ns: first_ns,
            ready_ns: 0,
            beats: 0,
            longest_gap_ns: 0,
        };
        recorder.beat_at(first_ns)?;
        Ok(recorder)
    }

    /// When the first beat was.
    #[must_use]
    pub const fn started_ns(&self) -> u64 {
        self.started_ns
    }

    /// Notes that this instance executes now.
    ///
    /// # Errors
    /// When the record can't be written.
    pub fn beat(&mut self) -> io::Result<()> {
        self.beat_at(monotonic_ns())
    }

    /// Notes that this instance executed at that moment, not earlier than the one before.
    ///
    /// # Errors
    /// When the record can't be written.
    pub fn beat_at(&mut self, now: u64) -> io::Result<()> {
        self.longest_gap_ns = self.longest_gap_ns.max(now.saturating_sub(self.last_ns));
        self.last_ns = self.last_ns.max(now);
        self.beats += 1;
        let mut bytes = [0; BYTES];
        let fields = [
            MAGIC,
            self.started_ns,
            self.last_ns,
            self.ready_ns,
            self.beats,
            self.longest_gap_ns,
            self.made_ns,
        ];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        self.file.write_all_at(&bytes, 0)
    }

    /// Notes that the guest is up.
    pub const fn ready(&mut self, now_ns: u64) {
        self.ready_ns = now_ns;
    }

    /// Whether the record was removed: the lab is over and so is this guest.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }
}

/// The checker's end.
#[derive(Debug, Clone)]
pub struct Oracle {
    directory: PathBuf,
}

impl Oracle {
    /// Reads records below this directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Where the records are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All lives so far, by VM and start.
    ///
    /// # Errors
    /// When a record can't be read or is none. One that is just being created is left out: it has not run yet.
    pub fn lives(&self) -> io::Result<Vec<Life>> {
        let mut lives = Vec::new();
        for folder in entries(&self.directory)? {
            let Some(vm) = folder.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            for path in entries(&folder)? {
                if let Some(life) = read(&path, &vm)? {
                    lives.push(life);
                }
            }
        }
        lives.sort_by(|one, other| (&one.vm, one.started_ns).cmp(&(&other.vm, other.started_ns)));
        Ok(lives)
    }
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn read(path: &Path, vm: &str) -> io::Result<Option<Life>> {
    let wrong =
        || io::Error::new(io::ErrorKind::InvalidData, format!("{} is no record of a guest", path.display()));
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(wrong)?;
    // Host names may hold dots.
    let mut parts = name.rsplitn(3, '.');
    let pid = parts.next().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
    let incarnation = parts.next().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
    let host = parts.next().ok_or_else(wrong)?.to_owned();
    let bytes = fs::read(path)?;
    if bytes.len() < BYTES {
        return Ok(None);
    }
    let field = |number: usize| -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[number * 8..number * 8 + 8]);
        u64::from_le_bytes(word)
    };
    if field(0) != MAGIC {
        return Err(wrong());
    }
    Ok(Some(Life {
        vm: vm.to_owned(),
        host,
        incarnation,
        pid,
        started_ns: field(1),
        last_ns: field(2),
        ready_ns: field(3),
        beats: field(4),
        longest_gap_ns: field(5),
        made_ns: field(6),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_reads_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::create(dir.path(), "cp-1", "rack.h1", 7).unwrap();
        recorder.ready(9);
        recorder.beat().unwrap();
        let lives = Oracle::new(dir.path()).lives().unwrap();
        let [life] = lives.as_slice() else { panic!("{lives:?}") };
        assert_eq!(
            (life.vm.as_str(), life.host.as_str(), life.incarnation, life.beats),
            ("cp-1", "rack.h1", 7, 2)
        );
        assert_eq!(life.started_ns, recorder.started_ns());
        assert_eq!(life.made_ns, recorder.made_ns);
        assert!(life.last_ns >= life.started_ns && life.ready_ns == 9);
        assert!(life.has_process() && !Life { made_ns: 5, ..life.clone() }.has_process());
        assert!(!recorder.is_removed());
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(recorder.is_removed());
    }

    #[test]
    fn a_record_that_has_no_beat_yet_is_left_out_and_a_foreign_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("vm")).unwrap();
        fs::write(dir.path().join("vm/h1.1.5"), b"").unwrap();
        let oracle = Oracle::new(dir.path());
        assert!(oracle.lives().unwrap().is_empty());
        fs::write(dir.path().join("vm/notes"), b"x").unwrap();
        assert!(oracle.lives().unwrap_err().to_string().contains("vm/notes"));
    }
}
