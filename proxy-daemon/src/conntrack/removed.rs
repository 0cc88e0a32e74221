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

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Removed<F: Family> {
    Frontend(Target<F>),
    /// An address that no longer accepts NodePorts.
    Address(F::Addr),
    /// There may be more: those removed while no daemon ran, and those beyond the limit.
    Others,
}

/// Removed frontends, and addresses that no longer accept NodePorts.
#[derive(Clone, Debug, Default)]
pub(super) struct RemovedFrontends<F: Family>(BTreeMap<Removed<F>, Until>);

impl<F: Family> RemovedFrontends<F> {
    /// Those removed while no daemon ran.
    pub(super) fn unknown() -> Self {
        Self([(Removed::Others, None)].into())
    }

    /// Adds others that no pass has covered yet.
    pub(super) fn merge(&mut self, others: Self) {
        for removed in others.0.into_keys() {
            self.insert(removed);
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
                self.insert(Removed::Frontend((key.address, key.port)));
            }
        }
        let before = changes.globals.iter();
        let before = before.flat_map(|globals| &globals.node_port_addresses);
        for address in before.filter(|address| !globals.node_port_addresses.contains(address)) {
            self.insert(Removed::Address(*address));
        }
    }

    fn insert(&mut self, removed: Removed<F>) {
        // One more, since the others are not counted.
        if self.0.len() <= MAX_REMEMBERED || self.0.contains_key(&removed) {
            self.0.insert(removed, None);
        } else if self.0.insert(Removed::Others, None).is_none() {
            tracing::warn!(
                limit = MAX_REMEMBERED,
                "too many UDP frontends were removed at once; stale UDP flows to load balancer addresses, \
                 externalIPs and NodePorts remain until they time out; to delete them now: \
                 conntrack -D -p udp -d ADDRESS"
            );
        }
    }

    /// Whether no removed frontend is known.
    pub(super) fn is_empty(&self, globals: &Globals<F>) -> bool {
        let is_known =
            |removed: &Removed<F>| *removed != Removed::Others || !globals.service_cidrs.is_empty();
        !self.0.keys().any(is_known)
    }

    /// Whether this is a removed frontend.
    pub(super) fn has(&self, target: &Target<F>) -> bool {
        self.0.contains_key(&Removed::Frontend(*target))
    }

    /// Whether this address no longer accepts NodePorts.
    pub(super) fn has_address(&self, address: F::Addr) -> bool {
        self.0.contains_key(&Removed::Address(address))
    }

    /// Whether this may be a removed `ClusterIP` that is not among the others.
    pub(super) fn may_have_been_cluster_ip(&self, globals: &Globals<F>, address: F::Addr) -> bool {
        let mut cidrs = globals.service_cidrs.iter();
        self.0.contains_key(&Removed::Others) && cidrs.any(|cidr| F::contains(cidr, address))
    }

    /// A pass that began at `started` looked at everything; what it was the first to look at stays until
    /// a pass that begins at `again` or later.
    pub(super) fn looked_at(&mut self, globals: &Globals<F>, started: Instant, again: Instant) {
        self.0.retain(|removed, until| {
            if *removed == Removed::Others && globals.service_cidrs.is_empty() {
                // Nothing says where they are.
                return true;
            }
            let stays = until.is_none_or(|until| started < until);
            until.get_or_insert(again);
            stays
        });
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
