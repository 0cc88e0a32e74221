//! EPS: how EndpointSlices become endpoints.

use proxy_tests::address::{
    Family, HOST, NODE, NODE_ALT, P1, P2, Protocol, R, R2, VIP, VIP2, VIP3, X,
};
use proxy_tests::bed::SECOND_PORT;
use proxy_tests::case;
use proxy_tests::flow::{flow, kept, masqueraded, seen_as};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::world::{Endpoint, TARGET_PORT};
use serde_json::json;

const PORT: u16 = 30_080;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(eps_2_a_headless_slice_does_not_count).tcp(),
        case!(eps_3_the_label_says_whose_a_slice_is).tcp(),
        case!(eps_4_the_address_type_picks_the_family).tcp(),
        case!(eps_5_endpoints_are_the_union_of_all_slices).tcp(),
        case!(eps_6_ports_match_by_name_and_protocol).tcp(),
        case!(eps_7_each_slice_has_its_own_target_port),
        case!(eps_8_the_first_address_counts).tcp(),
        case!(eps_9_one_address_with_two_ports_is_two_endpoints).tcp(),
        case!(eps_10_the_better_duplicate_counts).tcp(),
        case!(eps_11_conditions_have_defaults).tcp(),
        case!(eps_12_locality_is_the_exact_node_name).tcp(),
        case!(eps_13_host_network_endpoints_see_the_pod),
        case!(eps_14_endpoints_outside_the_cluster_are_valid),
        case!(eps_15_slices_may_come_before_their_service).tcp(),
        case!(eps_16_ready_is_trusted).tcp(),
        case!(eps_17_order_and_repetition_change_nothing)
            .kernel()
            .tcp(),
        case!(eps_18_a_relabelled_slice_moves).tcp(),
        case!(api_5_api_6_the_kubernetes_service_is_like_any_other).tcp(),
        case!(api_7_an_api_server_on_the_own_node_is_reached).tcp(),
    ]
}

fn web(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
}

fn eps_2_a_headless_slice_does_not_count(t: &mut Test) {
    web(t);
    t.slice("web", "web-2").ready(R);
    t.check([flow(P1, VIP, 80).reaches([kept(P2), kept(R)])]);
    let headless = json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}});
    t.slice("web", "web-2").patch(headless);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    t.slice("web", "web-2").patch(json!({}));
    t.check([flow(P1, VIP, 80).reaches([kept(P2), kept(R)])]);
}

fn eps_3_the_label_says_whose_a_slice_is(t: &mut Test) {
    web(t);
    let unlabelled = json!({"kubernetes.io/service-name": null});
    t.slice("web", "web-2")
        .ready(R)
        .patch(json!({"metadata": {"labels": unlabelled}}));
    let empty = json!({"kubernetes.io/service-name": ""});
    t.slice("web", "web-3")
        .ready(R)
        .patch(json!({"metadata": {"labels": empty}}));
    t.slice("web", "web-4")
        .ready(R)
        .patch(json!({"metadata": {"namespace": "another"}}));
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    let mirrored = json!({
        "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
    });
    t.slice("web", "by-hand")
        .ready(R2)
        .patch(json!({"metadata": {"labels": mirrored}}));
    t.check([flow(P1, VIP, 80).reaches([kept(P2), kept(R2)])]);
}

fn eps_4_the_address_type_picks_the_family(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    let fqdn = json!({
        "addressType": "FQDN",
        "endpoints": [{"addresses": ["pod.example.org"], "conditions": {"ready": true}}],
    });
    t.endpoints("web").patch(fqdn);
    let other = t.family.other();
    t.slice("web", "web-other").family(other).ready(R);
    t.check([flow(P1, VIP, 80).is_rejected()]);
    t.slice("web", "web-own").ready(P2);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn eps_5_endpoints_are_the_union_of_all_slices(t: &mut Test) {
    web(t);
    t.slice("web", "web-2").ready(R);
    t.check([flow(P1, VIP, 80).reaches([kept(P2), kept(R)])]);
    t.slice("web", "web-2").clear();
    t.apply();
    let hammers = [P1, HOST].map(|client| t.hammer(&flow(client, VIP, 80)));
    for _ in 0..10 {
        t.slice("web", "web-2").ready(P2);
        t.apply();
        t.endpoints("web").clear();
        t.apply();
        t.endpoints("web").ready(P2);
        t.slice("web", "web-2").clear();
        t.apply();
    }
    for hammer in hammers {
        hammer.was_always_answered();
    }
}

fn eps_6_ports_match_by_name_and_protocol(t: &mut Test) {
    t.service("web").cluster_ip(VIP);
    t.service("web")
        .named_port("a", 80)
        .named_port("b", 81)
        .named_port("c", 82);
    t.endpoints("web").ready(P2).port("a", TARGET_PORT);
    t.endpoints("web")
        .raw_port(json!({"name": "b", "protocol": "TCP", "port": null}));
    t.endpoints("web")
        .raw_port(json!({"name": "b", "protocol": "TCP", "port": 0}));
    t.endpoints("web")
        .raw_port(json!({"protocol": "TCP", "port": TARGET_PORT}));
    t.endpoints("web").port_of("b", TARGET_PORT, Protocol::Udp);
    t.endpoints("web")
        .raw_port(json!({"name": "c", "port": SECOND_PORT}));
    t.service("unnamed").cluster_ip(VIP2).port(80);
    t.endpoints("unnamed")
        .ready(P2)
        .port("another", TARGET_PORT);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2).on(TARGET_PORT)]),
        flow(P1, VIP, 81).is_rejected(),
        flow(P1, VIP, 82).reaches([kept(P2).on(SECOND_PORT)]),
        flow(P1, VIP2, 80).is_rejected(),
    ]);
    t.endpoints("unnamed").no_ports().port("", TARGET_PORT);
    t.check([flow(P1, VIP2, 80).reaches([kept(P2)])]);
}

fn eps_7_each_slice_has_its_own_target_port(t: &mut Test) {
    web(t);
    t.slice("web", "web-2").port("", SECOND_PORT).ready(R);
    let landings = [kept(P2).on(TARGET_PORT), kept(R).on(SECOND_PORT)];
    t.check([flow(P1, VIP, 80).reaches(landings)]);
}

fn eps_8_the_first_address_counts(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").endpoint(Endpoint::new(P2).also(R.addr));
    t.slice("web", "web-2")
        .patch(json!({"endpoints": [{"addresses": []}]}));
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn eps_9_one_address_with_two_ports_is_two_endpoints(t: &mut Test) {
    web(t);
    t.slice("web", "web-2").port("", SECOND_PORT).ready(P2);
    t.slice("web", "web-3").ready(R);
    let landings = [kept(P2).on(TARGET_PORT), kept(P2).on(SECOND_PORT), kept(R)];
    t.check([flow(P1, VIP, 80).reaches(landings)]);
    let counts = t.count(&flow(P1, VIP, 80), 600);
    assert!((330..=470).contains(&counts["P2"]), "{counts:?}");
}

fn eps_10_the_better_duplicate_counts(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.slice("web", "a").terminating(P2);
    t.slice("web", "b").ready(P2);
    t.slice("web", "c").terminating(P2);
    t.slice("web", "d").terminating(R);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    // Ours: ready beats not ready.
    t.slice("web", "a").clear().unready(P2);
    t.slice("web", "c").clear().unready(P2);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn eps_11_conditions_have_defaults(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").endpoint(Endpoint::new(P2));
    t.endpoints("web")
        .endpoint(Endpoint::new(R).patch(json!({"conditions": {}})));
    t.check([flow(P1, VIP, 80).reaches([kept(P2), kept(R)])]);
    let leaving = json!({"conditions": {"ready": false, "terminating": true}});
    t.endpoints("web")
        .clear()
        .endpoint(Endpoint::new(P2).patch(leaving));
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn eps_12_locality_is_the_exact_node_name(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(PORT)
        .external_local();
    t.endpoints("web")
        .endpoint(Endpoint::new(P2).without_node());
    let works = || flow(P1, VIP, 80).reaches([kept(P2)]);
    t.check([flow(X, NODE, PORT).is_dropped(), works()]);
    let shouted = json!({"nodeName": "Node-N"});
    t.endpoints("web")
        .clear()
        .endpoint(Endpoint::new(P2).patch(shouted));
    t.check([flow(X, NODE, PORT).is_dropped(), works()]);
    t.endpoints("web").clear().endpoint(Endpoint::new(P2));
    t.check([flow(X, NODE, PORT).reaches([kept(P2)]), works()]);
}

fn eps_13_host_network_endpoints_see_the_pod(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(HOST);
    t.check([flow(P1, VIP, 80).reaches([kept(HOST)])]);
}

fn eps_14_endpoints_outside_the_cluster_are_valid(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80).node_port(PORT);
    t.endpoints("web").ready(X);
    t.check([
        flow(P1, VIP, 80).reaches([kept(X)]),
        flow(P1, NODE, PORT).reaches([masqueraded(X)]),
    ]);
}

fn eps_15_slices_may_come_before_their_service(t: &mut Test) {
    t.endpoints("web").ready(P2);
    t.check([flow(P1, VIP, 80).is_dropped()]);
    t.service("web").cluster_ip(VIP).port(80);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    t.delete_service("web");
    t.check([flow(P1, VIP, 80).is_dropped()]);
    t.service("web").cluster_ip(VIP).port(80);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn eps_16_ready_is_trusted(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web")
        .endpoint(Endpoint::new(P2).conditions(true, false, true))
        .ready(R);
    t.check([flow(P1, VIP, 80).reaches([kept(P2), kept(R)])]);
}

fn eps_17_order_and_repetition_change_nothing(t: &mut Test) {
    web(t);
    t.endpoints("web").ready(R).ready(R2);
    t.apply();
    let hammer = t.hammer(&flow(P1, VIP, 80));
    t.endpoints("web").clear().ready(R2).ready(R).ready(P2);
    t.check([flow(P1, VIP, 80).reaches([kept(P2), kept(R), kept(R2)])]);
    t.causes_no_sync(10, |_, _| ());
    hammer.was_always_answered();
}

fn eps_18_a_relabelled_slice_moves(t: &mut Test) {
    web(t);
    t.service("heir").cluster_ip(VIP2).port(80);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(P1, VIP2, 80).is_rejected(),
    ]);
    let heir = json!({"metadata": {"labels": {"kubernetes.io/service-name": "heir"}}});
    t.endpoints("web").patch(heir);
    t.check([
        flow(P1, VIP, 80).is_rejected(),
        flow(P1, VIP2, 80).reaches([kept(P2)]),
    ]);
}

/// The Service and the slice that API servers write about themselves, as they write them.
fn kubernetes(t: &mut Test, server: proxy_tests::address::Host) {
    t.service("kubernetes")
        .cluster_ip(VIP3)
        .named_port("https", 443);
    t.service("kubernetes").set("selector", json!(null));
    let written = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "ports": [{"name": "https", "port": TARGET_PORT, "protocol": "TCP"}],
        "endpoints": [{"addresses": [t.ip(server.addr).to_string()], "conditions": {"ready": true}}],
    });
    t.slice("kubernetes", "kubernetes").patch(written);
}

fn api_5_api_6_the_kubernetes_service_is_like_any_other(t: &mut Test) {
    kubernetes(t, R);
    t.check([
        flow(P1, VIP3, 443).reaches([kept(R)]),
        flow(HOST, VIP3, 443).reaches([masqueraded(R)]),
    ]);
    // Without a nodeName it is never local.
    t.service("kubernetes").internal_local();
    t.check([flow(P1, VIP3, 443).is_dropped()]);
}

fn api_7_an_api_server_on_the_own_node_is_reached(t: &mut Test) {
    kubernetes(t, HOST);
    let own = if t.family == Family::V4 {
        NODE_ALT
    } else {
        NODE
    };
    t.check([
        flow(P1, VIP3, 443).reaches([kept(HOST)]),
        flow(HOST, VIP3, 443).reaches([seen_as(HOST, own)]),
    ]);
}
