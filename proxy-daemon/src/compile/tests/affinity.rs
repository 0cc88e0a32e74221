//! Who gets session affinity where memory for it is limited?

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::world::{cluster_ip_only, environment, input, ip, ready};
use crate::compile::{Compiler, Environment, compile};
use crate::datapath::iptables::AFFINITY_LIMIT;
use crate::forwarding::{Affinity, AffinityLimit, ForwardingState, table};
use crate::model::{AffinityTimeout, Service, ServiceInput, ServiceName, Services};
use crate::net::V4;

fn limited(limit: AffinityLimit) -> Environment {
    let mut environment = environment();
    environment.policy.affinity_limit = Some(limit);
    environment
}

/// A Service with affinity, so old and with so many endpoints.
fn sticky(n: u16, created: i64, n_endpoints: u16) -> ServiceInput {
    let [high, low] = n.to_be_bytes();
    let service = Service {
        affinity: Some(AffinityTimeout::DEFAULT),
        created,
        ..cluster_ip_only(&format!("svc-{n}"), [10, 96, high, low])
    };
    let addresses = (0..n_endpoints).map(u16::to_be_bytes);
    let addresses = addresses.map(|[a, b]| format!("10.244.{a}.{b}"));
    let endpoints: Vec<_> = addresses.map(|a| ready(&ip(&a).to_string(), "r")).collect();
    input(service, &endpoints)
}

fn world(inputs: Vec<ServiceInput>) -> BTreeMap<ServiceName, ServiceInput> {
    let name = |input: &ServiceInput| input.service.as_ref().unwrap().name.clone();
    inputs
        .into_iter()
        .map(|input| (name(&input), input))
        .collect()
}

/// A letter for each ServicePort: whether it has affinity.
fn served(state: &ForwardingState<V4>) -> String {
    let ports = state.service_ports.values().map(|port| port.affinity);
    ports.fold(String::new(), |mut text, affinity| {
        let letter = match affinity {
            Affinity::Off => '.',
            Affinity::Seconds(_) => 'y',
            Affinity::OverLimit => 'n',
        };
        let _infallible = write!(text, "{letter}");
        text
    })
}

/// What iptables mode sets aside: a hog is refused, and nobody else; small before large, old before new.
#[test]
fn affinity_over_the_limit_is_none_and_nobody_else_suffers() {
    let small = AffinityLimit {
        total: 500,
        ..AFFINITY_LIMIT
    };
    for (limit, services, expected) in [
        (AFFINITY_LIMIT, vec![(0, 8_193), (0, 3)], "ny"),
        (AFFINITY_LIMIT, vec![(0, 5_000), (0, 3)], "yy"),
        (AFFINITY_LIMIT, vec![(0, 5_000), (9, 5_000), (9, 3)], "yny"),
        (small, vec![(3, 1), (2, 2), (1, 4), (0, 1)], "nyyy"),
        (small, vec![(0, 9), (1, 1), (2, 1), (3, 1)], "nyyy"),
        // Another endpoint is no reason to stand behind a younger one.
        (small, vec![(0, 5), (1, 1), (2, 1), (3, 1)], "yyyn"),
        (small, vec![(0, 0), (1, 1), (2, 1), (3, 1)], "yyyy"),
    ] {
        let inputs = services.iter().zip(0..);
        let inputs = inputs.map(|((created, n), number)| sticky(number, *created, *n));
        let (state, _, diagnostics) = compile(&world(inputs.collect()), &limited(limit));
        assert_eq!(served(&state), expected, "{services:?}");
        let n_refused = expected.matches('n').count();
        assert_eq!(diagnostics.len(), n_refused, "{diagnostics:?}");
        let told = table(&state).matches("no affinity: over the limit").count();
        assert_eq!(told, n_refused);
    }
    let (state, _, _) = compile(&world(vec![sticky(0, 0, 9_000)]), &environment());
    assert_eq!(served(&state), "y", "a mode without a limit");
}

/// With far more than fit, a change changes nobody but itself and what it moves across the limit.
#[test]
fn a_change_beyond_the_limit_moves_few_others() {
    let environment = Arc::new(limited(AFFINITY_LIMIT));
    let mut compiler = Compiler::new(&environment);
    let all = (0..20_000)
        .map(|n| sticky(n, i64::from(n % 7), 1))
        .collect();
    compiler.apply(&Services::All(world(all)), &environment);
    let n_served = served(compiler.v4()).matches('y').count();
    assert_eq!(n_served, 2048);
    for round in 0..1000_u16 {
        let changed = world(vec![sticky(round * 7 % 20_000, 0, round % 9)]);
        let news = compiler.apply(&Services::Changed(changed), &environment);
        assert!(news.v4.service_ports.len() <= 3);
    }
}
