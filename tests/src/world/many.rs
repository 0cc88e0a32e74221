//! Which clusters are large? N Services of M endpoints each, all alike.
//!
//! Every endpoint has an address of its own in 10.128.0.0/10, so that one namespace can take that whole network as its own and
//! say at which address it was reached.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

/// The port that every endpoint listens on.
pub const PORT: u16 = 8080;
/// Which addresses are pods'.
pub const CLUSTER_CIDR: &str = "10.128.0.0/9";
/// The network of the endpoints; the client pod is not in it.
pub const ENDPOINTS: &str = "10.128.0.0/10";

/// How many sets of addresses the endpoints of a Service take turns among.
pub const GENERATIONS: u32 = 8;

/// N Services of M endpoints. The last Service has a UDP port besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// How many Services.
    pub services: u32,
    /// Of how many endpoints each.
    pub endpoints: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}", thousands(self.services), self.endpoints)
    }
}

fn thousands(n: u32) -> String {
    if n >= 1000 {
        format!("{},{:03}", n / 1000, n % 1000)
    } else {
        n.to_string()
    }
}

impl Size {
    /// All objects, with the Node that the daemon runs on and a `ServiceCIDR`.
    pub fn objects(self, node: &str) -> Vec<Value> {
        let mut objects = vec![
            json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": node, "uid": "0", "labels": {"kubernetes.io/hostname": node}},
                "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes", "uid": "1"}, "spec": {"cidrs": ["10.96.0.0/12"]}}),
        ];
        for service in 0..self.services {
            objects.push(self.service(service));
            objects.push(self.slice(service, 0));
        }
        objects
    }

    /// The EndpointSlice of a Service after its endpoints were replaced `generation` times.
    pub fn slice(self, service: u32, generation: u32) -> Value {
        let (name, namespace) = (name(service), namespace(service));
        let endpoint = |n: u32| {
            json!({"addresses": [self.endpoint(service, generation, n)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("{name}-{n:03}")},
                "nodeName": format!("node-{}", n % 100)})
        };
        let mut ports = vec![json!({"name": "http", "port": PORT, "protocol": "TCP"})];
        if self.has_udp(service) {
            ports.push(json!({"name": "udp", "port": PORT, "protocol": "UDP"}));
        }
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-x7k2p"), "namespace": namespace, "uid": format!("e-{service}"),
                "labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": ports,
            "endpoints": (0..self.endpoints).map(endpoint).collect::<Vec<_>>()})
    }

    fn service(self, service: u32) -> Value {
        let (name, ip) = (name(service), vip(service).ip());
        let mut ports =
            vec![json!({"name": "http", "protocol": "TCP", "port": 80, "targetPort": PORT})];
        if self.has_udp(service) {
            ports.push(json!({"name": "udp", "protocol": "UDP", "port": 80, "targetPort": PORT}));
        }
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace(service), "uid": format!("s-{service}"),
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "selector": {"app": name}, "ports": ports},
            "status": {"loadBalancer": {}}})
    }

    fn has_udp(self, service: u32) -> bool {
        service + 1 == self.services
    }

    /// An endpoint's address; each generation has its own, so that nothing of the one before is left.
    fn endpoint(self, service: u32, generation: u32, endpoint: u32) -> Ipv4Addr {
        let each = self.services * self.endpoints;
        let base = u32::from(Ipv4Addr::new(10, 128, 1, 0));
        Ipv4Addr::from(
            base + (generation % GENERATIONS) * each + service * self.endpoints + endpoint,
        )
    }

    /// The first endpoints of the one UDP port there is.
    pub fn udp_endpoints(self) -> Vec<Ipv4Addr> {
        (0..self.endpoints)
            .map(|j| self.endpoint(self.services - 1, 0, j))
            .collect()
    }

    /// Which generation an address belongs to, among those that take turns.
    pub fn generation_of(self, address: Ipv4Addr) -> u32 {
        (u32::from(address) - u32::from(Ipv4Addr::new(10, 128, 1, 0)))
            / (self.services * self.endpoints)
    }

    /// The turn that a generation has.
    pub fn turn(generation: u32) -> u32 {
        generation % GENERATIONS
    }

    /// The first, a middle, and the last Service.
    pub fn places(self) -> [(&'static str, u32); 3] {
        [
            ("first", 0),
            ("middle", self.services / 2),
            ("last", self.services - 1),
        ]
    }

    /// Where the last Service listens.
    pub fn last(self) -> SocketAddr {
        vip(self.services - 1)
    }
}

/// Where a Service listens.
pub fn vip(service: u32) -> SocketAddr {
    let address = u32::from(Ipv4Addr::new(10, 96, 1, 0)) + service;
    SocketAddr::new(Ipv4Addr::from(address).into(), 80)
}

fn name(service: u32) -> String {
    format!("svc-{service:05}")
}

fn namespace(service: u32) -> String {
    format!("bench-{:02}", service % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_have_no_address_in_common() {
        let size = Size {
            services: 30_000,
            endpoints: 10,
        };
        for generation in 0..GENERATIONS {
            for (service, endpoint) in [(0, 0), (29_999, 9)] {
                assert_eq!(
                    size.generation_of(size.endpoint(service, generation, endpoint)),
                    generation
                );
            }
        }
    }
}
