//! Which endpoints are eligible: areas TERM, TOPO and EPS.

use std::sync::Arc;

use super::world::{
    BALANCER, P1, P2, R, VIP, X, ask, environment, hinted, input, only, port, ready, service,
    slice, terminating,
};
use crate::compile::Environment;
use crate::model::ServiceInput;
use crate::model::{Endpoint, Service, SlicePort, TrafficPolicy};

fn cluster(endpoints: &[Endpoint]) -> String {
    let services = only(input(service("web"), endpoints));
    ask(
        &services,
        &environment(),
        ("10.244.9.9", Some("veth9")),
        (VIP, 80),
    )
}

fn external_local(endpoints: &[Endpoint]) -> String {
    let service = Service {
        external_policy: TrafficPolicy::Local,
        ..service("web")
    };
    let services = only(input(service, endpoints));
    ask(
        &services,
        &environment(),
        (X, Some("uplink")),
        (BALANCER, 80),
    )
}

#[test]
fn term_1_ready_endpoints_exclude_terminating_ones() {
    assert_eq!(
        cluster(&[ready(P1, "node-n"), terminating(P2, "node-n")]),
        P1
    );
}

#[test]
fn term_2_serving_and_terminating_endpoints_are_the_fallback() {
    assert_eq!(cluster(&[terminating(P2, "node-n")]), P2);
}

#[test]
fn term_3_cluster_and_local_fall_back_independently() {
    let endpoints = [terminating(P2, "node-n"), ready(R, "other-node")];
    assert_eq!(cluster(&endpoints), R);
    assert_eq!(external_local(&endpoints), P2);
}

#[test]
fn term_4_unready_endpoints_are_never_eligible() {
    let unready = Endpoint {
        ready: false,
        ..ready(P1, "node-n")
    };
    let dead = Endpoint {
        serving: false,
        ..terminating(P2, "node-n")
    };
    assert_eq!(cluster(&[unready, dead]), "reject");
}

#[test]
fn term_5_a_remote_fallback_still_counts_as_any() {
    let endpoints = [terminating(R, "other-node")];
    assert_eq!(cluster(&endpoints), R);
    assert_eq!(external_local(&endpoints), "drop");
}

#[test]
fn term_6_the_fallback_ignores_hints() {
    let other = hinted(terminating(R, "other-node"), &["zone-b"], &[]);
    let own = hinted(terminating(P1, "node-n"), &["zone-a"], &[]);
    assert_eq!(cluster(&[own, other]), format!("{P1} {R}"));
}

#[test]
fn eps_16_ready_is_enough() {
    let endpoint = Endpoint {
        serving: false,
        terminating: true,
        ..ready(P1, "node-n")
    };
    assert_eq!(cluster(&[endpoint]), P1);
}

#[test]
fn eps_12_an_endpoint_without_node_is_never_local() {
    assert_eq!(
        external_local(&[Endpoint {
            node: None,
            ..ready(P1, "")
        }]),
        "drop"
    );
}

#[test]
fn topo_2_same_node_hints_win() {
    let endpoints = [
        hinted(ready(P1, "node-n"), &["zone-a"], &["node-n"]),
        hinted(ready(P2, "node-n"), &["zone-a"], &["node-m"]),
    ];
    assert_eq!(cluster(&endpoints), P1);
}

#[test]
fn topo_3_same_zone_hints() {
    let endpoints = [
        hinted(ready(P1, "node-n"), &["zone-b", "zone-a"], &[]),
        hinted(ready(R, "other-node"), &["zone-b"], &[]),
    ];
    assert_eq!(cluster(&endpoints), P1);
}

#[test]
fn topo_4_a_missing_hint_a_foreign_zone_or_no_zone_means_no_filter() {
    let both = format!("{P1} {R}");
    let own = || hinted(ready(P1, "node-n"), &["zone-a"], &[]);
    assert_eq!(cluster(&[own(), ready(R, "other-node")]), both);
    let foreign = hinted(ready(P1, "node-n"), &["zone-c"], &[]);
    assert_eq!(
        cluster(&[foreign, hinted(ready(R, "o"), &["zone-b"], &[])]),
        both
    );
    let services = only(input(
        service("web"),
        &[own(), hinted(ready(R, "o"), &["zone-b"], &[])],
    ));
    for zone in [None, Some("".into())] {
        let environment = Environment {
            zone,
            ..environment()
        };
        assert_eq!(
            ask(&services, &environment, ("10.244.9.9", None), (VIP, 80)),
            both
        );
    }
}

#[test]
fn topo_5_unready_endpoints_neither_count_nor_veto() {
    let unready = Endpoint {
        ready: false,
        ..ready(P2, "node-n")
    };
    let own = hinted(ready(P1, "node-n"), &["zone-a"], &[]);
    let other = hinted(ready(R, "other-node"), &["zone-b"], &[]);
    assert_eq!(cluster(&[unready, own, other]), P1);
}

#[test]
fn topo_6_the_zone_step_looks_only_at_zones() {
    let endpoints = [
        hinted(ready(P1, "node-n"), &["zone-a"], &["node-m"]),
        hinted(ready(R, "other-node"), &["zone-b"], &["node-m"]),
    ];
    assert_eq!(cluster(&endpoints), P1);
    let nodes_only = [
        hinted(ready(P1, "n"), &[], &["m"]),
        hinted(ready(R, "o"), &[], &["m"]),
    ];
    assert_eq!(cluster(&nodes_only), format!("{P1} {R}"));
}

#[test]
fn topo_7_hints_never_touch_local() {
    let endpoints = [
        hinted(ready(P1, "node-n"), &["zone-b"], &[]),
        hinted(ready(R, "other-node"), &["zone-a"], &[]),
    ];
    assert_eq!(external_local(&endpoints), P1);
}

#[test]
fn eps_5_and_7_slices_are_united_each_with_its_own_number() {
    let service = service("web");
    let first = slice("slice-a", &service, &[ready(P1, "node-n")]);
    let mut second = slice(
        "slice-b",
        &service,
        &[ready(P1, "node-n"), ready(R, "other-node")],
    );
    let target = SlicePort {
        port: port(8000),
        ..second.ports[0].clone()
    };
    Arc::make_mut(&mut second).ports = [target].into();
    let slices = vec![first, second];
    let services = only(ServiceInput {
        service: Some(Arc::new(service)),
        slices,
    });
    // The same address with two numbers is two endpoints (EPS-9).
    let got = ask(&services, &environment(), ("10.244.9.9", None), (VIP, 80));
    assert_eq!(got, format!("{P1} {P1} {R}"));
}

#[test]
fn eps_10_of_duplicates_the_better_one_counts() {
    for (first, second) in [
        (ready(P1, "node-n"), terminating(P1, "node-n")),
        (terminating(P1, "node-n"), ready(P1, "node-n")),
        (
            ready(P1, "node-n"),
            Endpoint {
                ready: false,
                ..ready(P1, "node-n")
            },
        ),
    ] {
        let service = service("web");
        let slices = vec![
            slice("a", &service, &[first]),
            slice("b", &service, &[second]),
        ];
        let services = only(ServiceInput {
            service: Some(Arc::new(service)),
            slices,
        });
        assert_eq!(
            ask(&services, &environment(), ("10.244.9.9", None), (VIP, 80)),
            P1
        );
    }
}
