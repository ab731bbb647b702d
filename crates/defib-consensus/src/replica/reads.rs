//! Linearizable reads, in rounds: all reads that arrive while one round is under way share the next.

use std::collections::VecDeque;

use super::ReplicaConfig;

/// Ticks after which a round that got no answer is asked again: raft drops it silently where there is no leader yet.
const RETRY_TICKS: usize = 2;

#[derive(Debug)]
pub(super) struct Reads {
    replica: u64,
    incarnation: u64,
    patience: usize,
    round: u64,
    /// In the current round.
    asked: Vec<u64>,
    /// For the next round.
    waiting: Vec<u64>,
    age: usize,
    /// Confirmed, but not everything up to the index was handed out yet.
    confirmed: VecDeque<(u64, Vec<u64>)>,
    failed: Vec<u64>,
}

impl Reads {
    pub(super) fn new(config: &ReplicaConfig) -> Self {
        Self {
            replica: config.replica,
            incarnation: config.incarnation,
            patience: 4 * config.election_ticks,
            round: 0,
            asked: Vec::new(),
            waiting: Vec::new(),
            age: 0,
            confirmed: VecDeque::new(),
            failed: Vec::new(),
        }
    }

    /// Takes a read; true if a round must be asked for now.
    pub(super) fn request(&mut self, context: u64) -> bool {
        self.waiting.push(context);
        self.next_round()
    }

    fn next_round(&mut self) -> bool {
        if !self.asked.is_empty() || self.waiting.is_empty() {
            return false;
        }
        self.asked = std::mem::take(&mut self.waiting);
        self.round += 1;
        self.age = 0;
        true
    }

    pub(super) fn round_context(&self) -> Vec<u8> {
        let mut context = Vec::with_capacity(24);
        for value in [self.replica, self.incarnation, self.round] {
            context.extend_from_slice(&value.to_le_bytes());
        }
        context
    }

    /// True if the current round must be asked for (again).
    pub(super) fn tick(&mut self) -> bool {
        if self.asked.is_empty() {
            return self.next_round();
        }
        self.age += 1;
        if self.age >= self.patience {
            self.failed.append(&mut self.asked);
            return self.next_round();
        }
        self.age.is_multiple_of(RETRY_TICKS)
    }

    /// A majority confirmed a round at a commit index.
    pub(super) fn confirmed(&mut self, index: u64, context: &[u8]) {
        if context == self.round_context() && !self.asked.is_empty() {
            self.confirmed.push_back((index, std::mem::take(&mut self.asked)));
        }
    }

    pub(super) fn can_deliver(&self, delivered: u64) -> bool {
        self.confirmed.front().is_some_and(|(index, _)| *index <= delivered)
    }

    pub(super) fn take_deliverable(&mut self, delivered: u64) -> Vec<(u64, u64)> {
        let mut ready = Vec::new();
        while let Some((index, contexts)) = self.confirmed.pop_front_if(|(index, _)| *index <= delivered) {
            ready.extend(contexts.into_iter().map(|context| (context, index)));
        }
        ready
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    pub(super) fn take_failed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.failed)
    }

    /// True if a round waits to be asked for, now that the one before is answered.
    pub(super) fn start_waiting(&mut self) -> bool {
        self.next_round()
    }
}
