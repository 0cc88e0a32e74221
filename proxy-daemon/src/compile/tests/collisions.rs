//! Who gets a frontend that several claim: SVC-14.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::world::{EXTERNAL, P1, P2, VIP, ask, environment, input, ip, ready, service, spec};
use crate::compile::{Compiler, compile};
use crate::model::{Diagnostic, Service, ServiceInput, ServiceName, Services, Subject};
use crate::net::L4Proto;
use crate::sys::{Clock as _, SystemClock};

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

/// A Service with so many ports on one externalIP, named after the round.
fn renamed(name: &str, created: i64, n_ports: u16, round: u16) -> ServiceInput {
    let ports = (0..n_ports).map(|i| spec(&format!("p{round}-{i}"), L4Proto::Tcp, 1000 + i, None));
    let address = if created == 0 { 66 } else { 67 };
    let service = Service {
        cluster_ip_v4: Some([10, 96, 0, address].into()),
        ports: ports.collect(),
        external_ips: [ip(EXTERNAL)].into(),
        created,
        ..thief(name, created)
    };
    input(
        Service {
            load_balancer_ips: Box::default(),
            ..service
        },
        &[],
    )
}

/// What was told and not withdrawn.
#[derive(Default)]
struct Told(BTreeMap<Subject, Vec<Diagnostic>>);

impl Told {
    fn apply(&mut self, compiler: &mut Compiler, changed: BTreeMap<ServiceName, ServiceInput>) {
        let (changed, environment) = (Services::Changed(changed), Arc::new(environment()));
        let mut news = compiler.apply(&changed, &environment);
        self.0.append(&mut news.take_diagnostics());
        self.0.retain(|_, told| !told.is_empty());
    }

    fn n(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

#[test]
fn svc_14_what_was_told_goes_with_its_cause_and_is_bounded() {
    let gone =
        |name: &str| BTreeMap::from([(ServiceName::new("default", name), ServiceInput::default())]);
    // In each order of deletion; both Services rename their ports in turn.
    for order in [["older", "younger"], ["younger", "older"]] {
        let mut compiler = Compiler::new(&environment());
        let mut told = Told::default();
        for round in 0..20 {
            let created = i64::from(round % 3 != 0);
            let name = if created == 0 { "older" } else { "younger" };
            told.apply(
                &mut compiler,
                world(vec![renamed(name, created, 90, round)]),
            );
            assert!(told.n() <= 20, "{} told in round {round}", told.n());
        }
        let younger = ServiceName::new("default", "younger");
        let lines = &told.0[&Subject::Service(younger.clone())];
        assert_eq!(told.0.len(), 1);
        let has = |text: &str| lines.iter().any(|line| line.message.contains(text));
        assert!(has("belongs to default/older:p18-0/tcp"), "{lines:?}");
        assert!(has("74 more of its IPv4 frontends"), "{lines:?}");
        // Whoever of the two goes, the collision is resolved.
        told.apply(&mut compiler, gone(order[0]));
        assert_eq!(told.n(), 0, "{:?}", told.0);
        told.apply(&mut compiler, gone(order[1]));
        assert_eq!(told.n(), 0);
    }
}

/// How long it takes that so many Services come at once and go at once.
fn time_of_many(share_an_address: bool) -> Duration {
    const N: u32 = 2000;
    let name = |n: u32| ServiceName::new("default", format!("svc-{n}"));
    let added = (0..N).map(|n| {
        let own = std::net::Ipv4Addr::from(0xcb00_0000 + n);
        let address = if share_an_address {
            ip(EXTERNAL)
        } else {
            own.into()
        };
        let service = Service {
            cluster_ip_v4: Some(std::net::Ipv4Addr::from(0x0a60_0001 + n)),
            load_balancer_ips: Box::default(),
            external_ips: [address].into(),
            ..thief(&format!("svc-{n}"), i64::from(n))
        };
        (name(n), input(service, &[]))
    });
    let removed = (0..N).map(|n| (name(n), ServiceInput::default()));
    let (added, removed) = (added.collect(), removed.collect());
    let (mut compiler, mut told) = (Compiler::new(&environment()), Told::default());
    let started = SystemClock.now();
    told.apply(&mut compiler, added);
    assert_eq!(told.n() > 1000, share_an_address);
    told.apply(&mut compiler, removed);
    assert_eq!(told.n(), 0);
    SystemClock.now() - started
}

/// Each claimant is visited once, and not once for each other that comes or goes.
#[test]
fn sync_15_thousands_that_share_a_frontend_come_and_go_about_as_fast_as_others() {
    let (apart, shared) = (time_of_many(false), time_of_many(true));
    assert!(shared < 8 * apart, "{apart:?} apart, {shared:?} shared");
}
