//! Which conntrack entries must be deleted, so that their clients reach a live backend?
//!
//! A UDP client that keeps its source port keeps its conntrack entry, and with it a removed backend, for
//! as long as it sends. Invariants: only UDP flows are deleted (CT-6), and only after the rules that
//! would translate them again are live (CT-13); there is at most one listing per sync, and under constant
//! changes listings take about a tenth of the time; a failed pass is repeated.
//!
//! Each pass is followed by another one second later. A packet that met the previous rules may be
//! confirmed after the listing: its sender was preempted between two hooks, or a program that inspects
//! packets (NFQUEUE) delayed it. Such an entry is stale too, and nothing else would find it.

use std::error::Error;
use std::time::{Duration, Instant};

use crate::forwarding::{Changes, ForwardingState, Globals};
use crate::net::Family;
use removed::{RemovedFrontends, can_go_stale};

mod message;
mod netlink;
mod plan;
mod removed;

pub use netlink::Netlink;
pub use plan::{Flow, Plan};

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
            removed: RemovedFrontends::default(),
            is_owed: false,
            again: None,
            not_before: None,
            paid: None,
            n_failures: 0,
        }
    }

    /// Notes what changed in the state, and its new globals.
    ///
    /// A change of endpoints or frontends of UDP counts, and so does one of the addresses that accept
    /// NodePorts, and of ServiceCIDRs (CT-4).
    pub fn note(&mut self, changes: &Changes<F>, globals: &Globals<F>) {
        self.removed.note(changes, globals);
        let mut ports = changes.service_ports.values();
        let is_moved = |old: &Globals<F>| {
            old.node_port_addresses != globals.node_port_addresses
                || old.service_cidrs != globals.service_cidrs
        };
        self.is_owed |= changes.globals.as_ref().is_some_and(is_moved)
            || ports.any(|change| can_go_stale(change.old.as_deref(), change.new.as_deref()));
    }

    /// Notes that frontends may translate now although they did not before, without a change of the state.
    ///
    /// So it is at the start, after a failure, and after others changed our objects: clients that sent
    /// meanwhile have flows without a translation, and keep them for as long as they send (CT-4).
    pub const fn note_resync(&mut self) {
        self.is_owed = true;
    }

    /// When the next pass is due; `None` if none is.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let due = if self.is_owed { Some(now) } else { self.again };
        due.map(|due| self.not_before.map_or(due, |soonest| soonest.max(due)))
    }

    /// Deletes the flows that are stale in this state, if that is due. Spec: CT-1, CT-3.
    ///
    /// # Errors
    /// [`ConntrackError`] if they could not be listed; it is tried again later.
    pub fn clean(
        &mut self,
        state: &ForwardingState<F>,
        clock: &dyn crate::sys::Clock,
    ) -> Result<Option<Pass>, ConntrackError> {
        let started = clock.now();
        if self.deadline(started).is_none_or(|due| due > started) {
            return Ok(None);
        }
        let plan = Plan::new(state, &self.removed);
        if plan.is_empty() {
            self.is_owed = false;
            self.again = None;
            return Ok(None);
        }
        let flows = self.table.list(MAX_DELETED, &|flow| plan.is_stale(flow));
        let flows = flows.inspect_err(|_| self.failed(clock.now()))?;
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
        } else if flows.len() < MAX_DELETED {
            self.succeeded(&state.globals, started, ended);
        }
        // Otherwise the rest is left to the next pass, and other work comes first.
        Ok(Some(Pass {
            n_deleted,
            n_failed,
            took: ended - started,
        }))
    }

    fn succeeded(&mut self, globals: &Globals<F>, started: Instant, ended: Instant) {
        self.n_failures = 0;
        let again = ended + AGAIN;
        self.removed.looked_at(globals, started, again);
        if self.is_owed {
            self.again = Some(again);
        } else if self.again.is_some_and(|again| started >= again) {
            self.again = None;
        }
        self.is_owed = false;
    }

    /// Delays the pass after a failure.
    fn failed(&mut self, now: Instant) {
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
