//! Small clusters for tests: the addresses of SPEC's test bed, everything else filled in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::compile::{Environment, compile};
use crate::config::{DetectLocal, Policy};
use crate::forwarding::{Oracle, Packet, Transport, Verdict};
use crate::model::ServiceInput;
use crate::model::{
    Endpoint, EndpointSlice, Hints, Service, ServiceKind, ServiceName, ServicePortSpec, SliceName,
    SlicePort, TrafficPolicy,
};
use crate::net::{Family, IpFamily, L4Proto, Port, V4};

pub(super) const N: &str = "192.0.2.2";
pub(super) const P1: &str = "10.244.1.11";
pub(super) const P2: &str = "10.244.1.12";
pub(super) const R: &str = "10.244.2.21";
pub(super) const X: &str = "203.0.113.7";
pub(super) const VIP: &str = "10.96.0.10";
pub(super) const EXTERNAL: &str = "203.0.113.250";
pub(super) const BALANCER: &str = "203.0.113.251";

pub(super) fn ip(text: &str) -> IpAddr {
    crate::net::parse_address(text).unwrap()
}

pub(super) fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

pub(super) fn environment() -> Environment {
    Environment {
        policy: Policy {
            detect_local: DetectLocal::ClusterCidr {
                v4: Some("10.244.0.0/16".parse().unwrap()),
                v6: Some("fd00:244::/48".parse().unwrap()),
            },
            cluster_cidrs: ["10.244.0.0/16", "fd00:244::/48"]
                .map(|n| n.parse().unwrap())
                .into(),
            ..Policy::default()
        },
        node_name: "node-n".into(),
        zone: Some("zone-a".into()),
        node_ips: ["192.0.2.2", "2001:db8:2::2"].map(ip).into(),
        pod_cidrs: Box::default(),
        local_addresses: [N, "198.51.100.2", "127.0.0.1", "2001:db8:2::2"]
            .map(ip)
            .into(),
        local_networks: BTreeSet::from(["192.0.2.0/24".parse().unwrap()]),
        service_cidrs: BTreeSet::from(["10.96.0.0/16".parse().unwrap()]),
    }
}

/// A Service with every kind of frontend: ClusterIP, NodePort 30080, ExternalIP and LoadBalancer.
pub(super) fn service(name: &str) -> Service {
    Service {
        name: ServiceName::new("default", name),
        kind: ServiceKind::LoadBalancer,
        cluster_ip_v4: Some(Ipv4Addr::new(10, 96, 0, 10)),
        cluster_ip_v6: None,
        ports: [spec("http", L4Proto::Tcp, 80, Some(30_080))].into(),
        external_ips: [ip(EXTERNAL)].into(),
        load_balancer_ips: [ip(BALANCER)].into(),
        source_ranges: Box::default(),
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_port: None,
        created: 0,
    }
}

/// A Service with nothing but a ClusterIP, so that its only frontend is its own.
pub(super) fn cluster_ip_only(name: &str, address: [u8; 4]) -> Service {
    Service {
        cluster_ip_v4: Some(address.into()),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        ports: [spec("http", L4Proto::Tcp, 80, None)].into(),
        ..service(name)
    }
}

pub(super) fn spec(
    name: &str,
    protocol: L4Proto,
    number: u16,
    node: Option<u16>,
) -> ServicePortSpec {
    ServicePortSpec {
        name: name.into(),
        protocol,
        port: port(number),
        node_port: node.map(port),
    }
}

pub(super) fn ready(address: &str, node: &str) -> Endpoint {
    Endpoint {
        address: ip(address),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        hints: None,
    }
}

pub(super) fn terminating(address: &str, node: &str) -> Endpoint {
    Endpoint {
        ready: false,
        terminating: true,
        ..ready(address, node)
    }
}

pub(super) fn hinted(endpoint: Endpoint, zones: &[&str], nodes: &[&str]) -> Endpoint {
    let names = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
    let hints = Hints {
        zones: names(zones),
        nodes: names(nodes),
    };
    Endpoint {
        hints: Some(Box::new(hints)),
        ..endpoint
    }
}

pub(super) fn slice(name: &str, service: &Service, endpoints: &[Endpoint]) -> Arc<EndpointSlice> {
    let targets = service.ports.iter().map(|p| SlicePort {
        name: Arc::clone(&p.name),
        protocol: p.protocol,
        port: port(8080),
    });
    Arc::new(EndpointSlice {
        name: SliceName::new("default", name),
        service: service.name.clone(),
        family: IpFamily::V4,
        ports: targets.collect(),
        endpoints: endpoints.into(),
    })
}

pub(super) fn input(service: Service, endpoints: &[Endpoint]) -> ServiceInput {
    let slices = vec![slice("slice-a", &service, endpoints)];
    ServiceInput {
        service: Some(Arc::new(service)),
        slices,
    }
}

pub(super) fn only(input: ServiceInput) -> BTreeMap<ServiceName, ServiceInput> {
    let name = input.service.as_ref().unwrap().name.clone();
    BTreeMap::from([(name, input)])
}

/// Where a TCP packet ends: `address:port`, with `~` before those whose source is rewritten.
pub(super) fn ask(
    services: &BTreeMap<ServiceName, ServiceInput>,
    environment: &Environment,
    (from, ingress): (&str, Option<&str>),
    (to, number): (&str, u16),
) -> String {
    let (state, _, _) = compile(services, environment);
    let packet = Packet {
        source: V4::addr(ip(from)).unwrap(),
        ingress,
        destination: V4::addr(ip(to)).unwrap(),
        transport: Transport::Ports(L4Proto::Tcp, port(number)),
    };
    show(&Oracle::new(&state).eval(&packet).verdict)
}

pub(super) fn show(verdict: &Verdict<V4>) -> String {
    match verdict {
        Verdict::Forward(hops) => {
            let hops = hops.iter().map(|hop| {
                format!(
                    "{}{}",
                    if hop.masquerade { "~" } else { "" },
                    hop.backend.address
                )
            });
            hops.collect::<Vec<_>>().join(" ")
        }
        Verdict::Reject => "reject".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Pass => "pass".to_owned(),
    }
}
