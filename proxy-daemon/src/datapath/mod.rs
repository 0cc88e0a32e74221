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

use nix::errno::Errno;

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

    /// One that is opened by its first sync, for when that is not possible now. Spec: DS-1.
    pub fn open_later<F: Family>(self) -> Box<dyn Datapath<F>> {
        Box::new(Late {
            kind: self,
            opened: None,
        })
    }

    /// What it makes of a state, in the words of its own tools: `nft`, or `ipset` and `iptables-restore`.
    ///
    /// Pure: needs no privilege, and equal states give equal text.
    pub fn rules<F: Family>(self, state: &ForwardingState<F>) -> String {
        match self {
            Self::Nftables => nftables::rules(state),
            Self::Iptables(_) => iptables::rules(state),
        }
    }

    /// Opens it in the network namespace of the calling thread. Writes nothing.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if a program, a capability or a part of the kernel is missing;
    /// [`DatapathError::Refused`] if there are no descriptors or no memory for it now.
    pub fn open<F: Family>(self) -> Result<Box<dyn Datapath<F>>, DatapathError> {
        Ok(match self {
            Self::Nftables => Box::new(Nftables::<F>::open()?),
            Self::Iptables(flavour) => Box::new(Iptables::<F>::open(flavour)?),
        })
    }
}

/// Kernel: what it answers when there is no more of something, or somebody was faster.
fn is_shortage(error: &std::io::Error) -> bool {
    let shortages = [
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::ENOMEM,
        Errno::ENOBUFS,
        Errno::EAGAIN,
        Errno::EINTR,
        Errno::EBUSY,
    ];
    let errno = error.raw_os_error().map(Errno::from_raw);
    errno.is_some_and(|errno| shortages.contains(&errno))
}

/// One that could not be opened yet, and is tried with each resync.
struct Late<F: Family> {
    kind: Kind,
    opened: Option<Box<dyn Datapath<F>>>,
}

impl<F: Family> Late<F> {
    fn open(&mut self) -> Result<&mut dyn Datapath<F>, DatapathError> {
        let opened = match self.opened.take() {
            Some(opened) => opened,
            None => self.kind.open()?,
        };
        Ok(&mut **self.opened.insert(opened))
    }
}

impl<F: Family> Datapath<F> for Late<F> {
    fn sync(
        &mut self,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<SyncReport, DatapathError> {
        self.open()?.sync(desired, changes)
    }

    fn resync(&mut self, desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError> {
        self.open()?.resync(desired)
    }

    fn changed_by_others(&mut self) -> Result<bool, DatapathError> {
        self.open()?.changed_by_others()
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.open()?.cleanup()
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
    /// Whether somebody or something was waited for in vain: who holds a lock, or a program that hangs.
    pub fn is_late(&self) -> bool {
        match self {
            Self::Unusable { source, .. } | Self::Refused { source, .. } => {
                source.kind() == std::io::ErrorKind::TimedOut
            }
            Self::Held { .. } => false,
        }
    }

    /// That something is missing, unless it is only descriptors or memory, of which there may be enough later.
    fn lacking(operation: &'static str, advice: &'static str, source: std::io::Error) -> Self {
        if is_shortage(&source) {
            let object = "the system's resources".to_owned();
            Self::Refused {
                operation,
                object,
                source,
            }
        } else {
            Self::Unusable {
                operation,
                advice,
                source,
            }
        }
    }

    /// Whether trying again can help.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether it means that nothing of the datapath can be on this node: the kernel or a program is missing.
    pub fn means_absent(&self) -> bool {
        match self {
            Self::Unusable { source, .. } => source.kind() != std::io::ErrorKind::PermissionDenied,
            Self::Held { .. } | Self::Refused { .. } => false,
        }
    }
}
