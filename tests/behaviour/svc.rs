//! SVC: which Services are served, and which of their fields are read.

use proxy_tests::address::{
    EXTERNAL_IP, Family, LB_VIP, NODE, OUT, P1, P2, Protocol, R, R2, UNALLOCATED, VIP, VIP2, VIP3,
    X,
};
use proxy_tests::bed::SECOND_PORT;
use proxy_tests::case;
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::world::TARGET_PORT;
use serde_json::json;

const PORT: u16 = 30_080;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(svc_2_a_service_of_another_proxy_is_not_ours).tcp(),
        case!(svc_3_external_name_and_headless_services_produce_nothing).tcp(),
        case!(svc_4_type_transitions_add_and_remove_frontends)
            .protocols(&[Protocol::Tcp, Protocol::Udp]),
        case!(svc_5_a_renamed_port_is_another_port).tcp(),
        case!(svc_6_other_fields_change_nothing).tcp(),
        case!(svc_7_ports_are_independent).kernel().tcp(),
        case!(svc_8_one_number_may_have_several_protocols),
        case!(svc_9_node_port_and_ingress_count_whatever_the_type).tcp(),
        case!(svc_10_leading_zeros_are_decimal).tcp().v4(),
        case!(svc_10_mapped_addresses_are_ipv4_and_nonsense_is_skipped).tcp(),
        case!(svc_12_updates_without_a_change_cause_no_sync).tcp(),
        case!(svc_13_deletion_spares_established_connections)
            .kernel()
            .tcp(),
        case!(svc_14_the_cluster_ip_beats_external_ips_and_the_older_service_wins),
        case!(svc_14_of_two_node_ports_the_older_service_has_it),
        case!(svc_15_names_may_differ_in_the_last_character_only).tcp(),
        case!(svc_15_the_longest_names_and_names_that_begin_with_a_digit_are_served).tcp(),
        case!(svc_16_a_service_without_ports_has_no_live_cluster_ip).tcp(),
    ]
}

fn web(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
}

fn svc_2_a_service_of_another_proxy_is_not_ours(t: &mut Test) {
    web(t);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    for value in ["somebody-else", ""] {
        let labels = json!({"service.kubernetes.io/service-proxy-name": value});
        t.service("web")
            .patch(json!({"metadata": {"labels": labels}}));
        t.check([flow(P1, VIP, 80).is_dropped()]);
        t.service("web").patch(json!({}));
        t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    }
}

fn svc_3_external_name_and_headless_services_produce_nothing(t: &mut Test) {
    web(t);
    let external = json!({"spec": {"type": "ExternalName", "externalName": "example.org"}});
    t.service("web").external_ip(EXTERNAL_IP).patch(external);
    t.check([
        flow(P1, VIP, 80).is_dropped(),
        flow(P1, EXTERNAL_IP, 80).reaches([kept(OUT)]),
    ]);
    for none in ["None", ""] {
        t.service("web")
            .patch(json!({"spec": {"clusterIP": none, "clusterIPs": [none]}}));
        t.check([
            flow(P1, VIP, 80).is_dropped(),
            flow(P1, EXTERNAL_IP, 80).reaches([kept(OUT)]),
        ]);
    }
}

fn svc_4_type_transitions_add_and_remove_frontends(t: &mut Test) {
    let works = || flow(P1, VIP, 80).reaches([kept(P2)]);
    web(t);
    t.service("web")
        .patch(json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}));
    t.check([
        flow(P1, VIP, 80).is_dropped(),
        flow(X, NODE, PORT).finds_nobody(),
    ]);
    t.service("web").patch(json!({}));
    t.check([works(), flow(X, NODE, PORT).finds_nobody()]);
    t.service("web").no_ports().port(80).node_port(PORT);
    let node_port = || flow(X, NODE, PORT).reaches([masqueraded(P2)]);
    t.check([
        works(),
        node_port(),
        flow(X, LB_VIP, 80).reaches([kept(OUT)]),
    ]);
    t.service("web").load_balancer(LB_VIP);
    t.check([
        works(),
        node_port(),
        flow(X, LB_VIP, 80).reaches([masqueraded(P2)]),
    ]);
    t.service("web").no_load_balancer();
    t.check([
        works(),
        node_port(),
        flow(X, LB_VIP, 80).reaches([kept(OUT)]),
    ]);
    t.service("web").no_ports().port(80);
    t.check([works(), flow(X, NODE, PORT).finds_nobody()]);
}

fn svc_5_a_renamed_port_is_another_port(t: &mut Test) {
    t.service("web").cluster_ip(VIP).named_port("old", 80);
    t.endpoints("web").port("old", TARGET_PORT).ready(P2);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    t.service("web").no_ports().named_port("new", 80);
    t.check([flow(P1, VIP, 80).is_rejected()]);
    t.endpoints("web").no_ports().port("new", TARGET_PORT);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn svc_6_other_fields_change_nothing(t: &mut Test) {
    web(t);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    t.causes_no_sync(10, |world, n| {
        let ranges = "service.beta.kubernetes.io/load-balancer-source-ranges";
        world.service("web").patch(json!({
            "metadata": {
                "annotations": {ranges: format!("10.{n}.0.0/16")},
                "labels": {"some": format!("label-{n}")},
                "resourceVersion": n.to_string(),
            },
            "spec": {
                "selector": {"app": format!("another-{n}")},
                "publishNotReadyAddresses": n % 2 == 0,
                "trafficDistribution": if n % 2 == 0 { "PreferClose" } else { "PreferSameNode" },
                "loadBalancerClass": "example.org/class",
                "allocateLoadBalancerNodePorts": n % 2 == 0,
            },
        }));
    });
    t.observe([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn svc_7_ports_are_independent(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .named_port("a", 80)
        .named_port("b", 81);
    t.endpoints("web")
        .port("a", TARGET_PORT)
        .port("b", SECOND_PORT)
        .ready(P2);
    t.apply();
    let mut stream = t.stream(&flow(P1, VIP, 80));
    let hammer = t.hammer(&flow(P1, VIP, 80));
    let a = || flow(P1, VIP, 80).reaches([kept(P2).on(TARGET_PORT)]);
    t.check([a(), flow(P1, VIP, 81).reaches([kept(P2).on(SECOND_PORT)])]);
    t.service("web")
        .no_ports()
        .named_port("a", 80)
        .named_port("b", 82);
    t.check([
        a(),
        flow(P1, VIP, 81).is_rejected(),
        flow(P1, VIP, 82).reaches([kept(P2).on(SECOND_PORT)]),
    ]);
    t.service("web").no_ports().named_port("a", 80);
    t.check([a(), flow(P1, VIP, 82).is_rejected()]);
    stream.echo().unwrap();
    hammer.was_always_answered();
}

fn svc_8_one_number_may_have_several_protocols(t: &mut Test) {
    t.service("dns").cluster_ip(VIP);
    t.service("dns")
        .port_of("t", 53, Protocol::Tcp)
        .port_of("u", 53, Protocol::Udp);
    t.service("dns").port_of("s", 53, Protocol::Sctp);
    t.endpoints("dns")
        .port_of("t", TARGET_PORT, Protocol::Tcp)
        .ready(P2);
    t.endpoints("dns").port_of("u", SECOND_PORT, Protocol::Udp);
    t.slice("dns", "dns-s")
        .port_of("s", TARGET_PORT, Protocol::Sctp)
        .ready(R);
    t.service("tcp-only")
        .cluster_ip(VIP2)
        .port_of("t", 53, Protocol::Tcp);
    t.endpoints("tcp-only")
        .port_of("t", TARGET_PORT, Protocol::Tcp)
        .ready(P2);
    let landing = match t.protocol {
        Protocol::Tcp => kept(P2).on(TARGET_PORT),
        Protocol::Udp => kept(P2).on(SECOND_PORT),
        Protocol::Sctp => kept(R).on(TARGET_PORT),
    };
    t.check([
        flow(P1, VIP, 53).reaches([landing]),
        flow(P1, VIP2, 53).over(Protocol::Tcp).reaches([kept(P2)]),
        flow(P1, VIP2, 53).over(Protocol::Udp).is_rejected(),
        flow(P1, VIP2, 53).over(Protocol::Sctp).is_rejected(),
    ]);
}

fn svc_9_node_port_and_ingress_count_whatever_the_type(t: &mut Test) {
    web(t);
    t.service("web").load_balancer(LB_VIP);
    t.check([
        flow(X, LB_VIP, 80).reaches([masqueraded(P2)]),
        flow(X, NODE, PORT).finds_nobody(),
    ]);
    t.service("web").no_ports().port(80).node_port(PORT);
    t.service("web").set("type", json!("ClusterIP"));
    t.check([
        flow(X, LB_VIP, 80).reaches([masqueraded(P2)]),
        flow(X, NODE, PORT).reaches([masqueraded(P2)]),
    ]);
    // Type ClusterIP without externalIPs: eTP does not count, so that a remote endpoint serves outsiders.
    t.service("web").external_local();
    t.endpoints("web").clear().ready(R);
    t.check([flow(X, NODE, PORT).reaches([masqueraded(R)])]);
    t.service("web").external_ip(EXTERNAL_IP);
    t.check([
        flow(X, NODE, PORT).is_dropped(),
        flow(X, EXTERNAL_IP, 80).is_dropped(),
    ]);
}

fn svc_10_leading_zeros_are_decimal(t: &mut Test) {
    web(t);
    t.service("web")
        .external_ip_text("203.000.113.0250")
        .external_ip_text("");
    t.service("web").external_ip_text("not an address");
    t.service("web").ingress(json!({"ip": "203.0.113.0100"}));
    t.service("web")
        .source_ranges(&["203.0.113.007/032", "what?"]);
    let sloppy = json!({"spec": {"clusterIP": "10.96.0.010", "clusterIPs": ["10.96.0.010"]}});
    t.service("web").patch(sloppy);
    t.endpoints("web").patch(json!({"endpoints": [{
        "addresses": ["10.244.001.012"],
        "nodeName": "node-n",
        "conditions": {"ready": true},
    }]}));
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(P1, EXTERNAL_IP, 80).reaches([masqueraded(P2)]),
        flow(X, LB_VIP, 80).reaches([masqueraded(P2)]),
        flow(P1, LB_VIP, 80).is_dropped(),
    ]);
}

fn svc_10_mapped_addresses_are_ipv4_and_nonsense_is_skipped(t: &mut Test) {
    web(t);
    let text = match t.family {
        Family::V4 => format!("::ffff:{}", EXTERNAL_IP.of(Family::V4)),
        Family::V6 => EXTERNAL_IP.of(Family::V6).to_string(),
    };
    t.service("web")
        .external_ip_text("  ")
        .external_ip_text("1.2.3")
        .external_ip_text(&text);
    t.check([flow(P1, EXTERNAL_IP, 80).reaches([masqueraded(P2)])]);
}

fn svc_12_updates_without_a_change_cause_no_sync(t: &mut Test) {
    web(t);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    t.causes_no_sync(100, |_, _| ());
    t.observe([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn svc_13_deletion_spares_established_connections(t: &mut Test) {
    web(t);
    t.service("web").no_ports().port(80).node_port(PORT);
    t.apply();
    let mut inside = t.stream(&flow(P1, VIP, 80));
    let mut outside = t.stream(&flow(X, NODE, PORT));
    t.delete_service("web");
    t.check([
        flow(P1, VIP, 80).is_dropped(),
        flow(X, NODE, PORT).finds_nobody(),
    ]);
    inside.echo().unwrap();
    outside.echo().unwrap();
    t.service("web").cluster_ip(VIP).port(80).node_port(PORT);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn svc_14_the_cluster_ip_beats_external_ips_and_the_older_service_wins(t: &mut Test) {
    web(t);
    t.service("intruder")
        .cluster_ip(VIP2)
        .port(80)
        .external_ip(VIP)
        .external_ip(EXTERNAL_IP);
    t.service("intruder")
        .patch(json!({"metadata": {"creationTimestamp": "2020-01-01T00:00:00Z"}}));
    t.endpoints("intruder").ready(R);
    t.service("younger")
        .cluster_ip(VIP3)
        .port(80)
        .external_ip(EXTERNAL_IP);
    t.endpoints("younger").ready(R2);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(P1, VIP2, 80).reaches([kept(R)]),
        flow(P1, EXTERNAL_IP, 80).reaches([masqueraded(R)]),
    ]);
    t.delete_service("intruder");
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(P1, EXTERNAL_IP, 80).reaches([masqueraded(R2)]),
    ]);
}

fn svc_15_names_may_differ_in_the_last_character_only(t: &mut Test) {
    let long = "a".repeat(62);
    let (one, two) = (format!("{long}1"), format!("{long}2"));
    for (name, vip, host) in [(&one, VIP, P2), (&two, VIP2, R)] {
        t.service(name)
            .cluster_ip(vip)
            .named_port(&one, 80)
            .named_port(&two, 81)
            .affinity(100);
        t.endpoints(name)
            .port(&one, TARGET_PORT)
            .port(&two, SECOND_PORT)
            .ready(host);
    }
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2).on(TARGET_PORT)]),
        flow(P1, VIP, 81).reaches([kept(P2).on(SECOND_PORT)]),
        flow(P1, VIP2, 80).reaches([kept(R).on(TARGET_PORT)]),
        flow(P1, VIP2, 81).reaches([kept(R).on(SECOND_PORT)]),
    ]);
}

fn svc_15_the_longest_names_and_names_that_begin_with_a_digit_are_served(t: &mut Test) {
    let in_namespace = |name: &str| json!({"metadata": {"namespace": name}});
    let long = "9".repeat(63);
    // The name as a whole is longer than any comment may be, in each mode.
    let ports = ["p".repeat(15), "q".repeat(63)];
    for (name, namespace, vip, host) in [(&*long, &*long, VIP, P2), ("1a", "0-0", VIP2, R)] {
        t.service(name)
            .cluster_ip(vip)
            .named_port(&ports[0], 80)
            .named_port(&ports[1], 81)
            .affinity(100)
            .patch(in_namespace(namespace));
        t.endpoints(name)
            .port(&ports[0], TARGET_PORT)
            .port(&ports[1], SECOND_PORT)
            .ready(host)
            .patch(in_namespace(namespace));
    }
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2).on(TARGET_PORT)]),
        flow(P1, VIP, 81).reaches([kept(P2).on(SECOND_PORT)]),
        flow(P1, VIP2, 80).reaches([kept(R).on(TARGET_PORT)]),
        flow(P1, VIP2, 81).reaches([kept(R).on(SECOND_PORT)]),
    ]);
}

fn svc_16_a_service_without_ports_has_no_live_cluster_ip(t: &mut Test) {
    t.service("web").cluster_ip(UNALLOCATED);
    t.endpoints("web").ready(P2);
    t.check([flow(P1, UNALLOCATED, 80).is_dropped()]);
}

fn svc_14_of_two_node_ports_the_older_service_has_it(t: &mut Test) {
    web(t);
    t.service("web").no_ports().port(80).node_port(PORT);
    t.service("older").cluster_ip(VIP2).port(80).node_port(PORT);
    let born = json!({"metadata": {"creationTimestamp": "2020-01-01T00:00:00Z"}});
    t.service("older").patch(born);
    t.endpoints("older").ready(R);
    t.check([
        flow(X, NODE, PORT).reaches([masqueraded(R)]),
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(P1, VIP2, 80).reaches([kept(R)]),
    ]);
    t.delete_service("older");
    t.check([
        flow(X, NODE, PORT).reaches([masqueraded(P2)]),
        flow(P1, VIP, 80).reaches([kept(P2)]),
    ]);
}
