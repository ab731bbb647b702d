//! Three kinds of time that must never be mixed.
//!
//! [`Instant`] is one process's monotonic clock: for timers; means nothing elsewhere. [`ClusterTime`] is
//! replicated: the milliseconds that leaders have counted, so it never jumps with a wall clock and every
//! replica agrees on it. [`UnixMillis`] is for people and SIEMs only: nothing is decided by it
//! but which time an event carries.

use core::fmt;

use serde::{Deserialize, Serialize};

/// A length of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// Whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// In nanoseconds.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0.saturating_mul(1_000_000)
    }

    /// Longer by the drift that two monotonic clocks may have against each other, in parts per million;
    /// rounded up.
    #[must_use]
    pub const fn with_drift(self, drift_ppm: u32) -> Self {
        let extra = (self.0 as u128 * drift_ppm as u128).div_ceil(1_000_000);
        Self(self.0.saturating_add(extra as u64))
    }

    /// The sum, at most the largest value.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// `self` taken `factor` times.
    #[must_use]
    pub const fn times(self, factor: u64) -> Self {
        Self(self.0.saturating_mul(factor))
    }

    /// As the standard library's duration.
    #[must_use]
    pub const fn to_duration(self) -> core::time::Duration {
        core::time::Duration::from_millis(self.0)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 1000 && self.0.is_multiple_of(1000) {
            write!(f, "{}s", self.0 / 1000)
        } else {
            write!(f, "{}ms", self.0)
        }
    }
}

/// A moment of one process's monotonic clock, in nanoseconds from that process's own zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment `millis` milliseconds after the clock's zero; for tests and scenarios.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds that have passed since `earlier`; zero if it is later.
    #[must_use]
    pub const fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whole milliseconds that have passed since `earlier`; zero if it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Millis {
        Millis(self.nanos_since(earlier) / 1_000_000)
    }

    /// This moment and `span` more.
    #[must_use]
    pub const fn plus(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.as_nanos()))
    }

    /// This moment and `nanos` nanoseconds more.
    #[must_use]
    pub const fn plus_nanos(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// This moment less `span`; the clock's zero at the earliest.
    #[must_use]
    pub const fn minus(self, span: Millis) -> Self {
        Self(self.0.saturating_sub(span.as_nanos()))
    }
}

/// Milliseconds that the leaders of this cluster have counted since it was created. It stands still while
/// there is no leader, so a window measured in it is never shorter than real time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterTime(pub u64);

impl ClusterTime {
    /// What has passed since `earlier`; zero if it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }

    /// This time and `span` more.
    #[must_use]
    pub const fn plus(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

/// A wall clock's milliseconds since 1970, for people and SIEMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// How many milliseconds this is later than `other`; negative: earlier.
    #[must_use]
    pub fn ahead_of(self, other: Self) -> i64 {
        let apart = i64::try_from(self.0.abs_diff(other.0)).unwrap_or(i64::MAX);
        if self >= other { apart } else { apart.saturating_neg() }
    }

    /// This moment and `millis` more, or less where they are negative.
    #[must_use]
    pub const fn shifted(self, millis: i64) -> Self {
        Self(self.0.saturating_add_signed(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_always_lengthens_a_wait_that_is_not_zero() {
        assert_eq!(Millis(5000).with_drift(1000), Millis(5005));
        assert_eq!(Millis(1).with_drift(1), Millis(2));
        assert_eq!(Millis::ZERO.with_drift(1000), Millis::ZERO);
        assert_eq!(Millis(u64::MAX).with_drift(u32::MAX), Millis(u64::MAX));
    }
}
