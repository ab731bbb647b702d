//! Programs of others that some tests need. Where one is missing the test is skipped, loudly and counted: a test that
//! silently does not run proves nothing.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Names the file that each skipped test adds a line to; `cargo xtask test` sets it, and counts.
pub const SKIPS: &str = "DEFIB_TEST_SKIPS";

/// Where a program is: in the folders of `PATH`, or in those of the system that users don't have in theirs.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Whether all these programs are there. If not, says which test is skipped and for want of what.
#[must_use]
pub fn has(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs.iter().filter(|name| find(name).is_none()).copied().collect();
    missing.is_empty() || skip(test, &format!("this machine has no {}", missing.join(", ")))
}

/// Says that a test is skipped, and why. Answers `false`, for the test to return on.
pub fn skip(test: &str, why: &str) -> bool {
    // Not by a macro: those are silenced in tests that pass.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
    if let Some(file) = std::env::var_os(SKIPS) {
        let opened = std::fs::File::options().create(true).append(true).open(Path::new(&file));
        let _ = opened.and_then(|mut file| file.write_all(format!("{test}: {why}\n").as_bytes()));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_what_is_missing_is_not() {
        assert!(find("sh").is_some() && has("this one", &["sh"]));
        assert!(find("no-such-program").is_none());
    }
}
