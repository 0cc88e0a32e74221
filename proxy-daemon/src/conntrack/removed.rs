//! Which UDP frontends were removed recently, so that flows to them may still be translated?
//!
//! Invariants: a removed frontend is remembered until a pass began long enough after its removal; at most
//! [`MAX_REMEMBERED`] are, whatever happens while no pass succeeds. Frontends that were removed while no
//! daemon ran are unknown: a `ClusterIP` among them is recognised by the ServiceCIDRs; externalIPs, load
//! balancer addresses and NodePorts are not recognised.

use std::collections::BTreeMap;
use std::time::Instant;

use super::plan::Target;
use crate::forwarding::{Changes, Globals, ServicePort};
use crate::net::{Family, L4Proto};

/// Removed frontends that are remembered at most.
const MAX_REMEMBERED: usize = 1 << 16;

/// When a pass may forget an entry; `None` if no pass has covered it yet.
type Until = Option<Instant>;

/// Removed frontends, and addresses that no longer accept NodePorts.
#[derive(Clone, Debug)]
pub(super) struct RemovedFrontends<F: Family> {
    targets: BTreeMap<Target<F>, Until>,
    addresses: BTreeMap<F::Addr, Until>,
    /// Whether there may be more: those removed while no daemon ran, and those beyond the limit.
    others: Option<Until>,
}

impl<F: Family> Default for RemovedFrontends<F> {
    fn default() -> Self {
        Self {
            targets: BTreeMap::new(),
            addresses: BTreeMap::new(),
            others: None,
        }
    }
}

impl<F: Family> RemovedFrontends<F> {
    /// Those removed while no daemon ran.
    pub(super) fn unknown() -> Self {
        Self {
            others: Some(None),
            ..Self::default()
        }
    }

    /// Adds others that no pass has covered yet.
    pub(super) fn merge(&mut self, others: Self) {
        for target in others.targets.into_keys() {
            self.insert(target);
        }
        for address in others.addresses.into_keys() {
            self.insert_address(address);
        }
        if others.others.is_some() {
            self.others = Some(None);
        }
    }

    /// Adds the frontends that a change removed.
    ///
    /// Also those that another ServicePort has now: a flow is judged by the state first.
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
            self.insert_address(*address);
        }
    }

    fn insert_address(&mut self, address: F::Addr) {
        if self.addresses.len() < MAX_REMEMBERED {
            self.addresses.insert(address, None);
        }
    }

    fn insert(&mut self, target: Target<F>) {
        if self.targets.len() < MAX_REMEMBERED || self.targets.contains_key(&target) {
            self.targets.insert(target, None);
        } else {
            if self.others.is_none() {
                tracing::warn!(
                    limit = MAX_REMEMBERED,
                    "too many UDP frontends were removed at once; stale UDP flows to load balancer addresses, \
                     externalIPs and NodePorts remain until they time out; to delete them now: \
                     conntrack -D -p udp -d ADDRESS"
                );
            }
            self.others = Some(None);
        }
    }

    /// Whether no removed frontend is known.
    pub(super) fn is_empty(&self, globals: &Globals<F>) -> bool {
        let has_others = self.others.is_some() && !globals.service_cidrs.is_empty();
        self.targets.is_empty() && self.addresses.is_empty() && !has_others
    }

    /// Whether this is a removed frontend.
    pub(super) fn has(&self, target: &Target<F>) -> bool {
        self.targets.contains_key(target)
    }

    /// Whether this address no longer accepts NodePorts.
    pub(super) fn has_address(&self, address: F::Addr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Whether this may be a removed `ClusterIP` that is not among the targets.
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

pub(super) fn is_udp<F: Family>(port: &ServicePort<F>) -> bool {
    port.protocol == L4Proto::Udp
}
