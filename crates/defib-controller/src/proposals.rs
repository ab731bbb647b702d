//! Who waits for which proposal.

use std::collections::BTreeMap;

use defib_consensus::replica::ProposalId;
use defib_model::Instant;
use tokio::sync::oneshot;

/// What became of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is in the log and was applied.
    Committed {
        /// Where.
        index: u64,
        /// Why applying it changed nothing, if it did not.
        refused: Option<String>,
    },
    /// The leader changed meanwhile, or nobody leads: it may still come.
    Unknown,
}

/// A proposal that is on its way.
#[derive(Debug)]
struct Pending {
    since: Instant,
    waiter: Option<oneshot::Sender<Fate>>,
}

/// Proposals that are on their way. The log ends each one that it took, so they are as few as it lets be.
#[derive(Debug, Default)]
pub struct Proposals {
    next: u64,
    pending: BTreeMap<ProposalId, Pending>,
}

impl Proposals {
    /// A name for a proposal that is made now, and somebody who waits for it, or not.
    pub fn begin(&mut self, now: Instant, waiter: Option<oneshot::Sender<Fate>>) -> ProposalId {
        self.next = self.next.wrapping_add(1);
        let id = ProposalId(self.next);
        self.pending.insert(id, Pending { since: now, waiter });
        id
    }

    /// When a proposal was made, unless its fate was told before.
    #[must_use]
    pub fn since(&self, id: ProposalId) -> Option<Instant> {
        self.pending.get(&id).map(|pending| pending.since)
    }

    /// Tells whoever waits.
    pub fn end(&mut self, id: ProposalId, fate: Fate) {
        if let Some(waiter) = self.pending.remove(&id).and_then(|pending| pending.waiter) {
            // Whoever went away does not want to know.
            let _ = waiter.send(fate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_is_timed_once_whether_somebody_waits_or_not() {
        let mut proposals = Proposals::default();
        let (waiter, mut told) = oneshot::channel();
        let waited = proposals.begin(Instant(5), Some(waiter));
        let silent = proposals.begin(Instant(7), None);
        assert_eq!(proposals.since(waited), Some(Instant(5)));
        assert_eq!(proposals.since(silent), Some(Instant(7)));
        proposals.end(waited, Fate::Unknown);
        proposals.end(silent, Fate::Unknown);
        assert_eq!(told.try_recv(), Ok(Fate::Unknown));
        // What was given up may still be committed; by then nobody knows what the time would mean.
        assert_eq!((proposals.since(waited), proposals.since(silent)), (None, None));
        assert!(proposals.pending.is_empty());
    }
}
