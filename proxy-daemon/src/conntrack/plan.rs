//! Is this flow stale?
//!
//! Invariants: pure. Every UDP frontend of the state is judged at each pass, whatever changed: the answer
//! depends on what is, not on the changes that led there. A flow to a frontend is stale unless one of
//! the live endpoints of its ServicePort answers it; that includes a flow that was never translated
//! (CT-1), and every flow where there is no live endpoint (CT-3). A flow to a former frontend is stale if
//! it was translated (CT-3).

use std::fmt;
use std::net::SocketAddr;

use super::former::Former;
use crate::forwarding::{Backend, ForwardingState, FrontendAddress, Globals};
use crate::net::{Family, L4Proto, Port};

/// One UDP flow, as conntrack knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow<F: Family> {
    /// Where its first packet was sent to.
    pub destination: (F::Addr, u16),
    /// Who answers.
    pub answered_by: (F::Addr, u16),
    /// The kernel's own attributes that name the entry, to be handed back for its deletion.
    pub handle: Box<[u8]>,
}

impl<F: Family> Flow<F> {
    /// Whether somebody translated its destination.
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

/// All UDP frontends that there are, with those who may answer for them, and those that were.
#[derive(Debug)]
pub struct Plan<'a, F: Family> {
    /// Sorted.
    frontends: Vec<(Target<F>, &'a [Backend<F>])>,
    globals: &'a Globals<F>,
    former: &'a Former<F>,
}

impl<'a, F: Family> Plan<'a, F> {
    /// What to look for in this state, given what was a frontend until not long ago.
    pub fn new(state: &'a ForwardingState<F>, former: &'a Former<F>) -> Self {
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
            former,
        }
    }

    /// Whether no flow can be stale.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.former.is_empty(self.globals)
    }

    /// Whether the flow must be forgotten.
    pub fn is_stale(&self, flow: &Flow<F>) -> bool {
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
            self.former.has(&vip) || self.former.may_have_been_cluster_ip(self.globals, address);
        let accepted = accepts || self.former.has_address(address);
        let was_node_port = accepted && (node_port.is_some() || self.former.has(&node));
        // A process of the node that has the port now keeps its clients.
        (was_vip || was_node_port) && flow.is_translated()
    }

    /// Who may answer for a frontend; `None` if there is no such frontend.
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
