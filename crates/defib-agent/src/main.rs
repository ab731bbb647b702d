//! `defib-agent`: on each host.

use std::{path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::{Parser, Subcommand, ValueEnum};
use defib_agent::{
    config::Config,
    join, kdump,
    local::{self, Wish},
    run::{self, Ended},
};
use defib_process::{exit_code, install_cryptography, say, stop_signal};

/// Defib's agent on a host.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 done, or stopped on request, 1 failed, 2 wrong usage, 7 done, but standard output could not be written, \
                  8 ended by goodbye --shutdown: not to be started again before the host boots"
)]
struct Arguments {
    /// The agent's configuration.
    #[arg(long, global = true, env = "DEFIB_AGENT_CONFIG", default_value = "/etc/defib/agent.yaml")]
    config: PathBuf,
    /// Where heartbeats go: by the network only, or to Kafka as well. Without it: as the configuration says, which is
    /// to Kafka as well if it has a section `bus`. The network is never left out: only it brings leases.
    #[arg(long, value_enum)]
    heartbeats: Option<Heartbeats>,
    #[command(subcommand)]
    command: Option<What>,
}

/// See [`Arguments::heartbeats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Heartbeats {
    Network,
    Kafka,
}

impl Heartbeats {
    /// Makes the configuration say so.
    fn choose(self, config: &mut Config) -> anyhow::Result<()> {
        match self {
            Self::Network => config.bus = None,
            Self::Kafka => ensure!(
                config.bus.is_some(),
                "--heartbeats kafka: the configuration has no section `bus`, which says which brokers and which topic"
            ),
        }
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
enum What {
    /// Runs the agent (the default).
    Run,
    /// Checks the configuration, the certificate and the state, and changes nothing.
    CheckConfig,
    /// Prints the configuration with its defaults filled in.
    PrintConfig,
    /// Gets a certificate for this host by a join token.
    Join {
        /// The file with the token.
        #[arg(long)]
        token_file: PathBuf,
        /// The directory for key, certificate and authority; made if missing.
        #[arg(long)]
        out: PathBuf,
        /// Only say what would be done: asks nobody, and does not use the token up.
        #[arg(long)]
        dry_run: bool,
    },
    /// In the initramfs of a capture kernel: tells the replicas, until it is stopped, that this host has crashed and
    /// dumps its memory. Its VMs restart elsewhere, and its power is left alone.
    Kdump {
        /// What only a capture kernel has.
        #[arg(long, default_value = "/proc/vmcore")]
        vmcore: PathBuf,
    },
    /// Tells the replicas, through the running agent, that this host will be silent.
    Goodbye {
        /// The host shuts down: all VMs are stopped, and restart elsewhere.
        #[arg(long, conflicts_with = "restart", required_unless_present = "restart")]
        shutdown: bool,
        /// Only the agent restarts: VMs run on.
        #[arg(long)]
        restart: bool,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit_code("defib-agent", execute(&arguments))
}

/// The exit code of an agent that has said that its host shuts down. Who starts it again in this boot lets the host in
/// again, so the unit does not.
const HOST_SHUTS_DOWN: u8 = 8;

/// What the file says, and the command line beside it.
fn configuration(arguments: &Arguments) -> anyhow::Result<Config> {
    let mut config = Config::read(&arguments.config)?;
    if let Some(heartbeats) = arguments.heartbeats {
        heartbeats.choose(&mut config)?;
    }
    Ok(config)
}

fn execute(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    install_cryptography();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match &arguments.command {
        None | Some(What::Run) => {
            let config = configuration(arguments)?;
            config.log.start()?;
            let runtime = runtime()?;
            let result = runtime.block_on(async { run::run(config, stop_signal()?).await });
            runtime.shutdown_background();
            return Ok(match result? {
                Ended::Stopped => ExitCode::SUCCESS,
                Ended::HostShutsDown => HOST_SHUTS_DOWN.into(),
            });
        }
        Some(What::CheckConfig) => {
            for note in run::check(&configuration(arguments)?)? {
                say(&note);
            }
            say(&format!("{}: good", arguments.config.display()));
        }
        Some(What::PrintConfig) => {
            say(&serde_saphyr::to_string(&configuration(arguments)?)?);
        }
        Some(What::Join { token_file, out, dry_run }) => {
            say(&if *dry_run {
                join::rehearse(token_file, out)?
            } else {
                runtime()?.block_on(join::join(token_file, out))?
            });
        }
        Some(What::Kdump { vmcore }) => {
            let config = Config::read(&arguments.config)?;
            config.log.start()?;
            runtime()?.block_on(async { kdump::run(config, vmcore, stop_signal()?).await })?;
        }
        Some(What::Goodbye { shutdown, dry_run, .. }) => {
            let run_dir = run::run_dir(Config::read(&arguments.config)?)?;
            let wish = if *shutdown { Wish::Shutdown } else { Wish::Restart };
            say(&if *dry_run { local::rehearse(&run_dir, wish)? } else { local::ask(&run_dir, wish)? });
        }
    }
    Ok(ExitCode::SUCCESS)
}
