//! Every scenario in `scenarios/` reads as it should; `UPDATE_EXPECT=1` writes what was printed into the files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use defib_sim::scenario::play;

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = fs::read_dir(directory).expect("the directory of scenarios is there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    files
}

#[test]
fn every_scenario_reads_as_it_should() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut wrong = String::new();
    for file in files() {
        let text = fs::read_to_string(&file).expect("a scenario can be read");
        assert!(text.starts_with("# "), "{} says not why it exists", file.display());
        let played = play(&text);
        for (line, what) in &played.wrong {
            if !update
                || what.contains("VIOLATION")
                || what.contains("cannot ")
                || what.contains("nothing expects")
            {
                wrong.push_str(&format!("{}:{line}\n{what}\n", file.display()));
            }
        }
        if update && played.written != text {
            fs::write(&file, played.written).expect("a scenario can be written");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_result_names_who_was_fenced_and_where_every_vm_ended() {
    let text = "cluster hosts=3 racks=3\nvm a on=h1\nstart\npower h1 off\nrun until recovered h1\n";
    let result = play(text).result;
    assert_eq!(result["fenced"][0]["host"], "h1");
    let at = result["fenced"][0]["at_ms"].as_u64().expect("a time");
    assert!((300..2000).contains(&at), "{at}");
    assert_ne!(result["vms"]["a"]["host"], "h1");
    assert_eq!(result["vms"]["a"]["incarnation"], 2);
}

#[test]
fn what_can_not_be_done_is_said_and_never_passes_for_expected() {
    let text = "cluster hosts=2\nfly h1\n----\ncannot fly h1: it needs a cluster that was started; or there is no such command\n";
    let played = play(text);
    assert_eq!(played.wrong.len(), 1, "{played:?}");
    for line in ["power h9 off", "bmc h1 confused", "network h1 heal", "run soon", "policy brakes.x=1"] {
        let played = play(&format!("cluster hosts=2\nstart\n{line}\n"));
        assert!(played.wrong[0].1.contains("cannot "), "{line}: {played:?}");
    }
}
