//! What does a Service say?
//!
//! Invariants: what is absent has the meaning that kube-proxy gives it; one bad port or address never
//! costs the Service its others. Spec: SVC-3, SVC-6, SVC-9 to SVC-11, DS-3, LB-1 to LB-3, FW-5.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::faults::{At, Quoted};
use super::intern::Interner;
use super::text::parse_time;
use super::values::distinct;
use super::wire::{Ingress, Metadata, Object, Port as WirePort, Spec, Text};
use crate::model::{
    AffinityTimeout, Service, ServiceKind, ServiceName, ServicePortSpec, TrafficPolicy,
};
use crate::net::IpFamily;

/// Reads a Service; `None` for one that we do not serve.
pub(super) fn read(
    name: &ServiceName,
    object: &At<'_, Object<'_>>,
    interner: &mut Interner,
) -> Option<Service> {
    let labels = object.labels();
    if labels.is_some_and(|labels| labels.service_proxy_name.is_present()) {
        return None;
    }
    let spec = object.get("spec", &object.spec)?;
    let kind = read_kind(&spec)?;
    let (cluster_ip_v4, cluster_ip_v6) = read_cluster_ips(&spec)?;
    // Spec: SVC-10.
    let external_ips = spec.texts("externalIPs", &spec.external_ips);
    let external_ips = distinct(external_ips.filter_map(|text| text.global()));
    let external_policy = read_policy(
        &spec,
        "externalTrafficPolicy",
        &spec.external_traffic_policy,
    );
    let is_external = kind != ServiceKind::ClusterIp || !external_ips.is_empty();
    Some(Service {
        name: name.clone(),
        kind,
        cluster_ip_v4,
        cluster_ip_v6,
        ports: read_ports(&spec, interner),
        external_policy: if is_external {
            external_policy
        } else {
            TrafficPolicy::Cluster
        },
        external_ips,
        load_balancer_ips: read_ingress(object),
        source_ranges: read_source_ranges(&spec),
        internal_policy: read_policy(
            &spec,
            "internalTrafficPolicy",
            &spec.internal_traffic_policy,
        ),
        affinity: read_affinity(&spec),
        health_check_port: spec.optional_port("healthCheckNodePort", &spec.health_check_node_port),
        created: object
            .get("metadata", &object.metadata)
            .and_then(|metadata| read_creation(&metadata))
            .unwrap_or(i64::MAX),
    })
}

fn read_creation(metadata: &At<'_, Metadata<'_>>) -> Option<i64> {
    let field = &metadata.creation_timestamp;
    let text = metadata.value("creationTimestamp", field)?;
    let time = parse_time(text);
    if time.is_none() {
        let message = format_args!("{} is no time; taken as the youngest", Quoted(text));
        metadata.fault_in("creationTimestamp", message);
    }
    time
}

/// `None` for a type that has no ClusterIP.
fn read_kind(spec: &At<'_, Spec<'_>>) -> Option<ServiceKind> {
    const KINDS: [(&str, Option<ServiceKind>); 5] = [
        ("", Some(ServiceKind::ClusterIp)),
        ("ClusterIP", Some(ServiceKind::ClusterIp)),
        ("NodePort", Some(ServiceKind::NodePort)),
        ("LoadBalancer", Some(ServiceKind::LoadBalancer)),
        ("ExternalName", None),
    ];
    let fault = "unknown; taken as ClusterIP";
    let kind = spec.word("type", &spec.kind, "", &KINDS, fault);
    kind.unwrap_or(Some(ServiceKind::ClusterIp))
}

/// The ClusterIP of each family; `None` if it has none at all. Spec: DS-3, SVC-3.
fn read_cluster_ips(spec: &At<'_, Spec<'_>>) -> Option<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
    const FAMILIES: [(&str, IpFamily); 2] = [("IPv4", IpFamily::V4), ("IPv6", IpFamily::V6)];
    let single = spec.get("clusterIP", &spec.cluster_ip)?;
    if single.is_empty() || &**single == "None" {
        return None;
    }
    let families: Vec<_> = spec.list("ipFamilies", &spec.ip_families).collect();
    let listed: Vec<_> = spec.list("clusterIPs", &spec.cluster_ips).collect();
    let mut found = (None, None);
    if families.is_empty() {
        match single.unicast()? {
            IpAddr::V4(address) => found.0 = Some(address),
            IpAddr::V6(address) => found.1 = Some(address),
        }
        return Some(found);
    }
    for family in families.iter().take(2) {
        let Some(wanted) = family.means(&FAMILIES, "neither IPv4 nor IPv6; ignored") else {
            continue;
        };
        let index = family.index();
        // The API server writes both fields; a manifest may have only the old one.
        let text = if spec.cluster_ips.is_present() {
            listed.iter().find(|text| text.index() == index)
        } else {
            Some(&single).filter(|_| index == 0)
        };
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            continue;
        };
        match (wanted, text.unicast()) {
            (_, None) => {}
            (IpFamily::V4, Some(IpAddr::V4(address))) => found.0 = found.0.or(Some(address)),
            (IpFamily::V6, Some(IpAddr::V6(address))) => found.1 = found.1.or(Some(address)),
            (IpFamily::V4, Some(address @ IpAddr::V6(_)))
            | (IpFamily::V6, Some(address @ IpAddr::V4(_))) => {
                text.fault(format_args!("{address} is no {wanted} address; ignored"));
            }
        }
    }
    (found != (None, None)).then_some(found)
}

fn read_ports(spec: &At<'_, Spec<'_>>, interner: &mut Interner) -> Box<[ServicePortSpec]> {
    let mut taken = BTreeSet::new();
    let mut ports = Vec::new();
    for wire in spec.list("ports", &spec.ports) {
        let Some(port) = read_port(&wire, interner) else {
            continue;
        };
        if taken.insert((port.name.clone(), port.protocol)) {
            ports.push(port);
        } else {
            let (name, protocol) = (port.name, port.protocol);
            wire.fault(format_args!(
                "has the name and protocol of an earlier port ({name:?}, {protocol}); ignored"
            ));
        }
    }
    ports.into()
}

fn read_port(wire: &At<'_, WirePort<'_>>, interner: &mut Interner) -> Option<ServicePortSpec> {
    let name = wire.value("name", &wire.name).map_or("", |name| name);
    let name = wire.checked_name(name)?;
    let protocol = wire.l4_protocol()?;
    if !wire.port.is_present() {
        wire.fault_in("port", format_args!("is missing; port ignored"));
    }
    Some(ServicePortSpec {
        name: interner.get(name),
        protocol,
        port: wire.number("port", &wire.port, "port ignored")?,
        node_port: wire.optional_port("nodePort", &wire.node_port),
    })
}

/// The addresses that a load balancer delivers unchanged. Spec: LB-1 to LB-3.
fn read_ingress(object: &At<'_, Object<'_>>) -> Box<[IpAddr]> {
    let Some(status) = object.get("status", &object.status) else {
        return Box::default();
    };
    let Some(balancer) = status.get("loadBalancer", &status.load_balancer) else {
        return Box::default();
    };
    let address = |ingress: At<'_, Ingress<'_>>| {
        let modes = [("VIP", true), ("Proxy", false)];
        let fault = "unknown; address ignored";
        if !ingress.word("ipMode", &ingress.ip_mode, "VIP", &modes, fault)? {
            return None;
        }
        let text = ingress.get("ip", &ingress.ip)?;
        if text.trim().is_empty() {
            return None;
        }
        text.unicast()
    };
    distinct(
        balancer
            .list("ingress", &balancer.ingress)
            .filter_map(address),
    )
}

/// The networks that may use the load-balancer addresses. Spec: FW-5.
fn read_source_ranges(spec: &At<'_, Spec<'_>>) -> Box<[IpNet]> {
    const NAME: &str = "loadBalancerSourceRanges";
    let networks = spec.texts(NAME, &spec.load_balancer_source_ranges);
    distinct(networks.filter_map(|text| text.network()))
}

fn read_policy(spec: &At<'_, Spec<'_>>, name: &str, field: &Text<'_>) -> TrafficPolicy {
    const POLICIES: [(&str, TrafficPolicy); 3] = [
        ("", TrafficPolicy::Cluster),
        ("Cluster", TrafficPolicy::Cluster),
        ("Local", TrafficPolicy::Local),
    ];
    spec.word(name, field, "", &POLICIES, "unknown; taken as Cluster")
        .unwrap_or(TrafficPolicy::Cluster)
}

/// Session affinity; without its configuration the default timeout holds. Spec: SVC-11.
fn read_affinity(spec: &At<'_, Spec<'_>>) -> Option<AffinityTimeout> {
    let kinds = [("", false), ("None", false), ("ClientIP", true)];
    let field = &spec.session_affinity;
    let fault = "unknown; taken as None";
    if !spec.word("sessionAffinity", field, "", &kinds, fault)? {
        return None;
    }
    Some(read_timeout(spec).unwrap_or(AffinityTimeout::DEFAULT))
}

fn read_timeout(spec: &At<'_, Spec<'_>>) -> Option<AffinityTimeout> {
    let config = spec.get("sessionAffinityConfig", &spec.session_affinity_config)?;
    let client = config.get("clientIP", &config.client_ip)?;
    let seconds = *client.value("timeoutSeconds", &client.timeout_seconds)?;
    let timeout = u32::try_from(seconds).ok().and_then(AffinityTimeout::new);
    if timeout.is_none() {
        let (most, default) = (AffinityTimeout::MAX, AffinityTimeout::DEFAULT);
        let (most, default) = (most.seconds(), default.seconds());
        let message = format_args!("{seconds} is not within 1 to {most}; taken as {default}");
        client.fault_in("timeoutSeconds", message);
    }
    timeout
}
