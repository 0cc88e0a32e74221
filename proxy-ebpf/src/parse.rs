//! What is in a packet?

use proxy_common::{Address, Direction, FlowKey, Port, Protocol, Reason};

use crate::headers::Ports;
use crate::{Family, Packet};

/// What the packet code needs of the headers.
#[derive(Clone, Copy, Debug)]
pub struct Headers<const WORDS: usize> {
    pub(crate) source: Address<WORDS>,
    pub(crate) destination: Address<WORDS>,
    pub(crate) source_port: Port,
    pub(crate) destination_port: Port,
    pub(crate) protocol: Protocol,
    /// Whether the packet may be the first of its flow.
    pub(crate) opens: bool,
    /// Where the network header lies. Unit: bytes from the packet's first.
    pub(crate) l3: u32,
    /// Where the transport header lies. Unit: as above.
    pub(crate) l4: u32,
    /// The length of the transport header and all behind it. Unit: bytes.
    pub(crate) l4_length: u32,
}

impl<const WORDS: usize> Headers<WORDS> {
    /// All zero.
    pub(crate) const EMPTY: Self = Self {
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        source_port: Port::NONE,
        destination_port: Port::NONE,
        protocol: Protocol::NONE,
        opens: false,
        l3: 0,
        l4: 0,
        l4_length: 0,
    };

    /// The key of the flow that it belongs to at this hook.
    #[inline]
    pub(crate) fn key(&self, direction: Direction) -> FlowKey<WORDS> {
        FlowKey {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
            direction: direction as u8,
            reserved: 0,
        }
    }
}

/// How far a packet was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// TCP, UDP or SCTP, with its ports.
    Ports,
    /// Another protocol.
    Portless,
    /// An ICMP error, which belongs to another packet.
    IcmpError,
    /// Nothing that can be translated.
    Other(Reason),
}

/// Reads the headers from the network layer on, which begins `l3` bytes into the packet.
#[inline(always)]
pub(crate) fn parse<F: Family<WORDS>, P: Packet, const WORDS: usize>(
    packet: &mut P,
    l3: u32,
    headers: &mut Headers<WORDS>,
) -> Content {
    headers.l3 = l3;
    headers.source_port = Port::NONE;
    headers.destination_port = Port::NONE;
    headers.opens = true;
    match F::parse_network(packet, headers) {
        Ok(()) => {}
        Err(reason) => return Content::Other(reason),
    }
    match headers.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
            parse_transport(packet, headers).unwrap_or(Content::Other(Reason::Malformed))
        }
        protocol if protocol == F::ICMP => {
            let Some([kind, ..]) = packet.at::<[u8; 8]>(headers.l4).copied() else {
                return Content::Other(Reason::Malformed);
            };
            if F::is_icmp_error(kind) {
                Content::IcmpError
            } else {
                Content::Portless
            }
        }
        _ => Content::Portless,
    }
}

#[inline(always)]
fn parse_transport<P: Packet, const WORDS: usize>(
    packet: &mut P,
    headers: &mut Headers<WORDS>,
) -> Option<Content> {
    // All that is read or written later must be there, or the packet would be changed in part.
    match headers.protocol {
        Protocol::TCP => {
            const FIN_SYN_RST_ACK: u8 = 0b1_0111;
            const SYN: u8 = 0b0010;
            let [.., flags, _, _, _, _, _, _] = *transport::<P, 20, WORDS>(packet, headers)?;
            headers.opens = flags & FIN_SYN_RST_ACK == SYN;
        }
        Protocol::SCTP => {
            const INIT: u8 = 1;
            transport::<P, 12, WORDS>(packet, headers)?;
            // A packet without a chunk opens nothing.
            let chunk = transport::<P, 16, WORDS>(packet, headers);
            headers.opens = chunk.is_some_and(|[.., kind, _, _, _]| *kind == INIT);
        }
        _ => {
            transport::<P, 8, WORDS>(packet, headers)?;
        }
    }
    let ports = packet.at::<Ports>(headers.l4)?;
    headers.source_port = ports.source;
    headers.destination_port = ports.destination;
    Some(Content::Ports)
}

/// The first bytes of the transport header; `None` if the packet ends before, or its lengths say so.
#[inline(always)]
fn transport<'a, P: Packet, const LENGTH: usize, const WORDS: usize>(
    packet: &'a mut P,
    headers: &Headers<WORDS>,
) -> Option<&'a mut [u8; LENGTH]> {
    if (headers.l4_length as usize) < LENGTH {
        return None;
    }
    packet.at(headers.l4)
}
