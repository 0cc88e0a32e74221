//! Which clusters are tried? Small ones, from small pools, so that everything collides with everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proxy_daemon::compile::Environment;
use proxy_daemon::config::{DetectLocal, NodePortAddresses, Policy};
use proxy_daemon::forwarding::InterfaceName;
use proxy_daemon::model::{ServiceInput, ServiceName};
use proxy_daemon::net::{Family, L4Proto, V4, V6};
use proxy_tests::address::{self, Addr, NODE_NAME, OTHER_NODE_NAME, Protocol};
use proxy_tests::world::{Endpoint, TARGET_PORT, World};
use serde_json::json;

/// The addresses that clusters and packets are made of: `a.b.c.d` is the same host in both families.
pub(crate) trait Pool: Family {
    /// What the harness calls the family.
    const OURS: address::Family;

    /// The address of a host.
    fn address(twin: [u8; 4]) -> IpAddr {
        Addr::twin(twin).of(Self::OURS)
    }

    /// The prefix length that stands for this one of IPv4.
    fn prefix_len(v4: u8) -> u8 {
        match Self::OURS {
            address::Family::V4 => v4,
            address::Family::V6 => 64 + v4 * 2,
        }
    }

    /// A network.
    fn network(twin: [u8; 4], prefix: u8) -> IpNet {
        let network = IpNet::new(Self::address(twin), Self::prefix_len(prefix));
        network.unwrap().trunc()
    }
}

impl Pool for V4 {
    const OURS: address::Family = address::Family::V4;
}

impl Pool for V6 {
    const OURS: address::Family = address::Family::V6;
}

pub(crate) const UPLINK: [u8; 4] = [192, 0, 2, 2];
pub(crate) const SECOND: [u8; 4] = [198, 51, 100, 2];
pub(crate) const GATEWAY: [u8; 4] = [10, 244, 1, 1];
/// N's own addresses.
pub(crate) const LOCAL: [[u8; 4]; 3] = [UPLINK, SECOND, GATEWAY];
const CLUSTER_IPS: [[u8; 4]; 4] = [
    [10, 96, 0, 1],
    [10, 96, 0, 2],
    [10, 96, 0, 3],
    [10, 96, 0, 4],
];
const EXTERNAL: [[u8; 4]; 5] = [
    [203, 0, 113, 250],
    [203, 0, 113, 251],
    UPLINK,
    SECOND,
    [10, 96, 0, 1],
];
/// The last one is the ClusterIP of a Service: no API server forbids it in an EndpointSlice.
const ENDPOINTS: [[u8; 4]; 7] = [
    [10, 244, 1, 11],
    [10, 244, 1, 12],
    [10, 244, 2, 21],
    [10, 244, 2, 22],
    [203, 0, 113, 7],
    UPLINK,
    [10, 96, 0, 3],
];
const PORTS: [u16; 2] = [80, 53];
const NODE_PORTS: [u16; 3] = [30_001, 30_002, 80];

/// Where a packet is put into the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// The interface towards the local pods.
    Pods,
    /// The uplink.
    Uplink,
    /// The node itself.
    Node,
}

/// One packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) from: From,
    pub(crate) source: [u8; 4],
    pub(crate) to: [u8; 4],
    /// `None` is an ICMP echo.
    pub(crate) transport: Option<(L4Proto, u16)>,
}

/// One state of the cluster, and the packets sent through it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) settings: Settings,
    pub(crate) services: Vec<ServiceShape>,
    pub(crate) probes: Vec<Probe>,
    /// Whether the datapath reads the kernel back first, as after a restart.
    pub(crate) resync: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    detector: u8,
    masquerade_all: bool,
    node_ports: u8,
    service_cidrs: u8,
}

#[derive(Clone, Debug)]
pub(crate) struct ServiceShape {
    cluster_ip: usize,
    external: Option<usize>,
    balancer: Option<usize>,
    node_port: Option<usize>,
    protocol: usize,
    port: usize,
    ranges: u8,
    policies: u8,
    affinity: bool,
    endpoints: Vec<(usize, u8, u8)>,
}

pub(crate) fn sequences() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..5)
}

fn step() -> impl Strategy<Value = Step> {
    (
        settings(),
        vec(service(), 0..6),
        vec(probe(), 1..80),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(settings, services, probes, resync)| Step {
            settings,
            services,
            probes,
            resync,
        })
}

fn settings() -> impl Strategy<Value = Settings> {
    (0..5_u8, prop::bool::weighted(0.2), 0..3_u8, 0..64_u8).prop_map(
        |(detector, masquerade_all, node_ports, service_cidrs)| Settings {
            detector,
            masquerade_all,
            node_ports,
            service_cidrs,
        },
    )
}

fn service() -> impl Strategy<Value = ServiceShape> {
    let places = (
        0..CLUSTER_IPS.len(),
        prop::option::of(0..EXTERNAL.len()),
        prop::option::of(0..EXTERNAL.len()),
        prop::option::of(0..NODE_PORTS.len()),
        0..3_usize,
        0..PORTS.len(),
    );
    let rest = (0..5_u8, 0..4_u8, prop::bool::weighted(0.3));
    let endpoints = vec((0..ENDPOINTS.len(), 0..8_u8, 0..4_u8), 0..5);
    (places, rest, endpoints).prop_map(|(places, rest, endpoints)| {
        let (cluster_ip, external, balancer, node_port, protocol, port) = places;
        let (ranges, policies, affinity) = rest;
        ServiceShape {
            cluster_ip,
            external,
            balancer,
            node_port,
            protocol,
            port,
            ranges,
            policies,
            affinity,
            endpoints,
        }
    })
}

fn probe() -> impl Strategy<Value = Probe> {
    let pods = prop::sample::select(vec![[10, 244, 1, 11], [10, 244, 1, 12], [10, 244, 1, 13]]);
    let outside = prop::sample::select(vec![
        [10, 244, 2, 21],
        [203, 0, 113, 7],
        [203, 0, 113, 99],
        [203, 0, 113, 251],
        [192, 0, 2, 9],
    ]);
    let own = prop::sample::select(LOCAL.to_vec());
    let source = prop_oneof![
        pods.prop_map(|source| (From::Pods, source)),
        outside.prop_map(|source| (From::Uplink, source)),
        own.prop_map(|source| (From::Node, source)),
    ];
    let to: Vec<_> = CLUSTER_IPS
        .iter()
        .chain(&EXTERNAL)
        .chain(&ENDPOINTS)
        .copied()
        .chain([[10, 96, 9, 9], [10, 97, 9, 9], [10, 50, 9, 9]])
        .collect();
    let ports: Vec<_> = PORTS
        .iter()
        .chain(&NODE_PORTS)
        .copied()
        .chain([81])
        .collect();
    let transport = prop::option::weighted(
        0.95,
        (
            prop::sample::select(L4Proto::ALL.to_vec()),
            prop::sample::select(ports),
        ),
    );
    (source, prop::sample::select(to), transport).prop_map(|((from, source), to, transport)| {
        Probe {
            from,
            source,
            to,
            transport,
        }
    })
}

/// The environment of a step.
pub(crate) fn environment<F: Pool>(settings: &Settings) -> Environment {
    let network = F::network;
    let pods = network([10, 244, 0, 0], 16);
    let detect_local = match settings.detector {
        0 => DetectLocal::BridgeInterface(InterfaceName::new("pods").unwrap()),
        1 => DetectLocal::InterfaceNamePrefix(InterfaceName::new("po").unwrap()),
        2 => DetectLocal::ClusterCidr { v4: None, v6: None },
        _ => DetectLocal::NodeCidr,
    };
    let second = [network([198, 51, 100, 0], 24)];
    let node_port_addresses = NodePortAddresses {
        primary: settings.node_ports == 0,
        networks: second
            .into_iter()
            .filter(|_| settings.node_ports > 1)
            .collect(),
        silence_is_all: settings.node_ports > 0,
    };
    // The usual one, one that holds the pods, one in which an endpoint is (and no sentinel), one that the node is on, parts
    // of the pods' network, and one that touches the usual one.
    let service_cidrs = [
        network([10, 96, 0, 0], 16),
        network([10, 0, 0, 0], 8),
        network([203, 0, 113, 0], 29),
        network([192, 0, 2, 0], 24),
        network([10, 244, 2, 0], 24),
        network([10, 97, 0, 0], 16),
    ];
    let service_cidrs = (0..).zip(service_cidrs);
    let service_cidrs = service_cidrs.filter(|(bit, _)| settings.service_cidrs & 1 << bit != 0);
    Environment {
        policy: Policy {
            detect_local,
            masquerade_all: settings.masquerade_all,
            node_port_addresses,
            ..Policy::default()
        },
        node_name: NODE_NAME.into(),
        zone: Some("zone-a".into()),
        node_ips: [F::address(UPLINK)].into(),
        pod_cidrs: [pods].into(),
        local_addresses: LOCAL.map(F::address).into(),
        local_networks: [network([10, 244, 1, 0], 24), network([192, 0, 2, 0], 24)].into(),
        service_cidrs: service_cidrs
            .map(|(_, network)| network)
            .collect::<BTreeSet<_>>(),
    }
}

/// The objects of a step, as the daemon reads them.
pub(crate) fn services<F: Pool>(shapes: &[ServiceShape]) -> BTreeMap<ServiceName, ServiceInput> {
    let mut world = World::new(F::OURS, Protocol::Tcp);
    for (n, shape) in shapes.iter().enumerate() {
        add::<F>(&mut world, &format!("svc-{n}"), shape);
    }
    let read = world.read(NODE_NAME).expect("manifests can be read");
    assert_eq!(read.services.len(), shapes.len());
    read.services
}

fn add<F: Pool>(world: &mut World, name: &str, shape: &ServiceShape) {
    let protocol = Protocol::ALL[shape.protocol];
    let service = world.service(name);
    service
        .set("type", json!("LoadBalancer"))
        .cluster_ip(Addr::twin(CLUSTER_IPS[shape.cluster_ip]))
        .port_of("p", PORTS[shape.port], protocol);
    if let Some(at) = shape.node_port {
        service.node_port(NODE_PORTS[at]);
    }
    if let Some(at) = shape.external {
        service.external_ip(Addr::twin(EXTERNAL[at]));
    }
    if let Some(at) = shape.balancer {
        service.load_balancer(Addr::twin(EXTERNAL[at]));
    }
    let ranges = match shape.ranges {
        0 => vec![([203, 0, 113, 0], 24), ([203, 0, 0, 0], 16)],
        1 => vec![([192, 0, 2, 0], 24), ([10, 244, 1, 11], 32)],
        _ => Vec::new(),
    };
    let ranges = ranges
        .into_iter()
        .map(|(twin, prefix)| F::network(twin, prefix));
    let ranges: Vec<String> = ranges.map(|network| network.to_string()).collect();
    service.source_ranges(&ranges.iter().map(String::as_str).collect::<Vec<_>>());
    if shape.policies & 1 != 0 {
        service.external_local();
    }
    if shape.policies & 2 != 0 {
        service.internal_local();
    }
    if shape.affinity {
        service.affinity(10_800);
    }
    let slice = world.endpoints(name).port_of("p", TARGET_PORT, protocol);
    for (at, conditions, hints) in &shape.endpoints {
        slice.endpoint(endpoint(ENDPOINTS[*at], *conditions, *hints));
    }
}

fn endpoint(twin: [u8; 4], conditions: u8, hints: u8) -> Endpoint {
    let is_here = twin == UPLINK || twin[..3] == [10, 244, 1];
    let node = match conditions {
        1 => "",
        _ if is_here => NODE_NAME,
        _ => OTHER_NODE_NAME,
    };
    let endpoint = Endpoint::at(Addr::twin(twin), node).conditions(
        conditions < 5,
        conditions < 7,
        conditions >= 5,
    );
    match hints {
        0 => endpoint.for_zones(&["zone-a"]),
        1 => endpoint.for_zones(&["zone-b"]),
        _ => endpoint,
    }
}
