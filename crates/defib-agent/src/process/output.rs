//! What VMs print, kept within bounds: the directory may lie in memory, and a VM that prints without end must not take
//! it from all others.
//!
//! A VM writes into the file itself, so that it needs no agent to live. Where the file has grown too long its end is
//! copied aside and it is emptied: the VM appends, so it goes on at the beginning. What it prints between the two is
//! lost.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

/// Bytes that a VM's file may have when it is looked at.
pub(super) const BYTES_MAX: u64 = 8 << 20;
/// Bytes of its end that are kept aside.
pub(super) const KEPT: u64 = 1 << 20;

/// The endings of files that VMs print into.
pub(super) const KINDS: [&str; 2] = ["out", "err"];

/// Shortens the files of a directory that are longer than `bytes_max`.
pub(super) fn shorten_all(directory: &Path, bytes_max: u64, kept: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let kind = path.extension().and_then(OsStr::to_str);
        let long = || entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() > bytes_max);
        if !kind.is_some_and(|kind| KINDS.contains(&kind)) || !long() {
            continue;
        }
        match shorten(&path, kept) {
            Ok(bytes) => {
                tracing::warn!(file = %path.display(), bytes, "a VM has printed so much that only the end was kept, in .old");
            }
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "what a VM prints can't be cut; it grows until there is space for its end");
            }
        }
    }
}

/// How long it was.
fn shorten(path: &Path, kept: u64) -> io::Result<u64> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(kept)))?;
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    let mut old = File::create(name)?;
    io::copy(&mut (&file).take(kept), &mut old)?;
    file.set_len(0)?;
    Ok(length)
}
