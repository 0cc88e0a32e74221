//! What do our Node and the ServiceCIDRs say?
//!
//! Spec: NODE-2, NODE-7, DL-2, HZ-4, REJ-6.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::faults::{Faults, Quoted};
use super::field::Field;
use super::intern::Interner;
use super::service::read_address;
use super::wire::{Object, Spec, Status};
use crate::model::{Node, ServiceCidr};
use crate::net::{holds_loopback, never_unicast, parse_network};

/// The taint of a node that is about to be removed. Source: cluster-autoscaler.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads a Node.
pub(super) fn read_node(
    name: &Arc<str>,
    object: &Object<'_>,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Node {
    let no_spec = Spec::default();
    let spec = faults
        .value(&object.spec, format_args!("spec"))
        .unwrap_or(&no_spec);
    let no_status = Status::default();
    let status = faults
        .value(&object.status, format_args!("status"))
        .unwrap_or(&no_status);
    // Once for both types, so that a fault is reported once.
    faults.list(&status.addresses, "status.addresses");
    let metadata = object.metadata.value();
    let zone = metadata
        .and_then(|m| m.labels.value())
        .and_then(|labels| labels.zone.value())
        .filter(|zone| !zone.is_empty());
    let deleted = metadata.is_some_and(|m| m.deletion_timestamp.is_present());
    let tainted = faults
        .list(&spec.taints, "spec.taints")
        .iter()
        .any(|(_, taint)| taint.key.value().is_some_and(|key| key == TO_BE_DELETED));
    Node {
        name: Arc::clone(name),
        internal_ips: read_addresses(status, "InternalIP", faults),
        external_ips: read_addresses(status, "ExternalIP", faults),
        zone: zone.map(|zone| interner.get(zone)),
        pod_cidrs: read_pod_cidrs(spec, faults),
        eligible: !deleted && !tainted,
    }
}

/// The addresses of one type.
fn read_addresses(status: &Status<'_>, wanted: &str, faults: &mut Faults<'_>) -> Box<[IpAddr]> {
    let Some(wire) = status.addresses.value() else {
        return Box::default();
    };
    let mut addresses = Vec::new();
    for (index, address) in wire.iter().enumerate() {
        let Some(address) = address.value() else {
            continue;
        };
        if address.kind.value().map_or("", Cow::as_ref) != wanted {
            continue;
        }
        let path = format_args!("status.addresses[{index}].address");
        let Some(text) = faults.value(&address.address, path) else {
            continue;
        };
        let path = format_args!("status.addresses[{index}].address");
        let Some(address) = read_address(text, path, faults) else {
            continue;
        };
        // Clusters of one machine use loopback; it is no fault, although nothing is served there.
        let special = never_unicast(address).filter(|_| !address.is_loopback());
        if let Some(what) = special {
            let path = format_args!("status.addresses[{index}].address");
            faults.add(path, format_args!("{address} is {what}; ignored"));
        } else if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.into()
}

fn read_pod_cidrs(spec: &Spec<'_>, faults: &mut Faults<'_>) -> Box<[IpNet]> {
    let listed = read_networks(&spec.pod_cidrs, "spec.podCIDRs", faults);
    if spec.pod_cidrs.is_present() && !listed.is_empty() {
        return listed;
    }
    faults
        .value(&spec.pod_cidr, format_args!("spec.podCIDR"))
        .filter(|text| !text.is_empty())
        .and_then(|text| read_network(text, format_args!("spec.podCIDR"), faults))
        .into_iter()
        .collect()
}

/// Reads a ServiceCIDR.
pub(super) fn read_service_cidr(
    name: &Arc<str>,
    object: &Object<'_>,
    faults: &mut Faults<'_>,
) -> ServiceCidr {
    let cidrs = faults
        .value(&object.spec, format_args!("spec"))
        .map(|spec| read_networks(&spec.cidrs, "spec.cidrs", faults));
    let mut cidrs = cidrs.unwrap_or_default().into_vec();
    // What has no Service is dropped there, and the node must be able to talk to itself.
    cidrs.retain(|cidr| {
        let is_good = !holds_loopback(cidr);
        if !is_good {
            faults.add(
                format_args!("spec.cidrs"),
                format_args!("{cidr} holds loopback addresses; ignored"),
            );
        }
        is_good
    });
    ServiceCidr {
        name: Arc::clone(name),
        cidrs: cidrs.into(),
    }
}

fn read_networks(
    field: &Field<Vec<Field<Cow<'_, str>>>>,
    path: &str,
    faults: &mut Faults<'_>,
) -> Box<[IpNet]> {
    let mut networks = Vec::new();
    for (index, text) in faults.list(field, path) {
        if let Some(network) = read_network(text, format_args!("{path}[{index}]"), faults)
            && !networks.contains(&network)
        {
            networks.push(network);
        }
    }
    networks.into()
}

fn read_network(
    text: &str,
    path: std::fmt::Arguments<'_>,
    faults: &mut Faults<'_>,
) -> Option<IpNet> {
    match parse_network(text) {
        Ok(network) => Some(network),
        Err(error) => {
            faults.add(
                path,
                format_args!("{} is not {}; ignored", Quoted(text), error.expected),
            );
            None
        }
    }
}
