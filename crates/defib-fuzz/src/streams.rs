//! Events as they left a sink, in files and in topics, as `defib events verify` reads them.

use arbitrary::Unstructured;
use defib_export::{
    formats::{
        Context, Told,
        cloudevents::{self, CONTENT_TYPE, PREFIX},
        render,
    },
    samples,
    sinks::Line,
    verify::{Received, Report, Verifier, Wanted},
};
use defib_model::{
    EventSeq,
    chain::GENESIS,
    export::{ContentMode, Format},
};

use crate::seeds::{noise, tagged};

const FORMATS: [Format; 3] = [Format::Ocsf, Format::Ecs, Format::Native];
const MODES: [ContentMode; 2] = [ContentMode::Binary, ContentMode::Structured];
const EVENTS: usize = 6;

/// First byte 0: a file; 1: how a good one is altered; 2: records, each with key, headers and value on lines of their
/// own; 3: how good ones are altered.
pub(crate) fn event_stream(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    match mode % 4 {
        0 => drop(file(bytes, wanted(*mode))),
        1 => drop(altered_file(&mut Unstructured::new(bytes))),
        2 => records(bytes, wanted(*mode)),
        _ => drop(altered_record(&mut Unstructured::new(bytes))),
    }
}

/// Much may be asked of a stream.
fn wanted(choice: u8) -> Wanted {
    let has = |bit: u8| choice & 1 << bit != 0;
    Wanted {
        keys: Vec::new(),
        range: has(2).then_some((EventSeq(2), EventSeq(u64::MAX))),
        head: has(3).then(|| (EventSeq(3), "0".repeat(64))),
        at_least_once: has(4),
        filtered: has(5),
        cluster: has(6).then(|| "demo".to_owned()),
    }
}

fn file(bytes: &[u8], wanted: Wanted) -> Report {
    let mut verifier = Verifier::new(wanted);
    verifier.read("f", bytes).expect("memory can be read");
    let report = verifier.finish();
    assert!(report.findings.iter().all(|finding| !finding.text.is_empty()));
    assert!(!report.findings.is_empty() || report.events > 0, "nothing is whole");
    report
}

/// Any line is made again from its event: what is not the same is found, wherever it was altered.
fn altered_file(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let good: Vec<Vec<u8>> =
        lines(*u.choose(&FORMATS)?).into_iter().map(|line| line.text.into_bytes()).collect();
    let mut lines = good.clone();
    for _ in 0..u.int_in_range(1..=3_u8)? {
        if lines.is_empty() {
            break;
        }
        let line = u.int_in_range(0..=lines.len() - 1)?;
        match u.int_in_range(0..=4_u8)? {
            0 => drop(lines.remove(line)),
            1 => lines.insert(line, lines[line].clone()),
            2 => {
                let other = u.int_in_range(0..=lines.len() - 1)?;
                lines.swap(line, other);
            }
            _ => splice(u, &mut lines[line])?,
        }
    }
    let text = lines.join(&b'\n');
    let mut held: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    if held.last().is_some_and(|last| last.is_empty()) {
        held.pop();
    }
    // Any part of a stream that has no hole is whole.
    let is_good = !held.is_empty() && good.windows(held.len()).any(|part| part == held);
    let report = file(&text, Wanted::default());
    assert_eq!(
        report.findings.is_empty(),
        is_good,
        "{:?}\n{}",
        report.findings,
        String::from_utf8_lossy(&text)
    );
    Ok(())
}

fn splice(u: &mut Unstructured<'_>, bytes: &mut Vec<u8>) -> arbitrary::Result<()> {
    let begin = u.int_in_range(0..=bytes.len())?;
    let end = u.int_in_range(begin..=bytes.len().min(begin + 8))?;
    let length = u.int_in_range(0..=8)?;
    let put = u.bytes(length)?.to_vec();
    bytes.splice(begin..end, put);
    Ok(())
}

/// Any records: nothing panics, and none is taken without what belongs to it.
fn records(bytes: &[u8], wanted: Wanted) {
    let mut verifier = Verifier::new(wanted);
    let mut part = verifier.part("topic t, partition 0");
    let parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    for (offset, part_of) in parts.chunks(3).enumerate() {
        let [key, headers, value] = part_of else { break };
        let headers = headers.split(|byte| *byte == b';').filter_map(|header| {
            let at = header.iter().position(|byte| *byte == b'=')?;
            Some((std::str::from_utf8(&header[..at]).ok()?, &header[at + 1..]))
        });
        verifier.record(&mut part, offset as u64, &Received { key, headers: headers.collect(), value });
    }
    let _ = verifier.has_no_gap();
    verifier.stop_at_newest();
    let report = verifier.finish();
    assert!(!report.findings.is_empty() || report.events > 0, "nothing is whole");
}

/// Key, headers and envelope follow from the event as its line does.
fn altered_record(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let (format, mode) = (*u.choose(&FORMATS)?, *u.choose(&MODES)?);
    let lines = lines(format);
    let context = Context::new("demo");
    let at = u.int_in_range(0..=lines.len() - 1)?;
    let mut verifier = Verifier::new(Wanted::default());
    let mut part = verifier.part("topic t, partition 0");
    let mut is_good = true;
    for (offset, line) in lines.iter().enumerate() {
        let made = cloudevents::record(&context, line, format, mode);
        let mut key = made.key.clone().into_bytes();
        let mut value = made.value.as_bytes().to_vec();
        let mut headers: Vec<(String, Vec<u8>)> =
            made.headers.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
        let before = (key.clone(), value.clone(), headers.clone());
        if offset == at {
            match u.int_in_range(0..=4_u8)? {
                0 => splice(u, &mut key)?,
                1 => splice(u, &mut value)?,
                2 if !headers.is_empty() => {
                    let one = u.int_in_range(0..=headers.len() - 1)?;
                    splice(u, &mut headers[one].1)?;
                }
                3 if !headers.is_empty() => {
                    let one = u.int_in_range(0..=headers.len() - 1)?;
                    headers.remove(one);
                }
                _ => headers.push((format!("{PREFIX}{}", u.arbitrary::<u8>()?), b"x".to_vec())),
            }
            let turn = usize::from(headers.len() > 1 && u.arbitrary()?);
            headers.rotate_left(turn);
        }
        let (mut was, mut is) = (before.2, headers.clone());
        was.sort_unstable();
        is.sort_unstable();
        is_good &= (&before.0, &before.1, &was) == (&key, &value, &is);
        let told = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        verifier.record(&mut part, offset as u64, &Received { key: &key, headers: told, value: &value });
    }
    let report = verifier.finish();
    assert_eq!(report.findings.is_empty(), is_good, "{format:?} {mode:?}: {:?}", report.findings);
    Ok(())
}

/// A good stream, as a sink writes it.
fn lines(format: Format) -> Vec<Line> {
    let kinds = samples::kinds().expect("names that are allowed");
    let context = Context::new("demo");
    let mut previous = GENESIS.to_owned();
    let events = samples::stream(&kinds[..EVENTS]);
    events
        .into_iter()
        .map(|event| {
            let told = Told { context: &context, previous: &previous, event: &event };
            let (id, correlation, text) = (told.id(), told.correlation(), render(format, &told));
            let hash = event.hash.clone();
            let line = Line { event, id, correlation, previous: previous.clone(), text };
            previous = hash;
            line
        })
        .collect()
}

pub(crate) fn event_stream_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let context = Context::new("demo");
    for format in FORMATS {
        let lines = lines(format);
        let text = lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n");
        seeds.push(tagged(0, text));
        for mode in MODES {
            let record = cloudevents::record(&context, &lines[0], format, mode);
            let headers = record.headers.iter().map(|(name, value)| format!("{name}={value}"));
            let headers =
                headers.filter(|header| mode == ContentMode::Binary || header.starts_with(CONTENT_TYPE));
            let headers = headers.collect::<Vec<_>>().join(";");
            // A semicolon within a value would end it here.
            seeds.push(tagged(2, format!("{}\n{headers}\n{}", record.key, record.value)));
        }
    }
    for noise in noise().into_iter().take(8) {
        seeds.push(tagged(1, &noise));
        seeds.push(tagged(3, &noise));
    }
    seeds
}
