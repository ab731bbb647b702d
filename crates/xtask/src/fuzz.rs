//! `cargo xtask fuzz`: feeds every decoder and every machine with what nobody would write.
//!
//! The targets are crates/defib-fuzz, libFuzzer's programs around them tests/fuzz. No sanitizer is needed: our own code
//! has next to no `unsafe`, and overflow checks and debug assertions are on. So any stable Rust will do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail, ensure};

use crate::cargo::{cargo, root, target_directory};
use crate::selection::{Features, workspace};
use crate::steps::Steps;
use crate::tools;

/// The version that is known to work; a newer one that is installed is taken as well.
const CARGO_FUZZ: &str = "0.13.2";
/// An input that takes longer, in seconds, is a finding, even on a busy machine.
const INPUT_SECONDS: u32 = 30;
const MEMORY_MIB: u32 = 2048;
/// Longest input. Seeds may be longer.
const INPUT_BYTES: u32 = 8192;

/// Where things are.
struct Places {
    programs: PathBuf,
    /// What cargo-fuzz builds.
    build: PathBuf,
    /// What the fuzzer found worth keeping, per target; begins with the seeds.
    corpus: PathBuf,
    /// Crashes, per target; an ordinary test replays them.
    regressions: PathBuf,
}

pub(crate) fn run(filter: Option<&str>, seconds: u32) -> anyhow::Result<ExitCode> {
    ensure!(seconds > 0, "--seconds must be at least 1: for libFuzzer 0 means for ever");
    let target = target_directory()?;
    let programs = root().join("tests/fuzz");
    let places = Places {
        build: target.join("fuzz"),
        corpus: target.join("fuzz-corpus"),
        regressions: programs.join("regressions"),
        programs,
    };
    install()?;
    let features = Features::of_this_machine().list();
    let targets = ["--quiet", "--bin", "defib-fuzz", "--test", "regressions"];
    let built = workspace("build", &features, &targets).status().context("cargo can't be started")?;
    ensure!(built.success(), "defib-fuzz can't be built ({built})");
    let tool = target.join("debug/defib-fuzz");
    let all =
        tools::run(&tool.to_string_lossy(), &["list"]).context("defib-fuzz does not list its targets")?;
    let all: Vec<&str> = all.lines().collect();
    let chosen: Vec<&str> =
        all.iter().copied().filter(|name| filter.is_none_or(|wanted| *name == wanted)).collect();
    ensure!(
        !chosen.is_empty(),
        "there is no target `{}`; there are: {}",
        filter.unwrap_or_default(),
        all.join(", ")
    );

    let mut steps = Steps::default();
    let mut build = cargo_fuzz("build", &places);
    build.args(filter);
    steps.command("build", &mut build);
    if !steps.all_well() {
        return Ok(steps.finish());
    }
    let mut lines = Vec::new();
    for name in chosen {
        steps.step(name, &format!("fed for {seconds} s"), || {
            let line = feed(name, seconds, &tool, &places).map_err(|error| format!("{error:#}"))?;
            lines.push(line);
            Ok(())
        });
    }
    eprintln!();
    lines.iter().for_each(|line| println!("{line}"));
    Ok(steps.finish())
}

fn install() -> anyhow::Result<()> {
    if tools::run("cargo", &["fuzz", "--version"]).is_some() {
        return Ok(());
    }
    eprintln!("==> install: cargo-fuzz {CARGO_FUZZ}");
    let package = format!("cargo-fuzz@{CARGO_FUZZ}");
    let done =
        cargo(&["install", "--quiet", "--locked", &package]).status().context("cargo can't be started")?;
    ensure!(done.success(), "cargo-fuzz can't be installed: run `cargo install --locked {package}` yourself");
    Ok(())
}

fn cargo_fuzz(what: &str, places: &Places) -> Command {
    let mut command = cargo(&["fuzz", what, "--sanitizer", "none", "--fuzz-dir"]);
    command.arg(&places.programs).arg("--target-dir").arg(&places.build);
    command
}

/// Feeds one target; answers with a line about it, or fails with where the input is that it can't take.
fn feed(name: &str, seconds: u32, tool: &Path, places: &Places) -> anyhow::Result<String> {
    let (corpus, regressions) = (places.corpus.join(name), places.regressions.join(name));
    let seeded = Command::new(tool)
        .args(["seeds", name])
        .arg(&corpus)
        .status()
        .context("defib-fuzz can't be started")?;
    ensure!(seeded.success(), "the seeds can't be written to {} ({seeded})", corpus.display());
    // libFuzzer writes nothing into a folder that is not there.
    fs::create_dir_all(&regressions).with_context(|| regressions.display().to_string())?;
    let before = files(&regressions);
    let mut command = cargo_fuzz("run", places);
    command.arg(name).arg(&corpus).arg("--").args([
        format!("-max_total_time={seconds}"),
        format!("-timeout={INPUT_SECONDS}"),
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-max_len={INPUT_BYTES}"),
        "-print_final_stats=1".to_owned(),
        format!("-artifact_prefix={}/", regressions.display()),
        format!("-dict={}", corpus.with_extension("dict").display()),
    ]);
    let output = command.stdin(Stdio::null()).output().context("cargo fuzz can't be started")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let found: Vec<String> = files(&regressions)
        .into_iter()
        .filter(|file| !before.contains(file))
        .map(|file| file.display().to_string())
        .collect();
    // A folder that holds nothing is nothing to commit.
    let _ = fs::remove_dir(&regressions);
    if !found.is_empty() || !output.status.success() {
        let tail: Vec<&str> = text.lines().rev().take(60).collect();
        eprintln!("{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        if found.is_empty() {
            bail!("libFuzzer ended with {}, and left no input", output.status);
        }
        bail!(
            "it can't take {}; fix it, and commit the file with the fix: a test replays it",
            found.join(", ")
        );
    }
    summary(name, &text).with_context(|| format!("libFuzzer says nothing that is known:\n{text}"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

/// `policy  1234 executions in 60 s, coverage 567, 89 inputs kept: clean`
fn summary(name: &str, text: &str) -> Option<String> {
    let done = text.lines().rev().find_map(|line| line.strip_prefix("Done "))?;
    let words: Vec<&str> = done.split_whitespace().collect();
    let [executions, "runs", "in", seconds, ..] = words.as_slice() else { return None };
    let last = text.lines().rev().find(|line| line.starts_with('#') && line.contains(" cov: "))?;
    let after = |key: &str| last.split_once(key)?.1.split_whitespace().next();
    let kept = after(" corp: ")?.split('/').next()?;
    Some(format!(
        "{name:<14} {executions:>10} executions in {seconds:>4} s, coverage {:>6}, {kept:>5} inputs kept: clean",
        after(" cov: ")?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "INFO: Seed: 1\n#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #4096\tpulse  cov: 20 ft: 31 corp: 7/90b lim: 8 exec/s: 2048 rss: 30Mb\n\
        #9000\tDONE   cov: 21 ft: 33 corp: 8/99b lim: 11 exec/s: 4500 rss: 31Mb\nDone 9000 runs in 2 second(s)\n\
        stat::number_of_executed_units: 9000\n";

    #[test]
    fn a_clean_run_is_told_in_one_line() {
        let line = summary("policy", CLEAN).expect("it is clean");
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>().join(" "),
            "policy 9000 executions in 2 s, coverage 21, 8 inputs kept: clean"
        );
        assert_eq!(summary("policy", "Done\n"), None);
        assert_eq!(summary("policy", &CLEAN.replace("Done", "Gone")), None);
    }

    #[test]
    fn a_time_without_end_is_refused() {
        assert!(run(None, 0).expect_err("for ever").to_string().contains("--seconds"));
    }
}
