//! What the kernel tells of processes: `proc(5)`.
#![expect(unsafe_code, reason = "pidfd_open has no wrapper")]

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
};

use defib_model::{Incarnation, VmId};
use nix::unistd::Pid;

/// Variables in the environment of a VM's processes, for its guest to read, and for us where nothing better is left:
/// a program may overwrite or clear them.
pub(super) const RUN_DIR: &str = "DEFIB_RUN_DIR";
pub(super) const VM: &str = "DEFIB_VM";
pub(super) const INCARNATION: &str = "DEFIB_INCARNATION";

/// A line of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) session: i32,
    /// When it started, in clock ticks since the boot: with the number, no other process of this boot is meant.
    pub(super) start: u64,
    /// It has ended, and nobody has asked for its exit code yet.
    pub(super) ended: bool,
}

impl Stat {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (pid, _) = line.split_once(' ')?;
        // The name may hold anything, so count from behind its last parenthesis.
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            pid: pid.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
            ended: matches!(*fields.first()?, "Z" | "X"),
        })
    }

    /// `None` when there is no such process any more.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Every process that has not ended.
    pub(super) fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::of).filter(|stat| !stat.ended).collect()
    }
}

/// The marks that a process carries in its environment; `None` if it carries none, or those of another run directory.
pub(super) fn marks(pid: i32, run_dir: &Path) -> Option<(VmId, Incarnation)> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut found: BTreeMap<&str, &str> = BTreeMap::new();
    for variable in environment.split(|byte| *byte == 0) {
        if let Some((name, value)) = std::str::from_utf8(variable).ok().and_then(|text| text.split_once('='))
        {
            found.insert(name, value);
        }
    }
    if found.get(RUN_DIR).copied() != run_dir.to_str() {
        return None;
    }
    let vm = VmId::new(found.get(VM)?).ok()?;
    Some((vm, Incarnation(found.get(INCARNATION)?.parse().ok()?)))
}

/// A descriptor that becomes readable when the process has ended.
pub(crate) fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_program_is_called() {
        let line = "4711 (a) S 1 (b) R 12 4711 4710 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 998877 10 11 12";
        let stat = Stat::parse(line).unwrap();
        let expected = Stat { pid: 4711, parent: 12, session: 4710, start: 998_877, ended: false };
        assert_eq!(stat, expected);
        assert_eq!(Stat::parse("4711 (a) S 1"), None);
        let own = Stat::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(Stat::all().contains(&own));
    }
}
