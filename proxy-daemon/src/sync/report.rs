//! What is logged of syncs that succeeded, and how often?
//!
//! Invariants: the first sync for a reason is logged at once, so that a change is seen when it happens;
//! while they keep coming, one line in [`EVERY`] sums them up, so that a busy cluster does not fill the
//! disk; no sync is left out of the sums.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::datapath::{Scope, SyncReport};
use crate::forwarding::ForwardingState;
use crate::net::Family;
use crate::sys::Limiter;

/// How often at most one family's syncs for one reason are logged.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// The reason of a sync that only writes what changed.
pub(super) const CHANGE: &str = "change";

/// The syncs of one family that were not logged yet, by reason.
#[derive(Debug, Default)]
pub(super) struct SyncLog(BTreeMap<&'static str, Window>);

#[derive(Debug)]
struct Window {
    limiter: Limiter,
    sum: Sum,
}

/// The sums of several syncs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    n_syncs: usize,
    /// How many of them read everything back.
    n_full: usize,
    n_added: usize,
    n_removed: usize,
    longest: Duration,
}

/// The stale UDP flows of one family that were not logged yet.
#[derive(Debug)]
pub(super) struct FlowLog {
    limiter: Limiter,
    n_deleted: usize,
    n_failed: usize,
}

impl Default for FlowLog {
    fn default() -> Self {
        Self {
            limiter: Limiter::new(1, EVERY),
            n_deleted: 0,
            n_failed: 0,
        }
    }
}

impl FlowLog {
    /// Adds a pass; [`FlowLog::write`] logs it.
    pub(super) const fn note(&mut self, n_deleted: usize, n_failed: usize) {
        self.n_deleted += n_deleted;
        self.n_failed += n_failed;
    }

    /// Logs what is due.
    pub(super) fn write<F: Family>(&mut self, now: Instant) {
        let (n_deleted, n_failed) = (self.n_deleted, self.n_failed);
        if n_deleted + n_failed > 0 && self.limiter.allows(now) {
            tracing::info!(
                family = F::FAMILY.name(),
                n_deleted,
                n_failed,
                "deleted stale UDP flows"
            );
            (self.n_deleted, self.n_failed) = (0, 0);
        }
    }
}

impl SyncLog {
    /// Adds a sync; [`SyncLog::write`] logs it.
    pub(super) fn note<F: Family>(
        &mut self,
        reason: &'static str,
        scope: Scope,
        report: SyncReport,
        took: Duration,
    ) {
        let family = F::FAMILY.name();
        tracing::debug!(family, reason, ?scope, ?report, ?took, "synced");
        let window = self.0.entry(reason).or_insert_with(|| Window {
            limiter: Limiter::new(1, EVERY),
            sum: Sum::default(),
        });
        let sum = &mut window.sum;
        sum.n_syncs += 1;
        sum.n_full += usize::from(scope == Scope::Full);
        sum.n_added += report.n_added;
        sum.n_removed += report.n_removed;
        sum.longest = sum.longest.max(took);
    }

    /// Logs what is due.
    pub(super) fn write<F: Family>(&mut self, state: &ForwardingState<F>, now: Instant) {
        for (reason, sum) in self.take_due(now) {
            // Counting walks the state, which a sync of one change must not cost at 10,000 Services.
            let counts = (reason != CHANGE).then(|| count(state));
            tracing::info!(
                family = F::FAMILY.name(),
                reason,
                n_syncs = sum.n_syncs,
                n_full = sum.n_full,
                n_service_ports = state.service_ports.len(),
                n_frontends = counts.map(|(frontends, _)| frontends),
                n_backends = counts.map(|(_, backends)| backends),
                n_added = sum.n_added,
                n_removed = sum.n_removed,
                longest_ms = (sum.longest.as_secs_f64() * 1e6).round() / 1e3,
                "synced"
            );
        }
    }

    fn take_due(&mut self, now: Instant) -> Vec<(&'static str, Sum)> {
        let mut due = Vec::new();
        for (reason, window) in &mut self.0 {
            if window.sum.n_syncs > 0 && window.limiter.allows(now) {
                due.push((*reason, std::mem::take(&mut window.sum)));
            }
        }
        due
    }
}

fn count<F: Family>(state: &ForwardingState<F>) -> (usize, usize) {
    state
        .service_ports
        .values()
        .fold((0, 0), |(frontends, backends), port| {
            (
                frontends + port.frontends.len(),
                backends + port.cluster.len(),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::V4;
    use crate::sys::{Clock, SystemClock};

    #[test]
    fn the_first_is_told_at_once_and_the_others_in_sums() {
        let start = SystemClock.now();
        let mut log = SyncLog::default();
        let report = SyncReport {
            n_added: 2,
            n_removed: 1,
        };
        let (mut n_lines, mut n_syncs, mut n_full) = (0, 0, 0);
        for i in 0..1000 {
            // A hundred seconds of ten syncs a second.
            let now = start + Duration::from_millis(i * 100);
            let scope = if i == 500 {
                Scope::Full
            } else {
                Scope::Partial
            };
            log.note::<V4>(CHANGE, scope, report, Duration::from_millis(i % 7));
            for (_, sum) in log.take_due(now) {
                n_lines += 1;
                n_syncs += sum.n_syncs;
                n_full += sum.n_full;
                assert_eq!((sum.n_added, sum.n_removed), (2 * sum.n_syncs, sum.n_syncs));
                assert_eq!(i > 0, sum.longest == Duration::from_millis(6));
            }
            assert_eq!(n_syncs == 1, i < 100);
        }
        // Another reason does not wait.
        log.note::<V4>("retry", Scope::Full, report, Duration::ZERO);
        assert_eq!(log.take_due(start + Duration::from_secs(99)).len(), 1);
        // What came last is told although nothing follows.
        let rest = log.take_due(start + Duration::from_secs(200));
        n_syncs += rest[0].1.n_syncs;
        assert_eq!((n_lines, n_syncs, n_full), (10, 1000, 1));
        assert_eq!(log.take_due(start + Duration::from_secs(300)), []);
    }
}
