//! Each of the incidents that happened to others is a scenario here or in the engine, with its source in the header, so
//! that it can be found by its number. Those that need real parts are named with the test that plays them.

use std::{collections::BTreeMap, fs, path::Path};

/// Incidents that no scenario can play, and the test that does: what credentials, TLS and real BMCs do.
const ELSEWHERE: &[(u32, &str, &str)] =
    &[(6, "../../tests/tests/it/bmc.rs", "wrong_credentials_are_not_tried_over_and_over")];

const INCIDENTS: std::ops::RangeInclusive<u32> = 1..=25;

fn named() -> BTreeMap<u32, Vec<String>> {
    let mut named: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for directory in ["scenarios", "../defib-engine/scenarios"] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        for entry in fs::read_dir(&directory).expect("scenarios are there") {
            let path = entry.expect("it can be read").path();
            let text = fs::read_to_string(&path).expect("a scenario can be read");
            for line in text.lines().take_while(|line| line.starts_with('#')) {
                let Some(rest) = line.strip_prefix("# Incident ") else { continue };
                let (number, source) = rest.split_once(": ").expect("a number, then its source");
                let number = number.parse().expect("a number");
                assert!(source.len() > 8, "{} names no source of incident {number}", path.display());
                named.entry(number).or_default().push(path.display().to_string());
            }
        }
    }
    named
}

#[test]
fn every_incident_is_played_and_names_its_source() {
    let mut named = named();
    for (number, file, word) in ELSEWHERE {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = fs::read_to_string(&path).expect("the test is there");
        assert!(text.contains(word), "{file} does not play incident {number} any more");
        named.entry(*number).or_default().push((*file).to_owned());
    }
    let missing: Vec<u32> = INCIDENTS.filter(|number| !named.contains_key(number)).collect();
    assert!(missing.is_empty(), "nothing plays incidents {missing:?}");
    let unknown: Vec<&u32> = named.keys().filter(|number| !INCIDENTS.contains(number)).collect();
    assert!(unknown.is_empty(), "there are no incidents {unknown:?}");
}
