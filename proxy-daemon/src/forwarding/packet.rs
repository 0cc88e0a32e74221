//! How do we speak about a packet and what happens to it?

use crate::net::{Family, L4Proto, Port};

use super::{Affinity, Backend, FrontendKey, ServicePortId, SourceClass};

/// The first packet of a flow, as it reaches the node or is sent by it, before any translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a, F: Family> {
    /// Its source address.
    pub source: F::Addr,
    /// The interface it entered through; `None` if this node sends it.
    pub ingress: Option<&'a str>,
    /// Its destination address.
    pub destination: F::Addr,
    /// Its transport header.
    pub transport: Transport,
}

/// What of a transport header matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// A protocol with ports, and the destination port.
    Ports(L4Proto, Port),
    /// Anything that no frontend can match, such as an ICMP echo.
    Other,
}

/// What must happen to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<F: Family> {
    /// It goes to one of these, each equally likely. Never empty.
    Forward(Vec<Hop<F>>),
    /// It is answered with port-unreachable.
    Reject,
    /// It vanishes.
    Drop,
    /// It is none of our business: ordinary routing and delivery.
    Pass,
}

/// A backend, and whether the packet reaches it with a source address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop<F: Family> {
    /// Its destination.
    pub backend: Backend<F>,
    /// Whether its source is rewritten.
    pub masquerade: bool,
}

/// A verdict and what led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<F: Family> {
    /// What must happen.
    pub verdict: Verdict<F>,
    /// As whose packet it counted.
    pub class: SourceClass,
    /// The frontend it was addressed to, and whose that is.
    pub frontend: Option<(FrontendKey<F>, ServicePortId)>,
    /// Whether the client keeps its backend, where it has one.
    pub affinity: Affinity,
    /// The rule that decided.
    pub because: Because,
}

/// The rule of SPEC that decided about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// A route of the frontend: table M1.
    Route,
    /// No usable endpoint anywhere: REJ-1.
    NoEndpoints,
    /// A Local policy without a local endpoint: LOC-3, LOC-7.
    NoLocalEndpoints,
    /// The source is outside the source ranges: FW-2.
    SourceRanges,
    /// A live ClusterIP, but no such port: REJ-5.
    UnknownPort,
    /// In a ServiceCIDR, but no live ClusterIP: REJ-6.
    UnallocatedAddress,
    /// Not addressed to anything of ours.
    NotOurs,
}

impl Because {
    /// The rule as a sentence without a full stop, and the IDs of SPEC that say so.
    pub const fn rule(self) -> (&'static str, &'static str) {
        match self {
            Self::Route => ("the frontend's route for this source class", "M1"),
            Self::NoEndpoints => (
                "no endpoint is ready, or serving while it terminates",
                "REJ-1",
            ),
            Self::NoLocalEndpoints => (
                "the traffic policy is Local and no endpoint is on this node",
                "LOC-3, LOC-7",
            ),
            Self::SourceRanges => ("the source is outside loadBalancerSourceRanges", "FW-2"),
            Self::UnknownPort => (
                "the address is a live ClusterIP, but no Service has this port",
                "REJ-5",
            ),
            Self::UnallocatedAddress => (
                "the address is in a ServiceCIDR, but no Service, endpoint or node has it",
                "REJ-6",
            ),
            Self::NotOurs => ("no Service answers at this address and port", "-"),
        }
    }
}
