//! Shared by the integration tests and the benchmarks.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

/// The build's directory: what tests install goes there, and what they skipped.
#[must_use]
pub fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    // TARGET/debug/deps/test-0123456789abcdef
    own.ancestors().nth(3).map_or_else(|| Path::new("target").to_owned(), Path::to_owned)
}

/// Says loudly that something was not tested, and leaves a note that `cargo xtask test` counts.
///
/// # Panics
/// When the build's directory can't be written.
pub fn skip(name: &str, why: &str) {
    let text = format!("SKIPPED {name}: {why}\n");
    // Past the test harness, which would swallow it.
    let _ = std::io::stderr().lock().write_all(format!("\nNOTICE: {text}\n").as_bytes());
    let notes = target().join("skipped");
    fs::create_dir_all(&notes).expect("the build's directory can be written");
    fs::write(notes.join(format!("{name}.txt")), text).expect("a note of what was skipped can be written");
}
