use std::collections::BTreeSet;

use defib_model::{
    EventKind, HostId, VmId,
    command::Operator,
    text::{TEXT_MAX, cut_all},
};

use super::*;
use crate::samples;

/// Renders every sample; the previous hash is that of the sample before.
fn all(format: Format) -> Vec<(Event, String)> {
    let context = Context::new("demo");
    let mut previous = String::from(defib_model::chain::GENESIS);
    samples::stream(&samples::kinds().unwrap())
        .into_iter()
        .map(|event| {
            let line = render(format, &Told { context: &context, previous: &previous, event: &event });
            previous.clone_from(&event.hash);
            (event, line)
        })
        .collect()
}

const FORMATS: [Format; 5] = [Format::Ocsf, Format::Ecs, Format::Cef, Format::Leef, Format::Native];

/// The reader of events lists all kinds that it knows when it meets one that it does not.
fn known_kinds() -> BTreeSet<String> {
    let error = serde_json::from_str::<EventKind>(r#"{"kind":"?"}"#).unwrap_err().to_string();
    error.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

#[test]
fn there_is_a_sample_of_every_kind_and_its_facts_have_its_name() {
    let kinds = samples::kinds().unwrap();
    let sampled: BTreeSet<String> = kinds.iter().map(|kind| Facts::of(kind).kind.to_owned()).collect();
    assert_eq!(sampled, known_kinds());
    assert!(sampled.len() > 30);
    for kind in &kinds {
        assert_eq!(serde_json::to_value(kind).unwrap()["kind"], Facts::of(kind).kind);
    }
}

#[test]
fn every_kind_has_one_line_in_every_format_with_its_number_hash_and_former_hash() {
    for format in FORMATS {
        let mut previous = String::from(defib_model::chain::GENESIS);
        for (event, line) in all(format) {
            assert!(!line.contains(['\n', '\r']), "{format:?}: {line}");
            for part in [&event.hash, &previous, &format!("demo-{}-", event.seq)] {
                assert!(line.contains(part.as_str()), "{format:?} lacks {part}: {line}");
            }
            if event.recovery.is_some() {
                assert!(line.contains("demo-recovery-1"), "{format:?}: {line}");
            }
            previous.clone_from(&event.hash);
        }
    }
}

#[test]
fn json_formats_have_sorted_keys_so_that_a_verifier_makes_the_same_bytes() {
    for format in [Format::Ocsf, Format::Ecs] {
        for (_, line) in all(format) {
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
            assert!(keys.is_sorted(), "{keys:?}");
            assert_eq!(value.to_string(), line);
        }
    }
}

#[test]
fn a_native_line_reads_back_as_the_same_event() {
    for (event, line) in all(Format::Native) {
        let read: NativeLine = serde_json::from_str(&line).unwrap();
        assert_eq!(read.event, event);
        assert_eq!(serde_json::to_string(&read).unwrap(), line);
    }
}

#[test]
fn a_recovery_is_one_query_and_its_fence_has_one_name_from_intent_to_end() {
    let lines = all(Format::Ocsf);
    let value = |kind: &str| -> serde_json::Value {
        let (_, line) = lines.iter().find(|(event, _)| Facts::of(&event.kind).kind == kind).unwrap();
        serde_json::from_str(line).unwrap()
    };
    assert_eq!(value("fence-intended")["command_uid"], "demo-recovery-1-fence-1");
    assert_eq!(value("fence-failed")["command_uid"], "demo-recovery-1-fence-1");
    assert_eq!(value("death-proven")["metadata"]["correlation_uid"], "demo-recovery-1");
    assert!(value("death-proven")["unmapped"]["cause"].as_u64().is_some_and(|cause| cause > 0));
}

/// The uid of the finding that an event's record is of.
fn finding(event: &Event) -> Option<(u64, String)> {
    let context = Context::new("demo");
    let line = render(Format::Ocsf, &Told { context: &context, previous: &event.hash, event });
    let record: serde_json::Value = serde_json::from_str(&line).unwrap();
    let finding = record.get("finding_info").or_else(|| record["finding_info_list"].get(0))?;
    Some((record["activity_id"].as_u64().unwrap(), finding["uid"].as_str().unwrap().to_owned()))
}

#[test]
fn a_finding_that_is_closed_is_one_that_was_created() {
    let mut open = BTreeSet::new();
    let mut closed = 0;
    for mut event in samples::stream(&samples::kinds().unwrap()) {
        // None of these is told in a recovery, but for opinions, which are told both ways.
        let about = Facts::of(&event.kind).kind;
        let apart = ["fencing-tested", "datastore-changed", "unprotected-changed", "clock-compared"];
        let in_recovery = about == "opinion-changed" && event.seq.0 % 2 == 0;
        if apart.contains(&about) || about == "opinion-changed" && !in_recovery {
            event.recovery = None;
        }
        match finding(&event) {
            Some((1, uid)) => drop(open.insert(uid)),
            Some((3, uid)) => {
                closed += 1;
                assert!(open.contains(&uid), "{about} closes {uid}, which nothing created: {open:?}");
            }
            Some(_) | None => {}
        }
    }
    assert!(closed >= 8, "{closed}");
}

#[test]
fn the_documentation_names_the_events_whose_person_or_vm_ocsf_has_elsewhere() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/events.md");
    let page = std::fs::read_to_string(path).unwrap();
    type Of = fn(&crate::facts::Subjects<'_>) -> Option<String>;
    let person: Of = |subjects| subjects.user.map(str::to_owned);
    let vm: Of = |subjects| subjects.vm.map(ToString::to_string);
    for (row, field, of) in [("person", "/actor/user/name", person), ("VM", "/entity/name", vm)] {
        let mut elsewhere = BTreeSet::new();
        for (event, line) in all(Format::Ocsf) {
            let record: serde_json::Value = serde_json::from_str(&line).unwrap();
            let Some(wanted) = of(&crate::facts::Subjects::of(&event.kind)) else { continue };
            match record.pointer(field) {
                Some(found) => assert_eq!(found, &wanted),
                None => drop(elsewhere.insert(Facts::of(&event.kind).kind)),
            }
        }
        let row = page.lines().find(|line| line.starts_with(&format!("| {row} | "))).unwrap();
        let cell = row.split('|').nth(2).unwrap();
        let told: BTreeSet<&str> =
            cell.split('`').skip(1).step_by(2).filter(|word| !word.contains('.')).collect();
        assert_eq!(told, elsewhere, "{row}");
    }
}

#[test]
fn a_clock_is_no_switch_and_a_vm_that_does_not_run_no_success() {
    let record = |kind: EventKind| -> serde_json::Value {
        serde_json::from_str(&samples::lines(Format::Ocsf, &samples::stream(&[kind]))[0]).unwrap()
    };
    let clock = record(EventKind::ClockSetBack { leader: defib_model::ReplicaId(1), by_ms: 7 });
    assert_eq!((clock["state_id"].as_u64(), clock["state"].as_str()), (Some(99), Some("Clock set back")));
    let kinds = samples::kinds().unwrap();
    let down = kinds.into_iter().find(|kind| matches!(kind, EventKind::VmDown { .. })).unwrap();
    assert_eq!(Facts::of(&down).outcome.word(), "failure");
    assert_eq!(record(down)["status_id"], 2);
}

#[test]
fn hostile_text_stays_within_its_field() {
    let find = |format| {
        let lines = all(format);
        lines.into_iter().find(|(event, _)| matches!(event.kind, EventKind::BrakeEngaged { .. })).unwrap().1
    };
    let cef = find(Format::Cef);
    assert!(cef.contains("a|b\\=c\\\\d \"e\" <f> g\\nh; ü 漢 😀 ]"), "{cef}");
    let leef = find(Format::Leef);
    let fields: Vec<&str> =
        leef.split('|').nth(6).map(|_| leef.splitn(7, '|').last().unwrap()).unwrap().split('\t').collect();
    assert!(fields.iter().all(|field| field.contains('=')), "{leef}");
    assert!(fields.iter().any(|field| field.starts_with("msg=") && field.contains("a|b=c\\d")), "{leef}");
}

#[test]
fn times_are_written_to_the_millisecond() {
    assert_eq!(timestamp(UnixMillis(1_790_000_000_007)), "2026-09-21T14:13:20.007Z");
    assert_eq!(timestamp(UnixMillis(0)), "1970-01-01T00:00:00.000Z");
    assert_eq!(timestamp(UnixMillis(u64::MAX)), "9999-12-31T23:59:59.615Z");
}

#[test]
fn the_documentation_has_the_table_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/events.md");
    let page = std::fs::read_to_string(path).unwrap();
    let table = table(&samples::kinds().unwrap());
    assert!(page.contains(&table), "docs/events.md must contain this table:\n\n{table}");
}

#[test]
fn no_line_is_longer_than_receivers_are_told_whatever_its_text_is() {
    let context = Context::new("demo");
    let (host, vm) = (HostId::new("h1").unwrap(), VmId::new("v1").unwrap());
    for letter in ["x", "\"", "\\", "\u{1}", "ü", "😀"] {
        let text = letter.repeat(TEXT_MAX / letter.len());
        let operator = || Operator { name: "anna".into(), reason: text.clone() };
        // What names are in have no control characters, and few quotes.
        let list = if letter == "\u{1}" { Vec::new() } else { cut_all(vec![text.clone(); 9]) };
        for kind in [
            EventKind::OperatorActed { operator: operator(), action: "stops automatic action".into() },
            EventKind::FenceFailed { host: host.clone(), attempt: 1, detail: text.clone() },
            EventKind::VmUnplaced { vm: vm.clone(), reasons: list },
        ] {
            let mut event = samples::stream(std::slice::from_ref(&kind)).remove(0);
            event.hash = "0".repeat(64);
            for format in FORMATS {
                let told = Told { context: &context, previous: &event.hash, event: &event };
                let length = render(format, &told).len();
                assert!(length <= 32 << 10, "{length} bytes in {format:?}: {kind:?}");
            }
        }
    }
}
