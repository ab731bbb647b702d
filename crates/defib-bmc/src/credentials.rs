//! User name and password, by reference: configuration names where they are, this module reads them when a login
//! needs them, and forgets them after.
//!
//! A credentials file has two lines: user name, then password. An environment variable has the same two lines, or
//! `user:password` in one. Spaces at the ends of a line belong to it; the line end doesn't.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use zeroize::{Zeroize, Zeroizing};

/// Larger files are no credentials.
const FILE_BYTES_MAX: u64 = 4096;

/// Where user name and password are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialRef {
    /// A file with two lines, readable by its owner and at most its group.
    File(PathBuf),
    /// The name of an environment variable.
    Environment(String),
}

/// User name and password. Overwritten in memory when dropped; never printed.
#[derive(Clone)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.user.zeroize();
    }
}

impl fmt::Display for CredentialRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// Why credentials could not be had. Nothing was sent; repeating helps only after an operator acted.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file can't be opened or read.
    #[error(
        "credentials {place} can't be read; create it with two lines, user name and password, owned by this service, mode 0600"
    )]
    Unreadable {
        /// Where we looked.
        place: CredentialRef,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Others than owner and group may read or write it.
    #[error(
        "credentials {place} have mode {mode:04o}: others than their owner could read or change them; \
         run chmod 0600 on it, and change the password if the machine has other users"
    )]
    Exposed {
        /// Where we looked.
        place: CredentialRef,
        /// Permission bits.
        mode: u32,
    },
    /// The variable is not set.
    #[error("credentials {place} is not set; set it to user:password for this service")]
    Unset {
        /// Where we looked.
        place: CredentialRef,
    },
    /// The text is no pair of user name and password.
    #[error("credentials {place} have the wrong form ({why}); write two lines, user name and password")]
    Malformed {
        /// Where we looked.
        place: CredentialRef,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl std::str::FromStr for CredentialRef {
    type Err = CredentialRefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("env", name)) if !name.is_empty() => Ok(Self::Environment(name.into())),
            // What stands there may be the password itself: it is not repeated.
            Some(_) | None => Err(CredentialRefError),
        }
    }
}

/// Text that says in no known form where credentials are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("credentials are named as file:PATH or env:NAME, never written out")]
pub struct CredentialRefError;

impl CredentialRef {
    /// Reads user name and password now, where blocking does no harm.
    pub(crate) async fn read(&self) -> Result<Credentials, CredentialError> {
        let (reference, place) = (self.clone(), self.clone());
        tokio::task::spawn_blocking(move || reference.resolve())
            .await
            .unwrap_or(Err(CredentialError::Malformed { place, why: "reading it was interrupted" }))
    }

    /// Reads user name and password now. Blocks for one small file.
    pub fn resolve(&self) -> Result<Credentials, CredentialError> {
        let text = match self {
            Self::File(path) => self.read_file(path)?,
            Self::Environment(name) => Zeroizing::new(
                std::env::var(name).map_err(|_| CredentialError::Unset { place: self.clone() })?,
            ),
        };
        parse(&text, matches!(self, Self::Environment(_)))
            .map_err(|why| CredentialError::Malformed { place: self.clone(), why })
    }

    fn read_file(&self, path: &PathBuf) -> Result<Zeroizing<String>, CredentialError> {
        let unreadable = |source| CredentialError::Unreadable { place: self.clone(), source };
        let file = File::open(path).map_err(unreadable)?;
        // Asked of the open file, not of the path, so that it can't be exchanged in between.
        let metadata = file.metadata().map_err(unreadable)?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o027 != 0 {
            return Err(CredentialError::Exposed { place: self.clone(), mode });
        }
        // Reserved at once: a growing buffer would leave copies of the password behind.
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize + 1));
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(CredentialError::Malformed { place: self.clone(), why: "it is larger than 4 KiB" });
        }
        Ok(text)
    }
}

fn parse(text: &str, one_line_allowed: bool) -> Result<Credentials, &'static str> {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let (user, password) = match lines.next() {
        Some(second) => (first, second),
        None if one_line_allowed => first.split_once(':').ok_or("there is no second line and no colon")?,
        None => return Err("there is no second line"),
    };
    if lines.any(|line| !line.is_empty()) {
        return Err("there are more than two lines");
    }
    if user.is_empty() {
        return Err("the user name is empty");
    }
    if user.contains(':') {
        return Err("the user name has a colon in it");
    }
    if password.is_empty() {
        return Err("the password is empty");
    }
    Ok(Credentials { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn file(text: &str, mode: u32) -> (tempfile::NamedTempFile, CredentialRef) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
        let reference = CredentialRef::File(file.path().to_owned());
        (file, reference)
    }

    #[test]
    fn two_lines_are_user_and_password() {
        let (_keep, reference) = file("root\r\n geheim: x \r\n", 0o640);
        let credentials = reference.resolve().unwrap();
        assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("root", " geheim: x "));
        assert_eq!(format!("{credentials:?}"), "Credentials(…)");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_without_its_content() {
        for mode in [0o644, 0o604, 0o660] {
            let (_keep, reference) = file("root\ngeheim\n", mode);
            let error = reference.resolve().unwrap_err();
            assert!(matches!(error, CredentialError::Exposed { .. }), "{mode:o}");
            assert!(error.to_string().contains("chmod 0600") && !error.to_string().contains("geheim"));
        }
    }

    #[test]
    fn malformed_files_say_what_is_wrong() {
        for (text, why) in [
            ("", "second line"),
            ("root:x", "second line"),
            ("\nx\n", "user name is empty"),
            ("root\n\n", "password is empty"),
            ("root\nx\ny\n", "more than two"),
            ("ro:ot\nx\n", "colon"),
        ] {
            let (_keep, reference) = file(text, 0o600);
            assert!(reference.resolve().unwrap_err().to_string().contains(why), "{text:?}");
        }
        let (_keep, reference) = file(&"x".repeat(5000), 0o600);
        assert!(reference.resolve().unwrap_err().to_string().contains("4 KiB"));
    }

    #[test]
    fn an_unset_variable_and_a_missing_file_say_so() {
        let unset = CredentialRef::Environment("DEFIB_NO_SUCH_VARIABLE".into());
        assert!(matches!(unset.resolve(), Err(CredentialError::Unset { .. })));
        let missing = CredentialRef::File("/nonexistent/credentials".into());
        assert!(matches!(missing.resolve(), Err(CredentialError::Unreadable { .. })));
    }

    #[test]
    fn a_variable_may_hold_both_in_one_line() {
        let both = parse("root:a:b", true).unwrap();
        assert_eq!((both.user.as_str(), both.password.as_str()), ("root", "a:b"));
        assert!(parse("root", true).is_err());
    }
}
