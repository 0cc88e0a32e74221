//! What happens to a packet that leaves?
//!
//! E4: from a backend to a client. E2: from a client to a backend, masqueraded or not.

use proxy_common::{Address, Direction, Flow, FlowFlags, FrontendKey, Port, Protocol, Reason};

use crate::masquerade::{restore_reply, settle};
use crate::parse::{Content, parse};
use crate::translate::translate;
use crate::{Family, Packet, Scratch, Tables, Verdict};

/// Decides about a packet that leaves, and translates it.
///
/// `l3` is where the network header begins, in bytes from the packet's first.
#[inline(always)]
pub fn egress<F, P, T, const WORDS: usize>(
    packet: &mut P,
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
    l3: u32,
) -> Verdict
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    let is_marked = take_mark(packet, tables);
    match parse::<F, P, WORDS>(packet, l3, &mut scratch.headers) {
        Content::Ports | Content::Portless => {}
        Content::IcmpError => return Verdict::Pass,
        Content::Other(reason) => {
            tables.count(reason);
            return Verdict::Pass;
        }
    }
    let headers = &scratch.headers;
    if !is_marked
        && !tables.may_concern(&headers.source)
        && !tables.may_concern(&headers.destination)
    {
        return Verdict::Pass;
    }
    scratch.key = headers.key(Direction::Out);
    let now = tables.now();
    if let Some(flow) = tables.flow(&scratch.key) {
        let is_due = flow.last_seen != now;
        flow.last_seen = now;
        scratch.flow = *flow;
        if is_marked && flow.flags.has(FlowFlags::PENDING) {
            scratch.flow.flags = flow.flags.with(FlowFlags::MASQUERADE);
        }
        return follow::<F, P, T, WORDS>(packet, tables, scratch, is_due);
    }
    if !packet.is_from_this_node() && is_frontend(tables, scratch) {
        tables.count(Reason::Untranslated);
        return Verdict::Drop;
    }
    if is_marked && scratch.headers.opens && scratch.headers.source_port != Port::NONE {
        return masquerade_only::<F, P, T, WORDS>(packet, tables, scratch, now);
    }
    Verdict::Pass
}

/// Clears the mark by which others ask for masquerading (SRC-10); whether it was set.
#[inline(always)]
fn take_mark<P: Packet, T: Tables<WORDS>, const WORDS: usize>(
    packet: &mut P,
    tables: &mut T,
) -> bool {
    let wanted = tables
        .settings()
        .map_or(0, |settings| settings.masquerade_mark);
    let mark = packet.mark();
    let is_marked = mark & wanted != 0;
    if is_marked {
        packet.set_mark(mark & !wanted);
    }
    is_marked
}

/// A packet of a known flow.
#[inline(always)]
fn follow<F, P, T, const WORDS: usize>(
    packet: &mut P,
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
    is_due: bool,
) -> Verdict
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    let flags = scratch.flow.flags;
    if flags.has(FlowFlags::HELD) {
        tables.count(Reason::Held);
        return Verdict::Drop;
    }
    if flags.has(FlowFlags::KEEP) {
        return Verdict::Pass;
    }
    if flags.has(FlowFlags::PENDING) {
        if flags.has(FlowFlags::MASQUERADE) {
            return settle::<F, P, T, WORDS>(packet, tables, scratch);
        }
        scratch.flow.flags = FlowFlags::KEEP;
        if tables.replace_flow(&scratch.key, &scratch.flow).is_err() {
            tables.count(Reason::FlowLost);
            return Verdict::Drop;
        }
        return Verdict::Pass;
    }
    if is_due && !flags.has(FlowFlags::REPLY) && restore_reply(tables, scratch).is_none() {
        tables.count(Reason::FlowLost);
        return Verdict::Drop;
    }
    translate::<F, P, T, WORDS>(packet, tables, &scratch.headers, &scratch.flow)
}

/// Begins a flow that is masqueraded, but to no frontend.
#[inline(never)]
fn masquerade_only<F, P, T, const WORDS: usize>(
    packet: &mut P,
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
    now: u32,
) -> Verdict
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    scratch.flow = Flow {
        address: Address::UNSPECIFIED,
        port: Port::NONE,
        flags: FlowFlags::PENDING.with(FlowFlags::MASQUERADE),
        last_seen: now,
        interface: packet.interface(),
        ..Flow::EMPTY
    };
    if tables.add_flow(&scratch.key, &scratch.flow).is_err() {
        tables.count(Reason::TableFull);
        return Verdict::Drop;
    }
    // Others mark a flow's first packet only; the next ones are to be found by their address.
    tables.concern(&scratch.headers.source);
    settle::<F, P, T, WORDS>(packet, tables, scratch)
}

/// Whether the packet is addressed to a port of a Service, or to a live ClusterIP.
#[inline(always)]
fn is_frontend<T: Tables<WORDS>, const WORDS: usize>(
    tables: &mut T,
    scratch: &Scratch<WORDS>,
) -> bool {
    let mut key = FrontendKey {
        address: scratch.headers.destination,
        port: scratch.headers.destination_port,
        protocol: scratch.headers.protocol,
        reserved: 0,
    };
    if tables.frontend(&key).is_some() {
        return true;
    }
    (key.port, key.protocol) = (Port::NONE, Protocol::NONE);
    tables.frontend(&key).is_some()
}
