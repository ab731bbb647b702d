//! What is told of one thing once in a while only, because somebody else decides how much there is of it.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// What waits to be told, by what it is about, and when each was told last. No larger than there are things.
#[derive(Debug)]
pub(crate) struct Tally<K, V> {
    every: Duration,
    /// What comes while something waits is added to it by whoever hears it.
    pub(crate) untold: BTreeMap<K, V>,
    told: BTreeMap<K, Instant>,
}

impl<K: Ord + Clone, V: Clone> Tally<K, V> {
    /// Of each thing something is told at once, and then at most so often.
    pub(crate) const fn new(every: Duration) -> Self {
        Self { every, untold: BTreeMap::new(), told: BTreeMap::new() }
    }

    /// What may be told now; it waits until somebody has [taken](Self::taken) it.
    pub(crate) fn due(&mut self, now: Instant) -> impl Iterator<Item = (K, V)> {
        self.told.retain(|_, at| now.duration_since(*at) < self.every);
        let due = self.untold.iter().filter(|(key, _)| !self.told.contains_key(*key));
        due.map(|(key, value)| (key.clone(), value.clone()))
    }

    /// These were told.
    pub(crate) fn taken(&mut self, now: Instant, keys: impl IntoIterator<Item = K>) {
        for key in keys {
            self.untold.remove(&key);
            self.told.insert(key, now);
        }
    }
}
