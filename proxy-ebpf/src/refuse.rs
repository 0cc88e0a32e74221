//! How is a client told at once that nobody answers?
//!
//! With an ICMP error "port unreachable" from this node's address on the interface that the packet came by
//! (REJ-1), made from the packet itself. It quotes the packet's headers and no more, so that it is no longer
//! than what RFC 1812 and RFC 4443 ask for, and a bounded loop can sum it.

use proxy_common::{Address, Reason};

use crate::checksum::Sum;
use crate::tables::own_address;
use crate::{Family, Packet, Scratch, Tables, Verdict};

/// The longest quote. Unit: words of four bytes.
pub(crate) const QUOTE_WORDS: usize = 32;
/// How much of the transport header is quoted: up to the tag that tells SCTP whose INIT it was. Unit: bytes.
const TRANSPORT: u32 = 20;
/// The length of an Ethernet header. Unit: bytes.
const ETHERNET: u32 = 14;

/// Turns the packet into a refusal of itself.
#[inline(never)]
pub(crate) fn refuse<F, P, T, const WORDS: usize>(
    packet: &mut P,
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
) -> Verdict
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    if !tables.may_refuse() {
        tables.count(Reason::TooManyRefusals);
        return Verdict::Drop;
    }
    let Some(source) = own_address::<F, P, T, WORDS>(packet, tables) else {
        tables.count(Reason::NoSourceAddress);
        return Verdict::Drop;
    };
    if rewrite::<F, P, WORDS>(packet, scratch, source).is_none() {
        tables.count(Reason::CannotRefuse);
        return Verdict::Drop;
    }
    Verdict::Bounce
}

#[inline(always)]
fn rewrite<F: Family<WORDS>, P: Packet, const WORDS: usize>(
    packet: &mut P,
    scratch: &mut Scratch<WORDS>,
    source: Address<WORDS>,
) -> Option<()> {
    let headers = &scratch.headers;
    let (l3, client) = (headers.l3, headers.source);
    let transport = headers.l4_length.min(TRANSPORT) & !3;
    let words = (headers.l4 - l3 + transport) / 4;
    if !F::is_unicast(&client) || words as usize > QUOTE_WORDS {
        return None;
    }
    let mut sum = Sum::ZERO;
    for (at, quoted) in (0..).zip(&mut scratch.quote) {
        if at >= words {
            break;
        }
        *quoted = *packet.at::<u32>(l3 + at * 4)?;
        sum = sum.plus(*quoted);
    }
    let quote_at = l3 + F::HEADER + 8;
    packet.resize(quote_at + words * 4)?;
    if l3 == ETHERNET {
        let [to, from] = packet.at::<[[u8; 6]; 2]>(0)?;
        // Sent to many: an answer from each of them would be a flood.
        let [first, ..] = *to;
        if first & 1 == 1 {
            return None;
        }
        core::mem::swap(to, from);
    }
    for (at, quoted) in (0..).zip(&scratch.quote) {
        if at >= words {
            break;
        }
        *packet.at::<u32>(quote_at + at * 4)? = *quoted;
    }
    let length = u16::try_from(words * 4).ok()?;
    F::write_unreachable(packet, l3, &[source, client], length, sum)
}
