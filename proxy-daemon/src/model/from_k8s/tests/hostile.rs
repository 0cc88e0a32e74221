//! What comes of objects that nobody should write?

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

#[test]
fn names_that_no_object_can_have_are_refused() {
    let long = "x".repeat(64);
    for metadata in [
        json!({"name": "UPPER"}),
        json!({"name": "a/b"}),
        json!({"name": "a\n"}),
        json!({"name": "\u{202e}"}),
        json!({ "name": long }),
        json!({"name": ""}),
        json!({"name": null}),
        json!({"name": 7}),
        json!({"namespace": "../x"}),
        json!({"namespace": null}),
        json!({ "namespace": long }),
    ] {
        let decoded = decode(
            ObjectKind::Service,
            &with(&web(), &json!({ "metadata": metadata })),
        );
        assert_eq!(decoded.update, None, "{metadata}");
        assert_eq!(decoded.diagnostics.len(), 1);
        assert!(decoded.diagnostics[0].to_string().is_ascii());
    }
    for metadata in [json!(null), json!("x"), json!([])] {
        let mut object = web();
        object["metadata"] = metadata;
        assert_eq!(decode(ObjectKind::Service, &object).update, None);
    }
}

/// What takes over what the node says to itself, or to everybody on a link.
const SPECIAL: [&str; 11] = [
    "0.0.0.0",
    "127.0.0.1",
    "127.1.2.3",
    "224.0.0.1",
    "239.1.1.1",
    "255.255.255.255",
    "::",
    "::1",
    "ff02::1",
    "ff0e::1",
    "::ffff:127.0.0.1",
];

/// Spec: SVC-10. Loopback is never a frontend, whoever asks for it.
#[test]
fn special_addresses_are_nobodys_frontend() {
    for address in SPECIAL.into_iter().chain(["169.254.169.254", "fe80::1"]) {
        let (service, faults) =
            service_and_faults(&json!({"spec": {"externalIPs": [address, "203.0.113.1"]}}));
        let service = service.expect("served");
        assert_eq!(service.external_ips.len(), 1, "{address}");
        assert!(faults[0].contains("spec.externalIPs[0]"), "{faults:?}");
    }
    for address in SPECIAL {
        let ingress = json!([{"ip": address}, {"ip": "203.0.113.1"}]);
        let over = json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": ingress}}});
        let (service, faults) = service_and_faults(&over);
        let service = service.expect("served");
        assert_eq!(service.load_balancer_ips.len(), 1, "{address}");
        assert!(
            faults[0].contains("status.loadBalancer.ingress[0].ip"),
            "{faults:?}"
        );

        for family in [json!(null), json!(["IPv4"]), json!(["IPv6"])] {
            let over = json!({"spec": {"clusterIP": address, "clusterIPs": [address], "ipFamilies": family}});
            let (service, faults) = service_and_faults(&over);
            assert_eq!(service, None, "{address}");
            assert!(faults[0].contains("spec.clusterIP"), "{faults:?}");
        }
    }
}

#[test]
fn special_addresses_are_nobodys_endpoint() {
    for address in SPECIAL.into_iter().chain(["169.254.169.254", "fe80::1"]) {
        let endpoints = json!([{"addresses": [address]}, {"addresses": ["10.244.1.1"]}, {"addresses": ["fd00::1"]}]);
        for family in ["IPv4", "IPv6"] {
            let over = json!({"addressType": family, "endpoints": endpoints});
            let decoded = decode(ObjectKind::EndpointSlice, &with(&web_slice(), &over));
            let Some(Update::EndpointSlice(_, Some(slice))) = &decoded.update else {
                panic!("{decoded:?}")
            };
            assert_eq!(slice.endpoints.len(), 1, "{address}");
            assert_eq!(decoded.diagnostics[0].field, "endpoints[0].addresses[0]");
        }
    }
}

#[test]
fn a_service_cidr_never_drops_what_the_node_says_to_itself() {
    let cidrs = json!(["0.0.0.0/0", "127.0.0.0/8", "::/0", "10.96.0.0/16"]);
    let object =
        json!({"kind": "ServiceCIDR", "metadata": {"name": "k"}, "spec": {"cidrs": cidrs}});
    let decoded = decode(ObjectKind::ServiceCidr, &object);
    let Some(Update::ServiceCidr(_, Some(cidr))) = &decoded.update else {
        panic!("{decoded:?}")
    };
    assert_eq!(cidr.cidrs.len(), 1);
    assert_eq!(decoded.diagnostics.len(), 3);
}

#[test]
fn diagnostics_of_an_object_are_bounded_and_quote_safely() {
    let endpoints: Vec<_> = (0..5000)
        .map(|_| json!({"addresses": ["\u{1b}[31m".repeat(1000)]}))
        .collect();
    let decoded = decode(
        ObjectKind::EndpointSlice,
        &with(&web_slice(), &json!({ "endpoints": endpoints })),
    );
    assert_eq!(
        decoded.diagnostics.len(),
        crate::model::from_k8s::faults::MAX_FAULTS + 1
    );
    assert!(
        decoded
            .diagnostics
            .iter()
            .all(|d| d.message.len() < 600 && !d.message.contains('\u{1b}'))
    );
    assert!(decoded.diagnostics[16].message.contains("4984"));
}

/// Any JSON value at all, with a liking for what our decoder looks at.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        ".{0,12}".prop_map(Json::from),
        prop_oneof![
            Just("None"),
            Just("10.0.0.1"),
            Just("::ffff:1.2.3.4"),
            Just("10.0.0.0/8"),
            Just("IPv4"),
            Just("Local"),
            Just("ClientIP"),
            Just("UDP"),
            Just("2026-01-01T00:00:00+00:00"),
            Just("")
        ]
        .prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map("[a-zA-Z]{0,8}", inner, 0..4)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

fn n_values(json: &Json) -> usize {
    1 + match json {
        Json::Array(list) => list.iter().map(n_values).sum(),
        Json::Object(map) => map.values().map(n_values).sum(),
        _ => 0,
    }
}

/// Replaces the n-th value, counted depth first.
fn replace(json: &mut Json, n: &mut usize, by: &Json) {
    if *n == 0 {
        *json = by.clone();
        *n = usize::MAX;
        return;
    }
    *n -= 1;
    let children: Vec<&mut Json> = match json {
        Json::Array(list) => list.iter_mut().collect(),
        Json::Object(map) => map.values_mut().collect(),
        _ => vec![],
    };
    for child in children {
        if *n == usize::MAX {
            return;
        }
        replace(child, n, by);
    }
}

fn rich() -> [(ObjectKind, Json); 4] {
    let service = with(
        &web(),
        &json!({
            "metadata": {"labels": {"a": "b"}},
            "spec": {"externalIPs": ["203.0.113.1"], "loadBalancerSourceRanges": ["10.0.0.0/8"],
                     "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
                     "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.2", "ipMode": "VIP"}]}}
        }),
    );
    let slice = with(
        &web_slice(),
        &json!({"endpoints": [{"addresses": ["10.244.1.11"],
        "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "n",
        "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n"}]}}]}),
    );
    let node = json!({"kind": "Node", "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"], "taints": [{"key": "x"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}});
    let cidr = json!({"kind": "ServiceCIDR", "metadata": {"name": "k"}, "spec": {"cidrs": ["10.96.0.0/16"]}});
    [
        (ObjectKind::Service, service),
        (ObjectKind::EndpointSlice, slice),
        (ObjectKind::Node, node),
        (ObjectKind::ServiceCidr, cidr),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_objects_never_panic_and_keep_their_names_clean(
        which in 0_usize..4,
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
        author in prop_oneof![Just(Author::ApiServer), Just(Author::File)],
    ) {
        let (kind, mut object) = rich().into_iter().nth(which).expect("four");
        for (at, by) in &mutations {
            let mut n = at.index(n_values(&object));
            replace(&mut object, &mut n, by);
        }
        let text = object.to_string();
        let Ok(object) = serde_json::from_str::<Object<'_>>(&text) else {
            // Only what is not a mapping at all is refused as a whole.
            prop_assert!(!object.is_object());
            return Ok(());
        };
        let decoded = Decoder::new(author).decode(kind, &object);
        prop_assert_eq!(decoded.update.is_none() && decoded.diagnostics.is_empty(), false);
        if let Some(Update::Service(name, _)) = &decoded.update {
            prop_assert!(name.to_string().bytes().all(|b| b.is_ascii_graphic()));
        }
        prop_assert_eq!(decoded, Decoder::new(author).decode(kind, &object));
    }
}
