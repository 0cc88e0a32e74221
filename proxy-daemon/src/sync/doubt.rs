//! How often is everything read back because something looks as if others had changed it?
//!
//! To read back takes seconds at 10,000 Services. Invariants: pure; a read-back that found nothing to
//! repair delays the next look, ever longer as long as each look asks for one; together with a look and a
//! read-back the delay stays below syncPeriod, within which damage must be noticed (SYNC-9).

use std::time::{Duration, Instant};

use crate::datapath::SyncReport;

const FIRST: Duration = Duration::from_secs(2);

/// The read-backs in a row that found nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Doubt {
    n_fruitless: u32,
    until: Option<Instant>,
}

impl Doubt {
    /// Whether it is too early to look again.
    pub(super) fn waits(self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// A look found everything as it should be.
    pub(super) fn is_over(&mut self) {
        *self = Self::default();
    }

    /// A read-back ended, which repaired what the report says.
    pub(super) fn led_to(&mut self, report: SyncReport, now: Instant, sync_period: Duration) {
        if report != SyncReport::default() {
            self.is_over();
            return;
        }
        let delay = FIRST.saturating_mul(1 << self.n_fruitless.min(16));
        self.n_fruitless = self.n_fruitless.saturating_add(1);
        self.until = Some(now + delay.min(sync_period / 3 * 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Clock, SystemClock};

    const PERIOD: Duration = Duration::from_secs(30);

    #[test]
    fn sync_9_read_backs_that_find_nothing_become_rare_but_not_too_rare() {
        let mut now = SystemClock.now();
        let mut doubt = Doubt::default();
        let mut n_read_backs = 0;
        for _ in 0..600 {
            now += Duration::from_secs(1);
            if !doubt.waits(now) {
                doubt.led_to(SyncReport::default(), now, PERIOD);
                n_read_backs += 1;
            }
        }
        assert!((28..=36).contains(&n_read_backs), "{n_read_backs}");
        assert!(doubt.until.unwrap() <= now + PERIOD / 3 * 2);
        let repaired = SyncReport {
            n_added: 1,
            n_removed: 0,
        };
        doubt.led_to(repaired, now, PERIOD);
        assert!(!doubt.waits(now));
    }
}
