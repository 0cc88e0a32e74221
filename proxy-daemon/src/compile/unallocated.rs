//! Which addresses of ServiceCIDRs are dropped while no Service has them?
//!
//! Invariants: where networks overlap, the most specific decides, and of two equal ones the one that is
//! no ServiceCIDR; an address of this node, or of an endpoint of a Service that we serve, is never dropped.
//! So one ServiceCIDR that was made by mistake does not take the traffic between pods down. Spec: REJ-6.

use std::collections::{BTreeMap, BTreeSet};

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Environment;
use crate::model::{Diagnostic, ServiceInput, ServiceName};
use crate::net::Family;

/// What is dropped, and the addresses in there that are not.
#[derive(Debug)]
pub(super) struct Unallocated<F: Family> {
    /// The ServiceCIDRs and the networks that others have, from which the rest was computed.
    from: (BTreeSet<IpNet>, BTreeSet<IpNet>),
    networks: BTreeSet<F::Net>,
    /// How many endpoints have each address that lies in these networks.
    endpoints: BTreeMap<F::Addr, usize>,
    /// The same by Service; only those that have some.
    of_services: BTreeMap<ServiceName, Vec<F::Addr>>,
    /// Whether networks changed since [`Unallocated::take_news`].
    is_news: bool,
}

impl<F: Family> Unallocated<F> {
    /// Nothing is dropped.
    pub(super) const fn new() -> Self {
        Self {
            from: (BTreeSet::new(), BTreeSet::new()),
            networks: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            of_services: BTreeMap::new(),
            is_news: false,
        }
    }

    /// Takes in the environment and the Services that changed.
    pub(super) fn apply(
        &mut self,
        services: &BTreeMap<ServiceName, ServiceInput>,
        changed: &[ServiceName],
        environment: &Environment,
    ) {
        let is_ours = |network: &IpNet| F::net(*network).is_some();
        let cidrs = environment.service_cidrs.iter().copied();
        let from = (
            cidrs.filter(is_ours).collect(),
            networks_of_others(environment).filter(is_ours).collect(),
        );
        if from == self.from {
            for name in changed {
                self.count(name, services.get(name));
            }
            return;
        }
        self.is_news = true;
        let (cidrs, others) = &from;
        let networks: BTreeSet<F::Net> = cidrs
            .iter()
            .flat_map(|cidr| without(*cidr, others))
            .filter_map(F::net)
            .collect();
        self.from = from;
        if networks == self.networks {
            for name in changed {
                self.count(name, services.get(name));
            }
        } else {
            self.networks = networks;
            self.endpoints.clear();
            self.of_services.clear();
            for (name, input) in services {
                self.count(name, Some(input));
            }
        }
    }

    /// Whether networks changed since the last call, so that there may be something else to tell.
    pub(super) const fn take_news(&mut self) -> bool {
        std::mem::replace(&mut self.is_news, false)
    }

    /// What there is to tell about ServiceCIDRs that overlap other networks.
    pub(super) fn diagnostics(&self) -> Vec<Diagnostic> {
        let (cidrs, others) = &self.from;
        overlaps(cidrs, others).iter().map(named).collect()
    }

    /// The networks whose addresses are dropped.
    pub(super) const fn networks(&self) -> &BTreeSet<F::Net> {
        &self.networks
    }

    /// The addresses in these networks that are not dropped.
    pub(super) fn spared(&self, environment: &Environment) -> BTreeSet<F::Addr> {
        let own = environment.local_addresses.iter().copied();
        let own = own.filter_map(F::addr).filter(|a| self.holds(*a));
        own.chain(self.endpoints.keys().copied()).collect()
    }

    fn holds(&self, address: F::Addr) -> bool {
        self.networks
            .iter()
            .any(|network| F::contains(network, address))
    }

    /// Counts the endpoints of a Service instead of those that it had before.
    fn count(&mut self, name: &ServiceName, input: Option<&ServiceInput>) {
        for address in self.of_services.remove(name).unwrap_or_default() {
            if let Some(n) = self.endpoints.get_mut(&address) {
                *n -= 1;
                if *n == 0 {
                    self.endpoints.remove(&address);
                }
            }
        }
        if self.networks.is_empty() {
            return;
        }
        let slices = input.into_iter().flat_map(|input| &input.slices);
        let addresses: Vec<F::Addr> = slices
            .flat_map(|slice| slice.endpoints.iter())
            .filter_map(|endpoint| F::addr(endpoint.address))
            .filter(|address| self.holds(*address))
            .collect();
        for address in &addresses {
            *self.endpoints.entry(*address).or_default() += 1;
        }
        if !addresses.is_empty() {
            self.of_services.insert(name.clone(), addresses);
        }
    }
}

/// No Service can have these addresses, and routers and nodes talk to each other through them.
const MULTICAST: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
        8,
    )),
];

/// The pods' networks, as far as they are known, multicast, and those that this node is on.
fn networks_of_others(environment: &Environment) -> impl Iterator<Item = IpNet> {
    let of_pods = environment.policy.cluster_cidrs.iter().copied();
    of_pods
        .chain(MULTICAST)
        .chain(environment.pod_cidrs.iter().copied())
        .chain(environment.local_networks.iter().copied())
        .map(|network| network.trunc())
}

/// Each ServiceCIDR with each network of others that it overlaps, but for networks in one of these.
fn overlaps(cidrs: &BTreeSet<IpNet>, others: &BTreeSet<IpNet>) -> BTreeSet<(IpNet, IpNet)> {
    let overlapping = |cidr: &IpNet| -> Vec<IpNet> {
        let found = others
            .iter()
            .filter(|other| cidr.contains(*other) || other.contains(cidr));
        found.copied().collect()
    };
    let named = |cidr: &IpNet| -> Vec<(IpNet, IpNet)> {
        let found = overlapping(cidr);
        let is_outer = |other: &&IpNet| {
            let mut wider = found.iter().filter(|wider| wider != other);
            !wider.any(|wider| wider.contains(*other))
        };
        found
            .iter()
            .filter(is_outer)
            .map(|other| (*cidr, *other))
            .collect()
    };
    cidrs.iter().flat_map(named).collect()
}

fn named((cidr, other): &(IpNet, IpNet)) -> Diagnostic {
    let message = if cidr.contains(other) {
        format!(
            "it holds {other}, which pods, this node's network or multicast use; addresses there are not dropped \
             as unallocated (REJ-6)"
        )
    } else {
        format!(
            "it lies in {other}, which pods or this node's network use; addresses of this ServiceCIDR \
             that neither a Service, an endpoint nor this node has are dropped (REJ-6)"
        )
    };
    Diagnostic {
        object: format!("ServiceCIDR {cidr}"),
        field: "spec.cidrs".to_owned(),
        message,
    }
}

/// What is left of a network without those of the others that lie in it.
fn without(network: IpNet, others: &BTreeSet<IpNet>) -> Vec<IpNet> {
    let inside: BTreeSet<IpNet> = others
        .iter()
        .copied()
        .filter(|other| network.contains(other))
        .collect();
    if inside.is_empty() {
        return vec![network];
    }
    if inside.contains(&network) {
        return Vec::new();
    }
    let halves = network.subnets(network.prefix_len().saturating_add(1));
    halves
        .into_iter()
        .flatten()
        .flat_map(|half| without(half, &inside))
        .collect()
}
