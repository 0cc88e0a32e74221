//! Which flows must the kernel forget, so that their clients reach a live backend?
//!
//! A UDP client that keeps its source port keeps its conntrack entry, and with it a backend that is
//! gone, for as long as it sends. Invariants: only UDP flows are ever deleted (CT-6); only after the
//! rules that would translate them anew are live (CT-13); at most one listing per sync, and where
//! changes go on and on, about a tenth of the time goes into it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::forwarding::{Changes, ForwardingState, ServicePort, ServicePortId};
use crate::net::{Family, L4Proto};

mod message;
mod netlink;
mod plan;

pub use netlink::Netlink;
pub use plan::{Flow, Plan};

/// How long a failed listing is left alone.
const RETRY: Duration = Duration::from_secs(5);
/// How much time each moment of listing has to be paid for with, where passes follow each other: one
/// walk costs some 10 ms on a machine with 262,144 buckets, however few entries there are.
const PRICE: u32 = 10;
/// How far that may run up before a pass waits, so that single changes never do.
const CREDIT: Duration = Duration::from_secs(3);
/// The longest that a pass waits, which leaves time for it within the 5 s of CT-1.
const PATIENCE: Duration = Duration::from_secs(3);

/// The kernel's table of UDP flows of one family.
pub trait FlowTable<F: Family>: Send {
    /// Every UDP flow for which `wanted` says so.
    ///
    /// # Errors
    /// [`ConntrackError`] if the kernel did not list them.
    fn list(&mut self, wanted: &dyn Fn(&Flow<F>) -> bool) -> Result<Vec<Flow<F>>, ConntrackError>;

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

/// The UDP ServicePorts whose flows must be looked at, and when.
pub struct StaleFlows<F: Family> {
    table: Box<dyn FlowTable<F>>,
    changed: BTreeSet<ServicePortId>,
    not_before: Option<Instant>,
    /// When what was spent so far is paid for.
    paid: Option<Instant>,
}

/// What one pass did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Flows deleted.
    pub n_deleted: usize,
    /// Flows that are stale and could not be deleted.
    pub n_failed: usize,
    /// How long it took, most of it the kernel's walk through the table.
    pub took: Duration,
}

impl<F: Family> StaleFlows<F> {
    /// Nothing to look at so far.
    pub fn new(table: Box<dyn FlowTable<F>>) -> Self {
        Self {
            table,
            changed: BTreeSet::new(),
            not_before: None,
            paid: None,
        }
    }

    /// Takes note of what changed; a change of endpoints or frontends of UDP counts (CT-4).
    pub fn note(&mut self, changes: &Changes<F>) {
        for (id, change) in &changes.service_ports {
            let Some(new) = &change.new else {
                // A deleted Service's flows run out by themselves (CT-3).
                self.changed.remove(id);
                continue;
            };
            let all_fresh = change
                .old
                .as_ref()
                .is_some_and(|old| !can_go_stale(old, new));
            if new.protocol == L4Proto::Udp && !all_fresh {
                self.changed.insert(id.clone());
            }
        }
    }

    /// When a pass is due; `None` if there is nothing to look at.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        (!self.changed.is_empty()).then(|| self.not_before.unwrap_or(now))
    }

    /// Deletes the stale flows of what changed, if that is due. Spec: CT-1.
    ///
    /// # Errors
    /// [`ConntrackError`] if they could not be listed; it is tried again later.
    pub fn clean(
        &mut self,
        state: &ForwardingState<F>,
        local: &BTreeSet<IpAddr>,
        clock: &dyn crate::sys::Clock,
    ) -> Result<Option<Pass>, ConntrackError> {
        let started = clock.now();
        if self.deadline(started).is_none_or(|due| due > started) {
            return Ok(None);
        }
        let plan = Plan::new(state, &self.changed, local);
        if plan.is_empty() {
            self.changed.clear();
            return Ok(None);
        }
        let flows = match self.table.list(&|flow| plan.is_stale(flow)) {
            Ok(flows) => flows,
            Err(error) => {
                self.not_before = Some(clock.now() + RETRY);
                return Err(error);
            }
        };
        let mut pass = Pass {
            n_deleted: 0,
            n_failed: 0,
            took: Duration::ZERO,
        };
        for flow in &flows {
            match self.table.delete(flow) {
                Ok(()) => pass.n_deleted += 1,
                Err(error) => {
                    pass.n_failed += 1;
                    tracing::warn!(error = &error as &dyn std::error::Error, "stale flow stays");
                }
            }
        }
        self.changed.clear();
        let ended = clock.now();
        self.spend(started, ended);
        pass.took = ended - started;
        Ok(Some(pass))
    }

    fn spend(&mut self, started: Instant, ended: Instant) {
        let paid = self.paid.map_or(started, |paid| paid.max(started));
        let paid = paid + (ended - started) * PRICE;
        self.paid = Some(paid);
        let owed = paid.saturating_duration_since(ended + CREDIT);
        self.not_before = (!owed.is_zero()).then(|| ended + owed.min(PATIENCE));
    }
}

/// Whether a flow of the old ServicePort can be stale for the new one.
///
/// Not if endpoints were only added to live ones, behind the same frontends. This spares the listing,
/// which walks the machine's whole table, whenever a Deployment grows.
fn can_go_stale<F: Family>(old: &ServicePort<F>, new: &ServicePort<F>) -> bool {
    let is_live = |backend| new.live.binary_search(backend).is_ok();
    let has_frontends = new
        .frontends
        .keys()
        .all(|key| old.frontends.contains_key(key));
    let only_grew = !old.live.is_empty() && old.live.iter().all(is_live);
    !(only_grew && has_frontends)
}

#[cfg(test)]
mod tests;
