//! Percentiles of times.

use serde::{Deserialize, Serialize};

/// Percentiles of a set of times, microseconds. Zero when there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Times counted.
    pub count: usize,
    /// Half are at most this.
    pub p50_us: u64,
    /// 99 in 100 are at most this.
    pub p99_us: u64,
    /// 999 in 1,000 are at most this.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Percentiles {
    /// Sorts the times and reads the percentiles (nearest rank).
    #[must_use]
    pub fn of(mut times_us: Vec<u64>) -> Percentiles {
        times_us.sort_unstable();
        let rank = |per_mille: usize| {
            let rank = (times_us.len() * per_mille).div_ceil(1000).saturating_sub(1);
            times_us.get(rank).copied().unwrap_or(0)
        };
        Percentiles {
            count: times_us.len(),
            p50_us: rank(500),
            p99_us: rank(990),
            p999_us: rank(999),
            max_us: times_us.last().copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let of = Percentiles::of((1..=1000).rev().collect());
        assert_eq!((of.p50_us, of.p99_us, of.p999_us, of.max_us), (500, 990, 999, 1000));
        assert_eq!(Percentiles::of(vec![7]).p50_us, 7);
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
