//! How is a packet changed?

use proxy_common::{Flow, FlowFlags, Port, Protocol, Reason};

use crate::checksum::Sum;
use crate::crc32c;
use crate::family::Side;
use crate::headers::Ports;
use crate::{Checksum, Family, Headers, Packet, Tables, Verdict};

/// Gives the packet the address and the ports of its entry.
#[inline(always)]
pub(crate) fn translate<F, P, T, const WORDS: usize>(
    packet: &mut P,
    tables: &mut T,
    headers: &Headers<WORDS>,
    flow: &Flow<WORDS>,
) -> Verdict
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    if rewrite::<F, P, WORDS>(packet, headers, flow).is_none() {
        tables.count(Reason::CannotWrite);
        return Verdict::Drop;
    }
    tables.count(Reason::Translated);
    Verdict::Pass
}

#[inline(always)]
fn rewrite<F: Family<WORDS>, P: Packet, const WORDS: usize>(
    packet: &mut P,
    headers: &Headers<WORDS>,
    flow: &Flow<WORDS>,
) -> Option<()> {
    let side = if flow.flags.has(FlowFlags::SOURCE) {
        Side::Source
    } else {
        Side::Destination
    };
    let (old_address, other) = match side {
        Side::Source => (&headers.source, headers.destination_port),
        Side::Destination => (&headers.destination, headers.source_port),
    };
    let other = if flow.other_port == Port::NONE {
        other
    } else {
        flow.other_port
    };
    F::replace_address(packet, headers.l3, side, &flow.address)?;
    let ports = packet.at::<Ports>(headers.l4)?;
    let before = *ports;
    *ports = match side {
        Side::Source => Ports {
            source: flow.port,
            destination: other,
        },
        Side::Destination => Ports {
            source: other,
            destination: flow.port,
        },
    };
    let (before, after) = (word(before), word(*ports));
    if headers.protocol == Protocol::SCTP {
        return fix_crc(packet, headers, before ^ after);
    }
    let is_udp = headers.protocol == Protocol::UDP;
    let mut checksum = Checksum {
        offset: headers.l4 + if is_udp { 6 } else { 16 },
        is_pseudo: true,
        is_optional: is_udp,
        is_ipv6: F::IS_IPV6,
    };
    let change = Sum::ZERO.replace(&old_address.0, &flow.address.0);
    packet.fix_checksum(checksum, change)?;
    if before != after {
        checksum.is_pseudo = false;
        packet.fix_checksum(checksum, Sum::ZERO.minus(before).plus(after))?;
    }
    Some(())
}

/// SCTP's checksum covers the ports, but not the addresses.
#[inline(always)]
fn fix_crc<P: Packet, const WORDS: usize>(
    packet: &mut P,
    headers: &Headers<WORDS>,
    changed: u32,
) -> Option<()> {
    if changed == 0 {
        return Some(());
    }
    let crc = packet.at::<u32>(headers.l4 + 8)?;
    // Kernel: zero is what the stack leaves when the device or the next hop is to fill it in.
    if *crc != 0 {
        *crc ^= crc32c::advance(changed.to_le(), headers.l4_length).to_le();
    }
    Some(())
}

#[inline(always)]
fn word(ports: Ports) -> u32 {
    zerocopy::transmute!(ports)
}
