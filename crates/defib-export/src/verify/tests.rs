use defib_model::chain::GENESIS;

use super::*;
use crate::{samples, signing::SigningKey};

const FORMATS: [Format; 3] = [Format::Ocsf, Format::Ecs, Format::Native];

/// `count` samples and, where there is a key, a signature of all of them as the last event.
fn events(count: usize, key: Option<&SigningKey>) -> Vec<Event> {
    let mut kinds = samples::kinds().unwrap();
    kinds.retain(|kind| !matches!(kind, EventKind::HeadSigned { .. } | EventKind::SinkGap { .. }));
    kinds.truncate(count);
    let plain = samples::stream(&kinds);
    let Some(key) = key else { return plain };
    let last = plain.last().unwrap();
    kinds.push(EventKind::HeadSigned {
        upto: last.seq,
        head: last.hash.clone(),
        key: key.public().id().to_owned(),
        signature: key.sign("demo", last.seq, &last.hash),
    });
    samples::stream(&kinds)
}

fn lines(format: Format, events: &[Event]) -> Vec<String> {
    let context = Context::new("demo");
    let mut previous = String::from(GENESIS);
    let render_one = |event: &Event| {
        let line = render(format, &Told { context: &context, previous: &previous, event });
        previous.clone_from(&event.hash);
        line
    };
    events.iter().map(render_one).collect()
}

fn judge(lines: &[String], wanted: Wanted) -> Report {
    let mut verifier = Verifier::new(wanted);
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    verifier.read("f", text.as_bytes()).unwrap();
    verifier.finish()
}

fn problems(lines: &[String], wanted: Wanted) -> Vec<String> {
    judge(lines, wanted).findings.iter().map(ToString::to_string).collect()
}

fn with(key: &SigningKey) -> Wanted {
    Wanted { keys: vec![key.public().clone()], ..Wanted::default() }
}

#[test]
fn a_whole_stream_is_whole_in_every_format_that_can_be_proven() {
    let (key, _) = SigningKey::generate().unwrap();
    for format in FORMATS {
        let report = judge(&lines(format, &events(30, Some(&key))), with(&key));
        assert_eq!(report.findings, [], "{format:?}");
        assert_eq!(report.range, Some((EventSeq(1), EventSeq(31))));
        assert_eq!(report.signed, Some((EventSeq(30), key.public().id().to_owned())));
        let part = judge(&lines(format, &events(30, Some(&key)))[9..], with(&key));
        assert_eq!(part.findings, [], "a part from the middle is judged as well");
    }
}

#[test]
fn any_flipped_bit_is_found() {
    for format in FORMATS {
        // The first holds text that formats escape.
        let all = lines(format, &events(10, None));
        let file: Vec<u8> = all[8..10].iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
        for at in 0..file.len() - 1 {
            let mut flipped = file.clone();
            flipped[at] ^= 1;
            let mut verifier = Verifier::new(Wanted::default());
            verifier.read("f", flipped.as_slice()).unwrap();
            assert!(!verifier.finish().findings.is_empty(), "{format:?}: byte {at} of {}", all[8]);
        }
    }
}

#[test]
fn missing_doubled_swapped_and_foreign_events_are_named() {
    for format in FORMATS {
        let good = lines(format, &events(12, None));
        let mut missing = good.clone();
        missing.drain(3..5);
        assert_eq!(problems(&missing, Wanted::default()), ["f, line 4: events 4 to 5 are missing"]);
        let head = Wanted { head: Some((EventSeq(4), "0".repeat(64))), ..Wanted::default() };
        assert!(problems(&missing, head.clone())[1].starts_with("the stream lacks event 4: "));
        assert!(problems(&good, head)[0].starts_with("f, line 4: event 4 is another one: "));
        let mut doubled = good.clone();
        doubled.insert(4, good[2].clone());
        assert_eq!(problems(&doubled, Wanted::default()), ["f, line 5: event 3 comes again"]);
        let again = Wanted { at_least_once: true, ..Wanted::default() };
        assert_eq!(judge(&doubled, again.clone()).again, 1);
        assert_eq!(problems(&doubled, again), [""; 0]);
        let mut swapped = good.clone();
        swapped.swap(3, 4);
        assert_eq!(problems(&swapped, Wanted::default()), ["f, line 5: event 4 comes after event 5"]);
        let mut other = events(6, None);
        other[4].wall.0 += 1;
        other[4].hash = event_hash(&other[3].hash, &other[4]);
        let mut foreign = good.clone();
        foreign[4] = lines(format, &other)[4].clone();
        assert_eq!(
            problems(&foreign, Wanted::default()),
            ["f, line 6: event 6 follows another event 5 than the one in the stream"]
        );
        let mut cut = good;
        cut[11].truncate(40);
        assert!(problems(&cut, Wanted::default())[0].starts_with("f, line 12: it is not an event"));
    }
}

#[test]
fn whoever_rewrites_the_whole_history_is_found_by_the_signature() {
    let (key, _) = SigningKey::generate().unwrap();
    let (forger, _) = SigningKey::generate().unwrap();
    let mut kinds: Vec<EventKind> = events(10, Some(&key)).into_iter().map(|event| event.kind).collect();
    kinds[7] = EventKind::CommandRefused { command: "a".into(), detail: "harmless".into() };
    let forged = samples::stream(&kinds);
    let found = problems(&lines(Format::Ocsf, &forged), with(&key));
    assert_eq!(found[0], "f, line 11: event 10 is not the one that was signed");
    // Without the signature nothing vouches for it; with another key's neither.
    let found = problems(&lines(Format::Ocsf, &forged[..10]), with(&key));
    assert_eq!(found, ["no signature with a given key vouches for anything here"]);
    let report = judge(&lines(Format::Ocsf, &events(10, Some(&forger))), with(&key));
    assert!(!report.findings.is_empty() && report.notes[0].contains(forger.public().id()));
    // And another cluster's history can't be passed off as this one's.
    let mut verifier = Verifier::new(with(&key));
    let renamed = Context::new("other");
    let mut previous = String::from(GENESIS);
    let mut text = String::new();
    for event in events(10, Some(&key)) {
        text += &render(Format::Native, &Told { context: &renamed, previous: &previous, event: &event });
        text.push('\n');
        previous.clone_from(&event.hash);
    }
    verifier.read("f", text.as_bytes()).unwrap();
    assert!(verifier.finish().findings[0].text.contains("forged"));
}

#[test]
fn completeness_of_a_range_needs_all_of_it_and_a_signature_behind_it() {
    let (key, _) = SigningKey::generate().unwrap();
    let all = lines(Format::Ocsf, &events(20, Some(&key)));
    let range = |from, to| Wanted { range: Some((EventSeq(from), EventSeq(to))), ..with(&key) };
    assert_eq!(problems(&all, range(1, 20)), [""; 0]);
    assert_eq!(problems(&all[4..], range(5, 20)), [""; 0]);
    assert_eq!(problems(&all[4..], range(3, 20)), ["f, line 1: events 3 to 4 are missing"]);
    assert_eq!(
        problems(&all, range(1, 21)),
        ["no signature with a given key vouches for event 21; the last one vouches for 20"]
    );
    assert_eq!(problems(&all[..20], range(1, 20)).len(), 1, "the signature itself was cut off");
}

/// Another history of what a signature does not reach: event 3 on is rewritten up to `upto`, hashes and all.
fn forged(format: Format, key: &SigningKey, upto: usize) -> Vec<String> {
    let good = events(20, Some(key));
    let mut kinds: Vec<EventKind> = good.iter().map(|event| event.kind.clone()).collect();
    kinds[2] = EventKind::CommandRefused { command: "a".into(), detail: "mallory".into() };
    kinds.truncate(upto);
    let mut all = lines(format, &samples::stream(&kinds));
    all.extend_from_slice(&lines(format, &good)[upto..]);
    all
}

#[test]
fn a_signature_vouches_for_nothing_that_lies_before_a_hole() {
    let (key, _) = SigningKey::generate().unwrap();
    let range = |from, to| Wanted { range: Some((EventSeq(from), EventSeq(to))), ..with(&key) };
    for format in FORMATS {
        let mut cut = forged(format, &key, 9);
        // What would show that the genuine events follow another history.
        cut.remove(9);
        for wanted in [range(1, 9), range(3, 3)] {
            let events =
                if wanted.range == Some((EventSeq(3), EventSeq(3))) { "event 3" } else { "events 1 to 9" };
            let why = ": event 20 is vouched for, but event 10 is missing between";
            let report = judge(&cut, wanted);
            assert_eq!(
                report.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
                [format!("no signature with a given key vouches for {events}{why}")]
            );
            assert_eq!(report.vouched, [(EventSeq(11), EventSeq(20))]);
        }
        assert_eq!(problems(&cut, range(11, 20)), [""; 0], "what it is linked to is proven all the same");
        // Of a filtered stream it is told which events are vouched for: those and no others.
        let filtered = judge(&cut, Wanted { filtered: true, ..with(&key) });
        assert_eq!((filtered.findings, filtered.left_out), (vec![], 1));
        assert_eq!(filtered.vouched, [(EventSeq(11), EventSeq(20))]);
        let asked = problems(&cut, Wanted { filtered: true, ..range(1, 20) });
        assert!(asked.len() == 1 && asked[0].contains("vouches for events 1 to 9: "), "{asked:?}");
        // A hash that somebody noted is a word like a signature's.
        let noted =
            Wanted { head: Some((EventSeq(20), events(20, None)[19].hash.clone())), ..Wanted::default() };
        assert_eq!(judge(&cut, Wanted { filtered: true, ..noted.clone() }).findings, []);
        let noted = Wanted { range: Some((EventSeq(1), EventSeq(9))), ..noted };
        assert!(problems(&cut, noted)[0].starts_with("no given hash vouches for events 1 to 9: "));
        // Without the hole the break itself is seen, and is no bridge.
        let broken = judge(&forged(format, &key, 9), range(1, 9));
        assert!(
            broken.findings[0].text.contains("event 10 follows another event 9"),
            "{:?}",
            broken.findings
        );
        assert!(
            broken.findings[1].text.ends_with("but event 10 follows another one"),
            "{:?}",
            broken.findings
        );
    }
}

#[test]
fn of_an_event_that_nothing_before_it_proves_it_is_said() {
    let (key, _) = SigningKey::generate().unwrap();
    let plain: Vec<String> =
        events(20, Some(&key)).iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    let range = |from, to| Wanted {
        range: Some((EventSeq(from), EventSeq(to))),
        cluster: Some("demo".into()),
        ..with(&key)
    };
    let part: Vec<String> =
        [plain[4].replace("\"at\":5005", "\"at\":5006")].into_iter().chain(plain[5..].to_vec()).collect();
    assert_ne!(part[0], plain[4]);
    let found = problems(&part, range(5, 20));
    assert!(found[0].starts_with("f, line 1: the content of event 5 can't be checked"), "{found:?}");
    assert!(
        found[1].ends_with(
            "vouches for event 5: event 20 is vouched for, but the content of event 5 is not proven"
        ),
        "{found:?}"
    );
    assert_eq!(problems(&part, range(6, 20)), [""; 0]);
    let whole = judge(&part, Wanted { range: None, ..range(1, 1) });
    assert_eq!((whole.findings, whole.notes.len()), (vec![], 1));
    assert_eq!(whole.vouched, [(EventSeq(6), EventSeq(20))], "and only what is proven is vouched for");
    // Behind a hole nobody looks at it either.
    let mut hole = plain.clone();
    hole.remove(8);
    let found = problems(&hole, Wanted { filtered: true, range: None, ..range(1, 1) });
    assert!(
        found.len() == 1 && found[0].starts_with("f, line 9: the content of event 10 can't"),
        "{found:?}"
    );
    // The one that it follows may be read later, from another file.
    for altered in [false, true] {
        let mut verifier = Verifier::new(range(1, 20));
        let (first, second) =
            if altered { (&plain[..4], &part) } else { (&plain[..4], &plain[4..].to_vec()) };
        for lines in [&second[..], first] {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            verifier.read("f", text.as_bytes()).unwrap();
        }
        let findings = verifier.finish().findings;
        assert_eq!(findings.iter().any(|finding| finding.text.contains("event 5 was altered")), altered);
        assert_eq!(findings.is_empty(), !altered, "{findings:?}");
    }
}

#[test]
fn the_parts_that_several_replicas_wrote_are_one_stream() {
    let all = lines(Format::Native, &events(20, None));
    let mut verifier = Verifier::new(Wanted { at_least_once: true, ..Wanted::default() });
    // The second leader repeated what the first had not confirmed; the first led again at the end.
    let first: Vec<String> = all[..9].iter().chain(&all[15..]).cloned().collect();
    for part in [&all[7..15], &first] {
        let text: String = part.iter().map(|line| format!("{line}\n")).collect();
        verifier.read("f", text.as_bytes()).unwrap();
    }
    let report = verifier.finish();
    assert_eq!(report.findings, []);
    assert_eq!((report.events, report.again), (20, 2));
}

#[test]
fn a_filtered_stream_is_checked_event_by_event_and_a_gap_that_was_announced_says_so() {
    let all = lines(Format::Ocsf, &events(20, None));
    let some: Vec<String> = all.iter().step_by(3).cloned().collect();
    let report = judge(&some, Wanted { filtered: true, ..Wanted::default() });
    assert_eq!((report.findings, report.left_out), (vec![], 12));
    let mut kinds: Vec<EventKind> = events(20, None).into_iter().map(|event| event.kind).collect();
    let sink = SinkId::new("siem").unwrap();
    kinds.push(EventKind::SinkGap { sink, from: EventSeq(5), to: EventSeq(9) });
    let mut told = lines(Format::Ocsf, &samples::stream(&kinds));
    told.drain(4..9);
    assert_eq!(
        problems(&told, Wanted::default()),
        ["f, line 5: events 5 to 9 are missing; they were given up for sink siem, as event 21 says"]
    );
}

#[test]
fn what_is_not_listed_any_more_is_counted() {
    let mut all = vec![lines(Format::Native, &events(30, None)); 3].concat();
    all.truncate(30 + FINDINGS_MAX + 7);
    let told = problems(&all, Wanted::default());
    assert_eq!(told.len(), FINDINGS_MAX + 1);
    assert_eq!(told.last().unwrap(), "there is more: 7 findings are not listed");
    all.truncate(30 + FINDINGS_MAX);
    assert_eq!(problems(&all, Wanted::default()).len(), FINDINGS_MAX, "all are listed");
}

#[test]
fn a_plain_stream_is_checked_by_its_neighbours() {
    let (key, _) = SigningKey::generate().unwrap();
    let plain: Vec<String> =
        events(10, Some(&key)).iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    let named = Wanted { cluster: Some("demo".into()), ..with(&key) };
    assert_eq!(problems(&plain, named.clone()), [""; 0]);
    assert!(problems(&plain, with(&key))[0].contains("name the cluster"));
    let part = judge(&plain[3..], named);
    assert_eq!((part.findings, part.notes.len()), (vec![], 1), "{:?}", part.notes);
    let mut altered = plain;
    altered[4] = altered[4].replace("\"at\":5005", "\"at\":5006");
    assert!(problems(&altered, Wanted::default())[0].contains("event 5 was altered"));
}
