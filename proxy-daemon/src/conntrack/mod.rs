//! Which flows must the kernel forget, so that their clients reach a live backend?
//!
//! A UDP client that keeps its source port keeps its conntrack entry, and with it a backend that is
//! gone, for as long as it sends. Invariants: only UDP flows are ever deleted (CT-6); only after the
//! rules that would translate them anew are live (CT-13); at most one listing per sync, and where
//! changes go on and on, about a tenth of the time goes into it; a pass that failed stays owed.
//!
//! Each pass is followed by another one second later. A packet that met the former rules may be
//! confirmed after the listing: its sender was preempted between two hooks, or a program that looks at
//! packets (NFQUEUE) held it back. Such an entry is as stale as the others and nothing else would find it.

use std::error::Error;
use std::time::{Duration, Instant};

use crate::forwarding::{Changes, ForwardingState, Globals};
use crate::net::Family;
use former::{Former, can_go_stale};

mod former;
mod message;
mod netlink;
mod plan;

pub use netlink::Netlink;
pub use plan::{Flow, Plan};

/// How long after a pass everything is looked at once more.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the table is left alone after a pass that failed.
const RETRY: Duration = Duration::from_secs(5);
/// How many flows one pass deletes, so that a change never waits long for it; the rest is the next one's.
const MOST: usize = 10_000;
/// How much time each moment of listing has to be paid for with, where passes follow each other: one
/// walk costs some 10 ms on a machine with 262,144 buckets, however few entries there are.
const PRICE: u32 = 10;
/// How far that may run up before a pass waits, so that single changes never do.
const CREDIT: Duration = Duration::from_secs(3);
/// The longest that a pass waits, which leaves time for it within the 5 s of CT-1.
const PATIENCE: Duration = Duration::from_secs(3);

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
    former: Former<F>,
    /// Whether something happened that no pass has followed yet.
    is_owed: bool,
    /// When what was looked at is looked at once more.
    again: Option<Instant>,
    not_before: Option<Instant>,
    /// When what was spent so far is paid for.
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
    /// Nothing to look at so far.
    pub fn new(table: Box<dyn FlowTable<F>>) -> Self {
        Self {
            table,
            former: Former::default(),
            is_owed: false,
            again: None,
            not_before: None,
            paid: None,
            n_failures: 0,
        }
    }

    /// Takes note of what changed in the state, and of the globals that it has now.
    ///
    /// A change of endpoints or frontends of UDP counts, and so does one of the addresses that accept
    /// NodePorts, and of ServiceCIDRs (CT-4).
    pub fn note(&mut self, changes: &Changes<F>, globals: &Globals<F>) {
        self.former.note(changes, globals);
        let mut ports = changes.service_ports.values();
        let is_moved = |old: &Globals<F>| {
            old.node_port_addresses != globals.node_port_addresses
                || old.service_cidrs != globals.service_cidrs
        };
        self.is_owed |= changes.globals.as_ref().is_some_and(is_moved)
            || ports.any(|change| can_go_stale(change.old.as_deref(), change.new.as_deref()));
    }

    /// Takes note that frontends may translate which did not before, although the state says nothing of it.
    ///
    /// So it is at the start, after a failure, and after others changed our objects: clients that sent
    /// meanwhile have flows without a translation, and keep them for as long as they send (CT-4).
    pub const fn note_resync(&mut self) {
        self.is_owed = true;
    }

    /// When a pass is due; `None` if there is nothing to look at.
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
        let plan = Plan::new(state, &self.former);
        if plan.is_empty() {
            self.is_owed = false;
            self.again = None;
            return Ok(None);
        }
        let flows = self.table.list(MOST, &|flow| plan.is_stale(flow));
        let flows = flows.inspect_err(|_| self.failed(clock.now()))?;
        self.spend(started, clock.now());
        let (mut n_deleted, mut n_failed) = (0, 0);
        for flow in &flows {
            match self.table.delete(flow) {
                Ok(()) => n_deleted += 1,
                Err(error) => {
                    // One line for all of them.
                    if n_failed == 0 && self.n_failures == 0 {
                        tracing::warn!(error = &error as &dyn Error, "stale flow stays for now");
                    }
                    n_failed += 1;
                }
            }
        }
        let ended = clock.now();
        if n_failed > 0 {
            self.failed(ended);
        } else if flows.len() < MOST {
            self.succeeded(&state.globals, started, ended);
        }
        // Else the rest is still owed, and what else is due goes first.
        Ok(Some(Pass {
            n_deleted,
            n_failed,
            took: ended - started,
        }))
    }

    fn succeeded(&mut self, globals: &Globals<F>, started: Instant, ended: Instant) {
        self.n_failures = 0;
        let again = ended + AGAIN;
        self.former.looked_at(globals, started, again);
        if self.is_owed {
            self.again = Some(again);
        } else if self.again.is_some_and(|again| started >= again) {
            self.again = None;
        }
        self.is_owed = false;
    }

    /// Puts the pass off; it stays owed.
    fn failed(&mut self, now: Instant) {
        self.not_before = Some(now + RETRY);
        self.n_failures = self.n_failures.saturating_add(1);
        self.is_owed = true;
    }

    /// Whether the last pass failed and the one before did not.
    pub const fn has_begun_to_fail(&self) -> bool {
        self.n_failures == 1
    }

    /// Charges for a listing.
    fn spend(&mut self, started: Instant, ended: Instant) {
        let paid = self.paid.map_or(started, |paid| paid.max(started));
        let paid = paid + (ended - started) * PRICE;
        self.paid = Some(paid);
        let owed = paid.saturating_duration_since(ended + CREDIT);
        self.not_before = (!owed.is_zero()).then(|| ended + owed.min(PATIENCE));
    }
}

#[cfg(test)]
mod tests;
