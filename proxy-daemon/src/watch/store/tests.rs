//! Does the store end in the same state whatever road led there?

use std::sync::Arc;

use proptest::prelude::*;

use super::{Changed, Store};
use crate::model::from_k8s::{ObjectKind, Update};
use crate::model::{
    Endpoint, EndpointSlice, Node, Service, ServiceCidr, ServiceKind, ServiceName, SliceName,
    TrafficPolicy,
};
use crate::net::IpFamily;

fn name(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

fn service(of: &str, created: i64) -> Arc<Service> {
    Arc::new(Service {
        name: name(of),
        kind: ServiceKind::ClusterIp,
        cluster_ip_v4: None,
        cluster_ip_v6: None,
        ports: Box::default(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_port: None,
        created,
    })
}

fn slice(of: &str, owner: &str, last: u8) -> Arc<EndpointSlice> {
    Arc::new(EndpointSlice {
        name: SliceName::new("default", of),
        service: name(owner),
        family: IpFamily::V4,
        ports: Box::default(),
        endpoints: Box::new([Endpoint {
            address: [10, 244, 1, last].into(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hints: None,
        }]),
    })
}

fn node(zone: &str) -> Arc<Node> {
    Arc::new(Node {
        name: "n".into(),
        internal_ips: Box::default(),
        external_ips: Box::default(),
        zone: Some(zone.into()),
        pod_cidrs: Box::default(),
        eligible: true,
    })
}

fn put_slice(store: &mut Store, slice: &Arc<EndpointSlice>) -> Changed {
    store.set_slice(&slice.name, Some(Arc::clone(slice)))
}

#[test]
fn sync_12_nothing_is_complete_before_services_and_slices_are_listed() {
    let mut store = Store::default();
    for kind in [
        ObjectKind::Node,
        ObjectKind::ServiceCidr,
        ObjectKind::Service,
    ] {
        store.set_listed(kind);
        assert!(!store.is_complete());
    }
    store.set_listed(ObjectKind::EndpointSlice);
    assert!(store.is_complete());
}

#[test]
fn svc_12_several_changes_between_drains_are_their_net_effect() {
    let mut store = Store::default();
    for created in 0..100 {
        assert_eq!(
            store.set_service(&name("a"), Some(service("a", created))),
            Changed::Yes
        );
    }
    let drained = store.drain();
    assert_eq!(drained.services.len(), 1);
    assert_eq!(drained.services[&name("a")].service, Some(service("a", 99)));
    assert!(!store.is_dirty());
}

#[test]
fn svc_12_an_equal_object_changes_nothing() {
    let mut store = Store::default();
    let (a, s) = (service("a", 1), slice("s", "a", 1));
    assert_eq!(store.set_service(&name("a"), Some(a)), Changed::Yes);
    assert_eq!(put_slice(&mut store, &s), Changed::Yes);
    assert_eq!(store.set_node(node("z")), Changed::Yes);
    store.drain();
    assert_eq!(
        store.set_service(&name("a"), Some(service("a", 1))),
        Changed::No
    );
    assert_eq!(put_slice(&mut store, &slice("s", "a", 1)), Changed::No);
    assert_eq!(store.set_node(node("z")), Changed::No);
    assert_eq!(store.set_service(&name("b"), None), Changed::No);
    assert!(!store.is_dirty());
}

#[test]
fn eps_15_slices_before_and_after_their_service_are_kept() {
    let mut store = Store::default();
    let s = slice("s", "a", 1);
    put_slice(&mut store, &s);
    let input = &store.drain().services[&name("a")];
    assert_eq!((&input.service, input.slices.len()), (&None, 1));
    store.set_service(&name("a"), Some(service("a", 1)));
    assert_eq!(store.drain().services[&name("a")].slices, [s]);
    store.set_service(&name("a"), None);
    let input = &store.drain().services[&name("a")];
    assert_eq!((&input.service, input.slices.len()), (&None, 1));
}

#[test]
fn eps_17_a_changed_slice_makes_its_service_dirty() {
    let mut store = Store::default();
    put_slice(&mut store, &slice("s", "a", 1));
    store.drain();
    assert_eq!(put_slice(&mut store, &slice("s", "a", 2)), Changed::Yes);
    let drained = store.drain();
    assert_eq!(drained.services[&name("a")].slices, [slice("s", "a", 2)]);
}

#[test]
fn eps_18_a_slice_that_names_another_service_moves() {
    let mut store = Store::default();
    put_slice(&mut store, &slice("s", "a", 1));
    put_slice(&mut store, &slice("t", "a", 2));
    store.drain();
    put_slice(&mut store, &slice("s", "b", 1));
    let drained = store.drain();
    assert_eq!(drained.services[&name("a")].slices, [slice("t", "a", 2)]);
    assert_eq!(drained.services[&name("b")].slices, [slice("s", "b", 1)]);
}

#[test]
fn eps_19_no_memory_is_kept_for_what_is_gone() {
    let mut store = Store::default();
    for i in 0..1000 {
        let of = format!("s{i}");
        store.set_service(&name(&of), Some(service(&of, 1)));
        put_slice(&mut store, &slice(&of, &of, 1));
        store.set_service(&name(&of), None);
        store.set_slice(&SliceName::new("default", of), None);
    }
    store.drain();
    assert!(store.services.is_empty() && store.owner.is_empty());
}

#[test]
fn hz_5_a_deleted_node_keeps_its_last_copy() {
    let mut store = Store::default();
    let put = |store: &mut Store, node| store.put(Update::Node("n".into(), node));
    assert_eq!(put(&mut store, Some(node("z"))), Changed::Yes);
    assert_eq!(put(&mut store, None), Changed::No);
    assert_eq!(store.node(), Some(&node("z")));
}

#[test]
fn rej_7_all_service_cidrs_are_told_when_one_changes() {
    let mut store = Store::default();
    let cidr = |of: &str| {
        Arc::new(ServiceCidr {
            name: of.into(),
            cidrs: Box::default(),
        })
    };
    store.put(Update::ServiceCidr("a".into(), Some(cidr("a"))));
    store.put(Update::ServiceCidr("b".into(), Some(cidr("b"))));
    assert_eq!(
        store.drain().service_cidrs,
        Some(vec![cidr("a"), cidr("b")])
    );
    assert_eq!(store.drain().service_cidrs, None);
    store.put(Update::ServiceCidr("a".into(), None));
    assert_eq!(store.drain().service_cidrs, Some(vec![cidr("b")]));
}

#[test]
fn a_new_token_is_told_although_nothing_else_changed() {
    let mut store = Store::default();
    assert_eq!(store.set_source_token(Some("1".into())), Changed::Yes);
    assert!(store.is_dirty());
    let drained = store.drain();
    assert_eq!(drained.source_token.as_deref(), Some("1"));
    assert_eq!((drained.n_updates, drained.services.len()), (0, 0));
    assert_eq!(store.set_source_token(Some("1".into())), Changed::No);
    assert!(!store.is_dirty());
    store.set_node(node("z"));
    assert_eq!(store.drain().source_token.as_deref(), Some("1"));
}

#[derive(Clone, Debug)]
enum Event {
    Service(u8, Option<u8>),
    Slice(u8, Option<(u8, u8)>),
    Drain,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_u8..4, prop::option::of(0_u8..3)).prop_map(|(of, v)| Event::Service(of, v)),
        5 => (0_u8..6, prop::option::of((0_u8..4, 0_u8..3))).prop_map(|(of, v)| Event::Slice(of, v)),
        2 => Just(Event::Drain),
    ]
}

proptest! {
    #[test]
    fn eps_15_what_was_drained_in_the_end_depends_only_on_the_last_events(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut store = Store::default();
        let mut seen = std::collections::BTreeMap::new();
        let mut last = std::collections::BTreeMap::new();
        for event in &events {
            match event {
                Event::Service(of, value) => {
                    let of = of.to_string();
                    store.set_service(&name(&of), value.map(|v| service(&of, v.into())));
                }
                Event::Slice(of, value) => {
                    let key = SliceName::new("default", of.to_string());
                    let value = value.map(|(owner, v)| slice(&of.to_string(), &owner.to_string(), v));
                    store.set_slice(&key, value.clone());
                    last.insert(key, value);
                }
                Event::Drain => seen.extend(store.drain().services),
            }
        }
        seen.extend(store.drain().services);
        // What a fresh store would say of the objects that are left.
        let mut fresh = Store::default();
        for of in 0..4_u8 {
            let of = of.to_string();
            let value = events.iter().rev().find_map(|event| match event {
                Event::Service(service, value) if service.to_string() == of => Some(*value),
                Event::Service(..) | Event::Slice(..) | Event::Drain => None,
            });
            fresh.set_service(&name(&of), value.flatten().map(|v| service(&of, v.into())));
        }
        for (key, value) in last {
            fresh.set_slice(&key, value);
        }
        seen.retain(|_, input| input.service.is_some() || !input.slices.is_empty());
        prop_assert_eq!(seen, fresh.drain().services);
    }
}
