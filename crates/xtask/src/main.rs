//! What a developer types: `cargo xtask test`, `demo`, `chaos`, `bench`, `fuzz`, `simulate`, `kafka`,
//! `redfish`, `tidy`, `ci`. CI types the same.

mod bench;
mod cargo;
mod chaos;
mod ci;
mod demo;
mod fuzz;
mod kafka;
mod kernel;
mod packages;
mod redfish;
mod selection;
mod simulate;
mod skipped;
mod steps;
mod target;
mod test;
mod tools;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands for working on Defib.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Name what is missing on this machine, then check the format, the lints and every test.
    Test,
    /// Build what the demo needs and run the main job; all arguments go to it (try `--help`).
    #[command(disable_help_flag = true)]
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Build what the chaos lab needs and play scenarios on hosts with real guests; all arguments go to it (try
    /// `--help`; without any: those that CI plays).
    #[command(disable_help_flag = true)]
    Chaos {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measure, and show each figure beside its peer, its limit and its target.
    Bench {
        /// Only benchmarks whose name contains this.
        filter: Option<String>,
        /// The figures as one JSON array on standard output.
        #[arg(long)]
        json: bool,
    },
    /// Feed every decoder and every machine with what nobody would write; name the input that breaks one.
    Fuzz {
        /// Only this target.
        target: Option<String>,
        /// How long each target is fed.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Run the seeds that once failed, the model checker, and seeds that nobody has seen.
    Simulate {
        /// How many unseen seeds of the profile `full`; of each other one a twentieth.
        #[arg(long, default_value_t = 1500)]
        seeds: u64,
        /// Where they begin; without it the commit decides.
        #[arg(long)]
        from: Option<u64>,
    },
    /// Put Apache Kafka together from its jars, and break it and the cluster while events flow.
    Kafka {
        /// How long things are broken.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Let DMTF's validators judge the emulated BMC.
    Redfish,
    /// The walls only: edges between crates, bans, sizes, links. A part of `test`.
    Tidy,
    /// What CI checks beside `test` and `demo`: the lock file, licences and sources.
    Ci,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Test => test::run(),
        Command::Demo { arguments } => demo::run(&arguments),
        Command::Chaos { arguments } => chaos::run(&arguments),
        Command::Bench { filter, json } => bench::run(filter.as_deref(), json),
        Command::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Command::Simulate { seeds, from } => simulate::run(seeds, from),
        Command::Kafka { seconds } => kafka::run(seconds),
        Command::Redfish => redfish::run(),
        Command::Tidy => ci::tidy(),
        Command::Ci => ci::run(),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
