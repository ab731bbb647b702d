//! I7 (S9, S12): what is committed is kept. Every replica applies the same entries at the same places, without gaps,
//! and equal places give equal states: the stream's hash at every entry, the whole state at some.

use std::collections::BTreeMap;

use defib_consensus::replica::CommittedEntry;
use defib_engine::ledger::Ledger;

use super::Common;

/// What was applied at each place, by whoever came there first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    entries: Vec<Option<(u64, u64)>>,
    /// The stream's hash after each entry, its length, and who was there first.
    streams: Vec<(u64, u64, u64)>,
    states: BTreeMap<u64, (u64, String)>,
    acknowledged: u64,
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Kept {
    pub(super) fn entry(&mut self, common: &mut Common, now: u64, replica: u64, entry: &CommittedEntry) {
        let place = entry.index as usize;
        if self.entries.len() <= place {
            self.entries.resize(place + 1, None);
        }
        let found = (entry.term, digest(&entry.data));
        let known = *self.entries[place].get_or_insert(found);
        if known != found {
            let text = format!(
                "r{replica} applies another entry at {} (term {} instead of {})",
                entry.index, entry.term, known.0
            );
            common.violated("I7", now, text);
        }
    }

    /// The last place that anybody has applied.
    pub(super) const fn last(&self) -> u64 {
        self.entries.len().saturating_sub(1) as u64
    }

    pub(super) fn acknowledged(&mut self, index: u64) {
        self.acknowledged = self.acknowledged.max(index);
    }

    pub(super) fn state(
        &mut self,
        common: &mut Common,
        now: u64,
        replica: u64,
        ledger: &Ledger,
        whole: bool,
    ) {
        let applied = ledger.applied().0;
        let place = applied as usize;
        if self.streams.len() <= place {
            self.streams.resize(place + 1, (0, 0, 0));
        }
        let head = digest(ledger.events().head_hash().as_bytes()) | 1;
        let length = ledger.events().head().0;
        let (known, long, first) = self.streams[place];
        if known == 0 {
            self.streams[place] = (head, length, replica);
        } else if known != head {
            let text = format!(
                "the stream of r{replica} ({length} events) differs from that of r{first} ({long}) after entry {applied}"
            );
            common.violated("I8", now, text);
        }
        if !whole {
            return;
        }
        let hash = ledger.state_hash();
        let (first, known) = self.states.entry(applied).or_insert_with(|| (replica, hash.clone()));
        if *known != hash {
            common.violated(
                "I7",
                now,
                format!("the states of r{replica} and r{first} differ after entry {applied}"),
            );
        }
    }
}
