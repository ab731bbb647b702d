//! A process tree as a machine: started at power-on, stopped as a whole when frozen, gone as a whole when the
//! power goes.
//!
//! Process groups are not enough: an agent gives its VMs sessions of their own, so that they survive its restart. Two
//! nets catch what gets away. The emulator is a *child subreaper*: an orphan of the tree becomes its child instead of
//! init's. And every process of the tree inherits a marker in its environment, by which orphans of one host
//! are told from those of another, and from the emulator's other children.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid, setsid};
use tokio::time::{Instant, sleep};

/// Name of the marker in the environment of every process of a host.
pub const MARKER: &str = "DEFIB_LAB_HOST";
/// A process that is killed is gone within microseconds, or stuck in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// What to start at power-on.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) command: Vec<OsString>,
    pub(crate) output: Option<PathBuf>,
    pub(crate) marker: String,
    /// Network interfaces that go with the power.
    pub(crate) cables: Vec<String>,
}

/// The processes of one host.
#[derive(Debug)]
pub(crate) struct Tree {
    start: Start,
    /// All processes below the emulator are this host's: true when it has the process to itself.
    owns_process: bool,
    /// The parent-death signal follows the *thread* that forked, so one thread that lives as long as the
    /// emulator forks.
    spawner: SyncSender<SyncSender<anyhow::Result<Pid>>>,
    root: Option<Pid>,
    /// Members at the last look: the environment of a dead process can't be read any more.
    known: BTreeSet<i32>,
}

/// Makes orphans of this process's descendants its children. Process-wide; harmless to repeat.
pub fn become_reaper() -> anyhow::Result<()> {
    prctl::set_child_subreaper(true)
        .context("can't become the reaper of orphaned processes (Linux 3.4 or newer)")
}

impl Tree {
    pub(crate) fn new(start: Start, owns_process: bool) -> anyhow::Result<Self> {
        become_reaper()?;
        let (spawner, requests) = sync_channel::<SyncSender<anyhow::Result<Pid>>>(1);
        let what = start.clone();
        thread::Builder::new().name("power".to_owned()).spawn(move || {
            while let Ok(answer) = requests.recv() {
                let _ = answer.send(spawn(&what));
            }
        })?;
        Ok(Self { start, owns_process, spawner, root: None, known: BTreeSet::new() })
    }

    /// Starts the host's command.
    pub(crate) fn power_on(&mut self) -> anyhow::Result<Pid> {
        let (answer, pid) = sync_channel(1);
        self.spawner.send(answer).map_err(|_| anyhow!("the thread that starts hosts has ended"))?;
        let pid = pid.recv().context("the thread that starts hosts has ended")??;
        self.root = Some(pid);
        Ok(pid)
    }

    /// Live processes of the tree, the root first, then in order of their ids. Reaps the dead on the way.
    pub(crate) fn pids(&mut self) -> Vec<Pid> {
        let ours = getpid();
        let all = processes();
        let mut members: BTreeSet<i32> = BTreeSet::new();
        // The root goes by its id only as long as it is our child: ids are used again.
        if let Some(root) = self.root {
            if all.get(&root.as_raw()).is_some_and(|process| process.parent == ours.as_raw()) {
                members.insert(root.as_raw());
            } else {
                self.root = None;
            }
        }
        for (pid, process) in &all {
            let is_theirs =
                || self.owns_process || self.known.contains(pid) || is_marked(*pid, &self.start.marker);
            if process.parent == ours.as_raw() && is_theirs() {
                members.insert(*pid);
            }
        }
        // Children of members, until there are no more.
        loop {
            let is_child = |(pid, process): &(&i32, &Process)| {
                members.contains(&process.parent) && !members.contains(*pid)
            };
            let children: Vec<i32> = all.iter().filter(is_child).map(|(pid, _)| *pid).collect();
            if children.is_empty() {
                break;
            }
            members.extend(children);
        }
        let mut living = Vec::with_capacity(members.len());
        self.known.clone_from(&members);
        for pid in members {
            let process = &all[&pid];
            if process.is_dead {
                if process.parent == ours.as_raw() {
                    let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
                }
                // A dead child of a living member is that member's to bury; it runs nothing.
            } else {
                living.push(Pid::from_raw(pid));
            }
        }
        living.sort_by_key(|pid| (Some(*pid) != self.root, pid.as_raw()));
        living
    }

    /// Sends `signal` to the whole tree, and again, until no process of it is new.
    pub(crate) fn signal_all(&mut self, signal: Signal) -> Vec<Pid> {
        let mut told = BTreeSet::new();
        // What keeps forking faster than this is stopped by the caller's next round.
        for _ in 0..100 {
            let living = self.pids();
            let fresh: Vec<Pid> = living.into_iter().filter(|pid| told.insert(pid.as_raw())).collect();
            if fresh.is_empty() {
                break;
            }
            for pid in fresh {
                send(pid, signal);
            }
        }
        told.into_iter().map(Pid::from_raw).collect()
    }

    /// Cuts the power: nobody in the tree does anything after the first instant, and all of it is gone when
    /// this returns.
    ///
    /// Everything is stopped before anything is killed, the root first: otherwise an agent could see its VMs
    /// die before it dies itself, and tell about it, as no machine that loses power does.
    pub(crate) fn cut(&mut self) -> Vec<Pid> {
        if let Some(root) = self.root {
            send(root, Signal::SIGSTOP);
        }
        self.signal_all(Signal::SIGSTOP);
        // A process that is killed says goodbye: the system closes its connections. A machine without power does not.
        for cable in &self.start.cables {
            let gone = Command::new("ip").args(["link", "delete", cable]).output();
            if let Err(error) = gone {
                tracing::warn!(cable, %error, "a cable was not pulled: connections end with the host's processes");
            }
        }
        self.signal_all(Signal::SIGKILL)
    }
}

/// Waits until `living` finds nothing left, killing what turns up.
pub(crate) async fn until_gone(mut living: impl FnMut() -> Vec<Pid>) -> anyhow::Result<()> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let left = living();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(anyhow!("processes {left:?} do not die: look at them with ps -o pid,stat,wchan"));
        }
        for pid in left {
            send(pid, Signal::SIGKILL);
        }
        sleep(Duration::from_millis(1)).await;
    }
}

fn send(pid: Pid, signal: Signal) {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::error!(%pid, %signal, %error, "process of a host not signalled"),
    }
}

fn spawn(start: &Start) -> anyhow::Result<Pid> {
    let (program, arguments) = start.command.split_first().context("the host command is empty")?;
    let mut command = Command::new(program);
    command.args(arguments).env(MARKER, &start.marker).stdin(Stdio::null());
    if let Some(path) = &start.output {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("can't write the host's log {}", path.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
    }
    let emulator = getpid();
    let prepare = move || {
        setsid()?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have died before the line above.
        if nix::unistd::getppid() != emulator {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "the child must set its session and its parent-death signal itself")]
    // SAFETY: `prepare` makes only system calls that are async-signal-safe, and allocates nothing.
    let child = unsafe { command.pre_exec(prepare) }
        .spawn()
        .with_context(|| format!("can't start the host command {}", program.display()))?;
    let pid = i32::try_from(child.id()).context("process id out of range")?;
    Ok(Pid::from_raw(pid))
}

#[derive(Debug)]
struct Process {
    parent: i32,
    is_dead: bool,
}

/// All processes of this machine that we may see.
fn processes() -> BTreeMap<i32, Process> {
    let Ok(folder) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    folder
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            Some((pid, parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
        })
        .collect()
}

fn parse_stat(stat: &str) -> Option<Process> {
    // The name in parentheses may hold anything, spaces and parentheses too.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    Some(Process { parent: fields.next()?.parse().ok()?, is_dead: matches!(state, "Z" | "X" | "x") })
}

fn is_marked(pid: i32, marker: &str) -> bool {
    let wanted = format!("{MARKER}={marker}");
    std::fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
}

/// Kills every process whose marker begins with `prefix`, wherever it hangs, and tells how many. For cleaning
/// up after an emulator that was itself killed with SIGKILL and could not take its host with it. An empty
/// prefix does nothing.
pub fn sweep(prefix: &str) -> usize {
    if prefix.is_empty() {
        return 0;
    }
    let wanted = format!("{MARKER}={prefix}");
    let mut killed = BTreeSet::new();
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        let mut told = BTreeSet::new();
        // Once more as long as something new turned up: it may have been forked behind our back.
        for _ in 0..100 {
            let before = told.len();
            for (pid, process) in processes() {
                let is_theirs = || {
                    std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| {
                        all.split(|b| *b == 0).any(|entry| entry.starts_with(wanted.as_bytes()))
                    })
                };
                let is_new = !process.is_dead && pid != getpid().as_raw() && !told.contains(&pid);
                if is_new && is_theirs() {
                    send(Pid::from_raw(pid), signal);
                    told.insert(pid);
                }
            }
            if told.len() == before {
                break;
            }
        }
        killed.extend(told);
    }
    killed.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_may_hold_anything() {
        let process = parse_stat("12 (a) Z 1 (b) S 7 12 12 0 -1").unwrap();
        assert_eq!((process.parent, process.is_dead), (7, false));
        assert!(parse_stat("12 (x) Z 1 2").unwrap().is_dead);
        assert!(parse_stat("").is_none());
    }

    #[test]
    fn sweeping_without_a_prefix_kills_nobody() {
        assert_eq!(sweep(""), 0);
    }
}
