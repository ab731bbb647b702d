//! `defib`, the operator's tool.

mod bmc;
mod cluster;
mod commands;
mod files;
mod output;
mod pki;

use std::{io::Write as _, path::PathBuf};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{cluster::Failure, output::Output};

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 refused or failed, 2 wrong usage or file, 3 no replica answers, or none leads
who could make a change,
4 not found, 5 the event stream is not whole, 6 a change was sent and what became of it is unknown,
7 done, but standard output could not be written, 8 answered, but not confirmed by a leader: it may be old";

/// Operates a cluster of Defib.
#[derive(Debug, Parser)]
#[command(name = "defib", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// How to reach the cluster.
    #[arg(long, global = true, env = "DEFIB_CONFIG", default_value = "/etc/defib/operator.yaml")]
    config: PathBuf,
    /// How to print.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How the cluster is, and what needs an operator.
    Status,
    /// Hosts.
    #[command(subcommand)]
    Host(commands::HostCommand),
    /// VMs.
    #[command(subcommand)]
    Vm(commands::VmCommand),
    /// Recoveries.
    #[command(subcommand)]
    Recovery(commands::RecoveryCommand),
    /// The event stream.
    Events(commands::EventsArguments),
    /// Where the event stream is delivered to.
    #[command(subcommand)]
    Sink(commands::SinkCommand),
    /// What would happen. Changes nothing.
    #[command(subcommand)]
    Plan(commands::PlanCommand),
    /// The policy.
    #[command(subcommand)]
    Policy(commands::DocumentCommand),
    /// The inventory.
    #[command(subcommand)]
    Inventory(commands::InventoryCommand),
    /// Stops all automatic action.
    Pause(commands::Change),
    /// Allows automatic action again.
    Resume(commands::Change),
    /// The replicas.
    #[command(subcommand)]
    Replica(commands::ReplicaCommand),
    /// Certificates and join tokens.
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// BMCs, asked directly.
    #[command(subcommand)]
    Bmc(bmc::BmcCommand),
    /// Completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> std::process::ExitCode {
    defib_process::install_cryptography();
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            // Whoever closed standard error wants to know the code only.
            let message = failure.to_string();
            let _ = writeln!(std::io::stderr(), "defib: {}", output::visible_lines(&message));
            std::process::ExitCode::from(failure.code())
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Refused(format!("the system gives no resources to wait with: {error}")))
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Completions { shell } => {
            // Into memory first: the generator panics when a reader goes away.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "defib", &mut script);
            output::raw(String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
        Command::Pki(command) => pki::run(command, cli.output),
        Command::Bmc(command) => runtime()?.block_on(bmc::run(command, cli.output)),
        Command::Events(arguments) if arguments.verifies_elsewhere() => {
            commands::verify_from(&arguments, cli.output)
        }
        command => {
            let runtime = runtime()?;
            let config = files::Config::load(&cli.config)?;
            runtime.block_on(async {
                let cluster = cluster::Cluster::connect(&config)?;
                let output = cli.output;
                let done = match command {
                    Command::Status => commands::status(&cluster, output).await,
                    Command::Host(command) => commands::host(&cluster, command, output).await,
                    Command::Vm(command) => commands::vm(&cluster, command, output).await,
                    Command::Recovery(command) => commands::recovery(&cluster, command, output).await,
                    Command::Events(arguments) => commands::events(&cluster, &arguments, output).await,
                    Command::Sink(command) => commands::sink(&cluster, command, output).await,
                    Command::Plan(command) => commands::plan(&cluster, command, output).await,
                    Command::Policy(command) => commands::policy(&cluster, command, output).await,
                    Command::Inventory(command) => commands::inventory(&cluster, command, output).await,
                    Command::Pause(change) => commands::pause(&cluster, true, &change, output).await,
                    Command::Resume(change) => commands::pause(&cluster, false, &change, output).await,
                    Command::Replica(command) => commands::replica(&cluster, command, output).await,
                    Command::Pki(_) | Command::Bmc(_) | Command::Completions { .. } => Ok(()),
                };
                done.and_then(|()| cluster.confirmed())
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_contradict_nothing() {
        Cli::command().debug_assert();
    }
}
