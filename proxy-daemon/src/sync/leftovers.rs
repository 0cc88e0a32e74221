//! What did a run in another mode leave in the kernel, and when does it go?
//!
//! Invariants: nothing goes before what replaces it is in force, and then in the same step (LIFE-9); what
//! cannot be removed never fails a sync, and is tried again ever later, like a sync that fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use crate::datapath::{Datapath, DatapathError};
use crate::net::Family;

type Open<F> = Box<dyn Fn() -> Result<Box<dyn Datapath<F>>, DatapathError> + Send>;

/// Another carrier of the family, which is opened only to remove what is its.
pub struct Former<F: Family> {
    name: &'static str,
    open: Open<F>,
}

impl<F: Family> Former<F> {
    /// One of this name, for logs.
    pub fn new(
        name: &'static str,
        open: impl Fn() -> Result<Box<dyn Datapath<F>>, DatapathError> + Send + 'static,
    ) -> Self {
        Self {
            name,
            open: Box::new(open),
        }
    }

    /// Whether nothing of it is left, as far as that can be known; says at the first attempt why something is.
    fn remove(&self, is_first: bool) -> bool {
        let (family, mode) = (F::FAMILY.name(), self.name);
        let work = || (self.open)().and_then(|mut datapath| datapath.cleanup());
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => {
                tracing::debug!(family, mode, "nothing of another mode is left");
                true
            }
            // Where a mode cannot work, nothing of it can have come to be.
            Ok(Err(error)) if error.means_absent() => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(family, mode, error, "another mode is not on this node");
                true
            }
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                if is_first {
                    tracing::warn!(
                        family,
                        mode,
                        error,
                        "another mode's rules, if there are any, stay for now"
                    );
                } else {
                    tracing::debug!(family, mode, error, "another mode's rules still stay");
                }
                false
            }
            Err(_panic) => {
                tracing::error!(
                    family,
                    mode,
                    "a bug; another mode's rules, if there are any, stay for now"
                );
                false
            }
        }
    }
}

/// The other carriers of which something may be left.
pub(super) struct Leftovers<F: Family> {
    of: Vec<Former<F>>,
    backoff: Backoff,
    has_tried: bool,
}

impl<F: Family> Leftovers<F> {
    /// Those of these carriers, to be removed as soon as anything is in force.
    pub(super) const fn new(of: Vec<Former<F>>, now: Instant) -> Self {
        Self {
            of,
            backoff: Backoff::due(now),
            has_tried: false,
        }
    }

    /// When to try again, if anything may be left.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.of.is_empty()).then(|| self.backoff.at())
    }

    /// Removes what is due; to be called when the family's own carrier is in force.
    pub(super) fn remove(&mut self, now: Instant, longest: Duration) {
        if self.deadline().is_none_or(|due| now < due) {
            return;
        }
        let is_first = !self.has_tried;
        self.has_tried = true;
        self.of.retain(|former| !former.remove(is_first));
        self.backoff = self.backoff.failed(now, longest);
    }
}
