//! What of the environment matters to one family?

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Environment;
use super::unallocated::Unallocated;
use crate::config::{DetectLocal, NodePortAddresses};
use crate::forwarding::{Detector, Globals};
use crate::model::Service;
use crate::net::Family;

/// What Services are compiled against. Equal contexts compile equal Services to equal results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Context<F: Family> {
    pub(super) node_name: Arc<str>,
    pub(super) zone: Option<Arc<str>>,
    /// Spec: FW-3.
    pub(super) node_ip: Option<F::Addr>,
    /// Whether POD keeps its source towards a ClusterIP. Spec: SRC-2, SRC-4.
    pub(super) masquerade_pods: bool,
    /// Whether HOST and EXTN are masqueraded towards a ClusterIP. Spec: SRC-3, SRC-5.
    pub(super) masquerade_others: bool,
    pub(super) allow_external_ips: bool,
}

impl<F: Family> Context<F> {
    pub(super) fn new(environment: &Environment) -> Self {
        let policy = &environment.policy;
        Self {
            node_name: Arc::clone(&environment.node_name),
            zone: environment.zone.clone().filter(|zone| !zone.is_empty()),
            node_ip: node_ip::<F>(environment),
            masquerade_pods: policy.masquerade_all,
            masquerade_others: policy.masquerade_all || detector::<F>(environment).is_some(),
            allow_external_ips: policy.allow_external_ips,
        }
    }
}

/// The ClusterIP of a Service in a family; without one, the Service does not exist there. Spec: DS-3.
pub(super) fn cluster_ip<F: Family>(service: &Service) -> Option<F::Addr> {
    let v4 = service.cluster_ip_v4.map(IpAddr::from);
    let v6 = service.cluster_ip_v6.map(IpAddr::from);
    [v4, v6].into_iter().flatten().find_map(F::addr)
}

pub(super) fn compile_globals<F: Family>(
    environment: &Environment,
    unallocated: &Unallocated<F>,
) -> Globals<F> {
    Globals {
        detector: detector::<F>(environment),
        masquerade_bit: environment.policy.masquerade_bit,
        node_port_addresses: node_port_addresses::<F>(environment),
        service_cidrs: unallocated.networks().clone(),
        spared: unallocated.spared(environment),
        drop_invalid: environment.policy.drop_invalid,
    }
}

/// Spec: DL-1 to DL-6. Only the first network of a family counts.
fn detector<F: Family>(environment: &Environment) -> Option<Detector<F>> {
    match &environment.policy.detect_local {
        DetectLocal::ClusterCidr { v4, v6 } => {
            let networks = [v4.map(Into::into), v6.map(Into::into)];
            networks
                .into_iter()
                .flatten()
                .find_map(F::net)
                .map(Detector::Network)
        }
        DetectLocal::NodeCidr => environment
            .pod_cidrs
            .iter()
            .copied()
            .find_map(F::net)
            .map(Detector::Network),
        DetectLocal::BridgeInterface(name) => Some(Detector::Interface(name.clone())),
        DetectLocal::InterfaceNamePrefix(name) => Some(Detector::InterfacePrefix(name.clone())),
    }
}

fn node_ip<F: Family>(environment: &Environment) -> Option<F::Addr> {
    let v4 = environment.node_ip_v4.map(IpAddr::from);
    let v6 = environment.node_ip_v6.map(IpAddr::from);
    [v4, v6].into_iter().flatten().find_map(F::addr)
}

/// Spec: NP-2 to NP-5. Only addresses that are assigned to this node count, so that traffic to another
/// node's NodePort is never captured (NP-11).
fn node_port_addresses<F: Family>(environment: &Environment) -> BTreeSet<F::Addr> {
    let local = environment
        .local_addresses
        .iter()
        .copied()
        .filter(|a| !a.is_loopback());
    let local = local.filter_map(F::addr);
    let NodePortAddresses {
        primary,
        networks,
        silence_is_all,
    } = &environment.policy.node_port_addresses;
    let node_ip = node_ip::<F>(environment).filter(|_| *primary);
    let networks: Vec<F::Net> = networks.iter().copied().filter_map(F::net).collect();
    let is_open = *silence_is_all && networks.is_empty();
    local
        .filter(|address| {
            is_open
                || Some(*address) == node_ip
                || networks.iter().any(|n| F::contains(n, *address))
        })
        .collect()
}
