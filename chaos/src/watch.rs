//! Sees guests beat, and keeps their records for the oracle.
//!
//! A guest can't write into the oracle's directory itself. It says on its serial line that it beats; that line is a
//! file of its host, so where it runs is certain, and when the file was changed last is the moment of its last beat,
//! however late it is looked at. It also reads its disk before it writes there, and says when somebody else had
//! written meanwhile: two instances find each other by themselves.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use defib_lab::clock::wall_minus_monotonic_ns;
use defib_lab::cluster::Cluster;
use defib_lab::oracle::Recorder;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::machines::pulse;

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Between two beats of a guest.
const BEAT_NS: u64 = 50_000_000;

/// What only guests can know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Somebody else wrote to the disk of a guest while it ran.
    pub(crate) second_writers: Vec<String>,
    /// Guests that beat and were gone before it was seen which process they were.
    pub(crate) unseen: Vec<String>,
    /// Guests whose disk failed.
    pub(crate) disk_errors: Vec<String>,
}

/// Watches a cluster's guests until dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    found: Arc<Mutex<Found>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let oracle = cluster.oracle().directory().to_owned();
        let mut lines = Vec::new();
        for host in cluster.host_names() {
            let directory = cluster.directory().join("hosts").join(&host);
            for vm in cluster.inventory().vms.keys() {
                lines.push(Line::new(&host, &directory, vm.as_str()));
            }
        }
        let found: Arc<Mutex<Found>> = Arc::default();
        let into = Arc::clone(&found);
        let task = tokio::spawn(async move {
            let mut pace = interval(LOOK_EVERY);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                pace.tick().await;
                for line in &mut lines {
                    if let Err(error) = line.look(&oracle, &into) {
                        tracing::warn!(host = line.host, vm = line.vm, %error, "its beats can't be seen");
                    }
                }
            }
        });
        Self { found, task }
    }

    /// What was found so far.
    pub(crate) fn found(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One guest's boot.
#[derive(Debug)]
struct Boot {
    number: String,
    first_ns: u64,
    last_ns: u64,
    beats: u64,
    recorder: Option<Recorder>,
    accused: bool,
}

/// The serial line of a VM on a host.
#[derive(Debug)]
struct Line {
    host: String,
    vm: String,
    path: PathBuf,
    network: PathBuf,
    file: Option<File>,
    read: u64,
    /// A word that has not ended yet.
    word: Option<String>,
    boot: Option<Boot>,
}

/// What stands on a serial line.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Boot(String),
    Beat,
    SecondWriter,
    DiskError,
}

impl Line {
    fn new(host: &str, directory: &Path, vm: &str) -> Self {
        Self {
            host: host.to_owned(),
            vm: vm.to_owned(),
            path: pulse(directory, vm),
            network: directory.join("netns"),
            file: None,
            read: 0,
            word: None,
            boot: None,
        }
    }

    fn look(&mut self, oracle: &Path, found: &Mutex<Found>) -> io::Result<()> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
        }
        let Some(file) = &self.file else { return Ok(()) };
        let metadata = file.metadata()?;
        if metadata.len() > self.read {
            let mut bytes = vec![0; usize::try_from(metadata.len() - self.read).unwrap_or(0).min(1 << 16)];
            file.read_exact_at(&mut bytes, self.read)?;
            self.read += bytes.len() as u64;
            let wall = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
            let at = u64::try_from(wall - wall_minus_monotonic_ns()).unwrap_or(0);
            let said = words(&mut self.word, &bytes);
            self.hear(said, at, found);
        }
        self.record(oracle, found)
    }

    fn hear(&mut self, said: Vec<Said>, at: u64, found: &Mutex<Found>) {
        for one in said {
            if let Said::Boot(number) = one {
                self.leave(found);
                let new =
                    Boot { number, first_ns: at, last_ns: at, beats: 0, recorder: None, accused: false };
                self.boot = Some(new);
                continue;
            }
            let Some(boot) = &mut self.boot else { continue };
            boot.beats += 1;
            boot.last_ns = boot.last_ns.max(at);
            let told = format!("{} on {} (boot {})", self.vm, self.host, boot.number);
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            match one {
                Said::SecondWriter if !boot.accused => {
                    boot.accused = true;
                    found.second_writers.push(told);
                }
                Said::DiskError => found.disk_errors.push(told),
                Said::SecondWriter | Said::Beat | Said::Boot(_) => {}
            }
        }
        if let Some(boot) = &mut self.boot
            && boot.recorder.is_none()
        {
            // Looked at late, it had beaten before.
            boot.first_ns = boot.last_ns.saturating_sub(boot.beats.saturating_sub(1) * BEAT_NS);
        }
    }

    /// A boot is over that nobody saw.
    fn leave(&mut self, found: &Mutex<Found>) {
        if let Some(boot) = self.boot.take()
            && boot.recorder.is_none()
        {
            let told = format!("{} on {} (boot {})", self.vm, self.host, boot.number);
            found.lock().unwrap_or_else(PoisonError::into_inner).unseen.push(told);
        }
    }

    /// Writes down what was heard, as soon as it is known which process it is.
    fn record(&mut self, oracle: &Path, found: &Mutex<Found>) -> io::Result<()> {
        let Some(boot) = &mut self.boot else { return Ok(()) };
        if let Some(recorder) = &mut boot.recorder {
            return recorder.beat_at(boot.last_ns);
        }
        match process(&self.vm, &self.network) {
            Some((pid, Some(incarnation))) => {
                let seen = Recorder::witness(oracle, &self.vm, &self.host, incarnation, pid, boot.first_ns);
                match seen {
                    Ok(mut recorder) => {
                        recorder.ready(boot.first_ns);
                        recorder.beat_at(boot.last_ns)?;
                        boot.recorder = Some(recorder);
                    }
                    // It ended between two looks; the next one finds no process.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            // libvirt writes down what it starts a moment after it has started it.
            Some((_, None)) => {}
            None => self.leave(found),
        }
        Ok(())
    }
}

/// The QEMU of a VM in a host's network, and the incarnation by which libvirt knows it.
fn process(vm: &str, network: &Path) -> Option<(i32, Option<u64>)> {
    let network = fs::read_to_string(network).ok()?;
    let name = format!("guest={vm},");
    let pid = pids().find(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|word| word.starts_with(name.as_bytes()))
            && is_in(*pid, &network)
    })?;
    let status =
        fs::read_to_string(format!("/proc/{pid}/root/run/libvirt/qemu/{vm}.xml")).unwrap_or_default();
    Some((pid, incarnation(&status)))
}

fn is_in(pid: i32, network: &str) -> bool {
    fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link.as_os_str() == network.trim())
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The QEMU of a VM, wherever it runs.
pub(crate) fn guests(vm: &str) -> Vec<i32> {
    named(&format!("guest={vm},"), None)
}

/// Processes of a host one of whose words begins like this.
pub(crate) fn of_host(host_directory: &Path, word: &str) -> Vec<i32> {
    fs::read_to_string(host_directory.join("netns"))
        .map_or_else(|_| Vec::new(), |network| named(word, Some(&network)))
}

fn named(beginning: &str, network: Option<&str>) -> Vec<i32> {
    let is = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|word| word.starts_with(beginning.as_bytes()))
            && network.is_none_or(|network| is_in(*pid, network))
    };
    pids().filter(is).collect()
}

/// In libvirt's status of a domain, by Defib's mark.
fn incarnation(status: &str) -> Option<u64> {
    let mark = status.split("https://defib.dev/xmlns/libvirt/1").nth(1)?;
    let value = mark.split("incarnation=").nth(1)?;
    value.trim_start_matches(['\'', '"']).split(['\'', '"']).next()?.parse().ok()
}

/// What these bytes say, which may begin and end within a word.
fn words(word: &mut Option<String>, bytes: &[u8]) -> Vec<Said> {
    let mut said = Vec::new();
    for byte in bytes {
        match (byte, word.as_mut()) {
            (b'\n', Some(text)) => {
                let number = text.strip_prefix("boot ").unwrap_or(text).to_owned();
                said.push(Said::Boot(number));
                *word = None;
            }
            (letter, Some(text)) => text.push(char::from(*letter)),
            (b'b', None) => *word = Some("b".to_owned()),
            (b'.', None) => said.push(Said::Beat),
            (b'!', None) => said.push(Said::SecondWriter),
            (b'?', None) => said.push(Said::DiskError),
            // The BIOS may say something.
            (_, None) => {}
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_line_is_understood_in_pieces() {
        let mut word = None;
        assert_eq!(words(&mut word, b"boot 00ab"), []);
        let boot = Said::Boot("00abcdef".into());
        assert_eq!(words(&mut word, b"cdef\n.."), [boot, Said::Beat, Said::Beat]);
        assert_eq!(words(&mut word, b"!?\r"), [Said::SecondWriter, Said::DiskError]);
    }

    #[test]
    fn the_incarnation_is_read_from_libvirts_status() {
        let status = "<domstatus><domain><uuid>x</uuid><metadata><defib:vm xmlns:defib=\"https://defib.dev/xmlns/libvirt/1\" \
                      vm=\"cp-1\" incarnation=\"12\" epoch=\"4\"/></metadata></domain></domstatus>";
        assert_eq!(incarnation(status), Some(12));
        assert_eq!(incarnation("<domstatus/>"), None);
    }

    #[test]
    fn a_second_writer_is_told_once_and_a_late_look_finds_the_first_beat() {
        let found = Mutex::default();
        let mut line = Line::new("h1", Path::new("/nowhere"), "cp-1");
        let second = 1_000_000_000;
        line.hear(vec![Said::Boot("7".into()), Said::Beat, Said::Beat, Said::Beat], second, &found);
        let boot = line.boot.as_ref().unwrap();
        assert_eq!((boot.first_ns, boot.last_ns), (second - 2 * BEAT_NS, second));
        line.hear(vec![Said::SecondWriter, Said::SecondWriter], second + 1, &found);
        assert_eq!(found.lock().unwrap().second_writers, ["cp-1 on h1 (boot 7)"]);
        line.hear(vec![Said::Boot("8".into())], second + 2, &found);
        assert_eq!(found.lock().unwrap().unseen, ["cp-1 on h1 (boot 7)"]);
    }
}
