//! Where are stale UDP flows looked for, so that no sync waits for it?
//!
//! A pass walks the machine's whole conntrack table, and so it runs on a thread of its own, one per family.
//! Invariants: what a sync writes is told before it is written, so that no flow to a new backend is taken for a
//! stale one; a pass begins only if the newest sync succeeded (CT-13); what is told is merged and never queues up.
//! The thread ends with its [`Passes`], after the pass that it is in. Without a thread, passes follow syncs on the
//! sync thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::report::{EVERY, FlowLog};
use crate::conntrack::{News, StaleFlows};
use crate::forwarding::{Changes, ForwardingState};
use crate::health::Health;
use crate::net::Family;
use crate::sys::Clock;

/// The sync thread's end.
pub(super) struct Passes<F: Family> {
    shared: Arc<Shared<F>>,
    has_thread: bool,
}

struct Shared<F: Family> {
    told: Mutex<Told<F>>,
    bell: Condvar,
    /// The thread holds this as long as it runs.
    runner: Mutex<Runner<F>>,
}

struct Told<F: Family> {
    news: News<F>,
    /// Whether the rules carry what was told.
    is_written: bool,
    is_over: bool,
}

struct Runner<F: Family> {
    flows: StaleFlows<F>,
    log: FlowLog,
}

impl<F: Family> Passes<F> {
    pub(super) fn new(flows: StaleFlows<F>) -> Self {
        let told = Told {
            news: News::default(),
            is_written: false,
            is_over: false,
        };
        let log = FlowLog::default();
        Self {
            shared: Arc::new(Shared {
                told: Mutex::new(told),
                bell: Condvar::new(),
                runner: Mutex::new(Runner { flows, log }),
            }),
            has_thread: false,
        }
    }

    /// Starts the thread in the network namespace of the calling one.
    pub(super) fn start(&mut self, clock: &Arc<dyn Clock>, health: &Arc<Health>) {
        let shared = Arc::clone(&self.shared);
        let (clock, health) = (Arc::clone(clock), Arc::clone(health));
        let thread = std::thread::Builder::new().name("stale-flows".to_owned());
        match thread.spawn(move || shared.run(&*clock, &health)) {
            Ok(_thread) => self.has_thread = true,
            Err(error) => {
                let family = F::FAMILY.name();
                tracing::error!(
                    family,
                    %error,
                    "cannot start the thread that deletes stale UDP flows, syncs will wait for it"
                );
            }
        }
    }

    /// Tells what the next sync writes.
    pub(super) fn note(&self, changes: &Changes<F>, state: &ForwardingState<F>) {
        let mut told = self.shared.told();
        told.is_written &= changes.is_empty();
        told.news.note(changes, state);
    }

    /// Tells that the rules may be damaged or of a former state.
    pub(super) fn behind(&self) {
        self.shared.told().is_written = false;
    }

    /// Tells what a resync writes, which may change anything.
    pub(super) fn note_resync(&self, state: &ForwardingState<F>) {
        self.shared.told().news.note_resync(state);
    }

    /// Tells that a sync succeeded.
    pub(super) fn written(&self) {
        self.shared.told().is_written = true;
        self.shared.bell.notify_one();
    }

    /// When a pass is due here.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let due = || self.shared.told().due(&mut self.shared.runner().flows, now);
        (!self.has_thread).then(due).flatten()
    }

    /// Runs the pass that is due here.
    pub(super) fn step(&self, clock: &dyn Clock, health: &Health) {
        let now = clock.now();
        if self.deadline(now).is_some_and(|due| due <= now) {
            self.shared.pass(&mut self.shared.runner(), clock, health);
        }
    }
}

impl<F: Family> Drop for Passes<F> {
    fn drop(&mut self) {
        self.shared.told().is_over = true;
        self.shared.bell.notify_one();
    }
}

impl<F: Family> Told<F> {
    /// Hands over what was told if it is written; returns when a pass is due.
    fn due(&mut self, flows: &mut StaleFlows<F>, now: Instant) -> Option<Instant> {
        if !self.is_written {
            return None;
        }
        flows.take_in(std::mem::take(&mut self.news));
        flows.deadline(now)
    }
}

impl<F: Family> Shared<F> {
    fn told(&self) -> MutexGuard<'_, Told<F>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runner(&self) -> MutexGuard<'_, Runner<F>> {
        self.runner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, clock: &dyn Clock, health: &Health) {
        let mut runner = self.runner();
        let mut told = self.told();
        while !told.is_over {
            let now = clock.now();
            runner.log.write::<F>(now);
            let wait = match told.due(&mut runner.flows, now) {
                Some(due) => due.saturating_duration_since(now).min(EVERY),
                None => EVERY,
            };
            if wait.is_zero() {
                drop(told);
                self.pass(&mut runner, clock, health);
                told = self.told();
            } else {
                let waited = self.bell.wait_timeout(told, wait);
                told = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn pass(&self, runner: &mut Runner<F>, clock: &dyn Clock, health: &Health) {
        let family = F::FAMILY.name();
        let Runner { flows, log } = runner;
        let newest = || self.told().news.clone();
        match catch_unwind(AssertUnwindSafe(|| flows.clean(&newest, clock))) {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(pass))) => {
                health.cleaned(F::FAMILY, pass.n_deleted, pass.took);
                log.note(pass.n_deleted, pass.n_failed);
            }
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                if flows.has_begun_to_fail() {
                    tracing::warn!(family, error, "cannot delete stale UDP flows, will retry");
                } else {
                    tracing::debug!(
                        family,
                        error,
                        "still cannot delete stale UDP flows, will retry"
                    );
                }
            }
            Err(_panic) => {
                tracing::error!(family, "deleting stale UDP flows panicked, will retry");
                flows.failed(clock.now());
            }
        }
        log.write::<F>(clock.now());
    }
}
