//! The hash chain of the event stream: how a hash is made, and how a reader alone finds what is missing,
//! doubled, swapped or altered.
//!
//! The hash of an event is SHA-256 over the former event's hash (as hexadecimal text), a line feed, and the
//! event's canonical JSON with an empty `hash`. The first event follows [`GENESIS`].

use alloc::{
    format,
    string::{String, ToString},
};
use core::fmt::{self, Write as _};

use sha2::{Digest as _, Sha256};

use crate::{Event, EventSeq};

/// What the first event follows.
pub const GENESIS: &str = "genesis";

/// Where a stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The newest event; 0 before the first.
    pub seq: EventSeq,
    /// Its hash, [`GENESIS`] before the first.
    pub hash: String,
}

/// The hash of `event`, whose own `hash` is not looked at, after an event with the hash `previous`.
#[must_use]
pub fn event_hash(previous: &str, event: &Event) -> String {
    let mut bare = event.clone();
    bare.hash.clear();
    // An event is made of strings, numbers and lists: it always has a JSON form.
    let text = serde_json::to_string(&bare).unwrap_or_default();
    let mut digest = Sha256::new();
    digest.update(previous.as_bytes());
    digest.update(b"\n");
    digest.update(text.as_bytes());
    let mut hash = String::with_capacity(64);
    for byte in digest.finalize() {
        let _ = write!(hash, "{byte:02x}");
    }
    hash
}

/// What is signed to vouch for all events up to `seq`: one line per part, so that any tool can rebuild it.
#[must_use]
pub fn head_statement(cluster: &str, seq: EventSeq, hash: &str) -> String {
    format!("defib-head-v1\n{cluster}\n{seq}\n{hash}\n")
}

/// What is wrong with a stream of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainError {
    /// A line is not an event.
    Unreadable {
        /// Which line, from 1.
        line: usize,
        /// What the reader says.
        problem: String,
    },
    /// Numbers are missing.
    Gap {
        /// The first that is missing.
        from: EventSeq,
        /// The last that is missing.
        to: EventSeq,
    },
    /// An event comes again, or after a later one.
    OutOfOrder {
        /// Its number.
        seq: EventSeq,
        /// The number that was due.
        due: EventSeq,
    },
    /// The content does not have the hash that it carries.
    Altered {
        /// Its number.
        seq: EventSeq,
    },
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { line, problem } => {
                write!(f, "line {line} is not an event, it may have been cut: {problem}")
            }
            Self::Gap { from, to } if from == to => write!(f, "event {from} is missing"),
            Self::Gap { from, to } => write!(f, "events {from} to {to} are missing"),
            Self::OutOfOrder { seq, due } => write!(f, "event {seq} stands where event {due} is due"),
            Self::Altered { seq } => {
                write!(f, "event {seq} or the one before it was altered: its hash does not fit")
            }
        }
    }
}

impl core::error::Error for ChainError {}

/// Checks a stream, one event after the other.
#[derive(Debug, Clone, Default)]
pub struct ChainVerifier {
    last: Option<(EventSeq, String)>,
    checked: u64,
}

impl ChainVerifier {
    /// A verifier that takes whichever event comes first as its start. The hash of a first event other than
    /// number 1 can't be checked: what it follows is unknown.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many events were found good.
    #[must_use]
    pub const fn checked(&self) -> u64 {
        self.checked
    }

    /// The last good event.
    #[must_use]
    pub fn last(&self) -> Option<(EventSeq, &str)> {
        self.last.as_ref().map(|(seq, hash)| (*seq, hash.as_str()))
    }

    /// Takes the next event.
    ///
    /// # Errors
    /// What is wrong with it. After a gap it goes on from the event behind the gap; otherwise nothing changed.
    pub fn push(&mut self, event: &Event) -> Result<(), ChainError> {
        let accept = |this: &mut Self| {
            this.last = Some((event.seq, event.hash.clone()));
            this.checked = this.checked.saturating_add(1);
        };
        let previous = match &self.last {
            None if event.seq == EventSeq(1) => Some(GENESIS.to_string()),
            None => None,
            Some((last, hash)) => {
                let due = last.next();
                if event.seq < due {
                    return Err(ChainError::OutOfOrder { seq: event.seq, due });
                }
                if event.seq > due {
                    let to = EventSeq(event.seq.0.saturating_sub(1));
                    accept(self);
                    return Err(ChainError::Gap { from: due, to });
                }
                Some(hash.clone())
            }
        };
        if let Some(previous) = previous
            && event_hash(&previous, event) != event.hash
        {
            return Err(ChainError::Altered { seq: event.seq });
        }
        accept(self);
        Ok(())
    }

    /// Takes the next line of a JSON-lines file; `number` counts from 1.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn push_line(&mut self, number: usize, line: &str) -> Result<(), ChainError> {
        let event: Event = serde_json::from_str(line)
            .map_err(|error| ChainError::Unreadable { line: number, problem: error.to_string() })?;
        // What is not part of the canonical form would escape the hash.
        let canonical = serde_json::to_string(&event).unwrap_or_default();
        if canonical != line.trim_end() {
            return Err(ChainError::Unreadable {
                line: number,
                problem: format!("event {} is not in its canonical form", event.seq),
            });
        }
        self.push(&event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClusterTime, EventKind, LogIndex, ReplicaId, UnixMillis};
    use alloc::vec::Vec;
    use std::string::String;

    fn stream(count: u64) -> Vec<String> {
        let mut previous = String::from(GENESIS);
        (1..=count)
            .map(|seq| {
                let mut event = Event {
                    seq: EventSeq(seq),
                    index: LogIndex(seq),
                    ordinal: 0,
                    at: ClusterTime(seq),
                    wall: UnixMillis(7),
                    recovery: None,
                    cause: None,
                    kind: EventKind::ObserverStarted { observer: ReplicaId(seq % 3) },
                    hash: String::new(),
                };
                event.hash = event_hash(&previous, &event);
                previous.clone_from(&event.hash);
                serde_json::to_string(&event).unwrap()
            })
            .collect()
    }

    fn verify(lines: &[String]) -> Result<u64, ChainError> {
        let mut verifier = ChainVerifier::new();
        for (number, line) in lines.iter().enumerate() {
            verifier.push_line(number + 1, line)?;
        }
        Ok(verifier.checked())
    }

    #[test]
    fn a_whole_stream_is_good() {
        assert_eq!(verify(&stream(20)), Ok(20));
        assert_eq!(verify(&stream(20)[7..]), Ok(13), "a stream may be read from its middle");
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let lines = stream(4);
        for byte in 0..lines[1].len() {
            let mut damaged = lines[1].clone().into_bytes();
            damaged[byte] ^= 1;
            let Ok(damaged) = String::from_utf8(damaged) else { continue };
            let mut altered = lines.clone();
            altered[1] = damaged;
            assert!(verify(&altered).is_err(), "byte {byte} of {}", altered[1]);
        }
    }

    #[test]
    fn a_missing_a_doubled_and_a_swapped_event_are_found() {
        let lines = stream(6);
        let mut missing = lines.clone();
        missing.drain(2..4);
        assert_eq!(verify(&missing), Err(ChainError::Gap { from: EventSeq(3), to: EventSeq(4) }));
        let mut doubled = lines.clone();
        doubled.insert(2, lines[1].clone());
        assert_eq!(verify(&doubled), Err(ChainError::OutOfOrder { seq: EventSeq(2), due: EventSeq(3) }));
        let mut swapped = lines.clone();
        swapped.swap(2, 3);
        assert!(verify(&swapped).is_err());
    }

    #[test]
    fn a_file_that_was_cut_in_half_names_the_line() {
        let mut lines = stream(3);
        let half = lines[2].len() / 2;
        lines[2].truncate(half);
        let error = verify(&lines).unwrap_err();
        assert!(error.to_string().starts_with("line 3 is not an event, it may have been cut"), "{error}");
    }
}
