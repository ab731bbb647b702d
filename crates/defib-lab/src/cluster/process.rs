//! Processes that never outlive whoever started them.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use crate::clock::monotonic_ns;

type Job = (Command, SyncSender<io::Result<Child>>);

/// Parent-death signals follow the *thread* that forked, so one thread that lives as long as the process does it all.
fn spawner() -> anyhow::Result<&'static SyncSender<Job>> {
    static SPAWNER: OnceLock<Option<SyncSender<Job>>> = OnceLock::new();
    SPAWNER
        .get_or_init(|| {
            let (sender, jobs) = sync_channel::<Job>(16);
            let body = move || {
                while let Ok((mut command, answer)) = jobs.recv() {
                    let _ = answer.send(command.spawn());
                }
            };
            thread::Builder::new().name("spawner".to_owned()).spawn(body).ok().map(|_| sender)
        })
        .as_ref()
        .context("the thread that starts processes can't be started")
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program's file.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// File that its output is appended to.
    pub output: PathBuf,
    /// Whether its standard input is a pipe from us, by whose end it notices ours.
    pub watched_input: bool,
}

/// A process of ours. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts it, in a process group of its own: Ctrl-C goes to us, and we decide.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(program: &Program) -> anyhow::Result<Self> {
        let name =
            program.path.file_name().unwrap_or(program.path.as_os_str()).to_string_lossy().into_owned();
        let output = File::options()
            .create(true)
            .append(true)
            .open(&program.output)
            .with_context(|| format!("can't write {}", program.output.display()))?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .stdin(if program.watched_input { Stdio::piped() } else { Stdio::null() })
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let parent = getpid();
        let prepare = move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // It may have died before the line above.
            if nix::unistd::getppid() != parent {
                return Err(Errno::ESRCH.into());
            }
            Ok(())
        };
        if !program.watched_input {
            #[expect(unsafe_code, reason = "the child must set its parent-death signal itself")]
            // SAFETY: `prepare` makes only system calls that are async-signal-safe, and allocates nothing.
            unsafe {
                command.pre_exec(prepare);
            }
        }
        let (answer, child) = sync_channel(1);
        spawner()?
            .send((command, answer))
            .map_err(|_| anyhow!("the thread that starts processes has ended"))?;
        let child = child.recv().context("the thread that starts processes has ended")?;
        let child = child.with_context(|| format!("can't start {}", program.path.display()))?;
        Ok(Self { child, name })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        // Process ids are positive and fit on every Linux.
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends it a signal. Once it has ended, nothing is sent.
    pub fn signal(&mut self, signal: Signal) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Err(error) = kill(Pid::from_raw(self.pid()), signal)
        {
            tracing::warn!(name = self.name, %signal, %error, "not signalled");
        }
    }

    /// `kill -9`; returns when it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end, by SIGTERM and by closing its input, and kills it when it takes longer than `patience`.
    pub fn stop(&mut self, patience: Duration) {
        drop(self.child.stdin.take());
        self.signal(Signal::SIGTERM);
        let deadline = monotonic_ns().saturating_add(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
        while self.ended().is_none() && monotonic_ns() < deadline {
            pause();
        }
        self.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[expect(clippy::disallowed_methods, reason = "called from Drop, where nothing can be awaited")]
fn pause() {
    thread::sleep(Duration::from_millis(2));
}

/// Where programs are: beside the one that runs (or one directory up, for tests), or where the caller says.
///
/// # Errors
/// When it is not there.
pub fn binary(directory: Option<&Path>, name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("can't tell where this program is")?;
    let places = match directory {
        Some(directory) => vec![directory.to_path_buf()],
        None => own.ancestors().skip(1).take(2).map(Path::to_path_buf).collect(),
    };
    places.iter().map(|place| place.join(name)).find(|path| path.is_file()).with_context(|| {
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        format!(
            "there is no {name} in {}; build it with: cargo build --workspace --bins",
            places.join(" or ")
        )
    })
}

/// In words.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(dir: &Path, script: &str, watched_input: bool) -> Program {
        Program {
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            output: dir.join("output"),
            watched_input,
        }
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(&program(dir.path(), "exec sleep 600", false)).unwrap();
        let pid = process.pid();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_process_that_watches_its_input_is_asked_before_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; echo up; read x; echo bye";
        let mut process = Process::start(&program(dir.path(), script, true)).unwrap();
        let output = || std::fs::read_to_string(dir.path().join("output")).unwrap();
        let deadline = monotonic_ns() + 60_000_000_000;
        while output() != "up\n" && monotonic_ns() < deadline {
            pause();
        }
        process.stop(Duration::from_secs(60));
        assert_eq!(output(), "up\nbye\n");
    }

    #[test]
    fn what_can_not_be_started_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = program(dir.path(), "", false);
        program.path = "/nowhere/defibd".into();
        let error = Process::start(&program).unwrap_err();
        assert!(error.to_string().contains("/nowhere/defibd"));
        let error = binary(Some(dir.path()), "defibd").unwrap_err().to_string();
        assert!(error.contains("no defibd in") && error.contains("cargo build"), "{error}");
    }
}
