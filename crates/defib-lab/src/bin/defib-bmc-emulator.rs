//! One emulated BMC that holds the power of one host, as a process of its own: see `defib_lab::redfish`.

use std::ffi::OsString;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use defib_lab::redfish::{Certificate, EmulatorConfig, Faults, HostCommand, RedfishEmulator, SystemConfig};
use defib_process::{exit_code, install_cryptography, log_by_environment};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Emulates a Redfish BMC over HTTPS that starts a host (a command and all that it starts) and can cut its power.
/// For labs and demonstrations only.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where Redfish listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the admin interface of the lab listens (plain HTTP, loopback only); port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    admin: SocketAddr,
    /// Written, as JSON, once everything listens: addresses, pin of the certificate, process id.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// A folder with captured answers of a real server (`…/index.json` is the body of `GET …`), to be served instead of
    /// pages of our own; its first system is the host.
    #[arg(long)]
    captured: Option<PathBuf>,
    /// UUID of the system.
    #[arg(long, required_unless_present = "captured")]
    uuid: Option<String>,
    /// Serial number of the system.
    #[arg(long, required_unless_present = "captured")]
    serial: Option<String>,
    /// Last part of the system's path.
    #[arg(long, default_value = "1")]
    system: String,
    /// File with the user name in its first and the password in its second line.
    #[arg(long)]
    user_file: PathBuf,
    /// Time before each answer, such as 50ms.
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// PEM file with the certificate; without one a self-signed one is made at each start.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// PEM file with the private key.
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
    /// File that each request is appended to, as a line of JSON.
    #[arg(long)]
    log: Option<PathBuf>,
    /// File that the output of the host command is appended to.
    #[arg(long)]
    host_log: Option<PathBuf>,
    /// Network interface that is deleted in the moment in which the power goes: no connection ends by a goodbye then.
    #[arg(long = "cable")]
    cables: Vec<String>,
    /// Begins the environment marker of the host's processes, by which a lab can clean up.
    #[arg(long, default_value = "lab")]
    marker: String,
    /// Most sessions at a time.
    #[arg(long, default_value_t = 16)]
    session_limit: usize,
    /// The host is on from the start.
    #[arg(long)]
    power_on_at_start: bool,
    /// End, and take the host along, when standard input is closed: when the process that started this one is gone.
    #[arg(long)]
    die_with_parent: bool,
    /// Program and arguments of the host; without one the power is only a flag.
    #[arg(last = true)]
    host_command: Vec<OsString>,
}

fn main() -> ExitCode {
    log_by_environment();
    let arguments = Arguments::parse();
    install_cryptography();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("defib-bmc-emulator: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run(arguments));
    runtime.shutdown_background();
    exit_code("defib-bmc-emulator", outcome)
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // Before the host starts: a signal in between must not leave it behind.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let parent_gone = arguments.die_with_parent.then(watch_standard_input).transpose()?;
    let ready_file = arguments.ready_file.clone();
    let running = RedfishEmulator::start(configuration(arguments)?).await?;
    if let Some(path) = &ready_file {
        let ready = json!({
            "bmc": running.base_url(),
            "address": running.address,
            "admin": running.admin,
            "pin": running.pin()?,
            "certificate_pem": running.certificate_pem(),
            "pid": std::process::id(),
        });
        write_whole(path, &ready.to_string())?;
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = closed(parent_gone) => {}
    }
    running.stop().await
}

fn configuration(arguments: Arguments) -> anyhow::Result<EmulatorConfig> {
    let path = &arguments.user_file;
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("can't read the user file {}", path.display()))?;
    let mut lines = text.lines();
    let (Some(user), Some(password)) = (lines.next(), lines.next()) else {
        anyhow::bail!("the user file {} needs two lines: user name, password", path.display());
    };
    let command = arguments.host_command;
    let host = (!command.is_empty()).then_some(HostCommand {
        command,
        output: arguments.host_log,
        cables: arguments.cables,
    });
    let mut systems = match &arguments.captured {
        Some(folder) => EmulatorConfig::captured(folder)?.systems,
        None => vec![SystemConfig {
            id: arguments.system,
            uuid: arguments.uuid.unwrap_or_default(),
            serial: arguments.serial.unwrap_or_default(),
            host: None,
            power_on: false,
        }],
    };
    for system in &mut systems {
        system.power_on = arguments.power_on_at_start;
    }
    if let Some(first) = systems.first_mut() {
        first.host = host;
    }
    let latency_ms = u64::try_from(arguments.latency.as_millis()).context("the latency is too long")?;
    Ok(EmulatorConfig {
        listen: arguments.listen,
        admin: Some(arguments.admin),
        systems,
        captured: arguments.captured,
        user: user.to_owned(),
        password: password.to_owned(),
        certificate: match (arguments.certificate, arguments.key) {
            (Some(certificate), Some(key)) => Certificate::Files { certificate, key },
            _ => Certificate::SelfSigned,
        },
        faults: Faults { latency_ms, ..Faults::default() },
        session_limit: arguments.session_limit,
        log: arguments.log,
        owns_process: true,
        marker: arguments.marker,
    })
}

/// Whoever waits for the file sees all of it or nothing.
fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text)
        .and_then(|()| std::fs::rename(&draft, path))
        .with_context(|| format!("can't write the ready file {}", path.display()))
}

/// A thread of its own: reading standard input can't be interrupted.
fn watch_standard_input() -> anyhow::Result<oneshot::Receiver<()>> {
    let (closed, watch) = oneshot::channel();
    std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
        let mut buffer = [0; 256];
        while matches!(std::io::stdin().read(&mut buffer), Ok(1..)) {}
        let _ = closed.send(());
    })?;
    Ok(watch)
}

async fn closed(watch: Option<oneshot::Receiver<()>>) {
    match watch {
        Some(watch) => {
            let _ = watch.await;
        }
        None => std::future::pending().await,
    }
}
