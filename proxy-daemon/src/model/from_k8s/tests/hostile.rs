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
        assert_eq!(
            (&decoded.key, &decoded.value),
            (&None, &Value::None),
            "{metadata}"
        );
        assert_eq!(decoded.diagnostics.len(), 1);
        assert!(decoded.diagnostics[0].to_string().is_ascii());
    }
    for metadata in [json!(null), json!("x"), json!([])] {
        let mut object = web();
        object["metadata"] = metadata;
        assert_eq!(decode(ObjectKind::Service, &object).key, None);
    }
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
        prop_assert_eq!(decoded.key.is_none() && decoded.diagnostics.is_empty(), false);
        if let Some(ObjectKey::Service(name)) = &decoded.key {
            prop_assert!(name.to_string().bytes().all(|b| b.is_ascii_graphic()));
        }
        prop_assert_eq!(decoded, Decoder::new(author).decode(kind, &object));
    }
}
