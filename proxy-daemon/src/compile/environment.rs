//! What must be known besides Services and EndpointSlices?

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::Policy;

/// Everything `compile` reads that is not a Service or an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The settings.
    pub policy: Policy,
    /// Our Node's name, as NODE-1 makes it.
    pub node_name: Arc<str>,
    /// Our Node's zone. Spec: TOPO-3.
    pub zone: Option<Arc<str>>,
    /// Our Node's addresses, at most one of each family. Spec: NODE-2.
    pub node_ips: Box<[IpAddr]>,
    /// Our Node's pod networks. Spec: DL-2.
    pub pod_cidrs: Box<[IpNet]>,
    /// Every address assigned to an interface of this node, of both families.
    pub local_addresses: BTreeSet<IpAddr>,
    /// The networks of these addresses that have more than one address. Spec: REJ-6.
    pub local_networks: BTreeSet<IpNet>,
    /// The networks of all ServiceCIDR objects. Spec: REJ-6.
    pub service_cidrs: BTreeSet<IpNet>,
}
