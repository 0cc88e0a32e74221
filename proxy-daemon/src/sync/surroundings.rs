//! What does `compile` need to know besides Services, and from whom?
//!
//! Invariants: pure; the last Node that was seen counts, also after it is deleted (HZ-5, NODE-6).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::compile::Environment;
use crate::config::Policy;
use crate::model::{Node, ServiceCidr};

/// The node, its addresses and the settings, as they are now.
#[derive(Clone, Debug)]
pub struct Surroundings {
    policy: Policy,
    node_name: Arc<str>,
    node_ip_override: Option<IpAddr>,
    node: Option<Arc<Node>>,
    local_addresses: BTreeSet<IpAddr>,
    service_cidrs: BTreeSet<IpNet>,
}

impl Surroundings {
    /// What is known before anything was watched.
    pub fn new(policy: Policy, node_name: Arc<str>, node_ip_override: Option<IpAddr>) -> Self {
        Self {
            policy,
            node_name,
            node_ip_override,
            node: None,
            local_addresses: BTreeSet::new(),
            service_cidrs: BTreeSet::new(),
        }
    }

    /// Puts the node's addresses; whether that changed anything.
    pub fn set_local_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        let changed = self.local_addresses != addresses;
        self.local_addresses = addresses;
        changed
    }

    /// Takes in what was drained.
    pub fn take_in(
        &mut self,
        node: Option<Arc<Node>>,
        service_cidrs: Option<Vec<Arc<ServiceCidr>>>,
    ) {
        if let Some(node) = node {
            self.node = Some(node);
        }
        if let Some(cidrs) = service_cidrs {
            let cidrs = cidrs.iter().flat_map(|cidr| cidr.cidrs.iter().copied());
            self.service_cidrs = cidrs.collect();
        }
    }

    /// All of it, for `compile`.
    pub fn environment(&self) -> Environment {
        let addresses = self.node.as_ref().map(|node| &node.addresses[..]);
        let (node_ip_v4, node_ip_v6) =
            node_ips(addresses.unwrap_or_default(), self.node_ip_override);
        Environment {
            policy: self.policy.clone(),
            node_name: Arc::clone(&self.node_name),
            zone: self.node.as_ref().and_then(|node| node.zone.clone()),
            node_ip_v4,
            node_ip_v6,
            pod_cidrs: self
                .node
                .as_ref()
                .map(|node| node.pod_cidrs.clone())
                .unwrap_or_default(),
            local_addresses: self.local_addresses.clone(),
            service_cidrs: self.service_cidrs.clone(),
        }
    }
}

/// The first address of each family; a specific bind address replaces the one of its family.
///
/// Where nothing is known there is none: kube-proxy's 127.0.0.1 and `::1` would never be served anyway
/// (NP-5), and `primary` must not widen (NP-4). Spec: NODE-2.
fn node_ips(
    addresses: &[IpAddr],
    specific: Option<IpAddr>,
) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let in_order = || specific.into_iter().chain(addresses.iter().copied());
    let v4 = in_order().find_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    let v6 = in_order().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    });
    (v4, v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(addresses: &[&str], specific: &str) -> (String, String) {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let (v4, v6) = node_ips(&addresses, specific.parse().ok());
        (
            v4.map(|a| a.to_string()).unwrap_or_default(),
            v6.map(|a| a.to_string()).unwrap_or_default(),
        )
    }

    #[test]
    fn node_2_the_first_of_each_family_unless_a_bind_address_says_otherwise() {
        let dual = &["192.0.2.2", "2001:db8::2", "198.51.100.2"][..];
        for (addresses, specific, v4, v6) in [
            (dual, "", "192.0.2.2", "2001:db8::2"),
            (dual, "203.0.113.9", "203.0.113.9", "2001:db8::2"),
            (dual, "2001:db8::9", "192.0.2.2", "2001:db8::9"),
            (&["2001:db8::2"], "", "", "2001:db8::2"),
            (&[], "192.0.2.7", "192.0.2.7", ""),
            (&[], "", "", ""),
        ] {
            assert_eq!(ips(addresses, specific), (v4.to_owned(), v6.to_owned()));
        }
    }
}
