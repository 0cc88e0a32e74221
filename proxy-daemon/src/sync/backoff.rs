//! When is a failed sync retried?
//!
//! Invariants: pure; the delay doubles from a first one, most often [`FIRST`], up to syncPeriod (SYNC-3, SYNC-7). Most refusals of
//! the kernel pass within moments (another program's transaction, no memory just now), so that the first
//! attempts come sooner than SPEC asks; a change brings the next one forward, but not below [`HASTE`]
//! once attempts keep failing, since each of them reads back everything.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(100);
const HASTE: Duration = Duration::from_secs(1);

/// The failures in a row of one family, and when it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    first: Duration,
    n_failures: u32,
    last: Option<Instant>,
    at: Instant,
}

impl Backoff {
    /// Due at once, without any failure so far.
    pub(super) const fn due(now: Instant) -> Self {
        Self::with_first(FIRST, now)
    }

    /// The same with another first delay.
    pub(super) const fn with_first(first: Duration, now: Instant) -> Self {
        Self {
            first,
            n_failures: 0,
            last: None,
            at: now,
        }
    }

    /// When the next attempt is due.
    pub(super) const fn at(self) -> Instant {
        self.at
    }

    /// One more failure.
    pub(super) fn failed(self, now: Instant, longest: Duration) -> Self {
        let delay = self.delay(self.n_failures).min(longest);
        Self {
            n_failures: self.n_failures.saturating_add(1),
            last: Some(now),
            at: now + delay,
            ..self
        }
    }

    /// A change arrived, which may make the retry succeed.
    pub(super) fn hurry(self, now: Instant) -> Self {
        let soonest = self.last.map_or(now, |last| {
            let failures_before = self.n_failures.saturating_sub(1);
            last + self.delay(failures_before).min(HASTE)
        });
        Self {
            at: self.at.min(soonest.max(now)),
            ..self
        }
    }

    fn delay(self, n_failures: u32) -> Duration {
        self.first.saturating_mul(1 << n_failures.min(16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Clock, SystemClock};

    const PERIOD: Duration = Duration::from_secs(30);

    #[test]
    fn sync_7_retries_slow_down_to_the_sync_period() {
        let mut now = SystemClock.now();
        let mut backoff = Backoff::due(now);
        let mut delays = Vec::new();
        for _ in 0..12 {
            backoff = backoff.failed(now, PERIOD);
            delays.push(backoff.at() - now);
            now = backoff.at();
        }
        assert_eq!(delays[0], FIRST);
        assert_eq!(delays[1], FIRST * 2);
        assert_eq!(*delays.last().unwrap(), PERIOD);
    }

    #[test]
    fn sync_7_a_change_brings_the_retry_forward() {
        let now = SystemClock.now();
        let mut backoff = Backoff::due(now);
        for _ in 0..12 {
            backoff = backoff.failed(now, PERIOD);
        }
        assert_eq!(backoff.hurry(now).at(), now + HASTE);
        let later = now + Duration::from_secs(5);
        assert_eq!(backoff.hurry(later).at(), later);
    }
}
