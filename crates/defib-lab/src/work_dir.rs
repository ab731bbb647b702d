//! Directories that a program works in, and that are gone when it has ended: by itself, or, where it was killed, when
//! the next one of its kind begins.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The file in a work directory that is locked as long as its owner lives, and holds the owner's process id.
pub const OWNER: &str = "owner";

/// A directory of ours, removed when dropped.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    _owner: File,
}

impl WorkDir {
    /// Makes the wanted directory, or one of a name that begins with `prefix` among the temporary ones; then what
    /// others of that prefix left behind that were killed with SIGKILL is removed before. Their processes ended too.
    ///
    /// # Errors
    /// When it exists or can't be made.
    pub fn create(prefix: &str, wanted: Option<&Path>) -> anyhow::Result<Self> {
        let path = match wanted {
            Some(path) => std::path::absolute(path)?,
            None => {
                remove_stale(&std::env::temp_dir(), prefix);
                std::env::temp_dir().join(format!("{prefix}{}", std::process::id()))
            }
        };
        if path.exists() {
            bail!("{} exists; give a directory that does not, it is removed at the end", path.display());
        }
        fs::create_dir_all(&path).with_context(|| format!("can't create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        let mut owner = File::create(path.join(OWNER))?;
        owner.lock()?;
        writeln!(owner, "{}", std::process::id())?;
        Ok(Self { path, _owner: owner })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::error!(directory = %self.path.display(), %error, "could not be removed");
        }
    }
}

fn remove_stale(directory: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        if is_ours
            && let Ok(owner) = File::open(entry.path().join(OWNER))
            && owner.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_owner_left_that_is_gone_is_removed_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let lives = WorkDir::create("x-", Some(&place.path().join("x-1"))).unwrap();
        for (name, owned) in [("x-2", true), ("x-3", false), ("y-4", true)] {
            let path = place.path().join(name);
            fs::create_dir(&path).unwrap();
            if owned {
                fs::write(path.join(OWNER), "4").unwrap();
            }
        }
        remove_stale(place.path(), "x-");
        let left = |name: &str| place.path().join(name).exists();
        assert_eq!(["x-1", "x-2", "x-3", "y-4"].map(left), [true, false, true, true]);
        assert!(WorkDir::create("x-", Some(lives.path())).unwrap_err().to_string().contains("exists"));
        drop(lives);
        assert!(!left("x-1"));
    }
}
