//! Which kernel mechanism carries a forwarding state?
//!
//! Invariants: a datapath decides nothing, it renders; it recognises its own objects without any
//! memory; it never touches foreign ones; a failure leaves the old state in force.

mod common;
mod counts;
#[cfg(test)]
mod fixtures;
pub mod iptables;
pub mod nftables;
#[cfg(test)]
mod tests;

use crate::forwarding::{Changes, ForwardingState};
use crate::net::Family;
use iptables::{Flavour, Iptables};
use nftables::Nftables;

/// One of the mechanisms: the only list of them there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`nftables`].
    Nftables,
    /// [`iptables`], by one of its two programs, which do not see each other's rules.
    Iptables(Flavour),
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [
        Self::Nftables,
        Self::Iptables(Flavour::Nft),
        Self::Iptables(Flavour::Legacy),
    ];

    /// A name for logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables(Flavour::Nft) => "iptables-nft",
            Self::Iptables(Flavour::Legacy) => "iptables-legacy",
        }
    }

    /// All but this one.
    pub fn others(self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |kind| *kind != self)
    }

    /// Opens it in the network namespace of the calling thread. Writes nothing.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if a program, a capability or a part of the kernel is missing.
    pub fn open<F: Family>(self) -> Result<Box<dyn Datapath<F>>, DatapathError> {
        Ok(match self {
            Self::Nftables => Box::new(Nftables::<F>::open()?),
            Self::Iptables(flavour) => Box::new(Iptables::<F>::open(flavour)?),
        })
    }
}

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
    /// Another program has reserved an object of our name for itself; nobody else may write to it.
    #[error(
        "{object} is reserved by another program, by the netlink port {port} (mostly its process \
        number): end that program"
    )]
    Held {
        /// Which object.
        object: String,
        /// Whose it is.
        port: u32,
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

impl DatapathError {
    /// Whether it means that nothing of the datapath can be on this node: the kernel or a program is missing.
    pub fn means_absent(&self) -> bool {
        match self {
            Self::Unusable { source, .. } => source.kind() != std::io::ErrorKind::PermissionDenied,
            Self::Held { .. } | Self::Refused { .. } => false,
        }
    }
}
