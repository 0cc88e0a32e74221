//! Which settings change what happens to packets?

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::forwarding::{AffinityLimit, InterfaceName, MarkBit, Netfilter};

/// The settings that `compile` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How sources are classified as POD. Spec: §5.2.
    pub detect_local: DetectLocal,
    /// The cluster's pod networks (`clusterCIDR`), also with another detector.
    /// Spec: REJ-6.
    pub cluster_cidrs: Box<[IpNet]>,
    /// Whether every ClusterIP connection is masqueraded. Spec: SRC-4.
    pub masquerade_all: bool,
    /// Which of the node's addresses accept NodePort traffic. Spec: NP-2.
    pub node_port_addresses: NodePortAddresses,
    /// The feature gate `AllowServiceExternalIPs`. Spec: EXT-4.
    pub allow_external_ips: bool,
    /// The memory that the mode reserves for session affinity; `None`: unlimited.
    pub affinity_limit: Option<AffinityLimit>,
    /// Settings of netfilter datapaths.
    pub netfilter: Netfilter,
}

impl Default for Policy {
    /// The defaults without any flag.
    fn default() -> Self {
        Self {
            detect_local: DetectLocal::ClusterCidr { v4: None, v6: None },
            cluster_cidrs: Box::default(),
            masquerade_all: false,
            node_port_addresses: NodePortAddresses::primary(),
            allow_external_ips: true,
            affinity_limit: None,
            netfilter: Netfilter {
                masquerade_bit: MarkBit::DEFAULT,
                drop_invalid: true,
            },
        }
    }
}

/// How packets from pods are detected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By the cluster's pod network; a family without one has no detector. Spec: DL-1, DL-5.
    ClusterCidr {
        /// The IPv4 pod network.
        v4: Option<Ipv4Net>,
        /// The IPv6 pod network.
        v6: Option<Ipv6Net>,
    },
    /// By the pod networks of our Node. Spec: DL-2.
    NodeCidr,
    /// By the interface they enter through. Spec: DL-3.
    BridgeInterface(InterfaceName),
    /// By the first letters of that interface's name. Spec: DL-4.
    InterfaceNamePrefix(InterfaceName),
}

/// Which of the node's addresses accept NodePort traffic; never loopback. Spec: NP-2 to NP-5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// Whether the node IPs do.
    pub primary: bool,
    /// The networks whose addresses do, with those that words of the list stand for.
    pub networks: Box<[IpNet]>,
    /// Whether all addresses do in a family that the list does not mention.
    pub silence_is_all: bool,
}

impl NodePortAddresses {
    /// The node IPs and nothing else. Spec: NP-3.
    pub fn primary() -> Self {
        Self {
            primary: true,
            networks: Box::default(),
            silence_is_all: false,
        }
    }
}
