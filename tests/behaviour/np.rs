//! NP: nodePorts.

use std::time::Duration;

use proxy_tests::address::{
    Addr, Family, HOST, HOST_ALT, LOOPBACK, NODE, NODE_ALT, OTHER, OTHER_NODE, P1, P2, Protocol, R,
    Site, VIP, X,
};
use proxy_tests::case;
use proxy_tests::flow::{Flow, flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};

const PORT: u16 = 30_080;

/// Only where the kernel speaks the protocol can a closed port be distinguished from silence.
const KERNEL: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

pub(crate) fn cases() -> Vec<Case> {
    let second = ["--nodeport-addresses=198.51.100.0/24,2001:db8:5100::/48"];
    let all = ["--nodeport-addresses=0.0.0.0/0,::/0"];
    vec![
        case!(np_1_a_host_listener_never_gets_the_connection)
            .kernel()
            .fresh(),
        case!(np_2_only_listed_addresses_accept)
            .protocols(&KERNEL)
            .flags(&second),
        case!(np_2_zero_prefix_accepts_every_address).flags(&all),
        case!(np_2_words_and_networks_mix_and_silence_opens_nothing)
            .protocols(&KERNEL)
            .flags(&["--nodeport-addresses=primary,198.51.100.0/24"]),
        case!(np_2_the_word_all_accepts_every_address)
            .tcp()
            .flags(&["--nodeport-addresses=all,primary"]),
        case!(np_2_the_word_localhost_accepts_no_other_address)
            .tcp()
            .flags(&["--nodeport-addresses=localhost"]),
        case!(np_2_np_4_words_open_no_family_without_node_ip)
            .tcp()
            .fresh()
            .flags(&["--nodeport-addresses=primary,localhost"]),
        case!(np_2_family_without_prefix_accepts_every_address)
            .protocols(&KERNEL)
            .flags(&["--nodeport-addresses=192.0.2.0/24"]),
        case!(np_3_default_is_the_primary_address).protocols(&KERNEL),
        case!(np_4_no_node_ports_in_a_family_without_node_ip)
            .protocols(&KERNEL)
            .fresh(),
        case!(np_5_loopback_is_never_captured)
            .protocols(&KERNEL)
            .flags(&all),
        case!(np_6_a_listener_on_another_address_gets_its_connections)
            .kernel()
            .fresh(),
        case!(np_7_new_addresses_are_picked_up)
            .fresh()
            .flags(&second),
        case!(np_8_no_endpoints_spare_listeners_on_other_addresses)
            .kernel()
            .fresh(),
        case!(np_9_every_node_serves_remote_endpoints),
        case!(np_10_pods_and_host_reach_the_own_node_port),
        case!(np_11_other_nodes_decide_for_themselves),
        case!(np_12_no_sockets_are_opened).tcp(),
        case!(np_13_a_removed_node_port_is_free).protocols(&KERNEL),
    ]
}

fn web(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80).node_port(PORT);
    t.endpoints("web").ready(P2);
}

fn works(client: proxy_tests::address::Host, to: Addr) -> Flow {
    flow(client, to, PORT).reaches([masqueraded(P2)])
}

fn np_1_a_host_listener_never_gets_the_connection(t: &mut Test) {
    t.bed_mut().serve(HOST, NODE, &[PORT]).unwrap();
    t.observe([flow(X, NODE, PORT).reaches([kept(HOST)])]);
    web(t);
    t.check([P1, X, HOST, HOST_ALT].map(|client| works(client, NODE)));
}

fn np_2_only_listed_addresses_accept(t: &mut Test) {
    web(t);
    t.check([
        works(X, NODE_ALT),
        works(P1, NODE_ALT),
        flow(X, NODE, PORT).finds_nobody(),
        flow(P1, NODE, PORT).finds_nobody(),
    ]);
}

fn np_2_zero_prefix_accepts_every_address(t: &mut Test) {
    web(t);
    t.check([
        works(X, NODE_ALT),
        works(X, NODE),
        works(P1, NODE_ALT),
        works(HOST_ALT, NODE),
    ]);
}

fn np_2_words_and_networks_mix_and_silence_opens_nothing(t: &mut Test) {
    web(t);
    t.check([
        works(X, NODE),
        works(P1, NODE),
        match t.family {
            Family::V4 => works(X, NODE_ALT),
            Family::V6 => flow(X, NODE_ALT, PORT).finds_nobody(),
        },
    ]);
}

fn np_2_the_word_all_accepts_every_address(t: &mut Test) {
    web(t);
    t.check([
        works(X, NODE),
        works(X, NODE_ALT),
        flow(HOST, LOOPBACK, PORT).finds_nobody(),
    ]);
}

fn np_2_the_word_localhost_accepts_no_other_address(t: &mut Test) {
    web(t);
    t.check([
        flow(X, NODE, PORT).finds_nobody(),
        flow(X, NODE_ALT, PORT).finds_nobody(),
        flow(HOST, LOOPBACK, PORT).finds_nobody(),
    ]);
    let log = t.bed().daemon.log();
    assert!(
        log.contains("NodePorts are not served on localhost yet"),
        "{log}"
    );
}

fn np_2_np_4_words_open_no_family_without_node_ip(t: &mut Test) {
    let other = NODE.of(t.family.other()).to_string();
    web(t);
    t.node().internal_ips(&[&other]);
    t.check([
        flow(X, NODE, PORT).finds_nobody(),
        flow(X, NODE_ALT, PORT).finds_nobody(),
    ]);
}

fn np_2_family_without_prefix_accepts_every_address(t: &mut Test) {
    web(t);
    t.check([works(X, NODE)]);
    t.observe([match t.family {
        Family::V4 => flow(X, NODE_ALT, PORT).finds_nobody(),
        Family::V6 => works(X, NODE_ALT),
    }]);
}

fn np_3_default_is_the_primary_address(t: &mut Test) {
    web(t);
    t.check([
        works(X, NODE),
        works(P1, NODE),
        flow(X, NODE_ALT, PORT).finds_nobody(),
        flow(P1, NODE_ALT, PORT).finds_nobody(),
        flow(HOST, NODE_ALT, PORT).finds_nobody(),
    ]);
}

fn np_4_no_node_ports_in_a_family_without_node_ip(t: &mut Test) {
    let own = t.ip(NODE).to_string();
    let other = NODE.of(t.family.other()).to_string();
    web(t);
    t.node().internal_ips(&[&other]);
    t.check([
        flow(X, NODE, PORT).finds_nobody(),
        flow(X, NODE_ALT, PORT).finds_nobody(),
    ]);
    t.node().internal_ips(&[&other, &own]);
    t.check([works(X, NODE), flow(X, NODE_ALT, PORT).finds_nobody()]);
}

fn np_5_loopback_is_never_captured(t: &mut Test) {
    web(t);
    t.check([flow(HOST, LOOPBACK, PORT).finds_nobody(), works(HOST, NODE)]);
    let route = t
        .node_ns()
        .read_sysctl("net.ipv4.conf.all.route_localnet")
        .unwrap();
    assert_eq!(route, "0");
}

fn np_6_a_listener_on_another_address_gets_its_connections(t: &mut Test) {
    t.bed_mut().serve(HOST_ALT, NODE_ALT, &[PORT]).unwrap();
    web(t);
    t.check([
        flow(X, NODE_ALT, PORT).reaches([kept(HOST_ALT)]),
        works(X, NODE),
    ]);
}

fn np_7_new_addresses_are_picked_up(t: &mut Test) {
    let new = Addr::new(
        "NEW",
        [198, 51, 100, 77],
        ([0x2001, 0xdb8, 0x5100, 0], 0x77),
    );
    web(t);
    t.check([works(P1, NODE_ALT)]);
    t.ip_tool(
        Site::N,
        &format!("addr add {} dev lo", new.prefix(t.family)),
    );
    t.eventually(Duration::from_secs(10), [works(P1, new).times(2)]);
    t.observe([works(P1, new), works(P1, NODE_ALT)]);
    t.ip_tool(
        Site::N,
        &format!("addr del {} dev lo", NODE_ALT.prefix(t.family)),
    );
    t.observe([works(P1, new)]);
}

fn np_8_no_endpoints_spare_listeners_on_other_addresses(t: &mut Test) {
    t.bed_mut().serve(HOST_ALT, NODE_ALT, &[PORT]).unwrap();
    web(t);
    t.endpoints("web").clear();
    t.check([
        flow(X, NODE_ALT, PORT).reaches([kept(HOST_ALT)]),
        flow(P1, NODE_ALT, PORT).reaches([kept(HOST_ALT)]),
        flow(X, NODE, PORT).is_rejected(),
        flow(P1, NODE, PORT).is_rejected(),
        flow(HOST, NODE, PORT).is_rejected(),
    ]);
}

fn np_9_every_node_serves_remote_endpoints(t: &mut Test) {
    web(t);
    t.endpoints("web").clear().ready(R);
    t.check([flow(X, NODE, PORT).reaches([masqueraded(R)])]);
}

fn np_10_pods_and_host_reach_the_own_node_port(t: &mut Test) {
    web(t);
    t.endpoints("web").clear().ready(P1);
    t.check(
        [P1, P2, HOST, HOST_ALT].map(|client| flow(client, NODE, PORT).reaches([masqueraded(P1)])),
    );
}

fn np_11_other_nodes_decide_for_themselves(t: &mut Test) {
    web(t);
    t.check([
        flow(HOST, OTHER_NODE, PORT).reaches([kept(OTHER)]),
        flow(P1, OTHER_NODE, PORT).reaches([kept(OTHER)]),
    ]);
}

fn np_12_no_sockets_are_opened(t: &mut Test) {
    web(t);
    t.check([works(X, NODE)]);
    let sockets = t.node_ns().check_run("ss", &["-Hlnatu"]).unwrap();
    assert!(!sockets.contains(&format!(":{PORT} ")), "{sockets}");
}

fn np_13_a_removed_node_port_is_free(t: &mut Test) {
    web(t);
    t.check([works(X, NODE)]);
    t.service("web").no_ports().port(80);
    t.check([
        flow(X, NODE, PORT).finds_nobody(),
        flow(P1, VIP, 80).reaches([kept(P2)]),
    ]);
    t.service("web").no_ports().port(80).node_port(PORT + 1);
    t.check([
        flow(X, NODE, PORT).finds_nobody(),
        flow(X, NODE, PORT + 1).reaches([masqueraded(P2)]),
    ]);
    t.delete_service("web");
    t.check([flow(X, NODE, PORT + 1).finds_nobody()]);
}
