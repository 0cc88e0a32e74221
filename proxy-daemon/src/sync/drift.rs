//! How often may the check for changes by others lead to a resync?
//!
//! A resync takes seconds at 10,000 Services. Invariants: pure; a resync that had nothing to repair delays the
//! next check, with exponential backoff; delay, check and resync together stay below syncPeriod, within which
//! damage must be noticed (SYNC-9).

use std::time::{Duration, Instant};

use crate::datapath::SyncReport;

const FIRST: Duration = Duration::from_secs(2);

/// Backoff after resyncs that had nothing to repair.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DriftBackoff {
    n_unneeded: u32,
    until: Option<Instant>,
}

impl DriftBackoff {
    /// Whether it is too early for the next check.
    pub(super) fn is_waiting(self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// A check found no change.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// A resync ended, which repaired what the report says.
    pub(super) fn resynced(&mut self, report: SyncReport, now: Instant, sync_period: Duration) {
        if report != SyncReport::default() {
            self.reset();
            return;
        }
        let delay = FIRST.saturating_mul(1 << self.n_unneeded.min(16));
        self.n_unneeded = self.n_unneeded.saturating_add(1);
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
        let mut drift = DriftBackoff::default();
        let mut n_read_backs = 0;
        for _ in 0..600 {
            now += Duration::from_secs(1);
            if !drift.is_waiting(now) {
                drift.resynced(SyncReport::default(), now, PERIOD);
                n_read_backs += 1;
            }
        }
        assert!((28..=36).contains(&n_read_backs), "{n_read_backs}");
        assert!(drift.until.unwrap() <= now + PERIOD / 3 * 2);
        let repaired = SyncReport {
            n_added: 1,
            n_removed: 0,
        };
        drift.resynced(repaired, now, PERIOD);
        assert!(!drift.is_waiting(now));
    }
}
