//! What logs of each cluster version have yielded, and must yield for ever: a replica that restarts on a newer release
//! tells itself old entries again, and one of an older release must go on beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use defib_engine::ledger::Ledger;
use defib_model::{ClusterVersion, Entry, EventSeq, LogIndex, ReplicaId};

use super::{commands::Scenario, files};

/// How many entries stand between two words of where the stream ends.
const EVERY: usize = 16;

fn folder(version: ClusterVersion) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("derivations/v{version}"))
}

/// The ledger that every scenario begins with.
fn beginning() -> Ledger {
    Ledger::new([1, 2, 3].map(ReplicaId).into())
}

/// Calls `after` with what each entry has yielded.
fn apply(entries: &[Entry], mut after: impl FnMut(usize, &Ledger)) -> Ledger {
    let mut ledger = beginning();
    for (number, entry) in entries.iter().enumerate() {
        ledger.apply(LogIndex(number as u64 + 1), entry);
        after(number, &ledger);
    }
    ledger
}

/// An entry a line, and lines such as `= 12 HASH`: the stream ends there.
fn written(entries: &[Entry]) -> String {
    let mut text = String::new();
    apply(entries, |number, ledger| {
        text.push_str(&serde_json::to_string(&entries[number]).expect("an entry has a form"));
        text.push('\n');
        if number % EVERY == EVERY - 1 || number + 1 == entries.len() {
            text.push_str(&format!("= {} {}\n", ledger.events().head(), ledger.events().head_hash()));
        }
    });
    text
}

fn kinds(entries: &[Entry]) -> BTreeSet<String> {
    let ledger = apply(entries, |_, _| {});
    let events = ledger.events().since(EventSeq(1));
    let kinds = events.map(|event| serde_json::to_value(&event.kind).expect("it has a form"));
    kinds.map(|kind| kind["kind"].as_str().unwrap_or_default().to_owned()).collect()
}

/// What was recorded of a version, by name.
fn recorded(version: ClusterVersion) -> BTreeMap<String, String> {
    let Ok(folder) = fs::read_dir(folder(version)) else { return BTreeMap::new() };
    let paths = folder.map(|entry| entry.expect("it can be read").path());
    paths
        .map(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("it can be read"))
        })
        .collect()
}

/// Records scenarios, played in a version, until they yield every kind of event that any of them yields.
fn record(version: ClusterVersion) {
    let mut logs: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for file in files() {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut scenario = Scenario::of_release(version);
        let text = fs::read_to_string(&file).expect("a scenario can be read");
        for line in text.lines().filter(|line| !line.starts_with('#')).take_while(|line| *line != "----") {
            scenario.line(line);
        }
        logs.insert(name, scenario.world.log);
    }
    let all: BTreeMap<&String, BTreeSet<String>> =
        logs.iter().map(|(name, log)| (name, kinds(log))).collect();
    let mut missing: BTreeSet<&String> = all.values().flatten().collect();
    fs::create_dir_all(folder(version)).expect("a folder for it");
    while !missing.is_empty() {
        let gain = |name: &String| all[name].iter().filter(|kind| missing.contains(kind)).count();
        // Of those that add most the shortest.
        let best = logs.keys().max_by_key(|name| (gain(name), usize::MAX - logs[*name].len()));
        let Some(best) = best else { break };
        let path = folder(version).join(format!("{best}.log"));
        fs::write(path, written(&logs[best])).expect("it can be written");
        missing.retain(|kind| !all[best].contains(*kind));
    }
}

/// With `RECORD_DERIVATIONS` what is not recorded yet is: once per version, before its first release.
#[test]
fn a_log_yields_what_it_yielded_when_its_version_was_new() {
    let mut wrong = String::new();
    for version in (ClusterVersion::OLDEST.0..=ClusterVersion::NEWEST.0).map(ClusterVersion) {
        if recorded(version).is_empty() && std::env::var_os("RECORD_DERIVATIONS").is_some() {
            record(version);
        }
        let recorded = recorded(version);
        assert!(
            !recorded.is_empty(),
            "nothing is recorded of version {version}: run me with RECORD_DERIVATIONS=1"
        );
        let mut newest = ClusterVersion::OLDEST;
        for (name, text) in &recorded {
            let lines = text.lines().filter(|line| !line.starts_with('='));
            let entries: Vec<Entry> =
                lines.map(|line| serde_json::from_str(line).expect("it is read for ever")).collect();
            newest = newest.max(apply(&entries, |_, _| {}).version());
            let now = written(&entries);
            let differs = now.lines().zip(text.lines()).find(|(now, before)| now != before);
            if let Some((now, before)) = differs {
                wrong.push_str(&format!("{name} of version {version}:\n  it was {before}\n  and is {now}\n"));
            } else if now.lines().count() != text.lines().count() {
                wrong.push_str(&format!("{name} of version {version} has another length\n"));
            }
        }
        assert_eq!(newest, version, "what is recorded of version {version} does not come to it");
    }
    assert!(
        wrong.is_empty(),
        "{wrong}a cluster of mixed releases would stop. What is new must begin with a new ClusterVersion"
    );
}
