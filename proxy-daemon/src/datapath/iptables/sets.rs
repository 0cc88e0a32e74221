//! Which sets does a family always have, and what are their elements?
//!
//! Sets hold what needs no target of its own: no flavour reads its rules to change an element. Invariants: the number of these sets is constant; elements are compared as
//! [`as_displayed`] writes them; in the order of [`SetId::ALL`], an element may be added before those after it and
//! removed after them without harm.

use std::fmt::Display;
use std::net::Ipv6Addr;

use super::names::set_prefix;
use crate::forwarding::{Backend, FrontendAddress, FrontendKey};
use crate::net::{Family, IpFamily, L4Proto, Port};

/// One of the sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetId {
    /// Sources that may use a VIP with source ranges: address, protocol and port, source network.
    SourceRanges,
    /// VIPs with source ranges.
    SourceRestricted,
    /// VIPs that reject packets of at least one source class.
    NoEndpoints,
    /// VIPs whose packets are dropped if they were not translated.
    Dropped,
    /// Live `ClusterIP`s.
    ClusterIps,
    /// Addresses in the networks of `ServiceCidrs` that are not dropped.
    Spared,
    /// Where other addresses than live `ClusterIP`s are dropped.
    ServiceCidrs,
    /// Addresses of this node that accept NodePort traffic.
    NodePortAddresses,
    /// NodePorts that do so, at any address.
    NoEndpointNodePorts,
    /// NodePorts whose packets are dropped if they were not translated, at any address.
    DroppedNodePorts,
    /// Backends of TCP: address and port. Spec: CT-7.
    Backends,
}

/// The limit of elements, which is never reached.
const MAX_ELEMENTS: u32 = 1 << 28;

impl SetId {
    /// Every set.
    pub(crate) const ALL: [Self; 11] = [
        Self::SourceRanges,
        Self::SourceRestricted,
        Self::NoEndpoints,
        Self::Dropped,
        Self::ClusterIps,
        Self::Spared,
        Self::ServiceCidrs,
        Self::NodePortAddresses,
        Self::NoEndpointNodePorts,
        Self::DroppedNodePorts,
        Self::Backends,
    ];

    /// Those that rules use: without a drop of INVALID packets, none uses the backends.
    ///
    /// A set that no rule uses is destroyed by the removal of the other flavour, which has the same sets.
    pub(crate) fn used(drop_invalid: bool) -> impl Iterator<Item = Self> {
        let is_used = move |id: &Self| drop_invalid || *id != Self::Backends;
        Self::ALL.into_iter().filter(is_used)
    }

    /// Its name.
    pub(crate) fn name<F: Family>(self) -> String {
        format!("{}{}", set_prefix(F::FAMILY), self.spec().0)
    }

    /// The set whose name ends so after the family's prefix.
    pub(crate) fn of_suffix(suffix: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|id| id.spec().0 == suffix)
    }

    /// Its name after the family's prefix, its type, and which parts of a packet are looked up.
    const fn spec(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::SourceRanges => ("source-ranges", "hash:ip,port,net", "dst,dst,src"),
            Self::SourceRestricted => ("guarded", "hash:ip,port", "dst,dst"),
            Self::NoEndpoints => ("refused", "hash:ip,port", "dst,dst"),
            Self::Dropped => ("dropped", "hash:ip,port", "dst,dst"),
            Self::ClusterIps => ("cluster-ips", "hash:ip", "dst"),
            Self::Spared => ("spared", "hash:ip", "dst"),
            Self::ServiceCidrs => ("service-cidrs", "hash:net", "dst"),
            Self::NodePortAddresses => ("node-addresses", "hash:ip", "dst"),
            // Not a bitmap of ports, which knows no SCTP.
            Self::NoEndpointNodePorts => ("refused-node-ports", "hash:net,port", "dst,dst"),
            Self::DroppedNodePorts => ("dropped-node-ports", "hash:net,port", "dst,dst"),
            Self::Backends => ("tcp-backends", "hash:ip,port", "src,src"),
        }
    }

    /// What `ipset create` needs.
    pub(crate) fn declaration<F: Family>(self) -> String {
        let (name, kind, family) = (self.name::<F>(), self.spec().1, family_name(F::FAMILY));
        format!("create {name} {kind} family {family} maxelem {MAX_ELEMENTS}")
    }

    /// The match of a rule.
    pub(crate) fn matches<F: Family>(self, yes: bool) -> String {
        let (name, parts) = (self.name::<F>(), self.spec().2);
        let not = if yes { "" } else { "! " };
        format!("-m set {not}--match-set {name} {parts}")
    }
}

/// An element with its protocol as a number: `ipset restore` looks up each name in a file.
pub(crate) fn with_protocol_number(element: &str) -> String {
    L4Proto::ALL
        .into_iter()
        .find_map(|protocol| {
            let (address, port) = element.split_once(&format!(",{protocol}:"))?;
            Some(format!("{address},{}:{port}", protocol.number()))
        })
        .unwrap_or_else(|| element.to_owned())
}

/// An element that `ipset` printed, with its addresses as we print them: `::1.2.3.4` is our `::102:304`.
pub(crate) fn as_displayed(element: &str) -> String {
    let part = |part: &str| {
        let (address, prefix) = part.split_at(part.find('/').unwrap_or(part.len()));
        let address = address.parse::<Ipv6Addr>();
        address.map_or_else(|_| part.to_owned(), |address| format!("{address}{prefix}"))
    };
    let parts: Vec<String> = element.split(',').map(part).collect();
    parts.join(",")
}

/// The name that `ipset` takes.
pub(crate) const fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "inet",
        IpFamily::V6 => "inet6",
    }
}

/// The element of an address and a port.
fn endpoint(address: &dyn Display, protocol: L4Proto, port: Port) -> String {
    format!("{address},{protocol}:{port}")
}

/// The element of a backend of TCP.
pub(crate) fn backend<F: Family>(backend: &Backend<F>) -> String {
    endpoint(&backend.address, L4Proto::Tcp, backend.port)
}

/// The elements of a frontend: a NodePort's cover every address.
pub(crate) fn frontend<F: Family>(key: &FrontendKey<F>) -> Vec<String> {
    let FrontendKey {
        address,
        protocol,
        port,
    } = key;
    match address {
        FrontendAddress::Vip(address) => vec![endpoint(address, *protocol, *port)],
        FrontendAddress::Node => halves(F::FAMILY)
            .map(|half| endpoint(&half, *protocol, *port))
            .to_vec(),
    }
}

/// Networks that cover every address: a set takes none without a prefix.
const fn halves(family: IpFamily) -> [&'static str; 2] {
    match family {
        IpFamily::V4 => ["0.0.0.0/1", "128.0.0.0/1"],
        IpFamily::V6 => ["::/1", "8000::/1"],
    }
}

/// The network as elements; one address is printed without its prefix.
pub(crate) fn network<F: Family>(network: &F::Net) -> Vec<String> {
    let (address, prefix) = F::prefix(network);
    match prefix {
        0 => halves(F::FAMILY).map(str::to_owned).to_vec(),
        full if usize::from(full) == F::ADDR_LEN * 8 => vec![address.to_string()],
        prefix => vec![format!("{address}/{prefix}")],
    }
}
