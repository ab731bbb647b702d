//! `cargo xtask chaos`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use crate::cargo::{cargo, target_directory};
use crate::packages;

/// All that a lab starts, built as it is deployed, with the driver for real guests.
const BUILD: [&str; 14] = [
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
    "-p",
    "defib-chaos",
    "--features",
    "defib-agent/libvirt",
];

pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    packages::provide();
    if !packages::has_libvirt() {
        bail!(
            "libvirt's headers are not here: the agent's driver for real guests can't be built (apt-get install libvirt-dev)"
        );
    }
    let built = cargo(&BUILD).status().context("cargo can't be started")?;
    if !built.success() {
        bail!("the lab's programs can't be built ({built}); `cargo xtask test` says what this machine lacks");
    }
    let program = target_directory()?.join("release/defib-chaos");
    let arguments = if arguments.is_empty() { vec!["run".into(), "--ci".into()] } else { arguments.to_vec() };
    // In our place, so that Ctrl-C and every other signal reach it and its exit code is ours.
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("{} can't be started", program.display()))
}
