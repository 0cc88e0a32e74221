//! Does the kernel hold what we meant, and only what we meant to write gets written?
//!
//! Each test has a network namespace of its own, so they need root; what packets meet there is tested
//! by the harness of the `tests` crate.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::*;
use crate::datapath::{Datapath, SyncReport};
use crate::forwarding::{
    Backend, BackendSet, Detector, Exposure, Frontend, FrontendAddress, FrontendKey, Globals,
    MarkBit, Route, Routes, ServicePort, ServicePortId,
};
use crate::net::{IpFamily, L4Proto, Port, V4, V6};

/// Runs a test on a thread in a network namespace of its own.
fn in_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("network namespaces need root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// What `nft` answers in the namespace of this thread.
#[expect(
    clippy::disallowed_methods,
    reason = "a test looks at the kernel with a tool of its own"
)]
fn nft(arguments: &str) -> String {
    let output = std::process::Command::new("nft")
        .args(arguments.split(' '))
        .output()
        .expect("nft runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "nft {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The table as `nft` lists it, without what moves by itself.
fn list<F: Family>() -> String {
    nft(match F::FAMILY {
        IpFamily::V4 => "-n list table ip proxy-daemon",
        IpFamily::V6 => "-n list table ip6 proxy-daemon",
    })
}

const NOTHING: SyncReport = SyncReport {
    n_added: 0,
    n_removed: 0,
};

/// An address of either family from a small number: `10.a.b.c` or `fd00::a:b:c`.
fn address<F: Family>(number: u32) -> F::Addr {
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

fn net<F: Family>(number: u32, host_bits: u8) -> F::Net {
    let bits = u8::try_from(F::ADDR_LEN * 8).unwrap();
    let network = ipnet::IpNet::new(address::<F>(number).into(), bits - host_bits)
        .unwrap()
        .trunc();
    F::net(network).unwrap()
}

fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

fn backends<F: Family>(numbers: impl IntoIterator<Item = u32>) -> Box<[Backend<F>]> {
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
        masquerade_bit: MarkBit::DEFAULT,
        node_port_addresses: BTreeSet::from([address::<F>(0xc0_0002)]),
        service_cidrs: BTreeSet::from([
            net::<F>(0x60_0000, 16),
            net::<F>(0x61_0000, 16),
            net::<F>(0x70_0000, 8),
        ]),
        drop_invalid: true,
    }
}

fn state<F: Family>(service_ports: impl IntoIterator<Item = ServicePort<F>>) -> ForwardingState<F> {
    ForwardingState {
        globals: globals(),
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
fn service_port<F: Family>(number: u16, n: u32, traits: u8) -> ServicePort<F> {
    let has = |bit: u8| traits & 1 << bit != 0;
    let number32 = u32::from(number);
    let protocol = if has(0) { L4Proto::Udp } else { L4Proto::Tcp };
    let cluster_ip = address::<F>(0x60_0000 + number32);
    let reject = Routes::all(Route::Reject);
    let mut frontends = BTreeMap::new();
    let mut add = |at: FrontendAddress<F>, port_number, exposure, routes, source_ranges| {
        let key = FrontendKey {
            address: at,
            protocol,
            port: port(port_number),
        };
        let routes = if n == 0 { reject } else { routes };
        let frontend = Frontend {
            exposure,
            routes,
            source_ranges,
        };
        frontends.insert(key, frontend);
    };
    add(
        FrontendAddress::Vip(cluster_ip),
        80,
        Exposure::ClusterIp,
        cluster_ip_routes(),
        None,
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
            None,
        );
    }
    if has(4) {
        let ranges = has(5).then(|| {
            Arc::from([
                net::<F>(0xcb_0000, 8),
                net::<F>(0xcb_0100, 8),
                net::<F>(0xcb_0500, 3),
            ])
        });
        let vip = FrontendAddress::Vip(address::<F>(0xc8_0000 + number32));
        add(vip, 80, Exposure::LoadBalancer, external, ranges);
    }
    if has(6) {
        let vip = FrontendAddress::Vip(address::<F>(0xc9_0000 + number32));
        add(vip, 80, Exposure::ExternalIp, external, None);
    }
    let service = format!("default/web-{number}");
    ServicePort {
        id: ServicePortId::new(&service, "http", protocol),
        protocol,
        cluster_ip,
        affinity: has(7).then_some(10_800),
        cluster: backends((0..n).map(|i| 0xf4_0000 + number32 * 16 + i)),
        local: if has(1) && has(2) {
            backends((0..n.min(2)).map(|i| 0xf4_0000 + number32 * 16 + i))
        } else {
            Box::default()
        },
        live: Box::default(),
        frontends,
    }
}

fn one_of_each<F: Family>() -> ForwardingState<F> {
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

fn applies_and_reads_back<F: Family>() {
    in_netns(|| {
        let mut datapath = Nftables::<F>::open().unwrap();
        let desired = one_of_each::<F>();
        let report = datapath.resync(&desired).unwrap();
        assert!(report.n_added > 100);
        let text = list::<F>();
        assert_eq!(datapath.resync(&desired).unwrap(), NOTHING);
        let mut restarted = Nftables::<F>::open().unwrap();
        assert_eq!(restarted.resync(&desired).unwrap(), NOTHING);
        assert_eq!(text, list::<F>());
    });
}

#[test]
fn applies_and_reads_back_v4() {
    applies_and_reads_back::<V4>();
}

#[test]
fn applies_and_reads_back_v6() {
    applies_and_reads_back::<V6>();
}
