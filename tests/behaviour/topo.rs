//! TOPO: topology hints.

use proxy_tests::address::{NODE_NAME, OTHER_NODE_NAME, P1, P2, R, R2, VIP};
use proxy_tests::case;
use proxy_tests::flow::{Landing, flow, kept};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::world::Endpoint;
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(topo_1_hints_on_a_plain_service_are_honoured).tcp(),
        case!(topo_2_topo_10_endpoints_for_this_node_are_preferred).tcp(),
        case!(topo_3_endpoints_for_this_zone_are_preferred).tcp(),
        case!(topo_4_otherwise_there_is_no_filtering).tcp(),
        case!(topo_5_unready_endpoints_have_no_say).tcp(),
        case!(topo_6_the_zone_step_looks_at_zone_hints_only).tcp(),
        case!(topo_8_node_7_a_zone_change_is_followed).tcp(),
        case!(topo_9_node_6_a_deleted_node_keeps_its_labels).tcp(),
    ]
}

fn web(t: &mut Test, endpoints: &[Endpoint]) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").clear();
    for endpoint in endpoints {
        t.endpoints("web").endpoint(endpoint.clone());
    }
}

fn reaches(t: &mut Test, landings: &[Landing]) {
    t.check([flow(P1, VIP, 80).reaches(landings.to_vec())]);
}

fn topo_1_hints_on_a_plain_service_are_honoured(t: &mut Test) {
    let endpoints = [
        Endpoint::new(P2).for_zones(&["zone-b"]),
        Endpoint::new(R).for_zones(&["zone-a"]),
    ];
    web(t, &endpoints);
    reaches(t, &[kept(R)]);
    // What the proxy must not look at.
    t.service("web")
        .set("trafficDistribution", json!("PreferClose"));
    let mode = json!({"service.kubernetes.io/topology-mode": "Disabled"});
    t.service("web")
        .patch(json!({"metadata": {"annotations": mode}}));
    reaches(t, &[kept(R)]);
    web(t, &[Endpoint::new(P2), Endpoint::new(R)]);
    reaches(t, &[kept(P2), kept(R)]);
}

fn topo_2_topo_10_endpoints_for_this_node_are_preferred(t: &mut Test) {
    let endpoints = [
        Endpoint::new(P2)
            .for_nodes(&[NODE_NAME])
            .for_zones(&["zone-a"]),
        Endpoint::new(R)
            .for_nodes(&[OTHER_NODE_NAME])
            .for_zones(&["zone-a"]),
    ];
    web(t, &endpoints);
    reaches(t, &[kept(P2)]);
}

fn topo_3_endpoints_for_this_zone_are_preferred(t: &mut Test) {
    let endpoints = [
        Endpoint::new(P2).for_zones(&["zone-a"]),
        Endpoint::new(R).for_zones(&["zone-b", "zone-a"]),
        Endpoint::new(R2).for_zones(&["zone-b"]),
    ];
    web(t, &endpoints);
    reaches(t, &[kept(P2), kept(R)]);
}

fn topo_4_otherwise_there_is_no_filtering(t: &mut Test) {
    web(
        t,
        &[Endpoint::new(P2).for_zones(&["zone-a"]), Endpoint::new(R)],
    );
    reaches(t, &[kept(P2), kept(R)]);
    let elsewhere = [
        Endpoint::new(P2).for_zones(&["zone-b"]),
        Endpoint::new(R).for_zones(&["zone-c"]),
    ];
    web(t, &elsewhere);
    reaches(t, &[kept(P2), kept(R)]);
    let here = [
        Endpoint::new(P2).for_zones(&["zone-a"]),
        Endpoint::new(R).for_zones(&["zone-b"]),
    ];
    web(t, &here);
    reaches(t, &[kept(P2)]);
    t.node().zone(None);
    reaches(t, &[kept(P2), kept(R)]);
    t.node().zone(Some(""));
    reaches(t, &[kept(P2), kept(R)]);
}

fn topo_5_unready_endpoints_have_no_say(t: &mut Test) {
    let endpoints = [
        Endpoint::new(P2).for_zones(&["zone-a"]),
        Endpoint::new(R).for_zones(&["zone-b"]),
        Endpoint::new(R2).conditions(false, false, false),
    ];
    web(t, &endpoints);
    reaches(t, &[kept(P2)]);
    // An unready endpoint of our zone does not make the zone count.
    let unready = [
        Endpoint::new(P2)
            .for_zones(&["zone-a"])
            .conditions(false, false, false),
        Endpoint::new(R).for_zones(&["zone-b"]),
        Endpoint::new(R2).for_zones(&["zone-b"]),
    ];
    web(t, &unready);
    reaches(t, &[kept(R), kept(R2)]);
}

fn topo_6_the_zone_step_looks_at_zone_hints_only(t: &mut Test) {
    let both = |host, zone: &str| {
        Endpoint::new(host)
            .for_nodes(&[OTHER_NODE_NAME])
            .for_zones(&[zone])
    };
    web(t, &[both(P2, "zone-b"), both(R, "zone-a")]);
    reaches(t, &[kept(R)]);
    let nodes = |host| Endpoint::new(host).for_nodes(&[OTHER_NODE_NAME]);
    web(t, &[nodes(P2), nodes(R)]);
    reaches(t, &[kept(P2), kept(R)]);
}

fn topo_8_node_7_a_zone_change_is_followed(t: &mut Test) {
    let endpoints = [
        Endpoint::new(P2).for_zones(&["zone-a"]),
        Endpoint::new(R).for_zones(&["zone-b"]),
    ];
    web(t, &endpoints);
    reaches(t, &[kept(P2)]);
    t.node().zone(Some("zone-b"));
    reaches(t, &[kept(R)]);
    t.node()
        .patch(json!({"metadata": {"labels": {"topology.kubernetes.io/region": "zone-a"}}}));
    reaches(t, &[kept(R)]);
    t.node().zone(None);
    reaches(t, &[kept(P2), kept(R)]);
}

fn topo_9_node_6_a_deleted_node_keeps_its_labels(t: &mut Test) {
    let endpoints = [
        Endpoint::new(P2).for_zones(&["zone-a"]),
        Endpoint::new(R).for_zones(&["zone-b"]),
    ];
    web(t, &endpoints);
    reaches(t, &[kept(P2)]);
    t.delete_node();
    t.apply();
    t.observe([flow(P1, VIP, 80).reaches([kept(P2)])]);
}
