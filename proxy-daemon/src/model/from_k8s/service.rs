//! What does a Service say?
//!
//! Invariants: what is absent has the meaning that kube-proxy gives it; one bad port or address never
//! costs the Service its others. Spec: SVC-3, SVC-6, SVC-9 to SVC-11, DS-3, LB-1 to LB-3, FW-5.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::faults::{Faults, Quoted};
use super::field::Field;
use super::intern::Interner;
use super::text::{is_label, parse_time};
use super::wire::{Object, Port as WirePort, Spec, Status};
use crate::model::{
    AffinityTimeout, Service, ServiceKind, ServiceName, ServicePortSpec, TrafficPolicy,
};
use crate::net::{
    IpFamily, L4Proto, Port, link_local, never_unicast, parse_address, parse_network,
};

/// Reads a Service; `None` for one that we do not serve.
pub(super) fn read(
    name: &ServiceName,
    object: &Object<'_>,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Option<Service> {
    let metadata = object.metadata.value();
    if metadata
        .and_then(|m| m.labels.value())
        .is_some_and(|labels| labels.service_proxy_name.is_present())
    {
        return None;
    }
    let no_spec = Spec::default();
    let spec = faults
        .value(&object.spec, format_args!("spec"))
        .unwrap_or(&no_spec);
    let kind = read_kind(spec, faults)?;
    let (cluster_ip_v4, cluster_ip_v6) = read_cluster_ips(spec, faults)?;
    let external_ips = read_addresses(&spec.external_ips, "spec.externalIPs", faults);
    let external_policy = read_policy(
        &spec.external_traffic_policy,
        "spec.externalTrafficPolicy",
        faults,
    );
    let is_external = kind != ServiceKind::ClusterIp || !external_ips.is_empty();
    Some(Service {
        name: name.clone(),
        kind,
        cluster_ip_v4,
        cluster_ip_v6,
        ports: read_ports(spec, interner, faults),
        external_policy: if is_external {
            external_policy
        } else {
            TrafficPolicy::Cluster
        },
        external_ips,
        load_balancer_ips: read_ingress(&object.status, faults),
        source_ranges: read_source_ranges(spec, faults),
        internal_policy: read_policy(
            &spec.internal_traffic_policy,
            "spec.internalTrafficPolicy",
            faults,
        ),
        affinity: read_affinity(spec, faults),
        health_check_port: optional_port(
            &spec.health_check_node_port,
            format_args!("spec.healthCheckNodePort"),
            faults,
        ),
        created: metadata
            .and_then(|m| {
                let text = faults.value(
                    &m.creation_timestamp,
                    format_args!("metadata.creationTimestamp"),
                )?;
                let time = parse_time(text);
                if time.is_none() {
                    faults.add(
                        format_args!("metadata.creationTimestamp"),
                        format_args!("{} is no time; taken as the youngest", Quoted(text)),
                    );
                }
                time
            })
            .unwrap_or(i64::MAX),
    })
}

/// `None` for a type that has no ClusterIP.
fn read_kind(spec: &Spec<'_>, faults: &mut Faults<'_>) -> Option<ServiceKind> {
    let text = faults.value(&spec.kind, format_args!("spec.type"));
    match text.map_or("", Cow::as_ref) {
        "" | "ClusterIP" => Some(ServiceKind::ClusterIp),
        "NodePort" => Some(ServiceKind::NodePort),
        "LoadBalancer" => Some(ServiceKind::LoadBalancer),
        "ExternalName" => None,
        other => {
            faults.add(
                format_args!("spec.type"),
                format_args!("{} is unknown; taken as ClusterIP", Quoted(other)),
            );
            Some(ServiceKind::ClusterIp)
        }
    }
}

/// The ClusterIP of each family; `None` if it has none at all. Spec: DS-3, SVC-3.
fn read_cluster_ips(
    spec: &Spec<'_>,
    faults: &mut Faults<'_>,
) -> Option<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
    let single = faults.value(&spec.cluster_ip, format_args!("spec.clusterIP"))?;
    if single.is_empty() || single == "None" {
        return None;
    }
    let families = faults.list(&spec.ip_families, "spec.ipFamilies");
    let listed = faults.list(&spec.cluster_ips, "spec.clusterIPs");
    let mut found = (None, None);
    if families.is_empty() {
        match read_unicast(single, format_args!("spec.clusterIP"), faults)? {
            IpAddr::V4(address) => found.0 = Some(address),
            IpAddr::V6(address) => found.1 = Some(address),
        }
        return Some(found);
    }
    for (index, family) in families.into_iter().take(2) {
        let family = match family.as_ref() {
            "IPv4" => IpFamily::V4,
            "IPv6" => IpFamily::V6,
            other => {
                faults.add(
                    format_args!("spec.ipFamilies[{index}]"),
                    format_args!("{} is neither IPv4 nor IPv6; ignored", Quoted(other)),
                );
                continue;
            }
        };
        // The API server writes both fields; a manifest may have only the old one.
        let text = if spec.cluster_ips.is_present() {
            listed
                .iter()
                .find(|(at, _)| *at == index)
                .map(|(_, ip)| *ip)
        } else {
            Some(single).filter(|_| index == 0)
        };
        let Some(address) = text
            .filter(|text| !text.is_empty())
            .and_then(|text| read_unicast(text, format_args!("spec.clusterIPs[{index}]"), faults))
        else {
            continue;
        };
        match (family, address) {
            (IpFamily::V4, IpAddr::V4(address)) => found.0 = found.0.or(Some(address)),
            (IpFamily::V6, IpAddr::V6(address)) => found.1 = found.1.or(Some(address)),
            (IpFamily::V4, IpAddr::V6(_)) | (IpFamily::V6, IpAddr::V4(_)) => faults.add(
                format_args!("spec.clusterIPs[{index}]"),
                format_args!("{address} is no {family} address; ignored"),
            ),
        }
    }
    (found != (None, None)).then_some(found)
}

fn read_ports(
    spec: &Spec<'_>,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Box<[ServicePortSpec]> {
    let wire = faults.list(&spec.ports, "spec.ports");
    let mut taken = BTreeSet::new();
    let mut ports = Vec::with_capacity(wire.len());
    for (index, port) in wire {
        let Some(port) = read_port(index, port, interner, faults) else {
            continue;
        };
        if taken.insert((port.name.clone(), port.protocol)) {
            ports.push(port);
        } else {
            faults.add(
                format_args!("spec.ports[{index}]"),
                format_args!(
                    "has the name and protocol of an earlier port ({:?}, {}); ignored",
                    port.name, port.protocol
                ),
            );
        }
    }
    ports.into()
}

fn read_port(
    index: usize,
    wire: &WirePort<'_>,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Option<ServicePortSpec> {
    let name = faults
        .value(&wire.name, format_args!("spec.ports[{index}].name"))
        .map_or("", Cow::as_ref);
    if !is_port_name(name) {
        faults.add(
            format_args!("spec.ports[{index}].name"),
            format_args!("{} is no port name; port ignored", Quoted(name)),
        );
        return None;
    }
    let protocol = read_protocol(
        &wire.protocol,
        format_args!("spec.ports[{index}].protocol"),
        faults,
    )?;
    Some(ServicePortSpec {
        name: interner.get(name),
        protocol,
        port: required_port(&wire.port, format_args!("spec.ports[{index}].port"), faults)?,
        node_port: optional_port(
            &wire.node_port,
            format_args!("spec.ports[{index}].nodePort"),
            faults,
        ),
    })
}

/// Addresses that may be blank, in their order, each once. Spec: SVC-10.
fn read_addresses(
    field: &Field<Vec<Field<Cow<'_, str>>>>,
    path: &str,
    faults: &mut Faults<'_>,
) -> Box<[IpAddr]> {
    let mut addresses = Vec::new();
    let mut known = BTreeSet::new();
    for (index, text) in faults.list(field, path) {
        if text.trim().is_empty() {
            continue;
        }
        if let Some(address) = read_global(text, format_args!("{path}[{index}]"), faults)
            && known.insert(address)
        {
            addresses.push(address);
        }
    }
    addresses.into()
}

/// The addresses that a load balancer delivers unchanged. Spec: LB-1 to LB-3.
fn read_ingress(status: &Field<Status<'_>>, faults: &mut Faults<'_>) -> Box<[IpAddr]> {
    const PATH: &str = "status.loadBalancer.ingress";
    let Some(balancer) = faults
        .value(status, format_args!("status"))
        .and_then(|status| {
            faults.value(&status.load_balancer, format_args!("status.loadBalancer"))
        })
    else {
        return Box::default();
    };
    let mut addresses = Vec::new();
    let mut known = BTreeSet::new();
    for (index, ingress) in faults.list(&balancer.ingress, PATH) {
        let mode = faults.value(&ingress.ip_mode, format_args!("{PATH}[{index}].ipMode"));
        match mode.map_or("VIP", Cow::as_ref) {
            "VIP" => {}
            "Proxy" => continue,
            other => {
                faults.add(
                    format_args!("{PATH}[{index}].ipMode"),
                    format_args!("{} is unknown; address ignored", Quoted(other)),
                );
                continue;
            }
        }
        let text = faults.value(&ingress.ip, format_args!("{PATH}[{index}].ip"));
        if let Some(text) = text.filter(|text| !text.trim().is_empty())
            && let Some(address) = read_unicast(text, format_args!("{PATH}[{index}].ip"), faults)
            && known.insert(address)
        {
            addresses.push(address);
        }
    }
    addresses.into()
}

/// The networks that may use the load-balancer addresses. Spec: FW-5.
fn read_source_ranges(spec: &Spec<'_>, faults: &mut Faults<'_>) -> Box<[IpNet]> {
    const PATH: &str = "spec.loadBalancerSourceRanges";
    let mut networks = Vec::new();
    let mut known = BTreeSet::new();
    for (index, text) in faults.list(&spec.load_balancer_source_ranges, PATH) {
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        match parse_network(text) {
            Ok(network) => {
                if known.insert(network) {
                    networks.push(network);
                }
            }
            Err(error) => faults.add(
                format_args!("{PATH}[{index}]"),
                format_args!("{} is not {}; ignored", Quoted(text), error.expected),
            ),
        }
    }
    networks.into()
}

fn read_policy(field: &Field<Cow<'_, str>>, path: &str, faults: &mut Faults<'_>) -> TrafficPolicy {
    match faults
        .value(field, format_args!("{path}"))
        .map_or("", Cow::as_ref)
    {
        "" | "Cluster" => TrafficPolicy::Cluster,
        "Local" => TrafficPolicy::Local,
        other => {
            faults.add(
                format_args!("{path}"),
                format_args!("{} is unknown; taken as Cluster", Quoted(other)),
            );
            TrafficPolicy::Cluster
        }
    }
}

/// Session affinity; without its configuration the default timeout holds. Spec: SVC-11.
fn read_affinity(spec: &Spec<'_>, faults: &mut Faults<'_>) -> Option<AffinityTimeout> {
    const PATH: &str = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let text = faults.value(&spec.session_affinity, format_args!("spec.sessionAffinity"));
    match text.map_or("", Cow::as_ref) {
        "" | "None" => return None,
        "ClientIP" => {}
        other => {
            faults.add(
                format_args!("spec.sessionAffinity"),
                format_args!("{} is unknown; taken as None", Quoted(other)),
            );
            return None;
        }
    }
    let seconds = faults
        .value(
            &spec.session_affinity_config,
            format_args!("spec.sessionAffinityConfig"),
        )
        .and_then(|config| {
            faults.value(
                &config.client_ip,
                format_args!("spec.sessionAffinityConfig.clientIP"),
            )
        })
        .and_then(|client| faults.value(&client.timeout_seconds, format_args!("{PATH}")));
    let Some(seconds) = seconds else {
        return Some(AffinityTimeout::DEFAULT);
    };
    let timeout = u32::try_from(*seconds).ok().and_then(AffinityTimeout::new);
    if timeout.is_none() {
        faults.add(
            format_args!("{PATH}"),
            format_args!(
                "{seconds} is not within 1 to {}; taken as {}",
                AffinityTimeout::MAX.seconds(),
                AffinityTimeout::DEFAULT.seconds()
            ),
        );
    }
    Some(timeout.unwrap_or(AffinityTimeout::DEFAULT))
}

/// Whether a port of a Service or EndpointSlice may be called this; the empty name is the unnamed port.
pub(super) fn is_port_name(name: &str) -> bool {
    name.is_empty() || is_label(name)
}

/// An address, or a fault. Spec: SVC-10.
pub(super) fn read_address(
    text: &str,
    path: std::fmt::Arguments<'_>,
    faults: &mut Faults<'_>,
) -> Option<IpAddr> {
    match parse_address(text) {
        Ok(address) => Some(address),
        Err(error) => {
            faults.add(
                path,
                format_args!("{} is not {}; ignored", Quoted(text), error.expected),
            );
            None
        }
    }
}

/// An address that a host can have, or a fault.
fn read_unicast(
    text: &str,
    path: std::fmt::Arguments<'_>,
    faults: &mut Faults<'_>,
) -> Option<IpAddr> {
    let address = read_address(text, path, faults)?;
    if let Some(what) = never_unicast(address) {
        faults.add(path, format_args!("{address} is {what}; ignored"));
        return None;
    }
    Some(address)
}

/// An address that means the same host on every link, or a fault.
pub(super) fn read_global(
    text: &str,
    path: std::fmt::Arguments<'_>,
    faults: &mut Faults<'_>,
) -> Option<IpAddr> {
    let address = read_unicast(text, path, faults)?;
    if let Some(what) = link_local(address) {
        faults.add(path, format_args!("{address} is {what}; ignored"));
        return None;
    }
    Some(address)
}

/// A protocol, TCP if it is missing; an unknown one is a fault.
pub(super) fn read_protocol(
    field: &Field<Cow<'_, str>>,
    path: std::fmt::Arguments<'_>,
    faults: &mut Faults<'_>,
) -> Option<L4Proto> {
    match field {
        Field::Missing => Some(L4Proto::Tcp),
        Field::Wrong { .. } => {
            faults.value(field, path);
            None
        }
        Field::Value(text) => match text.as_ref() {
            "TCP" => Some(L4Proto::Tcp),
            "UDP" => Some(L4Proto::Udp),
            "SCTP" => Some(L4Proto::Sctp),
            other => {
                faults.add(
                    path,
                    format_args!(
                        "{} is none of TCP, UDP and SCTP; port ignored",
                        Quoted(other)
                    ),
                );
                None
            }
        },
    }
}

/// A port number that must be there.
fn required_port(
    field: &Field<i64>,
    path: std::fmt::Arguments<'_>,
    faults: &mut Faults<'_>,
) -> Option<Port> {
    if *field == Field::Missing {
        faults.add(path, format_args!("is missing; port ignored"));
        return None;
    }
    let number = *faults.value(field, path)?;
    let port = u16::try_from(number).ok().and_then(Port::new);
    if port.is_none() {
        faults.add(
            path,
            format_args!("{number} is not within 1 to 65535; port ignored"),
        );
    }
    port
}

/// A port number where 0 and nothing mean none.
pub(super) fn optional_port(
    field: &Field<i64>,
    path: std::fmt::Arguments<'_>,
    faults: &mut Faults<'_>,
) -> Option<Port> {
    let number = *faults.value(field, path)?;
    if number == 0 {
        return None;
    }
    let port = u16::try_from(number).ok().and_then(Port::new);
    if port.is_none() {
        faults.add(
            path,
            format_args!("{number} is not within 1 to 65535; ignored"),
        );
    }
    port
}
