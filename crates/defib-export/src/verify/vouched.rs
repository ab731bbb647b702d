//! What is vouched for. A signature is over one event alone: it says something of another one only if each link of the
//! chain between the two is there, so what lies behind a hole is nobody's word.

use std::collections::{BTreeMap, BTreeSet};

use defib_model::{EventSeq, chain::event_hash};

use super::Verifier;

/// First and last of events that follow each other.
type Run = (u64, u64);

fn name((first, last): Run) -> String {
    if first == last { format!("event {first}") } else { format!("events {first} to {last}") }
}

fn holds(runs: &[Run], seq: u64) -> bool {
    let behind = runs.partition_point(|(first, _)| *first <= seq);
    behind.checked_sub(1).and_then(|at| runs.get(at)).is_some_and(|(_, last)| seq <= *last)
}

impl Verifier {
    /// Checks those events of which only others could say what they follow, now that all are known.
    pub(super) fn check_late(&mut self) {
        let first = self.known.keys().next().copied();
        for (place, event) in std::mem::take(&mut self.unchecked) {
            let seq = event.seq;
            let before =
                seq.0.checked_sub(1).and_then(|seq| self.known.get(&seq)).map(|known| known.hash.clone());
            let copy = self.known.get(&seq.0).and_then(|known| known.previous.clone());
            let is_asked_for = self.wanted.range.is_some_and(|(from, to)| from <= seq && seq <= to);
            match copy.or(before) {
                Some(previous) => {
                    let is_sound = event_hash(&previous, &event) == event.hash;
                    if !is_sound {
                        self.find(
                            &self.name(place),
                            format!("event {seq} was altered: its hash does not fit"),
                        );
                    }
                    if let Some(known) = self.known.get_mut(&seq.0).filter(|known| known.place == place) {
                        known.is_sound = is_sound;
                        known.previous = Some(previous);
                    }
                }
                None => {
                    let text = format!(
                        "the content of event {seq} can't be checked: nothing here says what it follows; give the \
                         event before it, too"
                    );
                    if is_asked_for || first != Some(seq.0) {
                        self.find(&self.name(place), text);
                    } else {
                        self.report.notes.push(text);
                    }
                }
            }
        }
    }

    /// What is linked without a hole.
    fn pieces(&self) -> Vec<Run> {
        let mut pieces: Vec<Run> = Vec::new();
        let mut before: Option<&str> = None;
        for (seq, known) in &self.known {
            match pieces.last_mut() {
                _ if !known.is_sound => {}
                Some((_, last))
                    if *last + 1 == *seq && before.is_some() && before == known.previous.as_deref() =>
                {
                    *last = *seq;
                }
                _ => pieces.push((*seq, *seq)),
            }
            before = known.is_sound.then_some(known.hash.as_str());
        }
        pieces
    }

    /// Signatures that count: the event of each, and the key.
    pub(super) fn check_signatures(&mut self) -> BTreeMap<u64, String> {
        let mut strangers = BTreeSet::new();
        let mut signed = BTreeMap::new();
        for one in std::mem::take(&mut self.signatures) {
            let Some(key) = self.wanted.keys.iter().find(|key| key.id() == one.key).cloned() else {
                strangers.insert(one.key);
                continue;
            };
            let Some(cluster) = one.cluster.or_else(|| self.cluster.clone()) else {
                self.find(&one.place, "a signature can't be checked: name the cluster that the stream is of");
                continue;
            };
            if !key.verifies(&cluster, one.upto, &one.head, &one.signature) {
                self.find(&one.place, format!("the signature for event {} is forged", one.upto));
                continue;
            }
            match self.known.get(&one.upto.0) {
                Some(known) if known.hash != one.head => {
                    self.find(&one.place, format!("event {} is not the one that was signed", one.upto));
                }
                Some(_) => drop(signed.insert(one.upto.0, one.key)),
                None => {}
            }
        }
        if !strangers.is_empty() {
            let names: Vec<String> = strangers.into_iter().collect();
            self.report.notes.push(format!("signatures with other keys than given: {}", names.join(", ")));
        }
        signed
    }

    /// Tells what is vouched for, and finds what is not although it should be.
    pub(super) fn vouch(&mut self, signed: &BTreeMap<u64, String>, last: u64) {
        let pieces = self.pieces();
        let vouched_by = |words: &BTreeSet<u64>| -> Vec<Run> {
            let greatest =
                |(first, last): &Run| words.range(*first..=*last).next_back().map(|upto| (*first, *upto));
            pieces.iter().filter_map(greatest).collect()
        };
        let mut words: BTreeSet<u64> = signed.keys().copied().collect();
        let vouched = vouched_by(&words);
        self.report.signed =
            vouched.last().and_then(|(_, upto)| signed.get(upto).map(|key| (EventSeq(*upto), key.clone())));
        self.report.vouched =
            vouched.iter().map(|(first, last)| (EventSeq(*first), EventSeq(*last))).collect();
        let head = self.wanted.head.as_ref().filter(|_| self.report.reaches_head).map(|(seq, _)| seq.0);
        let has_keys = !self.wanted.keys.is_empty();
        match self.wanted.range {
            // Whoever noted a hash has its word, in place of a signature or beside it.
            Some((from, to)) if has_keys || head.is_some_and(|head| head >= to.0) => {
                words.extend(head);
                self.find_unvouched((from.0, to.0), &vouched_by(&words), &words);
            }
            None if has_keys => match vouched.last() {
                None => self.find("", "no signature with a given key vouches for anything here"),
                // The signature's own event always is.
                Some((_, upto)) if upto + 1 < last && !self.wanted.filtered => self
                    .report
                    .notes
                    .push(format!("events {} to {last} are newer than the last signature", upto + 1)),
                Some(_) => {}
            },
            Some(_) | None => {}
        }
    }

    /// Finds what is there of a range and not vouched for.
    fn find_unvouched(&mut self, (from, to): Run, vouched: &[Run], words: &BTreeSet<u64>) {
        let mut bare: Vec<Run> = Vec::new();
        for seq in self.known.range(from..=to.max(from)).map(|(seq, _)| *seq) {
            match bare.last_mut() {
                _ if holds(vouched, seq) => {}
                Some((_, last)) if *last + 1 == seq => *last = seq,
                _ => bare.push((seq, seq)),
            }
        }
        let who = if self.wanted.keys.is_empty() { "no given hash" } else { "no signature with a given key" };
        for run in bare {
            let why = match (words.range(run.1..).next(), words.last()) {
                (Some(word), _) => {
                    format!(": event {word} is vouched for, but {}", self.what_parts(run.1, *word))
                }
                (None, Some(word)) => format!("; the last one vouches for {word}"),
                (None, None) => String::new(),
            };
            self.find("", format!("{who} vouches for {}{why}", name(run)));
        }
    }

    /// Where the chain is broken between two events.
    fn what_parts(&self, from: u64, to: u64) -> String {
        let mut before: Option<&str> = None;
        for seq in from..=to {
            match self.known.get(&seq) {
                None => return format!("event {seq} is missing between"),
                Some(known) if !known.is_sound => return format!("the content of event {seq} is not proven"),
                Some(known) if seq > from && before != known.previous.as_deref() => {
                    return format!("event {seq} follows another one");
                }
                Some(known) => before = Some(&known.hash),
            }
        }
        "they are not linked".into()
    }
}
