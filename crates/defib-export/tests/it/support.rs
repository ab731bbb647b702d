//! What several tests need.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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

/// Runs a program; its output, or what went wrong.
pub(crate) fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{} can't be started: {error}", program.display()))?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    let input = input.to_owned();
    // A child that ends early closes its end: its exit code tells more than the broken pipe.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    writer.join().expect("the writer does not panic");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = errors.lines().rev().take(5).collect();
    Err(format!("{}\n{text}{}", output.status, last.into_iter().rev().collect::<Vec<_>>().join("\n")))
}

/// The samples, numbered and chained.
pub(crate) fn stream() -> Vec<Event> {
    samples::stream(&samples::kinds().expect("allowed names"))
}
