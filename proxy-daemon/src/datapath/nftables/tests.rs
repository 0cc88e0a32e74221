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
    Backend, BackendSet, Change, Detector, Exposure, Frontend, FrontendAddress, FrontendKey,
    Globals, MarkBit, Route, Routes, ServicePort, ServicePortId,
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

/// Changes that lead from one state to another.
fn changes<F: Family>(old: &ForwardingState<F>, new: &ForwardingState<F>) -> Changes<F> {
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
        service_ports: ids
            .into_iter()
            .map(|id| (id.clone(), change(id)))
            .filter(|(_, change)| change.old != change.new)
            .collect(),
    }
}

/// A generator of numbers that are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(limit)).unwrap()
    }
}

/// Some ServicePorts with some traits, and now and then other addresses of the node.
fn some_state<F: Family>(numbers: &mut Numbers) -> ForwardingState<F> {
    let mut service_ports = Vec::new();
    for number in 1..=12 {
        if numbers.below(4) > 0 {
            let traits = u8::try_from(numbers.below(256)).unwrap();
            let mut service_port = service_port(number, numbers.below(5), traits);
            if service_port.affinity.is_some() && numbers.below(2) == 0 {
                service_port.affinity = Some(60);
            }
            service_ports.push(service_port);
        }
    }
    let mut state = state(service_ports);
    state.globals.node_port_addresses = (0..numbers.below(3))
        .map(|i| address::<F>(0xc0_0002 + i))
        .collect();
    if numbers.below(2) == 0 {
        state.globals.service_cidrs.insert(net::<F>(0x62_0000, 16));
    }
    state
}

/// Whatever the way, the kernel holds what a fresh start would have written.
fn sync_5_churn_leaves_what_a_fresh_start_writes<F: Family>() {
    in_netns(|| {
        let mut numbers = Numbers(7);
        let mut datapath = Nftables::<F>::open().unwrap();
        let mut state = some_state::<F>(&mut numbers);
        datapath.resync(&state).unwrap();
        for round in 0..60 {
            let next = some_state::<F>(&mut numbers);
            datapath.sync(&next, &changes(&state, &next)).unwrap();
            state = next;
            if round % 10 == 0 {
                let mut fresh = Nftables::<F>::open().unwrap();
                assert_eq!(fresh.resync(&state).unwrap(), NOTHING, "round {round}");
                assert!(!datapath.changed_by_others().unwrap());
            }
        }
        // From one state to any other, read back too.
        for _ in 0..10 {
            let next = some_state::<F>(&mut numbers);
            datapath.resync(&next).unwrap();
            assert_eq!(datapath.resync(&next).unwrap(), NOTHING);
        }
        let empty = ForwardingState {
            service_ports: BTreeMap::new(),
            ..state
        };
        datapath.resync(&empty).unwrap();
        let left = list::<F>();
        assert!(
            !left.contains("default/") && !left.contains("cluster-3"),
            "{left}"
        );
        datapath.cleanup().unwrap();
        datapath.cleanup().unwrap();
        assert_eq!(nft("list ruleset"), "");
    });
}

#[test]
fn sync_5_churn_leaves_what_a_fresh_start_writes_v4() {
    sync_5_churn_leaves_what_a_fresh_start_writes::<V4>();
}

#[test]
fn sync_5_churn_leaves_what_a_fresh_start_writes_v6() {
    sync_5_churn_leaves_what_a_fresh_start_writes::<V6>();
}

#[test]
fn sync_9_damage_is_noticed_and_repaired() {
    in_netns(|| {
        let mut datapath = Nftables::<V4>::open().unwrap();
        let state = one_of_each::<V4>();
        datapath.resync(&state).unwrap();
        let whole = list::<V4>();
        assert!(!datapath.changed_by_others().unwrap());
        for damage in [
            "flush ruleset",
            "delete table ip proxy-daemon",
            "flush chain ip proxy-daemon services",
            "flush chain ip proxy-daemon nat-output",
            "delete chain ip proxy-daemon nat-output",
            "add rule ip proxy-daemon nat-prerouting drop",
            "insert rule ip proxy-daemon services return",
            "add chain ip proxy-daemon foreign { type filter hook input priority 0; policy drop; }",
            "add set ip proxy-daemon foreign { type ipv4_addr; }",
        ] {
            nft(damage);
            assert!(datapath.changed_by_others().unwrap(), "{damage}");
            assert_ne!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
            let mut same: Vec<&str> = whole.lines().collect();
            let list = list::<V4>();
            let mut listed: Vec<&str> = list.lines().collect();
            // The order of chains, and of elements in a line, is that of their making.
            same.sort_unstable();
            listed.sort_unstable();
            assert_eq!(same.len(), listed.len(), "{damage}");
            assert!(!datapath.changed_by_others().unwrap(), "{damage}");
            assert_eq!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
        }
        // Of elements, a quick look sees at most that there are too few or too many.
        for damage in [
            "delete element ip proxy-daemon frontends { 10.96.0.1 . tcp . 80 }",
            "add element ip proxy-daemon cluster-ips { 10.9.9.9 }",
            "flush map ip proxy-daemon cluster-backends",
            "flush set ip proxy-daemon service-cidrs",
            "flush set ip proxy-daemon source-ranges",
        ] {
            nft(damage);
            assert_ne!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
            assert_eq!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
        }
    });
}

#[test]
fn sync_10_foreign_tables_stay() {
    in_netns(|| {
        nft("add table ip foreign");
        nft("add chain ip foreign input { type filter hook input priority 0; }");
        let before = nft("list ruleset");
        let mut datapath = Nftables::<V4>::open().unwrap();
        let state = one_of_each::<V4>();
        datapath.resync(&state).unwrap();
        nft("add rule ip foreign input accept");
        assert!(!datapath.changed_by_others().unwrap());
        nft("flush chain ip foreign input");
        datapath.cleanup().unwrap();
        assert_eq!(nft("list ruleset"), before);
    });
}

#[test]
fn a_refused_sync_changes_nothing_and_the_next_reads_back() {
    in_netns(|| {
        let mut datapath = Nftables::<V4>::open().unwrap();
        let old = state([service_port(1, 3, 0), service_port(2, 3, 0)]);
        let new = state([service_port(1, 4, 0)]);
        datapath.resync(&old).unwrap();
        nft("delete element ip proxy-daemon frontends { 10.96.0.2 . tcp . 80 }");
        let before = list::<V4>();
        assert!(datapath.sync(&new, &changes(&old, &new)).is_err());
        assert_eq!(list::<V4>(), before);
        datapath.sync(&new, &changes(&old, &new)).unwrap();
        assert_eq!(Nftables::open().unwrap().resync(&new).unwrap(), NOTHING);
    });
}

/// The clients that the table remembers, as `nft` prints them.
fn remembered() -> Vec<String> {
    let list = nft("-n list map ip proxy-daemon affinity");
    let elements = list
        .split_once("elements = {")
        .map_or("", |(_, elements)| elements);
    let clients = elements
        .split(',')
        .map(str::trim)
        .filter(|client| client.contains(" . "));
    clients.map(str::to_owned).collect()
}

#[test]
fn aff_6_aff_8_aff_9_clients_are_forgotten_kept_and_kept_for_another_time() {
    in_netns(|| {
        let with_affinity = |n, seconds| {
            let mut service_port = service_port::<V4>(1, n, 0);
            service_port.affinity = Some(seconds);
            service_port
        };
        let mut datapath = Nftables::<V4>::open().unwrap();
        let first = state([with_affinity(3, 10_800)]);
        datapath.resync(&first).unwrap();
        for (backend, code) in render::backend_codes(&with_affinity(3, 1)) {
            let client = backend.address.octets()[3];
            let (upper, lower) = (code >> 16, code & 0xffff);
            nft(&format!(
                "add element ip proxy-daemon affinity {{ 10.96.0.1 . tcp . 80 . 192.0.2.{client} timeout 10800s expires 10000s : {upper:x}:{lower:x} }}"
            ));
        }
        assert_eq!(remembered().len(), 3);
        // Restart, and a change of something else.
        let second = state([with_affinity(3, 10_800), service_port(2, 3, 0xff)]);
        let mut restarted = Nftables::<V4>::open().unwrap();
        assert_eq!(restarted.resync(&first).unwrap(), NOTHING);
        restarted.sync(&second, &changes(&first, &second)).unwrap();
        assert_eq!(remembered().len(), 3);
        // A backend goes.
        let third = state([with_affinity(2, 10_800)]);
        restarted.sync(&third, &changes(&second, &third)).unwrap();
        assert_eq!(remembered().len(), 2);
        // The time changes: of 10,800 s, 800 s were over.
        let fourth = state([with_affinity(2, 1000)]);
        restarted.sync(&fourth, &changes(&third, &fourth)).unwrap();
        let clients = remembered();
        assert_eq!(clients.len(), 2);
        let as_told = |client: &String| {
            client.contains("timeout 1000s expires 19")
                || client.contains("timeout 1000s expires 200s")
        };
        assert!(clients.iter().all(as_told), "{clients:?}");
        let fifth = state([with_affinity(2, 500)]);
        restarted.sync(&fifth, &changes(&fourth, &fifth)).unwrap();
        assert_eq!(remembered(), Vec::<String>::new());
    });
}

#[test]
fn without_privilege_the_error_says_what_to_do() {
    let thread = std::thread::spawn(|| {
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
        // A user namespace that does not own the network namespace has no power over it.
        unshare(CloneFlags::CLONE_NEWUSER).map(|()| Nftables::<V4>::open().map(drop))
    });
    if let Ok(Ok(opened)) = thread.join() {
        let error = opened.expect_err("no privilege").to_string();
        assert!(error.contains("CAP_NET_ADMIN"), "{error}");
    }
}

#[test]
fn kinds_have_codes_of_their_own() {
    use super::kind::{Kind, Masquerade, Pick, Via};
    let mut codes = BTreeSet::new();
    let mut count = 0;
    let mut check = |kind: Kind| {
        assert!(codes.insert(kind.code()), "{kind:?}");
        count += 1;
    };
    for kind in [Kind::Drop, Kind::Reject, Kind::Firewall] {
        check(kind);
    }
    check(Kind::BySource { node_port: false });
    check(Kind::BySource { node_port: true });
    for via in [Via::Itself, Via::Vip, Via::NodePort] {
        for set in [BackendSet::Cluster, BackendSet::Local] {
            for masquerade in [Masquerade::Never, Masquerade::UnlessPod, Masquerade::Always] {
                for n in [
                    1, 2, 3, 10, 255, 256, 861, 862, 5000, 65_535, 65_536, 100_000,
                ] {
                    for affinity in [None, Some(1), Some(2), Some(10_800), Some(86_400)] {
                        let n = std::num::NonZeroU32::new(n).unwrap();
                        check(Kind::Pick(Pick {
                            via,
                            set,
                            n,
                            masquerade,
                            affinity,
                        }));
                    }
                }
            }
        }
    }
    assert_eq!(codes.len(), count);
}

/// Sets that are too large to be read quickly are compared all the same.
#[test]
fn sync_9_large_sets_are_compared_too() {
    in_netns(|| {
        let state = state((1..=700).map(|number| service_port::<V4>(number, 10, 0)));
        let mut datapath = Nftables::<V4>::open().unwrap();
        datapath.resync(&state).unwrap();
        assert_eq!(datapath.resync(&state).unwrap(), NOTHING);
        assert!(!datapath.changed_by_others().unwrap());
        let report = |n_added, n_removed| SyncReport { n_added, n_removed };
        let map = "element ip proxy-daemon cluster-backends";
        nft(&format!("delete {map} {{ 10.96.0.1 . tcp . 80 . 3 }}"));
        assert_eq!(datapath.resync(&state).unwrap(), report(1, 0));
        nft(&format!(
            "add {map} {{ 10.97.0.1 . tcp . 80 . 3 : 10.9.9.9 . 80 }}"
        ));
        assert_eq!(datapath.resync(&state).unwrap(), report(0, 1));
        nft(&format!("delete {map} {{ 10.96.0.1 . tcp . 80 . 3 }}"));
        nft(&format!(
            "add {map} {{ 10.96.0.1 . tcp . 80 . 3 : 10.9.9.9 . 80 }}"
        ));
        assert_eq!(datapath.resync(&state).unwrap(), report(1, 1));
        nft("flush map ip proxy-daemon cluster-backends");
        assert_eq!(datapath.resync(&state).unwrap(), report(7000, 0));
        assert_eq!(datapath.resync(&state).unwrap(), NOTHING);
        assert!(!datapath.changed_by_others().unwrap());
    });
}

/// Nothing in our table is beyond the language of `nft`; 1.0.6 dies of rules that are.
#[test]
fn the_listing_can_be_fed_back_to_nft() {
    in_netns(|| {
        let mut datapath = Nftables::<V4>::open().unwrap();
        datapath.resync(&one_of_each::<V4>()).unwrap();
        let listed = list::<V4>();
        datapath.cleanup().unwrap();
        // nft 1.0.6 prints this of a map, and knows it of sets only.
        let lines = listed.lines().filter(|line| !line.contains("gc-interval"));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        let file = std::env::temp_dir().join(format!("pd-{}-listing.nft", std::process::id()));
        std::fs::write(&file, text).unwrap();
        nft(&format!("-f {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        assert!(list::<V4>().lines().count() + 1 >= listed.lines().count());
    });
}
