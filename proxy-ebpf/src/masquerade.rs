//! How does a flow get an address and a port of this node?
//!
//! Only where a packet leaves is it known by which interface, and so which address its backend should see
//! (SRC-1). Invariant: E3 is written before E2 uses its port.
//!
//! A port is free if no reply entry holds it. If the table lost that entry of a flow that has been idle since,
//! and the same port is drawn for the same backend, the two flows are mixed up until the first one's next
//! packet finds out; each draw does that with the probability of one in the number of ports.

use proxy_common::{Direction, Flow, FlowFlags, FlowKey, Port, Reason};

use crate::connect::random_port;
use crate::tables::own_address;
use crate::translate::translate;
use crate::{Family, Packet, Scratch, Tables, Unwritten, Verdict};

/// How many ports are drawn at random, and how many are tried in a row after that.
const DRAWS: u32 = 32;
const PROBES: u32 = 160;

/// Gives the flow in `scratch` its address and port, and sends its first packet.
#[inline(never)]
pub(crate) fn settle<F, P, T, const WORDS: usize>(
    packet: &mut P,
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
) -> Verdict
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    match allocate::<F, P, T, WORDS>(packet, tables, scratch) {
        Ok(()) => translate::<F, P, T, WORDS>(packet, tables, &scratch.headers, &scratch.flow),
        Err(reason) => {
            tables.count(reason);
            Verdict::Drop
        }
    }
}

#[inline(always)]
fn allocate<F, P, T, const WORDS: usize>(
    packet: &P,
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
) -> Result<(), Reason>
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    let address = own_address::<F, P, T, WORDS>(packet, tables);
    scratch.flow.address = address.ok_or(Reason::NoSourceAddress)?;
    scratch.flow.flags = FlowFlags::SOURCE.with(FlowFlags::MASQUERADE);
    let mut port = random_port(tables).ok_or(Reason::NoFreePort)?;
    for probe in 0..PROBES {
        scratch.flow.port = port;
        reply(scratch);
        if tables.flow(&scratch.sibling_key).is_none()
            && tables
                .add_flow(&scratch.sibling_key, &scratch.sibling)
                .is_ok()
        {
            let written = tables.replace_flow(&scratch.key, &scratch.flow);
            return written.map_err(|Unwritten| Reason::FlowLost);
        }
        port = if probe < DRAWS {
            random_port(tables).ok_or(Reason::NoFreePort)?
        } else {
            next_port(tables, port).ok_or(Reason::NoFreePort)?
        };
    }
    Err(Reason::NoFreePort)
}

/// The port after this one, in a circle.
#[inline(always)]
fn next_port<T: Tables<WORDS>, const WORDS: usize>(tables: &mut T, port: Port) -> Option<Port> {
    let settings = tables.settings()?;
    let offset = port
        .number()
        .wrapping_sub(settings.first_port)
        .wrapping_add(1);
    let offset = if offset < settings.n_ports { offset } else { 0 };
    Some(Port::new(settings.first_port.wrapping_add(offset)))
}

/// Looks for E3 of the flow in `scratch`, and writes it if it is lost.
///
/// `None`: another flow has its place; E2 is removed.
#[inline(never)]
pub(crate) fn restore_reply<T: Tables<WORDS>, const WORDS: usize>(
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
) -> Option<()> {
    reply(scratch);
    let now = scratch.flow.last_seen;
    let is_ours = if let Some(found) = tables.flow(&scratch.sibling_key) {
        found.last_seen = now;
        found.address.is(&scratch.sibling.address) && found.port == scratch.sibling.port
    } else {
        tables.count(Reason::Healed);
        tables
            .add_flow(&scratch.sibling_key, &scratch.sibling)
            .is_ok()
    };
    if !is_ours {
        tables.remove_flow(&scratch.key);
        return None;
    }
    Some(())
}

/// Writes E3 of the flow in `scratch` to its sibling.
#[inline(always)]
fn reply<const WORDS: usize>(scratch: &mut Scratch<WORDS>) {
    let Scratch { headers, flow, .. } = scratch;
    scratch.sibling_key = FlowKey {
        source: headers.destination,
        destination: flow.address,
        source_port: headers.destination_port,
        destination_port: flow.port,
        protocol: headers.protocol,
        direction: Direction::In as u8,
        reserved: 0,
    };
    scratch.sibling = Flow {
        address: headers.source,
        port: headers.source_port,
        other_port: Port::NONE,
        flags: FlowFlags::REPLY.with(FlowFlags::MASQUERADE),
        ..*flow
    };
}
