//! A file of events, as an auditor checks it.

use arbitrary::Unstructured;
use defib_model::{
    ClusterTime, Event, EventKind, EventSeq, HostId, LogIndex, UnixMillis,
    chain::{ChainVerifier, GENESIS, event_hash},
};

use crate::seeds::tagged;

/// First byte even: a whole file; odd: what to alter in a good one.
pub(crate) fn event_file(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    if mode % 2 == 0 {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = verify(text);
        }
    } else {
        let _ = alter(&mut Unstructured::new(bytes));
    }
}

/// The good events of a file, or the first thing that is wrong with it.
fn verify(text: &str) -> Result<u64, String> {
    let mut verifier = ChainVerifier::new();
    let mut error = None;
    for (at, line) in text.lines().enumerate() {
        let before = verifier.clone();
        match verifier.push_line(at + 1, line) {
            Ok(()) => {
                assert_eq!(verifier.checked(), before.checked() + 1);
                let event: Event = serde_json::from_str(line).expect("it was taken as an event");
                assert_eq!(verifier.last(), Some((event.seq, event.hash.as_str())));
                assert_eq!(serde_json::to_string(&event).expect("JSON"), line.trim_end());
            }
            Err(why) => {
                assert!(!why.to_string().is_empty());
                error.get_or_insert_with(|| why.to_string());
            }
        }
    }
    error.map_or_else(|| Ok(verifier.checked()), Err)
}

/// Nothing behind the first event can be altered without being found.
fn alter(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let good = stream(5);
    let mut lines: Vec<Vec<u8>> = good.iter().map(|line| line.clone().into_bytes()).collect();
    for _ in 0..u.int_in_range(1..=3_u8)? {
        let line = u.int_in_range(0..=lines.len() - 1)?;
        match u.int_in_range(0..=4_u8)? {
            0 if line > 0 && line + 1 < lines.len() => drop(lines.remove(line)),
            1 => lines.insert(line, lines[line].clone()),
            2 => {
                let other = u.int_in_range(0..=lines.len() - 1)?;
                lines.swap(line, other);
            }
            _ if !lines[line].is_empty() => {
                let begin = u.int_in_range(0..=lines[line].len() - 1)?;
                let end = u.int_in_range(begin..=lines[line].len().min(begin + 8))?;
                let length = u.int_in_range(0..=8)?;
                let put = u.bytes(length)?.to_vec();
                lines[line].splice(begin..end, put);
            }
            _ => {}
        }
    }
    let Ok(text) = String::from_utf8(lines.join(&b'\n')) else { return Ok(()) };
    let altered: Vec<&str> = text.lines().map(str::trim_end).collect();
    // What was cut off at the end is missed by whoever knows the last number; where a stream is read from its
    // middle, nobody knows what its first event follows.
    let is_good = altered.len() <= good.len() && altered == good[..altered.len()];
    let begins_well = altered.first().copied() == good.first().map(String::as_str);
    match verify(&text) {
        Ok(_) => assert!(is_good || !begins_well, "an altered file passes:\n{text}"),
        Err(why) => assert!(!is_good, "a good file is refused: {why}"),
    }
    Ok(())
}

fn stream(count: u64) -> Vec<String> {
    let mut previous = GENESIS.to_owned();
    (1..=count)
        .map(|seq| {
            let host = HostId::new("h1").expect("a name");
            let mut event = Event {
                seq: EventSeq(seq),
                index: LogIndex(seq),
                ordinal: 0,
                at: ClusterTime(seq),
                wall: UnixMillis(7),
                recovery: None,
                cause: (seq > 1).then(|| EventSeq(seq - 1)),
                kind: EventKind::HostSuspected { host },
                hash: String::new(),
            };
            event.hash = event_hash(&previous, &event);
            previous.clone_from(&event.hash);
            serde_json::to_string(&event).expect("JSON")
        })
        .collect()
}

pub(crate) fn event_file_seeds() -> Vec<Vec<u8>> {
    let ledger = crate::ledger::seen_hosts();
    let lines: Vec<String> =
        ledger.events().since(EventSeq(1)).map(|event| serde_json::to_string(event).expect("JSON")).collect();
    let mut seeds = vec![
        tagged(0, lines.join("\n")),
        tagged(0, lines[lines.len() / 2..].join("\n")),
        tagged(0, stream(3).join("\n")),
    ];
    seeds.extend(crate::seeds::noise().into_iter().take(6).map(|noise| tagged(1, noise)));
    seeds
}
