//! What happens to a packet that arrives?
//!
//! E1: from a client to a frontend. E3: from a backend to the node's port of a masqueraded flow.

use proxy_common::{Direction, Exposure, FlowFlags, FrontendKey, Port, Protocol, Reason};

use crate::connect::{connect, restore};
use crate::parse::{Content, parse};
use crate::refuse::refuse;
use crate::translate::translate;
use crate::{Family, Packet, Scratch, Tables, Verdict};

/// Decides about a packet that arrives, and translates it.
///
/// `l3` is where the network header begins, in bytes from the packet's first.
#[inline(always)]
pub fn ingress<F, P, T, const WORDS: usize>(
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
    let content = parse::<F, P, WORDS>(packet, l3, &mut scratch.headers);
    if let Content::Other(reason) = content {
        tables.count(reason);
        return Verdict::Pass;
    }
    if content == Content::IcmpError || !tables.may_concern(&scratch.headers.destination) {
        return Verdict::Pass;
    }
    if content == Content::Ports {
        scratch.key = scratch.headers.key(Direction::In);
        let now = tables.now();
        if let Some(flow) = tables.flow(&scratch.key) {
            let is_due = flow.last_seen != now;
            flow.last_seen = now;
            scratch.flow = *flow;
            return follow::<F, P, T, WORDS>(packet, tables, scratch, is_due);
        }
        if let Some(frontend) = find(tables, scratch) {
            scratch.frontend = frontend;
            return connect::<F, P, T, WORDS>(packet, tables, scratch);
        }
    }
    unknown_port::<F, P, T, WORDS>(packet, tables, scratch)
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
    // Once per tick, what the flow needs for its replies is looked for.
    if is_due && !flags.has(FlowFlags::REPLY) && restore(tables, scratch).is_none() {
        tables.count(Reason::FlowLost);
        return Verdict::Drop;
    }
    translate::<F, P, T, WORDS>(packet, tables, &scratch.headers, &scratch.flow)
}

/// Addresses first, then NodePorts (SVC-14).
#[inline(always)]
fn find<T: Tables<WORDS>, const WORDS: usize>(
    tables: &mut T,
    scratch: &Scratch<WORDS>,
) -> Option<proxy_common::Frontend> {
    let mut key = FrontendKey {
        address: scratch.headers.destination,
        port: scratch.headers.destination_port,
        protocol: scratch.headers.protocol,
        reserved: 0,
    };
    if let Some(frontend) = tables.frontend(&key) {
        return Some(frontend);
    }
    if tables.local_address(&key.address)?.node_ports == 0 {
        return None;
    }
    key.address = proxy_common::Address::UNSPECIFIED;
    tables.frontend(&key)
}

/// Refuses a packet to a live ClusterIP that no Service expects (REJ-5); all others pass.
#[inline(always)]
fn unknown_port<F, P, T, const WORDS: usize>(
    packet: &mut P,
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
) -> Verdict
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    let key = FrontendKey {
        address: scratch.headers.destination,
        port: Port::NONE,
        protocol: Protocol::NONE,
        reserved: 0,
    };
    match tables.frontend(&key) {
        Some(frontend) if frontend.exposure == Exposure::UNKNOWN_PORT => {
            if !scratch.headers.opens {
                tables.count(Reason::MidStream);
                return Verdict::Pass;
            }
            tables.count(Reason::UnknownPort);
            refuse::<F, P, T, WORDS>(packet, tables, scratch)
        }
        _ => Verdict::Pass,
    }
}
