//! AFF: session affinity by client address.

use std::time::Duration;

use nix::sys::signal::Signal;
use proxy_tests::address::{
    Addr, EXTERNAL_IP, HOST, HOST_ALT, Host, LB_VIP, NODE, P1, P2, R, R2, R3, Site, VIP, X, X2,
};
use proxy_tests::case;
use proxy_tests::flow::{Flow, flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::wait::within;
use serde_json::json;

const PORT: u16 = 30_080;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(aff_1_a_client_stays).kernel(),
        case!(aff_2_memory_ends_after_the_timeout_since_the_last_connection)
            .slow()
            .kernel()
            .tcp()
            .fresh(),
        case!(aff_3_all_frontends_of_a_port_share_the_memory).kernel(),
        case!(aff_3_ports_do_not_share_the_memory).kernel().tcp(),
        case!(aff_4_clients_stick_separately_behind_masquerading)
            .kernel()
            .tcp(),
        case!(aff_5_memory_counts_only_within_the_set_in_force),
        case!(aff_6_a_removed_endpoint_is_forgotten).kernel().tcp(),
        case!(aff_7_switching_applies_to_the_next_connections),
        case!(aff_8_a_shorter_timeout_applies_to_remembered_clients)
            .kernel()
            .tcp()
            .fresh(),
        case!(aff_9_memory_survives_restarts_and_other_syncs)
            .kernel()
            .tcp()
            .fresh(),
        case!(aff_10_thousands_of_clients_are_remembered)
            .kernel()
            .udp()
            .v4()
            .fresh(),
        case!(aff_11_hairpin_and_host_sources_stick).kernel(),
        case!(aff_12_svc_11_without_a_config_the_timeout_is_the_default)
            .kernel()
            .fresh(),
    ]
}

/// Enough ServicePorts that choices made at random differ somewhere.
const MANY: u16 = 8;

fn web(t: &mut Test, seconds: u32) {
    t.service("web").cluster_ip(VIP).port(80).affinity(seconds);
    t.endpoints("web").ready(R).ready(R2).ready(R3);
}

/// A Service with many ports, all of the same endpoints.
fn many(t: &mut Test, seconds: u32, hosts: &[Host]) {
    t.service("web")
        .cluster_ip(VIP)
        .no_ports()
        .affinity(seconds);
    t.endpoints("web").no_ports().clear();
    for n in 0..MANY {
        let name = format!("p{n}");
        t.service("web")
            .named_port(&name, 80 + n)
            .node_port(PORT + n);
        t.endpoints("web")
            .port(&name, proxy_tests::world::TARGET_PORT);
    }
    for host in hosts {
        t.endpoints("web").ready(*host);
    }
}

/// Whom a client meets on each of the many ports.
fn meets(t: &Test, client: Host, to: Addr, first: u16) -> Vec<String> {
    (0..MANY)
        .map(|n| t.only(&flow(client, to, first + n), 1))
        .collect()
}

fn aff_1_a_client_stays(t: &mut Test) {
    web(t, 100);
    t.apply();
    for client in [P1, X] {
        t.only(&flow(client, VIP, 80), 15);
        let together = t.count(&flow(client, VIP, 80), 15);
        assert_eq!(together.len(), 1, "{together:?}");
    }
}

fn aff_2_memory_ends_after_the_timeout_since_the_last_connection(t: &mut Test) {
    many(t, 5, &[R, R2, R3]);
    t.apply();
    let clients = [P1, P2, X, HOST];
    let before: Vec<_> = clients
        .iter()
        .map(|client| meets(t, *client, VIP, 80))
        .collect();
    for _ in 0..3 {
        // Shorter than the timeout: the clock starts anew each time.
        await_remaining(t, |seconds| seconds <= 3);
        let again: Vec<_> = clients
            .iter()
            .map(|client| meets(t, *client, VIP, 80))
            .collect();
        assert_eq!(before, again);
    }
    await_remaining(t, |_| false);
    let after: Vec<_> = clients
        .iter()
        .map(|client| meets(t, *client, VIP, 80))
        .collect();
    assert_ne!(before, after, "no client moved after the timeout");
}

fn aff_3_all_frontends_of_a_port_share_the_memory(t: &mut Test) {
    web(t, 100);
    t.service("web")
        .no_ports()
        .port(80)
        .node_port(PORT)
        .external_ip(EXTERNAL_IP);
    t.service("web").load_balancer(LB_VIP);
    t.apply();
    for client in [P1, X, HOST] {
        let first = t.only(&flow(client, NODE, PORT), 2);
        for to in [VIP, EXTERNAL_IP, LB_VIP] {
            assert_eq!(
                t.only(&flow(client, to, 80), 4),
                first,
                "{} to {to:?}",
                client.name()
            );
        }
    }
}

fn aff_3_ports_do_not_share_the_memory(t: &mut Test) {
    many(t, 100, &[R, R2, R3]);
    t.apply();
    let met = meets(t, P1, VIP, 80);
    assert!(met.iter().any(|backend| *backend != met[0]), "{met:?}");
    assert_eq!(meets(t, P1, VIP, 80), met);
}

fn aff_4_clients_stick_separately_behind_masquerading(t: &mut Test) {
    many(t, 100, &[R, R2, R3]);
    t.apply();
    let one = meets(t, X, NODE, PORT);
    let two = meets(t, X2, NODE, PORT);
    assert_ne!(one, two, "they share their memory");
    assert_eq!(meets(t, X, NODE, PORT), one);
    assert_eq!(meets(t, X2, NODE, PORT), two);
}

fn aff_5_memory_counts_only_within_the_set_in_force(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP)
        .external_local()
        .affinity(100);
    t.endpoints("web").ready(R);
    t.check([flow(X, VIP, 80).reaches([masqueraded(R)])]);
    t.endpoints("web").ready(P1).ready(R2);
    t.apply();
    t.observe([flow(X, VIP, 80).reaches([masqueraded(R)])]);
    t.observe([flow(X, LB_VIP, 80).reaches([kept(P1)])]);
    // Ours: the most recent one that is in the set.
    t.observe([flow(X, VIP, 80).reaches([masqueraded(P1)])]);
}

fn aff_6_a_removed_endpoint_is_forgotten(t: &mut Test) {
    many(t, 100, &[R]);
    t.apply();
    let clients = [P1, P2, X, HOST];
    for client in clients {
        assert!(
            meets(t, client, VIP, 80)
                .iter()
                .all(|backend| backend == "R")
        );
    }
    many(t, 100, &[R2]);
    t.check([flow(P1, VIP, 80).reaches([kept(R2)])]);
    many(t, 100, &[R, R2]);
    t.apply();
    // P1's first port remembers R2; all others forgot R and choose at random.
    t.observe([flow(P1, VIP, 80).reaches([kept(R2)])]);
    let met: Vec<_> = clients
        .iter()
        .flat_map(|client| meets(t, *client, VIP, 80))
        .collect();
    let still = met.iter().filter(|backend| *backend == "R").count();
    assert!(
        still < met.len() - 4,
        "{still} of {} still go to R",
        met.len()
    );
}

fn aff_7_switching_applies_to_the_next_connections(t: &mut Test) {
    let any = || flow(P1, VIP, 80).reaches([kept(R), kept(R2), kept(R3)]);
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(R).ready(R2).ready(R3);
    t.check([any()]);
    t.service("web").affinity(100);
    t.apply();
    t.only(&flow(P1, VIP, 80), 10);
    t.service("web").set("sessionAffinity", json!("None"));
    t.service("web").set("sessionAffinityConfig", json!(null));
    t.check([any()]);
    t.service("web").affinity(100);
    t.apply();
    t.only(&flow(P1, VIP, 80), 10);
}

fn aff_8_a_shorter_timeout_applies_to_remembered_clients(t: &mut Test) {
    many(t, 10_800, &[R, R2, R3]);
    t.apply();
    let clients = [P1, P2, X, HOST];
    let before: Vec<_> = clients
        .iter()
        .map(|client| meets(t, *client, VIP, 80))
        .collect();
    many(t, 1, &[R, R2, R3]);
    t.apply();
    await_remaining(t, |_| false);
    let after: Vec<_> = clients
        .iter()
        .map(|client| meets(t, *client, VIP, 80))
        .collect();
    assert_ne!(before, after, "no client moved after the new timeout");
}

fn aff_9_memory_survives_restarts_and_other_syncs(t: &mut Test) {
    many(t, 100, &[R, R2, R3]);
    t.apply();
    let met = meets(t, P1, VIP, 80);
    t.service("other")
        .cluster_ip(proxy_tests::address::VIP2)
        .port(80);
    t.endpoints("other").ready(P2);
    t.apply();
    assert_eq!(meets(t, P1, VIP, 80), met);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        t.restart(signal, &[]);
        assert_eq!(meets(t, P1, VIP, 80), met);
    }
}

fn aff_10_thousands_of_clients_are_remembered(t: &mut Test) {
    web(t, 1000);
    t.apply();
    t.ip_tool(Site::X, "route add local 10.99.0.0/16 dev lo");
    t.ip_tool(
        Site::Upstream,
        "route add 10.99.0.0/16 via 203.0.113.7 dev x0 onlink",
    );
    let round = |t: &Test| -> Vec<String> {
        let asked = flow(X, VIP, 80);
        let mut met = Vec::new();
        for n in 0..5000_u32 {
            let mut attempt = t.attempt(&asked);
            let source = std::net::Ipv4Addr::from(0x0a63_0000 + 256 + n);
            attempt.source = Some((source, 0).into());
            match attempt.run(t.ns(Site::X)) {
                proxy_tests::client::Outcome::Reached(to) => met.push(to.backend),
                other => panic!("{source}: {other}{}", t.state()),
            }
        }
        met
    };
    assert_eq!(round(t), round(t));
}

fn aff_11_hairpin_and_host_sources_stick(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80).affinity(100);
    t.endpoints("web").ready(P1).ready(R).ready(R2);
    t.apply();
    for client in [P1, HOST, HOST_ALT] {
        t.only(&flow(client, VIP, 80), 12);
    }
    t.service("web").affinity(200);
    t.endpoints("web").clear().ready(P1);
    let itself: Flow = flow(P1, VIP, 80).reaches([masqueraded(P1)]);
    t.check([itself.clone()]);
    t.endpoints("web").ready(R).ready(R2);
    t.apply();
    t.observe([itself]);
}

fn aff_12_svc_11_without_a_config_the_timeout_is_the_default(t: &mut Test) {
    web(t, 1);
    t.service("web").set("sessionAffinityConfig", json!(null));
    t.apply();
    let first = t.only(&flow(P1, VIP, 80), 5);
    // Of three hours, only the time of this test has passed.
    let left = remaining(t);
    let fresh = |seconds: &u64| (10_800 - 60..=10_800).contains(seconds);
    assert!(!left.is_empty() && left.iter().all(fresh), "{left:?}");
    assert_eq!(t.only(&flow(P1, VIP, 80), 5), first);
}

/// Waits until this holds for each client that the kernel still remembers.
#[track_caller]
fn await_remaining(t: &Test, holds: impl Fn(u64) -> bool) {
    let all_do = || remaining(t).into_iter().all(&holds);
    assert!(
        within(Duration::from_secs(15), all_do),
        "{:?}",
        remaining(t)
    );
}

/// For how long the kernel still remembers each client of any Service on this bed. Unit: seconds, rounded down.
fn remaining(t: &Test) -> Vec<u64> {
    t.datapath().seconds_left(t.family, t.node_ns())
}
