//! Delivery of the event stream: how far each sink is, what is kept for it, and what is given up.

use alloc::{collections::BTreeMap, format, string::String, vec::Vec};

use defib_model::{Command, EventKind, EventSeq, SinkId, command::Operator};
use serde::{Deserialize, Serialize};

use super::Ledger;

/// How far a sink is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SinkRecord {
    /// The last event that it has, or will never get.
    pub delivered: EventSeq,
    /// How many events it will never get.
    pub given_up: u64,
}

impl SinkRecord {
    /// Up to `upto` it gets nothing any more.
    const fn give_up(&mut self, upto: EventSeq) {
        self.given_up = self.given_up.saturating_add(upto.0.saturating_sub(self.delivered.0));
        self.delivered = upto;
    }
}

impl Ledger {
    /// The sinks and how far each is.
    #[must_use]
    pub const fn sinks(&self) -> &BTreeMap<SinkId, SinkRecord> {
        &self.sinks
    }

    /// The last event that a signature vouches for, and the number of the event that says so.
    #[must_use]
    pub const fn signed(&self) -> (EventSeq, EventSeq) {
        self.signed
    }

    /// A cursor never goes back, and never beyond what there is.
    pub(super) fn delivered(&mut self, cursors: &BTreeMap<SinkId, EventSeq>) {
        let head = self.events.head();
        for (sink, seq) in cursors {
            if let Some(record) = self.sinks.get_mut(sink) {
                record.delivered = record.delivered.max((*seq).min(head));
            }
        }
    }

    /// What giving up would do.
    pub(super) fn judge_give_up(&self, sink: &SinkId, upto: EventSeq) -> Result<String, String> {
        let record = self.sinks.get(sink).ok_or_else(|| format!("the policy has no sink {sink}"))?;
        let (from, head) = (record.delivered.next(), self.events.head());
        if upto > head {
            return Err(format!("there is no event {upto} yet; the newest is {head}"));
        }
        if upto < from {
            return Err(format!("sink {sink} has every event up to {upto}, or will never get it"));
        }
        Ok(format!("sink {sink} will never get events {from} to {upto}; an event says so"))
    }

    /// A sink goes on behind an event, and the stream says what it does not get, and by whose word.
    pub(super) fn give_up(&mut self, sink: &SinkId, upto: EventSeq, operator: &Operator) {
        let command = Command::GiveUp { sink: sink.clone(), upto, operator: operator.clone() };
        if let Err(why) = self.judge(&command) {
            return self.refuse("give-up", why);
        }
        let Some(record) = self.sinks.get_mut(sink) else { return };
        let from = record.delivered.next();
        record.give_up(upto);
        let action = format!("gives up events {from} to {upto} for sink {sink}");
        self.event(None, EventKind::OperatorActed { operator: operator.clone(), action });
        self.event(None, EventKind::SinkGap { sink: sink.clone(), from, to: upto });
    }

    /// Takes a signature of an event that is at hand. Whether it is genuine, only who holds the public key can say.
    pub(super) fn head_signed(&mut self, seq: EventSeq, hash: &str, key: &str, signature: &str) {
        let is_ours =
            self.events.since(seq).next().is_some_and(|event| event.seq == seq && event.hash == hash);
        // A signature that comes late vouches for nothing new; one for another history must not get in.
        if seq <= self.signed.0 || !is_ours {
            return;
        }
        let kind = EventKind::HeadSigned {
            upto: seq,
            head: hash.into(),
            key: key.into(),
            signature: signature.into(),
        };
        let told = self.event(None, kind);
        self.signed = (seq, told);
    }

    /// A new sink begins with the oldest event that is at hand; one that is gone is forgotten.
    pub(super) fn sinks_changed(&mut self) {
        let configured = &self.policy.events.sinks;
        self.sinks.retain(|id, _| configured.contains_key(id));
        let begin = self.events.oldest().map_or(EventSeq(0), |oldest| EventSeq(oldest.0.saturating_sub(1)));
        for id in configured.keys() {
            self.sinks.entry(id.clone()).or_insert(SinkRecord { delivered: begin, given_up: 0 });
        }
    }

    /// Forgets what everybody has. For a sink that is too far behind, the older half of the spool is given up, by an
    /// event: one in many, so that giving up does not fill the spool itself.
    pub(super) fn settle_export(&mut self) {
        let spool = u64::from(self.policy.events.spool);
        let head = self.events.head();
        let far_behind = |record: &SinkRecord| head.0.saturating_sub(record.delivered.0) > spool;
        if self.sinks.values().any(far_behind) {
            let to = EventSeq(head.0.saturating_sub(spool / 2));
            let mut gaps: Vec<(SinkId, EventSeq)> = Vec::new();
            for (id, record) in &mut self.sinks {
                if far_behind(record) {
                    gaps.push((id.clone(), record.delivered.next()));
                    record.give_up(to);
                }
            }
            for (sink, from) in gaps {
                self.event(None, EventKind::SinkGap { sink, from, to });
            }
        }
        let needed = self.sinks.values().map(|record| record.delivered.next()).min();
        self.events.trim(needed.unwrap_or(EventSeq(u64::MAX)));
    }
}
