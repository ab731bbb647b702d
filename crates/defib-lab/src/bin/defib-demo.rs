//! The main job, shown on one machine: see `defib_lab::demo`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use defib_lab::cluster::layout::{HOSTS_MAX, HOSTS_MIN};
use defib_lab::cluster::{Profile, wait_until};
use defib_lab::demo::narrator::{Narrator, Tone};
use defib_lab::demo::report::Report;
use defib_lab::demo::{Scenario, Settings, how_to_use, show};
use defib_lab::work_dir::{OWNER, WorkDir};
use defib_process::{exit_code, install_cryptography, log_by_environment};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Starts three replicas and a number of hosts, each a process of its own, on loopback; breaks things; and tells what
/// happens. Needs no root and cleans up after itself, also on Ctrl-C.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit code: 0 if every scenario passed and every invariant held, 1 if not, 2 if the \
arguments are wrong or the report can't be written, 130 if it was interrupted."
)]
struct Arguments {
    /// Only this scenario; may be given several times. Without it all are shown.
    #[arg(long, value_name = "NAME", value_parser = parse_scenario)]
    scenario: Vec<Scenario>,
    /// Write a report, JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Leave the last cluster running, and tell how to use and to stop it.
    #[arg(long)]
    keep: bool,
    /// Hosts, two to a rack.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = parse_hosts)]
    hosts: usize,
    /// 100 ms beats and BMCs that answer in 50 ms, or 20 ms beats and instant BMCs.
    #[arg(long, value_enum, default_value_t)]
    profile: ProfileName,
    /// Name the scenarios and end.
    #[arg(long)]
    list: bool,
    /// Where to work: a directory that does not exist yet; it is removed at the end. Without it: a temporary one.
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Where the programs are; without it: beside this one.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Stop a cluster that was left running in this directory.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["scenario", "report", "keep", "list", "work_dir"])]
    stop: Option<PathBuf>,
    /// Used by the demo itself.
    #[arg(long, hide = true)]
    keeper: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum ProfileName {
    #[default]
    Default,
    Fast,
}

fn parse_scenario(text: &str) -> Result<Scenario, String> {
    text.parse()
}

fn parse_hosts(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(hosts) if (HOSTS_MIN..=HOSTS_MAX).contains(&hosts) => Ok(hosts),
        _ => Err(format!("give {HOSTS_MIN} to {HOSTS_MAX}")),
    }
}

const PREFIX: &str = "defib-demo-";
/// What a keeper says when the show is over and only the cluster is left.
const OVER: u8 = b'K';

fn main() -> ExitCode {
    log_by_environment();
    let arguments = Arguments::parse();
    install_cryptography();
    exit_code("defib-demo", start(arguments))
}

fn start(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        for scenario in Scenario::ALL {
            println!("{:<20} {}", scenario.name(), scenario.text());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let Some(directory) = &arguments.stop {
        runtime.block_on(stop(directory))?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.keep && !arguments.keeper {
        return runtime.block_on(with_keeper());
    }
    let outcome = runtime.block_on(perform(arguments));
    runtime.shutdown_background();
    outcome
}

/// Whether a scenario went wrong is the exit code; an error is only what kept us from trying.
async fn perform(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // A keeper's standard input is its front's end of a socket: it ends when nobody waits for us any more.
    let front = arguments.keeper.then(|| UnixStream::from(clone_input()));
    let abandoned = front.as_ref().map(watch_front).transpose()?;
    // Before anything is started: who asks for a report shall not learn at the end that there is none.
    let report_file = match arguments.report.as_deref().map(ReportFile::open).transpose() {
        Ok(file) => file,
        Err(error) => {
            eprintln!("defib-demo: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    let work_dir = WorkDir::create(PREFIX, arguments.work_dir.as_deref())?;
    let settings = Settings {
        scenarios: if arguments.scenario.is_empty() {
            Scenario::ALL.to_vec()
        } else {
            arguments.scenario.clone()
        },
        hosts: arguments.hosts,
        profile: match arguments.profile {
            ProfileName::Default => Profile::Default,
            ProfileName::Fast => Profile::Fast,
        },
        work_dir: work_dir.path().to_owned(),
        binaries: arguments.programs.clone(),
        keep: arguments.keep,
    };
    let mut narrator = Narrator::new();
    let shown = tokio::select! {
        shown = show(&settings, &mut narrator) => Some(shown),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        _ = hangup.recv() => None,
        () = gone(abandoned) => None,
    };
    let Some(shown) = shown else {
        narrator.line("");
        narrator.line("interrupted; everything that was started has been stopped");
        return Ok(ExitCode::from(130));
    };
    let (report, kept) = shown?;
    // A disk that filled up meanwhile costs the report, not the cluster that shall be kept.
    let written = report_file.map_or(Ok(()), |file| file.write(&report));
    narrator.line("");
    narrator.line(&report.table());
    let (tone, text) = if report.passed() {
        (Tone::Good, "every scenario passed, every invariant held")
    } else {
        (Tone::Bad, "NOT every scenario passed")
    };
    let text = narrator.paint(tone, text);
    narrator.line(&text);
    if let Err(error) = &written {
        narrator.line(&format!("the report is not written: {error:#}"));
    }
    let code = u8::from(!report.passed() || written.is_err());
    if let (Some(cluster), Some(mut front)) = (kept, front) {
        let own = std::env::current_exe()?;
        narrator.line("");
        narrator.line(&how_to_use(&cluster, work_dir.path(), own.parent()));
        // The front ends with this code; from now on nobody reads what we write.
        let _ = front.write_all(&[OVER, code]);
        release_outputs()?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        drop(cluster);
    }
    Ok(ExitCode::from(code))
}

/// Where the report will go: known to be writable, and gone again unless it is written.
#[derive(Debug)]
struct ReportFile {
    path: PathBuf,
    new: bool,
}

impl ReportFile {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let new = !path.exists();
        File::options()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("--report: {} can't be written", path.display()))?;
        Ok(Self { path: path.to_owned(), new })
    }

    fn write(mut self, report: &Report) -> anyhow::Result<()> {
        report.write(&self.path)?;
        self.new = false;
        Ok(())
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        if self.new {
            // Nothing of ours is in it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Fires when the front is gone before the show is over.
fn watch_front(front: &UnixStream) -> anyhow::Result<oneshot::Receiver<()>> {
    let (tell, watch) = oneshot::channel();
    let mut front = front.try_clone()?;
    std::thread::Builder::new().name("front".to_owned()).spawn(move || {
        // The front never says anything.
        let _ = front.read(&mut [0; 1]);
        let _ = tell.send(());
    })?;
    Ok(watch)
}

async fn gone(abandoned: Option<oneshot::Receiver<()>>) {
    match abandoned {
        Some(abandoned) => drop(abandoned.await),
        None => std::future::pending().await,
    }
}

fn clone_input() -> std::os::fd::OwnedFd {
    use std::os::fd::AsFd;
    // Standard input is open in a keeper: its front made it. Without it the keeper can't work at all.
    std::io::stdin().as_fd().try_clone_to_owned().expect("the keeper's standard input is open")
}

/// Lets go of the terminal or the pipe that the front wrote to.
fn release_outputs() -> anyhow::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Runs the show in a process in a session of its own, which keeps the cluster when this one ends.
async fn with_keeper() -> anyhow::Result<ExitCode> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).arg("--keeper").stdin(std::os::fd::OwnedFd::from(theirs));
    let prepare = || nix::unistd::setsid().map(drop).map_err(Into::into);
    #[expect(
        unsafe_code,
        reason = "the keeper must leave our session by itself, so that no Ctrl-C reaches it later"
    )]
    // SAFETY: `prepare` makes one system call that is async-signal-safe, and allocates nothing.
    let mut keeper = unsafe { command.pre_exec(prepare) }.spawn().context("can't start the keeper")?;
    // The command holds the keeper's end too: as long as it is open, we would not see the keeper end.
    drop(command);
    let pid = Pid::from_raw(i32::try_from(keeper.id())?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut word = tokio::task::spawn_blocking(move || {
        let mut word = [0; 2];
        (&ours).read_exact(&mut word).ok().map(|()| word)
    });
    loop {
        tokio::select! {
            word = &mut word => {
                return match word? {
                    Some([OVER, code]) => Ok(ExitCode::from(code)),
                    _ => {
                        let status = keeper.wait()?;
                        Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
                    }
                };
            }
            _ = terminate.recv() => drop(kill(pid, Signal::SIGTERM)),
            _ = interrupt.recv() => drop(kill(pid, Signal::SIGTERM)),
            _ = hangup.recv() => drop(kill(pid, Signal::SIGTERM)),
        }
    }
}

async fn stop(directory: &Path) -> anyhow::Result<()> {
    let owner = directory.join(OWNER);
    let text = fs::read_to_string(&owner)
        .with_context(|| format!("{} is no directory of a running demo", directory.display()))?;
    let pid: i32 = text.trim().parse().with_context(|| format!("{} holds no process id", owner.display()))?;
    // A process id may have been given to somebody else; the lock tells whether its owner lives.
    if File::open(&owner)?.try_lock().is_err() {
        ensure!(pid > 1, "{} holds no process id", owner.display());
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .with_context(|| format!("process {pid} can't be stopped"))?;
        wait_until("the cluster is gone", Duration::from_secs(60), || async {
            ensure!(!directory.exists(), "{} is still there", directory.display());
            Ok(())
        })
        .await?;
        println!("stopped");
    } else {
        fs::remove_dir_all(directory)?;
        println!("its processes were gone already; what they left is removed");
    }
    Ok(())
}
