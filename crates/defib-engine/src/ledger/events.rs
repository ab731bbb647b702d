//! The numbered, hash-chained stream of events, born where commands are applied.

use alloc::{collections::VecDeque, string::String};

use defib_model::{ClusterTime, Event, EventKind, EventSeq, LogIndex, RecoveryId, UnixMillis, chain};
use serde::{Deserialize, Serialize};

/// How many events a replica keeps at hand for readers. Who is due an older one is told which are gone. For sinks that
/// lag more are kept, up to the policy's `events.spool`.
pub const EVENTS_RETAINED: usize = 8192;

/// The end of the event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLog {
    head: EventSeq,
    head_hash: String,
    retained: VecDeque<Event>,
    /// Hash of the event before the oldest retained one.
    #[serde(default)]
    before: String,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            head: EventSeq(0),
            head_hash: chain::GENESIS.into(),
            retained: VecDeque::new(),
            before: chain::GENESIS.into(),
        }
    }
}

/// Where and when events are being born.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Birth {
    pub(crate) index: LogIndex,
    pub(crate) ordinal: u32,
    pub(crate) at: ClusterTime,
    pub(crate) wall: UnixMillis,
}

impl EventLog {
    /// Number of the newest event; 0 before the first.
    #[must_use]
    pub const fn head(&self) -> EventSeq {
        self.head
    }

    /// Hash of the newest event.
    #[must_use]
    pub fn head_hash(&self) -> &str {
        &self.head_hash
    }

    /// Where the stream ends.
    #[must_use]
    pub fn end(&self) -> chain::Head {
        chain::Head { seq: self.head, hash: self.head_hash.clone() }
    }

    /// Whether the stream that once ended there was this one. One that ended before the oldest event at hand can't be
    /// told from it any more.
    #[must_use]
    pub fn continues(&self, end: &chain::Head) -> bool {
        let next = end.seq.next();
        if next > self.head.next() {
            return false;
        }
        match self.chained_since(next).next() {
            Some((before, event)) if event.seq == next => before == end.hash,
            // Nothing follows: it ends where this one does.
            None => self.head_hash == end.hash,
            Some(_) => true,
        }
    }

    /// How many retained events are older than number `from`.
    fn place_of(&self, from: EventSeq) -> usize {
        let first = self.retained.front().map_or(0, |event| event.seq.0);
        let place = usize::try_from(from.0.saturating_sub(first)).unwrap_or(usize::MAX);
        place.min(self.retained.len())
    }

    /// The retained events from number `from` on, oldest first. Those before it cost nothing.
    pub fn since(&self, from: EventSeq) -> impl ExactSizeIterator<Item = &Event> {
        self.retained.range(self.place_of(from)..)
    }

    /// The same, each with the hash of the event before it.
    pub fn chained_since(&self, from: EventSeq) -> impl ExactSizeIterator<Item = (&str, &Event)> {
        let place = self.place_of(from);
        let former = place.checked_sub(1).and_then(|place| self.retained.get(place));
        let mut before = former.map_or(self.before.as_str(), |event| event.hash.as_str());
        self.retained
            .range(place..)
            .map(move |event| (core::mem::replace(&mut before, event.hash.as_str()), event))
    }

    /// Number of the oldest event that is still at hand.
    #[must_use]
    pub fn oldest(&self) -> Option<EventSeq> {
        self.retained.front().map(|event| event.seq)
    }

    pub(crate) fn push(
        &mut self,
        birth: Birth,
        recovery: Option<RecoveryId>,
        cause: Option<EventSeq>,
        kind: EventKind,
    ) -> EventSeq {
        let seq = self.head.next();
        let Birth { index, ordinal, at, wall } = birth;
        let mut event = Event { seq, index, ordinal, at, wall, recovery, cause, kind, hash: String::new() };
        event.hash = chain::event_hash(&self.head_hash, &event);
        self.head = seq;
        self.head_hash.clone_from(&event.hash);
        self.retained.push_back(event);
        seq
    }

    /// Forgets events beyond those kept for readers, but none from `needed` on.
    pub(crate) fn trim(&mut self, needed: EventSeq) {
        while self.retained.len() > EVENTS_RETAINED
            && self.retained.front().is_some_and(|event| event.seq < needed)
        {
            if let Some(event) = self.retained.pop_front() {
                self.before = event.hash;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use defib_model::ReplicaId;

    use super::*;

    #[test]
    fn a_stream_continues_each_of_its_own_ends_and_no_other() {
        let (mut log, mut other) = (EventLog::default(), EventLog::default());
        let mut ends = alloc::vec![log.end()];
        for number in 1..=20_u64 {
            let birth = Birth {
                index: LogIndex(number),
                ordinal: 0,
                at: ClusterTime(number),
                wall: UnixMillis(number),
            };
            let kind = EventKind::ObserverStarted { observer: ReplicaId(number) };
            log.push(birth, None, None, kind.clone());
            // The other one parted from it at the tenth.
            let wall = UnixMillis(number + number / 10);
            other.push(Birth { wall, ..birth }, None, None, kind);
            ends.push(log.end());
        }
        for (number, end) in ends.iter().enumerate() {
            assert!(log.continues(end), "{number}");
            assert_eq!(other.continues(end), number < 10, "{number}");
        }
        let beyond = chain::Head { seq: EventSeq(21), hash: log.head_hash.clone() };
        assert!(!log.continues(&beyond));
        // What is not at hand any more can't be told.
        while log.retained.len() > 5 {
            log.before = log.retained.pop_front().unwrap().hash;
        }
        assert!(ends.iter().all(|end| log.continues(end)));
        assert!(!log.continues(&chain::Head { seq: EventSeq(15), hash: String::new() }));
    }

    #[test]
    fn a_page_begins_where_it_should_with_the_hash_before_it_and_knows_how_long_it_is() {
        let mut log = EventLog::default();
        for number in 1..=30_u64 {
            let (index, at, wall) = (LogIndex(number), ClusterTime(number), UnixMillis(number));
            let kind = EventKind::ObserverStarted { observer: ReplicaId(number) };
            log.push(Birth { index, ordinal: 0, at, wall }, None, None, kind);
        }
        while log.retained.len() > 20 {
            log.before = log.retained.pop_front().unwrap().hash;
        }
        let hashes: Vec<String> = log.retained.iter().map(|event| event.hash.clone()).collect();
        for from in 0..=40_u64 {
            let (events, chained) = (log.since(EventSeq(from)), log.chained_since(EventSeq(from)));
            let wanted = 30_u64.saturating_sub(from.max(11) - 1) as usize;
            assert_eq!((events.len(), chained.len()), (wanted, wanted), "from {from}");
            for (seq, (before, event)) in (from.max(11)..).zip(chained) {
                assert_eq!(event.seq, EventSeq(seq));
                let place = (seq - 11) as usize;
                assert_eq!(before, if place == 0 { &log.before } else { &hashes[place - 1] }, "event {seq}");
            }
        }
    }
}
