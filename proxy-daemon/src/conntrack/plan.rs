//! Is this flow stale?
//!
//! Invariants: pure. A flow is stale if it goes to a frontend of a ServicePort that has a live endpoint,
//! and is answered by none of them; that includes a flow that was never translated (CT-1).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::forwarding::{Backend, ForwardingState, FrontendAddress, ServicePort, ServicePortId};
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

/// The frontends of the ServicePorts that changed, and who may answer for them.
#[derive(Debug)]
pub struct Plan<'a, F: Family> {
    frontends: BTreeMap<(FrontendAddress<F>, Port), &'a [Backend<F>]>,
    local: &'a BTreeSet<IpAddr>,
}

impl<'a, F: Family> Plan<'a, F> {
    /// What to look for when these ServicePorts changed on a node with these addresses.
    ///
    /// One without a live endpoint keeps its flows (CT-3), and so does one that is gone.
    pub fn new(
        state: &'a ForwardingState<F>,
        changed: &BTreeSet<ServicePortId>,
        local: &'a BTreeSet<IpAddr>,
    ) -> Self {
        let ports = changed.iter().filter_map(|id| state.service_ports.get(id));
        let ports = ports.filter(|port| port.protocol == L4Proto::Udp && !port.live.is_empty());
        let of_port = |port: &'a std::sync::Arc<ServicePort<F>>| {
            let keys = port.frontends.keys();
            keys.map(|key| ((key.address, key.port), &port.live[..]))
        };
        Self {
            frontends: ports.flat_map(of_port).collect(),
            local,
        }
    }

    /// Whether no flow can be stale.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// Whether the flow must be forgotten.
    pub fn is_stale(&self, flow: &Flow<F>) -> bool {
        let (address, port) = flow.destination;
        let Some(port) = Port::new(port) else {
            return false;
        };
        let vip = self.frontends.get(&(FrontendAddress::Vip(address), port));
        let live = vip.or_else(|| {
            let node = self.frontends.get(&(FrontendAddress::Node, port))?;
            // Compat: kube-proxy takes any destination with that port (CT-5).
            self.local.contains(&address.into()).then_some(node)
        });
        let Some(live) = live else {
            return false;
        };
        let (address, port) = flow.answered_by;
        Port::new(port).is_none_or(|port| live.binary_search(&Backend { address, port }).is_err())
    }
}
