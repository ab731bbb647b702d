//! `cargo xtask simulate`: scenarios with mistakes made on purpose, the seeds that once failed, the model checker, and
//! a range of seeds that nobody has seen. The range is printed with each step, so that whoever sees it fail can run it
//! again.

use std::process::{Command, ExitCode};

use crate::cargo::{cargo, root, target_directory};
use crate::selection::released;
use crate::steps::Steps;
use crate::tools;

/// Ranges of different commits lie so far apart.
const STRIDE: u64 = 1_000_000;

/// What is run, and of how many seeds of `full` one of the others.
const PROFILES: [(&str, u64); 9] = [
    ("full", 1),
    ("dark", 20),
    ("outage", 20),
    ("half", 20),
    ("stale", 20),
    ("liars", 20),
    ("drift", 20),
    ("twins", 20),
    ("disks", 20),
];

pub(crate) fn run(seeds: u64, from: Option<u64>) -> anyhow::Result<ExitCode> {
    let mut steps = Steps::default();
    steps.command("build", released().arg("--quiet"));
    if !steps.all_well() {
        return Ok(steps.finish());
    }
    let programs = target_directory()?.join("release");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let program = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(programs.join(name));
        command.current_dir(root()).args(arguments);
        command
    };
    let mistakes = ["test", "--quiet", "-p", "defib-engine", "--features", "mutants", "--test", "mutants"];
    steps.command("mistakes", &mut cargo(&mistakes));
    steps.command("pinned", &mut program("defib-sim", &["pinned"]));
    steps.command("model", &mut program("defib-model-check", &["--bounds", "quick"]));
    let first = from.unwrap_or_else(of_this_commit);
    for (profile, share) in PROFILES {
        let range = format!("{first}..{}", first.saturating_add(seeds.div_ceil(share)));
        let arguments = ["run", "--profile", profile, "--seeds", range.as_str(), "--jobs", &jobs.to_string()];
        steps.command(profile, &mut program("defib-sim", &arguments));
    }
    Ok(steps.finish())
}

/// Where the range of this commit begins: another one for each, the same whenever it is looked at again.
fn of_this_commit() -> u64 {
    let commit = tools::run("git", &["-C", &root().to_string_lossy(), "rev-parse", "HEAD"]);
    commit.as_deref().map_or(0, first_of)
}

fn first_of(commit: &str) -> u64 {
    let digits = commit.trim().get(..8).unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or(0).saturating_mul(STRIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_commit_has_a_range_of_its_own() {
        assert_eq!(first_of("0000000a11112222\n"), 10 * STRIDE);
        assert_ne!(first_of("0000000b11112222"), first_of("0000000a11112222"));
        assert_eq!(first_of("no commit"), 0);
    }
}
