//! Records of a topic. Key, headers and envelope follow from the event as its line does, so they are checked in the
//! same way: by making them again.

use defib_model::{
    EventSeq,
    export::{ContentMode, Format},
};

use super::{Parsed, Verifier, parse};
use crate::{
    formats::{
        Context, Told,
        cloudevents::{self, CONTENT_TYPE, DATA, PREFIX, STRUCTURED},
    },
    sinks::Line,
};

/// A partition that is being read.
#[derive(Debug)]
pub struct Part {
    file: usize,
    newest: Option<(EventSeq, String)>,
}

/// A record as it was received. Headers that are none of ours are nobody's business.
#[derive(Debug, Clone, Default)]
pub struct Received<'a> {
    /// What decided on its partition.
    pub key: &'a [u8],
    /// Names and values.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// What it holds.
    pub value: &'a [u8],
}

impl Verifier {
    /// Begins with a partition. Within it events must come in order; partitions may be read beside each other.
    #[must_use]
    pub fn part(&mut self, name: &str) -> Part {
        Part { file: self.begin(name, "offset"), newest: None }
    }

    /// Takes the next record of a partition.
    pub fn record(&mut self, part: &mut Part, offset: u64, record: &Received<'_>) {
        let place = (part.file, offset);
        match checked(record) {
            Ok(parsed) if self.until.is_some_and(|until| parsed.event.seq > until) => {}
            Ok(parsed) => self.take(place, &parsed, &mut part.newest),
            Err(problem) => self.find(&self.name(place), problem),
        }
    }

    /// From now on no event counts that is newer than those that are known: of a stream that goes on, what was read of
    /// one partition is older than what was read of another.
    pub fn stop_at_newest(&mut self) {
        self.until = self.known.last_key_value().map(|(seq, _)| EventSeq(*seq));
    }

    /// Whether none is missing between the first and the last that are known, unless a filter may have left some out.
    #[must_use]
    pub fn has_no_gap(&self) -> bool {
        match (self.known.first_key_value(), self.known.last_key_value()) {
            (Some((first, _)), Some((last, _))) if !self.wanted.filtered => {
                last - first + 1 == self.known.len() as u64
            }
            _ => true,
        }
    }
}

/// What a record holds, if it is the one that follows from it.
fn checked(record: &Received<'_>) -> Result<Parsed, String> {
    let text = |bytes: &[u8]| {
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|error| format!("it is not text: {error}"))
    };
    let content = record.headers.iter().find(|(name, _)| *name == CONTENT_TYPE);
    let value = text(record.value)?;
    let (mode, line) = if content.is_some_and(|(_, value)| *value == STRUCTURED.as_bytes()) {
        let line = value.split_once(DATA).and_then(|(_, rest)| rest.strip_suffix('}'));
        (ContentMode::Structured, line.ok_or("it is no envelope with an event")?)
    } else {
        (ContentMode::Binary, value.as_str())
    };
    let parsed = parse(line, None)?;
    let (Some(previous), Some(cluster), Some(format)) = (&parsed.previous, &parsed.cluster, parsed.format)
    else {
        return Err("it is no line of a sink".into());
    };
    let again = Again { previous, cluster, format, mode, line };
    again.compare(record, &value, &parsed)?;
    Ok(parsed)
}

struct Again<'a> {
    previous: &'a str,
    cluster: &'a str,
    format: Format,
    mode: ContentMode,
    line: &'a str,
}

impl Again<'_> {
    fn compare(&self, record: &Received<'_>, value: &str, parsed: &Parsed) -> Result<(), String> {
        let context = Context::new(self.cluster);
        let told = Told { context: &context, previous: self.previous, event: &parsed.event };
        let line = Line {
            id: told.id(),
            correlation: told.correlation(),
            previous: self.previous.to_owned(),
            text: self.line.to_owned(),
            event: parsed.event.clone(),
        };
        let made = cloudevents::record(&context, &line, self.format, self.mode);
        let mut wanted: Vec<(&str, &[u8])> =
            made.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let is_ours = |(name, _): &&(&str, &[u8])| *name == CONTENT_TYPE || name.starts_with(PREFIX);
        let mut held: Vec<(&str, &[u8])> = record.headers.iter().filter(is_ours).copied().collect();
        wanted.sort_unstable();
        held.sort_unstable();
        let what = if made.value != value {
            "its envelope"
        } else if record.key != made.key.as_bytes() {
            "its key"
        } else if let Some((name, _)) = wanted.iter().find(|header| !held.contains(header)) {
            *name
        } else if held != wanted {
            "one of its headers"
        } else {
            return Ok(());
        };
        Err(format!("event {} was altered: {what} is not what follows from the event", line.event.seq))
    }
}

#[cfg(test)]
mod tests {
    use defib_model::chain::GENESIS;

    use super::*;
    use crate::{
        formats::render,
        samples,
        verify::{Report, Wanted},
    };

    const FORMATS: [Format; 3] = [Format::Ocsf, Format::Ecs, Format::Native];
    const MODES: [ContentMode; 2] = [ContentMode::Binary, ContentMode::Structured];

    /// A record that belongs to nobody else.
    #[derive(Debug, Clone)]
    struct Owned {
        key: Vec<u8>,
        headers: Vec<(String, Vec<u8>)>,
        value: Vec<u8>,
    }

    impl Owned {
        fn received(&self) -> Received<'_> {
            let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            Received { key: &self.key, headers: headers.collect(), value: &self.value }
        }
    }

    fn records(count: usize, format: Format, mode: ContentMode) -> Vec<Owned> {
        let kinds = samples::kinds().unwrap();
        let context = Context::new("demo");
        let mut previous = String::from(GENESIS);
        let events = samples::stream(&kinds[..count]).into_iter();
        events
            .map(|event| {
                let told = Told { context: &context, previous: &previous, event: &event };
                let (id, correlation, text) = (told.id(), told.correlation(), render(format, &told));
                let hash = event.hash.clone();
                let line = Line { event, id, correlation, previous: previous.clone(), text };
                previous = hash;
                let made = cloudevents::record(&context, &line, format, mode);
                let headers =
                    made.headers.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes()));
                Owned {
                    key: made.key.clone().into_bytes(),
                    headers: headers.collect(),
                    value: made.value.as_bytes().to_vec(),
                }
            })
            .collect()
    }

    fn judge(records: &[Owned]) -> Report {
        let mut verifier = Verifier::new(Wanted::default());
        let mut part = verifier.part("topic t, partition 0");
        for (offset, record) in records.iter().enumerate() {
            verifier.record(&mut part, offset as u64, &record.received());
        }
        verifier.finish()
    }

    #[test]
    fn records_are_whole_in_every_format_and_mode_and_headers_of_others_are_passed_over() {
        for (format, mode) in FORMATS.into_iter().flat_map(|format| MODES.map(|mode| (format, mode))) {
            let mut all = records(20, format, mode);
            all[3].headers.insert(0, ("traceparent".into(), b"00-1-2-3".to_vec()));
            let report = judge(&all);
            assert_eq!((report.findings, report.events), (vec![], 20), "{format:?} {mode:?}");
        }
    }

    #[test]
    fn any_flipped_bit_of_key_headers_and_value_is_found() {
        for (format, mode) in FORMATS.into_iter().flat_map(|format| MODES.map(|mode| (format, mode))) {
            let mut all = records(10, format, mode);
            let one = all.pop().unwrap();
            let is_found = |changed: Owned, what: &str| {
                let judged = judge(&[all.as_slice(), &[changed]].concat());
                assert!(!judged.findings.is_empty(), "{format:?} {mode:?}: {what}");
            };
            // Of the line within, each byte is tried where lines are tested.
            let envelope = String::from_utf8_lossy(&one.value).find(DATA).map_or(0, |at| at + DATA.len());
            for at in (0..envelope).chain((envelope..one.value.len()).step_by(101)) {
                let mut changed = one.clone();
                changed.value[at] ^= 1;
                is_found(changed, &format!("byte {at} of the value"));
            }
            for at in 0..one.key.len() {
                let mut changed = one.clone();
                changed.key[at] ^= 1;
                is_found(changed, &format!("byte {at} of the key"));
            }
            for number in 0..one.headers.len() {
                let mut changed = one.clone();
                changed.headers.remove(number);
                is_found(changed, &format!("without header {number}"));
                for at in 0..one.headers[number].1.len() {
                    let mut changed = one.clone();
                    changed.headers[number].1[at] ^= 1;
                    is_found(changed, &format!("byte {at} of header {number}"));
                }
            }
            let mut changed = one.clone();
            changed.headers.push(("ce_invented".into(), b"1".to_vec()));
            is_found(changed, "a header more");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_partition_and_offset() {
        let mut all = records(4, Format::Ocsf, ContentMode::Binary);
        all[2].key = b"h9".to_vec();
        let found = judge(&all).findings;
        let told = found[0].to_string();
        assert_eq!(
            told,
            "topic t, partition 0, offset 2: event 3 was altered: its key is not what follows from the event"
        );
    }

    #[test]
    fn of_a_stream_that_goes_on_nothing_newer_counts_than_was_known_when_all_was_read_once() {
        let all = records(9, Format::Native, ContentMode::Binary);
        let mut verifier = Verifier::new(Wanted::default());
        let [mut even, mut odd] = ["even", "odd"].map(|name| verifier.part(name));
        for seq in [1_usize, 3, 5] {
            verifier.record(&mut odd, seq as u64, &all[seq - 1].received());
        }
        // Events 6 to 9 are written while the other partition is read.
        for seq in [2_usize, 6, 8] {
            verifier.record(&mut even, seq as u64, &all[seq - 1].received());
        }
        verifier.stop_at_newest();
        assert!(!verifier.has_no_gap());
        for seq in [7_usize, 9] {
            verifier.record(&mut odd, seq as u64, &all[seq - 1].received());
        }
        assert!(!verifier.has_no_gap(), "event 4 is missing");
        let report = verifier.finish();
        assert_eq!(report.range, Some((EventSeq(1), EventSeq(8))), "event 9 is not asked about");
        assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
        assert!(report.findings[0].text.contains("event 4 is missing"), "{:?}", report.findings);
    }
}
