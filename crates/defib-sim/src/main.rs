//! `defib-sim`: runs seeds, replays one, shrinks what fails, plays scenarios. Decides nothing; the library does.

use std::{io::Write as _, path::PathBuf, process::ExitCode, str::FromStr};

use clap::{Args, Parser, Subcommand, ValueEnum};
use defib_sim::{
    pinned,
    plan::{Plan, Profile},
    run::{self, Outcome},
    scenario, shrink, suite,
};

/// Simulates whole clusters from seeds, or as a scenario says.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For machines.
    Json,
}

#[derive(Debug, Args)]
struct World {
    /// What kind of world: smoke, full, drift, dark, outage, half, stale, liars, twins or disks.
    #[arg(long, default_value = "full", value_parser = Profile::from_str)]
    profile: Profile,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs all seeds of a range.
    Run {
        /// `A..B`: from A up to, not including, B.
        #[arg(long)]
        seeds: String,
        /// Threads.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
        #[command(flatten)]
        world: World,
        /// How the summary is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        /// Fails if a kind of fault, or a branch of the recovery machine, was never exercised.
        #[arg(long)]
        require_coverage: bool,
        /// Shrinks the first failure and prints its transcript.
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
        shrink: bool,
    },
    /// Runs all pinned seeds.
    Pinned,
    /// Runs one seed again and prints its transcript and its fingerprint.
    Replay {
        /// Which.
        seed: u64,
        #[command(flatten)]
        world: World,
    },
    /// Finds the smallest set of faults with which a seed still fails.
    Shrink {
        /// Which.
        seed: u64,
        #[command(flatten)]
        world: World,
    },
    /// Makes one deliberate mistake after the other, and runs seeds of the full profile until a checker objects.
    #[cfg(feature = "mutants")]
    Mutants {
        /// Only the mistakes of these names.
        #[arg(long)]
        only: Vec<String>,
        /// `A..B`: from A up to, not including, B; a mistake that none of them finds fails.
        #[arg(long, default_value = "0..1000")]
        seeds: String,
        #[command(flatten)]
        world: World,
    },
    /// Plays a scenario and compares it with what it expects.
    Scenario {
        /// The file.
        file: PathBuf,
        /// Writes what was printed into the file, instead of comparing.
        #[arg(long)]
        record: bool,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

fn range(text: &str) -> anyhow::Result<std::ops::Range<u64>> {
    let wrong = || anyhow::anyhow!("{text:?} is no range of seeds; give A..B");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    Ok(from.parse().map_err(|_| wrong())?..to.parse().map_err(|_| wrong())?)
}

fn transcript(plan: &Plan, outcome: &Outcome) -> String {
    let mut text = format!("seed {} profile {}\nfaults:\n", plan.seed, plan.profile.name());
    for episode in &plan.episodes {
        text.push_str(&format!("{episode}\n"));
    }
    text.push_str(&format!(
        "transcript (virtual ms; what no replica sees is in brackets):\n{}",
        outcome.transcript
    ));
    text.push_str(&format!("fingerprint {:016x}", outcome.fingerprint));
    text
}

fn shrunk(seed: u64, profile: Profile) -> anyhow::Result<bool> {
    let Some(shrunk) = shrink::shrink(&Plan::draw(seed, profile)) else {
        print(&format!("seed {seed} does not fail in profile {}", profile.name()))?;
        return Ok(false);
    };
    print(&format!(
        "{} of {} faults are left after {} runs",
        shrunk.plan.episodes.len(),
        Plan::draw(seed, profile).episodes.len(),
        shrunk.runs
    ))?;
    print(&transcript(&shrunk.plan, &shrunk.outcome))?;
    Ok(true)
}

fn main() -> anyhow::Result<ExitCode> {
    let good = match Cli::parse().command {
        Command::Run { seeds, jobs, world, format, require_coverage, shrink } => {
            let profile = world.profile;
            let summary = suite::run_all(range(&seeds)?, profile, jobs, &|runs, failure| {
                // Progress is for people who wait; what counts is the summary.
                let mut err = std::io::stderr().lock();
                if let Some(failure) = failure {
                    let (seed, violation) = (failure.seed, &failure.violation);
                    let _ = writeln!(
                        err,
                        "seed {seed}: {} at {} ms: {}",
                        violation.invariant, failure.at_ms, violation.text
                    );
                } else if runs.is_multiple_of(500) {
                    let _ = writeln!(err, "{runs} seeds");
                }
            });
            match format {
                Format::Json => print(&serde_json::to_string_pretty(&summary.to_json())?)?,
                Format::Text => print(&format!(
                    "{} seeds of profile {}: {} violations, {} void, {} failovers, {} faults",
                    summary.seeds,
                    profile.name(),
                    summary.failures.len(),
                    summary.void,
                    summary.counts.failovers(),
                    summary.counts.faults.values().sum::<u64>()
                ))?,
            }
            let missing = summary.counts.missing();
            if require_coverage && !missing.is_empty() {
                let _ = writeln!(std::io::stderr(), "never exercised: {}", missing.join(", "));
            }
            if let Some(first) = summary.failures.first().filter(|_| shrink && format == Format::Text) {
                shrunk(first.seed, profile)?;
            }
            summary.failures.is_empty() && (missing.is_empty() || !require_coverage)
        }
        Command::Pinned => {
            let mut good = true;
            for pinned in pinned::read(pinned::LIST).map_err(anyhow::Error::msg)? {
                let outcome = run::run(Plan::draw(pinned.seed, pinned.profile), false);
                if let Some(violation) = outcome.violation {
                    good = false;
                    let (seed, profile) = (pinned.seed, pinned.profile.name());
                    print(&format!(
                        "seed {seed} of {profile} fails: {} {}",
                        violation.invariant, violation.text
                    ))?;
                }
            }
            good
        }
        Command::Replay { seed, world } => {
            let plan = Plan::draw(seed, world.profile);
            let outcome = run::run(plan.clone(), true);
            print(&transcript(&plan, &outcome))?;
            outcome.violation.is_none()
        }
        Command::Shrink { seed, world } => !shrunk(seed, world.profile)?,
        #[cfg(feature = "mutants")]
        Command::Mutants { only, seeds, world } => {
            use defib_sim::mutants::{Mutant, catch};
            let seeds = range(&seeds)?;
            let unknown = only.iter().find(|name| !Mutant::ALL.iter().any(|one| one.name() == *name));
            anyhow::ensure!(unknown.is_none(), "there is no mistake {}", unknown.map_or("", String::as_str));
            // A checker that objects to what is right would catch everything.
            let right = suite::run_all(seeds.clone(), world.profile, 1, &|_, _| {});
            anyhow::ensure!(
                right.failures.is_empty(),
                "without any mistake {} seeds of these fail, so nothing can be said: {:?}",
                right.failures.len(),
                right.failures.first()
            );
            let mut good = true;
            for mutant in Mutant::ALL {
                if !only.is_empty() && !only.iter().any(|name| name == mutant.name()) {
                    continue;
                }
                let caught = catch(*mutant, seeds.clone(), world.profile);
                good &= caught.failure.is_some();
                let (invariant, at) =
                    caught.failure.as_ref().map_or(("not caught", String::new()), |failure| {
                        (failure.violation.invariant, failure.seed.to_string())
                    });
                let (name, mistake, took) = (mutant.name(), mutant.mistake(), caught.took.as_secs_f64());
                print(&format!(
                    "| `{name}` | {mistake} | {} | {at} | {invariant} | {took:.1} |",
                    caught.seeds
                ))?;
            }
            good
        }
        Command::Scenario { file, record, format } => {
            let text = std::fs::read_to_string(&file)?;
            let played = scenario::play(&text);
            if record {
                std::fs::write(&file, &played.written)?;
            }
            match format {
                Format::Json => print(&serde_json::to_string_pretty(&played.result)?)?,
                Format::Text => print(&played.differences(&file.display().to_string()))?,
            }
            record || played.wrong.is_empty()
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
