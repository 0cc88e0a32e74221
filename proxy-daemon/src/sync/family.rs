//! Does the kernel match this family's forwarding state, and what must be done if not?
//!
//! Invariants: changes alone are written only after a successful sync; after a failure everything is
//! (SYNC-8). Only a successful sync is followed by health, then conntrack (SYNC-13, CT-13); previous modes are
//! cleaned up after the first one (LIFE-9).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::passes::Passes;
use super::previous::{self, PreviousMode};
use super::report::{CHANGE, EVERY, SyncLog};
use crate::conntrack::StaleFlows;
use crate::datapath::{DatapathError, Scope, SyncReport, Tables};
use crate::forwarding::{Changes, ForwardingState};
use crate::health::Health;
use crate::net::Family;
use crate::sys::{Clock, Limiter};

/// Longest time between two resyncs. Spec: SYNC-4.
const FULL: Duration = Duration::from_secs(3_600);

/// The first delay of a check for changes by others.
const UNNEEDED: Duration = Duration::from_secs(2);

/// Why the kernel was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Start,
    Change,
    Retry,
    Foreign,
    Hourly,
}

impl Reason {
    const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Change => CHANGE,
            Self::Retry => "retry",
            Self::Foreign => "changed by others",
            Self::Hourly => "hourly",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyncState {
    /// The kernel matches the newest state; the last resync was at this time.
    InSync { full: Instant },
    /// The kernel may differ until the resync that is due at the backoff's time succeeds.
    Behind { backoff: Backoff, reason: Reason },
}

/// One family's tables and conntrack, and whether they are in sync.
pub struct FamilySync<F: Family> {
    tables: Box<dyn Tables<F>>,
    /// `None` if the datapath's flows are not in conntrack.
    passes: Option<Passes<F>>,
    /// To be cleaned up after the first successful sync.
    previous: Vec<PreviousMode>,
    sync_state: SyncState,
    log: SyncLog,
    failures: Limiter,
    /// When resyncs that had nothing to repair allow the next check for changes by others.
    drift: Option<Backoff>,
    sync_period: Duration,
}

impl<F: Family> FamilySync<F> {
    /// A family that was never synced; the first step resyncs.
    pub fn new(
        tables: Box<dyn Tables<F>>,
        stale_flows: Option<StaleFlows<F>>,
        sync_period: Duration,
        now: Instant,
    ) -> Self {
        Self {
            tables,
            passes: stale_flows.map(Passes::new),
            previous: Vec::new(),
            sync_state: SyncState::Behind {
                backoff: Backoff::due(now),
                reason: Reason::Start,
            },
            log: SyncLog::default(),
            failures: Limiter::new(3, EVERY),
            drift: None,
            sync_period,
        }
    }

    /// Cleans up these modes after the first successful sync.
    #[must_use]
    pub fn instead_of(self, previous: Vec<PreviousMode>) -> Self {
        Self { previous, ..self }
    }

    /// Starts the thread that deletes stale flows.
    pub(super) fn start_passes(&mut self, clock: &Arc<dyn Clock>, health: &Arc<Health>) {
        if let Some(passes) = &mut self.passes {
            passes.start(clock, health);
        }
    }

    /// Whether the kernel matches the newest state.
    pub(super) const fn is_in_sync(&self) -> bool {
        matches!(self.sync_state, SyncState::InSync { .. })
    }

    /// When the next step is due even without a change.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        match self.sync_state {
            SyncState::Behind { backoff, .. } => backoff.at(),
            SyncState::InSync { full } => {
                let pass = self.passes.as_ref().and_then(|p| p.deadline(now));
                pass.into_iter().fold(full + FULL, Instant::min)
            }
        }
    }

    /// Makes the next step resync.
    pub(super) fn fall_behind(&mut self, now: Instant) {
        if let SyncState::InSync { .. } = self.sync_state {
            self.set_behind(Backoff::due(now), Reason::Retry);
        }
    }

    fn set_behind(&mut self, backoff: Backoff, reason: Reason) {
        self.sync_state = SyncState::Behind { backoff, reason };
        if let Some(passes) = &self.passes {
            passes.behind();
        }
    }

    /// Checks whether others changed our objects. Spec: SYNC-9.
    pub(super) fn look(&mut self, now: Instant) {
        let SyncState::InSync { .. } = self.sync_state else {
            return;
        };
        if self.drift.is_some_and(|drift| now < drift.at()) {
            return;
        }
        let tables = &mut self.tables;
        let reason = match guarded(|| tables.changed_by_others()) {
            Ok(false) => {
                self.drift = None;
                return;
            }
            Ok(true) => Reason::Foreign,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    family = F::FAMILY.name(),
                    error,
                    "cannot check our objects for changes by others, will retry"
                );
                Reason::Retry
            }
        };
        self.set_behind(Backoff::due(now), reason);
    }

    /// Syncs or resyncs if due, given the changes since the last step.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if the kernel turns out, before the first successful sync, to lack what
    /// the datapath needs. Whatever else fails is tried again here.
    pub(super) fn step(
        &mut self,
        state: &ForwardingState<F>,
        changes: Option<&Changes<F>>,
        clock: &dyn Clock,
        health: &Health,
    ) -> Result<(), DatapathError> {
        let started = clock.now();
        if let (Some(passes), Some(changes)) = (&self.passes, changes) {
            passes.note(changes, state);
        }
        self.reconsider(started, changes.is_some());
        let tables = &mut self.tables;
        let mut scope = Scope::Full;
        let (reason, outcome) = match (self.sync_state, changes) {
            (SyncState::Behind { backoff, reason }, _) if backoff.at() <= started => {
                if let Some(passes) = &self.passes {
                    passes.note_resync(state);
                }
                (reason, guarded(|| tables.resync(state)))
            }
            (SyncState::Behind { .. }, _) => return Ok(()),
            (SyncState::InSync { .. }, Some(changes)) if !changes.is_empty() => {
                scope = Scope::Partial;
                let outcome = guarded(|| {
                    if let Some(report) = tables.sync(state, changes)? {
                        return Ok(report);
                    }
                    scope = Scope::Full;
                    tables.resync(state)
                });
                (Reason::Change, outcome)
            }
            (SyncState::InSync { .. }, Some(_)) => {
                health.succeeded(F::FAMILY, started, clock);
                return Ok(());
            }
            (SyncState::InSync { .. }, None) => {
                self.catch_up(state, clock, health);
                return Ok(());
            }
        };
        let took = clock.now() - started;
        health.measured(F::FAMILY, scope, took);
        match outcome {
            Ok(report) => {
                self.sync_state = SyncState::InSync {
                    full: match (self.sync_state, scope) {
                        (SyncState::InSync { full }, Scope::Partial) => full,
                        (SyncState::InSync { .. } | SyncState::Behind { .. }, _) => started,
                    },
                };
                self.log.note::<F>(reason.name(), scope, report, took);
                if matches!(reason, Reason::Foreign | Reason::Retry) {
                    self.drift = after_resync(self.drift, report, clock.now(), self.sync_period);
                }
                self.follow_up(state, started, clock, health);
            }
            Err(error @ DatapathError::Unusable { .. }) if reason == Reason::Start => {
                return Err(error);
            }
            Err(error) => {
                if self.failures.allows(clock.now()) {
                    tracing::error!(
                        family = F::FAMILY.name(),
                        reason = reason.name(),
                        n_unsaid = self.failures.take_refused(),
                        error = &error as &dyn std::error::Error,
                        "sync failed, will retry; previous rules still active"
                    );
                }
                health.failed(F::FAMILY, scope, &error);
                self.failed(clock.now());
            }
        }
        Ok(())
    }

    /// What follows a successful sync, in this order.
    fn follow_up(
        &mut self,
        state: &ForwardingState<F>,
        started: Instant,
        clock: &dyn Clock,
        health: &Health,
    ) {
        let previous = std::mem::take(&mut self.previous);
        previous::remove(F::FAMILY, previous, self.sync_period);
        health.succeeded(F::FAMILY, started, clock);
        if let Some(passes) = &self.passes {
            passes.written();
        }
        self.catch_up(state, clock, health);
    }

    /// Starts the hourly resync, and brings a retry forward if something changed.
    fn reconsider(&mut self, started: Instant, has_changed: bool) {
        match self.sync_state {
            SyncState::InSync { full } if started >= full + FULL => {
                self.set_behind(Backoff::due(started), Reason::Hourly);
            }
            SyncState::Behind { backoff, reason } if has_changed => {
                self.set_behind(backoff.hurry(started), reason);
            }
            SyncState::InSync { .. } | SyncState::Behind { .. } => {}
        }
    }

    fn failed(&mut self, now: Instant) {
        let (before, reason) = match self.sync_state {
            // Until the first success it is a start, however often it is tried.
            SyncState::Behind {
                backoff,
                reason: Reason::Start,
            } => (backoff, Reason::Start),
            SyncState::Behind { backoff, .. } => (backoff, Reason::Retry),
            SyncState::InSync { .. } => (Backoff::due(now), Reason::Retry),
        };
        self.set_behind(before.failed(now, self.sync_period), reason);
    }

    /// Logs past syncs and deletes stale flows, as far as either is due here.
    fn catch_up(&mut self, state: &ForwardingState<F>, clock: &dyn Clock, health: &Health) {
        self.log.write(state, clock.now());
        if let Some(passes) = &self.passes {
            passes.step(clock, health);
        }
    }
}

/// A resync takes seconds at 10,000 Services, so that one that had nothing to repair delays the next check; delay,
/// check and resync together stay below syncPeriod, within which damage must be noticed (SYNC-9).
fn after_resync(
    drift: Option<Backoff>,
    report: SyncReport,
    now: Instant,
    sync_period: Duration,
) -> Option<Backoff> {
    let drift = drift.unwrap_or(Backoff::with_first(UNNEEDED, now));
    let is_unneeded = report == SyncReport::default();
    is_unneeded.then(|| drift.failed(now, sync_period / 3 * 2))
}

/// Catches a panic of a datapath, so that the other family is still synced (SYNC-7).
pub(super) fn guarded<T>(
    work: impl FnOnce() -> Result<T, DatapathError>,
) -> Result<T, DatapathError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_panic| Err(DatapathError::panicked()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::SystemClock;

    const PERIOD: Duration = Duration::from_secs(30);

    #[test]
    fn sync_9_read_backs_that_find_nothing_become_rare_but_not_too_rare() {
        let mut now = SystemClock.now();
        let mut drift: Option<Backoff> = None;
        let mut n_read_backs = 0;
        for _ in 0..600 {
            now += Duration::from_secs(1);
            if drift.is_none_or(|drift| now >= drift.at()) {
                drift = after_resync(drift, SyncReport::default(), now, PERIOD);
                n_read_backs += 1;
            }
        }
        assert!((28..=36).contains(&n_read_backs), "{n_read_backs}");
        assert!(drift.unwrap().at() <= now + PERIOD / 3 * 2);
        let repaired = SyncReport {
            n_added: 1,
            n_removed: 0,
        };
        assert_eq!(after_resync(drift, repaired, now, PERIOD), None);
    }
}
