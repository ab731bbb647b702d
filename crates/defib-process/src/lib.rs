//! What each of our programs needs around its work: a configuration file that is read or refused with line and
//! field, secrets that it names, logging, signals, exit codes.

mod document;
mod log;
mod secret;

use std::{
    fmt::Display,
    io::{self, Write},
    path::Path,
    process::{ExitCode, Termination},
    time::Duration,
};

pub use document::{
    DocumentError, WrongField, checked_yaml, fields_of, from_yaml, place_of, place_within, read_text,
    read_yaml,
};
pub use log::{LogConfig, LogFormat, log_by_environment};
pub use secret::{SecretError, secret};
use tokio::signal::unix::{SignalKind, signal};

/// How often a program says again what it does without TLS: what was said once is soon rotated away.
pub const INSECURE_SAID_EVERY: Duration = Duration::from_secs(3600);

/// Makes `ring` the process's cryptography; call it first in `main`.
pub fn install_cryptography() {
    // It fails only if one was installed before: then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Tells an error on standard error, with its causes, and makes the exit code: that of the result, or 1.
pub fn exit_code<T: Termination, E: Display>(program: &str, result: Result<T, E>) -> ExitCode {
    match result {
        Ok(done) => done.report(),
        Err(error) => {
            // The whole chain, once, where it is handled.
            let _ = writeln!(io::stderr(), "{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The exit code where standard output could not be written: what was asked is done, and who asked was not told.
pub const UNTOLD: u8 = 7;

/// Prints a line on standard output. A reader that went away wants no more: then the process ends, well. Where the
/// line can't be written otherwise (a full disk), it ends with [`UNTOLD`] and says so on standard error.
pub fn say(text: &str) {
    let Err(error) = writeln!(io::stdout(), "{text}") else { return };
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    let program = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
    let _ = writeln!(
        io::stderr(),
        "{program}: standard output can't be written: {error}; what was to be told is lost, and what was asked for is done: \
         don't ask for a change again before you have looked"
    );
    std::process::exit(UNTOLD.into());
}

/// Listens for SIGTERM and SIGINT from now on; what it returns resolves with the first of them.
///
/// # Errors
/// When the kernel refuses the handlers.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn stop_signal() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
