//! EXT, LB, FW: external addresses, load balancers' addresses, and their source ranges.

use proxy_tests::address::{
    Addr, EXTERNAL_IP, EXTERNAL_IP2, Family, HOST, HOST_ALT, Host, LB_VIP, LB_VIP2, NODE, OUT, P1,
    P2, R, Site, VIP, X, X2,
};
use proxy_tests::case;
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(ext_1_external_ip_is_captured_for_everybody),
        case!(ext_2_external_ip_of_a_family_without_cluster_ip_is_ignored),
        case!(ext_3_other_ports_are_untouched),
        case!(ext_4_gate_turns_external_ips_off)
            .flags(&["--feature-gates=AllowServiceExternalIPs=false"]),
        case!(lb_1_ingress_without_mode_and_with_vip_are_captured),
        case!(lb_2_proxy_mode_is_not_captured),
        case!(lb_3_hostnames_and_load_balancer_ip_are_ignored),
        case!(lb_4_addresses_are_equivalent_and_independent),
        case!(lb_5_address_on_a_local_interface_works)
            .kernel()
            .fresh(),
        case!(lb_6_pods_and_host_do_not_leave_the_node).kernel(),
        case!(fw_1_ranges_restrict_load_balancer_addresses_only),
        case!(fw_2_pods_and_host_are_judged_too),
        case!(fw_3_own_vip_as_source_passes_if_the_node_is_in_range)
            .kernel()
            .fresh(),
        case!(fw_4_ranges_of_the_other_family_do_not_count),
        case!(fw_5_zero_prefix_disables_the_filter),
        case!(fw_5_two_halves_allow_all_and_blanks_are_trimmed),
        case!(fw_6_established_connections_survive_tightening)
            .kernel()
            .tcp(),
        case!(fw_7_excluded_clients_learn_nothing_about_endpoints),
        case!(fw_8_dropped_packets_match_nothing_else)
            .kernel()
            .fresh()
            .flags(&["--nodeport-addresses=0.0.0.0/0,::/0"]),
    ]
}

fn ext_1_external_ip_is_captured_for_everybody(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .external_ip(EXTERNAL_IP);
    t.endpoints("web").ready(P2).ready(R);
    t.check(
        [P1, HOST, HOST_ALT, X]
            .map(|client| flow(client, EXTERNAL_IP, 80).reaches([masqueraded(P2), masqueraded(R)])),
    );
}

fn ext_2_external_ip_of_a_family_without_cluster_ip_is_ignored(t: &mut Test) {
    let other = t.family.other();
    let text = EXTERNAL_IP2.of(other).to_string();
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .external_ip(EXTERNAL_IP)
        .external_ip_text(&text);
    t.endpoints("web").ready(P2);
    let family = t.family;
    t.slice("web", "web-other").family(other).ready(P2);
    t.check([
        flow(P1, EXTERNAL_IP2, 80)
            .family(other)
            .reaches([kept(OUT)]),
        flow(P1, EXTERNAL_IP, 80)
            .family(family)
            .reaches([masqueraded(P2)]),
    ]);
}

fn ext_3_other_ports_are_untouched(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .external_ip(EXTERNAL_IP);
    t.endpoints("web").ready(P2);
    t.check([P1, HOST, X].map(|client| {
        let landing = kept(OUT);
        flow(client, EXTERNAL_IP, 81).reaches([landing])
    }));
}

fn ext_4_gate_turns_external_ips_off(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .external_ip(EXTERNAL_IP);
    t.endpoints("web").ready(P2);
    t.check([
        flow(P1, EXTERNAL_IP, 80).reaches([kept(OUT)]),
        flow(X, EXTERNAL_IP, 80).reaches([kept(OUT)]),
        flow(P1, VIP, 80).reaches([kept(P2)]),
    ]);
}

fn captured(client: Host, to: Addr) -> proxy_tests::flow::Flow {
    flow(client, to, 80).reaches([masqueraded(P2)])
}

fn lb_1_ingress_without_mode_and_with_vip_are_captured(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.service("web")
        .load_balancer(LB_VIP)
        .load_balancer_mode(LB_VIP2, "VIP");
    t.endpoints("web").ready(P2);
    t.check(
        [P1, HOST_ALT, X]
            .into_iter()
            .flat_map(|client| [captured(client, LB_VIP), captured(client, LB_VIP2)]),
    );
}

fn lb_2_proxy_mode_is_not_captured(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer_mode(LB_VIP, "Proxy");
    t.endpoints("web").ready(P2);
    t.check([P1, HOST, X].map(|client| flow(client, LB_VIP, 80).reaches([kept(OUT)])));
}

fn lb_3_hostnames_and_load_balancer_ip_are_ignored(t: &mut Test) {
    let other = LB_VIP2.of(t.family.other()).to_string();
    let unused = t.ip(LB_VIP2).to_string();
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .set("loadBalancerIP", json!(unused));
    t.service("web")
        .ingress(json!({"hostname": "lb.example.org"}))
        .ingress(json!({"ip": other}));
    t.service("web").load_balancer(LB_VIP);
    t.endpoints("web").ready(P2);
    t.check([
        captured(P1, LB_VIP),
        flow(P1, LB_VIP2, 80).reaches([kept(OUT)]),
        flow(P1, LB_VIP2, 80)
            .family(t.family.other())
            .reaches([kept(OUT)]),
    ]);
}

fn lb_4_addresses_are_equivalent_and_independent(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP)
        .load_balancer(LB_VIP2);
    t.endpoints("web").ready(P2);
    t.check([captured(X, LB_VIP), captured(X, LB_VIP2)]);
    t.service("web").no_load_balancer().load_balancer(LB_VIP2);
    t.check([
        flow(X, LB_VIP, 80).reaches([kept(OUT)]),
        captured(X, LB_VIP2),
    ]);
}

fn lb_5_address_on_a_local_interface_works(t: &mut Test) {
    t.ip_tool(
        Site::N,
        &format!("addr add {} dev lo", LB_VIP.prefix(t.family)),
    );
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP);
    t.endpoints("web").ready(P2);
    t.check([
        captured(P1, LB_VIP),
        captured(HOST_ALT, LB_VIP),
        captured(X, LB_VIP),
    ]);
}

fn lb_6_pods_and_host_do_not_leave_the_node(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP)
        .external_local();
    t.endpoints("web").ready(P2).ready(R);
    t.apply();
    let uplink = t.sniff(HOST, "up0");
    t.observe([
        flow(P1, LB_VIP, 80).reaches([kept(P2), kept(R)]),
        flow(HOST_ALT, LB_VIP, 80).reaches([masqueraded(P2), masqueraded(R)]),
    ]);
    let vip = t.ip(LB_VIP);
    assert!(
        uplink
            .packets()
            .iter()
            .all(|packet| packet.destination != vip)
    );
}

fn fw_1_ranges_restrict_load_balancer_addresses_only(t: &mut Test) {
    let range = X.addr.prefix(t.family);
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(30_080)
        .external_ip(EXTERNAL_IP);
    t.service("web")
        .load_balancer(LB_VIP)
        .source_ranges(&[&range]);
    t.endpoints("web").ready(P2);
    t.check([
        captured(X, LB_VIP),
        flow(X2, LB_VIP, 80).is_dropped(),
        flow(X2, NODE, 30_080).reaches([masqueraded(P2)]),
        captured(X2, EXTERNAL_IP),
        flow(X2, VIP, 80).reaches([masqueraded(P2)]),
        flow(P1, VIP, 80).reaches([kept(P2)]),
    ]);
}

fn fw_2_pods_and_host_are_judged_too(t: &mut Test) {
    let node = NODE.prefix(t.family);
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP)
        .source_ranges(&[&node]);
    t.endpoints("web").ready(P2);
    t.check([
        flow(P1, LB_VIP, 80).is_dropped(),
        flow(HOST_ALT, LB_VIP, 80).is_dropped(),
        flow(X, LB_VIP, 80).is_dropped(),
        captured(HOST, LB_VIP),
    ]);
}

fn fw_3_own_vip_as_source_passes_if_the_node_is_in_range(t: &mut Test) {
    t.ip_tool(
        Site::N,
        &format!("addr add {} dev lo", LB_VIP.prefix(t.family)),
    );
    let from_vip = Host {
        addr: LB_VIP,
        ..HOST_ALT
    };
    let (node, outsider) = (NODE.prefix(t.family), X.addr.prefix(t.family));
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP)
        .source_ranges(&[&node]);
    t.endpoints("web").ready(P2);
    t.check([captured(from_vip, LB_VIP), flow(X, LB_VIP, 80).is_dropped()]);
    t.service("web").source_ranges(&[&outsider]);
    t.check([flow(from_vip, LB_VIP, 80).is_dropped(), captured(X, LB_VIP)]);
}

fn fw_4_ranges_of_the_other_family_do_not_count(t: &mut Test) {
    let range = X.addr.prefix(t.family.other());
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP)
        .source_ranges(&[&range]);
    t.endpoints("web").ready(P2);
    t.check([
        captured(X, LB_VIP),
        captured(X2, LB_VIP),
        captured(P1, LB_VIP),
    ]);
}

fn fw_5_zero_prefix_disables_the_filter(t: &mut Test) {
    let all = if t.family == Family::V4 {
        "0.0.0.0/0"
    } else {
        "::/0"
    };
    let range = X.addr.prefix(t.family);
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP)
        .source_ranges(&[&range, all]);
    t.endpoints("web").ready(P2);
    t.check([
        captured(X, LB_VIP),
        captured(X2, LB_VIP),
        captured(P1, LB_VIP),
    ]);
}

fn fw_5_two_halves_allow_all_and_blanks_are_trimmed(t: &mut Test) {
    let halves = match t.family {
        Family::V4 => [" 0.0.0.0/1", "128.0.0.0/1 "],
        Family::V6 => [" ::/1", "8000::/1 "],
    };
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP)
        .source_ranges(&halves);
    t.endpoints("web").ready(P2);
    t.check([
        captured(X, LB_VIP),
        captured(X2, LB_VIP),
        captured(P1, LB_VIP),
    ]);
    let blank = format!(" {}\t", X.addr.prefix(t.family));
    t.service("web")
        .source_ranges(&[&blank, "nonsense", "", "10.0.0.0/99"]);
    t.check([captured(X, LB_VIP), flow(X2, LB_VIP, 80).is_dropped()]);
}

fn fw_6_established_connections_survive_tightening(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP);
    t.endpoints("web").ready(P2);
    t.apply();
    let mut stream = t.stream(&flow(X, LB_VIP, 80));
    let range = X2.addr.prefix(t.family);
    t.service("web").source_ranges(&[&range]);
    t.check([flow(X, LB_VIP, 80).is_dropped(), captured(X2, LB_VIP)]);
    stream.echo().unwrap();
}

fn fw_7_excluded_clients_learn_nothing_about_endpoints(t: &mut Test) {
    let range = X.addr.prefix(t.family);
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .load_balancer(LB_VIP)
        .source_ranges(&[&range]);
    t.check([
        flow(X, LB_VIP, 80).is_rejected(),
        flow(X2, LB_VIP, 80).is_dropped(),
        flow(P1, LB_VIP, 80).is_dropped(),
        flow(HOST, LB_VIP, 80).is_dropped(),
    ]);
}

fn fw_8_dropped_packets_match_nothing_else(t: &mut Test) {
    t.ip_tool(
        Site::N,
        &format!("addr add {} dev lo", LB_VIP.prefix(t.family)),
    );
    let range = X.addr.prefix(t.family);
    t.service("web")
        .cluster_ip(VIP)
        .port(30_080)
        .load_balancer(LB_VIP)
        .source_ranges(&[&range]);
    t.endpoints("web").ready(P2);
    t.service("other")
        .cluster_ip(proxy_tests::address::VIP2)
        .port(80)
        .node_port(30_080);
    t.endpoints("other").ready(R);
    t.check([
        flow(X, LB_VIP, 30_080).reaches([masqueraded(P2)]),
        flow(X2, LB_VIP, 30_080).is_dropped(),
        flow(X2, NODE, 30_080).reaches([masqueraded(R)]),
    ]);
}
