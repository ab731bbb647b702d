//! Calls of cargo.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use serde_json::Value;

/// The root of this repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The cargo that runs us, at the root of this repository.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}

/// Builds what a program of ours needs and becomes it, so that Ctrl-C and every other signal reach it and its exit code
/// is ours. Returns only if that fails.
pub(crate) fn become_program(
    name: &str,
    build: &mut Command,
    arguments: &[OsString],
) -> anyhow::Result<ExitCode> {
    let built = build.status().context("cargo can't be started")?;
    ensure!(
        built.success(),
        "what {name} needs can't be built ({built}); `cargo xtask test` says what this machine lacks"
    );
    let program = target_directory()?.join("release").join(name);
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("{} can't be started", program.display()))
}

/// What cargo says of our own packages; knows `CARGO_TARGET_DIR` and every configuration file.
pub(crate) fn metadata() -> anyhow::Result<Value> {
    let output = cargo(&["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cargo can't be started")?;
    ensure!(
        output.status.success(),
        "`cargo metadata` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("`cargo metadata` answered what is no JSON")
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> anyhow::Result<PathBuf> {
    let metadata = metadata()?;
    let path = metadata["target_directory"].as_str().context("`cargo metadata` names no target directory")?;
    Ok(path.into())
}
