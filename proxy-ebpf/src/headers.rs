//! How do the headers of the network and transport layers lie in a packet?
//!
//! Source: RFC 791, 8200, 4443, 792, 9293, 768, 9260. Byte order: fields named `raw` are as in the packet.

use proxy_common::{Address, Port, Protocol};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// IPv4, without options.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Ipv4 {
    pub(crate) version_length: u8,
    pub(crate) traffic_class: u8,
    pub(crate) raw_length: u16,
    pub(crate) raw_id: u16,
    pub(crate) raw_fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: Protocol,
    pub(crate) checksum: u16,
    pub(crate) source: Address<1>,
    pub(crate) destination: Address<1>,
}

/// IPv6, without extension headers.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Ipv6 {
    pub(crate) raw_version: u32,
    pub(crate) raw_payload_length: u16,
    pub(crate) next_header: u8,
    pub(crate) hop_limit: u8,
    pub(crate) source: Address<4>,
    pub(crate) destination: Address<4>,
}

/// The first bytes of an IPv6 extension header.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Extension {
    pub(crate) next_header: u8,
    pub(crate) length: u8,
}

/// The ports of TCP, UDP and SCTP.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Ports {
    pub(crate) source: Port,
    pub(crate) destination: Port,
}

/// ICMP of both families, as far as an error needs it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Icmp {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) checksum: u16,
    pub(crate) unused: u32,
}
