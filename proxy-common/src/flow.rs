//! What is remembered of a flow?
//!
//! A client `C:c` reaches a frontend `V:v`; the packet goes on to the backend `B:b`, with the client's port
//! `c'` (which is `c`, unless that is taken), from the node's `N:n` if it is masqueraded. The flow is a group
//! of entries in one table, of which each can be computed from its neighbours:
//!
//! | entry | key | value |
//! | --- | --- | --- |
//! | E1 | in, `C:c -> V:v` | the destination becomes `B:b`, the source port `c'` |
//! | E4 | out, `B:b -> C:c'` | the source becomes `V:v`, the destination port `c` |
//! | E2 | out, `C:c' -> B:b` | the source becomes `N:n`; without masquerading it stays, and the entry only shows that `c'` is taken |
//! | E3 | in, `B:b -> N:n` | the destination becomes `C:c'` |
//!
//! Invariants: E1 is written last, so that no packet is translated without its way back; a group whose
//! entries contradict each other is given up, never used.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, Port, Protocol, assert_layout};

/// At which hook an entry is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// The packet arrives: E1 and E3.
    In = 0,
    /// The packet leaves: E2 and E4.
    Out = 1,
}

/// The packets that an entry is for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowKey<const WORDS: usize> {
    /// Where they come from.
    pub source: Address<WORDS>,
    /// Where they go.
    pub destination: Address<WORDS>,
    /// The port that they come from.
    pub source_port: Port,
    /// The port that they go to.
    pub destination_port: Port,
    /// Their protocol.
    pub protocol: Protocol,
    /// The hook: a [`Direction`].
    pub direction: u8,
    /// Zero.
    pub reserved: u16,
}

assert_layout!(FlowKey<1>, 16, source: 0, destination: 4, source_port: 8, destination_port: 10, protocol: 12, direction: 13);
assert_layout!(FlowKey<4>, 40, source: 0, destination: 16, source_port: 32, destination_port: 34, protocol: 36, direction: 37);

impl<const WORDS: usize> FlowKey<WORDS> {
    /// The key with every field zero.
    pub const EMPTY: Self = Self {
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        source_port: Port::NONE,
        destination_port: Port::NONE,
        protocol: Protocol::NONE,
        direction: 0,
        reserved: 0,
    };
}

/// What happens to the packets of an entry, and what the flow is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow<const WORDS: usize> {
    /// The address that takes the place of the source or of the destination.
    pub address: Address<WORDS>,
    /// The port that goes with it.
    pub port: Port,
    /// The port of the other side.
    pub other_port: Port,
    /// Which side is replaced, and more.
    pub flags: FlowFlags,
    /// The state of the connection; not used yet.
    pub state: u8,
    /// Zero.
    pub reserved: u8,
    /// The id of the ServicePort; zero for flows that are only masqueraded.
    pub service: u32,
    /// The id of the backend; zero as above.
    pub backend: u32,
    /// The epoch of the ServicePort's record when the flow began.
    pub service_epoch: u16,
    /// The epoch of the backend when the flow began.
    pub backend_epoch: u16,
    /// When a packet last matched. Unit: ticks of 256 jiffies.
    pub last_seen: u32,
    /// The index of the interface by which the flow came; in E2, a digest of the frontend and of the client's
    /// own port, by which the entry is known as this flow's.
    pub interface: u32,
}

assert_layout!(Flow<1>, 32, port: 4, other_port: 6, flags: 8, service: 12, backend: 16, last_seen: 24, interface: 28);
assert_layout!(Flow<4>, 44, port: 16, other_port: 18, flags: 20, service: 24, backend: 28, last_seen: 36, interface: 40);

impl<const WORDS: usize> Flow<WORDS> {
    /// The value with every field zero.
    pub const EMPTY: Self = Self {
        address: Address::UNSPECIFIED,
        port: Port::NONE,
        other_port: Port::NONE,
        flags: FlowFlags::NONE,
        state: 0,
        reserved: 0,
        service: 0,
        backend: 0,
        service_epoch: 0,
        backend_epoch: 0,
        last_seen: 0,
        interface: 0,
    };
}

/// What an entry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FlowFlags(pub u16);

impl FlowFlags {
    /// The destination is replaced.
    pub const NONE: Self = Self(0);
    /// The source is replaced, not the destination: E2 and E4.
    pub const SOURCE: Self = Self(1);
    /// The packets come from the backend: E3 and E4.
    pub const REPLY: Self = Self(2);
    /// The flow is masqueraded.
    pub const MASQUERADE: Self = Self(4);
    /// E2 before its first packet: whether it is masqueraded, and from which port, is still to be settled.
    pub const PENDING: Self = Self(8);
    /// E2 of a flow that keeps its source: nothing is replaced.
    pub const KEEP: Self = Self(16);
    /// The flow moves to another mode: its packets are dropped for that moment.
    pub const HELD: Self = Self(32);

    /// Whether one of these flags is set.
    #[inline]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// These flags and those.
    #[inline]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}
