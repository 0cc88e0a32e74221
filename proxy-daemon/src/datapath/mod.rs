//! Which kernel mechanism carries a forwarding state?
//!
//! Invariants: a datapath decides nothing, it renders; it recognises its own objects without any
//! memory; it never touches foreign ones; a failure leaves the old state in force.

pub mod iptables;
pub mod nftables;

use crate::forwarding::{Changes, ForwardingState};
use crate::net::Family;

/// One kernel mechanism that can carry the forwarding state of one family.
pub trait Datapath<F: Family>: Send {
    /// Makes the kernel match `desired`, given that it matched the state before `changes`.
    ///
    /// # Errors
    /// [`DatapathError`] if the kernel refused; nothing has changed then, and the next call must be
    /// [`Datapath::resync`].
    fn sync(
        &mut self,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<SyncReport, DatapathError>;

    /// Reads back what is ours and makes it match `desired`, touching only what differs.
    ///
    /// For the start, after a failure, and when others changed our objects.
    ///
    /// # Errors
    /// [`DatapathError`] if the kernel could not be read or refused; what forwarded before still does.
    fn resync(&mut self, desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError>;

    /// Whether others may have changed our objects since our last write, so that a resync is due. Cheap.
    ///
    /// Spec: SYNC-9.
    ///
    /// # Errors
    /// [`DatapathError`] if the kernel could not be asked.
    fn changed_by_others(&mut self) -> Result<bool, DatapathError>;

    /// Removes everything that is ours; not an error if there is nothing.
    ///
    /// # Errors
    /// [`DatapathError`] naming what could not be removed.
    fn cleanup(&mut self) -> Result<(), DatapathError>;
}

/// What one sync did to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Objects (elements, rules, chains, sets) written.
    pub n_added: usize,
    /// Objects removed.
    pub n_removed: usize,
}

/// A datapath could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel lacks something, or we lack a privilege; trying again does not help.
    #[error("{operation}: {advice}")]
    Unusable {
        /// What was tried.
        operation: &'static str,
        /// What a person can do about it.
        advice: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused an operation.
    #[error("{operation} of {object}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Which object of ours.
        object: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}
