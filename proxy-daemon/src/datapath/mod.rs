//! Which kernel mechanism forwards packets?
//!
//! A datapath has a [`Plane`], which a node has once, and of it the [`Tables`] of each family.
//!
//! Invariants: a datapath decides nothing, it renders; it recognises its own objects without any
//! memory; it never touches foreign ones; a failure leaves the old state in force.

mod common;
mod counts;
mod error;
#[cfg(test)]
mod fixtures;
pub mod iptables;
mod kind;
pub mod nftables;
mod plane;
#[cfg(test)]
pub(crate) mod skeleton;
#[cfg(test)]
mod tests;
mod worker;

use crate::forwarding::{Changes, ForwardingState};
use crate::net::Family;

pub use error::DatapathError;
pub use kind::{Backend, DatapathChoice, DatapathKind, Descriptor, FailureCounter, Needs, Rules};
pub use plane::{Figure, Opener, Plane, PlaneFamily, PlaneOptions, Worker};

impl DatapathKind {
    /// The default.
    pub const DEFAULT: Self = Self(&nftables::DESCRIPTOR);

    /// Every datapath, the default first and those of one mode side by side.
    pub const ALL: &[Self] = &[
        Self::DEFAULT,
        Self(&iptables::NFT),
        Self(&iptables::LEGACY),
        #[cfg(test)]
        Self(&skeleton::DESCRIPTOR),
    ];
}

/// What carries the forwarding state of one family in the kernel.
pub trait Tables<F: Family>: Send {
    /// Makes the kernel match `desired`, given that it matched the state before `changes`, by writing only what
    /// changed.
    ///
    /// `None` if these changes cannot be written so: nothing was done, and the next call must be
    /// [`Tables::resync`].
    ///
    /// # Errors
    /// [`DatapathError`] if the kernel refused; nothing has changed then, and the next call must be
    /// [`Tables::resync`].
    fn sync(
        &mut self,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<Option<SyncReport>, DatapathError>;

    /// Reads back what is ours and makes it match `desired`, touching only what differs.
    ///
    /// For the start, after a failure, and when others changed our objects.
    ///
    /// # Errors
    /// [`DatapathError`] if the kernel could not be read or refused; the previous rules stay active.
    fn resync(&mut self, desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError>;

    /// Whether others may have changed our objects since our last write, so that a resync is due. Cheap.
    ///
    /// Spec: SYNC-9.
    ///
    /// # Errors
    /// [`DatapathError`] if the kernel could not be read.
    fn changed_by_others(&mut self) -> Result<bool, DatapathError>;
}

/// How much of the kernel's state a sync looked at. Spec: SYNC-5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it was read back.
    Full,
    /// Only what changed was written.
    Partial,
}

/// What one sync did to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Objects (elements, rules, chains, sets) written.
    pub n_added: usize,
    /// Objects removed.
    pub n_removed: usize,
}
