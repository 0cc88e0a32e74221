//! What does an EndpointSlice say?
//!
//! Invariants: one bad port or endpoint never costs the slice its others; nothing but `nodeName` makes
//! an endpoint local. Spec: EPS-3, EPS-4, EPS-6, EPS-8, EPS-11, EPS-12, TOPO-1.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Author;
use super::faults::{Faults, Quoted};
use super::field::Field;
use super::intern::Interner;
use super::service::{is_port_name, optional_port, read_global, read_protocol};
use super::text::is_label;
use super::wire::{Endpoint as WireEndpoint, Hint, Object};
use crate::model::{Endpoint, EndpointSlice, Hints, ServiceName, SliceName, SlicePort};
use crate::net::IpFamily;

/// Reads an EndpointSlice; `None` for one that belongs to no Service or has no IP addresses.
pub(super) fn read(
    name: &SliceName,
    object: &Object<'_>,
    author: Author,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Option<EndpointSlice> {
    let labels = object.metadata.value().and_then(|m| m.labels.value());
    if labels.is_some_and(|labels| labels.headless.is_present()) {
        return None;
    }
    let owner = labels
        .and_then(|labels| labels.service_name.value())
        .map_or("", Cow::as_ref);
    if !is_label(owner) {
        let message = if owner.is_empty() {
            format_args!("has no label kubernetes.io/service-name; object ignored")
        } else {
            format_args!("label kubernetes.io/service-name is no name; object ignored")
        };
        faults.add(format_args!("metadata.labels"), message);
        return None;
    }
    let family = read_family(object, faults)?;
    Some(EndpointSlice {
        name: name.clone(),
        service: ServiceName::new(Arc::clone(&name.0.namespace), interner.get(owner)),
        family,
        ports: read_ports(object, author, interner, faults),
        endpoints: read_endpoints(object, family, interner, faults),
    })
}

fn read_family(object: &Object<'_>, faults: &mut Faults<'_>) -> Option<IpFamily> {
    let text = faults.value(&object.address_type, format_args!("addressType"));
    match text.map_or("", Cow::as_ref) {
        "IPv4" => Some(IpFamily::V4),
        "IPv6" => Some(IpFamily::V6),
        "FQDN" => None,
        other => {
            faults.add(
                format_args!("addressType"),
                format_args!("{} is neither IPv4 nor IPv6; object ignored", Quoted(other)),
            );
            None
        }
    }
}

fn read_ports(
    object: &Object<'_>,
    author: Author,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Box<[SlicePort]> {
    let mut ports = Vec::new();
    let mut known = BTreeSet::new();
    for (index, wire) in faults.list(&object.ports, "ports") {
        let name = match faults.value(&wire.name, format_args!("ports[{index}].name")) {
            Some(name) => name.as_ref(),
            // A missing name from the API server is invalid: ignore the port (EPS-6).
            None if author == Author::File => "",
            None => continue,
        };
        if !is_port_name(name) {
            faults.add(
                format_args!("ports[{index}].name"),
                format_args!("{} is no port name; port ignored", Quoted(name)),
            );
            continue;
        }
        let Some(protocol) = read_protocol(
            &wire.protocol,
            format_args!("ports[{index}].protocol"),
            faults,
        ) else {
            continue;
        };
        let Some(port) = optional_port(&wire.port, format_args!("ports[{index}].port"), faults)
        else {
            continue;
        };
        let port = SlicePort {
            name: interner.get(name),
            protocol,
            port,
        };
        if known.insert((Arc::clone(&port.name), protocol, port.port)) {
            ports.push(port);
        }
    }
    ports.into()
}

fn read_endpoints(
    object: &Object<'_>,
    family: IpFamily,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Box<[Endpoint]> {
    let wire = faults.list(&object.endpoints, "endpoints");
    let mut endpoints = Vec::with_capacity(wire.len());
    for (index, wire) in wire {
        let Some(address) = read_first_address(index, wire, faults) else {
            continue;
        };
        if IpFamily::of(address) != family {
            faults.add(
                format_args!("endpoints[{index}].addresses[0]"),
                format_args!("{address} is no {family} address; endpoint ignored"),
            );
            continue;
        }
        endpoints.push(read_endpoint(index, address, wire, interner, faults));
    }
    endpoints.into()
}

/// `addresses[0]`; an endpoint without addresses is no fault. Spec: EPS-8.
fn read_first_address(
    index: usize,
    wire: &WireEndpoint<'_>,
    faults: &mut Faults<'_>,
) -> Option<IpAddr> {
    let addresses = faults.value(
        &wire.addresses,
        format_args!("endpoints[{index}].addresses"),
    )?;
    let path = format_args!("endpoints[{index}].addresses[0]");
    let text = faults.value(addresses.first()?, path)?;
    read_global(
        text,
        format_args!("endpoints[{index}].addresses[0]"),
        faults,
    )
}

fn read_endpoint(
    index: usize,
    address: IpAddr,
    wire: &WireEndpoint<'_>,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Endpoint {
    let conditions = faults.value(
        &wire.conditions,
        format_args!("endpoints[{index}].conditions"),
    );
    let mut condition = |field: Option<&Field<bool>>, name: &str, default: bool| {
        field
            .and_then(|field| {
                faults.value(field, format_args!("endpoints[{index}].conditions.{name}"))
            })
            .copied()
            .unwrap_or(default)
    };
    let ready = condition(conditions.map(|c| &c.ready), "ready", true);
    let serving = condition(conditions.map(|c| &c.serving), "serving", true);
    let terminating = condition(conditions.map(|c| &c.terminating), "terminating", false);
    let node = faults
        .value(&wire.node_name, format_args!("endpoints[{index}].nodeName"))
        .filter(|name| !name.is_empty())
        .map(|name| interner.get(name));
    let hints = faults
        .value(&wire.hints, format_args!("endpoints[{index}].hints"))
        .map(|hints| Hints {
            zones: read_hints(&hints.for_zones, "forZones", index, interner, faults),
            nodes: read_hints(&hints.for_nodes, "forNodes", index, interner, faults),
        })
        .filter(|hints| !hints.zones.is_empty() || !hints.nodes.is_empty());
    Endpoint {
        address,
        ready,
        serving,
        terminating,
        node,
        hints: hints.map(Box::new),
    }
}

fn read_hints(
    field: &Field<Vec<Field<Hint<'_>>>>,
    which: &str,
    index: usize,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Box<[Arc<str>]> {
    let path = format_args!("endpoints[{index}].hints.{which}");
    let Some(hints) = faults.value(field, path) else {
        return Box::default();
    };
    let mut names = Vec::with_capacity(hints.len());
    for (at, hint) in hints.iter().enumerate() {
        let name = faults
            .value(hint, format_args!("endpoints[{index}].hints.{which}[{at}]"))
            .and_then(|hint| {
                let path = format_args!("endpoints[{index}].hints.{which}[{at}].name");
                faults.value(&hint.name, path)
            });
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            names.push(interner.get(name));
        }
    }
    names.into()
}
