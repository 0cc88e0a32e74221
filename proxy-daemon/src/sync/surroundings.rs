//! What does `compile` need to know besides Services, and from whom?
//!
//! Invariants: pure; a deleted Node keeps counting (HZ-5, NODE-6); a Node without addresses or pod networks
//! keeps its last ones (NODE-4).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::compile::Environment;
use crate::config::{DetectLocal, Policy};
use crate::model::{Diagnostic, Node, ServiceCidr};
use crate::net::IpFamily;

/// Keeps the [`Environment`] as the node and the ServiceCIDRs are now.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Shared, so that handing it over costs nothing; copied only when something in it changes.
    environment: Arc<Environment>,
    node_ip_override: Option<IpAddr>,
    node: Option<Arc<Node>>,
    addresses: NodeAddresses,
    local_addresses: BTreeSet<IpNet>,
}

impl Surroundings {
    /// What is known before the first object arrived.
    pub fn new(policy: Policy, node_name: Arc<str>, node_ip_override: Option<IpAddr>) -> Self {
        let environment = Environment {
            policy,
            node_name,
            zone: None,
            node_ips: node_ip_override.into_iter().collect(),
            pod_cidrs: Box::default(),
            local_addresses: BTreeSet::new(),
            local_networks: BTreeSet::new(),
            service_cidrs: BTreeSet::new(),
        };
        Self {
            environment: Arc::new(environment),
            node_ip_override,
            node: None,
            addresses: NodeAddresses::default(),
            local_addresses: BTreeSet::new(),
        }
    }

    /// Sets the node's addresses, each with the prefix of its network; returns whether they changed.
    pub fn set_local_addresses(&mut self, addresses: BTreeSet<IpNet>) -> bool {
        if self.local_addresses == addresses {
            return false;
        }
        let environment = Arc::make_mut(&mut self.environment);
        environment.local_addresses = addresses.iter().map(IpNet::addr).collect();
        let networks = addresses.iter();
        let networks = networks.filter(|net| net.prefix_len() < net.max_prefix_len());
        environment.local_networks = networks.map(IpNet::trunc).collect();
        self.local_addresses = addresses;
        true
    }

    /// Applies drained objects.
    pub fn take_in(
        &mut self,
        node: Option<Arc<Node>>,
        service_cidrs: Option<Vec<Arc<ServiceCidr>>>,
    ) {
        if let Some(node) = node {
            let environment = Arc::make_mut(&mut self.environment);
            self.addresses.take_in(&node);
            environment.node_ips = self.addresses.node_ips(self.node_ip_override);
            environment.zone.clone_from(&node.zone);
            // Where they tell who is a pod, other ones end the process, and take effect with the next start
            // only, whichever thread sees them first (NODE-5).
            let stays = environment.policy.detect_local == DetectLocal::NodeCidr
                && !environment.pod_cidrs.is_empty();
            if !node.pod_cidrs.is_empty() && !stays {
                environment.pod_cidrs.clone_from(&node.pod_cidrs);
            }
            self.node = Some(node);
        }
        if let Some(cidrs) = service_cidrs {
            let cidrs = cidrs.iter().flat_map(|cidr| cidr.cidrs.iter().copied());
            Arc::make_mut(&mut self.environment).service_cidrs = cidrs.collect();
        }
    }

    /// The addresses that our Node lost, and that the last known ones stay in use.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let Some(node) = &self.node else {
            return Vec::new();
        };
        let known = self.addresses.node_ips(None).into_iter();
        let missing = known.filter(|address| {
            let family = IpFamily::of(*address);
            let mut others = node.addresses().chain(self.node_ip_override);
            !others.any(|other| IpFamily::of(other) == family)
        });
        let told = missing.map(|address| Diagnostic {
            object: format!("Node {}", node.name),
            field: "status.addresses".to_owned(),
            message: format!(
                "has no {} address any longer; {address}, the last known, stays in force until it \
                 has another one; see kubelet or the cloud's controller",
                IpFamily::of(address).name()
            ),
        });
        told.collect()
    }

    /// All of it, for `compile`.
    pub const fn environment(&self) -> &Arc<Environment> {
        &self.environment
    }
}

/// The first address of each type and family that our Node named last.
///
/// The type is kept too: what is left of a status that lost its internal addresses may be an external one that is
/// on no interface, and then there would be no NodePorts either.
#[derive(Clone, Debug, Default)]
struct NodeAddresses {
    internal: BTreeMap<IpFamily, IpAddr>,
    external: BTreeMap<IpFamily, IpAddr>,
}

impl NodeAddresses {
    fn take_in(&mut self, node: &Node) {
        self.internal.extend(first_of_each(&node.internal_ips));
        self.external.extend(first_of_each(&node.external_ips));
    }

    /// The node IP of each family; a specific bind address replaces the one of its family.
    ///
    /// Where nothing was ever known there is none: kube-proxy's 127.0.0.1 and `::1` would never be served
    /// anyway (NP-5), and `primary` must not widen (NP-4). Spec: NODE-2.
    fn node_ips(&self, specific: Option<IpAddr>) -> Box<[IpAddr]> {
        let mut ips = self.external.clone();
        ips.extend(&self.internal);
        ips.extend(specific.map(|address| (IpFamily::of(address), address)));
        ips.into_values().collect()
    }
}

/// The first address of each family that can be a node IP.
fn first_of_each(addresses: &[IpAddr]) -> BTreeMap<IpFamily, IpAddr> {
    let usable = addresses.iter().filter(|address| !address.is_loopback());
    let by_family = usable.map(|address| (IpFamily::of(*address), *address));
    // Of several the last one counts.
    by_family.rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(internal: &[&str], external: &[&str], pod_cidrs: &[&str]) -> Arc<Node> {
        let ips = |texts: &[&str]| texts.iter().map(|a| a.parse().unwrap()).collect();
        Arc::new(Node {
            name: "n".into(),
            internal_ips: ips(internal),
            external_ips: ips(external),
            zone: None,
            pod_cidrs: pod_cidrs.iter().map(|n| n.parse().unwrap()).collect(),
            eligible: true,
        })
    }

    fn surroundings(specific: &str) -> Surroundings {
        Surroundings::new(Policy::default(), "n".into(), specific.parse().ok())
    }

    fn ips(surroundings: &Surroundings) -> (String, String) {
        let of = |family| {
            let ips = &surroundings.environment().node_ips;
            let mut ips = ips.iter().filter(|ip| IpFamily::of(**ip) == family);
            let text = ips.next().map(ToString::to_string).unwrap_or_default();
            assert_eq!(ips.next(), None);
            text
        };
        (of(IpFamily::V4), of(IpFamily::V6))
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
            (&["127.0.0.1", "::1"], "", "", ""),
        ] {
            let mut surroundings = surroundings(specific);
            surroundings.take_in(Some(node(addresses, &[], &[])), None);
            assert_eq!(ips(&surroundings), (v4.to_owned(), v6.to_owned()));
            assert_eq!(surroundings.diagnostics(), []);
        }
    }

    #[test]
    fn node_4_only_another_address_is_news() {
        let mut surroundings = surroundings("");
        // Internal and external addresses, the node IPs then, and how many are told to be missing.
        for (internal, external, v4, v6, n_missing) in [
            (&[][..], &[][..], "", "", 0),
            (&[], &["203.0.113.9"], "203.0.113.9", "", 0),
            (
                &["192.0.2.2", "2001:db8::2"],
                &[],
                "192.0.2.2",
                "2001:db8::2",
                0,
            ),
            (&[], &[], "192.0.2.2", "2001:db8::2", 2),
            (&[], &["203.0.113.9"], "192.0.2.2", "2001:db8::2", 1),
            (&["127.0.0.1"], &[], "192.0.2.2", "2001:db8::2", 1),
            (&["192.0.2.2"], &[], "192.0.2.2", "2001:db8::2", 1),
            (&["2001:db8::3"], &[], "192.0.2.2", "2001:db8::3", 1),
            (
                &["192.0.2.3", "2001:db8::3"],
                &[],
                "192.0.2.3",
                "2001:db8::3",
                0,
            ),
        ] {
            surroundings.take_in(Some(node(internal, external, &[])), None);
            let what = format!("{internal:?} {external:?}");
            assert_eq!(ips(&surroundings), (v4.to_owned(), v6.to_owned()), "{what}");
            assert_eq!(surroundings.diagnostics().len(), n_missing, "{what}");
        }
    }

    #[test]
    fn node_5_a_node_without_pod_networks_has_the_last_ones() {
        let mut surroundings = surroundings("");
        for (said, networks) in [("10.244.1.0/24", "10.244.1.0/24"), ("", "10.244.1.0/24")] {
            let said: Vec<&str> = [said].into_iter().filter(|s| !s.is_empty()).collect();
            surroundings.take_in(Some(node(&[], &[], &said)), None);
            let now = &surroundings.environment().pod_cidrs;
            assert_eq!(
                now.iter().map(ToString::to_string).collect::<Vec<_>>(),
                [networks]
            );
        }
    }

    #[test]
    fn node_5_pod_networks_that_detect_pods_stay_until_the_next_start() {
        for (detect_local, after) in [
            (DetectLocal::NodeCidr, "10.244.1.0/24"),
            (
                DetectLocal::ClusterCidr { v4: None, v6: None },
                "10.244.7.0/24",
            ),
        ] {
            let policy = Policy {
                detect_local,
                ..Policy::default()
            };
            let mut surroundings = Surroundings::new(policy, "n".into(), None);
            for network in ["10.244.1.0/24", "10.244.7.0/24"] {
                surroundings.take_in(Some(node(&[], &[], &[network])), None);
            }
            let now = &surroundings.environment().pod_cidrs;
            assert_eq!(now.to_vec(), [after.parse::<IpNet>().unwrap()]);
        }
    }
}
