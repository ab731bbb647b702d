//! Files: written whole or not at all, keys for their owner only.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{AUTHORITY_CERTIFICATE_FILE, PkiError};

/// The name under which a peer's certificate is written.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// The name under which a peer's private key is written.
pub const KEY_FILE: &str = "tls.key";

/// Keys and certificates are a few kilobytes; a larger file is something else.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The three files that a peer needs for TLS, as configuration files name them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Its certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM, readable by its owner only.
    pub key: PathBuf,
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
}

impl TlsFiles {
    /// The usual names in one directory: `tls.crt`, `tls.key`, `ca.crt`.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            certificate: directory.join(CERTIFICATE_FILE),
            key: directory.join(KEY_FILE),
            authority: directory.join(AUTHORITY_CERTIFICATE_FILE),
        }
    }
}

/// What to do with a file that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Refuse,
    Replace,
}

pub(crate) const SECRET: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;

pub(crate) fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| PkiError::crypto("drawing random bytes", "no entropy"))?;
    Ok(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Creates a directory that only its owner may enter, with its parents.
pub(crate) fn create_private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file through a temporary one beside it, durably: after a crash there is the old content or
/// the new one.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32, existing: Existing) -> Result<(), PkiError> {
    let failed = |source| PkiError::Write { path: path.to_path_buf(), source };
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file")))?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}", hex(&random::<8>()?)));
    let temporary = parent(path).join(temporary_name);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The umask may have taken bits away; it never adds any.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        match existing {
            // A link fails where a rename would overwrite, even one that appeared just now.
            Existing::Refuse => fs::hard_link(&temporary, path)?,
            Existing::Replace => fs::rename(&temporary, path)?,
        }
        sync_directory(parent(path))
    })();
    if existing == Existing::Refuse || written.is_err() {
        // Already renamed, never created, or a leftover: in each case nothing else is to be done.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(|source| {
        if existing == Existing::Refuse && source.kind() == io::ErrorKind::AlreadyExists {
            PkiError::FileExists { path: path.to_path_buf() }
        } else {
            failed(source)
        }
    })
}

/// Reads a file of at most [`FILE_BYTES_MAX`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    let failed = |source| PkiError::Read { path: path.to_path_buf(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        return Err(PkiError::BadFile {
            path: path.to_path_buf(),
            reason: format!("is {length} bytes long, which no key or certificate is"),
        });
    }
    fs::read(path).map_err(failed)
}

/// Reads a private key, unless others could read or change it. A group may read it, as a service's does.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    let failed = |source| PkiError::Read { path: path.to_path_buf(), source };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(PkiError::Exposed { path: path.to_path_buf(), mode });
    }
    read(path).map(Zeroizing::new)
}
