//! What clusters are measured: N Services of M endpoints each, all of which answer.
//!
//! Every endpoint has an address of its own in 10.128.0.0/10; the server pod's namespace takes that whole network as its own, so
//! that a connection through any Service works, and the server says which address it was reached at.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use proxy_tests::lab::api::Kind;

/// The port that every endpoint listens on.
pub(crate) const PORT: u16 = 8080;
/// Which addresses are pods'.
pub(crate) const CLUSTER_CIDR: &str = "10.128.0.0/9";
/// The network of the endpoints; the client pod is not in it.
pub(crate) const ENDPOINTS: &str = "10.128.0.0/10";
/// The name of the node under the daemon.
pub(crate) const NODE: &str = "node-a";

/// How many sets of addresses the endpoints of a Service take turns among.
pub(crate) const GENERATIONS: u32 = 8;

/// N Services of M endpoints. The last Service has a UDP port besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) services: u32,
    pub(crate) endpoints: u32,
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
    /// All objects, by kind and name.
    pub(crate) fn objects(self) -> BTreeMap<Kind, BTreeMap<String, String>> {
        let services = (0..self.services)
            .map(|i| (key(i), self.service(i)))
            .collect();
        let slices = (0..self.services)
            .map(|i| (key(i), self.slice(i, 0)))
            .collect();
        let node = format!(
            "{{\"metadata\":{{\"name\":\"{NODE}\",\"uid\":\"0\",\"resourceVersion\":\"VERSION\",\
             \"labels\":{{\"kubernetes.io/hostname\":\"{NODE}\"}}}},\
             \"spec\":{{\"podCIDR\":\"10.244.1.0/24\",\"podCIDRs\":[\"10.244.1.0/24\"]}},\
             \"status\":{{\"addresses\":[{{\"type\":\"InternalIP\",\"address\":\"192.0.2.2\"}}]}}}}"
        );
        let cidr = "{\"metadata\":{\"name\":\"kubernetes\",\"uid\":\"1\",\"resourceVersion\":\"VERSION\"},\
                    \"spec\":{\"cidrs\":[\"10.96.0.0/12\"]}}";
        BTreeMap::from([
            (Kind::Service, services),
            (Kind::EndpointSlice, slices),
            (Kind::Node, BTreeMap::from([(NODE.to_owned(), node)])),
            (
                Kind::ServiceCidr,
                BTreeMap::from([("kubernetes".to_owned(), cidr.to_owned())]),
            ),
        ])
    }

    /// The EndpointSlice of a Service after its endpoints were replaced `generation` times.
    pub(crate) fn slice(self, service: u32, generation: u32) -> String {
        let endpoints: Vec<String> = (0..self.endpoints)
            .map(|j| {
                format!(
                    "{{\"addresses\":[\"{}\"],\"conditions\":{{\"ready\":true,\"serving\":true,\"terminating\":false}},\
                     \"targetRef\":{{\"kind\":\"Pod\",\"namespace\":\"{}\",\"name\":\"svc-{service:05}-{j:03}\"}},\
                     \"nodeName\":\"node-{}\"}}",
                    self.endpoint(service, generation, j),
                    namespace(service),
                    j % 100,
                )
            })
            .collect();
        format!(
            "{{\"metadata\":{{\"name\":\"svc-{service:05}-x7k2p\",\"namespace\":\"{}\",\"uid\":\"e-{service}\",\
             \"resourceVersion\":\"VERSION\",\"labels\":{{\
             \"endpointslice.kubernetes.io/managed-by\":\"endpointslice-controller.k8s.io\",\
             \"kubernetes.io/service-name\":\"svc-{service:05}\"}}}},\"addressType\":\"IPv4\",\
             \"endpoints\":[{}],\"ports\":[{{\"name\":\"http\",\"port\":{PORT},\"protocol\":\"TCP\"}}{}]}}",
            namespace(service),
            endpoints.join(","),
            if self.has_udp(service) {
                format!(",{{\"name\":\"udp\",\"port\":{PORT},\"protocol\":\"UDP\"}}")
            } else {
                String::new()
            },
        )
    }

    fn service(self, service: u32) -> String {
        let ip = vip(service).ip();
        let udp = if self.has_udp(service) {
            format!(",{{\"name\":\"udp\",\"protocol\":\"UDP\",\"port\":80,\"targetPort\":{PORT}}}")
        } else {
            String::new()
        };
        format!(
            "{{\"metadata\":{{\"name\":\"svc-{service:05}\",\"namespace\":\"{}\",\"uid\":\"s-{service}\",\
             \"resourceVersion\":\"VERSION\",\"creationTimestamp\":\"2026-01-01T00:00:00Z\"}},\
             \"spec\":{{\"type\":\"ClusterIP\",\"clusterIP\":\"{ip}\",\"clusterIPs\":[\"{ip}\"],\"ipFamilies\":[\"IPv4\"],\
             \"ipFamilyPolicy\":\"SingleStack\",\"internalTrafficPolicy\":\"Cluster\",\"sessionAffinity\":\"None\",\
             \"selector\":{{\"app\":\"svc-{service:05}\"}},\
             \"ports\":[{{\"name\":\"http\",\"protocol\":\"TCP\",\"port\":80,\"targetPort\":{PORT}}}{udp}]}},\
             \"status\":{{\"loadBalancer\":{{}}}}}}",
            namespace(service)
        )
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
    pub(crate) fn udp_endpoints(self) -> Vec<Ipv4Addr> {
        (0..self.endpoints)
            .map(|j| self.endpoint(self.services - 1, 0, j))
            .collect()
    }

    /// Which generation an address belongs to, among those that take turns.
    pub(crate) fn generation_of(self, address: Ipv4Addr) -> u32 {
        (u32::from(address) - u32::from(Ipv4Addr::new(10, 128, 1, 0)))
            / (self.services * self.endpoints)
    }

    /// The turn that a generation has.
    pub(crate) fn turn(generation: u32) -> u32 {
        generation % GENERATIONS
    }

    /// The first, a middle, and the last Service.
    pub(crate) fn places(self) -> [(&'static str, u32); 3] {
        [
            ("first", 0),
            ("middle", self.services / 2),
            ("last", self.services - 1),
        ]
    }

    /// Where the last Service listens.
    pub(crate) fn last(self) -> SocketAddr {
        vip(self.services - 1)
    }
}

/// Where a Service listens.
pub(crate) fn vip(service: u32) -> SocketAddr {
    let address = u32::from(Ipv4Addr::new(10, 96, 1, 0)) + service;
    SocketAddr::new(Ipv4Addr::from(address).into(), 80)
}

/// The name of a Service's objects in the API server.
pub(crate) fn key(service: u32) -> String {
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

    #[test]
    fn objects_are_json() {
        for (_, objects) in (Size {
            services: 3,
            endpoints: 2,
        })
        .objects()
        {
            for object in objects.values() {
                serde_json::from_str::<serde_json::Value>(object).expect(object);
            }
        }
    }
}
