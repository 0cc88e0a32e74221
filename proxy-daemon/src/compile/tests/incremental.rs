//! The state depends on the current objects, never on the road to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::world::{environment, ip, ready, service, slice, spec, terminating};
use crate::compile::{Compiler, Environment, compile};
use crate::forwarding::{AffinityLimit, Changes, Exposure, ForwardingState, FrontendAddress};
use crate::model::{
    Endpoint, EndpointSlice, Service, ServiceName, Services, SliceName, TrafficPolicy,
};
use crate::net::{Family, L4Proto};
use crate::watch::{ObjectKind, Store};

/// What happens to the store or the environment in one step.
#[derive(Clone, Debug)]
enum Event {
    Service(u8, Option<Shape>),
    Slice {
        name: u8,
        owner: u8,
        endpoints: Option<Vec<(u8, u8)>>,
    },
    Environment {
        zone: u8,
        detector: bool,
    },
    /// The compiler takes in what came so far.
    Sync,
}

#[derive(Clone, Debug)]
struct Shape {
    address: u8,
    external: u8,
    node_port: u8,
    created: i64,
    flags: u8,
}

fn event() -> impl Strategy<Value = Event> {
    let shape = (0..3u8, 0..4u8, 0..4u8, 0..2i64, 0..16u8).prop_map(
        |(address, external, node_port, created, flags)| Shape {
            address,
            external,
            node_port,
            created,
            flags,
        },
    );
    let endpoints = proptest::collection::vec((0..4u8, 0..6u8), 0..4);
    prop_oneof![
        4 => (0..4u8, proptest::option::weighted(0.8, shape)).prop_map(|(n, s)| Event::Service(n, s)),
        4 => (0..4u8, 0..4u8, proptest::option::weighted(0.8, endpoints))
            .prop_map(|(name, owner, endpoints)| Event::Slice { name, owner, endpoints }),
        1 => (0..2u8, any::<bool>()).prop_map(|(zone, detector)| Event::Environment { zone, detector }),
        2 => Just(Event::Sync),
    ]
}

fn name(n: u8) -> ServiceName {
    ServiceName::new("default", format!("svc-{n}"))
}

fn build_service(n: u8, shape: &Shape) -> Arc<Service> {
    let policy = |bit| {
        if shape.flags & bit == 0 {
            TrafficPolicy::Cluster
        } else {
            TrafficPolicy::Local
        }
    };
    let node_port = (shape.node_port > 0).then(|| 30_000 + u16::from(shape.node_port));
    Arc::new(Service {
        name: name(n),
        cluster_ip_v4: Some([10, 96, 0, shape.address + 1].into()),
        ports: [
            spec("http", L4Proto::Tcp, 80, node_port),
            spec("dns", L4Proto::Udp, 53, None),
        ]
        .into(),
        external_ips: [ip(&format!("10.96.0.{}", shape.external + 1))].into(),
        load_balancer_ips: [ip(&format!("203.0.113.{}", shape.external))].into(),
        internal_policy: policy(1),
        external_policy: policy(2),
        affinity: (shape.flags & 8 != 0).then_some(crate::model::AffinityTimeout::DEFAULT),
        created: shape.created,
        ..service("any")
    })
}

fn build_slice(n: u8, owner: u8, endpoints: &[(u8, u8)]) -> Arc<EndpointSlice> {
    let shape = Shape {
        address: 0,
        external: 0,
        node_port: 0,
        created: 0,
        flags: 0,
    };
    let owner = build_service(owner, &shape);
    let endpoints: Vec<Endpoint> = endpoints
        .iter()
        .map(|(host, kind)| {
            let address = format!("10.244.1.{host}");
            let node = if kind % 2 == 0 {
                "node-n"
            } else {
                "other-node"
            };
            match kind / 2 {
                0 => ready(&address, node),
                1 => terminating(&address, node),
                _ => Endpoint {
                    ready: false,
                    serving: false,
                    ..ready(&address, node)
                },
            }
        })
        .collect();
    slice(&format!("slice-{n}"), &owner, &endpoints)
}

/// Applies changes the way a datapath would: knowing only what changed.
fn follow<F: Family>(
    mirror: &mut ForwardingState<F>,
    changes: Changes<F>,
    now: &ForwardingState<F>,
) {
    if let Some(old) = changes.globals {
        assert_eq!(mirror.globals, old);
        mirror.globals = now.globals.clone();
    }
    for address in changes.spared_added {
        assert!(mirror.spared.insert(address), "{address} was spared");
    }
    for address in changes.spared_removed {
        assert!(mirror.spared.remove(&address), "{address} was not spared");
    }
    for (id, change) in changes.service_ports {
        assert_ne!(change.old, change.new, "{id} did not change");
        assert_eq!(
            mirror.service_ports.get(&id),
            change.old.as_ref(),
            "{id} was something else"
        );
        match change.new {
            Some(new) => mirror.service_ports.insert(id, new),
            None => mirror.service_ports.remove(&id),
        };
    }
}

fn feed(store: &mut Store, environment: &mut Arc<Environment>, event: &Event) {
    match event {
        Event::Service(n, shape) => {
            let service = shape.as_ref().map(|shape| build_service(*n, shape));
            let _changed = store.set_service(&name(*n), service);
        }
        Event::Slice {
            name,
            owner,
            endpoints,
        } => {
            let slice = endpoints.as_ref().map(|e| build_slice(*name, *owner, e));
            let key = SliceName::new("default", format!("slice-{name}"));
            let _changed = store.set_slice(&key, slice);
        }
        Event::Environment { zone, detector } => {
            let environment = Arc::make_mut(environment);
            environment.zone = Some(format!("zone-{zone}").into());
            environment.policy.detect_local = if *detector {
                super::world::environment().policy.detect_local
            } else {
                crate::config::DetectLocal::NodeCidr
            };
        }
        Event::Sync => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Spec: SYNC-5, SVC-12, EPS-15.
    #[test]
    fn sync_5_every_road_ends_in_the_same_state(
        events in proptest::collection::vec(event(), 0..40),
        twice in any::<bool>(),
    ) {
        let mut environment = environment();
        environment.policy.affinity_limit = Some(AffinityLimit {
            total: 400,
            per_backend: &[128, 64, 64, 32],
        });
        let mut environment = Arc::new(environment);
        let mut store = Store::default();
        store.set_listed(ObjectKind::Service);
        store.set_listed(ObjectKind::EndpointSlice);
        let mut compiler = Compiler::new(&environment);
        let mut mirror_v4 = compiler.v4().clone();
        let mut mirror_v6 = compiler.v6().clone();
        let mut told = BTreeMap::new();

        for event in events.iter().chain([&Event::Sync]) {
            for _ in 0..=u8::from(twice) {
                feed(&mut store, &mut environment, event);
            }
            if matches!(event, Event::Sync) {
                let services = if compiler.needs_all(&environment) {
                    store.mark_all();
                    Services::All(store.drain().services)
                } else {
                    Services::Changed(store.drain().services)
                };
                let mut compiled = compiler.apply(&services, &environment);
                told.extend(compiled.take_diagnostics());
                told.retain(|_, told: &mut Vec<_>| !told.is_empty());
                follow(&mut mirror_v4, compiled.v4, compiler.v4());
                follow(&mut mirror_v6, compiled.v6, compiler.v6());
                prop_assert_eq!(&mirror_v4, compiler.v4());
                prop_assert_eq!(&mirror_v6, compiler.v6());
            }
        }
        store.mark_all();
        let everything: BTreeMap<_, _> = store.drain().services;
        let (v4, v6, diagnostics) = compile(&everything, &environment);
        prop_assert_eq!(&v4, compiler.v4());
        prop_assert_eq!(&v6, compiler.v6());
        let told: Vec<_> = told.into_values().flatten().collect();
        prop_assert_eq!(told, diagnostics);
        check_invariants(&v4);
    }
}

/// What every datapath relies on.
fn check_invariants<F: Family>(state: &ForwardingState<F>) {
    let mut keys = std::collections::BTreeSet::new();
    for port in state.service_ports.values() {
        for key in port.frontends.keys() {
            assert!(keys.insert(*key), "{key} belongs to two");
        }
        for (key, frontend) in port.frontends.iter() {
            let is_node_port = frontend.exposure == Exposure::NodePort;
            assert_eq!(key.address == FrontendAddress::Node, is_node_port);
        }
        for routes in port.frontends.values().map(|frontend| frontend.routes) {
            let has_pods = state.globals.detector.is_some();
            assert!(
                has_pods || routes.pod == routes.extn,
                "POD without a detector"
            );
        }
        for set in [&port.cluster, &port.local, &port.live] {
            assert!(set.windows(2).all(|pair| pair[0] < pair[1]), "unsorted");
        }
        for routes in port.frontends.values().map(|frontend| frontend.routes) {
            for route in [routes.pod, routes.host, routes.extn] {
                if let crate::forwarding::Route::Forward { to, .. } = route {
                    assert!(
                        !port.backends(to).is_empty(),
                        "{} forwards nowhere",
                        port.id
                    );
                }
            }
        }
    }
}
