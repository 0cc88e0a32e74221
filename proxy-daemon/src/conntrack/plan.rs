//! Is this flow stale?
//!
//! Invariants: pure. Every UDP frontend of the state is judged at each pass, whatever changed: the answer
//! depends on what is, not on the changes that led there. A flow to a frontend is stale unless one of
//! the live endpoints of its ServicePort answers it; that includes a flow that was never translated
//! (CT-1), and every flow where there is no live endpoint (CT-3). A flow to a removed frontend is stale if
//! it was translated (CT-3).

use std::fmt;
use std::net::SocketAddr;

use super::removed::RemovedFrontends;
use crate::forwarding::{Backend, ForwardingState, FrontendAddress, Globals};
use crate::net::{Family, L4Proto, Port};

/// One UDP flow, as conntrack knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow<F: Family> {
    /// Destination of its first packet.
    pub destination: (F::Addr, u16),
    /// Source of the replies.
    pub answered_by: (F::Addr, u16),
    /// The kernel's own attributes that name the entry, to be handed back for its deletion.
    pub handle: Box<[u8]>,
}

impl<F: Family> Flow<F> {
    /// Whether its destination was translated.
    fn is_translated(&self) -> bool {
        self.answered_by != self.destination
    }
}

impl<F: Family> fmt::Display for Flow<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |(address, port): (F::Addr, u16)| SocketAddr::new(address.into(), port);
        write!(
            f,
            "udp {} answered by {}",
            show(self.destination),
            show(self.answered_by)
        )
    }
}

/// The address and port of a UDP frontend.
pub(super) type Target<F> = (FrontendAddress<F>, Port);

/// All UDP frontends with their live backends, and the removed ones.
#[derive(Debug)]
pub(super) struct Plan<'a, F: Family> {
    /// Sorted.
    frontends: Vec<(Target<F>, &'a [Backend<F>])>,
    globals: &'a Globals<F>,
    removed: &'a RemovedFrontends<F>,
}

impl<'a, F: Family> Plan<'a, F> {
    /// The plan for a state and the frontends that were removed from it recently.
    pub(super) fn new(state: &'a ForwardingState<F>, removed: &'a RemovedFrontends<F>) -> Self {
        let ports = state.service_ports.values();
        let mut frontends: Vec<_> = ports
            .filter(|port| port.protocol == L4Proto::Udp)
            .flat_map(|port| {
                let keys = port.frontends.keys();
                keys.map(|key| ((key.address, key.port), &port.live[..]))
            })
            .collect();
        frontends.sort_unstable_by_key(|(target, _)| *target);
        Self {
            frontends,
            globals: &state.globals,
            removed,
        }
    }

    /// Whether no flow can be stale.
    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.removed.is_empty(self.globals)
    }

    /// Whether the flow must be forgotten.
    pub(super) fn is_stale(&self, flow: &Flow<F>) -> bool {
        let (address, port) = flow.destination;
        let Some(port) = Port::new(port) else {
            return false;
        };
        let (vip, node) = (
            (FrontendAddress::Vip(address), port),
            (FrontendAddress::Node, port),
        );
        // Compat: kube-proxy takes any destination with the port of a NodePort (CT-5).
        let accepts = self.globals.node_port_addresses.contains(&address);
        let node_port = self.live(&node);
        if let Some(live) = self.live(&vip).or(node_port.filter(|_| accepts)) {
            return !is_answered_by_one_of(live, flow);
        }
        let was_vip =
            self.removed.has(&vip) || self.removed.may_have_been_cluster_ip(self.globals, address);
        let accepted = accepts || self.removed.has_address(address);
        let was_node_port = accepted && (node_port.is_some() || self.removed.has(&node));
        // A process of the node that has the port now keeps its clients.
        (was_vip || was_node_port) && flow.is_translated()
    }

    /// The live backends of a frontend; `None` if there is no such frontend.
    fn live(&self, target: &Target<F>) -> Option<&'a [Backend<F>]> {
        let found = self.frontends.binary_search_by_key(target, |(at, _)| *at);
        let (_, live) = self.frontends.get(found.ok()?)?;
        Some(live)
    }
}

fn is_answered_by_one_of<F: Family>(live: &[Backend<F>], flow: &Flow<F>) -> bool {
    let (address, port) = flow.answered_by;
    Port::new(port).is_some_and(|port| live.binary_search(&Backend { address, port }).is_ok())
}
