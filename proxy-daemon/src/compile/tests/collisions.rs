//! Who gets a frontend that several claim: SVC-14.

use std::collections::BTreeMap;

use super::world::{EXTERNAL, P1, P2, VIP, ask, environment, input, ip, ready, service, spec};
use crate::compile::compile;
use crate::model::ServiceInput;
use crate::model::{Service, ServiceName};
use crate::net::L4Proto;

fn thief(name: &str, created: i64) -> Service {
    Service {
        cluster_ip_v4: Some("10.96.0.66".parse().unwrap()),
        ports: [spec("http", L4Proto::Tcp, 80, None)].into(),
        external_ips: [ip(VIP), ip(EXTERNAL)].into(),
        created,
        ..service(name)
    }
}

fn world(inputs: Vec<ServiceInput>) -> BTreeMap<ServiceName, ServiceInput> {
    inputs
        .into_iter()
        .map(|i| (i.service.as_ref().unwrap().name.clone(), i))
        .collect()
}

fn ask_pod(services: &BTreeMap<ServiceName, ServiceInput>, to: &str) -> String {
    ask(
        services,
        &environment(),
        ("10.244.9.9", Some("veth9")),
        (to, 80),
    )
}

#[test]
fn svc_14_a_cluster_ip_beats_an_older_external_ip() {
    let victim = input(
        Service {
            created: 100,
            ..service("web")
        },
        &[ready(P1, "node-n")],
    );
    let services = world(vec![
        victim,
        input(thief("thief", 1), &[ready(P2, "node-n")]),
    ]);
    assert_eq!(ask_pod(&services, VIP), P1);
}

#[test]
fn svc_14_then_the_older_then_the_name_and_the_loser_takes_over() {
    let make = |name: &str, created, pod| input(thief(name, created), &[ready(pod, "node-n")]);
    let older = world(vec![make("b", 1, P1), make("a", 2, P2)]);
    assert_eq!(ask_pod(&older, EXTERNAL), format!("~{P1}"));
    let equal = world(vec![make("b", 1, P1), make("a", 1, P2)]);
    assert_eq!(ask_pod(&equal, EXTERNAL), format!("~{P2}"));
    let alone = world(vec![make("b", 1, P1)]);
    assert_eq!(ask_pod(&alone, EXTERNAL), format!("~{P1}"));
}

#[test]
fn svc_14_the_loser_is_named() {
    let make = |name: &str| input(thief(name, 1), &[]);
    let (_, _, diagnostics) = compile(&world(vec![make("b"), make("a")]), &environment());
    let named = diagnostics
        .iter()
        .filter(|d| d.object == "Service default/b:http/tcp");
    assert!(named.count() > 0, "{diagnostics:?}");
}
