//! Which elements does a ServicePort have in our sets, and which do the globals?
//!
//! Invariants: pure; decides nothing that the forwarding state leaves open; the same ServicePort gives
//! the same elements, whatever else there is. What several ServicePorts share (actions, backends,
//! ClusterIPs) is only listed here, and counted by `apply`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use super::action::{Action, BackendChain, Lookup};
use super::codec::{Data, Key};
use super::elements::Elements;
use super::layout::{BackendMaps, SetId};
use crate::datapath::common::common_forward;
use crate::forwarding::{
    Backend, BackendSet, Exposure, Frontend, FrontendAddress, FrontendKey, Globals, Route, Routes,
    ServicePort, SourceClass,
};
use crate::net::{Family, L4Proto, Networks};

/// What one or several ServicePorts need.
#[derive(Debug)]
pub(crate) struct Rendered<F: Family> {
    /// Elements that belong to one ServicePort each.
    pub(crate) elements: Elements,
    /// Actions, each with the map that holds it; once per use.
    pub(crate) actions: Vec<(SetId, Action)>,
    /// Backends; once per use.
    pub(crate) backends: Vec<(L4Proto, Backend<F>)>,
    /// Live ClusterIPs; once per use.
    pub(crate) cluster_ips: Vec<F::Addr>,
}

impl<F: Family> Default for Rendered<F> {
    fn default() -> Self {
        Self {
            elements: Elements::default(),
            actions: Vec::new(),
            backends: Vec::new(),
            cluster_ips: Vec::new(),
        }
    }
}

/// The bytes of an address.
pub(crate) fn address_key<F: Family>(address: F::Addr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(F::ADDR_LEN);
    F::write_addr(address, &mut bytes);
    bytes
}

/// Appends protocol and port, each in a register of its own.
fn write_node_port(protocol: L4Proto, port: u16, to: &mut Vec<u8>) {
    to.extend_from_slice(&[protocol.number(), 0, 0, 0]);
    let [high, low] = port.to_be_bytes();
    to.extend_from_slice(&[high, low, 0, 0]);
}

/// The key of a NodePort frontend.
fn node_port_key(protocol: L4Proto, port: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8);
    write_node_port(protocol, port, &mut bytes);
    bytes
}

/// The key of a VIP frontend; a NodePort that names a ServicePort has no address there.
fn frontend_key<F: Family>(key: &FrontendKey<F>) -> Vec<u8> {
    let FrontendKey {
        address,
        protocol,
        port,
    } = *key;
    let mut bytes = Vec::with_capacity(F::ADDR_LEN + 12);
    match address {
        FrontendAddress::Vip(address) => F::write_addr(address, &mut bytes),
        FrontendAddress::Node => bytes.resize(F::ADDR_LEN, 0),
    }
    write_node_port(protocol, port.get(), &mut bytes);
    bytes
}

/// The frontend that names a ServicePort in the kernel: its ClusterIP's if it has it, else its first.
///
/// No two ServicePorts of a state have the same one. `None` if it has no frontend at all.
pub(crate) fn owner<F: Family>(service_port: &ServicePort<F>) -> Option<FrontendKey<F>> {
    let frontends = &service_port.frontends;
    let mut cluster_ips = frontends
        .iter()
        .filter(|(_, frontend)| frontend.exposure == Exposure::ClusterIp);
    let cluster_ip = cluster_ips.next().map(|(key, _)| key);
    cluster_ip.or_else(|| frontends.keys().next()).copied()
}

/// The key of a ServicePort in the affinity map.
pub(crate) fn owner_key<F: Family>(service_port: &ServicePort<F>) -> Option<Vec<u8>> {
    owner(service_port).map(|key| frontend_key(&key))
}

/// The bytes of a backend.
pub(crate) fn backend_key<F: Family>(backend: &Backend<F>) -> Vec<u8> {
    let Backend { address, port } = *backend;
    let mut bytes = Vec::with_capacity(F::ADDR_LEN + 4);
    F::write_addr(address, &mut bytes);
    let [high, low] = port.get().to_be_bytes();
    bytes.extend_from_slice(&[high, low, 0, 0]);
    bytes
}

/// The key of both ends of a hairpin: the client is the backend.
pub(crate) fn hairpin_key<F: Family>(protocol: L4Proto, backend: &Backend<F>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(F::ADDR_LEN * 2 + 8);
    F::write_addr(backend.address, &mut bytes);
    write_node_port(protocol, backend.port.get(), &mut bytes);
    F::write_addr(backend.address, &mut bytes);
    bytes
}

/// The codes of a ServicePort's backends in the affinity map, for both sets of backends.
///
/// A code is a hash of address and port, so that it outlives changes of the other backends and a restart.
/// Of two backends with the same hash, which is one in 268 million, the second has the next number.
pub(crate) fn backend_codes<F: Family>(service_port: &ServicePort<F>) -> BTreeMap<Backend<F>, u32> {
    let backends: BTreeSet<Backend<F>> = service_port
        .cluster
        .iter()
        .chain(&service_port.local)
        .copied()
        .collect();
    let mut taken = BTreeSet::new();
    let mut code_of = |backend: &Backend<F>| {
        let bytes = backend_key(backend);
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        // The upper half is no handle that a queueing discipline would have: codes lie in the priority.
        let mut code = 0xe000_0000 | hash >> 4;
        while !taken.insert(code) {
            code = 0xe000_0000 | code.wrapping_add(1);
        }
        code
    };
    backends
        .iter()
        .map(|backend| (*backend, code_of(backend)))
        .collect()
}

/// Renders the globals: addresses of this node and networks of ClusterIPs.
///
/// The rest of them is in rules, see `layout` and `action`.
pub(crate) fn render_globals<F: Family>(globals: &Globals<F>, elements: &mut Elements) {
    let Globals {
        detector: _,
        // The kernel knows them.
        local_addresses: _,
        node_port_addresses,
        service_cidrs,
        netfilter: _,
    } = globals;
    for address in node_port_addresses {
        elements.add(SetId::NodePortAddresses, &address_key::<F>(*address));
    }
    // Kernel: interval sets refuse overlaps, and join nothing.
    for (first, last) in service_cidrs.ranges() {
        let (first, last) = (address_key::<F>(first), address_key::<F>(last));
        elements.add(SetId::ServiceCidrs, &first);
        if let Some(end) = successor(&last) {
            elements.push(SetId::ServiceCidrs, Key::End(&end), Data::None, "");
        }
    }
}

/// Renders addresses that are not dropped as unallocated.
pub(crate) fn render_spared<'a, F: Family>(
    addresses: impl IntoIterator<Item = &'a F::Addr>,
    elements: &mut Elements,
) {
    for address in addresses {
        elements.add(SetId::Spared, &address_key::<F>(*address));
    }
}

/// Renders a ServicePort.
pub(crate) fn render_service_port<F: Family>(service_port: &ServicePort<F>, to: &mut Rendered<F>) {
    let ServicePort {
        id: _,
        protocol,
        cluster_ip,
        affinity,
        cluster: _,
        local: _,
        // Only conntrack needs it.
        live: _,
        frontends,
    } = service_port;
    to.cluster_ips.push(*cluster_ip);
    let Some(owner) = owner(service_port) else {
        return;
    };
    let mut view = View {
        service_port,
        owner,
        uses: BTreeSet::new(),
    };
    for (key, frontend) in frontends.iter() {
        view.render_frontend(key, frontend, to);
    }
    let codes = affinity.timeout().map(|_| backend_codes(service_port));
    for (owner, set) in view.uses {
        let backends = service_port.backends(set);
        render_backends((&owner, *protocol), backends, codes.as_ref(), set, to);
    }
}

/// Renders a set of backends under the key of the frontend that names the ServicePort.
fn render_backends<F: Family>(
    (owner, protocol): (&[u8], L4Proto),
    backends: &[Backend<F>],
    codes: Option<&BTreeMap<Backend<F>, u32>>,
    set: BackendSet,
    to: &mut Rendered<F>,
) {
    let maps = BackendMaps::of(set);
    let mut key = Vec::with_capacity(owner.len() + 4);
    let mut push = |map, number: u32, data: &[u8]| {
        key.clear();
        key.extend_from_slice(owner);
        key.extend_from_slice(&number.to_ne_bytes());
        let data = Data::Bytes(data);
        to.elements.push(map, Key::Exact(&key), data, "");
    };
    for (backend, number) in backends.iter().zip(0_u32..) {
        let bytes = backend_key(backend);
        push(maps.by_number, number, &bytes);
        if let Some(code) = codes.and_then(|codes| codes.get(backend)) {
            push(maps.codes, number, &code.to_ne_bytes());
            push(maps.by_code, *code, &bytes);
        }
    }
    let used = backends.iter().map(|backend| (protocol, *backend));
    to.backends.extend(used);
}

/// A ServicePort whose frontends are rendered.
struct View<'a, F: Family> {
    service_port: &'a ServicePort<F>,
    owner: FrontendKey<F>,
    /// Sets of backends in use, each with the key by which frontends look it up.
    uses: BTreeSet<(Vec<u8>, BackendSet)>,
}

/// The map with the verdicts for the actions that `set` holds.
const fn actions_of(set: SetId) -> SetId {
    if matches!(set, SetId::Frontends | SetId::NodePorts) {
        SetId::FrontendActions
    } else if matches!(set, SetId::SourceRestricted) {
        SetId::SourceRestrictedActions
    } else {
        SetId::SourceActions
    }
}

impl<F: Family> View<'_, F> {
    /// Adds an element, with the name of the ServicePort.
    fn push(&self, set: SetId, key: Key<'_>, data: Data<'_>, to: &mut Rendered<F>) {
        to.elements
            .push(set, key, data, self.service_port.id.as_str());
    }

    /// Sets the action of `key` in `set`.
    fn push_action(&self, set: SetId, key: &[u8], action: Action, to: &mut Rendered<F>) {
        let code = action.code().to_ne_bytes();
        self.push(set, Key::Exact(key), Data::Bytes(&code), to);
        to.actions.push((actions_of(set), action));
    }

    fn render_frontend(
        &mut self,
        key: &FrontendKey<F>,
        frontend: &Frontend<F>,
        to: &mut Rendered<F>,
    ) {
        let Frontend { exposure, routes } = frontend;
        let (bytes, dispatch) = match key.address {
            FrontendAddress::Vip(_) => (frontend_key(key), SetId::Frontends),
            FrontendAddress::Node => {
                let bytes = node_port_key(key.protocol, key.port.get());
                (bytes, SetId::NodePorts)
            }
        };
        let lookup = self.lookup(key);
        let action = self.action(*routes, lookup, &bytes, to);
        if let Exposure::LoadBalancer {
            source_ranges: Some(ranges),
        } = exposure
        {
            self.push_action(dispatch, &bytes, Action::CheckSourceRanges, to);
            self.push_action(SetId::SourceRestricted, &bytes, action, to);
            self.render_ranges(&bytes, ranges, to);
        } else {
            self.push_action(dispatch, &bytes, action, to);
        }
        self.render_filter(exposure, *routes, (dispatch, &bytes), to);
    }

    fn render_ranges(&self, key: &[u8], ranges: &Networks<F>, to: &mut Rendered<F>) {
        for (first, last) in ranges.ranges() {
            let (mut from, mut until) = (key.to_vec(), key.to_vec());
            F::write_addr(first, &mut from);
            F::write_addr(last, &mut until);
            let range = Key::Range(&from, &until);
            self.push(SetId::SourceRanges, range, Data::None, to);
        }
    }

    /// Renders a frontend's elements for the filter hooks.
    fn render_filter(
        &self,
        exposure: &Exposure<F>,
        Routes { pod, host, extn }: Routes,
        (dispatch, key): (SetId, &[u8]),
        to: &mut Rendered<F>,
    ) {
        if [pod, host, extn].contains(&Route::Reject) {
            let set = if dispatch == SetId::NodePorts {
                SetId::NoEndpointNodePorts
            } else {
                SetId::NoEndpoints
            };
            self.push(set, Key::Exact(key), Data::None, to);
        }
        if let Exposure::ExternalIp | Exposure::LoadBalancer { .. } = exposure {
            self.push(SetId::ExternalFrontends, Key::Exact(key), Data::None, to);
        }
    }

    /// The action for these routes.
    fn action(
        &mut self,
        routes: Routes,
        lookup: Lookup,
        key: &[u8],
        to: &mut Rendered<F>,
    ) -> Action {
        let Routes { pod, host, extn } = routes;
        self.note_use([pod, host, extn], lookup, key, to);
        if let Some(action) = self.common_action([pod, host, extn], lookup) {
            return action;
        }
        let node_port = matches!(lookup, Lookup::NodePort);
        let classes = [
            (SourceClass::Pod, pod),
            (SourceClass::Host, host),
            (SourceClass::Extn, extn),
        ];
        for (class, route) in classes {
            let action = self
                .common_action([route; 3], lookup)
                .unwrap_or(Action::Drop);
            self.push_action(SetId::by_source(class, node_port), key, action, to);
        }
        Action::BySource { node_port }
    }

    /// How the backend chain finds the ServicePort of this frontend.
    ///
    /// A VIP with another port than the ServicePort's name could not be led there by its address alone.
    /// `compile` makes no such VIP; if there is one, it gets backends of its own.
    fn lookup(&self, key: &FrontendKey<F>) -> Lookup {
        match (key.address, self.owner.address) {
            (FrontendAddress::Node, _) => Lookup::NodePort,
            (FrontendAddress::Vip(_), FrontendAddress::Vip(_))
                if *key != self.owner && key.port == self.owner.port =>
            {
                Lookup::Vip
            }
            (FrontendAddress::Vip(_), _) => Lookup::Direct,
        }
    }

    /// Notes the sets of backends in use, and renders the lookup from this frontend to them.
    fn note_use(&mut self, routes: [Route; 3], lookup: Lookup, key: &[u8], to: &mut Rendered<F>) {
        let owner = match lookup {
            Lookup::Direct => key.to_vec(),
            Lookup::Vip | Lookup::NodePort => frontend_key(&self.owner),
        };
        let used = routes.into_iter().filter_map(|route| match route {
            Route::Forward { to, masquerade: _ } => Some(to),
            Route::Reject | Route::Drop => None,
        });
        let sets: BTreeSet<BackendSet> = used.collect();
        if sets.is_empty() {
            return;
        }
        self.uses
            .extend(sets.into_iter().map(|set| (owner.clone(), set)));
        let mut lead = |map, data: &[u8]| self.push(map, Key::Exact(key), Data::Bytes(data), to);
        let (address, rest) = owner.split_at_checked(F::ADDR_LEN).unwrap_or_default();
        match lookup {
            Lookup::Direct => {}
            Lookup::Vip => lead(SetId::FrontendOwners, address),
            Lookup::NodePort => {
                lead(SetId::NodePortOwners, address);
                lead(
                    SetId::NodePortOwnerPorts,
                    rest.get(4..6).unwrap_or_default(),
                );
            }
        }
    }

    /// The action for POD, HOST and EXTN, if all three have the same.
    fn common_action(&self, routes: [Route; 3], lookup: Lookup) -> Option<Action> {
        match routes {
            [Route::Drop, Route::Drop, Route::Drop] => return Some(Action::Drop),
            [Route::Reject, Route::Reject, Route::Reject] => return Some(Action::Reject),
            _ => {}
        }
        let (set, masquerade) = common_forward(routes)?;
        let n = u32::try_from(self.service_port.backends(set).len()).unwrap_or(u32::MAX);
        // A set in use is never empty; if it were, dropping is safe.
        Some(NonZeroU32::new(n).map_or(Action::Drop, |n| {
            Action::SelectBackend(BackendChain {
                lookup,
                set,
                n,
                masquerade,
                affinity: self.service_port.affinity.timeout(),
            })
        }))
    }
}

/// The address after this one; `None` after the last.
fn successor(address: &[u8]) -> Option<Vec<u8>> {
    let mut next = address.to_vec();
    for byte in next.iter_mut().rev() {
        let (sum, carry) = byte.overflowing_add(1);
        *byte = sum;
        if !carry {
            return Some(next);
        }
    }
    None
}
