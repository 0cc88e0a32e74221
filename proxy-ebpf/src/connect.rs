//! How does a flow begin, and how is what it lost of itself restored?
//!
//! Invariants: the way back is written before the way there; of two flows that would look the same between
//! the edges, the second gets another port.

use proxy_common::{
    Address, Detector, Direction, Exposure, Flow, FlowFlags, FlowKey, InterfaceFlags, Port, Reason,
    Route, Routes, SetRange,
};

use crate::refuse::refuse;
use crate::translate::translate;
use crate::{Family, Headers, Packet, Scratch, Tables, Verdict};

/// How many ports are tried for a client whose own is taken.
const PROBES: u32 = 32;

/// Decides about the first packet to a frontend, and begins its flow.
#[inline(never)]
pub(crate) fn connect<F, P, T, const WORDS: usize>(
    packet: &mut P,
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
) -> Verdict
where
    F: Family<WORDS>,
    P: Packet,
    T: Tables<WORDS>,
{
    if !scratch.headers.opens {
        tables.count(Reason::MidStream);
        return Verdict::Pass;
    }
    match choose(packet, tables, scratch) {
        Ok(()) => {}
        Err(reason) => {
            tables.count(reason);
            return if reason == Reason::NoEndpoints {
                refuse::<F, P, T, WORDS>(packet, tables, scratch)
            } else {
                Verdict::Drop
            };
        }
    }
    match begin(tables, scratch) {
        Ok(()) => {
            tables.count(Reason::NewFlow);
            translate::<F, P, T, WORDS>(packet, tables, &scratch.headers, &scratch.flow)
        }
        Err(reason) => {
            tables.count(reason);
            Verdict::Drop
        }
    }
}

/// Chooses the backend; `scratch.flow` becomes E1, but for the port of the client.
#[inline(always)]
fn choose<P: Packet, T: Tables<WORDS>, const WORDS: usize>(
    packet: &P,
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
) -> Result<(), Reason> {
    let (frontend, source) = (scratch.frontend, scratch.headers.source);
    if frontend.source_ranges != 0 && !tables.is_in_source_ranges(frontend.source_ranges, &source) {
        return Err(Reason::SourceRanges);
    }
    let class = classify(packet, tables, &source).ok_or(Reason::Inconsistent)?;
    let record = tables
        .record(frontend.service)
        .ok_or(Reason::Inconsistent)?;
    let routes = if frontend.exposure == Exposure::INTERNAL {
        record.internal
    } else {
        record.external
    };
    let route = class.of(routes);
    let SetRange { first, count } = match route.to() {
        Route::CLUSTER => record.cluster,
        Route::LOCAL => record.local,
        Route::REJECT => return Err(Reason::NoEndpoints),
        Route::DROP => return Err(Reason::NoLocalEndpoints),
        _ => return Err(Reason::Inconsistent),
    };
    let service_epoch = record.epoch;
    // A set that is routed to is never empty.
    if count == 0 {
        return Err(Reason::Inconsistent);
    }
    let slot = first.wrapping_add(below(tables, count));
    let id = tables.slot(slot).ok_or(Reason::Inconsistent)?;
    let (now, interface) = (tables.now(), packet.interface());
    let backend = tables.backend(id).ok_or(Reason::Inconsistent)?;
    if backend.service != frontend.service {
        return Err(Reason::Inconsistent);
    }
    let is_masqueraded = route.masquerades() || backend.address.is(&source);
    scratch.flow = Flow {
        address: backend.address,
        port: backend.port,
        other_port: Port::NONE,
        flags: if is_masqueraded {
            FlowFlags::MASQUERADE
        } else {
            FlowFlags::NONE
        },
        state: 0,
        reserved: 0,
        service: frontend.service,
        backend: id,
        service_epoch,
        backend_epoch: backend.epoch,
        last_seen: now,
        interface,
    };
    Ok(())
}

/// Writes E4, E2 and E1.
#[inline(always)]
fn begin<T: Tables<WORDS>, const WORDS: usize>(
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
) -> Result<(), Reason> {
    let own = scratch.headers.source_port;
    let mut port = own;
    for _ in 0..PROBES {
        match claim(tables, scratch, port) {
            Claim::Taken => port = random_port(tables).ok_or(Reason::NoFreePort)?,
            claim @ (Claim::Written | Claim::Held) => {
                if port != own {
                    scratch.flow.other_port = port;
                }
                scratch.key = scratch.headers.key(Direction::In);
                return begin_forward(tables, scratch, claim);
            }
        }
    }
    Err(Reason::NoFreePort)
}

/// Writes E1. If another packet of the flow was faster, on another CPU, its entry counts.
#[inline(always)]
fn begin_forward<T: Tables<WORDS>, const WORDS: usize>(
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
    claim: Claim,
) -> Result<(), Reason> {
    if tables.add_flow(&scratch.key, &scratch.flow).is_ok() {
        return Ok(());
    }
    let first = tables.flow(&scratch.key).ok_or(Reason::TableFull)?;
    let is_same = first.address.is(&scratch.flow.address)
        && first.port == scratch.flow.port
        && first.other_port == scratch.flow.other_port;
    scratch.flow = *first;
    if !is_same && matches!(claim, Claim::Written) {
        // It has another backend: nobody needs what was written for this one.
        tables.remove_flow(&scratch.sibling_key);
        turn(&mut scratch.sibling_key);
        tables.remove_flow(&scratch.sibling_key);
    }
    Ok(())
}

/// Looks for E4 and E2 of the flow in `scratch.flow`, and writes what is lost.
///
/// `None`: another flow has its place; E1 is removed.
#[inline(never)]
pub(crate) fn restore<T: Tables<WORDS>, const WORDS: usize>(
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
) -> Option<()> {
    let port = match scratch.flow.other_port {
        Port::NONE => scratch.headers.source_port,
        port => port,
    };
    match claim(tables, scratch, port) {
        Claim::Held => {}
        Claim::Written => tables.count(Reason::Healed),
        Claim::Taken => {
            tables.remove_flow(&scratch.key);
            return None;
        }
    }
    Some(())
}

/// Whose a port is.
#[derive(Clone, Copy)]
enum Claim {
    /// This flow's, from now on or again.
    Written,
    /// This flow's, as before.
    Held,
    /// Another flow's.
    Taken,
}

/// Makes sure that replies to this port of the client are this flow's.
///
/// The client and the frontend are in `scratch.headers`, the backend in `scratch.flow`. Another packet of the
/// flow may do the same on another CPU: only what this call wrote is ever taken back.
#[inline(always)]
fn claim<T: Tables<WORDS>, const WORDS: usize>(
    tables: &mut T,
    scratch: &mut Scratch<WORDS>,
    port: Port,
) -> Claim {
    // By reference: copies would be on the stack.
    let Scratch {
        headers,
        flow,
        sibling_key,
        sibling,
        ..
    } = scratch;
    *sibling_key = FlowKey {
        source: flow.address,
        destination: headers.source,
        source_port: flow.port,
        destination_port: port,
        protocol: headers.protocol,
        direction: Direction::Out as u8,
        reserved: 0,
    };
    *sibling = Flow {
        address: headers.destination,
        port: headers.destination_port,
        other_port: headers.source_port,
        flags: FlowFlags::SOURCE.with(FlowFlags::REPLY),
        ..*flow
    };
    let is_new =
        tables.flow(sibling_key).is_none() && tables.add_flow(sibling_key, sibling).is_ok();
    let is_ours = tables.flow(sibling_key).is_some_and(|e4| {
        e4.last_seen = flow.last_seen;
        e4.address.is(&headers.destination)
            && e4.port == headers.destination_port
            && e4.other_port == headers.source_port
    });
    if !is_ours {
        return Claim::Taken;
    }
    turn(sibling_key);
    let owner = owner(headers);
    *sibling = Flow {
        address: Address::UNSPECIFIED,
        port: Port::NONE,
        other_port: Port::NONE,
        flags: FlowFlags::PENDING.with(flow.flags),
        interface: owner,
        ..*flow
    };
    let is_new_too =
        tables.flow(sibling_key).is_none() && tables.add_flow(sibling_key, sibling).is_ok();
    // E2 keeps its time: when it is due itself, it looks for E3.
    let is_ours = tables
        .flow(sibling_key)
        .is_some_and(|e2| e2.interface == owner);
    if !is_ours {
        if is_new {
            turn(sibling_key);
            tables.remove_flow(sibling_key);
        }
        return Claim::Taken;
    }
    if is_new || is_new_too {
        Claim::Written
    } else {
        Claim::Held
    }
}

/// A digest of the frontend and of the client's own port. Which flows could share one, a client chooses only
/// among its own.
#[inline(always)]
fn owner<const WORDS: usize>(headers: &Headers<WORDS>) -> u32 {
    let words = headers.destination.0.iter();
    let mixed = words.fold(0, |mixed: u32, word| {
        (mixed ^ word).wrapping_mul(0x9e37_79b1).rotate_left(15)
    });
    let ports =
        u32::from(headers.destination_port.raw()) << 16 | u32::from(headers.source_port.raw());
    (mixed ^ ports).wrapping_mul(0x85eb_ca6b)
}

/// The key of packets the other way.
#[inline(always)]
fn turn<const WORDS: usize>(key: &mut FlowKey<WORDS>) {
    core::mem::swap(&mut key.source, &mut key.destination);
    core::mem::swap(&mut key.source_port, &mut key.destination_port);
}

/// Where a packet comes from.
#[derive(Clone, Copy)]
enum SourceClass {
    Pod,
    Host,
    Extn,
}

impl SourceClass {
    #[inline(always)]
    fn of(self, routes: Routes) -> Route {
        match self {
            Self::Pod => routes.pod,
            Self::Host => routes.host,
            Self::Extn => routes.extn,
        }
    }
}

/// The detector first, then the node's addresses. `None`: there are no settings.
#[inline(always)]
fn classify<P: Packet, T: Tables<WORDS>, const WORDS: usize>(
    packet: &P,
    tables: &mut T,
    source: &Address<WORDS>,
) -> Option<SourceClass> {
    let settings = tables.settings()?;
    let is_pod = match settings.detector {
        Detector::NETWORK => source.is_within(&settings.pod_network, &settings.pod_mask),
        Detector::INTERFACE => {
            let interface = tables.interface(packet.interface());
            interface.is_some_and(|interface| interface.flags.has(InterfaceFlags::POD))
        }
        _ => false,
    };
    Some(if is_pod {
        SourceClass::Pod
    } else if tables.local_address(source).is_some() {
        SourceClass::Host
    } else {
        SourceClass::Extn
    })
}

/// A random number below `limit`, each with the same probability but for less than `limit / 2^32`.
#[inline(always)]
pub(crate) fn below<T: Tables<WORDS>, const WORDS: usize>(tables: &mut T, limit: u32) -> u32 {
    let product = u64::from(tables.random()) * u64::from(limit);
    (product >> 32) as u32
}

/// One of the ports for flows that need another one than the client's; `None` if there are none.
#[inline(always)]
pub(crate) fn random_port<T: Tables<WORDS>, const WORDS: usize>(tables: &mut T) -> Option<Port> {
    let settings = tables.settings()?;
    let (first, count) = (settings.first_port, settings.n_ports);
    if count == 0 {
        return None;
    }
    let offset = below(tables, u32::from(count));
    #[expect(clippy::cast_possible_truncation, reason = "below a number of 16 bits")]
    {
        Some(Port::new(first.wrapping_add(offset as u16)))
    }
}
