//! `defibd`: one replica of the controller.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use defib_controller::{config::Config, run};
use defib_process::{exit_code, install_cryptography, say, stop_signal};

/// One replica of the Defib controller.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 done, or stopped on request, 1 failed, 2 wrong usage, 7 done, but standard output could not be written"
)]
struct Arguments {
    /// The replica's configuration.
    #[arg(long, global = true, env = "DEFIBD_CONFIG", default_value = "/etc/defib/replica.yaml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Runs the replica (the default).
    Run,
    /// Checks the configuration and the certificates, and changes nothing.
    CheckConfig,
    /// Prints the configuration with its defaults filled in.
    PrintConfig,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit_code("defibd", execute(&arguments))
}

fn execute(arguments: &Arguments) -> anyhow::Result<()> {
    install_cryptography();
    let config = Config::read(&arguments.config)?;
    match arguments.command {
        None | Some(What::Run) => {
            config.log.start()?;
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let result = runtime.block_on(async { run::run(config, stop_signal()?).await });
            // What hangs, such as a write to a disk that does, must not hold up the end of the process.
            runtime.shutdown_background();
            result
        }
        Some(What::CheckConfig) => {
            for note in run::check(&config)? {
                say(&note);
            }
            say(&format!("{}: good", arguments.config.display()));
            Ok(())
        }
        Some(What::PrintConfig) => {
            say(&serde_saphyr::to_string(&config)?);
            Ok(())
        }
    }
}
