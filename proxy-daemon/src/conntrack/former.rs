//! What was a UDP frontend until not long ago, so that flows to it may still be translated?
//!
//! Invariants: what was withdrawn is remembered until a pass began long enough after it; never more than
//! [`MOST`] of it, whatever happens to the cluster while no pass succeeds. Of what went while no daemon
//! ran nothing is remembered: that an address was a `ClusterIP` can be told by the ServiceCIDRs, of
//! externalIPs, load balancer addresses and NodePorts it cannot be told.

use std::collections::BTreeMap;
use std::time::Instant;

use super::plan::Target;
use crate::forwarding::{Changes, Globals, ServicePort};
use crate::net::{Family, L4Proto};

/// How many former frontends are remembered.
const MOST: usize = 1 << 16;

/// The time from which on a pass may forget what was withdrawn; `None` if no pass has looked at it yet.
type Until = Option<Instant>;

/// Former frontends, and former addresses of NodePorts.
#[derive(Debug)]
pub struct Former<F: Family> {
    targets: BTreeMap<Target<F>, Until>,
    addresses: BTreeMap<F::Addr, Until>,
    /// Whether there are others: those that went while no daemon ran, and those that found no place.
    others: Option<Until>,
}

impl<F: Family> Default for Former<F> {
    fn default() -> Self {
        Self {
            targets: BTreeMap::new(),
            addresses: BTreeMap::new(),
            others: Some(None),
        }
    }
}

impl<F: Family> Former<F> {
    /// Takes note of the frontends that a change withdrew.
    ///
    /// A frontend that another ServicePort has now is noted too: whoever judges a flow asks the state first.
    pub(super) fn note(&mut self, changes: &Changes<F>, globals: &Globals<F>) {
        for change in changes.service_ports.values() {
            let old = change.old.as_deref().filter(|port| is_udp(port));
            let has_still = |key| {
                let new = change.new.as_ref();
                new.is_some_and(|new| new.frontends.contains_key(key))
            };
            let gone = old.into_iter().flat_map(|port| port.frontends.keys());
            for key in gone.filter(|key| !has_still(key)) {
                self.insert((key.address, key.port));
            }
        }
        let before = changes.globals.iter();
        let before = before.flat_map(|globals| &globals.node_port_addresses);
        for address in before.filter(|address| !globals.node_port_addresses.contains(address)) {
            if self.addresses.len() < MOST {
                self.addresses.insert(*address, None);
            }
        }
    }

    fn insert(&mut self, target: Target<F>) {
        if self.targets.len() < MOST || self.targets.contains_key(&target) {
            self.targets.insert(target, None);
        } else {
            if self.others.is_none() {
                tracing::warn!(
                    limit = MOST,
                    "too many UDP frontends went at once: flows to load balancer addresses, externalIPs and \
                     NodePorts among them stay until they time out; to end them now, delete them with \
                     conntrack -D -p udp -d ADDRESS"
                );
            }
            self.others = Some(None);
        }
    }

    /// Whether there is nothing that a flow could go to.
    pub(super) fn is_empty(&self, globals: &Globals<F>) -> bool {
        let has_others = self.others.is_some() && !globals.service_cidrs.is_empty();
        self.targets.is_empty() && self.addresses.is_empty() && !has_others
    }

    /// Whether this was a frontend.
    pub(super) fn has(&self, target: &Target<F>) -> bool {
        self.targets.contains_key(target)
    }

    /// Whether NodePorts were served at this address.
    pub(super) fn has_address(&self, address: F::Addr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Whether this may be a former `ClusterIP` that is not among the targets.
    pub(super) fn may_have_been_cluster_ip(&self, globals: &Globals<F>, address: F::Addr) -> bool {
        let mut cidrs = globals.service_cidrs.iter();
        self.others.is_some() && cidrs.any(|cidr| F::contains(cidr, address))
    }

    /// A pass that began at `started` looked at everything; what it was the first to look at stays until
    /// a pass that begins at `again` or later.
    pub(super) fn looked_at(&mut self, globals: &Globals<F>, started: Instant, again: Instant) {
        let stays = |until: &mut Option<Instant>| match *until {
            None => {
                *until = Some(again);
                true
            }
            Some(until) => started < until,
        };
        self.targets.retain(|_, until| stays(until));
        self.addresses.retain(|_, until| stays(until));
        // Without ServiceCIDRs nothing says where they are.
        if !globals.service_cidrs.is_empty()
            && let Some(until) = &mut self.others
            && !stays(until)
        {
            self.others = None;
        }
    }
}

/// Whether a flow can be stale after this change of a UDP ServicePort, if none was before.
///
/// Not if endpoints were only added to live ones, behind the same frontends. This spares the listing,
/// which walks the machine's whole table, whenever a Deployment grows.
pub(super) fn can_go_stale<F: Family>(
    old: Option<&ServicePort<F>>,
    new: Option<&ServicePort<F>>,
) -> bool {
    if !old.or(new).is_some_and(is_udp) {
        return false;
    }
    let (Some(old), Some(new)) = (old, new) else {
        return old.or(new).is_some_and(|port| !port.frontends.is_empty());
    };
    let is_live = |backend| new.live.binary_search(backend).is_ok();
    let has_same_frontends = old.frontends.keys().eq(new.frontends.keys());
    let only_grew = old.live.iter().all(is_live);
    // The first live endpoint: its clients may have sent past us while nothing was translated.
    let is_first = old.live.is_empty() && !new.live.is_empty();
    !(has_same_frontends && only_grew) || is_first
}

fn is_udp<F: Family>(port: &ServicePort<F>) -> bool {
    port.protocol == L4Proto::Udp
}
