//! SRC: whom the server sees.

use nix::sys::signal::Signal;
use proxy_tests::address::{
    EXTERNAL_IP, Family, HOST, HOST_ALT, LB_VIP, NODE, NODE_ALT, P1, P2, R, R2, VIP, X,
};
use proxy_tests::bed::SECOND_PORT;
use proxy_tests::case;
use proxy_tests::flow::{flow, kept, masqueraded, seen_as};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::world::{Endpoint, TARGET_PORT};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(src_1_masquerading_uses_the_address_towards_the_endpoint),
        case!(src_2_pod_to_cluster_ip_keeps_its_address),
        case!(src_3_host_and_outsiders_to_cluster_ip_are_masqueraded),
        case!(src_4_masquerade_all_takes_every_cluster_ip_flow).flags(&["--masquerade-all"]),
        case!(src_5_without_detector_nobody_is_masqueraded_to_cluster_ip)
            .flags(&["--cluster-cidr="]),
        case!(src_6_external_frontends_masquerade_everybody),
        case!(src_7_external_local_keeps_pods_and_outsiders),
        case!(src_8_internal_policy_does_not_change_masquerading),
        case!(src_9_hairpin_is_masqueraded),
        case!(src_9_only_the_self_hit_is_masqueraded).routed_and_bridged(),
        case!(src_9_endpoint_without_node_hairpins),
        case!(src_10_foreign_mark_bits_survive_and_ours_is_cleared)
            .kernel()
            .tcp(),
        case!(src_10_a_packet_marked_by_others_is_masqueraded)
            .kernel()
            .tcp()
            .fresh(),
        case!(src_11_other_traffic_is_never_masqueraded),
        case!(src_12_masquerading_is_decided_once_per_flow)
            .kernel()
            .tcp()
            .fresh(),
    ]
}

fn src_1_masquerading_uses_the_address_towards_the_endpoint(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80).node_port(30_080);
    t.endpoints("web").ready(P2).ready(R);
    t.check([flow(X, NODE, 30_080).reaches([masqueraded(P2), masqueraded(R)])]);
}

fn src_2_pod_to_cluster_ip_keeps_its_address(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2).ready(R);
    t.check([flow(P1, VIP, 80).reaches([kept(P2), kept(R)])]);
}

fn src_3_host_and_outsiders_to_cluster_ip_are_masqueraded(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2).ready(R);
    t.check([
        flow(HOST_ALT, VIP, 80).reaches([masqueraded(P2), masqueraded(R)]),
        flow(X, VIP, 80).reaches([masqueraded(P2), masqueraded(R)]),
    ]);
}

fn src_4_masquerade_all_takes_every_cluster_ip_flow(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(30_080)
        .external_local();
    t.endpoints("web").ready(P2).ready(R);
    t.check([
        flow(P1, VIP, 80).reaches([masqueraded(P2), masqueraded(R)]),
        flow(X, VIP, 80).reaches([masqueraded(P2), masqueraded(R)]),
        flow(HOST_ALT, VIP, 80).reaches([masqueraded(P2), masqueraded(R)]),
        flow(X, NODE, 30_080).reaches([kept(P2)]),
        flow(P1, NODE, 30_080).reaches([kept(P2), kept(R)]),
    ]);
}

fn src_5_without_detector_nobody_is_masqueraded_to_cluster_ip(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2).ready(R);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2), kept(R)]),
        flow(X, VIP, 80).reaches([kept(P2), kept(R)]),
        flow(HOST_ALT, VIP, 80).reaches([kept(P2), kept(R)]),
    ]);
}

fn src_6_external_frontends_masquerade_everybody(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(30_080)
        .external_ip(EXTERNAL_IP);
    t.service("web").load_balancer(LB_VIP);
    t.endpoints("web").ready(P2).ready(R);
    let mut flows = Vec::new();
    for client in [P1, HOST_ALT, X] {
        for (to, port) in [(NODE, 30_080), (EXTERNAL_IP, 80), (LB_VIP, 80)] {
            flows.push(flow(client, to, port).reaches([masqueraded(P2), masqueraded(R)]));
        }
    }
    t.check(flows);
}

fn src_7_external_local_keeps_pods_and_outsiders(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(30_080)
        .external_ip(EXTERNAL_IP);
    t.service("web").load_balancer(LB_VIP).external_local();
    t.endpoints("web").ready(P2).ready(R);
    let mut flows = Vec::new();
    for (to, port) in [(NODE, 30_080), (EXTERNAL_IP, 80), (LB_VIP, 80)] {
        flows.push(flow(X, to, port).reaches([kept(P2)]));
        flows.push(flow(P1, to, port).reaches([kept(P2), kept(R)]));
        flows.push(flow(HOST_ALT, to, port).reaches([masqueraded(P2), masqueraded(R)]));
    }
    t.check(flows);
}

fn src_8_internal_policy_does_not_change_masquerading(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80).internal_local();
    t.endpoints("web").ready(P2).ready(R);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(HOST_ALT, VIP, 80).reaches([masqueraded(P2)]),
        flow(X, VIP, 80).reaches([masqueraded(P2)]),
    ]);
}

fn src_9_hairpin_is_masqueraded(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(30_080)
        .external_ip(EXTERNAL_IP);
    t.service("web").load_balancer(LB_VIP).external_local();
    t.endpoints("web").ready(P1);
    let mut flows = Vec::new();
    for (to, port) in [(VIP, 80), (NODE, 30_080), (EXTERNAL_IP, 80), (LB_VIP, 80)] {
        flows.push(flow(P1, to, port).reaches([masqueraded(P1)]));
    }
    t.check(flows);
}

fn src_9_only_the_self_hit_is_masqueraded(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P1).ready(P2).ready(R);
    t.check([
        flow(P1, VIP, 80).reaches([masqueraded(P1), kept(P2), kept(R)]),
        flow(P2, VIP, 80).reaches([kept(P1), masqueraded(P2), kept(R)]),
    ]);
}

fn src_9_endpoint_without_node_hairpins(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web")
        .endpoint(Endpoint::new(P1).without_node());
    t.check([
        flow(P1, VIP, 80).reaches([masqueraded(P1)]),
        flow(P2, VIP, 80).reaches([kept(P1)]),
    ]);
}

/// A foreign table that marks what arrives, and counts what leaves with which bits.
fn foreign_marks(t: &Test, rule: &str) -> String {
    let family = if t.family == Family::V4 { "ip" } else { "ip6" };
    let pod = t.ip(P1.addr);
    let table = format!("{family} foreign");
    t.nft(&format!(
        "table {table} {{
           counter kept {{ }}
           counter leaked {{ }}
           chain arrives {{ type filter hook prerouting priority mangle;
             {family} saddr {pod} {rule}
           }}
           chain leaves {{ type filter hook postrouting priority 300;
             {family} saddr != {pod} meta mark & 0x1 == 0x1 counter name kept
             meta mark & 0x4000 == 0x4000 counter name leaked
           }}
         }}"
    ));
    table
}

fn counter(t: &Test, table: &str, name: &str) -> u64 {
    let mut words = vec!["list", "counter"];
    words.extend(table.split(' '));
    words.push(name);
    let text = t.node_ns().check_run("nft", &words).unwrap();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    words
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a counter shows its packets")
}

fn src_10_foreign_mark_bits_survive_and_ours_is_cleared(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80).node_port(30_080);
    t.endpoints("web").ready(P2).ready(R);
    t.apply();
    let table = foreign_marks(t, "meta mark set meta mark or 0x1");
    t.observe([flow(P1, NODE, 30_080).reaches([masqueraded(P2), masqueraded(R)])]);
    let (kept, leaked) = (counter(t, &table, "kept"), counter(t, &table, "leaked"));
    t.nft(&format!("delete table {table}"));
    assert!(kept > 0, "the foreign bit is gone");
    assert_eq!(leaked, 0, "our bit is still there");
}

fn src_10_a_packet_marked_by_others_is_masqueraded(t: &mut Test) {
    t.apply();
    foreign_marks(
        t,
        &format!("tcp dport {SECOND_PORT} meta mark set meta mark or 0x4000"),
    );
    t.observe([
        flow(P1, R.addr, SECOND_PORT).reaches([masqueraded(R)]),
        flow(P1, R.addr, TARGET_PORT).reaches([kept(R)]),
    ]);
}

fn src_11_other_traffic_is_never_masqueraded(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(30_080)
        .external_ip(EXTERNAL_IP);
    t.endpoints("web").ready(P2).ready(R);
    t.check([
        flow(P1, R.addr, TARGET_PORT).reaches([kept(R)]),
        flow(P1, P2.addr, TARGET_PORT).reaches([kept(P2)]),
        flow(P1, R2.addr, TARGET_PORT).reaches([kept(R2)]),
        flow(P1, X.addr, TARGET_PORT).reaches([kept(X)]),
        flow(X, P1.addr, TARGET_PORT).reaches([kept(P1)]),
        flow(R, P1.addr, TARGET_PORT).reaches([kept(P1)]),
        flow(HOST_ALT, R.addr, TARGET_PORT).reaches([seen_as(R, NODE_ALT)]),
        flow(X, NODE, TARGET_PORT).reaches([kept(HOST)]),
    ]);
}

fn src_12_masquerading_is_decided_once_per_flow(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(R);
    t.apply();
    let mut stream = t.stream(&flow(P1, VIP, 80));
    assert_eq!(stream.greeting.source, t.ip(P1.addr));
    t.restart(Signal::SIGTERM, &["--masquerade-all"]);
    stream.echo().unwrap();
    t.observe([flow(P1, VIP, 80).reaches([masqueraded(R)])]);
}
