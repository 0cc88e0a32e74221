//! Which forwarding states do the tests of all datapaths use?
//!
//! Each test has a network namespace of its own, so they need root.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{SyncReport, Tables};
use crate::forwarding::{
    Affinity, Backend, BackendSet, Change, Changes, Detector, Exposure, ForwardingState, Frontend,
    FrontendAddress, FrontendKey, Globals, MarkBit, Netfilter, Route, Routes, ServicePort,
    ServicePortId,
};
use crate::net::{Family, L4Proto, Networks, Port};

/// Runs a test on a thread in a network namespace of its own.
pub(super) fn in_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("network namespaces need root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(super) const NOTHING: SyncReport = SyncReport {
    n_added: 0,
    n_removed: 0,
};

/// Follows a change, as the sync loop does.
pub(super) fn sync_or_resync<F: Family>(
    tables: &mut (impl Tables<F> + ?Sized),
    old: &ForwardingState<F>,
    new: &ForwardingState<F>,
) -> SyncReport {
    match tables.sync(new, &changes(old, new)).unwrap() {
        Some(report) => report,
        None => tables.resync(new).unwrap(),
    }
}

/// An address of either family from a small number: `10.a.b.c` or `fd00::a:b:c`.
pub(super) fn address<F: Family>(number: u32) -> F::Addr {
    let [_, a, b, c] = number.to_be_bytes();
    let v4 = IpAddr::V4(Ipv4Addr::new(10, a, b, c));
    let v6 = IpAddr::V6(Ipv6Addr::new(
        0xfd00,
        0,
        0,
        0,
        0,
        a.into(),
        b.into(),
        c.into(),
    ));
    F::addr(v4).or(F::addr(v6)).expect("one of them fits")
}

pub(super) fn net<F: Family>(number: u32, host_bits: u8) -> F::Net {
    let bits = u8::try_from(F::ADDR_LEN * 8).unwrap();
    let network = ipnet::IpNet::new(address::<F>(number).into(), bits - host_bits)
        .unwrap()
        .trunc();
    F::net(network).unwrap()
}

pub(super) fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

pub(super) fn backends<F: Family>(numbers: impl IntoIterator<Item = u32>) -> Box<[Backend<F>]> {
    let backend = |number| Backend {
        address: address::<F>(number),
        port: port(8080),
    };
    numbers.into_iter().map(backend).collect()
}

fn to(set: BackendSet, masquerade: bool) -> Route {
    Route::Forward {
        to: set,
        masquerade,
    }
}

fn globals<F: Family>() -> Globals<F> {
    Globals {
        detector: Some(Detector::Network(net::<F>(0xf4_0000, 16))),
        local_addresses: BTreeSet::from([address::<F>(0xc0_0002)]),
        node_port_addresses: BTreeSet::from([address::<F>(0xc0_0002)]),
        service_cidrs: [
            net::<F>(0x60_0000, 16),
            net::<F>(0x61_0000, 16),
            net::<F>(0x70_0000, 8),
        ]
        .into_iter()
        .collect(),
        netfilter: Netfilter {
            masquerade_bit: MarkBit::DEFAULT,
            drop_invalid: true,
        },
    }
}

pub(super) fn state<F: Family>(
    service_ports: impl IntoIterator<Item = ServicePort<F>>,
) -> ForwardingState<F> {
    ForwardingState {
        globals: globals(),
        spared: BTreeSet::from([address::<F>(0x60_0909)]),
        service_ports: service_ports
            .into_iter()
            .map(|sp| (sp.id.clone(), Arc::new(sp)))
            .collect(),
    }
}

/// Routes of a ClusterIP with a detector, of an external frontend with eTP Cluster, and with eTP Local.
fn cluster_ip_routes() -> Routes {
    Routes {
        pod: to(BackendSet::Cluster, false),
        host: to(BackendSet::Cluster, true),
        extn: to(BackendSet::Cluster, true),
    }
}

fn local_routes(extn: Route) -> Routes {
    Routes {
        pod: to(BackendSet::Cluster, false),
        host: to(BackendSet::Cluster, true),
        extn,
    }
}

/// A ServicePort with a ClusterIP, `n` backends, and what the bits of `traits` ask for.
pub(super) fn service_port<F: Family>(number: u16, n: u32, traits: u8) -> ServicePort<F> {
    let has = |bit: u8| traits & 1 << bit != 0;
    let number32 = u32::from(number);
    let protocol = if has(0) { L4Proto::Udp } else { L4Proto::Tcp };
    let cluster_ip = address::<F>(0x60_0000 + number32);
    let reject = Routes::all(Route::Reject);
    let mut frontends = Vec::new();
    let mut add = |at: FrontendAddress<F>, port_number, exposure, routes| {
        let key = FrontendKey {
            address: at,
            protocol,
            port: port(port_number),
        };
        let routes = if n == 0 { reject } else { routes };
        frontends.push((key, Frontend { exposure, routes }));
    };
    add(
        FrontendAddress::Vip(cluster_ip),
        80,
        Exposure::ClusterIp,
        cluster_ip_routes(),
    );
    let external = if has(1) {
        let extn = if has(2) {
            to(BackendSet::Local, false)
        } else {
            Route::Drop
        };
        local_routes(extn)
    } else {
        Routes::all(to(BackendSet::Cluster, true))
    };
    if has(3) {
        add(
            FrontendAddress::Node,
            30000 + number,
            Exposure::NodePort,
            external,
        );
    }
    if has(4) {
        let ranges = [
            net::<F>(0xcb_0000, 8),
            net::<F>(0xcb_0100, 8),
            net::<F>(0xcb_0500, 3),
        ];
        let source_ranges = has(5).then(|| Arc::new(ranges.into_iter().collect()));
        let vip = FrontendAddress::Vip(address::<F>(0xc8_0000 + number32));
        add(vip, 80, Exposure::LoadBalancer { source_ranges }, external);
    }
    if has(6) {
        let vip = FrontendAddress::Vip(address::<F>(0xc9_0000 + number32));
        add(vip, 80, Exposure::ExternalIp, external);
    }
    let service = format!("default/web-{number}");
    ServicePort {
        id: ServicePortId::new(&service, "http", protocol),
        protocol,
        cluster_ip,
        affinity: if has(7) {
            Affinity::Seconds(10_800)
        } else {
            Affinity::Off
        },
        cluster: backends((0..n).map(|i| 0xf4_0000 + number32 * 16 + i)),
        local: if has(1) && has(2) {
            backends((0..n.min(2)).map(|i| 0xf4_0000 + number32 * 16 + i))
        } else {
            Box::default()
        },
        live: Box::default(),
        frontends: frontends.into_iter().collect(),
    }
}

pub(super) fn one_of_each<F: Family>() -> ForwardingState<F> {
    state([
        service_port(1, 3, 0),
        service_port(2, 10, 0b0101_1000),
        service_port(3, 2, 0b1101_1001),
        service_port(4, 3, 0b0111_1010),
        service_port(5, 3, 0b0111_1110),
        service_port(6, 3, 0b1111_1110),
        service_port(7, 0, 0b0111_1110),
    ])
}

/// Changes that lead from one state to another.
pub(super) fn changes<F: Family>(old: &ForwardingState<F>, new: &ForwardingState<F>) -> Changes<F> {
    let ids: BTreeSet<&ServicePortId> = old
        .service_ports
        .keys()
        .chain(new.service_ports.keys())
        .collect();
    let change = |id: &ServicePortId| Change {
        old: old.service_ports.get(id).cloned(),
        new: new.service_ports.get(id).cloned(),
    };
    Changes {
        globals: (old.globals != new.globals).then(|| old.globals.clone()),
        spared_added: new.spared.difference(&old.spared).copied().collect(),
        spared_removed: old.spared.difference(&new.spared).copied().collect(),
        service_ports: ids
            .into_iter()
            .map(|id| (id.clone(), change(id)))
            .filter(|(_, change)| change.old != change.new)
            .collect(),
    }
}

/// A generator of numbers that are the same each time.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(limit)).unwrap()
    }
}

/// Some ServicePorts with some traits, and now and then other addresses of the node.
pub(super) fn some_state<F: Family>(numbers: &mut Numbers) -> ForwardingState<F> {
    let mut service_ports = Vec::new();
    for number in 1..=12 {
        if numbers.below(4) > 0 {
            let traits = u8::try_from(numbers.below(256)).unwrap();
            let mut service_port = service_port(number, numbers.below(5), traits);
            if service_port.affinity != Affinity::Off && numbers.below(2) == 0 {
                service_port.affinity = Affinity::Seconds(60);
            }
            service_ports.push(service_port);
        }
    }
    let mut state = state(service_ports);
    state.globals.node_port_addresses = (0..numbers.below(3))
        .map(|i| address::<F>(0xc0_0002 + i))
        .collect();
    if numbers.below(2) == 0 {
        let more = state.globals.service_cidrs.iter().copied();
        state.globals.service_cidrs = more.chain([net::<F>(0x62_0000, 16)]).collect();
    }
    let spared = (0..numbers.below(3)).map(|i| address::<F>(0x61_0900 + i));
    state.spared.extend(spared);
    state
}

/// A set of networks of the pool: some that touch, nest or repeat, and the ends of the space.
pub(super) fn some_networks<F: Family>(numbers: &mut Numbers) -> Networks<F> {
    let bits = u8::try_from(F::ADDR_LEN * 8).unwrap();
    let edge = |byte: u8, prefix: u8| {
        let address = F::read_addr(&vec![byte; F::ADDR_LEN]).unwrap();
        let network = ipnet::IpNet::new(address.into(), prefix).unwrap().trunc();
        F::net(network).unwrap()
    };
    let one = |numbers: &mut Numbers| match numbers.below(20) {
        0 => edge(0, bits),
        1 => edge(0xff, bits),
        2 => edge(0, 0),
        3 => edge(0, 1),
        4 => edge(0xff, 1),
        5 => edge(0xff, 8),
        6 => net::<F>(0x60_0000 + numbers.below(4), 0),
        7..12 => net::<F>(0x60_0000 + numbers.below(8) * 0x80, 7),
        12..18 => net::<F>(0x60_0000 + numbers.below(4) * 0x100, 8),
        _ => net::<F>(0x60_0000, 10),
    };
    (0..numbers.below(6)).map(|_| one(numbers)).collect()
}
