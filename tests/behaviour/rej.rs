//! REJ: reject, drop, unknown.

use nix::sys::signal::Signal;
use proxy_tests::address::{
    EXTERNAL_IP, Family, HOST, LB_VIP, NODE, NODE_ALT, OTHER_CIDR_VIP, P1, P2, Protocol, R,
    UNALLOCATED, VIP, VIP2, X,
};
use proxy_tests::case;
use proxy_tests::client::Outcome;
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::world::TARGET_PORT;

const PORT: u16 = 30_080;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(rej_1_no_endpoints_means_reject_on_every_frontend),
        case!(rej_1_the_refusal_comes_from_the_node).kernel().tcp(),
        case!(rej_2_nothing_leaks_to_the_gateway).kernel(),
        case!(rej_3_established_flows_are_not_rejected)
            .kernel()
            .tcp(),
        case!(rej_4_dropped_means_silence).kernel(),
        case!(rej_5_unknown_port_of_a_cluster_ip_is_rejected),
        case!(rej_5_a_cluster_ip_without_endpoints_is_alive),
        case!(rej_6_unallocated_service_addresses_are_dropped).kernel(),
        case!(rej_6_a_wide_service_cidr_takes_no_pod_down).fresh(),
        case!(rej_6_addresses_of_endpoints_and_of_the_node_are_not_dropped)
            .kernel()
            .protocols(&[Protocol::Tcp, Protocol::Udp]),
        case!(rej_7_service_cidr_changes_are_followed),
        // Kernel: it limits how often it says that there is no route; TCP asks again.
        case!(rej_7_a_network_between_two_others_goes).tcp(),
        case!(rej_8_a_service_outside_known_cidrs_works_at_once),
        case!(rej_9_xm_16_between_reject_and_forward_nothing_falls_through)
            .kernel()
            .protocols(&[Protocol::Tcp, Protocol::Udp]),
    ]
}

fn rej_1_no_endpoints_means_reject_on_every_frontend(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(PORT)
        .external_ip(EXTERNAL_IP);
    t.service("web").load_balancer(LB_VIP);
    let mut flows = Vec::new();
    for client in [P1, HOST, X] {
        for (to, port) in [(VIP, 80), (NODE, PORT), (EXTERNAL_IP, 80), (LB_VIP, 80)] {
            flows.push(flow(client, to, port).is_rejected());
        }
    }
    t.check(flows.clone());
    // A slice without usable endpoints is no different.
    t.endpoints("web").unready(P2);
    t.check(flows);
}

fn rej_1_the_refusal_comes_from_the_node(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.apply();
    let pod = t.sniff(P1, "eth0");
    t.observe([flow(P1, VIP, 80).is_rejected().times(1)]);
    let icmp = if t.family == Family::V4 { 1 } else { 58 };
    let answers: Vec<_> = pod
        .packets()
        .into_iter()
        .filter(|p| !p.outgoing && p.protocol == icmp)
        .collect();
    let from = t.ip(proxy_tests::address::POD_GATEWAY);
    assert!(answers.iter().any(|p| p.source == from), "{answers:?}");
}

fn rej_2_nothing_leaks_to_the_gateway(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .external_ip(EXTERNAL_IP)
        .load_balancer(LB_VIP);
    t.apply();
    let uplink = t.sniff(HOST, "up0");
    let mut flows = Vec::new();
    for client in [HOST, P1] {
        for to in [VIP, EXTERNAL_IP, LB_VIP] {
            flows.push(flow(client, to, 80).is_rejected());
        }
    }
    flows.push(flow(P1, R.addr, TARGET_PORT).reaches([kept(R)]));
    t.observe(flows);
    let vips = [VIP, EXTERNAL_IP, LB_VIP].map(|address| t.ip(address));
    assert_eq!(uplink.towards(&vips, t.ip(R.addr)), []);
}

fn rej_3_established_flows_are_not_rejected(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(PORT)
        .load_balancer(LB_VIP);
    t.endpoints("web").ready(P2);
    t.apply();
    let mut streams = [
        t.stream(&flow(P1, VIP, 80)),
        t.stream(&flow(HOST, VIP, 80)),
        t.stream(&flow(X, NODE, PORT)),
        t.stream(&flow(X, LB_VIP, 80)),
    ];
    t.endpoints("web").clear();
    t.check([
        flow(P1, VIP, 80).is_rejected(),
        flow(X, NODE, PORT).is_rejected(),
    ]);
    for stream in &mut streams {
        stream.echo().unwrap();
    }
}

fn rej_4_dropped_means_silence(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(PORT)
        .external_local()
        .internal_local();
    t.endpoints("web").ready(R);
    t.apply();
    let (vip, node, unallocated) = (t.ip(VIP), t.ip(NODE), t.ip(UNALLOCATED));
    let (pod, client) = (t.sniff(P1, "eth0"), t.sniff(X, "eth0"));
    t.observe([
        flow(P1, VIP, 80).is_dropped(),
        flow(P1, UNALLOCATED, 80).is_dropped(),
        flow(X, NODE, PORT).is_dropped(),
    ]);
    let icmp = if t.family == Family::V4 { 1 } else { 58 };
    for packet in pod.packets().into_iter().chain(client.packets()) {
        let of_a_vip = [vip, node, unallocated].contains(&packet.source);
        // Kernel: type 135 and 136 are neighbour discovery.
        let neighbours = icmp == 58 && packet.payload.first().is_some_and(|t| *t >= 133);
        let error = packet.protocol == icmp && !neighbours;
        assert!(packet.outgoing || !(of_a_vip || error), "{packet:?}");
    }
}

fn rej_5_unknown_port_of_a_cluster_ip_is_rejected(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
    let other = if t.protocol == Protocol::Tcp {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    let mut flows = Vec::new();
    for client in [P1, HOST, X] {
        flows.push(flow(client, VIP, 81).is_rejected());
        flows.push(flow(client, VIP, 80).over(other).is_rejected());
    }
    t.check(flows);
}

fn rej_5_a_cluster_ip_without_endpoints_is_alive(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.check([
        flow(P1, VIP, 81).is_rejected(),
        flow(HOST, VIP, 81).is_rejected(),
    ]);
}

fn rej_6_unallocated_service_addresses_are_dropped(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
    t.apply();
    let uplink = t.sniff(HOST, "up0");
    t.observe([P1, HOST].map(|client| flow(client, UNALLOCATED, 80).is_dropped()));
    // The controls of silence go this way.
    assert_eq!(uplink.towards(&[t.ip(UNALLOCATED)], t.ip(R.addr)), []);
    t.observe([flow(X, UNALLOCATED, 80).is_dropped()]);
}

/// The network of the family.
fn either<'a>(t: &Test, v4: &'a str, v6: &'a str) -> &'a str {
    if t.family == Family::V4 { v4 } else { v6 }
}

fn rej_6_a_wide_service_cidr_takes_no_pod_down(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
    t.apply();
    let wide = either(t, "10.0.0.0/8", "fd00::/16");
    t.service_cidr("wide", &[wide]);
    t.check([
        flow(P1, P2.addr, TARGET_PORT).reaches([kept(P2)]),
        flow(P1, R.addr, TARGET_PORT).reaches([kept(R)]),
        flow(R, P1.addr, TARGET_PORT).reaches([kept(P1)]),
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(P1, UNALLOCATED, 80).is_dropped(),
        flow(P1, OTHER_CIDR_VIP, 80).is_dropped(),
    ]);
    // The network that the node is on.
    let uplink = either(t, "192.0.0.0/8", "2001:db8::/32");
    t.service_cidr("uplink", &[uplink]);
    t.check([
        flow(X, NODE, TARGET_PORT).reaches([kept(HOST)]),
        flow(P1, R.addr, TARGET_PORT).reaches([kept(R)]),
    ]);
    for network in [wide, uplink] {
        let log = t.bed().daemon.log();
        let named = format!("ServiceCIDR {network}");
        let lines = log
            .lines()
            .filter(|line| line.contains(&named) && line.contains("WARN"));
        assert_eq!(lines.count(), 1, "{log}");
    }
}

fn rej_6_addresses_of_endpoints_and_of_the_node_are_not_dropped(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    let clients = either(t, "203.0.113.0/24", "2001:db8:203::/64");
    t.service_cidr("wrong", &[clients]);
    let reached = || [flow(P1, X.addr, TARGET_PORT).reaches([kept(X)])];
    let dropped = || [flow(P1, X.addr, TARGET_PORT).is_dropped()];
    t.check(dropped());
    t.endpoints("web").ready(X);
    t.check(reached());
    t.endpoints("web").clear().unready(X);
    t.check(reached());
    t.endpoints("web").clear();
    t.check(dropped());
    t.delete_service_cidr("wrong");
    let own = either(t, "198.51.100.0/24", "2001:db8:5100::/64");
    t.service_cidr("own", &[own]);
    t.check([flow(HOST, NODE_ALT, 9).finds_nobody()]);
}

fn rej_7_a_network_between_two_others_goes(t: &mut Test) {
    let networks = if t.family == Family::V4 {
        ["10.96.8.0/24", "10.96.9.0/24", "10.96.10.0/24"]
    } else {
        ["fd00:96::800/120", "fd00:96::900/120", "fd00:96::a00/120"]
    };
    t.delete_service_cidr("kubernetes");
    for (name, network) in ["a", "b", "c"].into_iter().zip(networks) {
        t.service_cidr(name, &[network]);
    }
    t.check([flow(P1, UNALLOCATED, 80).is_dropped()]);
    t.delete_service_cidr("b");
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
    t.check([
        flow(P1, UNALLOCATED, 80).is_unroutable().times(1),
        flow(P1, VIP, 80).reaches([kept(P2)]),
    ]);
    t.restart(Signal::SIGKILL, &[]);
    t.check([flow(P1, UNALLOCATED, 80).is_unroutable().times(1)]);
}

fn rej_7_service_cidr_changes_are_followed(t: &mut Test) {
    let cidr = if t.family == Family::V4 {
        "10.97.0.0/16"
    } else {
        "fd00:97::/112"
    };
    let routed = || flow(P1, OTHER_CIDR_VIP, 80).is_unroutable();
    let dropped = || [P1, HOST].map(|client| flow(client, OTHER_CIDR_VIP, 80).is_dropped());
    t.check([routed()]);
    t.service_cidr("second", &[cidr]);
    t.check(dropped());
    t.service_cidr("third", &[cidr]);
    t.apply();
    t.delete_service_cidr("second");
    t.check(dropped());
    t.delete_service_cidr("third");
    t.check([routed()]);
}

fn rej_8_a_service_outside_known_cidrs_works_at_once(t: &mut Test) {
    t.service("web")
        .cluster_ip(OTHER_CIDR_VIP)
        .port(80)
        .node_port(PORT);
    t.endpoints("web").ready(P2);
    let works = || {
        [
            flow(P1, OTHER_CIDR_VIP, 80).reaches([kept(P2)]),
            flow(X, NODE, PORT).reaches([masqueraded(P2)]),
        ]
    };
    t.check(works());
    let cidr = if t.family == Family::V4 {
        "10.97.0.0/16"
    } else {
        "fd00:97::/112"
    };
    t.service_cidr("second", &[cidr]);
    t.check(works());
}

fn rej_9_xm_16_between_reject_and_forward_nothing_falls_through(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.service("other").cluster_ip(VIP2).port(80);
    t.endpoints("other").ready(R);
    t.apply();
    let uplink = t.sniff(HOST, "up0");
    let hammers = [P1, HOST].map(|client| t.hammer(&flow(client, VIP, 80)));
    let n_removals = 15;
    for _ in 0..n_removals {
        t.endpoints("web").ready(P2);
        t.apply();
        t.endpoints("web").clear();
        t.apply();
    }
    for hammer in hammers {
        let mut outcomes = hammer.stop();
        // With its last endpoint a UDP flow goes (CT-3), also one whose answer is on its way.
        if t.protocol == Protocol::Udp {
            let n_unanswered = outcomes.remove(&Outcome::Timeout).unwrap_or(0);
            assert!(n_unanswered <= n_removals, "{n_unanswered}, {outcomes:?}");
        }
        let fine = |outcome: &Outcome| matches!(outcome, Outcome::Reached(_) | Outcome::Refused);
        assert!(outcomes.keys().all(fine), "{outcomes:?}");
        assert!(outcomes.len() > 1, "both were seen: {outcomes:?}");
    }
    t.observe([flow(P1, VIP2, 80).reaches([kept(R)])]);
    let leaked = uplink.towards(&[t.ip(VIP)], t.ip(R.addr));
    assert_eq!(leaked, [], "the VIP left the node");
}
