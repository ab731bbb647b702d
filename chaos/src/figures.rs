//! Figures of many runs in a few words.

use serde::Serialize;

/// Of many values: the least, the middle, the one that 95 of 100 stay below, the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// How many.
    pub(crate) count: usize,
    /// The least.
    pub(crate) min: f64,
    /// The middle one.
    pub(crate) median: f64,
    /// 95 of 100 are at most this.
    pub(crate) p95: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of these; of none there is none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        // Nearest rank: a value that was measured, never one in between.
        let rank = |percent: usize| (values.len() * percent).div_ceil(100).max(1) - 1;
        Some(Self {
            count: values.len(),
            min: *values.first()?,
            median: *values.get(rank(50))?,
            p95: *values.get(rank(95))?,
            max: *values.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_values_that_were_measured() {
        assert_eq!(Spread::of([]), None);
        let one = Spread::of([7.0]).unwrap();
        assert_eq!((one.min, one.median, one.p95, one.max), (7.0, 7.0, 7.0, 7.0));
        let many = Spread::of((1..=20).rev().map(f64::from)).unwrap();
        assert_eq!((many.count, many.min, many.median, many.p95, many.max), (20, 1.0, 10.0, 19.0, 20.0));
    }
}
