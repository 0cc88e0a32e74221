//! What do we read from a Service?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::ServiceName;
use crate::net::{L4Proto, Port};

/// A Service that has a ClusterIP; headless and ExternalName Services never become one.
///
/// Spec: SVC-3, SVC-6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its type.
    pub kind: ServiceKind,
    /// Its IPv4 ClusterIP. Spec: DS-3.
    pub cluster_ip_v4: Option<Ipv4Addr>,
    /// Its IPv6 ClusterIP. Spec: DS-3.
    pub cluster_ip_v6: Option<Ipv6Addr>,
    /// Its ports; (name, protocol) is unique.
    pub ports: Box<[ServicePortSpec]>,
    /// `spec.externalIPs` of both families.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is nil or `VIP`. Spec: LB-1, LB-2.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges` of both families. Spec: FW-5.
    pub source_ranges: Box<[IpNet]>,
    /// The external traffic policy.
    pub external_policy: TrafficPolicy,
    /// The internal traffic policy.
    pub internal_policy: TrafficPolicy,
    /// Session affinity by client address; `None` is none.
    pub affinity: Option<AffinityTimeout>,
    /// `spec.healthCheckNodePort`.
    pub health_check_port: Option<Port>,
    /// When the object was created.
    ///
    /// Unit: seconds since 1970-01-01 UTC; `i64::MAX` if the object does not say.
    /// Spec: SVC-14.
    pub created: i64,
}

/// A Service's type, as far as it can have a ClusterIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKind {
    /// `ClusterIP`.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortSpec {
    /// The port's name; empty if it has none.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: L4Proto,
    /// The port on the Service's own addresses.
    pub port: Port,
    /// The port on the node's addresses.
    pub node_port: Option<Port>,
}

/// Whether endpoints of other nodes may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrafficPolicy {
    /// Endpoints of every node.
    Cluster,
    /// Only endpoints of this node.
    Local,
}

/// How long a client keeps its backend after its last new connection.
///
/// Unit: seconds, at least 1 (the API allows up to 86,400).
/// Source: `spec.sessionAffinityConfig.clientIP.timeoutSeconds`; default 10,800.
/// Spec: AFF-2, SVC-11.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityTimeout(u32);

impl AffinityTimeout {
    /// What holds when the object does not say.
    pub const DEFAULT: Self = Self(10_800);
    /// The longest one.
    pub const MAX: Self = Self(86_400);

    /// A timeout of so many seconds; `None` outside 1 to 86,400.
    pub const fn new(seconds: u32) -> Option<Self> {
        if seconds >= 1 && seconds <= Self::MAX.0 {
            Some(Self(seconds))
        } else {
            None
        }
    }

    /// Unit: seconds.
    pub const fn seconds(self) -> u32 {
        self.0
    }
}
