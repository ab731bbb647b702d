//! `cargo xtask chaos`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::bail;

use crate::cargo::{become_program, target_directory};
use crate::{kernel, packages};

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
    kernel::provide(&target_directory()?.join("release/linux-guest"));
    let selection = ["run".into(), "--ci".into()];
    let arguments = if arguments.is_empty() { &selection[..] } else { arguments };
    become_program("defib-chaos", &BUILD, arguments)
}
