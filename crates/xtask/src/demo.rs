//! `cargo xtask demo`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use crate::cargo::{cargo, target_directory};

/// All that the demo starts, built as it is deployed.
const BUILD: [&str; 10] = [
    "build",
    "--release",
    "-p",
    "defib-controller",
    "-p",
    "defib-agent",
    "-p",
    "defib-cli",
    "-p",
    "defib-lab",
];

pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let built = cargo(&BUILD).status().context("cargo can't be started")?;
    if !built.success() {
        bail!(
            "the demo's programs can't be built ({built}); `cargo xtask test` says what this machine lacks"
        );
    }
    let program = target_directory()?.join("release/defib-demo");
    // In our place, so that Ctrl-C and every other signal reach the demo itself and its exit code is ours.
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("{} can't be started", program.display()))
}
