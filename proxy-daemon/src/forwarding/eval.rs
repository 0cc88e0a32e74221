//! The oracle: what must happen to this packet?
//!
//! This is the meaning of a [`ForwardingState`]; every datapath is tested against it. It speaks of the
//! first packet of a flow by a client without affinity memory; what needs memory or time is shown on a
//! real kernel. Invariants: it reads nothing but the state and the packet, and takes no shortcut that
//! a datapath could share.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Affinity, BackendSet, Because, Decision, Detector, Exposure, ForwardingState, Frontend,
    FrontendAddress, FrontendKey, Hop, Packet, Route, ServicePort, SourceClass, Transport, Verdict,
};
use crate::net::Family;

/// A forwarding state, indexed for questions.
#[derive(Debug)]
pub struct Oracle<'a, F: Family> {
    state: &'a ForwardingState<F>,
    frontends: BTreeMap<FrontendKey<F>, &'a ServicePort<F>>,
    cluster_ips: BTreeSet<F::Addr>,
}

impl<'a, F: Family> Oracle<'a, F> {
    /// An oracle for this state.
    pub fn new(state: &'a ForwardingState<F>) -> Self {
        let ports = || state.service_ports.values().map(AsRef::as_ref);
        let of_port = |port: &'a ServicePort<F>| port.frontends.keys().map(move |key| (*key, port));
        Self {
            state,
            frontends: ports().flat_map(of_port).collect(),
            cluster_ips: ports().map(|port| port.cluster_ip).collect(),
        }
    }

    /// What must happen to this packet, and why.
    pub fn eval(&self, packet: &Packet<'_, F>) -> Decision<F> {
        let class = self.classify(packet);
        let found = self.find(packet);
        let (verdict, because) = match found {
            Some((key, port)) => {
                let frontend = port.frontends.get(&key);
                frontend.map_or((Verdict::Pass, Because::NotOurs), |f| {
                    decide(port, f, class, packet)
                })
            }
            None => self.decide_unmatched(packet),
        };
        let frontend = found.map(|(key, port)| (key, port.id.clone()));
        Decision {
            verdict,
            class,
            frontend,
            affinity: found.map_or(Affinity::Off, |(_, port)| port.affinity),
            because,
        }
    }

    /// As whose packet this counts. Spec: §0, source classes.
    pub fn classify(&self, packet: &Packet<'_, F>) -> SourceClass {
        let entered = |wanted: &dyn Fn(&str) -> bool| packet.ingress.is_some_and(wanted);
        let is_pod = match &self.state.globals.detector {
            None => false,
            Some(Detector::Network(network)) => F::contains(network, packet.source),
            Some(Detector::Interface(name)) => entered(&|ingress| ingress == name.as_str()),
            Some(Detector::InterfacePrefix(prefix)) => {
                entered(&|ingress| ingress.starts_with(prefix.as_str()))
            }
        };
        if is_pod {
            SourceClass::Pod
        } else if self.state.globals.local_addresses.contains(&packet.source) {
            SourceClass::Host
        } else {
            SourceClass::Extn
        }
    }

    /// Address frontends first, then NodePorts. Spec: SVC-14.
    fn find(&self, packet: &Packet<'_, F>) -> Option<(FrontendKey<F>, &'a ServicePort<F>)> {
        let Transport::Ports(protocol, port) = packet.transport else {
            return None;
        };
        let at = |address| {
            let key = FrontendKey {
                address,
                protocol,
                port,
            };
            self.frontends.get(&key).map(|port| (key, *port))
        };
        let accepts_node_ports = self
            .state
            .globals
            .node_port_addresses
            .contains(&packet.destination);
        at(FrontendAddress::Vip(packet.destination)).or_else(|| {
            accepts_node_ports
                .then(|| at(FrontendAddress::Node))
                .flatten()
        })
    }

    fn decide_unmatched(&self, packet: &Packet<'_, F>) -> (Verdict<F>, Because) {
        let to = packet.destination;
        if self.cluster_ips.contains(&to) {
            (Verdict::Reject, Because::UnknownPort)
        } else if self.state.globals.service_cidrs.contains(to) && !self.state.spared.contains(&to)
        {
            (Verdict::Drop, Because::UnallocatedAddress)
        } else {
            (Verdict::Pass, Because::NotOurs)
        }
    }
}

fn decide<F: Family>(
    port: &ServicePort<F>,
    frontend: &Frontend<F>,
    class: SourceClass,
    packet: &Packet<'_, F>,
) -> (Verdict<F>, Because) {
    let is_allowed = match &frontend.exposure {
        Exposure::LoadBalancer {
            source_ranges: Some(ranges),
        } => ranges.contains(packet.source),
        Exposure::LoadBalancer {
            source_ranges: None,
        }
        | Exposure::ClusterIp
        | Exposure::ExternalIp
        | Exposure::NodePort => true,
    };
    if !is_allowed {
        return (Verdict::Drop, Because::SourceRanges);
    }
    match frontend.routes.of(class) {
        Route::Forward { to, masquerade } => {
            let hops = port.backends(to).iter().map(|backend| Hop {
                backend: *backend,
                // A hairpin is always masqueraded, or the reply would never come back. Spec: SRC-9.
                masquerade: masquerade || backend.address == packet.source,
            });
            (Verdict::Forward(hops.collect()), Because::Route)
        }
        Route::Reject => (Verdict::Reject, Because::NoEndpoints),
        Route::Drop => (Verdict::Drop, Because::NoLocalEndpoints),
    }
}

/// The word for a set in tables and logs.
pub(super) const fn set_name(set: BackendSet) -> &'static str {
    match set {
        BackendSet::Cluster => "cluster",
        BackendSet::Local => "local",
    }
}
