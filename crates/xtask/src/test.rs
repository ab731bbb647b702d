//! `cargo xtask test`.

use std::process::ExitCode;

use crate::cargo::{cargo, target_directory};
use crate::packages::{self, Skips};
use crate::steps::Steps;
use crate::tools;

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let mut steps = Steps::default();
    let mut found = None;
    steps.step("tools", "what this machine must have", || {
        let compiler = std::env::var("CC").ok();
        found = Some(tools::check(tools::run, compiler.as_deref())?);
        Ok(())
    });
    let Some(tools) = found else { return Ok(steps.finish()) };
    steps.command("format", &mut cargo(&["fmt", "--all", "--check"]));
    packages::provide();
    let features: &[&str] = if packages::has_libvirt() {
        &["--features", "defib-agent/libvirt,defib-tests/libvirt"]
    } else {
        eprintln!(
            "NOTICE: libvirt's headers are not here, so its driver is NOT built (on Debian: libvirt-dev)"
        );
        &[]
    };
    let mut lints = cargo(&["clippy", "--workspace", "--all-targets"]);
    lints.args(features);
    if tools.rust_is_newer {
        eprintln!(
            "notice: rustc {} is newer than {}: its new lints are shown, not enforced",
            tools.rust,
            tools::RUST
        );
    } else {
        lints.args(["--", "-D", "warnings"]);
    }
    steps.command("lints", &mut lints);
    // Tests start our programs as processes of their own; cargo builds those of the tested package only.
    steps.command("programs", cargo(&["build", "--workspace", "--bins"]).args(features));
    let skips = Skips::begin(&target_directory()?)?;
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    steps.command("tests", skips.watch(tests.args(features)));
    skips.tell();
    Ok(steps.finish())
}
