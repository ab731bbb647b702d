//! `defibd`: one replica of the controller.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use defib_controller::{config::Config, log, run};
use tokio::signal::unix::{SignalKind, signal};

/// One replica of the Defib controller.
#[derive(Debug, Parser)]
#[command(version, about, after_help = "Exit codes: 0 stopped on request, 1 failed, 2 wrong usage.")]
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
    match execute(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain, once, where it is handled.
            eprintln!("defibd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: &Arguments) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::read(&arguments.config)?;
    match arguments.command {
        None | Some(What::Run) => {
            log::start(&config.log)?;
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(async {
                let mut terminate = signal(SignalKind::terminate())?;
                let mut interrupt = signal(SignalKind::interrupt())?;
                run::run(config, async move {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                })
                .await
            })
        }
        Some(What::CheckConfig) => {
            for note in run::check(&config)? {
                println!("{note}");
            }
            println!("{}: good", arguments.config.display());
            Ok(())
        }
        Some(What::PrintConfig) => {
            println!("{}", serde_saphyr::to_string(&config)?);
            Ok(())
        }
    }
}
