//! Where are the tables, and what else does the packet code ask of its surroundings?

use proxy_common::{
    Address, Backend, Flow, FlowKey, Frontend, FrontendKey, Interface, LocalAddress, Reason,
    Record, Settings,
};

use crate::{Family, Packet};

/// The tables of one family.
pub trait Tables<const WORDS: usize> {
    /// The entry for this key.
    ///
    /// Kernel: a table that is full gives the memory of an idle entry to another key at any moment. So only
    /// the time is ever written in place; all else goes through [`Self::replace_flow`].
    fn flow(&mut self, key: &FlowKey<WORDS>) -> Option<&mut Flow<WORDS>>;

    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// There is one for this key already, or the table cannot take it.
    fn add_flow(&mut self, key: &FlowKey<WORDS>, flow: &Flow<WORDS>) -> Result<(), Unwritten>;

    /// Gives an entry another value, as a whole.
    ///
    /// # Errors
    ///
    /// There is none for this key any more.
    fn replace_flow(&mut self, key: &FlowKey<WORDS>, flow: &Flow<WORDS>) -> Result<(), Unwritten>;

    /// Removes an entry, if it is there.
    fn remove_flow(&mut self, key: &FlowKey<WORDS>);

    /// The frontend with this key.
    fn frontend(&mut self, key: &FrontendKey<WORDS>) -> Option<Frontend>;

    /// What is current of the ServicePort with this id.
    fn record(&mut self, service: u32) -> Option<&Record>;

    /// The id of the backend in this slot.
    fn slot(&mut self, index: u32) -> Option<u32>;

    /// The backend with this id.
    fn backend(&mut self, id: u32) -> Option<&Backend<WORDS>>;

    /// Whether the set of source ranges with this id holds the address.
    fn is_in_source_ranges(&mut self, set: u32, address: &Address<WORDS>) -> bool;

    /// What is known of an address of this node; `None` if it is not the node's.
    fn local_address(&mut self, address: &Address<WORDS>) -> Option<LocalAddress>;

    /// Whether a flow or a frontend may have this address. False positives are allowed.
    fn may_concern(&mut self, address: &Address<WORDS>) -> bool;

    /// From now on packets with this address are of concern.
    fn concern(&mut self, address: &Address<WORDS>);

    /// Whether one more refusal may be sent in this tick.
    fn may_refuse(&mut self) -> bool;

    /// What is configured.
    fn settings(&mut self) -> Option<&Settings<WORDS>>;

    /// The interface with this index.
    fn interface(&mut self, index: u32) -> Option<&Interface>;

    /// A random number.
    fn random(&mut self) -> u32;

    /// The time. Unit: ticks of about a second; wraps around.
    fn now(&mut self) -> u32;

    /// Counts a packet.
    fn count(&mut self, reason: Reason);
}

/// An entry was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritten;

/// This node's address on the interface that a packet is at; `None` if there is none.
#[inline(always)]
pub(crate) fn own_address<F, P, T, const WORDS: usize>(
    packet: &P,
    tables: &mut T,
) -> Option<Address<WORDS>>
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    let address = tables.interface(packet.interface()).map(F::source_of)?;
    (!address.is_unspecified()).then_some(address)
}
