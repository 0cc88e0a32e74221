//! How do conntrack's messages look?
//!
//! Invariants: pure. An entry is deleted by the very attributes that named it in the listing (original
//! tuple with its zone, zone, id), so that nothing about it need be understood.
//! Source: `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Flow;
use crate::net::{Family, IpFamily};
use crate::sys::netfilter::CONNTRACK;
use crate::sys::netfilter::attributes::{Attrs, Writer};

/// `IPCTNL_MSG_CT_GET`
pub(super) const GET: u16 = CONNTRACK | 1;
/// `IPCTNL_MSG_CT_DELETE`
pub(super) const DELETE: u16 = CONNTRACK | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// Bit of the filter's flags: the protocol's number counts.
const FILTER_PROTO_NUM: u32 = 1 << 3;
/// `NLA_F_NESTED`, which conntrack asks for where its attributes are nested.
const NESTED: u16 = 1 << 15;
const UDP: u8 = 17;

/// The attributes of a question that makes the kernel keep flows that are not UDP to itself.
///
/// Kernel: the filter is known since 5.8 (cb8aa9a3affb); older ones do not look at the attribute.
pub(super) fn only_udp() -> Writer {
    let mut w = Writer::new();
    w.nest(CTA_TUPLE_ORIG | NESTED, |w| {
        w.nest(CTA_TUPLE_PROTO | NESTED, |w| w.attr(CTA_PROTO_NUM, &[UDP]));
    });
    w.nest(CTA_FILTER | NESTED, |w| {
        w.attr(CTA_FILTER_ORIG_FLAGS, &FILTER_PROTO_NUM.to_ne_bytes());
    });
    w
}

/// The flow with these attributes; `None` if it is of another protocol.
pub(super) fn flow<F: Family>(attrs: Attrs<'_>) -> Option<Flow<F>> {
    let mut handle = Writer::new();
    for attr in attrs.filter(|attr| [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE].contains(&attr.kind)) {
        handle.copy(attr);
    }
    Some(Flow {
        destination: tuple::<F>(attrs.inside(CTA_TUPLE_ORIG))?.destination,
        answered_by: tuple::<F>(attrs.inside(CTA_TUPLE_REPLY))?.source,
        handle: handle.as_slice().into(),
    })
}

struct Tuple<F: Family> {
    source: (F::Addr, u16),
    destination: (F::Addr, u16),
}

/// A tuple of UDP; `None` if it is of anything else.
fn tuple<F: Family>(attrs: Attrs<'_>) -> Option<Tuple<F>> {
    let (ip, proto) = (attrs.inside(CTA_TUPLE_IP), attrs.inside(CTA_TUPLE_PROTO));
    if proto.payload(CTA_PROTO_NUM) != [UDP] {
        return None;
    }
    // CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST
    let (source, destination) = match F::FAMILY {
        IpFamily::V4 => (1, 2),
        IpFamily::V6 => (3, 4),
    };
    let address = |kind| {
        let bytes = ip.payload(kind);
        let address = match F::FAMILY {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        };
        F::addr(address)
    };
    let port = |kind| Some(u16::from_be_bytes(proto.payload(kind).try_into().ok()?));
    Some(Tuple {
        source: (address(source)?, port(CTA_PROTO_SRC_PORT)?),
        destination: (address(destination)?, port(CTA_PROTO_DST_PORT)?),
    })
}
