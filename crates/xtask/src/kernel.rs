//! The kernel of the chaos lab's Linux guests: taken from Debian's package, which is only unpacked, never installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::tools;

/// Names the newest kernel for clouds.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// What a guest needs to see its disk.
const MODULES: [&str; 6] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
];

/// Puts kernel and modules into a folder, unless they are there. Without them only the scenarios that boot a Linux
/// can't be played, and those say so.
pub(crate) fn provide(folder: &Path) {
    let is_there = |name: &str| name.rsplit('/').next().is_some_and(|name| folder.join(name).is_file());
    if is_there("vmlinuz") && MODULES.iter().all(|name| is_there(name)) {
        return;
    }
    eprintln!("taking a kernel for guests from Debian's {PACKAGE}");
    if let Err(error) = fetch(folder) {
        eprintln!(
            "\nNOTICE: no kernel for guests: {error:#}\n        Scenarios with linux-guests can't be played.\n"
        );
    }
}

fn fetch(folder: &Path) -> anyhow::Result<()> {
    let package =
        newest(&tools::run("apt-cache", &["depends", PACKAGE]).context("apt-cache knows no kernel")?)?;
    let room = folder.join("package");
    if room.exists() {
        fs::remove_dir_all(&room)?;
    }
    fs::create_dir_all(&room).with_context(|| format!("can't create {}", room.display()))?;
    run(Command::new("apt-get").current_dir(&room).args(["download", "-q", &package]))?;
    let files = fs::read_dir(&room)?.collect::<Result<Vec<_>, _>>()?;
    let file = files.first().context("apt-get brought nothing")?.path();
    let unpacked = room.join("unpacked");
    run(Command::new("dpkg").arg("-x").arg(&file).arg(&unpacked))?;
    let version = package.strip_prefix("linux-image-").unwrap_or(&package);
    // The kernel last: it says that all of it is here.
    let modules = unpacked.join("lib/modules").join(version).join("kernel");
    let kernel = unpacked.join(format!("boot/vmlinuz-{version}"));
    let all = MODULES.iter().map(|name| modules.join(name)).chain([kernel]);
    for from in all {
        let name = from.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        let name = if name.starts_with("vmlinuz") { "vmlinuz".to_owned() } else { name };
        fs::copy(&from, folder.join(name)).with_context(|| format!("{package} has no {}", from.display()))?;
    }
    fs::remove_dir_all(&room).context("what was unpacked can't be removed")
}

/// The package that it stands for.
fn newest(depends: &str) -> anyhow::Result<String> {
    let named = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let kernel = named.into_iter().find(|name| name.starts_with("linux-image-"));
    Ok(kernel.with_context(|| format!("{PACKAGE} names no kernel"))?.to_owned())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{name} can't be started"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", told.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_named_by_what_stands_for_it() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(newest(text).unwrap(), "linux-image-6.1.0-56-cloud-amd64");
        assert!(newest("linux-image-cloud-amd64\n").unwrap_err().to_string().contains("names no kernel"));
    }
}
