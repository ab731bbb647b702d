//! Each of the incidents that happened to others is a scenario here or in the engine, with its source in the header, so
//! that it can be found by its number. Those that need real parts are named with the test that plays them.

use std::{collections::BTreeMap, fs, path::Path};

/// Incidents that no scenario can play, and the test that does: what credentials, TLS and real BMCs do.
const ELSEWHERE: &[(u32, &str, &str)] =
    &[(6, "../../tests/tests/it/bmc.rs", "wrong_credentials_are_not_tried_over_and_over")];

const INCIDENTS: std::ops::RangeInclusive<u32> = 1..=25;

/// Incidents without a number, each by its source.
const FURTHER: [&str; 9] = [
    "openbmc/bmcweb #164",
    "openshift/openshift-docs PR #112142",
    "ClusterLabs/fence-agents #530",
    "ClusterLabs/sbd PR #76",
    "corosync/corosync #389",
    "StarlingX waits 300 s, oVirt listens 90 s",
    "MissionCriticalCloud/cosmic PR #683",
    "StarlingX dead-office recovery",
    "InstanceHA, by its documentation",
];

/// Those of them that no scenario can play, and the test that does.
const FURTHER_ELSEWHERE: &[(&str, &str, &str)] = &[(
    "openbmc/bmcweb #164",
    "../../tests/tests/it/subscriptions.rs",
    "ours_is_put_right_others_are_left_alone_and_a_host_that_leaves_is_unsubscribed",
)];

/// The first lines of all scenarios: why each exists, and what it is about.
fn headers() -> Vec<String> {
    let mut headers = Vec::new();
    for directory in ["scenarios", "../defib-engine/scenarios"] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        for entry in fs::read_dir(&directory).expect("scenarios are there") {
            let text =
                fs::read_to_string(entry.expect("it can be read").path()).expect("a scenario can be read");
            headers.extend(text.lines().take_while(|line| line.starts_with('#')).map(str::to_owned));
        }
    }
    headers
}

#[test]
fn every_further_incident_is_played_and_names_its_source() {
    let headers = headers();
    let further: Vec<&String> =
        headers.iter().filter(|line| line.starts_with("# Further incident: ")).collect();
    for source in FURTHER {
        let elsewhere = FURTHER_ELSEWHERE.iter().filter(|(one, ..)| *one == source).any(|(_, file, test)| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            fs::read_to_string(path).expect("the test is there").contains(test)
        });
        assert!(elsewhere || further.iter().any(|line| line.contains(source)), "nothing plays {source}");
    }
    for line in further {
        assert!(FURTHER.iter().any(|source| line.contains(source)), "{line} is no incident of the list");
    }
}

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
