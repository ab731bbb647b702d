//! Who is a VM: a file per VM that its first process writes itself, before it becomes the VM's program.
//!
//! Nothing that a program does later can change what it says: not clearing its environment, not calling itself
//! something else. Two lines: the incarnation and the kernel's boot id, by the agent; then `/proc/self/stat`, by the
//! new process. Whoever starts a VM holds a lock on the file (`flock(2)`) that ends when the program has begun or has
//! failed to, so an agent that takes over knows that no such file is about to change.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
};

use defib_model::Incarnation;
use nix::{
    fcntl::{Flock, FlockArg, OFlag, open},
    sys::stat::Mode,
};

use super::table::Stat;

/// How often, 5 ms apart, a lock is asked for.
const LOCK_ATTEMPTS: u32 = 2000;

/// The first process of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) incarnation: Incarnation,
    /// The process, which leads a session of its own.
    pub(super) pid: i32,
    /// When it started; see [`Stat::start`].
    pub(super) start: u64,
}

impl Record {
    /// Whether the process lives. Its number may be another one's by now.
    pub(super) fn lives(self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.start == self.start && !stat.ended)
    }

    /// Its session, out of all processes. The number of a session is given to no other process while somebody is in
    /// it, so what is in a session without its leader is the VM's as long as that number is nobody else's.
    pub(super) fn session(self, all: &[Stat]) -> impl Iterator<Item = &Stat> {
        let reused = Stat::of(self.pid).is_some_and(|stat| stat.start != self.start);
        all.iter().filter(move |stat| stat.session == self.pid && stat.start >= self.start && !reused)
    }
}

/// A file that waits for its process.
pub(super) struct Begun(Flock<File>);

/// The kernel's own id of this boot.
pub(super) fn kernel_boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Makes the file of a VM that is about to start. A lock goes with it to the new process until that calls `exec`.
pub(super) fn begin(path: &Path, incarnation: Incarnation, boot: &str) -> io::Result<Begun> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let file = lock(file, path)?;
    file.set_len(0)?;
    (&*file).write_all(format!("{incarnation} {boot}\n").as_bytes())?;
    Ok(Begun(file))
}

impl Begun {
    pub(super) fn descriptor(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// In the new process, between `fork` and `exec`: nothing here allocates or locks.
pub(super) fn complete(file: BorrowedFd<'_>) -> io::Result<()> {
    let stat = open(c"/proc/self/stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut buffer = [0; 1024];
    let length = nix::unistd::read(&stat, &mut buffer)?;
    let text = buffer.get(..length).unwrap_or_default();
    if nix::unistd::write(file, text)? == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Reads a file, once no process is about to write it. `None`: nothing ever came of that start, or it was before this
/// boot.
pub(super) fn read(path: &Path, boot: &str) -> io::Result<Option<Record>> {
    let file = lock(OpenOptions::new().read(true).write(true).open(path)?, path)?;
    let text = io::read_to_string(&*file)?;
    let Some((first, stat)) = text.split_once('\n') else { return Ok(None) };
    let garbled = || {
        let why = format!(
            "{}: can't be read, so it is not known whether its VM runs: make sure that it does not, and remove the file",
            path.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, why)
    };
    let (incarnation, of_boot) = first.split_once(' ').ok_or_else(garbled)?;
    if stat.is_empty() || of_boot != boot {
        return Ok(None);
    }
    let (incarnation, stat) =
        (incarnation.parse().map_err(|_| garbled())?, Stat::parse(stat).ok_or_else(garbled)?);
    Ok(Some(Record { incarnation: Incarnation(incarnation), pid: stat.pid, start: stat.start }))
}

fn lock(mut file: File, path: &Path) -> io::Result<Flock<File>> {
    for _ in 0..LOCK_ATTEMPTS {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((unlocked, _)) => file = unlocked,
        }
        let _ = nix::poll::poll(&mut [], 5_u8);
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!(
            "{}: another agent, or a VM that it starts, holds it for 10 s: end that agent",
            path.display()
        ),
    ))
}
