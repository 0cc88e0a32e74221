//! How does a probe look on the wire, and how is it recognised wherever it comes out?
//!
//! Every probe carries its number: as source port, and again where no translation reaches it.

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use proxy_daemon::net::L4Proto;
use proxy_tests::sctp;
use proxy_tests::sniff::Seen;

const MAGIC: u32 = 0x7e57_0000;
const ICMP_V4: u8 = 1;
const ICMP_V6: u8 = 58;

/// The bytes of a probe, from the IP header on.
pub(crate) fn encode(
    number: u16,
    source: IpAddr,
    destination: IpAddr,
    transport: Option<(L4Proto, u16)>,
) -> Vec<u8> {
    let mark = (MAGIC | u32::from(number)).to_be_bytes();
    let ip = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 60),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 60),
        _ => panic!("{source} and {destination} are of two families"),
    };
    let mut bytes = Vec::new();
    match transport {
        Some((L4Proto::Udp, port)) => ip.udp(number, port).write(&mut bytes, &mark),
        Some((L4Proto::Tcp, port)) => ip.tcp(number, port, 1, 1000).syn().write(&mut bytes, &mark),
        Some((L4Proto::Sctp, port)) => {
            let packet = sctp::Packet {
                source: number,
                destination: port,
                initiate_tag: MAGIC | u32::from(number),
                verification_tag: 0,
                cookie: None,
            };
            ip.write(&mut bytes, etherparse::IpNumber::SCTP, &packet.encode())
        }
        None if source.is_ipv4() => ip.icmpv4_echo_request(number, 1).write(&mut bytes, &mark),
        None => ip.icmpv6_echo_request(number, 1).write(&mut bytes, &mark),
    }
    .expect("a vector takes every packet");
    bytes
}

/// The fate of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It came out of an interface.
    Left { source: IpAddr, to: SocketAddr },
    /// The node itself received it.
    Delivered { source: IpAddr, port: u16 },
    /// Its sender received an ICMP port unreachable.
    Refused,
}

/// The probe that a captured packet is, or is about.
pub(crate) fn recognise(seen: &Seen) -> Option<(u16, Fate)> {
    let at = |offset: usize| {
        let bytes = seen.payload.get(offset..offset + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    if let Some(number) = refused(seen) {
        return Some((number, Fate::Refused));
    }
    let is_icmp = seen.protocol == ICMP_V4 || seen.protocol == ICMP_V6;
    let number = if is_icmp {
        let is_request = matches!(seen.payload.first(), Some(8 | 128));
        is_request.then(|| at(4)).flatten()?
    } else {
        number_of(seen.protocol, &seen.payload)?
    };
    let port = if is_icmp { 0 } else { seen.destination_port };
    let to = SocketAddr::new(seen.destination, port);
    Some((
        number,
        Fate::Left {
            source: seen.source,
            to,
        },
    ))
}

/// The number that a transport segment carries where no translation reaches it.
pub(crate) fn number_of(protocol: u8, segment: &[u8]) -> Option<u16> {
    let start = match L4Proto::from_number(protocol)? {
        L4Proto::Udp => 8,
        L4Proto::Tcp => usize::from(segment.get(12)? >> 4) * 4,
        // A wrong checksum makes it no packet at all.
        L4Proto::Sctp => return number(sctp::Packet::decode(segment)?.initiate_tag),
    };
    let mark: [u8; 4] = segment.get(start..start + 4)?.try_into().ok()?;
    number(u32::from_be_bytes(mark))
}

fn number(mark: u32) -> Option<u16> {
    (mark & 0xffff_0000 == MAGIC).then_some((mark & 0xffff) as u16)
}

/// The number of the probe that a port-unreachable quotes.
pub(crate) fn refused(seen: &Seen) -> Option<u16> {
    let quoted = seen.payload.get(8..)?;
    let (header, protocol) = match (seen.protocol, seen.payload.first()?, seen.payload.get(1)?) {
        (ICMP_V4, 3, 3) => (usize::from(quoted.first()? & 15) * 4, *quoted.get(9)?),
        (ICMP_V6, 1, 4) => (40, *quoted.get(6)?),
        _ => return None,
    };
    let at = if protocol == ICMP_V4 || protocol == ICMP_V6 {
        header + 4
    } else {
        header
    };
    let bytes = quoted.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}
