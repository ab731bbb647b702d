//! Scenarios: what an operator would read in the log when this or that happens, as transcripts.
//!
//! Each file in `scenarios/` says why it exists, then gives blocks of commands, a line `----`, and what they
//! print. Times are virtual milliseconds since the cluster was up; lines in brackets are the world's own
//! doings, which no replica sees. After every step the truth is held against what the replicas believe (see
//! [`checks`]). `UPDATE_EXPECT=1` writes what was printed into the files; read it before you commit it.

#[path = "scenarios/agents.rs"]
mod agents;
#[path = "scenarios/bus.rs"]
mod bus;
#[path = "scenarios/checks.rs"]
mod checks;
#[path = "scenarios/commands.rs"]
mod commands;
#[path = "scenarios/declare.rs"]
mod declare;
#[path = "scenarios/derivations.rs"]
mod derivations;
#[path = "scenarios/happen.rs"]
mod happen;
#[path = "scenarios/machines.rs"]
mod machines;
#[path = "scenarios/operate.rs"]
mod operate;
#[path = "scenarios/play.rs"]
mod play;
#[path = "scenarios/replica.rs"]
mod replica;
#[path = "scenarios/show.rs"]
mod show;
#[path = "scenarios/world.rs"]
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
};

use play::play;

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .expect("the directory of scenarios is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    let only = std::env::var("SCENARIO").ok();
    files.retain(|path| only.as_ref().is_none_or(|only| path.to_string_lossy().contains(only.as_str())));
    files
}

#[test]
fn every_scenario_reads_as_it_should() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut wrong = String::new();
    for file in files() {
        let text = fs::read_to_string(&file).expect("a scenario can be read");
        let (written, found) = play(&text);
        for (line, what) in found {
            let never =
                what.contains("VIOLATION") || what.contains("cannot ") || what.contains("nothing expects");
            if !update || never {
                wrong.push_str(&format!("{}:{line}\n{what}\n", file.display()));
            }
        }
        if update && written != text {
            fs::write(&file, written).expect("a scenario can be written");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_same_scenario_always_prints_the_same() {
    for file in files().iter().step_by(7) {
        let text = fs::read_to_string(file).expect("a scenario can be read");
        assert_eq!(play(&text).0, play(&text).0, "{}", file.display());
    }
}

#[test]
fn every_scenario_says_why_it_exists() {
    for file in files() {
        let text = fs::read_to_string(&file).expect("a scenario can be read");
        assert!(text.starts_with("# "), "{} begins with no reason", file.display());
        assert!(text.contains("\n----\n"), "{} expects nothing", file.display());
    }
}
