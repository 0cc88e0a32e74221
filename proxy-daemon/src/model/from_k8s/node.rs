//! What do our Node and the ServiceCIDRs say?
//!
//! Spec: NODE-2, NODE-7, DL-2, HZ-4, REJ-6.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::faults::At;
use super::intern::Interner;
use super::values::distinct;
use super::wire::{Object, Spec, Status};
use crate::model::{Node, ServiceCidr};
use crate::net::{holds_loopback, never_unicast};

/// The taint of a node that is about to be removed. Source: cluster-autoscaler.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads a Node.
pub(super) fn read_node(
    name: &Arc<str>,
    object: &At<'_, Object<'_>>,
    interner: &mut Interner,
) -> Node {
    let spec = object.get("spec", &object.spec);
    let status = object.get("status", &object.status);
    let metadata = object.metadata.value();
    let zone = object.labels().map_or("", |labels| labels.zone.text());
    let deleted = metadata.is_some_and(|m| m.deletion_timestamp.is_present());
    let tainted = spec.as_ref().is_some_and(|spec| {
        let mut taints = spec.list("taints", &spec.taints);
        taints.any(|taint| taint.key.text() == TO_BE_DELETED)
    });
    let (internal_ips, external_ips) = status.as_ref().map(read_addresses).unwrap_or_default();
    Node {
        name: Arc::clone(name),
        internal_ips,
        external_ips,
        zone: Some(zone)
            .filter(|zone| !zone.is_empty())
            .map(|zone| interner.get(zone)),
        pod_cidrs: spec.as_ref().map(read_pod_cidrs).unwrap_or_default(),
        eligible: !deleted && !tainted,
    }
}

/// The internal and the external addresses.
fn read_addresses(status: &At<'_, Status<'_>>) -> (Box<[IpAddr]>, Box<[IpAddr]>) {
    let (mut internal, mut external) = (Vec::new(), Vec::new());
    for wire in status.list("addresses", &status.addresses) {
        let addresses = match wire.kind.text() {
            "InternalIP" => &mut internal,
            "ExternalIP" => &mut external,
            _ => continue,
        };
        let address = wire.get("address", &wire.address).and_then(|text| {
            let address = text.address()?;
            // Clusters of one machine use loopback; it is no fault, although nothing is served there.
            let special = never_unicast(address).filter(|_| !address.is_loopback());
            text.unless(address, special)
        });
        addresses.extend(address);
    }
    (
        distinct(internal.into_iter()),
        distinct(external.into_iter()),
    )
}

fn read_pod_cidrs(spec: &At<'_, Spec<'_>>) -> Box<[IpNet]> {
    let listed = spec.list("podCIDRs", &spec.pod_cidrs);
    let listed = distinct(listed.filter_map(|text| text.network()));
    if !listed.is_empty() {
        return listed;
    }
    let single = spec
        .get("podCIDR", &spec.pod_cidr)
        .filter(|text| !text.is_empty());
    single.and_then(|text| text.network()).into_iter().collect()
}

/// Reads a ServiceCIDR.
pub(super) fn read_service_cidr(name: &Arc<str>, object: &At<'_, Object<'_>>) -> ServiceCidr {
    let spec = object.get("spec", &object.spec);
    let cidrs = spec.as_ref().map(|spec| {
        distinct(spec.list("cidrs", &spec.cidrs).filter_map(|text| {
            let cidr = text.network()?;
            // What has no Service is dropped there, and the node must be able to talk to itself.
            if holds_loopback(&cidr) {
                text.fault(format_args!("{cidr} holds loopback addresses; ignored"));
                return None;
            }
            Some(cidr)
        }))
    });
    ServiceCidr {
        name: Arc::clone(name),
        cidrs: cidrs.unwrap_or_default(),
    }
}
