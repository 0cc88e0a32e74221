//! Tables M1 and M2 of SPEC §0, row by row.

use super::world::{
    BALANCER, EXTERNAL, N, P1, P2, R, VIP, X, ask, environment, input, ip, only, port, ready,
    service,
};
use crate::config::{DetectLocal, Policy};
use crate::forwarding::{Oracle, Packet, Transport, explain};
use crate::model::{Endpoint, Service, TrafficPolicy};
use crate::net::{Family, L4Proto, V4};

const POD: (&str, Option<&str>) = (P1, Some("veth1"));
const HOST: (&str, Option<&str>) = (N, None);
const EXTN: (&str, Option<&str>) = (X, Some("uplink"));
const CLUSTER_IP: (&str, u16) = (VIP, 80);
const EXTERNALS: [(&str, u16); 3] = [(N, 30_080), (EXTERNAL, 80), (BALANCER, 80)];

/// Source and ingress interface, destination, and where the packet ends.
type Row = (
    (&'static str, Option<&'static str>),
    (&'static str, u16),
    &'static str,
);

fn policies(internal: TrafficPolicy, external: TrafficPolicy) -> Service {
    Service {
        internal_policy: internal,
        external_policy: external,
        ..service("web")
    }
}

fn check(service: &Service, endpoints: &[Endpoint], policy: Policy, rows: &[Row]) {
    let services = only(input(service.clone(), endpoints));
    let environment = crate::compile::Environment {
        policy,
        ..environment()
    };
    for (from, to, expected) in rows {
        let got = ask(&services, &environment, *from, *to);
        assert_eq!(got, *expected, "{from:?} to {to:?}");
    }
}

fn detecting() -> Policy {
    environment().policy
}

fn without_detector() -> Policy {
    Policy {
        detect_local: DetectLocal::ClusterCidr { v4: None, v6: None },
        ..detecting()
    }
}

use TrafficPolicy::{Cluster, Local};

#[test]
fn src_2_cluster_ip_keeps_the_pods_source_and_masquerades_others() {
    let endpoints = [ready(P2, "node-n"), ready(R, "other-node")];
    let rows = [
        (POD, CLUSTER_IP, "10.244.1.12 10.244.2.21"),
        (HOST, CLUSTER_IP, "~10.244.1.12 ~10.244.2.21"),
        (EXTN, CLUSTER_IP, "~10.244.1.12 ~10.244.2.21"),
    ];
    check(&policies(Cluster, Local), &endpoints, detecting(), &rows);
}

#[test]
fn loc_6_internal_local_uses_local_endpoints_for_every_source() {
    let endpoints = [ready(P2, "node-n"), ready(R, "other-node")];
    let rows = [
        (POD, CLUSTER_IP, "10.244.1.12"),
        (HOST, CLUSTER_IP, "~10.244.1.12"),
        (EXTN, CLUSTER_IP, "~10.244.1.12"),
    ];
    check(&policies(Local, Cluster), &endpoints, detecting(), &rows);
}

#[test]
fn src_6_external_cluster_masquerades_everyone() {
    let endpoints = [ready(P2, "node-n"), ready(R, "other-node")];
    for frontend in EXTERNALS {
        let rows = [POD, HOST, EXTN].map(|from| (from, frontend, "~10.244.1.12 ~10.244.2.21"));
        check(&policies(Local, Cluster), &endpoints, detecting(), &rows);
    }
}

#[test]
fn loc_2_external_local_short_circuits_pods_and_the_host() {
    let endpoints = [ready(P2, "node-n"), ready(R, "other-node")];
    for frontend in EXTERNALS {
        let rows = [
            (POD, frontend, "10.244.1.12 10.244.2.21"),
            (HOST, frontend, "~10.244.1.12 ~10.244.2.21"),
            (EXTN, frontend, "10.244.1.12"),
        ];
        check(&policies(Cluster, Local), &endpoints, detecting(), &rows);
    }
}

#[test]
fn src_5_without_detector_nobody_is_masqueraded_towards_a_cluster_ip() {
    let endpoints = [ready(P2, "node-n"), ready(R, "other-node")];
    let both = "10.244.1.12 10.244.2.21";
    let rows = [POD, HOST, EXTN].map(|from| (from, CLUSTER_IP, both));
    check(
        &policies(Cluster, Local),
        &endpoints,
        without_detector(),
        &rows,
    );
}

#[test]
fn loc_5_without_detector_pods_count_as_others() {
    let endpoints = [ready(P2, "node-n"), ready(R, "other-node")];
    let rows = EXTERNALS.map(|frontend| (POD, frontend, "10.244.1.12"));
    check(
        &policies(Cluster, Local),
        &endpoints,
        without_detector(),
        &rows,
    );
}

#[test]
fn src_4_masquerade_all_is_about_cluster_ips_only() {
    let endpoints = [ready(P2, "node-n")];
    let policy = Policy {
        masquerade_all: true,
        ..detecting()
    };
    let rows = [
        (POD, CLUSTER_IP, "~10.244.1.12"),
        (EXTN, CLUSTER_IP, "~10.244.1.12"),
        (POD, (BALANCER, 80), "10.244.1.12"),
        (EXTN, (BALANCER, 80), "10.244.1.12"),
    ];
    check(&policies(Cluster, Local), &endpoints, policy, &rows);
}

#[test]
fn src_9_hairpin_is_masqueraded_also_without_a_node_name() {
    let endpoints = [
        Endpoint {
            node: None,
            ..ready(P1, "")
        },
        ready(R, "other-node"),
    ];
    let rows = [(POD, CLUSTER_IP, "~10.244.1.11 10.244.2.21")];
    check(&policies(Cluster, Local), &endpoints, detecting(), &rows);
}

#[test]
fn rej_1_no_endpoints_reject_everyone_on_every_frontend() {
    for frontend in EXTERNALS.into_iter().chain([CLUSTER_IP]) {
        let rows = [POD, HOST, EXTN].map(|from| (from, frontend, "reject"));
        check(&policies(Local, Local), &[], detecting(), &rows);
        check(&policies(Cluster, Cluster), &[], detecting(), &rows);
    }
}

#[test]
fn loc_7_internal_local_without_local_endpoints_drops() {
    let rows = [POD, HOST, EXTN].map(|from| (from, CLUSTER_IP, "drop"));
    check(
        &policies(Local, Cluster),
        &[ready(R, "other-node")],
        detecting(),
        &rows,
    );
}

#[test]
fn loc_3_external_local_without_local_endpoints_drops_only_others() {
    for frontend in EXTERNALS {
        let rows = [
            (POD, frontend, "10.244.2.21"),
            (HOST, frontend, "~10.244.2.21"),
            (EXTN, frontend, "drop"),
        ];
        check(
            &policies(Cluster, Local),
            &[ready(R, "other-node")],
            detecting(),
            &rows,
        );
    }
}

#[test]
fn fw_2_source_ranges_guard_load_balancer_addresses_only() {
    let guarded = Service {
        source_ranges: ["203.0.113.0/25".parse().unwrap()].into(),
        ..policies(Cluster, Cluster)
    };
    let rows = [
        (EXTN, (BALANCER, 80), "~10.244.1.12"),
        (POD, (BALANCER, 80), "drop"),
        (HOST, (BALANCER, 80), "drop"),
        (POD, (EXTERNAL, 80), "~10.244.1.12"),
        (POD, (N, 30_080), "~10.244.1.12"),
        (POD, CLUSTER_IP, "10.244.1.12"),
    ];
    check(&guarded, &[ready(P2, "node-n")], detecting(), &rows);
    let outsider = [
        (POD, (BALANCER, 80), "drop"),
        (EXTN, (BALANCER, 80), "reject"),
    ];
    check(&guarded, &[], detecting(), &outsider);
}

#[test]
fn fw_3_the_services_own_address_may_come_in_if_the_node_may() {
    let from_vip = (BALANCER, Some("uplink"));
    for (range, expected) in [("192.0.2.0/24", "~10.244.1.12"), ("203.0.113.0/25", "drop")] {
        let ranges = [range.parse().unwrap()].into();
        let guarded = Service {
            source_ranges: ranges,
            ..policies(Cluster, Cluster)
        };
        let rows = [(from_vip, (BALANCER, 80), expected)];
        check(&guarded, &[ready(P2, "node-n")], detecting(), &rows);
    }
}

#[test]
fn fw_5_ranges_that_hold_everyone_are_no_filter() {
    for ranges in [
        vec!["0.0.0.0/0"],
        vec!["0.0.0.0/1", "128.0.0.0/1"],
        vec!["2001:db8::/32"],
    ] {
        let ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
        let open = Service {
            source_ranges: ranges,
            ..policies(Cluster, Cluster)
        };
        let rows = [(POD, (BALANCER, 80), "~10.244.1.12")];
        check(&open, &[ready(P2, "node-n")], detecting(), &rows);
    }
}

#[test]
fn rej_5_and_rej_6_tell_live_from_unallocated() {
    let rows = [
        (POD, (VIP, 81), "reject"),
        (POD, ("10.96.9.9", 80), "drop"),
        (POD, (EXTERNAL, 81), "pass"),
        (POD, (N, 30_081), "pass"),
        (HOST, ("127.0.0.1", 30_080), "pass"),
        (EXTN, ("198.51.100.2", 30_080), "pass"),
    ];
    check(&policies(Cluster, Cluster), &[], detecting(), &rows);
}

#[test]
fn an_explanation_names_class_service_rule_and_backends() {
    let services = only(input(policies(Cluster, Local), &[ready(P2, "node-n")]));
    let (state, _, _) = crate::compile::compile(&services, &environment());
    let packet = Packet {
        source: V4::addr(ip(X)).unwrap(),
        ingress: Some("uplink"),
        destination: V4::addr(ip(BALANCER)).unwrap(),
        transport: Transport::Ports(L4Proto::Tcp, port(80)),
    };
    let text = explain(&Oracle::new(&state), &packet);
    let expected = "packet:   tcp 203.0.113.7 to 203.0.113.251 port 80
source:   EXTN (neither a pod nor this node)
frontend: tcp 203.0.113.251:80 of Service default/web:http/tcp
because:  the frontend's route for this source class (M1)
verdict:  forward to one of 1, each equally likely
          10.244.1.12:8080 sees the source
";
    assert_eq!(text, expected);
}
