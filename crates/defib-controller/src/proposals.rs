//! Who waits for which proposal.

use std::collections::BTreeMap;

use defib_consensus::replica::ProposalId;
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

/// Proposals that somebody waits for.
#[derive(Debug, Default)]
pub struct Proposals {
    next: u64,
    waiting: BTreeMap<ProposalId, oneshot::Sender<Fate>>,
}

impl Proposals {
    /// A name for a proposal, and somebody who waits for it, or not.
    pub fn begin(&mut self, waiter: Option<oneshot::Sender<Fate>>) -> ProposalId {
        self.next = self.next.wrapping_add(1);
        let id = ProposalId(self.next);
        if let Some(waiter) = waiter {
            self.waiting.insert(id, waiter);
        }
        id
    }

    /// Tells whoever waits.
    pub fn end(&mut self, id: ProposalId, fate: Fate) {
        if let Some(waiter) = self.waiting.remove(&id) {
            // Whoever went away does not want to know.
            let _ = waiter.send(fate);
        }
    }
}
