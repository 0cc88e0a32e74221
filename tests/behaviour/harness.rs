//! Does the harness tell outcomes apart? Without the daemon: direct flows, and rules written by hand.

use proxy_tests::address::{
    EXTERNAL_IP, HOST, NODE, NODE_ALT, OUT, P1, P2, POD_GATEWAY, Protocol, R, UNALLOCATED, VIP, X,
};
use proxy_tests::bed::SECOND_PORT;
use proxy_tests::case;
use proxy_tests::flow::{flow, kept, masqueraded, seen_as};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::world::TARGET_PORT;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(harness_direct_flows_reach_and_keep_their_source).once(),
        case!(harness_closed_ports_and_missing_routes_are_told_apart).once(),
        case!(harness_rules_by_hand_show_every_outcome).once(),
        case!(harness_sees_what_leaves).once(),
        case!(harness_wrong_expectations_fail).once(),
    ]
}

fn harness_direct_flows_reach_and_keep_their_source(t: &mut Test) {
    let mut flows = Vec::new();
    for client in [P1, P2, R, X] {
        for server in [P1, P2, R, X] {
            if client.site != server.site {
                flows.push(flow(client, server.addr, TARGET_PORT).reaches([kept(server)]));
            }
        }
    }
    flows.push(flow(P1, EXTERNAL_IP, 80).reaches([kept(OUT)]));
    flows.push(flow(X, EXTERNAL_IP, 80).reaches([kept(OUT)]));
    flows.push(flow(X, NODE, TARGET_PORT).reaches([kept(HOST)]));
    flows
        .push(flow(HOST, P1.addr, SECOND_PORT).reaches([seen_as(P1, POD_GATEWAY).on(SECOND_PORT)]));
    if t.protocol != Protocol::Sctp {
        flows.push(
            flow(P1, R.addr, TARGET_PORT)
                .bytes(9000)
                .reaches([kept(R)])
                .times(2),
        );
    }
    t.observe(flows);
}

fn harness_closed_ports_and_missing_routes_are_told_apart(t: &mut Test) {
    // Kernel: after five ICMP errors it sends one a second.
    for _ in 0..4 {
        t.observe([flow(P1, UNALLOCATED, 80).is_unroutable()]);
    }
    if t.protocol != Protocol::Sctp {
        t.observe([
            flow(P1, R.addr, 9).finds_nobody(),
            flow(P1, NODE_ALT, 9).finds_nobody(),
        ]);
    }
}

/// A table written by hand that does what the daemon does.
fn rules_by_hand(t: &Test) {
    let (table, l4) = match t.family {
        proxy_tests::address::Family::V4 => ("ip", "icmp"),
        proxy_tests::address::Family::V6 => ("ip6", "icmpv6"),
    };
    let proto = t.protocol.label();
    let (vip, p1, r) = (t.ip(VIP), t.ip(P1.addr), t.ip(R.addr));
    let map = format!("numgen random mod 2 map {{ 0 : {p1} . 8080, 1 : {r} . 8080 }}");
    let script = format!(
        "table {table} by-hand {{
           chain nat {{ type nat hook prerouting priority dstnat;
             {table} daddr {vip} {proto} dport 80 dnat to {map}
             {table} daddr {vip} {proto} dport 82 meta mark set 1 dnat to {map}
           }}
           chain out {{ type nat hook output priority -100;
             {table} daddr {vip} {proto} dport 80 dnat to {map}
           }}
           chain post {{ type nat hook postrouting priority srcnat;
             meta mark 1 masquerade fully-random
           }}
           chain refuse {{ {table} daddr {vip} {proto} dport 81 reject with {l4} port-unreachable
             {table} daddr {vip} {proto} dport 83 drop; }}
           chain filter {{ type filter hook forward priority filter; jump refuse; }}
           chain filterout {{ type filter hook output priority filter; jump refuse; }}
         }}"
    );
    t.node_ns().feed("nft", &["-f", "-"], &script).unwrap();
}

fn harness_rules_by_hand_show_every_outcome(t: &mut Test) {
    rules_by_hand(t);
    t.observe([
        flow(P2, VIP, 80).reaches([kept(P1), kept(R)]),
        flow(X, VIP, 80).reaches([kept(P1), kept(R)]),
        flow(P2, VIP, 82).reaches([masqueraded(P1), masqueraded(R)]),
        flow(HOST, VIP, 80).reaches([kept(P1), kept(R)]),
        flow(P2, VIP, 81).is_rejected(),
        flow(HOST, VIP, 81).is_rejected(),
        flow(X, VIP, 81).is_rejected(),
        flow(P2, VIP, 83).is_dropped(),
        flow(HOST, VIP, 83).is_dropped(),
        flow(X, VIP, 83).is_dropped(),
    ]);
}

fn harness_sees_what_leaves(t: &mut Test) {
    let uplink = t.sniff(HOST, "up0");
    t.observe([flow(P1, R.addr, TARGET_PORT).reaches([kept(R)]).times(1)]);
    let packets = uplink.packets();
    assert!(
        packets
            .iter()
            .any(|p| p.outgoing && p.destination == t.ip(R.addr)),
        "{packets:?}"
    );
    assert!(
        packets
            .iter()
            .any(|p| !p.outgoing && p.source == t.ip(R.addr)),
        "{packets:?}"
    );
    let protocol = t.protocol.number();
    assert!(
        packets
            .iter()
            .any(|p| p.protocol == protocol && p.destination_port == TARGET_PORT)
    );
}

fn harness_wrong_expectations_fail(t: &mut Test) {
    rules_by_hand(t);
    for wrong in [
        flow(P2, VIP, 80).reaches([kept(P1)]),
        flow(P2, VIP, 80).reaches([kept(P1), kept(R), kept(X)]),
        flow(P2, VIP, 80).reaches([kept(P1), masqueraded(R)]),
        flow(P2, VIP, 80).is_rejected(),
        flow(P2, VIP, 80).is_dropped(),
        flow(P2, VIP, 81).is_dropped(),
        flow(P2, VIP, 83).is_rejected().times(1),
        flow(P2, UNALLOCATED, 80).is_dropped(),
    ] {
        let text = format!("{wrong:?}");
        assert!(t.setting().try_all(&[wrong]).is_err(), "{text} passed");
    }
}
