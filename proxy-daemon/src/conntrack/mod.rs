//! Which conntrack entries must be deleted, so that their clients reach a live backend?
//!
//! A UDP client that keeps its source port keeps its conntrack entry, and with it a removed backend, for
//! as long as it sends. Invariants: only UDP flows are deleted (CT-6), and only after the rules that
//! would translate them again are live (CT-13); passes run beside the syncs, which only leave [`News`]; under
//! constant changes listings take about a tenth of the time; a failed pass is repeated.
//!
//! Each pass is followed by another one second later. A packet that met the previous rules may be
//! confirmed after the listing: its sender was preempted between two hooks, or a program that inspects
//! packets (NFQUEUE) delayed it. Such an entry is stale too, and nothing else would find it.

use std::error::Error;
use std::time::{Duration, Instant};

use crate::forwarding::ForwardingState;
use crate::net::Family;
use crate::sys::Clock;
use removed::RemovedFrontends;

mod message;
mod netlink;
mod news;
mod plan;
mod removed;

pub use netlink::Netlink;
pub use news::News;
pub use plan::Flow;
use plan::Plan;

/// Delay between a pass and the one that repeats it.
const AGAIN: Duration = Duration::from_secs(1);
/// Delay between a failed pass and the next one.
const RETRY: Duration = Duration::from_secs(5);
/// Flows that one pass deletes at most, so that a change never waits long for it; the next pass goes on.
const MAX_DELETED: usize = 10_000;
/// Rate limit: a listing that took `t` is followed by a pause of `PAUSE_FACTOR * t`. One walk costs some
/// 10 ms on a machine with 262,144 buckets, however few entries there are.
const PAUSE_FACTOR: u32 = 10;
/// Pauses that may add up before a pass waits, so that single changes never do.
const BURST: Duration = Duration::from_secs(3);
/// The longest pause, which leaves time for the pass within the 5 s of CT-1.
const MAX_PAUSE: Duration = Duration::from_secs(3);

/// The kernel's table of UDP flows of one family.
pub trait FlowTable<F: Family>: Send {
    /// Every UDP flow for which `wanted` says so, but not more than `most`.
    ///
    /// # Errors
    /// [`ConntrackError`] if the kernel did not list them.
    fn list(
        &mut self,
        most: usize,
        wanted: &dyn Fn(&Flow<F>) -> bool,
    ) -> Result<Vec<Flow<F>>, ConntrackError>;

    /// Forgets a flow; not an error if it is gone already.
    ///
    /// # Errors
    /// [`ConntrackError`] if the kernel refused.
    fn delete(&mut self, flow: &Flow<F>) -> Result<(), ConntrackError>;
}

/// The kernel did not list or delete flows.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No socket.
    #[error("cannot open a netfilter netlink socket")]
    Open(#[source] std::io::Error),
    /// It was not listed.
    #[error("cannot list the conntrack table")]
    List(#[source] std::io::Error),
    /// An entry was not deleted.
    #[error("cannot delete the conntrack entry of {flow}")]
    Delete {
        /// Which.
        flow: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Whether flows must be looked at, and when.
pub struct StaleFlows<F: Family> {
    table: Box<dyn FlowTable<F>>,
    /// The UDP ServicePorts that the rules carry; `None` before the first sync.
    known: Option<ForwardingState<F>>,
    removed: RemovedFrontends<F>,
    /// Whether a change happened that no pass has followed yet.
    is_owed: bool,
    /// When the last pass is repeated.
    again: Option<Instant>,
    not_before: Option<Instant>,
    /// When the pauses of all listings so far are over.
    paid: Option<Instant>,
    /// How many passes failed in a row.
    n_failures: u32,
}

/// What one pass did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Flows deleted.
    pub n_deleted: usize,
    /// Flows that are stale and could not be deleted.
    pub n_failed: usize,
    /// How long it took.
    pub took: Duration,
}

impl<F: Family> StaleFlows<F> {
    /// No pass is due.
    pub fn new(table: Box<dyn FlowTable<F>>) -> Self {
        Self {
            table,
            known: None,
            removed: RemovedFrontends::unknown(),
            is_owed: false,
            again: None,
            not_before: None,
            paid: None,
            n_failures: 0,
        }
    }

    /// Takes in what the newest successful sync changed.
    pub fn take_in(&mut self, mut news: News<F>) {
        news.update(&mut self.known);
        self.removed.merge(news.removed);
        self.is_owed |= news.is_owed;
    }

    /// When the next pass is due; `None` if none is.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let due = if self.is_owed { Some(now) } else { self.again };
        due.map(|due| self.not_before.map_or(due, |soonest| soonest.max(due)))
    }

    /// Deletes the flows that are stale, if that is due. Spec: CT-1, CT-3.
    ///
    /// `newest` is what is not taken in yet: also what a sync writes while the pass runs, so that no flow to a
    /// backend that became one meanwhile is deleted.
    ///
    /// # Errors
    /// [`ConntrackError`] if they could not be listed; it is tried again later.
    pub fn clean(
        &mut self,
        newest: &dyn Fn() -> News<F>,
        clock: &dyn Clock,
    ) -> Result<Option<Pass>, ConntrackError> {
        let started = clock.now();
        if self.deadline(started).is_none_or(|due| due > started) {
            return Ok(None);
        }
        let plan = self
            .known
            .as_ref()
            .map(|known| Plan::new(known, &self.removed));
        let Some(plan) = plan.filter(|plan| !plan.is_empty()) else {
            self.is_owed = false;
            self.again = None;
            return Ok(None);
        };
        let flows = self.table.list(MAX_DELETED, &|flow| plan.is_stale(flow));
        let mut flows = flows.inspect_err(|_| self.failed(clock.now()))?;
        let n_listed = flows.len();
        let mut newest = newest();
        if !flows.is_empty() && !newest.is_empty() {
            let mut state = self.known.clone();
            newest.update(&mut state);
            if let Some(state) = &state {
                let plan = Plan::new(state, &self.removed);
                flows.retain(|flow| plan.is_stale(flow));
            }
        }
        self.spend(started, clock.now());
        let (mut n_deleted, mut n_failed) = (0, 0);
        for flow in &flows {
            match self.table.delete(flow) {
                Ok(()) => n_deleted += 1,
                Err(error) => {
                    // One line for all of them.
                    if n_failed == 0 && self.n_failures == 0 {
                        tracing::warn!(
                            error = &error as &dyn Error,
                            "cannot delete stale UDP flow, will retry"
                        );
                    }
                    n_failed += 1;
                }
            }
        }
        let ended = clock.now();
        if n_failed > 0 {
            self.failed(ended);
        } else if n_listed < MAX_DELETED {
            self.succeeded(started, ended);
        }
        // Otherwise the rest is left to the next pass, and other work comes first.
        Ok(Some(Pass {
            n_deleted,
            n_failed,
            took: ended - started,
        }))
    }

    fn succeeded(&mut self, started: Instant, ended: Instant) {
        self.n_failures = 0;
        let again = ended + AGAIN;
        if let Some(known) = &self.known {
            self.removed.looked_at(&known.globals, started, again);
        }
        if self.is_owed {
            self.again = Some(again);
        } else if self.again.is_some_and(|again| started >= again) {
            self.again = None;
        }
        self.is_owed = false;
    }

    /// Delays the pass after a failure.
    pub fn failed(&mut self, now: Instant) {
        self.not_before = Some(now + RETRY);
        self.n_failures = self.n_failures.saturating_add(1);
        self.is_owed = true;
    }

    /// Whether the last pass failed and the one before did not.
    pub const fn has_begun_to_fail(&self) -> bool {
        self.n_failures == 1
    }

    /// Adds the pause that a listing costs.
    fn spend(&mut self, started: Instant, ended: Instant) {
        let paid = self.paid.map_or(started, |paid| paid.max(started));
        let paid = paid + (ended - started) * PAUSE_FACTOR;
        self.paid = Some(paid);
        let owed = paid.saturating_duration_since(ended + BURST);
        self.not_before = (!owed.is_zero()).then(|| ended + owed.min(MAX_PAUSE));
    }
}

#[cfg(test)]
mod tests;
