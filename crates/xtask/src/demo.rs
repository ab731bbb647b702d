//! `cargo xtask demo`.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cargo::become_program;
use crate::selection::released;

pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    become_program("defib-demo", &mut released(), arguments)
}
