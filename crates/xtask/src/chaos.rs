//! `cargo xtask chaos`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::bail;

use crate::cargo::{become_program, target_directory};
use crate::selection::released;
use crate::{kernel, packages};

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
    become_program("defib-chaos", &mut released(), arguments)
}
