//! Where does a packet lie, and what can be done with it?

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::Sum;

/// A packet at one of the hooks.
pub trait Packet {
    /// Part of the packet, or `None` if it ends before.
    ///
    /// `offset` counts from the packet's first byte, in bytes. Kernel: the verifier understands the check for
    /// two bytes and more, not for a single one.
    fn at<T: Part>(&mut self, offset: u32) -> Option<&mut T>;

    /// Adds a change to a checksum of the transport layer; `None` if it cannot be written.
    fn fix_checksum(&mut self, checksum: Checksum, change: Sum) -> Option<()>;

    /// How long it is, with all that is not in one piece. Unit: bytes.
    fn length(&self) -> u32;

    /// Cuts or extends the packet to this length; what is new is undefined. Unit: bytes.
    fn resize(&mut self, length: u32) -> Option<()>;

    /// The index of the interface that it arrived at or is about to leave by.
    fn interface(&self) -> u32;

    /// Whether this node sent it; only asked where packets leave.
    fn is_from_this_node(&self) -> bool;

    /// Its mark, zero where there is none.
    fn mark(&self) -> u32;

    /// Changes its mark; nothing happens where there is none.
    fn set_mark(&mut self, mark: u32);
}

/// What can be read and written in place.
pub trait Part: FromBytes + IntoBytes + KnownLayout + Immutable {}

impl<T: FromBytes + IntoBytes + KnownLayout + Immutable> Part for T {}

/// A checksum of the transport layer that does not cover the change alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where it lies. Unit: bytes from the packet's first.
    pub offset: u32,
    /// Whether the change is in the pseudo header, that is, in the addresses.
    pub is_pseudo: bool,
    /// Whether zero means that there is none: UDP.
    pub is_optional: bool,
    /// Whether the packet is IPv6.
    pub is_ipv6: bool,
}

impl Checksum {
    /// Applies a change where nothing else does, as the kernel would.
    #[inline(always)]
    pub fn apply(self, checksum: &mut u16, change: Sum) {
        if self.is_optional && *checksum == 0 {
            return;
        }
        *checksum = change.applied_to(*checksum);
        if self.is_optional && *checksum == 0 {
            *checksum = 0xffff;
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// It goes on.
    Pass = 0,
    /// It ends here.
    Drop = 1,
    /// It leaves by the interface that it came from.
    Bounce = 2,
}
