//! How long must a request wait because of those before it?
//!
//! Invariants: the wait depends only on the number of recent requests, which falls with time and not with
//! success, so that no sequence of answers makes us ask in a tight loop.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

/// How often requests of one sort may follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// So many requests go out without a wait.
    pub burst: u32,
    /// The wait before the first request beyond them; it doubles with each further one.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// After so much time one request less counts.
    pub cooling: Duration,
}

/// The requests of one sort that were sent lately.
#[derive(Debug)]
pub(super) struct RateLimiter {
    pace: Pace,
    /// How many of them count.
    n_recent: f64,
    /// When that was so.
    at: Instant,
}

impl RateLimiter {
    /// Nothing was sent yet.
    pub(super) fn new(pace: &Pace, now: Instant) -> Self {
        Self {
            pace: pace.clone(),
            n_recent: 0.0,
            at: now,
        }
    }

    /// How long the next request has to wait; it is counted.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let cooled = (now - self.at).as_secs_f64() / self.pace.cooling.as_secs_f64();
        self.at = now;
        self.n_recent = (self.n_recent - cooled).max(0.0);
        let wait = self.wait();
        // What counts is bounded, so that a bad hour is forgotten in a minute.
        if wait < self.pace.longest {
            self.n_recent += 1.0;
        }
        // Spread, so that the nodes of a cluster do not come at one moment.
        random_within((wait / 2, wait))
    }

    /// Whether requests come so often that the longest wait holds.
    pub(super) fn is_exhausted(&self) -> bool {
        self.wait() >= self.pace.longest
    }

    fn wait(&self) -> Duration {
        // The first request beyond the burst has at least so many before it.
        let n_beyond = self.n_recent - f64::from(self.pace.burst);
        if n_beyond < 0.0 {
            return Duration::ZERO;
        }
        let wait = self.pace.first.mul_f64(n_beyond.min(30.0).exp2());
        wait.min(self.pace.longest)
    }
}

/// A time within a range, evenly spread.
pub(super) fn random_within((least, most): (Duration, Duration)) -> Duration {
    // The keys of a hasher are random, which is all that spreading waits needs.
    let bits = RandomState::new().build_hasher().finish();
    let fraction = f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / f64::from(u32::MAX);
    least + most.saturating_sub(least).mul_f64(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_within_a_range_is_within_it() {
        let range = (Duration::from_secs(300), Duration::from_secs(600));
        let times: Vec<_> = (0..100).map(|_| random_within(range)).collect();
        assert!(times.iter().all(|time| (range.0..=range.1).contains(time)));
        assert!(times.iter().any(|time| *time != range.0));
    }

    fn pace() -> Pace {
        Pace {
            burst: 3,
            first: Duration::from_millis(250),
            longest: Duration::from_secs(6),
            cooling: Duration::from_secs(5),
        }
    }

    #[test]
    fn a_few_go_at_once_then_each_waits_longer_and_time_makes_up_for_it() {
        let now = Instant::now();
        let mut paced = RateLimiter::new(&pace(), now);
        for _ in 0..3 {
            assert_eq!(paced.next(now), Duration::ZERO);
        }
        let waits: Vec<_> = (0..12).map(|_| paced.next(now)).collect();
        assert!(waits.iter().all(|wait| !wait.is_zero()), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= pace().longest));
        assert!(waits.last() >= Some(&Duration::from_secs(3)), "{waits:?}");
        assert!(paced.is_exhausted());
        assert_eq!(paced.next(now + Duration::from_secs(60)), Duration::ZERO);
        assert!(!paced.is_exhausted());
    }

    #[test]
    fn requests_without_end_come_at_the_rate_of_cooling() {
        let began = Instant::now();
        let (mut now, mut n_requests) = (began, 0);
        let mut paced = RateLimiter::new(&pace(), now);
        while now < began + Duration::from_secs(600) {
            now += paced.next(now);
            n_requests += 1;
        }
        assert!((90..180).contains(&n_requests), "{n_requests}");
    }

    #[test]
    fn what_is_asked_now_and_then_never_waits() {
        let mut now = Instant::now();
        let mut paced = RateLimiter::new(&pace(), now);
        for _ in 0..100 {
            assert_eq!(paced.next(now), Duration::ZERO);
            now += Duration::from_secs(12);
        }
    }
}
