//! Builds Defib clusters on machines of their own (namespaces with real libvirt and QEMU), breaks them as scenario
//! files say, and judges what came of it. Needs root; leaves nothing behind.

mod chance;
mod chassis;
mod cuts;
mod disk;
mod enclosure;
mod figures;
mod library;
mod linux;
mod machines;
mod play;
mod relay;
mod replicas;
mod report;
mod scenario;
mod session;
mod stage;
mod step;
mod watch;
mod words;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use defib_process::{exit_code, install_cryptography, log_by_environment};

use library::Library;
use relay::fate::Weather;
use session::{Order, Session};

/// Builds whole Defib clusters on machines of their own, with real libvirtd and QEMU; pulls plugs, cuts cables, kills
/// processes; and judges by the guests' own records whether every invariant held.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit code: 0 if every run passed and every invariant held, 1 if not, 2 if the arguments are wrong, \
130 if it was interrupted."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Name the scenarios.
    List {
        /// As a table, or as JSON.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Only those that CI plays.
        #[arg(long)]
        ci: bool,
    },
    /// Play scenarios, each on a lab of its own.
    Run {
        /// Their names; a name without its last part means all that begin so.
        #[arg(required_unless_present_any = ["all", "ci"])]
        scenarios: Vec<String>,
        /// All of them.
        #[arg(long, conflicts_with_all = ["scenarios", "ci"])]
        all: bool,
        /// Those that CI plays.
        #[arg(long, conflicts_with = "scenarios")]
        ci: bool,
        /// How often each.
        #[arg(long, default_value_t = 1)]
        repeat: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Play scenarios in an order that the seed decides, until the time is up.
    Soak {
        /// How long.
        #[arg(long)]
        minutes: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Called by `ipmi_sim` for everything about a host's power.
    #[command(hide = true)]
    Chassis {
        /// Where the host's BMC takes orders of the lab.
        admin: SocketAddr,
        /// Which controller asks.
        controller: String,
        /// `get` or `set`.
        verb: String,
        /// What is asked for or set, and to what.
        words: Vec<String>,
    },
    /// Stands between the halves of cables until its input ends.
    #[command(hide = true)]
    Relay {
        /// Decides what becomes of which frame.
        #[arg(long)]
        seed: u64,
        /// By how much frames are late.
        #[arg(long, value_parser = humantime::parse_duration)]
        delay: Duration,
        /// By how much more or less.
        #[arg(long, value_parser = humantime::parse_duration)]
        jitter: Duration,
        /// So many of a hundred are lost.
        #[arg(long)]
        lose: u8,
        /// So many of a hundred come twice.
        #[arg(long)]
        duplicate: u8,
        /// So many of a hundred are overtaken.
        #[arg(long)]
        reorder: u8,
        /// Two interfaces for each cable.
        interfaces: Vec<String>,
    },
    /// Used by the program itself.
    #[command(hide = true)]
    Within {
        /// Where to work.
        directory: PathBuf,
        /// What to do.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
}

#[derive(Debug, Clone, Args)]
struct Common {
    /// Decides in which moment between two heartbeats faults come, and the order of a soak.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where reports go: report.json, junit.xml, index.html.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Scenario files instead of those that the program carries.
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Where the programs are; without it: beside this one.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

fn main() -> ExitCode {
    log_by_environment();
    install_cryptography();
    exit_code("defib-chaos", start(Arguments::parse()))
}

fn start(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::List { format, ci } => {
            let library = Library::carried()?;
            match format {
                Format::Text => print!("{}", library.table(ci)),
                Format::Json => println!("{}", library.json(ci)?),
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Chassis { admin, controller: _, verb, words } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            if let Some(answer) = runtime.block_on(chassis::answer(admin, &verb, &words))? {
                println!("{answer}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Relay { seed, delay, jitter, lose, duplicate, reorder, interfaces } => {
            let weather = Weather { delay, jitter, lose, duplicate, reorder };
            relay::run(weather, seed, &interfaces)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Within { directory, rest } => {
            let program = std::iter::once(OsString::from("defib-chaos"));
            let inner = Arguments::parse_from(program.chain(rest));
            let order = order(inner.command)?.context("this is done outside")?;
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let outcome = runtime.block_on(Session::play(&directory, order, |line| println!("{line}")));
            runtime.shutdown_background();
            outcome
        }
        command @ (Command::Run { .. } | Command::Soak { .. }) => {
            // Mistakes are told before anything is built.
            let refused = |error: anyhow::Error| {
                eprintln!("defib-chaos: {error:#}");
                Ok(ExitCode::from(2))
            };
            match order(command) {
                Err(error) => return refused(error),
                Ok(None) => {}
                Ok(Some(order)) => {
                    if let Err(error) = order.check().and_then(|()| machines::check()) {
                        return refused(error);
                    }
                }
            }
            let rest: Vec<OsString> = std::env::args_os().skip(1).collect();
            enclosure::enter(&rest)
        }
    }
}

/// What is to be played.
fn order(command: Command) -> anyhow::Result<Option<Order>> {
    let library = |common: &Common| match &common.files {
        Some(directory) => Library::read(directory),
        None => Library::carried(),
    };
    match command {
        Command::Run { scenarios, all, ci, repeat, common } => {
            let library = library(&common)?;
            let chosen = if all {
                library.all()
            } else if ci {
                library.for_ci()
            } else {
                library.named(&scenarios)?
            };
            Ok(Some(Order {
                scenarios: chosen,
                repeat,
                time: None,
                seed: common.seed,
                report: common.report,
                programs: common.programs,
            }))
        }
        Command::Soak { minutes, common } => Ok(Some(Order {
            scenarios: library(&common)?.all(),
            repeat: 1,
            time: Some(Duration::from_secs(u64::from(minutes) * 60)),
            seed: common.seed,
            report: common.report,
            programs: common.programs,
        })),
        Command::List { .. } | Command::Chassis { .. } | Command::Relay { .. } | Command::Within { .. } => {
            Ok(None)
        }
    }
}
