//! Telling of what strangers may bring about as often as they like: not more often than somebody can read it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// One turn for each kind in so long; what comes between is counted. There must be few kinds.
#[derive(Debug)]
pub struct Seldom<Kind> {
    every: Duration,
    /// When each was told last, and how many came since.
    told: Mutex<BTreeMap<Kind, (Instant, u64)>>,
}

impl<Kind: Ord> Seldom<Kind> {
    /// Nothing was told yet.
    #[must_use]
    pub const fn new(every: Duration) -> Self {
        Self { every, told: Mutex::new(BTreeMap::new()) }
    }

    /// How many were not told of since the last turn, if it is time to tell.
    #[must_use]
    pub fn turn(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.get_mut(&kind) {
            Some((last, unsaid)) if now < *last + self.every => {
                *unsaid += 1;
                None
            }
            Some(entry) => Some(std::mem::replace(entry, (now, 0)).1),
            None => {
                told.insert(kind, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_is_told_once_in_its_time_with_its_number() {
        let every = Duration::from_secs(60);
        let (seldom, now) = (Seldom::new(every), Instant::now());
        assert_eq!(seldom.turn("no-post", now), Some(0));
        for _ in 0..1000 {
            assert_eq!(seldom.turn("no-post", now + every / 2), None);
        }
        assert_eq!(seldom.turn("no-tls", now), Some(0), "of another kind");
        assert_eq!(seldom.turn("no-post", now + every), Some(1000));
        assert_eq!(seldom.turn("no-post", now + every * 2), Some(0));
    }
}
