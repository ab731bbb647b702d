//! Each checker must find what it is for, and nothing in a good run.

use super::*;
use defib_model::chain::{GENESIS, event_hash};
use defib_model::event::ProofKind;
use defib_model::inventory::Readiness;
use defib_model::{
    ClusterTime, Epoch, EventKind, EventSeq, HostId, Incarnation, LogIndex, RecoveryId, UnixMillis, VmId,
};
use std::path::Path;

use crate::cluster::{Size, layout};

const MS: u64 = 1_000_000;

fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

fn vm(name: &str) -> VmId {
    VmId::new(name).unwrap()
}

fn placed(name: &str, to: &str, incarnation: u64, from: Option<&str>) -> EventKind {
    EventKind::VmPlaced {
        vm: vm(name),
        host: host(to),
        incarnation: Incarnation(incarnation),
        from: from.map(host),
        because: String::new(),
        broken: Vec::new(),
    }
}

fn running(name: &str, on: &str, incarnation: u64) -> EventKind {
    EventKind::VmRunning { vm: vm(name), host: host(on), incarnation: Incarnation(incarnation) }
}

fn proven(name: &str) -> EventKind {
    let proof = ProofKind::PowerFoundOff { identity: "LAB1".into(), reads: 2 };
    EventKind::DeathProven { host: host(name), epoch: Epoch(2), proof }
}

fn ready(name: &str) -> EventKind {
    EventKind::VmReady { vm: vm(name), readiness: Readiness::GuestAgent }
}

fn life(name: &str, on: &str, incarnation: u64, from_ms: u64, to_ms: u64) -> Life {
    Life {
        vm: name.into(),
        host: on.into(),
        incarnation,
        pid: 7,
        made_ns: from_ms * MS,
        started_ns: from_ms * MS,
        last_ns: to_ms * MS,
        ready_ns: 0,
        beats: 1,
        longest_gap_ns: 0,
    }
}

/// Events as they would stand in the stream: (milliseconds, recovery, kind).
fn events(kinds: &[(u64, Option<u64>, EventKind)]) -> Vec<Event> {
    let mut previous = GENESIS.to_owned();
    let mut all = Vec::new();
    for (number, (at, recovery, kind)) in kinds.iter().enumerate() {
        let mut event = Event {
            seq: EventSeq(number as u64 + 1),
            index: LogIndex(number as u64 + 1),
            ordinal: 0,
            at: ClusterTime(*at),
            wall: UnixMillis(*at),
            recovery: recovery.map(RecoveryId),
            cause: None,
            kind: kind.clone(),
            hash: String::new(),
        };
        event.hash = event_hash(&previous, &event);
        previous.clone_from(&event.hash);
        all.push(event);
    }
    all
}

fn script() -> Vec<(u64, Option<u64>, EventKind)> {
    vec![
        (10, None, placed("cp-1", "h1", 1, None)),
        (11, None, placed("db-1", "h1", 1, None)),
        (12, None, running("cp-1", "h1", 1)),
        (13, None, running("db-1", "h1", 1)),
        (300, Some(1), EventKind::HostSuspected { host: host("h1") }),
        (400, Some(1), proven("h1")),
        (410, Some(1), placed("cp-1", "h7", 2, Some("h1"))),
        (410, Some(1), placed("db-1", "h3", 2, Some("h1"))),
        (420, Some(1), running("cp-1", "h7", 2)),
        (440, Some(1), ready("cp-1")),
        (450, Some(1), running("db-1", "h3", 2)),
    ]
}

fn evidence(script: &[(u64, Option<u64>, EventKind)], lives: Vec<Life>) -> Evidence {
    let size = Size { hosts: 8, victim_vms: 2, other_vms: 1 };
    let mut inventory = layout::inventory(size, Path::new("/g"), Path::new("/o")).unwrap();
    inventory.vms.retain(|vm, _| ["cp-1", "cp-2", "db-1"].contains(&vm.as_str()));
    for group in inventory.groups.values_mut() {
        group.members = inventory.vms.keys().filter(|vm| vm.as_str().starts_with("cp")).cloned().collect();
    }
    let mut stream = Stream::default();
    stream.events = events(script);
    Evidence {
        inventory,
        policy: Policy::default(),
        lives,
        read_at_ns: 1000 * MS,
        fault_at_ns: 200 * MS,
        streams: (1..=3).map(|id| (id, stream.clone())).collect(),
        wall_minus_monotonic_ns: 0,
        struck: ["h1".to_owned()].into(),
        ..Evidence::default()
    }
}

fn good_lives() -> Vec<Life> {
    vec![
        life("cp-1", "h1", 1, 12, 200),
        life("cp-1", "h7", 2, 415, 1000),
        life("db-1", "h1", 1, 13, 200),
        life("db-1", "h3", 2, 445, 1000),
    ]
}

fn good() -> Evidence {
    let mut evidence = evidence(&script(), good_lives());
    evidence.inventory.vms.remove(&vm("cp-2"));
    evidence
}

fn broken(evidence: &Evidence) -> Vec<String> {
    check(evidence).0.into_iter().filter(|(_, problems)| !problems.is_empty()).map(|(name, _)| name).collect()
}

#[test]
fn a_good_run_has_no_problem() {
    let verdicts = check(&good());
    assert!(verdicts.all_held(), "{verdicts:?}");
    assert_eq!(verdicts.as_map().len(), 11);
}

#[test]
fn i1_two_lives_at_once_are_found() {
    let mut evidence = good();
    evidence.lives[0].last_ns = 416 * MS;
    assert_eq!(broken(&evidence), ["I1", "I2"], "and it lived on after the proof");
}

#[test]
fn i2_a_place_without_a_proof_is_found() {
    let mut script = script();
    script.remove(5);
    assert_eq!(broken(&Evidence { streams: good_streams(&script), ..good() }), ["I2"]);
}

fn good_streams(script: &[(u64, Option<u64>, EventKind)]) -> BTreeMap<u64, Stream> {
    evidence(script, Vec::new()).streams
}

#[test]
fn i2_a_host_that_lives_when_its_death_is_proven_is_found() {
    let mut evidence = good();
    evidence.lives[2].last_ns = 405 * MS;
    assert_eq!(broken(&evidence), ["I2"]);
}

#[test]
fn i3_a_life_without_an_order_or_of_an_older_incarnation_is_found() {
    let mut evidence = good();
    evidence.lives.push(life("db-1", "h4", 3, 1100, 1100));
    evidence.lives[3].last_ns = 1001 * MS;
    assert_eq!(broken(&evidence), ["I3"]);
    let mut evidence = good();
    (evidence.lives[0].started_ns, evidence.lives[0].last_ns) = (9 * MS, 200 * MS);
    assert_eq!(broken(&evidence), ["I3"], "it ran before it was placed");
    let mut evidence = good();
    evidence.lives[1].incarnation = 1;
    assert!(broken(&evidence).contains(&"I3".to_owned()));
}

#[test]
fn i4_a_reset_without_an_intent_is_found() {
    let request = |unix_ms| RequestRecord {
        unix_ms,
        monotonic_ms: unix_ms,
        method: "POST".into(),
        path: "/".into(),
        reset: Some("ForceOff".into()),
        status: 204,
    };
    let mut evidence = good();
    evidence.requests.insert("h1".into(), vec![request(350.5)]);
    assert_eq!(broken(&evidence), ["I4"]);
    let mut script = script();
    script.insert(5, (350, Some(1), EventKind::FenceIntended { host: host("h1"), attempt: 1, level: 0 }));
    evidence.streams = good_streams(&script);
    assert!(broken(&evidence).is_empty());
    evidence.requests.insert("h1".into(), vec![request(349.9)]);
    assert_eq!(broken(&evidence), ["I4"], "the intent came after the write");
    // Its death is proven at 400.
    evidence.requests.insert("h1".into(), vec![request(2300.0)]);
    assert!(broken(&evidence).is_empty(), "two leaders within a moment");
    evidence.requests.insert("h1".into(), vec![request(2500.0)]);
    assert_eq!(broken(&evidence), ["I4"], "a leader that was replaced long ago");
}

#[test]
fn i5_a_lower_tier_that_does_not_wait_is_found() {
    let mut script = script();
    script.swap(9, 10);
    (script[9].0, script[10].0) = (440, 450);
    assert_eq!(broken(&Evidence { streams: good_streams(&script), ..good() }), ["I5"]);
    script[9].0 = 410 + 30_000;
    script[10].0 = script[9].0;
    assert!(
        broken(&Evidence { streams: good_streams(&script), ..good() }).is_empty(),
        "its patience may end"
    );
}

#[test]
fn i5_a_lower_tier_that_was_placed_and_ran_before_a_higher_one_is_found() {
    let mut script = script();
    let lower = [
        (405, Some(1), placed("db-1", "h3", 2, Some("h1"))),
        (408, Some(1), running("db-1", "h3", 2)),
        (409, Some(1), ready("db-1")),
    ];
    script.retain(|(_, recovery, kind)| recovery.is_none() || !format!("{kind:?}").contains("db-1"));
    script.splice(6..6, lower);
    let found = |script: &[(u64, Option<u64>, EventKind)]| {
        broken(&Evidence { streams: good_streams(script), ..good() })
    };
    assert_eq!(found(&script), ["I5"]);
    // It was said to have no place at first.
    let mut without_place = script.clone();
    let unplaced = EventKind::VmUnplaced { vm: VmId::new("cp-1").unwrap(), reasons: Vec::new() };
    without_place.insert(6, (401, Some(1), unplaced));
    assert!(found(&without_place).is_empty());
    // It waits for the lower one by its own wish.
    let mut evidence = Evidence { streams: good_streams(&script), ..good() };
    let own = evidence.inventory.vms.get_mut(&VmId::new("cp-1").unwrap()).unwrap();
    own.depends_on.insert(VmId::new("db-1").unwrap());
    assert_eq!(broken(&evidence), [""; 0]);
}

#[test]
fn i6_a_broken_rule_and_an_overfull_host_are_found() {
    let mut script = script();
    script.insert(4, (20, None, placed("cp-2", "h8", 1, None)));
    script.insert(5, (21, None, running("cp-2", "h8", 1)));
    let mut lives = good_lives();
    lives.push(life("cp-2", "h8", 1, 25, 1000));
    let mut evidence = evidence(&script, lives);
    assert_eq!(broken(&evidence), ["I6"], "h7 and h8 share a rack");
    evidence.lives.last_mut().unwrap().last_ns = 400 * MS;
    evidence.told.insert("cp-2".into(), Told { state: "unplaced".into(), why_not: vec!["no rack".into()] });
    evidence.struck.insert("h8".into());
    assert!(broken(&evidence).is_empty(), "it was gone before the other came");
    let mut evidence = good();
    evidence.inventory.hosts.get_mut(&host("h3")).unwrap().capacity.memory_mib = 1;
    assert_eq!(broken(&evidence), ["I6"]);
}

#[test]
fn i7_i8_a_replica_that_tells_otherwise_less_or_nothing_is_found() {
    let mut evidence = good();
    evidence.streams.get_mut(&2).unwrap().events.pop();
    assert_eq!(broken(&evidence), ["I7"]);
    let mut other = script();
    other[10].0 = 451;
    evidence.streams.insert(2, good_streams(&other).remove(&2).unwrap());
    assert_eq!(broken(&evidence), ["I7"]);
    let mut evidence = good();
    evidence.streams.get_mut(&3).unwrap().problems.push("event 4 is missing".into());
    assert_eq!(broken(&evidence), ["I8"]);
    evidence.streams.clear();
    assert!(broken(&evidence).contains(&"I8".to_owned()));
}

#[test]
fn i9_more_fences_on_suspicion_than_allowed_are_found() {
    let fence =
        |at, name: &str| (at, Some(1), EventKind::FenceIntended { host: host(name), attempt: 1, level: 0 });
    let mut script = script();
    script.push(fence(500, "h1"));
    script.push(fence(501, "h1"));
    assert!(broken(&Evidence { streams: good_streams(&script), ..good() }).is_empty());
    script.push(fence(502, "h5"));
    assert_eq!(broken(&Evidence { streams: good_streams(&script), ..good() }), ["I9"]);
    let operator = defib_model::command::Operator { name: "ann".into(), reason: "looked".into() };
    let overridden = EventKind::BrakeOverridden { host: host("h5"), operator, detail: String::new() };
    let mut decided = script.clone();
    decided.insert(script.len() - 1, (501, Some(1), overridden));
    assert!(broken(&Evidence { streams: good_streams(&decided), ..good() }).is_empty(), "a person decided");
    script.last_mut().unwrap().0 = 500 + 600_000;
    assert!(broken(&Evidence { streams: good_streams(&script), ..good() }).is_empty(), "the window is over");
}

#[test]
fn i10_a_vm_that_is_forgotten_is_found_and_one_with_reasons_is_not() {
    let mut evidence = good();
    evidence.read_at_ns += 10 * SILENT_NS;
    evidence.lives[1].last_ns = evidence.read_at_ns;
    assert_eq!(broken(&evidence), ["I10"]);
    evidence.told.insert("db-1".into(), Told { state: "unplaced".into(), why_not: vec!["full".into()] });
    assert!(broken(&evidence).is_empty());
}

#[test]
fn i11_a_vm_that_stops_on_a_host_that_nothing_happened_to_is_found() {
    let mut evidence = good();
    evidence.struck.clear();
    evidence.read_at_ns += 10 * SILENT_NS;
    evidence.lives[1].last_ns = evidence.read_at_ns;
    evidence.lives[3].last_ns = evidence.read_at_ns;
    assert_eq!(broken(&evidence), ["I11"]);
}

#[test]
fn i11_a_guest_that_was_killed_and_started_again_was_not_stopped_by_us() {
    let down = EventKind::VmDown {
        vm: vm("db-1"),
        host: host("h3"),
        incarnation: Incarnation(1),
        detail: "its agent reports that it does not run".into(),
    };
    let script = [
        (10, None, placed("cp-1", "h7", 1, None)),
        (11, None, placed("db-1", "h3", 1, None)),
        (12, None, running("cp-1", "h7", 1)),
        (13, None, running("db-1", "h3", 1)),
        (300, None, down),
        (310, None, placed("db-1", "h3", 2, Some("h3"))),
        (320, None, running("db-1", "h3", 2)),
    ];
    let lives = vec![
        life("cp-1", "h7", 1, 12, 1000),
        life("db-1", "h3", 1, 13, 290),
        life("db-1", "h3", 2, 315, 1000),
    ];
    let mut killed = evidence(&script, lives);
    killed.inventory.vms.remove(&vm("cp-2"));
    assert_eq!(broken(&killed), [""; 0]);
    let mut stopped = killed.clone();
    stopped.stopped.insert(("h3".into(), "db-1".into(), 1));
    assert_eq!(broken(&stopped), ["I11"], "its agent did it, and vouched for it all the same");
    let mut forgotten = killed.clone();
    forgotten.lives.pop();
    forgotten.read_at_ns += 10 * SILENT_NS;
    forgotten.lives[0].last_ns = forgotten.read_at_ns;
    assert_eq!(broken(&forgotten), ["I10", "I11"], "it was not started again");
    let mut untold = script.to_vec();
    untold.remove(4);
    killed.streams = good_streams(&untold);
    assert_eq!(broken(&killed), ["I11", "I2"], "nobody vouched for its end");
}

#[test]
fn i11_a_vm_that_has_a_successor_has_stopped_although_it_beat_just_now() {
    let mut evidence = good();
    assert!(evidence.lives.iter().all(|life| evidence.is_living(life)), "read soon after");
    evidence.struck.clear();
    assert_eq!(broken(&evidence), ["I11"]);
}

#[test]
fn what_a_wrong_clock_dated_is_judged_by_when_it_was() {
    let hour = 3_600_000;
    let shifted = |by: i64, of_wrong: i64| {
        let mut evidence = good();
        evidence.wall_minus_monotonic_ns = i128::from(100 * hour) * 1_000_000;
        for stream in evidence.streams.values_mut() {
            for event in &mut stream.events {
                // The replica that dated the second half of them was wrong.
                let wrong = if event.wall.0 >= 300 { by } else { 0 };
                event.wall = UnixMillis(event.wall.0.saturating_add_signed(100 * hour + wrong));
            }
        }
        evidence.wrong_clocks_ms = [of_wrong].into();
        let verdicts = check(&evidence);
        (verdicts.0["I2"].clone(), verdicts.0["I3"].clone())
    };
    for by in [hour, -hour, 24 * hour] {
        assert_eq!(shifted(by, by), (Vec::new(), Vec::new()), "{by}");
    }
    // Nobody said that it was wrong.
    assert!(!shifted(hour, 2 * hour).1.is_empty());
}
