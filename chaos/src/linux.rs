//! A small Linux as a guest: Debian's kernel for clouds, and a file system in memory with nothing but our own first
//! process and what it needs to see its disk.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::machines::run;

/// Beside this program: the kernel (`vmlinuz`) and its modules, as `cargo xtask chaos` puts them there.
const FOLDER: &str = "linux-guest";
/// Modules that the first process loads.
const MODULES: [&str; 6] = [
    "virtio_ring.ko",
    "virtio.ko",
    "virtio_pci_legacy_dev.ko",
    "virtio_pci_modern_dev.ko",
    "virtio_pci.ko",
    "virtio_blk.ko",
];
/// What the kernel is told: nothing of it on the serial line, which is the guest's; and no test of a timer that a busy
/// machine can't pass.
pub(crate) const WORDS: &str = "quiet no_timer_check panic=1";

/// What a guest boots.
#[derive(Debug, Clone)]
pub(crate) struct Linux {
    /// Its kernel.
    pub(crate) kernel: PathBuf,
    /// Its file system in memory.
    pub(crate) files: PathBuf,
}

/// Where the kernel is.
///
/// # Errors
/// When it is not there, with what to do.
pub(crate) fn find() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("can't tell where this program is")?;
    let folder = own.with_file_name(FOLDER);
    let missing = ["vmlinuz"].iter().chain(&MODULES).find(|name| !folder.join(name).is_file());
    ensure!(
        missing.is_none(),
        "guests with a Linux want {}: `cargo xtask chaos` takes it from Debian's package linux-image-cloud-amd64",
        folder.join(missing.unwrap_or(&"")).display()
    );
    Ok(folder)
}

impl Linux {
    /// Made in a directory of ours.
    ///
    /// # Errors
    /// When something is missing, or can't be compiled.
    pub(crate) fn build(directory: &Path) -> anyhow::Result<Self> {
        let folder = find()?;
        let (source, program) = (directory.join("init.c"), directory.join("init"));
        fs::write(&source, include_str!("../guest/init.c"))?;
        let words = ["-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-o"];
        let (to, from) = (program.display().to_string(), source.display().to_string());
        run("cc", &[&words[..], &[&to, &from]].concat())
            .context("the first process of a guest can't be compiled")?;
        let mut archive = Vec::new();
        add(&mut archive, "init", 0o100_755, &fs::read(&program)?)?;
        for module in MODULES {
            add(&mut archive, module, 0o100_644, &fs::read(folder.join(module))?)?;
        }
        add(&mut archive, "TRAILER!!!", 0, &[])?;
        let files = directory.join("initrd");
        fs::write(&files, archive)?;
        Ok(Self { kernel: folder.join("vmlinuz"), files })
    }
}

/// A file more, in the form that the kernel unpacks: cpio's `newc`, everything to four bytes.
fn add(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
    let number = archive.len();
    let fields = [
        u32::try_from(number)?,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(content.len())?,
        0,
        0,
        0,
        0,
        u32::try_from(name.len() + 1)?,
        0,
    ];
    write!(archive, "070701")?;
    for field in fields {
        write!(archive, "{field:08x}")?;
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_kernel_unpacks() {
        let mut archive = Vec::new();
        add(&mut archive, "init", 0o100_755, b"abcde").unwrap();
        add(&mut archive, "TRAILER!!!", 0, &[]).unwrap();
        let text = String::from_utf8_lossy(&archive);
        // Magic, then: which file, mode, owner, group, links, time, length.
        assert!(text.starts_with("07070100000000000081ed0000000000000000000000010000000000000005"), "{text}");
        assert_eq!(archive.len() % 4, 0);
        // 110 bytes of header and 5 of name are filled up to 116.
        assert_eq!(&archive[116..124], b"abcde\0\0\0");
        assert_eq!(&archive[124..130], b"070701");
    }
}
