//! DL: which sources count as pods.

use proxy_tests::address::{Family, HOST_ALT, NODE, P1, P2, R, Site, VIP, X};
use proxy_tests::case;
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};

pub(crate) fn cases() -> Vec<Case> {
    let prefix = [
        "--detect-local-mode=InterfaceNamePrefix",
        "--pod-interface-name-prefix=cali",
    ];
    let bridge = [
        "--detect-local-mode=BridgeInterface",
        "--pod-bridge-interface=cbr0",
    ];
    let node_cidr = ["--detect-local-mode=NodeCIDR"];
    vec![
        case!(dl_1_cluster_cidr_covers_pods_of_other_nodes),
        case!(dl_2_node_cidr_covers_pods_of_this_node_only).flags(&node_cidr),
        case!(dl_3_bridge_interface).flags(&bridge).bridge(),
        case!(dl_4_interface_prefix_covers_new_interfaces)
            .flags(&prefix)
            .tcp()
            .fresh(),
        case!(dl_5_without_cidr_there_is_no_detector).flags(&["--cluster-cidr="]),
        case!(dl_6_families_are_judged_separately).flags(&["--cluster-cidr=10.244.0.0/16"]),
        case!(dl_7_remote_pods_are_short_circuited_by_cluster_cidr),
        case!(dl_7_remote_pods_are_outsiders_by_node_cidr).flags(&node_cidr),
    ]
}

fn web(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P1).ready(X);
}

fn dl_1_cluster_cidr_covers_pods_of_other_nodes(t: &mut Test) {
    web(t);
    t.check([
        flow(R, VIP, 80).reaches([kept(P1), kept(X)]),
        flow(P2, VIP, 80).reaches([kept(P1), kept(X)]),
        flow(X, VIP, 80).reaches([masqueraded(P1), masqueraded(X)]),
    ]);
}

fn dl_2_node_cidr_covers_pods_of_this_node_only(t: &mut Test) {
    web(t);
    t.check([
        flow(R, VIP, 80).reaches([masqueraded(P1), masqueraded(X)]),
        flow(P2, VIP, 80).reaches([kept(P1), kept(X)]),
        flow(HOST_ALT, VIP, 80).reaches([masqueraded(P1), masqueraded(X)]),
    ]);
}

fn dl_3_bridge_interface(t: &mut Test) {
    web(t);
    t.check([
        flow(R, VIP, 80).reaches([masqueraded(P1), masqueraded(X)]),
        flow(P2, VIP, 80).reaches([kept(P1), kept(X)]),
        flow(HOST_ALT, VIP, 80).reaches([masqueraded(P1), masqueraded(X)]),
    ]);
}

fn dl_4_interface_prefix_covers_new_interfaces(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(R);
    t.check([
        flow(P1, VIP, 80).reaches([masqueraded(R)]),
        flow(HOST_ALT, VIP, 80).reaches([masqueraded(R)]),
    ]);
    t.ip_tool(Site::N, "link set p1 down");
    t.ip_tool(Site::N, "link set p1 name cali123");
    t.ip_tool(Site::N, "link set cali123 up");
    t.ip_tool(
        Site::N,
        "addr replace fd00:244:0:1::1/128 dev cali123 nodad",
    );
    for family in Family::ALL {
        t.ip_tool(
            Site::N,
            &format!("route replace {} dev cali123", P1.addr.prefix(family)),
        );
    }
    t.observe([
        flow(P1, VIP, 80).reaches([kept(R)]),
        flow(P2, VIP, 80).reaches([masqueraded(R)]),
    ]);
}

fn dl_5_without_cidr_there_is_no_detector(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(30_080)
        .external_local();
    t.endpoints("web").ready(P2).ready(R);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2), kept(R)]),
        flow(X, VIP, 80).reaches([kept(P2), kept(R)]),
        flow(P1, NODE, 30_080).reaches([kept(P2)]),
        flow(HOST_ALT, NODE, 30_080).reaches([masqueraded(P2), masqueraded(R)]),
    ]);
}

fn dl_6_families_are_judged_separately(t: &mut Test) {
    web(t);
    t.check([flow(X, VIP, 80).reaches(match t.family {
        Family::V4 => [masqueraded(P1), masqueraded(X)],
        // Without a detector only hairpin flows are masqueraded.
        Family::V6 => [kept(P1), masqueraded(X)],
    })]);
}

fn dl_7_remote_pods_are_short_circuited_by_cluster_cidr(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(30_080)
        .external_local();
    t.endpoints("web").ready(X);
    t.check([
        flow(R, NODE, 30_080).reaches([kept(X)]),
        flow(X, NODE, 30_080).is_dropped(),
    ]);
}

fn dl_7_remote_pods_are_outsiders_by_node_cidr(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(30_080)
        .external_local();
    t.endpoints("web").ready(X);
    t.check([
        flow(R, NODE, 30_080).is_dropped(),
        flow(P1, NODE, 30_080).reaches([kept(X)]),
    ]);
}
