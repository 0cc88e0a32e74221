//! How are addresses, ports and protocols stored?
//!
//! Invariant: addresses and ports lie in memory as they do in a packet, in network byte order, so that
//! neither side swaps bytes to look something up.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The length of the bitmap of addresses. Unit: words of 64 bits.
pub const BITMAP_WORDS: u32 = 1024;

/// An address of one family: one word for IPv4, four for IPv6.
///
/// Shape: `WORDS` words of four bytes, each in network byte order.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Address<const WORDS: usize>(pub [u32; WORDS]);

impl<const WORDS: usize> Address<WORDS> {
    /// The address whose bits are all zero: `0.0.0.0` or `::`.
    pub const UNSPECIFIED: Self = Self([0; WORDS]);

    /// Whether all bits are zero.
    #[inline]
    pub fn is_unspecified(&self) -> bool {
        self.0.iter().fold(0, |bits, word| bits | word) == 0
    }

    /// Whether both are the same; without a branch for each word.
    #[inline]
    pub fn is(&self, other: &Self) -> bool {
        let words = self.0.iter().zip(&other.0);
        words.fold(0, |bits, (a, b)| bits | (a ^ b)) == 0
    }

    /// The bit that stands for the address in the bitmap of [`BITMAP_WORDS`] words: the filter that spares
    /// packets of no concern the large tables. First the word, then the bit in it.
    #[inline]
    pub fn bit(&self) -> (u32, u32) {
        let mixed = self.0.iter().fold(0, |bits, word| bits ^ word);
        // The upper bits of a product with 2^32 divided by the golden ratio are well mixed.
        let hash = mixed.wrapping_mul(0x9e37_79b1) >> 16;
        (hash >> 6, hash & 63)
    }

    /// Whether the address lies in the network with this address and mask.
    #[inline]
    pub fn is_within(&self, network: &Self, mask: &Self) -> bool {
        let words = self.0.iter().zip(&network.0).zip(&mask.0);
        words.fold(0, |bits, ((a, n), m)| bits | ((a ^ n) & m)) == 0
    }
}

impl From<core::net::Ipv4Addr> for Address<1> {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self([u32::from_ne_bytes(address.octets())])
    }
}

impl From<core::net::Ipv6Addr> for Address<4> {
    fn from(address: core::net::Ipv6Addr) -> Self {
        let [a, b, c, d] = zerocopy::transmute!(address.octets());
        Self([a, b, c, d])
    }
}

impl From<Address<1>> for core::net::Ipv4Addr {
    fn from(address: Address<1>) -> Self {
        let [word] = address.0;
        Self::from(word.to_ne_bytes())
    }
}

impl From<Address<4>> for core::net::Ipv6Addr {
    fn from(address: Address<4>) -> Self {
        let octets: [u8; 16] = zerocopy::transmute!(address.0);
        Self::from(octets)
    }
}

/// A port, or zero where there is none.
///
/// Shape: two bytes in network byte order.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Port(u16);

impl Port {
    /// No port.
    pub const NONE: Self = Self(0);

    /// The port with this number.
    #[inline]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// Its number.
    #[inline]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes as they lie in memory, for checksums.
    #[inline]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// The number of a transport protocol in the IP header.
///
/// Source: the IANA registry of protocol numbers.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// No protocol: in the key that stands for all ports of an address.
    pub const NONE: Self = Self(0);
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
}
