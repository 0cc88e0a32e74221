//! What do the programs know of Services?
//!
//! ```text
//! frontend ─► ServicePort id ─► record ─► range of slots ─► backend id ─► backend
//! ```
//! Invariants: whatever a record refers to is written before the ServicePort's id leads to the record, and
//! stays until no packet can still be using it; so one store makes a change current.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Address, Port, Protocol, assert_layout};

/// What a packet must be addressed to.
///
/// A NodePort has the unspecified address; a live ClusterIP has an entry with no port and no protocol.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FrontendKey<const WORDS: usize> {
    /// The destination address.
    pub address: Address<WORDS>,
    /// The destination port.
    pub port: Port,
    /// The protocol.
    pub protocol: Protocol,
    /// Zero.
    pub reserved: u8,
}

assert_layout!(FrontendKey<1>, 8, port: 4, protocol: 6);
assert_layout!(FrontendKey<4>, 20, port: 16, protocol: 18);

/// Which ServicePort a frontend is of, and who may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Frontend {
    /// The id of the ServicePort.
    pub service: u32,
    /// The id of the set of source ranges; zero if every source is allowed.
    pub source_ranges: u32,
    /// Why the frontend exists.
    pub exposure: Exposure,
    /// Zero.
    pub reserved: [u8; 3],
}

assert_layout!(Frontend, 12, source_ranges: 4, exposure: 8);

impl Frontend {
    /// The value with every field zero.
    pub const EMPTY: Self = Self {
        service: 0,
        source_ranges: 0,
        exposure: Exposure::INTERNAL,
        reserved: [0; 3],
    };
}

/// Why a frontend exists; it tells which routes of the record count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Exposure(pub u8);

impl Exposure {
    /// A ClusterIP and its port: the internal routes.
    pub const INTERNAL: Self = Self(0);
    /// An external IP, a LoadBalancer address or a NodePort: the external routes.
    pub const EXTERNAL: Self = Self(1);
    /// All other ports of a live ClusterIP: they are refused (REJ-5).
    pub const UNKNOWN_PORT: Self = Self(2);
}

/// All that makes a ServicePort current.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// The slots of the set C of the contract.
    pub cluster: SetRange,
    /// The slots of the set L of the contract.
    pub local: SetRange,
    /// How long a client keeps its backend; zero if it does not. Unit: seconds.
    pub affinity: u32,
    /// The routes of packets to the ClusterIP.
    pub internal: Routes,
    /// The routes of packets to all other frontends.
    pub external: Routes,
    /// Grows each time that the ServicePort loses its last live endpoint.
    pub epoch: u16,
}

assert_layout!(Record, 28, cluster: 0, local: 8, affinity: 16, internal: 20, external: 23, epoch: 26);

/// Consecutive slots, each of which holds the id of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetRange {
    /// The index of the first.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// Where packets go, by whom they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Routes {
    /// From a pod of this node.
    pub pod: Route,
    /// From an address of this node.
    pub host: Route,
    /// From everybody else.
    pub extn: Route,
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Route(pub u8);

impl Route {
    /// To one of the set C.
    pub const CLUSTER: Self = Self(0);
    /// To one of the set L.
    pub const LOCAL: Self = Self(1);
    /// Nowhere: they are refused.
    pub const REJECT: Self = Self(2);
    /// Nowhere: they are dropped without an answer.
    pub const DROP: Self = Self(3);
    /// Added to a set: the source becomes this node's address.
    const MASQUERADE: u8 = 0x80;

    /// The same set, with the source replaced.
    pub const fn masqueraded(self) -> Self {
        Self(self.0 | Self::MASQUERADE)
    }

    /// Whether the source is replaced.
    #[inline]
    pub const fn masquerades(self) -> bool {
        self.0 & Self::MASQUERADE != 0
    }

    /// The route without what is said of the source.
    #[inline]
    pub const fn to(self) -> Self {
        Self(self.0 & !Self::MASQUERADE)
    }
}

/// A backend of one ServicePort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend<const WORDS: usize> {
    /// Its address.
    pub address: Address<WORDS>,
    /// Its port.
    pub port: Port,
    /// Grows each time that the id is given to another endpoint, or the endpoint comes back.
    pub epoch: u16,
    /// The id of the ServicePort.
    pub service: u32,
    /// Whether the endpoint may keep its flows (CT-2): 0 or 1.
    pub live: u32,
}

assert_layout!(Backend<1>, 16, port: 4, epoch: 6, service: 8, live: 12);
assert_layout!(Backend<4>, 28, port: 16, epoch: 18, service: 20, live: 24);

/// What a source is looked for by in a set of ranges: the longest prefix that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SourceRangeKey<const WORDS: usize> {
    /// The id of the set. Byte order: the network's, as prefixes are compared from the first byte on.
    pub raw_set: u32,
    /// The address.
    pub address: Address<WORDS>,
}

assert_layout!(SourceRangeKey<1>, 8, address: 4);
assert_layout!(SourceRangeKey<4>, 20, address: 4);
