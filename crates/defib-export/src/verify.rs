//! Whether a stream is whole, from its public format and public keys alone.
//!
//! Every line holds the event in its canonical form, and everything else in it follows from that. So a line is
//! checked by making it again; its content by its hash; its place by the number and the hash before it; and the whole
//! history up to a point by a signature. What is found is told line by line, never just "broken".

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    io::{self, BufRead},
};

use defib_model::{
    Event, EventKind, EventSeq, SinkId,
    chain::{GENESIS, event_hash},
    export::Format,
};
use serde_json::Value;

use crate::{
    formats::{Context, MAPPING, NativeLine, Told, render},
    signing::PublicKey,
};

mod record;
#[cfg(feature = "kafka")]
mod topic;
mod vouched;

pub use record::{Part, Received};
#[cfg(feature = "kafka")]
pub use topic::{TopicError, read_topic};

/// What is asked of a stream.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Keys whose signatures count.
    pub keys: Vec<PublicKey>,
    /// The first and the last event that must be there, and be vouched for if there are keys.
    pub range: Option<(EventSeq, EventSeq)>,
    /// An event that must be there, and its hash.
    pub head: Option<(EventSeq, String)>,
    /// The same event again is no fault: sinks deliver at least once.
    pub at_least_once: bool,
    /// A filter left events out, so numbers may be missing.
    pub filtered: bool,
    /// The cluster, for streams whose lines do not name it.
    pub cluster: Option<String>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// File and line; empty where it is about the whole.
    pub place: String,
    /// What.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            f.write_str(&self.text)
        } else {
            write!(f, "{}: {}", self.place, self.text)
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong; empty: nothing.
    pub findings: Vec<Finding>,
    /// The first and the last event that had to be there, if not just all between those that are.
    pub asked: Option<(EventSeq, EventSeq)>,
    /// The first and the last event.
    pub range: Option<(EventSeq, EventSeq)>,
    /// How many different events.
    pub events: u64,
    /// How many came again.
    pub again: u64,
    /// How many numbers a filter left out.
    pub left_out: u64,
    /// Hash of the last event.
    pub hash: String,
    /// Whether the event that must be there is.
    pub reaches_head: bool,
    /// The last event that a signature vouches for, and the key.
    pub signed: Option<(EventSeq, String)>,
    /// The first and the last of all that signatures vouch for: the event that was signed, and those before it that are
    /// linked to it without a hole.
    pub vouched: Vec<(EventSeq, EventSeq)>,
    /// What a reader should know although nothing is wrong.
    pub notes: Vec<String>,
}

/// No report is longer: a wholly different file would fill the screen.
const FINDINGS_MAX: usize = 50;

struct Parsed {
    event: Event,
    previous: Option<String>,
    cluster: Option<String>,
    /// `None` for what `defib events --output json` prints.
    format: Option<Format>,
}

#[derive(Clone)]
struct Known {
    hash: String,
    previous: Option<String>,
    place: Place,
    /// Its content is what its hash says.
    is_sound: bool,
}

/// Which file, and which line of it; or which part of a topic, and which offset in it.
type Place = (usize, u64);

struct Signature {
    place: String,
    upto: EventSeq,
    head: String,
    key: String,
    signature: String,
    cluster: Option<String>,
}

/// What was given up, for which sink, and the event that says so.
struct Gap {
    sink: SinkId,
    from: EventSeq,
    to: EventSeq,
    told: EventSeq,
}

/// Checks one stream, which may lie in several files.
pub struct Verifier {
    wanted: Wanted,
    report: Report,
    known: BTreeMap<u64, Known>,
    signatures: Vec<Signature>,
    gaps: Vec<Gap>,
    cluster: Option<String>,
    /// How each is called, and what is counted in it.
    files: Vec<(String, &'static str)>,
    /// No event behind this one counts.
    until: Option<EventSeq>,
    /// Of these nothing said yet what they follow.
    unchecked: Vec<(Place, Event)>,
    /// Findings beyond [`FINDINGS_MAX`].
    unlisted: usize,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("events", &self.known.len()).finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier that has read nothing.
    #[must_use]
    pub fn new(wanted: Wanted) -> Self {
        let cluster = wanted.cluster.clone();
        Self {
            report: Report { asked: wanted.range, ..Report::default() },
            wanted,
            known: BTreeMap::new(),
            signatures: Vec::new(),
            gaps: Vec::new(),
            cluster,
            files: Vec::new(),
            until: None,
            unchecked: Vec::new(),
            unlisted: 0,
        }
    }

    fn find(&mut self, place: &str, text: impl Into<String>) {
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(Finding { place: place.to_owned(), text: text.into() });
        } else {
            self.unlisted += 1;
        }
    }

    /// Reads a file. Within it events must come in order; files may be read in any order.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&mut self, name: &str, mut reader: impl BufRead) -> io::Result<()> {
        let mut newest: Option<(EventSeq, String)> = None;
        let (mut number, mut bytes) = (0_u64, Vec::new());
        let file = self.begin(name, "line");
        loop {
            bytes.clear();
            if reader.read_until(b'\n', &mut bytes)? == 0 {
                return Ok(());
            }
            number += 1;
            let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            let parsed = std::str::from_utf8(line)
                .map_err(|error| format!("it is not text: {error}"))
                .and_then(|line| parse(line, self.wanted.cluster.as_deref()));
            match parsed {
                Ok(parsed) => self.take((file, number), &parsed, &mut newest),
                Err(problem) => self.find(&self.name((file, number)), problem),
            }
        }
    }

    fn begin(&mut self, name: &str, counted: &'static str) -> usize {
        self.files.push((name.to_owned(), counted));
        self.files.len() - 1
    }

    /// How a place is called.
    fn name(&self, (file, number): Place) -> String {
        let (file, counted) = self.files.get(file).map_or(("", ""), |(file, counted)| (file, counted));
        format!("{file}, {counted} {number}")
    }

    fn take(&mut self, line: Place, parsed: &Parsed, newest: &mut Option<(EventSeq, String)>) {
        let place = &self.name(line);
        let Parsed { event, previous, cluster, .. } = parsed;
        let mut previous = previous.clone();
        let seq = event.seq;
        if let Some(cluster) = &cluster {
            match &self.cluster {
                Some(held) if held != cluster => {
                    self.find(place, format!("event {seq} is of cluster {cluster}, not {held}"));
                }
                Some(_) => {}
                None => self.cluster = Some(cluster.clone()),
            }
        }
        // A plain stream does not say what an event follows: its neighbour does.
        let before = if seq == EventSeq(1) {
            Some(GENESIS.to_owned())
        } else {
            self.known.get(&(seq.0.saturating_sub(1))).map(|known| known.hash.clone())
        };
        if previous.is_none() {
            previous.clone_from(&before);
        }
        let is_sound = previous.as_ref().is_some_and(|previous| event_hash(previous, event) == event.hash);
        match (&previous, &before) {
            (Some(_), _) if !is_sound => {
                self.find(place, format!("event {seq} was altered: its hash does not fit"));
            }
            (Some(previous), Some(before)) if previous != before => {
                self.find(
                    place,
                    format!("event {seq} follows another event {} than the one in the stream", seq.0 - 1),
                );
            }
            (None, _) => self.unchecked.push((line, event.clone())),
            (Some(_), _) => {}
        }
        self.place_in_order(place, event, newest);
        match &event.kind {
            EventKind::HeadSigned { upto, head, key, signature } => self.signatures.push(Signature {
                place: place.clone(),
                upto: *upto,
                head: head.clone(),
                key: key.clone(),
                signature: signature.clone(),
                cluster: cluster.clone(),
            }),
            EventKind::SinkGap { sink, from, to } => {
                self.gaps.push(Gap { sink: sink.clone(), from: *from, to: *to, told: seq });
            }
            _ => {}
        }
        let known = Known { hash: event.hash.clone(), previous, place: line, is_sound };
        match self.known.entry(seq.0) {
            Entry::Vacant(entry) => drop(entry.insert(known)),
            // Of two copies, the one that says what it follows tells more.
            Entry::Occupied(mut held) if held.get().previous.is_none() && held.get().hash == known.hash => {
                held.insert(known);
            }
            Entry::Occupied(_) => {}
        }
    }

    fn place_in_order(&mut self, place: &str, event: &Event, newest: &mut Option<(EventSeq, String)>) {
        let seq = event.seq;
        let held = self.known.get(&seq.0).map(|known| known.hash == event.hash);
        match (held, &*newest) {
            (Some(false), _) => self.find(place, format!("there are two different events {seq}")),
            (Some(true), _) => {
                self.report.again += 1;
                if !self.wanted.at_least_once {
                    self.find(place, format!("event {seq} comes again"));
                }
            }
            (None, Some((last, _))) if seq < *last => {
                self.find(place, format!("event {seq} comes after event {last}"));
            }
            (None, _) => {}
        }
        if newest.as_ref().is_none_or(|(last, _)| seq > *last) {
            *newest = Some((seq, event.hash.clone()));
        }
    }

    /// What was found in all that was read.
    #[must_use]
    pub fn finish(mut self) -> Report {
        self.judge();
        if self.unlisted > 0 {
            let text = match self.unlisted {
                1 => "there is more: 1 finding is not listed".to_owned(),
                count => format!("there is more: {count} findings are not listed"),
            };
            self.report.findings.push(Finding { place: String::new(), text });
        }
        self.report
    }

    fn judge(&mut self) {
        self.check_late();
        self.link();
        let (first, last) = match (self.known.first_key_value(), self.known.last_key_value()) {
            (Some((first, _)), Some((last, known))) => {
                self.report.hash.clone_from(&known.hash);
                (*first, *last)
            }
            _ => {
                self.find("", "there is no event");
                return;
            }
        };
        self.report.range = Some((EventSeq(first), EventSeq(last)));
        self.report.events = self.known.len() as u64;
        let (from, to) = self.wanted.range.map_or((first, last), |(from, to)| (from.0, to.0));
        for (begin, end) in self.missing(from, to) {
            if self.wanted.filtered {
                self.report.left_out += end - begin + 1;
                continue;
            }
            let (what, they) = if begin == end {
                (format!("event {begin} is missing"), "it was")
            } else {
                (format!("events {begin} to {end} are missing"), "they were")
            };
            let told = self.gaps.iter().find(|gap| gap.from.0 <= begin && end <= gap.to.0);
            let why = told.map_or_else(String::new, |Gap { sink, told, .. }| {
                format!("; {they} given up for sink {sink}, as event {told} says")
            });
            // Nothing can be said before all files are read, but whoever looks for it looks here.
            let after = self.known.get(&end.saturating_add(1)).map(|known| self.name(known.place));
            self.find(&after.unwrap_or_default(), format!("{what}{why}"));
        }
        self.check_head(first, last);
        let signed = self.check_signatures();
        self.vouch(&signed, last);
    }

    fn check_head(&mut self, first: u64, last: u64) {
        let Some((seq, hash)) = self.wanted.head.clone() else { return };
        match self.known.get(&seq.0) {
            Some(known) if known.hash == hash => self.report.reaches_head = true,
            Some(known) => {
                let (place, held) = (self.name(known.place), known.hash.clone());
                self.find(&place, format!("event {seq} is another one: its hash is {held}, not {hash}"));
            }
            None => {
                let what = match seq.0 {
                    seq if seq < first => "begins behind",
                    seq if seq > last => "ends before",
                    _ => "lacks",
                };
                self.find("", format!("the stream {what} event {seq}: it holds events {first} to {last}"));
            }
        }
    }

    /// Events of different files must fit each other too.
    fn link(&mut self) {
        let mut broken = Vec::new();
        for (seq, known) in &self.known {
            let before = seq.checked_sub(1).and_then(|seq| self.known.get(&seq));
            if let (Some(previous), Some(before)) = (&known.previous, before)
                && *previous != before.hash
            {
                broken.push(*seq);
            }
        }
        let told: BTreeSet<String> =
            self.report.findings.iter().map(|finding| finding.text.clone()).collect();
        for seq in broken {
            let text = format!("event {seq} follows another event {} than the one in the stream", seq - 1);
            if !told.contains(&text) {
                self.find("", text);
            }
        }
    }

    fn missing(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut due = from;
        for seq in self.known.range(from..=to.max(from)).map(|(seq, _)| *seq) {
            if seq > due {
                missing.push((due, seq - 1));
            }
            due = seq.saturating_add(1);
        }
        if due <= to {
            missing.push((due, to));
        }
        missing
    }
}

fn parse(line: &str, cluster: Option<&str>) -> Result<Parsed, String> {
    let value: Value = serde_json::from_str(line)
        .map_err(|error| format!("it is not an event, it may have been cut: {error}"))?;
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let (format, raw, told_by, previous, mapping) = if value.get("raw_data").is_some() {
        let mapping = text("/metadata/log_version").and_then(|text| text.parse().ok());
        (Format::Ocsf, text("/raw_data"), text("/metadata/tenant_uid"), text("/unmapped/previous"), mapping)
    } else if value.get("ecs").is_some() {
        let mapping = value.pointer("/defib/mapping").and_then(Value::as_u64);
        let told_by = text("/orchestrator/cluster/name");
        (Format::Ecs, text("/event/original"), told_by, text("/defib/previous"), mapping)
    } else if value.get("stream").is_some() {
        let native: NativeLine =
            serde_json::from_str(line).map_err(|error| format!("it is not an event: {error}"))?;
        let raw = serde_json::to_string(&native.event).ok();
        let told_by = Some(native.stream.cluster);
        (Format::Native, raw, told_by, Some(native.stream.previous), Some(u64::from(native.stream.mapping)))
    } else {
        return plain(line, cluster);
    };
    let (Some(raw), Some(told_by), Some(previous)) = (raw, told_by, previous) else {
        return Err("it lacks the event, its cluster or the hash before it".into());
    };
    let event: Event = serde_json::from_str(&raw).map_err(|error| format!("it holds no event: {error}"))?;
    if mapping != Some(u64::from(MAPPING)) {
        return Err(format!(
            "event {} was written by another mapping than {MAPPING}: verify it with the release that wrote it",
            event.seq
        ));
    }
    let context = Context::new(&told_by);
    let again = render(format, &Told { context: &context, previous: &previous, event: &event });
    if again != line {
        return Err(format!("event {} was altered: its line is not what follows from the event", event.seq));
    }
    Ok(Parsed { event, previous: Some(previous), cluster: Some(told_by), format: Some(format) })
}

/// What `defib events --output json` prints.
fn plain(line: &str, cluster: Option<&str>) -> Result<Parsed, String> {
    let event: Event = serde_json::from_str(line).map_err(|error| format!("it is not an event: {error}"))?;
    if serde_json::to_string(&event).unwrap_or_default() != line {
        return Err(format!("event {} was altered: it is not in its canonical form", event.seq));
    }
    Ok(Parsed { event, previous: None, cluster: cluster.map(str::to_owned), format: None })
}

#[cfg(test)]
mod tests;
