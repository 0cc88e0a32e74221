//! What do our Node and ServiceCIDRs say?

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::*;

fn node(over: &Json) -> Arc<Node> {
    let base = json!({
        "kind": "Node", "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:0:1::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "n"}, {"type": "ExternalIP", "address": "203.0.113.9"},
            {"type": "InternalIP", "address": "192.0.2.2"}, {"type": "InternalIP", "address": "2001:db8:2::2"}
        ]}
    });
    let decoded = decode(ObjectKind::Node, &with(&base, over));
    assert_eq!(decoded.diagnostics, []);
    match decoded.update {
        Some(Update::Node(_, Some(node))) => node,
        other => panic!("{other:?}"),
    }
}

#[test]
fn node_2_internal_addresses_come_before_external_ones() {
    assert_eq!(
        addresses(&node(&json!({})).addresses().collect::<Vec<_>>()),
        ["192.0.2.2", "2001:db8:2::2", "203.0.113.9"]
    );
    assert_eq!(node(&json!({"status": null})).addresses().count(), 0);
}

#[test]
fn node_4_what_is_no_address_of_a_node_is_none() {
    let read = |status: Json| {
        let object = json!({"kind": "Node", "metadata": {"name": "n"}, "status": status});
        let decoded = decode(ObjectKind::Node, &object);
        let Some(Update::Node(_, Some(node))) = decoded.update else {
            panic!("{:?}", decoded.update);
        };
        let texts = addresses(&node.addresses().collect::<Vec<_>>());
        (texts, decoded.diagnostics.len())
    };
    let internal = |address: &str| json!({"type": "InternalIP", "address": address});
    for (bad, n_faults) in [
        (json!([]), 0),
        (json!(null), 0),
        (json!({}), 1),
        (json!([1]), 1),
        (json!([{"type": "Hostname", "address": "n"}]), 0),
        (json!([internal("")]), 1),
        (
            json!([internal("0.0.0.0"), internal("::"), internal("224.0.0.1")]),
            3,
        ),
    ] {
        let status = json!({"addresses": bad});
        assert_eq!(read(status.clone()), (vec![], n_faults), "{status}");
    }
    let twice = json!({"addresses": [internal("192.0.2.2"), internal("192.0.2.2")]});
    assert_eq!(read(twice), (vec!["192.0.2.2".to_owned()], 0));
}

#[test]
fn node_7_the_zone_is_a_label_and_an_empty_one_is_none() {
    assert_eq!(node(&json!({})).zone.as_deref(), Some("a"));
    assert_eq!(
        node(&json!({"metadata": {"labels": {"topology.kubernetes.io/zone": ""}}})).zone,
        None
    );
    assert_eq!(node(&json!({"metadata": {"labels": null}})).zone, None);
}

#[test]
fn dl_2_pod_networks_are_read_from_the_list_or_from_the_old_field() {
    let cidrs = |over: Json| -> Vec<String> {
        node(&json!({ "spec": over }))
            .pod_cidrs
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(cidrs(json!({})), ["10.244.1.0/24", "fd00:244:0:1::/64"]);
    assert_eq!(cidrs(json!({"podCIDRs": null})), ["10.244.1.0/24"]);
    assert_eq!(
        cidrs(json!({"podCIDRs": null, "podCIDR": null})),
        Vec::<String>::new()
    );
}

#[test]
fn hz_4_a_node_that_is_being_deleted_is_not_eligible() {
    assert!(node(&json!({})).eligible);
    assert!(
        node(&json!({"spec": {"taints": [{"key": "node.kubernetes.io/unreachable"}]}})).eligible
    );
    assert!(
        !node(&json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}})).eligible
    );
    assert!(!node(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})).eligible);
}

#[test]
fn rej_6_every_network_of_a_service_cidr_is_read() {
    let decoded = decode(
        ObjectKind::ServiceCidr,
        &json!({
            "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16", "x", "fd00:96::/112"]}
        }),
    );
    let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|text| text.parse().expect("a network"));
    let expected = ServiceCidr {
        name: "kubernetes".into(),
        cidrs: cidrs.into(),
    };
    let expected = Update::ServiceCidr("kubernetes".into(), Some(Arc::new(expected)));
    assert_eq!(decoded.update, Some(expected));
    assert_eq!(fields(&decoded.diagnostics), ["spec.cidrs[1]"]);
}
