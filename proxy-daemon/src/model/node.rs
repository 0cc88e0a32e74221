//! What do we read from our Node and from ServiceCIDRs?

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// The Node we run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// `status.addresses` of type InternalIP. Spec: NODE-2.
    pub internal_ips: Box<[IpAddr]>,
    /// `status.addresses` of type ExternalIP.
    pub external_ips: Box<[IpAddr]>,
    /// The label `topology.kubernetes.io/zone`; `None` if missing or empty. Spec: NODE-7.
    pub zone: Option<Arc<str>>,
    /// `spec.podCIDRs`, or `spec.podCIDR` where that is missing. Spec: DL-2.
    pub pod_cidrs: Box<[IpNet]>,
    /// Whether it has no deletion timestamp and no taint `ToBeDeletedByClusterAutoscaler`. Spec: HZ-4.
    pub eligible: bool,
}

impl Node {
    /// Its addresses, in the order in which they count. Spec: NODE-2.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.internal_ips.iter().chain(&self.external_ips).copied()
    }
}

/// A ServiceCIDR object.
///
/// Spec: REJ-6, REJ-7.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Box<[IpNet]>,
}
