//! How long do we wait before we ask again?
//!
//! Invariants: waits grow to a bound and are spread over their whole range, so that the nodes of a
//! cluster do not come back at one moment; what works once starts over with the shortest wait.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Waits that grow while nothing works.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    n_failures: u32,
}

impl Backoff {
    /// Starts with this wait.
    pub(super) fn new(first: Duration) -> Self {
        Self {
            first,
            n_failures: 0,
        }
    }

    /// Something works: the next wait is short.
    pub(super) fn reset(&mut self) {
        self.n_failures = 0;
    }

    /// The next wait: anything up to the first wait doubled for each failure, at most `longest`.
    pub(super) fn next(&mut self, longest: Duration) -> Duration {
        let most = self
            .first
            .saturating_mul(1 << self.n_failures.min(16))
            .min(longest);
        self.n_failures = self.n_failures.saturating_add(1);
        most.mul_f64(random_fraction())
    }
}

/// A time within a range, evenly spread.
pub(super) fn random_within((least, most): (Duration, Duration)) -> Duration {
    least + most.saturating_sub(least).mul_f64(random_fraction())
}

/// A number from 0 to 1.
fn random_fraction() -> f64 {
    // The keys of a hasher are random, which is all that spreading waits needs.
    let bits = RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_start_over() {
        let longest = Duration::from_secs(4);
        let most = |n_failures: u32| {
            (0..200)
                .map(|_| {
                    let mut backoff = Backoff::new(Duration::from_millis(100));
                    backoff.n_failures = n_failures;
                    backoff.next(longest)
                })
                .max()
                .unwrap_or_default()
        };
        assert!(most(0) <= Duration::from_millis(100));
        assert!(most(0) > Duration::from_millis(50));
        assert!(most(3) > Duration::from_millis(400));
        assert!(most(60) <= longest && most(60) > longest / 2);
        let mut backoff = Backoff::new(Duration::from_millis(100));
        for _ in 0..40 {
            backoff.next(longest);
        }
        backoff.reset();
        assert!(backoff.next(longest) <= Duration::from_millis(100));
    }

    #[test]
    fn a_time_within_a_range_is_within_it() {
        let range = (Duration::from_secs(300), Duration::from_secs(600));
        let times: Vec<_> = (0..100).map(|_| random_within(range)).collect();
        assert!(times.iter().all(|time| (range.0..=range.1).contains(time)));
        assert!(times.iter().any(|time| *time != range.0));
    }
}
