//! Which chains, branches and elements does a ServicePort need, and which do the globals?
//!
//! Invariants: pure; decides nothing that the forwarding state leaves open; the same ServicePort gives
//! the same objects, whatever else there is. What several ServicePorts share (backends, `ClusterIP`s) is
//! only listed here, and counted by `apply`.

use std::collections::{BTreeMap, BTreeSet};

use super::affinity_set::AffinitySet;
use super::bits::Bits;
use super::chain::{Chain, Header, Table, comment, dnat, from_pod, mark, one_in, ports};
use super::layout;
use super::names;
use super::sets::{self, SetId};
use super::tree::{Entries, Tree};
use crate::datapath::common::{Masquerade, common_forward};
use crate::forwarding::{
    Backend, BackendSet, Exposure, ForwardingState, Frontend, FrontendAddress, FrontendKey,
    Globals, Route, Routes, ServicePort,
};
use crate::net::{Family, L4Proto};

/// An element, as it is printed, and its set.
pub(crate) type Element = (SetId, String);
/// Elements in the order in which they can be added.
pub(crate) type Elements = BTreeSet<Element>;

/// What one or several ServicePorts need.
#[derive(Debug, Default)]
pub(crate) struct Rendered<F: Family> {
    /// Chains of their own, targets before those that go to them.
    pub(crate) chains: Vec<Chain>,
    /// Frontends that are VIPs.
    pub(crate) vips: Entries,
    /// Frontends that are NodePorts.
    pub(crate) node_ports: Entries,
    /// Elements that belong to one ServicePort each.
    pub(crate) elements: Elements,
    /// Affinity sets.
    pub(crate) affinity_sets: Vec<AffinitySet>,
    /// Elements that others may have too; once per use.
    pub(crate) shared: Vec<Shared<F>>,
}

/// An element that several ServicePorts may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shared<F: Family> {
    /// A live `ClusterIP`.
    ClusterIp(F::Addr),
    /// A backend of TCP.
    Backend(Backend<F>),
}

impl<F: Family> Shared<F> {
    /// The element; `None` if no rule uses its set.
    pub(crate) fn element(&self, globals: &Globals<F>) -> Option<Element> {
        match self {
            Self::ClusterIp(address) => Some((SetId::ClusterIps, address.to_string())),
            Self::Backend(backend) => {
                let is_used = globals.netfilter.drop_invalid;
                is_used.then(|| (SetId::Backends, sets::backend(backend)))
            }
        }
    }
}

/// Renders a state: hands out each chain, targets before those that go to them; returns the rest, and the
/// trees of VIPs and of NodePorts.
pub(crate) fn render_state<F: Family>(
    state: &ForwardingState<F>,
    each: &mut dyn FnMut(Table, &Chain),
) -> (Rendered<F>, [Tree<F>; 2]) {
    let globals = &state.globals;
    let mut all = Rendered::default();
    render_globals(globals, &mut all.elements);
    render_spared::<F>(&state.spared, &mut all.elements);
    for service_port in state.service_ports.values() {
        render_service_port(service_port, globals, &mut all);
        all.chains
            .drain(..)
            .for_each(|chain| each(Table::Nat, &chain));
    }
    let elements = all.shared.iter();
    all.elements
        .extend(elements.filter_map(|it| it.element(globals)));
    let trees = [
        Tree::new(names::VIPS, true, std::mem::take(&mut all.vips)),
        Tree::new(
            names::NODE_PORTS,
            false,
            std::mem::take(&mut all.node_ports),
        ),
    ];
    for tree in &trees {
        tree.chains(&mut |chain| each(Table::Nat, &chain));
    }
    for table in Table::ALL {
        for chain in layout::chains(table, globals) {
            each(table, &chain);
        }
    }
    (all, trees)
}

/// Renders what is the same for all ServicePorts and can change without them.
pub(crate) fn render_globals<F: Family>(globals: &Globals<F>, to: &mut Elements) {
    let Globals {
        detector: _,
        // The kernel knows them.
        local_addresses: _,
        node_port_addresses,
        service_cidrs,
        netfilter: _,
    } = globals;
    let addresses = node_port_addresses.iter();
    to.extend(addresses.map(|address| (SetId::NodePortAddresses, address.to_string())));
    let networks = service_cidrs.iter().flat_map(sets::network::<F>);
    to.extend(networks.map(|network| (SetId::ServiceCidrs, network)));
}

/// Renders addresses that are not dropped as unallocated.
pub(crate) fn render_spared<'a, F: Family>(
    addresses: impl IntoIterator<Item = &'a F::Addr>,
    to: &mut Elements,
) {
    let addresses = addresses.into_iter();
    to.extend(addresses.map(|address| (SetId::Spared, address.to_string())));
}

/// Renders one ServicePort.
pub(crate) fn render_service_port<F: Family>(
    service_port: &ServicePort<F>,
    globals: &Globals<F>,
    to: &mut Rendered<F>,
) {
    let mut renderer = Renderer {
        service_port,
        globals,
        used_sets: BTreeSet::new(),
        by_source: BTreeMap::new(),
    };
    let mut entries = Vec::with_capacity(service_port.frontends.len());
    for (key, frontend) in service_port.frontends.iter() {
        entries.push((key, renderer.entry(key, frontend)));
        render_filter(key, frontend, to);
    }
    renderer.render_backend_chains(to);
    to.chains.extend(
        renderer
            .by_source
            .into_iter()
            .map(|(name, rules)| Chain::new(name, rules)),
    );
    for (key, rules) in entries {
        let tree = match key.address {
            FrontendAddress::Vip(_) => &mut to.vips,
            FrontendAddress::Node => &mut to.node_ports,
        };
        tree.insert(Bits::of(key), rules.into());
    }
    if service_port.protocol == L4Proto::Tcp {
        let backends = service_port.cluster.iter().chain(&service_port.local);
        to.shared.extend(backends.copied().map(Shared::Backend));
    }
    to.shared.push(Shared::ClusterIp(service_port.cluster_ip));
}

/// Renders a frontend's elements for the filter chains.
fn render_filter<F: Family>(key: &FrontendKey<F>, frontend: &Frontend<F>, to: &mut Rendered<F>) {
    let Frontend {
        exposure,
        routes: Routes { pod, host, extn },
    } = frontend;
    let has = |route| [pod, host, extn].contains(&&route);
    let is_vip = matches!(key.address, FrontendAddress::Vip(_));
    let elements = sets::frontend(key);
    let mut put = |id: SetId| {
        to.elements
            .extend(elements.iter().cloned().map(|e| (id, e)));
    };
    let (no_endpoints, dropped) = if is_vip {
        (SetId::NoEndpoints, SetId::Dropped)
    } else {
        (SetId::NoEndpointNodePorts, SetId::DroppedNodePorts)
    };
    if has(Route::Reject) {
        put(no_endpoints);
    }
    // Of an external VIP nothing may leak to where it is routed, whatever kept it from being translated
    // (XM-10); a ClusterIP is refused in that case, as all its ports are.
    let may_leak = matches!(
        exposure,
        Exposure::ExternalIp | Exposure::LoadBalancer { .. }
    );
    if has(Route::Drop) || may_leak {
        put(dropped);
    }
    if let Exposure::LoadBalancer {
        source_ranges: Some(ranges),
    } = exposure
    {
        put(SetId::SourceRestricted);
        let ranges: Vec<String> = ranges.iter().flat_map(sets::network::<F>).collect();
        let allowed = elements
            .iter()
            .flat_map(|element| ranges.iter().map(move |range| format!("{element},{range}")));
        to.elements
            .extend(allowed.map(|allowed| (SetId::SourceRanges, allowed)));
    }
}

struct Renderer<'a, F: Family> {
    service_port: &'a ServicePort<F>,
    globals: &'a Globals<F>,
    /// The sets of backends in use.
    used_sets: BTreeSet<BackendSet>,
    /// The chains that distinguish source classes, and their rules.
    by_source: BTreeMap<String, Vec<String>>,
}

impl<F: Family> Renderer<'_, F> {
    fn id(&self) -> &str {
        self.service_port.id.as_str()
    }

    /// The rules of a frontend in its tree.
    fn entry(&mut self, key: &FrontendKey<F>, frontend: &Frontend<F>) -> Vec<String> {
        let port = key.port.get();
        let mut header = Header {
            transport: ports(key.protocol, port, port),
            ..Header::default()
        };
        if let FrontendAddress::Vip(address) = key.address {
            header.destination = format!("-d {address}/{}", F::ADDR_LEN * 8);
        }
        let comment = comment(&format!("{} {}", self.id(), frontend.exposure));
        let Routes { pod, host, extn } = frontend.routes;
        let mut rules = Vec::new();
        let is_stopped = |route| matches!(route, Route::Reject | Route::Drop);
        let verdict = if let Some((set, masquerade)) = common_forward([pod, host, extn]) {
            rules.extend(self.mark_rule(&header, masquerade));
            format!("-g {}", self.backend_chain(set))
        } else if [pod, host, extn].into_iter().all(is_stopped) {
            "-j ACCEPT".to_owned()
        } else {
            format!("-g {}", self.by_source_chain(Routes { pod, host, extn }))
        };
        rules.push(format!("{header}{comment} {verdict}"));
        rules
    }

    fn mark_rule(&self, header: &Header, masquerade: Masquerade) -> Option<String> {
        let header = match (masquerade, &self.globals.detector) {
            (Masquerade::Never, _) => return None,
            (Masquerade::UnlessPod, Some(detector)) => from_pod(header, detector, false)?,
            (Masquerade::UnlessPod, None) | (Masquerade::Always, _) => header.clone(),
        };
        Some(format!(
            "{header}{}",
            mark(self.globals.netfilter.masquerade_bit)
        ))
    }

    /// The chain that selects a backend of a set.
    fn backend_chain(&mut self, set: BackendSet) -> String {
        self.used_sets.insert(set);
        names::chain(backend_chain_prefix(set), &[self.id()])
    }

    /// The chain that distinguishes source classes.
    fn by_source_chain(&mut self, routes: Routes) -> String {
        let Routes { pod, host, extn } = routes;
        let code: String = [pod, host, extn].map(letter).into_iter().collect();
        let name = names::chain(&code, &[self.id()]);
        if self.by_source.contains_key(&name) {
            return name;
        }
        let mut rules = Vec::new();
        let anyone = Header::default();
        if let Some(detector) = &self.globals.detector
            && let Some(from_pod) = from_pod(&anyone, detector, true)
        {
            self.route(&from_pod.to_string(), pod, &mut rules);
        }
        self.route("-m addrtype --src-type LOCAL ", host, &mut rules);
        self.route("", extn, &mut rules);
        self.by_source.insert(name.clone(), rules);
        name
    }

    fn route(&mut self, from: &str, route: Route, rules: &mut Vec<String>) {
        match route {
            Route::Forward { to, masquerade } => {
                if masquerade {
                    rules.push(format!(
                        "{from}{}",
                        mark(self.globals.netfilter.masquerade_bit)
                    ));
                }
                rules.push(format!("{from}-g {}", self.backend_chain(to)));
            }
            Route::Reject | Route::Drop => rules.push(format!("{from}-j ACCEPT")),
        }
    }

    /// The chains that select a backend.
    fn render_backend_chains(&self, to: &mut Rendered<F>) {
        let used: BTreeSet<Backend<F>> = self
            .used_sets
            .iter()
            .flat_map(|set| self.service_port.backends(*set))
            .copied()
            .collect();
        let timeout = self.service_port.affinity.timeout();
        let affinity_set = |backend: &Backend<F>| {
            let parts = [self.id(), &backend.to_string()];
            let set = AffinitySet::new::<F>(&parts, timeout?, used.len());
            Some((*backend, set))
        };
        let affinity_sets: BTreeMap<_, _> = used.iter().filter_map(affinity_set).collect();
        let affinity_chain =
            |backend: &Backend<F>| names::chain("B", &[self.id(), &backend.to_string()]);
        for (backend, affinity_set) in &affinity_sets {
            let to_backend = dnat(self.service_port.protocol, "", backend);
            let rules = vec![affinity_set.add_client(), to_backend];
            to.chains.push(Chain::new(affinity_chain(backend), rules));
        }
        for set in &self.used_sets {
            let backends = self.service_port.backends(*set);
            let mut rules: Vec<String> = backends
                .iter()
                .filter_map(|backend| Some((backend, affinity_sets.get(backend)?)))
                .map(|(backend, affinity_set)| {
                    format!(
                        "{} -g {}",
                        affinity_set.matches_client(),
                        affinity_chain(backend)
                    )
                })
                .collect();
            if self.used_sets.len() > 1 {
                // Another frontend may have led the client to a backend that this one has not (AFF-5).
                rules.extend(affinity_sets.values().map(AffinitySet::delete_client));
            }
            for (n_before, backend) in backends.iter().enumerate() {
                let chance = match backends.len() - n_before {
                    1 => String::new(),
                    n => format!("{} ", one_in(n)),
                };
                rules.push(if affinity_sets.is_empty() {
                    dnat(self.service_port.protocol, &chance, backend)
                } else {
                    format!("{chance}-g {}", affinity_chain(backend))
                });
            }
            let name = names::chain(backend_chain_prefix(*set), &[self.id()]);
            to.chains.push(Chain::new(name, rules));
        }
        to.affinity_sets.extend(affinity_sets.into_values());
    }
}

const fn backend_chain_prefix(set: BackendSet) -> &'static str {
    match set {
        BackendSet::Cluster => "C",
        BackendSet::Local => "L",
    }
}

/// How a route is written in a chain's name: where to, in capitals if masqueraded.
const fn letter(route: Route) -> char {
    match route {
        Route::Forward { to, masquerade } => match (to, masquerade) {
            (BackendSet::Cluster, false) => 'c',
            (BackendSet::Cluster, true) => 'C',
            (BackendSet::Local, false) => 'l',
            (BackendSet::Local, true) => 'L',
        },
        Route::Reject | Route::Drop => 'x',
    }
}
