//! A guest of the lab: what runs as a "VM" on the lab's hosts. It does nothing but say that it runs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use defib_lab::{clock::monotonic_ns, oracle::Recorder};

/// Keeps a record of its own life for the double-run oracle, and says when it is up. Ends when it is killed.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Directory of the records.
    #[arg(long)]
    oracle: PathBuf,
    /// What it takes to boot, such as 25ms.
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    boot: Duration,
    /// Time between two beats.
    #[arg(long, default_value = "10ms", value_parser = humantime::parse_duration)]
    beat: Duration,
    /// The host that it runs on.
    #[arg(long, env = "DEFIB_LAB_NAME")]
    host: String,
    /// Its name.
    #[arg(long, env = "DEFIB_VM")]
    vm: String,
    /// Its incarnation.
    #[arg(long, env = "DEFIB_INCARNATION")]
    incarnation: u64,
    /// Where to say that it is up.
    #[arg(long, env = "DEFIB_RUN_DIR")]
    run_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("defib-lab-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { oracle, vm, host, incarnation, .. } = arguments;
    let mut recorder = Recorder::create(oracle, vm, host, *incarnation)
        .with_context(|| format!("can't keep a record below {}", oracle.display()))?;
    let up_at =
        recorder.started_ns() + u64::try_from(arguments.boot.as_nanos()).context("so long nobody waits")?;
    let mut up = false;
    loop {
        let now = monotonic_ns();
        if !up && now >= up_at {
            up = true;
            recorder.ready(now);
            if let Some(run_dir) = &arguments.run_dir {
                let path = run_dir.join("vms").join(format!("{vm}.{incarnation}.ready"));
                std::fs::write(&path, b"ready\n")
                    .with_context(|| format!("can't write {}", path.display()))?;
            }
        }
        recorder.beat().context("the record can't be written")?;
        // The lab's directory is gone: nobody is left to stop this guest.
        if recorder.is_removed() {
            return Ok(());
        }
        pause(if up {
            arguments.beat
        } else {
            arguments.beat.min(Duration::from_nanos(up_at.saturating_sub(now)))
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "a guest has nothing to wait for but time")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
