//! `cargo xtask tidy` and `cargo xtask ci`.

use std::process::ExitCode;

use crate::cargo::cargo;
use crate::selection::{Features, workspace};
use crate::steps::Steps;
use crate::tools;

pub(crate) fn tidy() -> anyhow::Result<ExitCode> {
    let mut steps = Steps::default();
    let features = Features::of_this_machine().list();
    steps.command("tidy", &mut workspace("test", &features, &["--quiet", "--test", "tidy"]));
    Ok(steps.finish())
}

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let mut steps = Steps::default();
    let mut locked = cargo(&["metadata", "--locked", "--format-version", "1"]);
    steps.command("lock", locked.stdout(std::process::Stdio::null()));
    if tools::run("cargo", &["deny", "--version"]).is_some() {
        let check = ["deny", "--config", ".deny.toml", "check", "licenses", "bans", "sources"];
        steps.command("deny", &mut cargo(&check));
    } else {
        eprintln!(
            "\nNOTICE: cargo-deny is not installed: licences, bans and sources of dependencies were NOT checked.\n        \
             Install it with `cargo install --locked cargo-deny`.\n"
        );
    }
    Ok(steps.finish())
}
