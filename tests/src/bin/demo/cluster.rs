//! What is in the demo's cluster: pods, and the manifests that a person would `kubectl apply`.

use std::net::SocketAddr;

use anyhow::Result;
use proxy_tests::address::{Family, Host, OTHER, P1, P2, R, R2};
use proxy_tests::lab::serve;
use proxy_tests::topology::Topology;

/// The name of the node under the daemon.
pub(crate) const NODE: &str = "node-a";
/// Which addresses are pods'.
pub(crate) const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:244::/48";

/// Pods, with their names in the show.
pub(crate) const PODS: [(Host, &str); 4] =
    [(P1, "pod-1"), (P2, "pod-2"), (R, "pod-3"), (R2, "pod-4")];

/// Starts a server in every pod, and the pretend API server on the other node.
pub(crate) fn serve(topology: &Topology) -> Result<()> {
    for (pod, name) in PODS {
        let site = topology.site(pod.site);
        for family in Family::ALL {
            let address = pod.addr.of(family);
            serve::tcp(site, SocketAddr::new(address, 8080), name)?;
            serve::udp(site, SocketAddr::new(address, 5353), name)?;
        }
    }
    let api = SocketAddr::new(OTHER.addr.of(Family::V4), 6443);
    serve::tcp(topology.site(OTHER.site), api, "api-server")
}

/// The EndpointSlice of the Service that moves, with its one endpoint.
pub(crate) fn moving(endpoint: &str, node: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: shop
  name: moving-x7k2p
  labels:
    kubernetes.io/service-name: moving
addressType: IPv4
ports:
  - name: http
    protocol: TCP
    port: 8080
endpoints:
  - addresses: [{endpoint}]
    nodeName: {node}
    conditions: {{ready: true}}
"
    )
}

/// Names and texts of the manifests.
pub(crate) const MANIFESTS: &[(&str, &str)] = &[
    ("nodes.yaml", include_str!("manifests/nodes.yaml")),
    ("kubernetes.yaml", include_str!("manifests/kubernetes.yaml")),
    ("web.yaml", include_str!("manifests/web.yaml")),
    ("dns.yaml", include_str!("manifests/dns.yaml")),
    ("cart.yaml", include_str!("manifests/cart.yaml")),
    ("soldout.yaml", include_str!("manifests/soldout.yaml")),
    ("moving.yaml", include_str!("manifests/moving.yaml")),
];
