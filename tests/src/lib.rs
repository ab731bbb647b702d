//! Shared by the integration tests and the benchmarks.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use defib_lab::cluster::{self, Cluster};
use defib_wire::v1;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub mod bmc;
pub mod validators;

/// The build's directory: what tests install goes there, and what they skipped.
#[must_use]
pub fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    // TARGET/debug/deps/test-0123456789abcdef
    own.ancestors().nth(3).map_or_else(|| Path::new("target").to_owned(), Path::to_owned)
}

/// Runs a program to its end, with `input` for it to read; what it printed.
///
/// # Errors
/// When it can't be started or fails: with the end of what it printed.
pub fn run(program: &Path, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} can't be started", program.display()))?;
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // A child that ends early closes its end: its exit code tells more than the broken pipe.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = errors.lines().collect();
    let last = lines[lines.len().saturating_sub(5)..].join("\n");
    ensure!(output.status.success(), "{}\n{text}{last}", output.status);
    Ok(text)
}

/// Python with the libraries that a file of pip names with their checksums, in an environment of its own below
/// [`target`].
///
/// # Errors
/// When there is no Python, or PyPI does not have them.
pub fn python(name: &str, requirements: &Path) -> anyhow::Result<PathBuf> {
    /// Two tests must not install into one directory at once.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = target().join("validators").join(name);
    let (python, installed) = (directory.join("bin/python"), directory.join("installed.txt"));
    let wanted = fs::read(requirements).with_context(|| requirements.display().to_string())?;
    if fs::read(&installed).is_ok_and(|held| held == wanted) {
        return Ok(python);
    }
    run(Path::new("python3"), &["-m", "venv", "--clear", &directory.display().to_string()], "")?;
    let list = requirements.display().to_string();
    run(&python, &["-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", &list], "")?;
    fs::write(&installed, wanted)?;
    Ok(python)
}

/// Waits until something holds, for longer than anything takes that is expected to come, on any machine.
///
/// # Panics
/// When it does not.
pub async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = || std::future::ready(if holds() { Ok(()) } else { Err(anyhow::anyhow!("waited in vain")) });
    cluster::wait_until(what, Duration::from_secs(60), look).await.expect("what is waited for");
}

/// What Prometheus would see of a replica: series with labels to value.
pub type Series = BTreeMap<String, f64>;

/// Reads a replica's metrics.
///
/// # Errors
/// When nobody answers there, or otherwise than a replica does.
pub async fn scrape(address: SocketAddr) -> anyhow::Result<Series> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
    let lines = text.lines().filter(|line| line.starts_with("defib_"));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a series has a value")?;
            Ok((name.to_owned(), value.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}

/// Looks whether all sinks but one that is `dead` have every event, the last signature included.
///
/// # Errors
/// That they have not yet, or that nobody tells.
pub async fn all_delivered(cluster: &Cluster, dead: Option<&str>) -> anyhow::Result<v1::ListSinksResponse> {
    let answer = cluster.operator().sinks().await?;
    ensure!(
        answer.signed_seq + 1 == answer.head_seq,
        "signed up to {} of {}",
        answer.signed_seq,
        answer.head_seq
    );
    for sink in answer.sinks.iter().filter(|sink| Some(sink.id.as_str()) != dead) {
        ensure!(sink.lag_events == 0, "{} is {} behind: {}", sink.id, sink.lag_events, sink.trouble);
    }
    Ok(answer)
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
