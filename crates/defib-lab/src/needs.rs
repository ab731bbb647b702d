//! Programs of others that some tests need.

use std::path::PathBuf;

/// Where a program is: in the folders of `PATH`, or in those of the system that users don't have in theirs.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// That all these programs are there.
///
/// # Errors
/// Those that are missing, in words.
pub fn all(programs: &[&str]) -> Result<(), String> {
    let missing: Vec<&str> = programs.iter().filter(|name| find(name).is_none()).copied().collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("this machine has no {}", missing.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_what_is_missing_is_named() {
        assert!(find("sh").is_some() && find("no-such-program").is_none());
        assert_eq!(all(&["sh"]), Ok(()));
        assert_eq!(all(&["no-a", "sh", "no-b"]), Err("this machine has no no-a, no-b".into()));
    }
}
