//! What does an EndpointSlice say?
//!
//! Invariants: one bad port or endpoint never costs the slice its others; nothing but `nodeName` makes
//! an endpoint local. Spec: EPS-3, EPS-4, EPS-6, EPS-8, EPS-11, EPS-12, TOPO-1.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Author;
use super::faults::At;
use super::field::Field;
use super::intern::Interner;
use super::text::is_label;
use super::wire::{Conditions, Endpoint as WireEndpoint, Hint, Hints as WireHints, List, Object};
use crate::model::{Endpoint, EndpointSlice, Hints, ServiceName, SliceName, SlicePort};
use crate::net::IpFamily;

/// Reads an EndpointSlice; `None` for one that belongs to no Service or has no IP addresses.
pub(super) fn read(
    name: &SliceName,
    object: &At<'_, Object<'_>>,
    author: Author,
    interner: &mut Interner,
) -> Option<EndpointSlice> {
    const FAMILIES: [(&str, Option<IpFamily>); 3] = [
        ("IPv4", Some(IpFamily::V4)),
        ("IPv6", Some(IpFamily::V6)),
        ("FQDN", None),
    ];
    let labels = object.labels();
    if labels.is_some_and(|labels| labels.headless.is_present()) {
        return None;
    }
    let owner = labels.map_or("", |labels| labels.service_name.text());
    if !is_label(owner) {
        let message = if owner.is_empty() {
            format_args!("has no label kubernetes.io/service-name; object ignored")
        } else {
            format_args!("label kubernetes.io/service-name is no name; object ignored")
        };
        object.fault_in("metadata.labels", message);
        return None;
    }
    let fault = "neither IPv4 nor IPv6; object ignored";
    let family = object.word("addressType", &object.address_type, "", &FAMILIES, fault)??;
    Some(EndpointSlice {
        name: name.clone(),
        service: ServiceName::new(Arc::clone(&name.namespace), interner.get(owner)),
        family,
        ports: read_ports(object, author, interner),
        endpoints: read_endpoints(object, family, interner),
    })
}

fn read_ports(
    object: &At<'_, Object<'_>>,
    author: Author,
    interner: &mut Interner,
) -> Box<[SlicePort]> {
    let mut ports = Vec::new();
    let mut known = BTreeSet::new();
    for wire in object.list("ports", &object.ports) {
        let name = match wire.value("name", &wire.name) {
            Some(name) => name,
            // A missing name from the API server is invalid: ignore the port (EPS-6).
            None if author == Author::File => "",
            None => continue,
        };
        let port = wire.checked_name(name).and_then(|name| {
            Some(SlicePort {
                protocol: wire.l4_protocol()?,
                port: wire.optional_port("port", &wire.port)?,
                name: interner.get(name),
            })
        });
        if let Some(port) = port
            && known.insert((Arc::clone(&port.name), port.protocol, port.port))
        {
            ports.push(port);
        }
    }
    ports.into()
}

fn read_endpoints(
    object: &At<'_, Object<'_>>,
    family: IpFamily,
    interner: &mut Interner,
) -> Box<[Endpoint]> {
    let n_endpoints = object.endpoints.value().map_or(0, Vec::len);
    let mut endpoints = Vec::with_capacity(n_endpoints);
    let wire = object.list("endpoints", &object.endpoints);
    endpoints.extend(wire.filter_map(|wire| read_endpoint(&wire, family, interner)));
    endpoints.into()
}

/// Only `addresses[0]` counts; an endpoint without addresses is no fault. Spec: EPS-8.
fn read_endpoint(
    wire: &At<'_, WireEndpoint<'_>>,
    family: IpFamily,
    interner: &mut Interner,
) -> Option<Endpoint> {
    let first = wire.first("addresses", &wire.addresses)?;
    let address = first.global()?;
    if IpFamily::of(address) != family {
        first.fault(format_args!(
            "{address} is no {family} address; endpoint ignored"
        ));
        return None;
    }
    let conditions = wire.get("conditions", &wire.conditions);
    let condition = |field: fn(&Conditions) -> &Field<bool>, name, default| {
        let value = conditions.as_ref().and_then(|c| c.value(name, field(c)));
        value.copied().unwrap_or(default)
    };
    let node = wire.value("nodeName", &wire.node_name);
    let hints = wire.get("hints", &wire.hints);
    let hints = hints.map(|hints| Hints {
        zones: read_hints(&hints, "forZones", &hints.for_zones, interner),
        nodes: read_hints(&hints, "forNodes", &hints.for_nodes, interner),
    });
    let is_empty = |hints: &Hints| hints.zones.is_empty() && hints.nodes.is_empty();
    Some(Endpoint {
        address,
        ready: condition(|c| &c.ready, "ready", true),
        serving: condition(|c| &c.serving, "serving", true),
        terminating: condition(|c| &c.terminating, "terminating", false),
        node: node
            .filter(|name| !name.is_empty())
            .map(|name| interner.get(name)),
        hints: hints.filter(|hints| !is_empty(hints)).map(Box::new),
    })
}

fn read_hints(
    hints: &At<'_, WireHints<'_>>,
    name: &str,
    field: &List<Hint<'_>>,
    interner: &mut Interner,
) -> Box<[Arc<str>]> {
    let names = hints.list(name, field).filter_map(|hint| {
        let name = hint.value("name", &hint.name)?;
        (!name.is_empty()).then(|| interner.get(name))
    });
    names.collect()
}
