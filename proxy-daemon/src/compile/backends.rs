//! Which endpoints may receive a ServicePort's new connections?
//!
//! Spec: EPS-5 to EPS-12, TERM, TOPO, CT-2.

use std::sync::Arc;

use super::context::Context;
use crate::forwarding::Backend;
use crate::model::{Endpoint, EndpointSlice, Hints, ServicePortSpec};
use crate::net::{Family, L4Proto, Port};

/// The endpoint sets of SPEC §0 for one ServicePort.
pub(super) struct Sets<F: Family> {
    /// C. Empty only if there is no usable endpoint anywhere, that is, if ANY is false.
    pub(super) cluster: Box<[Backend<F>]>,
    /// L.
    pub(super) local: Box<[Backend<F>]>,
    /// Those whose UDP flows are kept; empty unless UDP.
    pub(super) live: Box<[Backend<F>]>,
}

/// The ports of a Service's slices of one family, by what they are for, and else in the order of the slices.
///
/// A Service and its slices may have tens of thousands of ports: they are looked up and not searched.
pub(super) struct Targets<'a>(Vec<Target<'a>>);

struct Target<'a> {
    of: (&'a str, L4Proto),
    slice: &'a EndpointSlice,
    port: Port,
}

impl<'a> Targets<'a> {
    pub(super) fn new<F: Family>(slices: &'a [Arc<EndpointSlice>]) -> Self {
        let slices = slices.iter().filter(|slice| slice.family == F::FAMILY);
        let targets = slices.flat_map(|slice| {
            slice.ports.iter().map(|port| Target {
                of: (&port.name, port.protocol),
                slice,
                port: port.port,
            })
        });
        let mut targets: Vec<_> = targets.collect();
        targets.sort_by_key(|target| target.of);
        Self(targets)
    }

    /// Where a Service's port is on the endpoints.
    fn of(&self, port: &ServicePortSpec) -> impl Iterator<Item = &Target<'a>> {
        let wanted = (&*port.name, port.protocol);
        let first = self.0.partition_point(|target| target.of < wanted);
        let rest = self.0.get(first..).unwrap_or_default();
        rest.iter().take_while(move |target| target.of == wanted)
    }
}

pub(super) fn compile_backends<F: Family>(
    targets: &Targets<'_>,
    port: &ServicePortSpec,
    context: &Context<F>,
) -> Sets<F> {
    let endpoints = endpoints_of::<F>(targets, port);
    let is_local = |e: &Endpoint| {
        e.node
            .as_ref()
            .is_some_and(|node| *node == context.node_name)
    };

    let ready = select(&endpoints, |e| e.ready);
    let cluster = if ready.is_empty() {
        select(&endpoints, is_fallback)
    } else {
        filter_by_topology(ready, context)
    };
    let mut local = select(&endpoints, |e| e.ready && is_local(e));
    if local.is_empty() {
        local = select(&endpoints, |e| is_fallback(e) && is_local(e));
    }
    let live = match port.protocol {
        L4Proto::Udp => select(&endpoints, |e| e.serving || e.ready),
        L4Proto::Tcp | L4Proto::Sctp => Vec::new(),
    };
    Sets {
        cluster: addresses(&cluster),
        local: addresses(&local),
        live: addresses(&live),
    }
}

type Entry<'a, F> = (Backend<F>, &'a Endpoint);

/// Spec: TERM-2. An endpoint that is ready is no fallback, whatever else it is (EPS-16).
fn is_fallback(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating && !endpoint.ready
}

/// The union over all slices, sorted, one entry for each address and port. Spec: EPS-5, EPS-6, EPS-9.
fn endpoints_of<'a, F: Family>(targets: &Targets<'a>, port: &ServicePortSpec) -> Vec<Entry<'a, F>> {
    let mut entries: Vec<Entry<'a, F>> = Vec::new();
    for target in targets.of(port) {
        entries.extend(target.slice.endpoints.iter().filter_map(|endpoint| {
            let address = F::addr(endpoint.address)?;
            let backend = Backend {
                address,
                port: target.port,
            };
            Some((backend, endpoint))
        }));
    }
    // Stable, so that among equals the entry of the alphabetically first slice wins. Spec: EPS-10.
    entries.sort_by_key(|(backend, e)| (*backend, e.terminating, !e.ready, !e.serving));
    entries.dedup_by_key(|(backend, _)| *backend);
    entries
}

fn select<'a, F: Family>(
    entries: &[Entry<'a, F>],
    wanted: impl Fn(&Endpoint) -> bool,
) -> Vec<Entry<'a, F>> {
    entries
        .iter()
        .copied()
        .filter(|(_, endpoint)| wanted(endpoint))
        .collect()
}

fn addresses<F: Family>(entries: &[Entry<'_, F>]) -> Box<[Backend<F>]> {
    entries.iter().map(|(backend, _)| *backend).collect()
}

/// Spec: TOPO-2 to TOPO-6. `ready` is not empty, and neither is the result.
fn filter_by_topology<'a, F: Family>(
    ready: Vec<Entry<'a, F>>,
    context: &Context<F>,
) -> Vec<Entry<'a, F>> {
    let same_node = filter_by_hint(&ready, &context.node_name, |hints| &hints.nodes);
    let narrowed = same_node.or_else(|| {
        let zone = context.zone.as_ref()?;
        filter_by_hint(&ready, zone, |hints| &hints.zones)
    });
    narrowed.unwrap_or(ready)
}

/// Those hinted for `name`; `None` if some have no hint of the kind, or none is for `name`.
fn filter_by_hint<'a, F: Family>(
    ready: &[Entry<'a, F>],
    name: &Arc<str>,
    hints_of: impl Fn(&Hints) -> &[Arc<str>],
) -> Option<Vec<Entry<'a, F>>> {
    let names_of = |endpoint: &'a Endpoint| endpoint.hints.as_deref().map_or(&[][..], &hints_of);
    if ready
        .iter()
        .any(|(_, endpoint)| names_of(endpoint).is_empty())
    {
        return None;
    }
    let hinted: Vec<_> = ready
        .iter()
        .copied()
        .filter(|(_, endpoint)| names_of(endpoint).contains(name))
        .collect();
    (!hinted.is_empty()).then_some(hinted)
}
