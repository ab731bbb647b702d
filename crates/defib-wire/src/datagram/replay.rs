//! Which counters were seen.

const WORDS: usize = 33;

/// A sliding window over the counters of one session. It remembers the newest [`ReplayWindow::SIZE`]; what is
/// older counts as seen. The bitmap is a ring of words with one to spare (RFC 6479), so that sliding clears
/// whole words and shifts nothing.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    newest: u64,
    seen: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl ReplayWindow {
    /// How far behind the newest a counter may arrive.
    pub const SIZE: u64 = 2048;

    /// A window that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { newest: 0, seen: [0; WORDS] }
    }

    /// The largest counter that was seen; 0 for none.
    #[must_use]
    pub const fn newest(&self) -> u64 {
        self.newest
    }

    const fn place(counter: u64) -> (usize, u64) {
        ((counter / 64 % WORDS as u64) as usize, 1 << (counter % 64))
    }

    /// Whether `counter` may still be accepted: not seen, not too old, and not 0, which no sender uses.
    #[must_use]
    pub fn is_fresh(&self, counter: u64) -> bool {
        if counter > self.newest {
            return true;
        }
        if counter == 0 || self.newest - counter >= Self::SIZE {
            return false;
        }
        let (word, bit) = Self::place(counter);
        self.seen[word] & bit == 0
    }

    /// Remembers `counter`, once its datagram proved authentic. False if it was not fresh.
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.is_fresh(counter) {
            return false;
        }
        if counter > self.newest {
            let (from, to) = (self.newest / 64, counter / 64);
            if to - from >= WORDS as u64 {
                self.seen = [0; WORDS];
            } else {
                for word in from + 1..=to {
                    self.seen[(word % WORDS as u64) as usize] = 0;
                }
            }
            self.newest = counter;
        }
        let (word, bit) = Self::place(counter);
        self.seen[word] |= bit;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_is_exactly_as_wide_as_it_says() {
        let mut window = ReplayWindow::new();
        assert!(!window.accept(0));
        assert!(window.accept(10_000));
        assert!(!window.accept(10_000 - ReplayWindow::SIZE));
        assert!(window.accept(10_001 - ReplayWindow::SIZE));
        assert!(!window.accept(10_001 - ReplayWindow::SIZE));
    }

    #[test]
    fn the_largest_counters_are_ordinary() {
        let mut window = ReplayWindow::new();
        assert!(window.accept(u64::MAX - 1));
        assert!(window.accept(u64::MAX));
        assert!(!window.accept(u64::MAX));
        assert!(!window.accept(u64::MAX - 1));
        assert!(window.accept(u64::MAX - 2047));
        assert!(!window.accept(u64::MAX - 2048));
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set_of_all_counters(
            steps in proptest::collection::vec((0u8..4, 0u64..5000), 1..600)
        ) {
            let mut window = ReplayWindow::new();
            let mut all = BTreeSet::new();
            let mut newest = 0u64;
            for (kind, amount) in steps {
                let counter = match kind {
                    0 => newest + amount,
                    1 => newest + amount % 70,
                    2 => newest.saturating_sub(amount),
                    _ => newest.saturating_sub(amount % 130),
                };
                let fresh = counter != 0
                    && (counter > newest || newest - counter < ReplayWindow::SIZE)
                    && !all.contains(&counter);
                prop_assert_eq!(window.accept(counter), fresh, "counter {} after {}", counter, newest);
                if fresh {
                    all.insert(counter);
                    newest = newest.max(counter);
                }
            }
        }
    }
}
