//! What each of our programs needs around its work: a configuration file that is read or refused with line and
//! field, logging, signals, exit codes.

mod document;
mod log;

use std::{
    fmt::Display,
    io::{self, Write},
    process::{ExitCode, Termination},
};

pub use document::{DocumentError, WrongField, checked_yaml, from_yaml, place_of, read_yaml};
pub use log::{LogConfig, LogFormat, log_by_environment};
use tokio::signal::unix::{SignalKind, signal};

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

/// Prints a line on standard output. A reader that went away wants no more: then the process ends, well.
pub fn say(text: &str) {
    if writeln!(io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
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
