//! The leader holds what other replicas say against its own wall clock, for those who read events.

use alloc::vec::Vec;

use defib_model::{Command, Entry, Instant};

use super::{Controller, Effect, Proposed};
use crate::ledger::clocks_differ;

impl Controller {
    /// Told when two words in a row say so: a single one may have been long under way, or this replica stood still.
    pub(super) fn compare_clock(&mut self, now: Instant, entry: &Entry, effects: &mut Vec<Effect>) {
        let replica = entry.proposer;
        if !self.leads() || replica == self.me || !self.ledger.voters().contains(&replica) {
            return;
        }
        let ahead_ms = entry.wall.ahead_of(self.wall);
        let recorded = self.ledger.clock_ahead(replica);
        let before = self.clocks.insert(replica, ahead_ms);
        let is_news = |ahead_ms| clocks_differ(recorded, ahead_ms).is_some();
        if let Some(ahead_ms) = clocks_differ(recorded, ahead_ms)
            && before.is_some_and(is_news)
        {
            let command = || Command::ClockCompared { replica, ahead_ms };
            self.propose_once(now, Proposed::ClockCompared(replica), command, effects);
        }
    }
}
