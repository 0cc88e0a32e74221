//! DS: families.

use proxy_tests::address::{EXTERNAL_IP, NODE, OUT, P1, P2, R, VIP, X};
use proxy_tests::case;
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};
use serde_json::json;

const PORT: u16 = 30_080;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(ds_2_a_node_without_ipv6_serves_ipv4)
            .kernel()
            .v4()
            .fresh(),
        case!(ds_3_addresses_follow_the_order_of_families),
        case!(ds_4_each_family_has_its_own_slices),
        case!(ds_6_families_come_and_go).tcp(),
    ]
}

fn dual(t: &mut Test) {
    let family = t.family;
    t.service("web")
        .families(&[family, family.other()])
        .cluster_ip(VIP)
        .port(80)
        .node_port(PORT);
}

fn ds_2_a_node_without_ipv6_serves_ipv4(t: &mut Test) {
    for scope in ["all", "default"] {
        t.node_ns()
            .sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1")
            .unwrap();
    }
    t.service("web").cluster_ip(VIP).port(80).node_port(PORT);
    t.endpoints("web").ready(P2);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(X, NODE, PORT).reaches([masqueraded(P2)]),
    ]);
}

fn ds_3_addresses_follow_the_order_of_families(t: &mut Test) {
    dual(t);
    let (family, other) = (t.family, t.family.other());
    t.endpoints("web").ready(P2);
    t.slice("web", "web-other").family(other).ready(R);
    t.check([
        flow(P1, VIP, 80).family(family).reaches([kept(P2)]),
        flow(P1, VIP, 80).family(other).reaches([kept(R)]),
        flow(X, NODE, PORT).family(other).reaches([masqueraded(R)]),
    ]);
    // Without ipFamilies the one clusterIP speaks for itself, and the other family does not exist.
    let own = t.ip(VIP).to_string();
    t.service("web").families(&[family]).external_ip(EXTERNAL_IP).patch(json!({
        "spec": {"ipFamilies": null, "ipFamilyPolicy": null, "clusterIP": own, "clusterIPs": null}
    }));
    t.check([
        flow(P1, VIP, 80).family(family).reaches([kept(P2)]),
        flow(P1, VIP, 80).family(other).is_dropped(),
        flow(P1, EXTERNAL_IP, 80).family(other).reaches([kept(OUT)]),
    ]);
}

fn ds_4_each_family_has_its_own_slices(t: &mut Test) {
    dual(t);
    let (family, other) = (t.family, t.family.other());
    t.endpoints("web").ready(P2);
    t.check([
        flow(P1, VIP, 80).family(family).reaches([kept(P2)]),
        flow(P1, VIP, 80).family(other).is_rejected(),
        flow(X, NODE, PORT).family(other).is_rejected(),
    ]);
}

fn ds_6_families_come_and_go(t: &mut Test) {
    let (family, other) = (t.family, t.family.other());
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
    t.slice("web", "web-other").family(other).ready(R);
    let works = || flow(P1, VIP, 80).family(family).reaches([kept(P2)]);
    t.check([works(), flow(P1, VIP, 80).family(other).is_dropped()]);
    t.service("web").families(&[family, other]);
    t.check([works(), flow(P1, VIP, 80).family(other).reaches([kept(R)])]);
    t.service("web").families(&[family]);
    t.check([works(), flow(P1, VIP, 80).family(other).is_dropped()]);
}
