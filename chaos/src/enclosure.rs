//! The namespaces that everything happens in.
//!
//! The program that a person starts only waits. It starts itself again in namespaces of its own; whoever is first in a
//! PID namespace takes everything in it along, and the kernel ends it when its parent ends, however that comes about.
//! So nothing is left behind: no process, no network, no mount; only a directory, which the waiting program removes,
//! or, where that one was killed, the next one.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use defib_lab::needs;
use defib_lab::work_dir::WorkDir;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// What the one within gets to stop everything in an orderly way.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How the directories of labs begin.
const PREFIX: &str = "defib-chaos-";
/// Interrupted.
const INTERRUPTED: u8 = 130;

/// Starts this program again, within, with these arguments and a directory, and answers as it does.
///
/// # Errors
/// When it can't be started.
pub(crate) fn enter(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(wait(arguments))
}

async fn wait(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let directory = WorkDir::create(PREFIX, None)?;
    let mut within = start(arguments, directory.path())?;
    // Its end of the pipe is how it learns that it shall stop.
    let leash = within.stdin.take();
    let ended = tokio::select! {
        status = within.wait() => Some(status?),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        _ = hangup.recv() => None,
    };
    let Some(status) = ended else {
        drop(leash);
        if timeout(STOP_WITHIN, within.wait()).await.is_err() {
            within.kill().await?;
        }
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn start(arguments: &[OsString], directory: &Path) -> anyhow::Result<tokio::process::Child> {
    let unshare = needs::find("unshare").context("there is no unshare (util-linux)")?;
    let mut command = Command::new(unshare);
    command
        .args(["--net", "--pid", "--mount", "--ipc", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .arg("within")
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::piped())
        // Ctrl-C goes to us, and we decide.
        .process_group(0);
    let parent = nix::unistd::getpid();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have died before the line above.
        if nix::unistd::getppid() != parent {
            return Err(nix::errno::Errno::ESRCH.into());
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "the child must set its parent-death signal itself")]
    // SAFETY: `prepare` makes only system calls that are async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(prepare);
    }
    tokio::process::Command::from(command).kill_on_drop(true).spawn().context("unshare can't be started")
}
