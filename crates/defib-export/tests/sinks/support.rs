//! What several tests need.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use defib_export::samples;
pub(crate) use defib_export::samples::lines;
use defib_model::Event;

/// The build's directory: what tests install goes there, and what they skipped.
pub(crate) fn target() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    built.parent().map_or_else(|| built.to_owned(), Path::to_owned)
}

/// Says loudly that something was not tested, and leaves a note that `cargo xtask test` counts.
pub(crate) fn skip(name: &str, why: &str) {
    let text = format!("SKIPPED {name}: {why}\n");
    // Past the test harness, which would swallow it.
    let _ = std::io::stderr().lock().write_all(format!("\nNOTICE: {text}\n").as_bytes());
    let notes = target().join("skipped");
    fs::create_dir_all(&notes).expect("the build's directory can be written");
    fs::write(notes.join(format!("{name}.txt")), text).expect("a note of what was skipped can be written");
}

/// The samples, numbered and chained.
pub(crate) fn stream() -> Vec<Event> {
    samples::stream(&samples::kinds().expect("allowed names"))
}
