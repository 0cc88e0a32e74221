//! How do iptables and ipset carry a forwarding state?

mod flavour;
mod lock;
mod tool;

pub use flavour::{Because, Flavour};

use std::marker::PhantomData;

use super::{Datapath, DatapathError, SyncReport};
use crate::forwarding::{Changes, ForwardingState};
use crate::net::Family;

/// The iptables datapath of one family, in the network namespace it was opened in.
#[derive(Debug)]
pub struct Iptables<F: Family> {
    family: PhantomData<F>,
}

impl<F: Family> Iptables<F> {
    /// Looks for the programs of this flavour, in the network namespace of the calling thread. Writes nothing.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if a program or a capability of the kernel is missing.
    pub fn open(_flavour: Flavour) -> Result<Self, DatapathError> {
        Err(missing())
    }
}

fn missing() -> DatapathError {
    DatapathError::Unusable {
        operation: "opening iptables",
        advice: "this mode is not there yet; use --mode=nftables",
        source: std::io::Error::from(std::io::ErrorKind::Unsupported),
    }
}

impl<F: Family> Datapath<F> for Iptables<F> {
    fn sync(
        &mut self,
        _desired: &ForwardingState<F>,
        _changes: &Changes<F>,
    ) -> Result<SyncReport, DatapathError> {
        Err(missing())
    }

    fn resync(&mut self, _desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError> {
        Err(missing())
    }

    fn changed_by_others(&mut self) -> Result<bool, DatapathError> {
        Err(missing())
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        Err(missing())
    }
}
