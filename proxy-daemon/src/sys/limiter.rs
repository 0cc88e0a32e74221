//! How often may something happen?
//!
//! A token bucket. Invariants: pure, the caller says what time it is; what was refused is counted until
//! the caller takes the count.

use std::time::{Duration, Instant};

/// Limits how often something happens: a burst first, and then a steady rate.
#[derive(Clone, Copy, Debug)]
pub struct Limiter {
    /// How long the bucket takes to fill up.
    burst: Duration,
    /// How long one token takes.
    each: Duration,
    /// When the bucket is full again; `None` if it is full.
    full_at: Option<Instant>,
    n_refused: u64,
}

impl Limiter {
    /// Allows `burst` at once, at least one, and then one every `each`.
    pub const fn new(burst: u32, each: Duration) -> Self {
        let burst = if burst == 0 { 1 } else { burst };
        Self {
            burst: each.saturating_mul(burst),
            each,
            full_at: None,
            n_refused: 0,
        }
    }

    /// Takes a token; without one, counts the refusal.
    pub fn allows(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.each;
        let is_allowed = full_at - now <= self.burst;
        if is_allowed {
            self.full_at = Some(full_at);
        } else {
            self.n_refused += 1;
        }
        is_allowed
    }

    /// How many were refused since this was last asked.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.n_refused)
    }

    /// How many were refused since the count was last taken.
    pub const fn n_refused(&self) -> u64 {
        self.n_refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Clock, SystemClock};

    #[test]
    fn a_burst_then_a_rate_and_the_rest_is_counted() {
        let start = SystemClock.now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut limiter = Limiter::new(3, Duration::from_secs(1));
        let allowed =
            |limiter: &mut Limiter, ms| (0..10).filter(|_| limiter.allows(at(ms))).count();
        assert_eq!(allowed(&mut limiter, 0), 3);
        assert_eq!(limiter.take_refused(), 7);
        assert_eq!(limiter.n_refused(), 0);
        assert_eq!(allowed(&mut limiter, 999), 0);
        assert_eq!(allowed(&mut limiter, 1000), 1);
        // A long pause fills the bucket, and no further.
        assert_eq!(allowed(&mut limiter, 100_000), 3);
        // A clock that goes backward refuses, and does not fail.
        assert_eq!(allowed(&mut limiter, 0), 0);
    }
}
