//! Which bits of a packet does a branch of the tree look at?
//!
//! Invariant: the order of [`Bits`] is the order of their bits, so that what a prefix covers is a range.

use std::net::IpAddr;

use super::chain::{Header, ports};
use crate::forwarding::{FrontendAddress, FrontendKey};
use crate::net::{Family, L4Proto};

/// Bits of an address, then two of the protocol, then those of the port.
const PROTOCOL_AT: u32 = 128;
const PORT_AT: u32 = PROTOCOL_AT + 2;
/// How many bits there are.
const LEN: u32 = PORT_AT + 16;
/// A branch looks at this many bits, so that a chain has at most four branches.
const STRIDE: u32 = 2;

/// A frontend as bits; an address stands to the left, and a NodePort has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bits {
    address: u128,
    /// Protocol and port, to the left too.
    rest: u32,
}

impl Bits {
    /// The bits of a frontend.
    pub(crate) fn of<F: Family>(key: &FrontendKey<F>) -> Self {
        let FrontendKey {
            address,
            protocol,
            port,
        } = *key;
        let address = match address {
            FrontendAddress::Node => 0,
            FrontendAddress::Vip(address) => match address.into() {
                IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
                IpAddr::V6(address) => address.to_bits(),
            },
        };
        let protocol: u32 = match protocol {
            L4Proto::Tcp => 1,
            L4Proto::Udp => 2,
            L4Proto::Sctp => 3,
        };
        Self {
            address,
            rest: protocol << 30 | u32::from(port.get()) << 14,
        }
    }

    /// The number of bits in which two agree.
    fn common(self, other: Self) -> u32 {
        let address = (self.address ^ other.address).leading_zeros();
        if address < PROTOCOL_AT {
            address
        } else {
            (PROTOCOL_AT + (self.rest ^ other.rest).leading_zeros()).min(LEN)
        }
    }
}

/// All frontends whose first bits are these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Prefix {
    /// Unit: bits.
    len: u32,
    /// The other bits are 0.
    first: Bits,
}

impl Prefix {
    /// All frontends.
    pub(crate) const ALL: Self = Self {
        len: 0,
        first: Bits {
            address: 0,
            rest: 0,
        },
    };

    fn new(of: Bits, len: u32) -> Self {
        let (address, rest) = masks(len);
        Self {
            len,
            first: Bits {
                address: of.address & address,
                rest: of.rest & rest,
            },
        }
    }

    /// The longest that a branch can look at and that covers both.
    pub(crate) fn covering(first: Bits, last: Bits) -> Self {
        let common = first.common(last);
        Self::new(first, common - common % STRIDE)
    }

    /// Its branches, in order.
    pub(crate) fn branches(self) -> impl Iterator<Item = Self> {
        let len = self.len + STRIDE;
        (0..1_u128 << STRIDE)
            .filter(move |_| len <= LEN)
            .map(move |branch| {
                let mut first = self.first;
                if len <= PROTOCOL_AT {
                    first.address |= branch << (PROTOCOL_AT - len);
                } else {
                    first.rest |= u32::try_from(branch).unwrap_or(0) << (32 - (len - PROTOCOL_AT));
                }
                Self { len, first }
            })
    }

    /// First and last of what it covers.
    pub(crate) const fn range(self) -> (Bits, Bits) {
        let (address, rest) = masks(self.len);
        let last = Bits {
            address: self.first.address | !address,
            rest: self.first.rest | !rest,
        };
        (self.first, last)
    }

    /// Whether it covers these bits.
    pub(crate) fn covers(self, bits: Bits) -> bool {
        Self::new(bits, self.len) == self
    }

    /// What packets to frontends under it have in common.
    pub(crate) fn header<F: Family>(self, has_address: bool) -> Header {
        let mut header = Header::default();
        let address_bits = u32::try_from(F::ADDR_LEN * 8).unwrap_or(PROTOCOL_AT);
        let len = self.len.min(address_bits);
        if has_address && len > 0 {
            let address = match F::ADDR_LEN {
                4 => IpAddr::V4(u32::try_from(self.first.address >> 96).unwrap_or(0).into()),
                _ => IpAddr::V6(self.first.address.into()),
            };
            header.destination = format!("-d {address}/{len}");
        }
        let protocol = match self.first.rest >> 30 {
            1 => L4Proto::Tcp,
            2 => L4Proto::Udp,
            _ => L4Proto::Sctp,
        };
        if self.len > PORT_AT {
            let (first, last) = self.range();
            let port = |bits: Bits| u16::try_from(bits.rest >> 14 & 0xffff).unwrap_or(0);
            header.transport = ports(protocol, port(first), port(last));
        } else if self.len > PROTOCOL_AT {
            header.transport = format!("-p {protocol}");
        }
        header
    }

    /// A text that is its own.
    pub(crate) fn text(self) -> String {
        let Bits { address, rest } = self.first;
        format!("{address:x}/{rest:x}/{}", self.len)
    }
}

/// The bits that a prefix of this length fixes.
const fn masks(len: u32) -> (u128, u32) {
    let address = match len {
        0 => 0,
        1..PROTOCOL_AT => !(u128::MAX >> len),
        _ => u128::MAX,
    };
    let rest = match len.saturating_sub(PROTOCOL_AT) {
        0 => 0,
        n @ 1..32 => !(u32::MAX >> n),
        _ => u32::MAX,
    };
    (address, rest)
}
