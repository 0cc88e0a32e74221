//! Which addresses of ServiceCIDRs are dropped while no Service has them?
//!
//! Invariants: where networks overlap, the most specific decides, and of two equal ones the one that is
//! no ServiceCIDR; an address of this node, or of an endpoint of a Service that we serve, is never dropped.
//! So one ServiceCIDR that was made by mistake does not take the traffic between pods down. Spec: REJ-6.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Environment, Finding};
use crate::model::{ServiceInput, ServiceName};
use crate::net::{Family, Networks};

/// The dropped networks, and the addresses in them that are not dropped.
#[derive(Debug)]
pub(super) struct Unallocated<F: Family> {
    /// The ServiceCIDRs and the networks that others have, from which the rest was computed.
    from: (BTreeSet<IpNet>, BTreeSet<IpNet>),
    networks: Networks<F>,
    /// How many endpoints and interfaces have each address that lies in these networks.
    holders: BTreeMap<F::Addr, usize>,
    /// The same by Service; only those that have some.
    of_services: BTreeMap<ServiceName, Box<[F::Addr]>>,
    /// The same for this node.
    own: Box<[F::Addr]>,
    /// Addresses that got or lost a holder since [`Unallocated::settle`].
    touched: BTreeSet<F::Addr>,
    /// Whether networks changed since [`Unallocated::take_news`].
    is_news: bool,
}

/// The ServiceCIDRs of a family, and the networks of it that others have.
fn sources<F: Family>(environment: &Environment) -> (BTreeSet<IpNet>, BTreeSet<IpNet>) {
    let is_ours = |network: &IpNet| F::net(*network).is_some();
    let cidrs = environment.service_cidrs.iter().copied();
    (
        cidrs.filter(is_ours).collect(),
        networks_of_others(environment).filter(is_ours).collect(),
    )
}

fn networks<F: Family>((cidrs, others): &(BTreeSet<IpNet>, BTreeSet<IpNet>)) -> Networks<F> {
    let left = cidrs.iter().flat_map(|cidr| without(*cidr, others));
    left.filter_map(F::net).collect()
}

impl<F: Family> Unallocated<F> {
    /// Nothing is dropped.
    pub(super) fn new() -> Self {
        Self {
            from: (BTreeSet::new(), BTreeSet::new()),
            networks: Networks::default(),
            holders: BTreeMap::new(),
            of_services: BTreeMap::new(),
            own: Box::default(),
            touched: BTreeSet::new(),
            is_news: false,
        }
    }

    /// Whether other networks are dropped in this environment; if so, all Services must be counted again.
    pub(super) fn differs(&self, environment: &Environment) -> bool {
        let from = sources::<F>(environment);
        from != self.from && networks::<F>(&from) != self.networks
    }

    /// Sets the environment; if it [differs](Self::differs), every Service must be counted next.
    pub(super) fn set_environment(&mut self, environment: &Environment) {
        let from = sources::<F>(environment);
        if from != self.from {
            self.is_news = true;
            let networks = networks(&from);
            self.from = from;
            if networks != self.networks {
                self.networks = networks;
                let before = std::mem::take(&mut self.holders);
                self.touched.extend(before.into_keys());
                self.of_services.clear();
                self.own = Box::default();
            }
        }
        let own = environment.local_addresses.iter().copied();
        let own = self.held(own);
        self.hold(&own);
        let before = std::mem::replace(&mut self.own, own);
        self.release(&before);
    }

    /// Counts the endpoints of a Service instead of those that it had before.
    pub(super) fn count(&mut self, name: &ServiceName, input: Option<&ServiceInput>) {
        if let Some(before) = self.of_services.remove(name) {
            self.release(&before);
        }
        if self.networks.is_empty() {
            return;
        }
        let slices = input.into_iter().flat_map(|input| &input.slices);
        let endpoints = slices.flat_map(|slice| slice.endpoints.iter());
        let held = self.held(endpoints.map(|endpoint| endpoint.address));
        if !held.is_empty() {
            self.hold(&held);
            self.of_services.insert(name.clone(), held);
        }
    }

    /// The Services with endpoints in these networks.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.of_services.keys()
    }

    /// Updates the addresses in these networks that are not dropped; returns those added and removed.
    pub(super) fn settle(
        &mut self,
        spared: &mut BTreeSet<F::Addr>,
    ) -> (BTreeSet<F::Addr>, BTreeSet<F::Addr>) {
        let (mut added, mut removed) = (BTreeSet::new(), BTreeSet::new());
        for address in std::mem::take(&mut self.touched) {
            if self.holders.contains_key(&address) {
                if spared.insert(address) {
                    added.insert(address);
                }
            } else if spared.remove(&address) {
                removed.insert(address);
            }
        }
        (added, removed)
    }

    /// Whether networks changed since the last call, and so the findings may have changed.
    pub(super) const fn take_news(&mut self) -> bool {
        std::mem::replace(&mut self.is_news, false)
    }

    /// The findings about ServiceCIDRs that overlap other networks.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let (cidrs, others) = &self.from;
        let found = overlaps(cidrs, others).into_iter();
        let named = |(cidr, other): (IpNet, IpNet)| {
            if cidr.contains(&other) {
                Finding::CidrHolds { cidr, other }
            } else {
                Finding::CidrLiesIn { cidr, other }
            }
        };
        found.map(named).collect()
    }

    /// The networks whose addresses are dropped.
    pub(super) const fn networks(&self) -> &Networks<F> {
        &self.networks
    }

    /// Those of the addresses that lie in these networks.
    fn held(&self, addresses: impl Iterator<Item = IpAddr>) -> Box<[F::Addr]> {
        let ours = addresses.filter_map(F::addr);
        ours.filter(|address| self.networks.contains(*address))
            .collect()
    }

    fn hold(&mut self, addresses: &[F::Addr]) {
        for address in addresses {
            *self.holders.entry(*address).or_default() += 1;
            self.touched.insert(*address);
        }
    }

    fn release(&mut self, addresses: &[F::Addr]) {
        for address in addresses {
            if let Entry::Occupied(mut holders) = self.holders.entry(*address) {
                *holders.get_mut() -= 1;
                if *holders.get() == 0 {
                    holders.remove();
                }
            }
            self.touched.insert(*address);
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
fn overlaps(cidrs: &BTreeSet<IpNet>, others: &BTreeSet<IpNet>) -> Vec<(IpNet, IpNet)> {
    let named = |cidr: &IpNet| {
        let is_found = |other: &&IpNet| cidr.contains(*other) || other.contains(cidr);
        let found: Vec<_> = others.iter().copied().filter(|o| is_found(&o)).collect();
        let is_inner = |other: &IpNet| found.iter().any(|o| o != other && o.contains(other));
        let outer = found.iter().filter(|other| !is_inner(other));
        outer.map(|other| (*cidr, *other)).collect::<Vec<_>>()
    };
    cidrs.iter().flat_map(named).collect()
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
