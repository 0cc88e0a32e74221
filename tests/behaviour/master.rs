//! M1 and M2: the two master tables of SPEC §0, whole, as flows.
//!
//! Every cell is a source class, a kind of frontend and a policy; the table's results are written here a second time, by hand.

use proxy_tests::address::{
    Addr, EXTERNAL_IP, HOST, HOST_ALT, Host, LB_VIP, NODE, P1, P2, R, UNALLOCATED, VIP, X, X2,
};
use proxy_tests::case;
use proxy_tests::flow::{Flow, Landing, flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};

const PORT: u16 = 30_080;

pub(crate) fn cases() -> Vec<Case> {
    let none = ["--cluster-cidr="];
    let all = ["--masquerade-all"];
    let both = ["--cluster-cidr=", "--masquerade-all"];
    vec![
        case!(m1_policies_cluster).routed_and_bridged(),
        case!(m1_policies_local).routed_and_bridged(),
        case!(m1_policies_cluster_without_detector).flags(&none),
        case!(m1_policies_local_without_detector).flags(&none),
        case!(m1_policies_cluster_masquerade_all).flags(&all),
        case!(m1_policies_local_masquerade_all).flags(&all),
        case!(m1_policies_cluster_without_detector_masquerade_all).flags(&both),
        case!(m1_policies_local_without_detector_masquerade_all).flags(&both),
        case!(m1_hairpin_rows).routed_and_bridged(),
        case!(m2_no_endpoints_anywhere).routed_and_bridged(),
        case!(m2_local_policies_without_local_endpoint).routed_and_bridged(),
        case!(m2_source_ranges).routed_and_bridged(),
        case!(m2_known_cluster_ip_unknown_port_and_unallocated_address).routed_and_bridged(),
        case!(m2_other_ports_are_untouched),
    ]
}

const EXTERNAL: [(Addr, u16); 3] = [(NODE, PORT), (EXTERNAL_IP, 80), (LB_VIP, 80)];

fn web(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(PORT)
        .external_ip(EXTERNAL_IP);
    t.service("web").load_balancer(LB_VIP);
}

fn land(hosts: &[Host], masquerade: bool) -> Vec<Landing> {
    hosts
        .iter()
        .map(|host| {
            if masquerade {
                masqueraded(*host)
            } else {
                kept(*host)
            }
        })
        .collect()
}

/// All rows of M1 for one pair of policies.
fn m1(t: &mut Test, local: bool, detector: bool, masquerade_all: bool) {
    web(t);
    if local {
        t.service("web").internal_local().external_local();
    }
    t.endpoints("web").ready(P2).ready(R);
    let cluster = [P2, R];
    let in_force: &[Host] = if local { &[P2] } else { &cluster };
    let mut flows = vec![
        flow(P1, VIP, 80).reaches(land(in_force, masquerade_all)),
        flow(HOST_ALT, VIP, 80).reaches(land(in_force, detector || masquerade_all)),
        flow(X, VIP, 80).reaches(land(in_force, detector || masquerade_all)),
    ];
    for (to, port) in EXTERNAL {
        let ask = |client| flow(client, to, port);
        if local {
            // Without detector there is no POD class: pods count as EXTN.
            flows.push(ask(P1).reaches(land(if detector { &cluster } else { &[P2] }, false)));
            flows.push(ask(HOST_ALT).reaches(land(&cluster, true)));
            flows.push(ask(X).reaches(land(&[P2], false)));
        } else {
            flows.extend([P1, HOST_ALT, X].map(|c| ask(c).reaches(land(&cluster, true))));
        }
    }
    t.check(flows);
}

fn m1_policies_cluster(t: &mut Test) {
    m1(t, false, true, false);
}

fn m1_policies_local(t: &mut Test) {
    m1(t, true, true, false);
}

fn m1_policies_cluster_without_detector(t: &mut Test) {
    m1(t, false, false, false);
}

fn m1_policies_local_without_detector(t: &mut Test) {
    m1(t, true, false, false);
}

fn m1_policies_cluster_masquerade_all(t: &mut Test) {
    m1(t, false, true, true);
}

fn m1_policies_local_masquerade_all(t: &mut Test) {
    m1(t, true, true, true);
}

fn m1_policies_cluster_without_detector_masquerade_all(t: &mut Test) {
    m1(t, false, false, true);
}

fn m1_policies_local_without_detector_masquerade_all(t: &mut Test) {
    m1(t, true, false, true);
}

fn m1_hairpin_rows(t: &mut Test) {
    for local in [false, true] {
        web(t);
        if local {
            t.service("web").internal_local().external_local();
        }
        t.endpoints("web").clear().ready(P1);
        let mut flows = vec![flow(P1, VIP, 80).reaches([masqueraded(P1)])];
        flows.extend(EXTERNAL.map(|(to, port)| flow(P1, to, port).reaches([masqueraded(P1)])));
        t.check(flows);
        t.delete_service("web");
    }
}

fn m2_no_endpoints_anywhere(t: &mut Test) {
    for local in [false, true] {
        web(t);
        if local {
            t.service("web").internal_local().external_local();
        }
        let mut flows = Vec::new();
        for client in [P1, HOST, X] {
            flows.push(flow(client, VIP, 80).is_rejected());
            flows.extend(EXTERNAL.map(|(to, port)| flow(client, to, port).is_rejected()));
        }
        t.check(flows);
        t.delete_service("web");
    }
}

fn m2_local_policies_without_local_endpoint(t: &mut Test) {
    web(t);
    t.service("web").internal_local().external_local();
    t.endpoints("web").ready(R);
    let mut flows: Vec<Flow> = [P1, HOST, X]
        .map(|client| flow(client, VIP, 80).is_dropped())
        .to_vec();
    for (to, port) in EXTERNAL {
        flows.push(flow(P1, to, port).reaches([kept(R)]));
        flows.push(flow(HOST_ALT, to, port).reaches([masqueraded(R)]));
        flows.push(flow(X, to, port).is_dropped());
    }
    t.check(flows);
}

fn m2_source_ranges(t: &mut Test) {
    web(t);
    let range = X2.addr.prefix(t.family);
    t.service("web").source_ranges(&[&range]);
    t.endpoints("web").ready(P2);
    let mut flows: Vec<Flow> = [P1, HOST, X]
        .map(|client| flow(client, LB_VIP, 80).is_dropped())
        .to_vec();
    flows.push(flow(X2, LB_VIP, 80).reaches([masqueraded(P2)]));
    flows.push(flow(X, EXTERNAL_IP, 80).reaches([masqueraded(P2)]));
    t.check(flows);
}

fn m2_known_cluster_ip_unknown_port_and_unallocated_address(t: &mut Test) {
    web(t);
    t.endpoints("web").ready(P2);
    let mut flows = Vec::new();
    for client in [P1, HOST, X] {
        flows.push(flow(client, VIP, 81).is_rejected());
        flows.push(flow(client, UNALLOCATED, 80).is_dropped());
    }
    t.check(flows);
}

fn m2_other_ports_are_untouched(t: &mut Test) {
    use proxy_tests::address::{LOOPBACK, OUT, Protocol};
    web(t);
    t.endpoints("web").ready(P2);
    let mut flows = Vec::new();
    for client in [P1, HOST, X] {
        flows.push(flow(client, EXTERNAL_IP, 81).reaches([kept(OUT)]));
        flows.push(flow(client, LB_VIP, 81).reaches([kept(OUT)]));
        if t.protocol != Protocol::Sctp {
            flows.push(flow(client, NODE, PORT + 1).finds_nobody());
        }
    }
    if t.protocol != Protocol::Sctp {
        flows.push(flow(HOST, LOOPBACK, PORT).finds_nobody());
    }
    t.check(flows);
}
