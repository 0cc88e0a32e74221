//! What of the environment matters to one family?

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Environment;
use crate::config::{DetectLocal, NodePortAddresses};
use crate::forwarding::{AffinityLimit, Detector, Globals, Routes};
use crate::model::Service;
use crate::net::{Family, Networks};

/// What Services are compiled against. Equal contexts compile equal Services to equal results.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own"
)]
pub(super) struct Context<F: Family> {
    pub(super) node_name: Arc<str>,
    pub(super) zone: Option<Arc<str>>,
    /// Spec: FW-3.
    pub(super) node_ip: Option<F::Addr>,
    /// Without a detector there is no POD. Spec: DL-5.
    has_detector: bool,
    /// Whether POD keeps its source towards a ClusterIP. Spec: SRC-2, SRC-4.
    pub(super) masquerade_pods: bool,
    /// Whether HOST and EXTN are masqueraded towards a ClusterIP. Spec: SRC-3, SRC-5.
    pub(super) masquerade_others: bool,
    pub(super) allow_external_ips: bool,
    pub(super) affinity_limit: Option<AffinityLimit>,
}

impl<F: Family> Context<F> {
    pub(super) fn new(environment: &Environment) -> Self {
        let policy = &environment.policy;
        let has_detector = detector::<F>(environment).is_some();
        Self {
            node_name: Arc::clone(&environment.node_name),
            zone: environment.zone.clone().filter(|zone| !zone.is_empty()),
            node_ip: node_ip::<F>(environment),
            masquerade_pods: policy.masquerade_all,
            masquerade_others: policy.masquerade_all || has_detector,
            allow_external_ips: policy.allow_external_ips,
            affinity_limit: policy.affinity_limit,
            has_detector,
        }
    }

    /// These routes, as far as source classes can be told apart.
    pub(super) fn told_apart(&self, routes: Routes) -> Routes {
        let pod = if self.has_detector {
            routes.pod
        } else {
            routes.extn
        };
        Routes { pod, ..routes }
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
    service_cidrs: &Networks<F>,
) -> Globals<F> {
    Globals {
        detector: detector::<F>(environment),
        local_addresses: local_addresses::<F>(environment).collect(),
        node_port_addresses: node_port_addresses::<F>(environment),
        service_cidrs: service_cidrs.clone(),
        netfilter: environment.policy.netfilter,
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
    environment.node_ips.iter().copied().find_map(F::addr)
}

fn local_addresses<F: Family>(environment: &Environment) -> impl Iterator<Item = F::Addr> {
    environment
        .local_addresses
        .iter()
        .copied()
        .filter_map(F::addr)
}

/// Spec: NP-2 to NP-5. Only addresses that are assigned to this node count, so that traffic to another
/// node's NodePort is never captured (NP-11).
fn node_port_addresses<F: Family>(environment: &Environment) -> BTreeSet<F::Addr> {
    let NodePortAddresses {
        primary,
        networks,
        silence_is_all,
    } = &environment.policy.node_port_addresses;
    let node_ip = node_ip::<F>(environment).filter(|_| *primary);
    let networks: Vec<F::Net> = networks.iter().copied().filter_map(F::net).collect();
    let is_open = *silence_is_all && networks.is_empty();
    local_addresses::<F>(environment)
        .filter(|address| !IpAddr::is_loopback(&(*address).into()))
        .filter(|address| {
            is_open
                || Some(*address) == node_ip
                || networks.iter().any(|n| F::contains(n, *address))
        })
        .collect()
}
