//! I8 (S10): the stream is whole: numbered without gaps, each event chained to the one before it.

use defib_model::{Event, chain::ChainVerifier};

use super::Common;

/// A consumer that reads every event once.
#[derive(Debug, Default)]
pub(super) struct Stream {
    chain: ChainVerifier,
}

impl Stream {
    pub(super) fn event(&mut self, common: &mut Common, now: u64, event: &Event) {
        if let Err(error) = self.chain.push(event) {
            common.violated("I8", now, format!("the stream of events: {error}"));
        }
    }
}
