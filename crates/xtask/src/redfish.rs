//! `cargo xtask redfish`: lets DMTF's validators judge the emulated BMC.

use std::process::ExitCode;

use crate::cargo::cargo;
use crate::steps::Steps;

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let mut steps = Steps::default();
    let features = ["--features", "conformance", "--test", "conformance", "--", "--nocapture"];
    let mut tests = cargo(&["test", "-p", "defib-tests"]);
    steps.command("validator", tests.args(features));
    Ok(steps.finish())
}
