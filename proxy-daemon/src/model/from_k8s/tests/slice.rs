//! What do EndpointSlices say?

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::*;

#[test]
fn eps_1_headless_label_hides_the_slice_whatever_its_value() {
    let over = json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}});
    assert_eq!(slice_and_faults(&over), (None, vec![]));
}

#[test]
fn eps_3_a_slice_without_owner_is_ignored_with_a_diagnostic() {
    for label in [Json::Null, json!(""), json!("a/b")] {
        let over = json!({"metadata": {"labels": {"kubernetes.io/service-name": label}}});
        assert_eq!(
            slice_and_faults(&over),
            (None, vec!["metadata.labels".to_owned()])
        );
    }
    assert_eq!(slice(&json!({})).service.to_string(), "default/web");
}

#[test]
fn eps_4_address_type_picks_the_family_and_others_are_ignored() {
    assert_eq!(slice(&json!({})).family, IpFamily::V4);
    let v6 = json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}]});
    assert_eq!(slice(&v6).family, IpFamily::V6);
    assert_eq!(
        slice_and_faults(&json!({"addressType": "FQDN"})),
        (None, vec![])
    );
    for unknown in [json!("IPv5"), Json::Null] {
        assert_eq!(
            slice_and_faults(&json!({ "addressType": unknown })).1,
            ["addressType"]
        );
    }
}

#[test]
fn eps_4_an_address_of_the_other_family_is_a_fault() {
    let (read, faults) = slice_and_faults(&json!({"endpoints": [
        {"addresses": ["fd00::1"]}, {"addresses": ["10.244.1.12"]}
    ]}));
    assert_eq!(read.expect("a slice").endpoints.len(), 1);
    assert_eq!(faults, ["endpoints[0].addresses[0]"]);
}

#[test]
fn eps_6_ports_without_name_or_number_are_ignored_and_tcp_is_the_default() {
    let read = slice(&json!({"ports": [
        {"port": 1}, {"name": null, "port": 2}, {"name": "a"}, {"name": "b", "port": 0},
        {"name": "c", "port": null}, {"name": "", "port": 8080}, {"name": "d", "port": 53, "protocol": "UDP"}
    ]}));
    let ports: Vec<_> = read
        .ports
        .iter()
        .map(|p| (p.name.as_ref(), p.protocol, p.port.get()))
        .collect();
    assert_eq!(ports, [("", L4Proto::Tcp, 8080), ("d", L4Proto::Udp, 53)]);
    assert_eq!(slice(&json!({"ports": null})).ports.len(), 0);
}

#[test]
fn eps_8_only_the_first_address_is_used_and_empty_endpoints_are_ignored() {
    let read = slice(&json!({"endpoints": [
        {"addresses": ["10.244.1.11", "10.244.1.12"]}, {"addresses": []}, {"addresses": null}, {}
    ]}));
    let found: Vec<_> = read
        .endpoints
        .iter()
        .map(|e| e.address.to_string())
        .collect();
    assert_eq!(found, ["10.244.1.11"]);
}

#[test]
fn eps_11_conditions_default_to_ready_serving_and_not_terminating() {
    let conditions = |conditions: Json| {
        let read = slice(
            &json!({"endpoints": [{"addresses": ["10.244.1.11"], "conditions": conditions}]}),
        );
        let endpoint = &read.endpoints[0];
        (endpoint.ready, endpoint.serving, endpoint.terminating)
    };
    assert_eq!(conditions(Json::Null), (true, true, false));
    assert_eq!(conditions(json!({})), (true, true, false));
    assert_eq!(conditions(json!({"ready": false})), (false, true, false));
    assert_eq!(
        conditions(json!({"ready": false, "terminating": true})),
        (false, true, true)
    );
    assert_eq!(
        conditions(json!({"ready": null, "serving": false, "terminating": null})),
        (true, false, false)
    );
}

#[test]
fn eps_12_nil_node_name_is_no_node_and_names_are_compared_as_they_are() {
    assert_eq!(slice(&json!({})).endpoints[0].node.as_deref(), Some("n"));
    for node in [Json::Null, json!("")] {
        let read = slice(&json!({"endpoints": [{"addresses": ["10.244.1.11"], "nodeName": node}]}));
        assert_eq!(read.endpoints[0].node, None);
    }
    let upper = slice(&json!({"endpoints": [{"addresses": ["10.244.1.11"], "nodeName": "Node"}]}));
    assert_eq!(upper.endpoints[0].node.as_deref(), Some("Node"));
}

#[test]
fn topo_1_hints_are_read_and_nothing_else_of_topology() {
    let hints = |hints: Json| {
        let read = slice(
            &json!({"endpoints": [{"addresses": ["10.244.1.11"], "zone": "z",
            "deprecatedTopology": {"topology.kubernetes.io/zone": "y"}, "hints": hints}]}),
        );
        read.endpoints[0].hints.clone()
    };
    for none in [
        Json::Null,
        json!({}),
        json!({"forZones": []}),
        json!({"forNodes": [{"name": ""}, {}]}),
    ] {
        assert_eq!(hints(none), None);
    }
    let both =
        hints(json!({"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n"}]}))
            .expect("hints");
    assert_eq!(
        both.zones.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
        ["a", "b"]
    );
    assert_eq!(
        both.nodes.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
        ["n"]
    );
}

#[test]
fn api_6_the_slice_of_the_kubernetes_service_is_understood() {
    let decoded = decode(
        ObjectKind::EndpointSlice,
        &json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "kubernetes", "namespace": "default",
                         "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4",
            "ports": [{"name": "https", "protocol": "TCP", "port": 6443}],
            "endpoints": [{"addresses": ["192.0.2.2"], "conditions": {"ready": true}}]
        }),
    );
    assert_eq!(decoded.diagnostics, []);
    let Some(Update::EndpointSlice(_, Some(slice))) = decoded.update else {
        panic!("{:?}", decoded.update)
    };
    let endpoint = &slice.endpoints[0];
    assert_eq!(
        (endpoint.ready, endpoint.serving, endpoint.terminating),
        (true, true, false)
    );
    assert_eq!((&endpoint.node, &endpoint.hints), (&None, &None));
}

#[test]
fn names_of_nodes_zones_and_ports_are_shared() {
    let mut decoder = Decoder::new(Author::ApiServer);
    let text = web_slice().to_string();
    let object: Object<'_> = serde_json::from_str(&text).expect("JSON");
    let mut node = || {
        let read = decoder.decode(ObjectKind::EndpointSlice, &object);
        let Some(Update::EndpointSlice(_, Some(slice))) = read.update else {
            panic!("no slice")
        };
        Arc::clone(slice.endpoints[0].node.as_ref().expect("a node"))
    };
    assert!(Arc::ptr_eq(&node(), &node()));
}

/// How fast slices are decoded; to compare two states of the code, run it with `--release --ignored`.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stderr, reason = "its result is for who runs it")]
fn decoding_ten_thousand_slices() {
    let endpoint = |n: usize| {
        json!({
            "addresses": [format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", n % 100), "zone": "a",
            "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("web-{n}")},
        })
    };
    let texts: Vec<String> = (0..10_000)
        .map(|n| {
            let endpoints: Vec<Json> = (10 * n..10 * n + 10).map(endpoint).collect();
            let name = format!("web-{n}");
            let over = json!({"metadata": {"name": name}, "endpoints": endpoints});
            with(&web_slice(), &over).to_string()
        })
        .collect();
    let begun = crate::sys::Clock::now(&crate::sys::SystemClock);
    let mut decoder = Decoder::new(Author::ApiServer);
    for text in &texts {
        let object: Object<'_> = serde_json::from_str(text).expect("JSON");
        let read = decoder.decode(ObjectKind::EndpointSlice, &object);
        assert!(read.diagnostics.is_empty());
    }
    eprintln!("{:?}", begun.elapsed());
}
