//! What differs between IPv4 and IPv6?

use proxy_common::{Address, Interface, Protocol, Reason};

use crate::checksum::Sum;
use crate::headers::{Extension, Icmp, Ipv4, Ipv6};
use crate::{Headers, Packet};

/// An address family with `WORDS` words in an address.
pub trait Family<const WORDS: usize> {
    /// Its `EtherType`. Byte order: the host's.
    const ETHER_TYPE: u16;
    /// The protocol of its error messages.
    const ICMP: Protocol;
    /// Whether it is IPv6.
    const IS_IPV6: bool;
    /// The length of its header without options. Unit: bytes.
    const HEADER: u32;

    /// Reads the network header at `headers.l3`.
    ///
    /// Kernel: a length of zero stands for one that 16 bits cannot hold (BIG TCP).
    ///
    /// # Errors
    ///
    /// The packet cannot be translated, for this reason.
    fn parse_network<P: Packet>(packet: &mut P, headers: &mut Headers<WORDS>)
    -> Result<(), Reason>;

    /// Whether one host alone has the address, so that it may be answered.
    fn is_unicast(address: &Address<WORDS>) -> bool;

    /// Whether an ICMP message of this type is an error.
    fn is_icmp_error(kind: u8) -> bool;

    /// Replaces the source or the destination address.
    fn replace_address<P: Packet>(
        packet: &mut P,
        l3: u32,
        side: Side,
        address: &Address<WORDS>,
    ) -> Option<()>;

    /// This node's address on an interface.
    fn source_of(interface: &Interface) -> Address<WORDS>;

    /// Writes the headers of "port unreachable" for `length` quoted bytes, of which this is the sum.
    fn write_unreachable<P: Packet>(
        packet: &mut P,
        l3: u32,
        addresses: &[Address<WORDS>; 2],
        length: u16,
        quoted: Sum,
    ) -> Option<()>;
}

/// One of the two ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;

impl Family<1> for V4 {
    const ETHER_TYPE: u16 = 0x0800;
    const ICMP: Protocol = Protocol::ICMP;
    const IS_IPV6: bool = false;
    const HEADER: u32 = 20;

    #[inline(always)]
    fn parse_network<P: Packet>(packet: &mut P, headers: &mut Headers<1>) -> Result<(), Reason> {
        let header = packet.at::<Ipv4>(headers.l3).ok_or(Reason::Malformed)?;
        headers.source = header.source;
        headers.destination = header.destination;
        headers.protocol = header.protocol;
        let length = u32::from(header.version_length & 15) * 4;
        let mut total = u32::from(u16::from_be(header.raw_length));
        // More fragments, or not the first one.
        if header.raw_fragment & 0x3fff_u16.to_be() != 0 {
            return Err(Reason::Fragment);
        }
        if total == 0 {
            total = packet.length().saturating_sub(headers.l3);
        }
        if length < Self::HEADER || total < length {
            return Err(Reason::Malformed);
        }
        headers.l4 = headers.l3 + length;
        headers.l4_length = total - length;
        Ok(())
    }

    #[inline(always)]
    fn is_unicast(address: &Address<1>) -> bool {
        let [word] = address.0;
        let [first, ..] = word.to_ne_bytes();
        first != 0 && first < 224
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 3 | 4 | 5 | 11 | 12)
    }

    #[inline(always)]
    fn replace_address<P: Packet>(
        packet: &mut P,
        l3: u32,
        side: Side,
        address: &Address<1>,
    ) -> Option<()> {
        let header = packet.at::<Ipv4>(l3)?;
        let field = match side {
            Side::Source => &mut header.source,
            Side::Destination => &mut header.destination,
        };
        let change = Sum::ZERO.replace(&field.0, &address.0);
        *field = *address;
        header.checksum = change.applied_to(header.checksum);
        Some(())
    }

    #[inline(always)]
    fn source_of(interface: &Interface) -> Address<1> {
        interface.source_v4
    }

    #[inline(always)]
    fn write_unreachable<P: Packet>(
        packet: &mut P,
        l3: u32,
        [source, destination]: &[Address<1>; 2],
        length: u16,
        quoted: Sum,
    ) -> Option<()> {
        let header = packet.at::<Ipv4>(l3)?;
        *header = Ipv4 {
            version_length: 0x45,
            traffic_class: 0,
            raw_length: (20 + 8 + length).to_be(),
            raw_id: 0,
            raw_fragment: 0,
            ttl: 64,
            protocol: Protocol::ICMP,
            checksum: 0,
            source: *source,
            destination: *destination,
        };
        let words: [u32; 5] = zerocopy::transmute!(*header);
        header.checksum = words
            .iter()
            .fold(Sum::ZERO, |sum, word| sum.plus(*word))
            .checksum();
        let (kind, code) = (3, 3);
        let icmp = packet.at::<Icmp>(l3 + Self::HEADER)?;
        *icmp = Icmp {
            kind,
            code,
            checksum: 0,
            unused: 0,
        };
        let words: [u32; 2] = zerocopy::transmute!(*icmp);
        icmp.checksum = words
            .iter()
            .fold(quoted, |sum, word| sum.plus(*word))
            .checksum();
        Some(())
    }
}

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

/// How many extension headers are read before a packet passes unread.
const EXTENSIONS: u32 = 6;

impl Family<4> for V6 {
    const ETHER_TYPE: u16 = 0x86dd;
    const ICMP: Protocol = Protocol::ICMPV6;
    const IS_IPV6: bool = true;
    const HEADER: u32 = 40;

    #[inline(always)]
    fn parse_network<P: Packet>(packet: &mut P, headers: &mut Headers<4>) -> Result<(), Reason> {
        const HOP_BY_HOP: u8 = 0;
        const FRAGMENT: u8 = 44;
        const ROUTING: u8 = 43;
        const DESTINATION: u8 = 60;
        let header = packet.at::<Ipv6>(headers.l3).ok_or(Reason::Malformed)?;
        headers.source = header.source;
        headers.destination = header.destination;
        let mut payload = u32::from(u16::from_be(header.raw_payload_length));
        let (mut next, mut skipped) = (header.next_header, 0);
        if payload == 0 {
            payload = packet.length().saturating_sub(headers.l3 + Self::HEADER);
        }
        for _ in 0..EXTENSIONS {
            match next {
                HOP_BY_HOP | DESTINATION => {}
                // The checksum covers the last address of the route, which is not the one in the header.
                ROUTING => return Err(Reason::Malformed),
                FRAGMENT => return Err(Reason::Fragment),
                _ => {
                    headers.protocol = Protocol(next);
                    headers.l4 = headers.l3 + Self::HEADER + skipped;
                    headers.l4_length = payload.checked_sub(skipped).ok_or(Reason::Malformed)?;
                    return Ok(());
                }
            }
            let at = headers.l3 + Self::HEADER + skipped;
            let extension = packet.at::<Extension>(at).ok_or(Reason::Malformed)?;
            // The length counts units of 8 bytes, without the first.
            skipped += 8 + u32::from(extension.length) * 8;
            next = extension.next_header;
            if skipped > MAX_EXTENSIONS {
                return Err(Reason::Malformed);
            }
        }
        Err(Reason::Malformed)
    }

    #[inline(always)]
    fn is_unicast(address: &Address<4>) -> bool {
        let [word, ..] = address.0;
        let [first, ..] = word.to_ne_bytes();
        first != 0xff && !address.is_unspecified()
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        kind < 128
    }

    #[inline(always)]
    fn replace_address<P: Packet>(
        packet: &mut P,
        l3: u32,
        side: Side,
        address: &Address<4>,
    ) -> Option<()> {
        let header = packet.at::<Ipv6>(l3)?;
        match side {
            Side::Source => header.source = *address,
            Side::Destination => header.destination = *address,
        }
        Some(())
    }

    #[inline(always)]
    fn source_of(interface: &Interface) -> Address<4> {
        interface.source_v6
    }

    #[inline(always)]
    fn write_unreachable<P: Packet>(
        packet: &mut P,
        l3: u32,
        [source, destination]: &[Address<4>; 2],
        length: u16,
        quoted: Sum,
    ) -> Option<()> {
        let payload = 8 + length;
        *packet.at::<Ipv6>(l3)? = Ipv6 {
            raw_version: 0x6000_0000_u32.to_be(),
            raw_payload_length: payload.to_be(),
            next_header: Protocol::ICMPV6.0,
            hop_limit: 64,
            source: *source,
            destination: *destination,
        };
        let (kind, code) = (1, 4);
        let icmp = packet.at::<Icmp>(l3 + Self::HEADER)?;
        *icmp = Icmp {
            kind,
            code,
            checksum: 0,
            unused: 0,
        };
        let words: [u32; 2] = zerocopy::transmute!(*icmp);
        let pseudo = [
            u32::from(payload).to_be(),
            u32::from(Protocol::ICMPV6.0).to_be(),
        ];
        let all = source
            .0
            .iter()
            .chain(&destination.0)
            .chain(&pseudo)
            .chain(&words);
        icmp.checksum = all.fold(quoted, |sum, word| sum.plus(*word)).checksum();
        Some(())
    }
}

/// How long extension headers may be together. Unit: bytes.
const MAX_EXTENSIONS: u32 = 256;
