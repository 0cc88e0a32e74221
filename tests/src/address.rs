//! Which addresses the test bed knows, and what each of them means (SPEC §0).
//!
//! Invariant: one name has one meaning in every test and in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP family; every behaviour is tested in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The name used in test names.
    pub fn label(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// The name used by the Kubernetes API.
    pub fn api_name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The other family.
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// The length of a prefix that holds one address.
    pub fn host_prefix(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// A transport protocol that Services can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, spoken over raw sockets.
    Sctp,
}

impl Protocol {
    /// All protocols of Services.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The name used in test names.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The name used by the Kubernetes API.
    pub fn api_name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A pair of addresses, one per family, with one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addr {
    /// What the tests call it.
    pub name: &'static str,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Addr {
    /// Names a pair of addresses; the IPv6 one is given by its first four and last groups.
    pub const fn new(name: &'static str, v4: [u8; 4], v6: ([u16; 4], u16)) -> Self {
        let (a, b) = (v4, v6.0);
        Self {
            name,
            v4: Ipv4Addr::new(a[0], a[1], a[2], a[3]),
            v6: Ipv6Addr::new(b[0], b[1], b[2], b[3], 0, 0, 0, v6.1),
        }
    }

    /// Any other address: `a.b.c.d` in IPv4 is `2001:db8::a:b:c:d` in IPv6.
    pub const fn twin(v4: [u8; 4]) -> Self {
        let [a, b, c, d] = v4;
        Self {
            name: "",
            v4: Ipv4Addr::new(a, b, c, d),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, a as u16, b as u16, c as u16, d as u16),
        }
    }

    /// The address of one family.
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The address of one family as a prefix of one address.
    pub fn prefix(self, family: Family) -> String {
        format!("{}/{}", self.of(family), family.host_prefix())
    }
}

/// A namespace of the test bed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// The node under test.
    N,
    /// The first local pod.
    P1,
    /// The second local pod.
    P2,
    /// The remote node's pods.
    R,
    /// The off-cluster clients.
    X,
    /// The owner of external addresses that are not captured.
    Outside,
    /// The router that N's uplink leads to, which also plays the other node.
    Upstream,
}

impl Site {
    /// Every namespace of the test bed.
    pub const ALL: [Self; 7] = [
        Self::N,
        Self::P1,
        Self::P2,
        Self::R,
        Self::X,
        Self::Outside,
        Self::Upstream,
    ];

    /// The part of the namespace's name that says which one it is.
    pub fn label(self) -> &'static str {
        match self {
            Self::N => "n",
            Self::P1 => "p1",
            Self::P2 => "p2",
            Self::R => "r",
            Self::X => "x",
            Self::Outside => "o",
            Self::Upstream => "u",
        }
    }
}

/// A client or a server: an address in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// Where it lives.
    pub site: Site,
    /// Its address; clients send from it.
    pub addr: Addr,
    /// The `nodeName` of its endpoint.
    pub node: &'static str,
    /// The address that masqueraded packets towards it carry.
    pub gateway: Addr,
    /// Whether a client leaves the choice of its source address to the kernel.
    pub kernel_picks_source: bool,
}

impl Host {
    const fn new(site: Site, addr: Addr, node: &'static str, gateway: Addr) -> Self {
        Self {
            site,
            addr,
            node,
            gateway,
            kernel_picks_source: false,
        }
    }

    /// What the tests call it.
    pub fn name(self) -> &'static str {
        self.addr.name
    }

    /// The address it sends from towards another one.
    pub fn source_towards(self, to: Addr) -> Addr {
        let own = [NODE, NODE_ALT, POD_GATEWAY, LOOPBACK];
        match own.into_iter().find(|own| own.v4 == to.v4) {
            _ if !self.kernel_picks_source => self.addr,
            // The kernel talks to its own addresses from themselves, and to the world from the uplink's.
            Some(itself) => itself,
            None => NODE,
        }
    }
}

const CLUSTER: [u16; 4] = [0xfd00, 0x244, 0, 1];
const REMOTE: [u16; 4] = [0xfd00, 0x244, 0, 2];
const SERVICES: [u16; 4] = [0xfd00, 0x96, 0, 0];
const DOC: [u16; 4] = [0x2001, 0xdb8, 0x203, 0];

/// The name of the node under test.
pub const NODE_NAME: &str = "node-n";
/// The name of the remote endpoints' node.
pub const OTHER_NODE_NAME: &str = "other-node";

/// N's address on the uplink, its node IP.
pub const NODE: Addr = Addr::new("NODE", [192, 0, 2, 2], ([0x2001, 0xdb8, 2, 0], 2));
/// N's second local address, on `lo`.
pub const NODE_ALT: Addr = Addr::new(
    "NODE_ALT",
    [198, 51, 100, 2],
    ([0x2001, 0xdb8, 0x5100, 0], 2),
);
/// N's address on the side of the pods.
pub const POD_GATEWAY: Addr = Addr::new("POD_GATEWAY", [10, 244, 1, 1], (CLUSTER, 1));
/// The address of another node.
pub const OTHER_NODE: Addr = Addr::new("OTHER_NODE", [192, 0, 2, 1], ([0x2001, 0xdb8, 2, 0], 1));
/// A ClusterIP.
pub const VIP: Addr = Addr::new("VIP", [10, 96, 0, 10], (SERVICES, 0x10));
/// A second ClusterIP.
pub const VIP2: Addr = Addr::new("VIP2", [10, 96, 0, 11], (SERVICES, 0x11));
/// A third ClusterIP.
pub const VIP3: Addr = Addr::new("VIP3", [10, 96, 0, 12], (SERVICES, 0x12));
/// An address of the ServiceCIDR that no Service has.
pub const UNALLOCATED: Addr = Addr::new("UNALLOCATED", [10, 96, 9, 9], (SERVICES, 0x909));
/// An address outside the default ServiceCIDR, for tests that add another.
pub const OTHER_CIDR_VIP: Addr = Addr::new(
    "OTHER_CIDR_VIP",
    [10, 97, 0, 10],
    ([0xfd00, 0x97, 0, 0], 0x10),
);
/// An externalIP, routed to N from outside and owned by `OUT` otherwise.
pub const EXTERNAL_IP: Addr = Addr::new("EXTERNAL_IP", [203, 0, 113, 250], (DOC, 0x250));
/// A second externalIP.
pub const EXTERNAL_IP2: Addr = Addr::new("EXTERNAL_IP2", [203, 0, 113, 251], (DOC, 0x251));
/// A load balancer's address, routed to N from outside and owned by `OUT` otherwise.
pub const LB_VIP: Addr = Addr::new("LB_VIP", [203, 0, 113, 100], (DOC, 0x100));
/// A second load balancer's address.
pub const LB_VIP2: Addr = Addr::new("LB_VIP2", [203, 0, 113, 101], (DOC, 0x101));
/// The loopback address.
pub const LOOPBACK: Addr = Addr::new("LOOPBACK", [127, 0, 0, 1], ([0, 0, 0, 0], 1));

/// The first local pod.
pub const P1: Host = Host::new(
    Site::P1,
    Addr::new("P1", [10, 244, 1, 11], (CLUSTER, 0x11)),
    NODE_NAME,
    POD_GATEWAY,
);
/// The second local pod.
pub const P2: Host = Host::new(
    Site::P2,
    Addr::new("P2", [10, 244, 1, 12], (CLUSTER, 0x12)),
    NODE_NAME,
    POD_GATEWAY,
);
/// A pod of another node.
pub const R: Host = Host::new(
    Site::R,
    Addr::new("R", [10, 244, 2, 21], (REMOTE, 0x21)),
    OTHER_NODE_NAME,
    NODE,
);
/// A second pod of the other node.
pub const R2: Host = Host::new(
    Site::R,
    Addr::new("R2", [10, 244, 2, 22], (REMOTE, 0x22)),
    OTHER_NODE_NAME,
    NODE,
);
/// A third pod of the other node.
pub const R3: Host = Host::new(
    Site::R,
    Addr::new("R3", [10, 244, 2, 23], (REMOTE, 0x23)),
    OTHER_NODE_NAME,
    NODE,
);
/// An off-cluster client.
pub const X: Host = Host::new(
    Site::X,
    Addr::new("X", [203, 0, 113, 7], (DOC, 7)),
    "",
    NODE,
);
/// A second off-cluster client.
pub const X2: Host = Host::new(
    Site::X,
    Addr::new("X2", [203, 0, 113, 8], (DOC, 8)),
    "",
    NODE,
);
/// The node itself: a process in its own network namespace, which sends from wherever the kernel likes.
pub const HOST: Host = Host {
    site: Site::N,
    addr: Addr {
        name: "HOST",
        ..NODE
    },
    node: NODE_NAME,
    gateway: NODE_ALT,
    kernel_picks_source: true,
};
/// The node itself, sending from its second address, so that masquerading shows.
pub const HOST_ALT: Host = Host {
    site: Site::N,
    addr: Addr {
        name: "HOST_ALT",
        ..NODE_ALT
    },
    node: NODE_NAME,
    gateway: NODE_ALT,
    kernel_picks_source: false,
};
/// The real owner of the external addresses: a packet that reaches it was not captured by N. It answers from any address.
pub const OUT: Host = Host::new(
    Site::Outside,
    Addr {
        name: "OUT",
        ..EXTERNAL_IP
    },
    "",
    NODE,
);
/// A process of the other node.
pub const OTHER: Host = Host::new(
    Site::Upstream,
    Addr {
        name: "OTHER",
        ..OTHER_NODE
    },
    OTHER_NODE_NAME,
    NODE,
);
