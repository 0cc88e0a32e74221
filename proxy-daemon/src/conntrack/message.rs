//! How do ctnetlink's messages look?
//!
//! Invariants: pure; what the kernel sends is never trusted to have the length it says. An entry is
//! deleted by the very attributes that named it in the listing (original tuple with its zone, zone, id),
//! so that nothing about it need be understood. Source: `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Flow;
use crate::net::{Family, IpFamily};

const HEADER: usize = 16;
const NFGENMSG: usize = 4;
const CTNETLINK: u16 = 1 << 8;
const CT_NEW: u16 = CTNETLINK;
const CT_GET: u16 = CTNETLINK | 1;
const CT_DELETE: u16 = CTNETLINK | 2;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const F_REQUEST: u16 = 1;
const F_ACK: u16 = 4;
const F_DUMP: u16 = 0x300;
const F_DUMP_INTR: u16 = 0x10;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

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
const FILTER_PROTO_NUM: u32 = 1 << 3;
const UDP: u8 = 17;

/// One message of the kernel's answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<F: Family> {
    /// A UDP flow.
    Flow(Flow<F>),
    /// Something else, such as a flow of another protocol.
    Other,
    /// The end, with an error number that is 0 if all went well.
    Done(i32),
    /// The table changed under the listing, which may lack entries.
    Interrupted,
}

/// Asks for every flow of the family; with `filter`, the kernel keeps those that are not UDP to itself.
///
/// Kernel: the filter is known since 5.8 (cb8aa9a3affb); older ones do not look at the attribute.
pub(super) fn list<F: Family>(filter: bool) -> Vec<u8> {
    let mut message = header::<F>(CT_GET, F_REQUEST | F_DUMP);
    if filter {
        nest(&mut message, CTA_TUPLE_ORIG, |tuple| {
            nest(tuple, CTA_TUPLE_PROTO, |proto| {
                attribute(proto, CTA_PROTO_NUM, &[UDP]);
            });
        });
        nest(&mut message, CTA_FILTER, |filter| {
            attribute(
                filter,
                CTA_FILTER_ORIG_FLAGS,
                &FILTER_PROTO_NUM.to_ne_bytes(),
            );
        });
    }
    finish(message)
}

/// Asks to forget a flow.
pub(super) fn delete<F: Family>(flow: &Flow<F>) -> Vec<u8> {
    let mut message = header::<F>(CT_DELETE, F_REQUEST | F_ACK);
    message.extend_from_slice(&flow.handle);
    finish(message)
}

/// The messages of one datagram.
pub(super) fn answers<F: Family>(datagram: &[u8]) -> impl Iterator<Item = Answer<F>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let message = rest
            .get(..length)
            .filter(|message| message.len() >= HEADER)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(answer(message))
    })
    .flatten()
}

fn answer<F: Family>(message: &[u8]) -> Vec<Answer<F>> {
    let (Some(kind), Some(flags)) = (u16_at(message, 4), u16_at(message, 6)) else {
        return Vec::new();
    };
    let body = message.get(HEADER..).unwrap_or_default();
    let content = match kind {
        NLMSG_DONE | NLMSG_ERROR => {
            let number = u32_at(body, 0).map_or(0, u32::cast_signed);
            Answer::Done(number.saturating_neg())
        }
        CT_NEW => body
            .get(NFGENMSG..)
            .and_then(flow)
            .map_or(Answer::Other, Answer::Flow),
        _ => Answer::Other,
    };
    if flags & F_DUMP_INTR != 0 {
        vec![Answer::Interrupted, content]
    } else {
        vec![content]
    }
}

fn flow<F: Family>(attributes: &[u8]) -> Option<Flow<F>> {
    let mut original = None;
    let mut reply = None;
    let mut handle = Vec::new();
    for (kind, value, whole) in Attributes(attributes) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(tuple::<F>(value)?),
            CTA_TUPLE_REPLY => reply = Some(tuple::<F>(value)?),
            CTA_ID | CTA_ZONE => {}
            _ => continue,
        }
        if kind != CTA_TUPLE_REPLY {
            handle.extend_from_slice(whole);
            handle.resize(handle.len().next_multiple_of(4), 0);
        }
    }
    Some(Flow {
        destination: original?.destination,
        answered_by: reply?.source,
        handle: handle.into(),
    })
}

#[derive(Clone, Copy)]
struct Tuple<F: Family> {
    source: (F::Addr, u16),
    destination: (F::Addr, u16),
}

/// A tuple of UDP; `None` if it is of anything else.
fn tuple<F: Family>(attributes: &[u8]) -> Option<Tuple<F>> {
    let find = |attributes, wanted| {
        Attributes(attributes)
            .find(|(kind, ..)| *kind == wanted)
            .map(|(_, value, _)| value)
    };
    let ip = find(attributes, CTA_TUPLE_IP)?;
    let proto = find(attributes, CTA_TUPLE_PROTO)?;
    if find(proto, CTA_PROTO_NUM)? != [UDP] {
        return None;
    }
    let (source, destination) = match F::FAMILY {
        IpFamily::V4 => (1, 2),
        IpFamily::V6 => (3, 4),
    };
    let address = |kind| {
        let bytes = find(ip, kind)?;
        let address = match F::FAMILY {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        };
        F::addr(address)
    };
    let port = |kind| Some(u16::from_be_bytes(find(proto, kind)?.try_into().ok()?));
    Some(Tuple {
        source: (address(source)?, port(CTA_PROTO_SRC_PORT)?),
        destination: (address(destination)?, port(CTA_PROTO_DST_PORT)?),
    })
}

/// The attributes of a message: type, value, and all bytes of each.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & TYPE_MASK;
        let whole = self.0.get(..length)?;
        let value = whole.get(4..)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value, whole))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn header<F: Family>(kind: u16, flags: u16) -> Vec<u8> {
    // AF_INET and AF_INET6.
    let family = match F::FAMILY {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    };
    let mut message = Vec::with_capacity(128);
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[family, 0, 0, 0]);
    message
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn nest(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    attribute(message, kind | NESTED, &inner);
}

fn finish(mut message: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    if let Some(field) = message.get_mut(..4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
    message
}
