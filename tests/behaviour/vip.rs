//! VIP: the ClusterIP.

use std::time::{Duration, Instant};

use proxy_tests::address::{
    Family, HOST, HOST_ALT, NODE, NODE_ALT, P1, P2, Protocol, R, R2, R3, Site, VIP, VIP2, X,
};
use proxy_tests::bed::SECOND_PORT;
use proxy_tests::case;
use proxy_tests::client::Outcome;
use proxy_tests::flow::{flow, kept, masqueraded, seen_as};
use proxy_tests::matrix::{Case, Test};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(vip_1_address_and_port_are_translated_both_ways).kernel(),
        case!(vip_2_choice_is_uniform_per_connection)
            .kernel()
            .protocols(&[Protocol::Tcp, Protocol::Udp]),
        case!(vip_3_choice_is_made_once_per_flow).kernel().tcp(),
        case!(vip_4_pods_host_and_outsiders_are_served),
        case!(vip_5_nobody_answers_arp_for_the_vip)
            .kernel()
            .tcp()
            .fresh(),
        case!(vip_6_host_client_sees_the_vip_as_peer).kernel().tcp(),
        case!(vip_6_host_reaches_an_endpoint_at_its_own_address),
        case!(vip_7_services_with_the_same_endpoints_are_independent),
        case!(vip_8_large_requests_pass_both_ways).protocols(&[Protocol::Tcp, Protocol::Udp]),
        case!(vip_9_ping_is_refused_at_once).kernel().tcp(),
        case!(vip_10_changes_are_in_effect_soon)
            .tcp()
            .flags(&["--iptables-min-sync-period=1s"]),
    ]
}

fn vip_1_address_and_port_are_translated_both_ways(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").port("", SECOND_PORT).ready(P2);
    t.apply();
    let pod = t.sniff(P1, "eth0");
    t.observe([flow(P1, VIP, 80).reaches([kept(P2).on(SECOND_PORT)])]);
    let (vip, own) = (t.ip(VIP), t.ip(P1.addr));
    let packets: Vec<_> = pod
        .packets()
        .into_iter()
        .filter(|p| p.protocol == t.protocol.number())
        .collect();
    assert!(!packets.is_empty());
    for packet in packets {
        let ends = if packet.outgoing {
            (packet.source, packet.destination, packet.destination_port)
        } else {
            (packet.destination, packet.source, packet.source_port)
        };
        assert_eq!(ends, (own, vip, 80));
    }
}

fn vip_2_choice_is_uniform_per_connection(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(R).ready(R2).ready(R3);
    t.apply();
    let counts = t.count(&flow(P1, VIP, 80), 3000);
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(
        counts.values().all(|n| (850..=1150).contains(n)),
        "{counts:?}"
    );
}

fn vip_3_choice_is_made_once_per_flow(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2).ready(R);
    t.apply();
    let mut stream = t.stream(&flow(P1, VIP, 80));
    for round in 0..30 {
        t.service("other")
            .cluster_ip(VIP2)
            .named_port(&format!("p{round}"), 1000 + round);
        t.endpoints("web").clear().ready(R2);
        if round % 2 == 0 {
            t.endpoints("web").ready(P2).ready(R);
        }
        t.apply();
        stream.echo().unwrap();
    }
}

fn vip_4_pods_host_and_outsiders_are_served(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P1).ready(R);
    t.check([
        flow(P2, VIP, 80).reaches([kept(P1), kept(R)]),
        flow(HOST, VIP, 80).reaches([masqueraded(P1), masqueraded(R)]),
        flow(HOST_ALT, VIP, 80).reaches([masqueraded(P1), masqueraded(R)]),
        flow(X, VIP, 80).reaches([masqueraded(P1), masqueraded(R)]),
    ]);
}

fn vip_5_nobody_answers_arp_for_the_vip(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P1);
    t.apply();
    let vip = t.ip(VIP);
    let addresses = t.node_ns().check_run("ip", &["-o", "addr"]).unwrap();
    assert!(!addresses.contains(&vip.to_string()), "{addresses}");
    // From the same link, without a route through N.
    t.ip_tool(
        Site::Upstream,
        &format!("route add {} dev n0", VIP.prefix(t.family)),
    );
    let upstream = proxy_tests::address::OTHER;
    let mut attempt = t.attempt(&flow(upstream, VIP, 80));
    attempt.patience = Duration::from_millis(500);
    let outcome = attempt.run(t.ns(Site::Upstream));
    assert_eq!(outcome, Outcome::Timeout);
    let neighbours = t
        .ns(Site::Upstream)
        .check_run("ip", &["neigh", "show", "dev", "n0"])
        .unwrap();
    let line = neighbours
        .lines()
        .find(|line| line.starts_with(&vip.to_string()));
    let line = line.expect("the kernel asked who has it");
    assert!(!line.contains("lladdr"), "{line}");
}

fn vip_6_host_client_sees_the_vip_as_peer(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(R);
    t.apply();
    let mut stream = t.stream(&flow(HOST, VIP, 80));
    stream.echo().unwrap();
    assert_eq!(stream.peer().unwrap(), (t.ip(VIP), 80).into());
    assert_eq!(stream.local().unwrap().ip(), t.ip(NODE));
}

fn vip_6_host_reaches_an_endpoint_at_its_own_address(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(HOST);
    // Measured: masquerading towards `lo` takes its address in IPv4, and the destination's own in IPv6.
    let own = if t.family == Family::V4 {
        NODE_ALT
    } else {
        NODE
    };
    t.check([flow(HOST, VIP, 80).reaches([seen_as(HOST, own)])]);
}

fn vip_7_services_with_the_same_endpoints_are_independent(t: &mut Test) {
    t.service("one").cluster_ip(VIP).port(80);
    t.endpoints("one").ready(P2).ready(R);
    t.service("two").cluster_ip(VIP2).port(80);
    t.endpoints("two").ready(P2).ready(R);
    let works = |vip| flow(P1, vip, 80).reaches([kept(P2), kept(R)]);
    t.check([works(VIP), works(VIP2)]);
    t.delete_service("one");
    t.delete_endpoints("one");
    t.check([flow(P1, VIP, 80).is_dropped(), works(VIP2)]);
}

fn vip_8_large_requests_pass_both_ways(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P1).ready(R);
    let sizes: &[usize] = if t.protocol == Protocol::Tcp {
        &[1_000_000]
    } else {
        &[2000, 9000, 60_000]
    };
    for size in sizes {
        t.check([
            flow(P2, VIP, 80).bytes(*size).reaches([kept(P1), kept(R)]),
            flow(X, VIP, 80)
                .bytes(*size)
                .reaches([masqueraded(P1), masqueraded(R)]),
            flow(HOST, VIP, 80)
                .bytes(*size)
                .reaches([masqueraded(P1), masqueraded(R)]),
        ]);
    }
}

fn vip_9_ping_is_refused_at_once(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
    t.apply();
    let vip = t.ip(VIP).to_string();
    let started = Instant::now();
    let output = t.ns(Site::P1).run("ping", &["-c", "1", "-W", "3", &vip]);
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    assert!(text.contains("port unreachable"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(2), "{text}");
    let output = t
        .ns(Site::P1)
        .run("ping", &["-c", "1", "-W", "1", &t.ip(R.addr).to_string()]);
    assert!(output.status.success(), "ping works otherwise");
}

fn vip_10_changes_are_in_effect_soon(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    for host in [R, R2] {
        t.endpoints("web").clear().ready(host);
        let started = Instant::now();
        t.check([flow(P1, VIP, 80).reaches([kept(host)])]);
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{:?}",
            started.elapsed()
        );
    }
}
