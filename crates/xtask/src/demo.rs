//! `cargo xtask demo`.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cargo::become_program;

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
    become_program("defib-demo", &BUILD, arguments)
}
