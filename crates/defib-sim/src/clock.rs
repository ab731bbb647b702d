//! A process's monotonic clock: wrong by an offset, and too fast or too slow by a constant.

use defib_model::Instant;

/// A millisecond in the world's nanoseconds.
pub const MS: u64 = 1_000_000;

/// `local = offset + true × (1 + ppm / 10⁶)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clock {
    /// What it showed when the world began.
    pub offset: i64,
    /// Parts per million that it gains (or loses).
    pub ppm: i64,
}

impl Clock {
    /// A clock that shows `shows` at the true time `at`.
    #[must_use]
    pub fn showing(shows: u64, at: u64, ppm: i64) -> Self {
        let plain = Self { offset: 0, ppm };
        Self { offset: shows as i64 - plain.local_signed(at), ppm }
    }

    const fn local_signed(self, at: u64) -> i64 {
        let (millions, rest) = ((at / 1_000_000) as i64, (at % 1_000_000) as i64);
        self.offset + at as i64 + millions * self.ppm + rest * self.ppm / 1_000_000
    }

    /// What it shows at a true time.
    #[must_use]
    pub const fn local(self, at: u64) -> Instant {
        let local = self.local_signed(at);
        Instant(if local < 0 { 0 } else { local as u64 })
    }

    /// The earliest true time at which it shows at least `local`.
    #[must_use]
    pub fn when(self, local: Instant) -> u64 {
        if local.0 > i64::MAX as u64 {
            return u64::MAX;
        }
        let wanted = i128::from(local.0) - i128::from(self.offset);
        let guess = wanted * 1_000_000 / (1_000_000 + i128::from(self.ppm));
        let mut at = u64::try_from(guess.max(0)).unwrap_or(u64::MAX).saturating_sub(2);
        while self.local(at) < local {
            at += 1;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_of_a_reading_is_the_first_that_shows_it() {
        for ppm in [-100_000, -500, 0, 3, 500, 100_000] {
            let clock = Clock::showing(77, 5 * MS, ppm);
            assert_eq!(clock.local(5 * MS), Instant(77));
            for local in [78, 1_000_003, 9_999_999_999, 123_456_789_012] {
                let at = clock.when(Instant(local));
                assert!(clock.local(at) >= Instant(local), "{ppm} {local}");
                assert!(clock.local(at - 1) < Instant(local), "{ppm} {local}");
            }
        }
    }
}
