//! How steadily heartbeats arrive on one path: a running mean of the gaps and of their deviation.
//!
//! The estimator of RFC 6298 (TCP's retransmission timer), in integers of nanoseconds, because sums of
//! floats drift.

use defib_model::{Instant, Millis};

/// One path of one host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrivals {
    last: Option<Instant>,
    mean: u64,
    deviation: u64,
}

/// A new gap counts for one part in 2⁴.
const GAIN: u32 = 4;
/// How many deviations a path is allowed beyond its mean.
const DEVIATIONS: u64 = 4;

impl Arrivals {
    /// A path that begins as if it were perfectly steady.
    pub(super) const fn new(interval: Millis) -> Self {
        Self { last: None, mean: interval.as_nanos(), deviation: 0 }
    }

    /// When the last beat arrived.
    pub(super) const fn last(&self) -> Option<Instant> {
        self.last
    }

    /// A beat arrived. A gap beyond `limit` counts as `limit`: an outage must not blind us for the next one.
    pub(super) fn heard(&mut self, now: Instant, interval: Millis, limit: Millis) {
        if let Some(last) = self.last {
            // A burst after a stall says nothing of the path: several beats at once count as one gap.
            let gap = now.nanos_since(last).clamp(interval.as_nanos() / 2, limit.as_nanos());
            let error = gap.abs_diff(self.mean);
            self.deviation = blend(self.deviation, error);
            self.mean = blend(self.mean, gap);
        }
        self.last = Some(now);
    }

    /// What silence on this path is granted beyond what the policy says.
    pub(super) const fn allowance(&self, interval: Millis) -> Millis {
        let usual = self.mean.saturating_add(self.deviation.saturating_mul(DEVIATIONS));
        Millis(usual.saturating_sub(interval.as_nanos()) / 1_000_000)
    }
}

/// `held` moved by one part in 2^GAIN towards `seen`.
const fn blend(held: u64, seen: u64) -> u64 {
    held.saturating_sub(held >> GAIN).saturating_add(seen >> GAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_path_is_allowed_nearly_nothing() {
        let interval = Millis(100);
        let mut path = Arrivals::new(interval);
        for beat in 0..1000 {
            path.heard(Instant::from_millis(beat * 100), interval, Millis(5000));
        }
        assert!(path.allowance(interval) <= Millis(1), "{:?}", path.allowance(interval));
    }

    #[test]
    fn an_unsteady_path_is_allowed_more_and_loses_it_again() {
        let interval = Millis(20);
        let mut path = Arrivals::new(interval);
        let mut now = Instant::from_millis(0);
        for beat in 0..200_u64 {
            now = now.plus(Millis(if beat % 10 == 9 { 120 } else { 20 }));
            path.heard(now, interval, Millis(5000));
        }
        let unsteady = path.allowance(interval);
        assert!(unsteady > Millis(40), "{unsteady}");
        for _ in 0..200 {
            now = now.plus(interval);
            path.heard(now, interval, Millis(5000));
        }
        assert!(path.allowance(interval) < Millis(3), "{}", path.allowance(interval));
    }

    #[test]
    fn a_long_outage_does_not_blind_for_the_next_one() {
        let interval = Millis(100);
        let mut path = Arrivals::new(interval);
        path.heard(Instant::from_millis(0), interval, Millis(5000));
        path.heard(Instant::from_millis(3_600_000), interval, Millis(5000));
        assert!(path.allowance(interval) < Millis(2000));
    }
}
