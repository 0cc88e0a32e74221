//! Does decoding mean what SPEC says, and does it survive everything else?

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one variant and fails on all others"
)]

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::wire::Object;
use super::{Author, Decoded, Decoder, ObjectKey, ObjectKind, Value};
use crate::model::{
    AffinityTimeout, EndpointSlice, Node, Service, ServiceCidr, ServiceKind, TrafficPolicy,
};
use crate::net::{IpFamily, L4Proto};

fn decode_as(author: Author, kind: ObjectKind, json: &Json) -> Decoded {
    let text = json.to_string();
    let object: Object<'_> = serde_json::from_str(&text).expect("JSON");
    Decoder::new(author).decode(kind, &object)
}

fn decode(kind: ObjectKind, json: &Json) -> Decoded {
    decode_as(Author::ApiServer, kind, json)
}

/// The object with these fields laid over it; `null` takes a field away.
fn with(base: &Json, over: &Json) -> Json {
    match (base, over) {
        (Json::Object(base), Json::Object(over)) => {
            let mut merged = base.clone();
            for (key, value) in over {
                let value = with(base.get(key).unwrap_or(&Json::Null), value);
                merged.insert(key.clone(), value);
            }
            Json::Object(merged)
        }
        _ => over.clone(),
    }
}

fn web() -> Json {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ipFamilies": ["IPv4"], "sessionAffinity": "None",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]
        },
        "status": {"loadBalancer": {}}
    })
}

fn web_slice() -> Json {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "default",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.11"], "conditions": {"ready": true},
                       "nodeName": "n", "zone": "a"}]
    })
}

fn service_and_faults(over: &Json) -> (Option<Arc<Service>>, Vec<String>) {
    let decoded = decode(ObjectKind::Service, &with(&web(), over));
    let service = match decoded.value {
        Value::Service(service) => Some(service),
        _ => None,
    };
    (service, fields(&decoded.diagnostics))
}

fn fields(diagnostics: &[crate::model::Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(|d| d.field.clone()).collect()
}

/// A Service that must be served without complaint.
#[track_caller]
fn service(over: &Json) -> Arc<Service> {
    let (service, faults) = service_and_faults(over);
    assert_eq!(faults, Vec::<String>::new());
    service.expect("a Service")
}

fn slice_and_faults(over: &Json) -> (Option<Arc<EndpointSlice>>, Vec<String>) {
    let decoded = decode(ObjectKind::EndpointSlice, &with(&web_slice(), over));
    let slice = match decoded.value {
        Value::EndpointSlice(slice) => Some(slice),
        _ => None,
    };
    (slice, fields(&decoded.diagnostics))
}

#[track_caller]
fn slice(over: &Json) -> Arc<EndpointSlice> {
    let (slice, faults) = slice_and_faults(over);
    assert_eq!(faults, Vec::<String>::new());
    slice.expect("an EndpointSlice")
}

fn addresses(list: &[IpAddr]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn svc_1_service_proxy_name_label_hides_the_service_whatever_its_value() {
    for value in ["", "other"] {
        let labels =
            json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": value}}});
        assert_eq!(service_and_faults(&labels), (None, vec![]));
    }
}

#[test]
fn svc_3_headless_and_external_name_services_produce_nothing() {
    for over in [
        json!({"spec": {"clusterIP": ""}}),
        json!({"spec": {"clusterIP": null}}),
        json!({"spec": {"clusterIP": "None"}}),
        json!({"spec": {"type": "ExternalName"}}),
    ] {
        assert_eq!(service_and_faults(&over), (None, vec![]), "{over}");
    }
}

#[test]
fn svc_6_fields_are_read_and_all_others_ignored() {
    let plain = service(&json!({}));
    assert_eq!(plain.created, 1_767_225_600);
    assert_eq!(plain.kind, ServiceKind::ClusterIp);
    assert_eq!(plain.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(plain.external_policy, TrafficPolicy::Cluster);
    let ignored = service(&json!({
        "metadata": {"annotations": {"x": "y"}, "resourceVersion": "7", "labels": {"a": "b"}},
        "spec": {"selector": {"a": "b"}, "publishNotReadyAddresses": true, "loadBalancerIP": "1.2.3.4",
                 "trafficDistribution": "PreferClose", "allocateLoadBalancerNodePorts": false}
    }));
    assert_eq!(plain, ignored);
}

#[test]
fn svc_9_node_port_and_ingress_are_honoured_regardless_of_type() {
    let read = service(&json!({
        "spec": {"ports": [{"port": 80, "nodePort": 30080}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}
    }));
    assert_eq!(
        read.ports[0].node_port.map(crate::net::Port::get),
        Some(30080)
    );
    assert_eq!(addresses(&read.load_balancer_ips), ["203.0.113.1"]);
    let none = service(&json!({"spec": {"ports": [{"port": 80, "nodePort": 0}]}}));
    assert_eq!(none.ports[0].node_port, None);
}

#[test]
fn svc_9_external_policy_counts_only_where_there_are_external_addresses() {
    let policy = |over: Json| {
        service(&with(
            &json!({"spec": {"externalTrafficPolicy": "Local"}}),
            &over,
        ))
        .external_policy
    };
    assert_eq!(policy(json!({})), TrafficPolicy::Cluster);
    assert_eq!(
        policy(json!({"spec": {"type": "NodePort"}})),
        TrafficPolicy::Local
    );
    assert_eq!(
        policy(json!({"spec": {"type": "LoadBalancer"}})),
        TrafficPolicy::Local
    );
    assert_eq!(
        policy(json!({"spec": {"externalIPs": ["203.0.113.1"]}})),
        TrafficPolicy::Local
    );
}

#[test]
fn svc_10_sloppy_addresses_are_normalised_and_bad_ones_skipped() {
    let (read, faults) = service_and_faults(&json!({
        "spec": {"clusterIP": "172.30.0.041", "clusterIPs": ["172.30.0.041"],
                 "externalIPs": ["", "  ", "1.2.3.004", "x", "::ffff:192.0.2.9"],
                 "loadBalancerSourceRanges": ["", "203.0.113.000/025", "nonsense"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "010.0.0.1"}, {"ip": "10.0.0.256"}]}}
    }));
    let read = read.expect("a Service");
    assert_eq!(read.cluster_ip_v4, Some([172, 30, 0, 41].into()));
    assert_eq!(addresses(&read.external_ips), ["1.2.3.4", "192.0.2.9"]);
    assert_eq!(addresses(&read.load_balancer_ips), ["10.0.0.1"]);
    assert_eq!(read.source_ranges[0].to_string(), "203.0.113.0/25");
    assert_eq!(
        faults,
        [
            "spec.externalIPs[3]",
            "status.loadBalancer.ingress[1].ip",
            "spec.loadBalancerSourceRanges[2]"
        ]
    );
}

#[test]
fn svc_11_affinity_without_configuration_has_the_default_timeout() {
    let affinity = |over: Json| {
        service_and_faults(&with(
            &json!({"spec": {"sessionAffinity": "ClientIP"}}),
            &over,
        ))
    };
    for config in [
        json!({}),
        json!({"spec": {"sessionAffinityConfig": {}}}),
        json!({"spec": {"sessionAffinityConfig": {"clientIP": {}}}}),
    ] {
        let (read, faults) = affinity(config);
        assert_eq!(
            read.expect("a Service").affinity,
            Some(AffinityTimeout::DEFAULT)
        );
        assert_eq!(faults, Vec::<String>::new());
    }
    let config = |seconds: i64| json!({"spec": {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}});
    assert_eq!(
        affinity(config(5)).0.expect("a Service").affinity,
        AffinityTimeout::new(5)
    );
    for absurd in [0, -1, 86_401, i64::MAX] {
        let (read, faults) = affinity(config(absurd));
        assert_eq!(
            read.expect("a Service").affinity,
            Some(AffinityTimeout::DEFAULT)
        );
        assert_eq!(
            faults,
            ["spec.sessionAffinityConfig.clientIP.timeoutSeconds"]
        );
    }
    assert_eq!(service(&config(5)).affinity, None);
}

#[test]
fn svc_14_an_object_without_creation_time_is_the_youngest() {
    assert_eq!(
        service(&json!({"metadata": {"creationTimestamp": null}})).created,
        i64::MAX
    );
    let (read, faults) =
        service_and_faults(&json!({"metadata": {"creationTimestamp": "yesterday"}}));
    assert_eq!(read.expect("a Service").created, i64::MAX);
    assert_eq!(faults, ["metadata.creationTimestamp"]);
}

#[test]
fn svc_8_the_same_number_in_several_protocols_is_several_ports() {
    let read = service(&json!({"spec": {"ports": [
        {"name": "dns", "protocol": "UDP", "port": 53},
        {"name": "dns-tcp", "protocol": "TCP", "port": 53},
        {"name": "dns", "protocol": "SCTP", "port": 53},
    ]}}));
    let protocols: Vec<_> = read.ports.iter().map(|p| p.protocol).collect();
    assert_eq!(protocols, [L4Proto::Udp, L4Proto::Tcp, L4Proto::Sctp]);
}

#[test]
fn svc_7_a_bad_port_does_not_cost_the_others() {
    let (read, faults) = service_and_faults(&json!({"spec": {"ports": [
        {"name": "zero", "port": 0},
        {"name": "big", "port": 65536},
        {"name": "absent"},
        {"name": "text", "port": "80"},
        {"name": "fraction", "port": 80.5},
        {"name": "proto", "port": 80, "protocol": "ICMP"},
        {"name": "Odd/Name", "port": 80},
        {"name": "x".repeat(64), "port": 80},
        "text",
        null,
        {"name": "good", "port": 81, "nodePort": 70000},
        {"name": "good", "port": 82, "protocol": "TCP"},
        {"name": "huge", "port": 1e300},
        {"name": "last", "port": 65535, "protocol": null},
    ]}}));
    let names: Vec<_> = read
        .expect("a Service")
        .ports
        .iter()
        .map(|p| (p.name.to_string(), p.port.get(), p.node_port))
        .collect();
    assert_eq!(
        names,
        [
            ("good".to_owned(), 81, None),
            ("last".to_owned(), 65535, None)
        ]
    );
    assert_eq!(
        faults,
        [
            "spec.ports[8]",
            "spec.ports[0].port",
            "spec.ports[1].port",
            "spec.ports[2].port",
            "spec.ports[3].port",
            "spec.ports[4].port",
            "spec.ports[5].protocol",
            "spec.ports[6].name",
            "spec.ports[7].name",
            "spec.ports[10].nodePort",
            "spec.ports[11]",
            "spec.ports[12].port",
        ]
    );
}

#[test]
fn svc_16_a_service_without_ports_is_accepted() {
    for ports in [json!([]), Json::Null] {
        assert_eq!(service(&json!({"spec": {"ports": ports}})).ports.len(), 0);
    }
}

#[test]
fn ds_3_each_family_has_the_cluster_ip_at_its_index() {
    let ips = |over: Json| {
        let read = service(&json!({ "spec": over }));
        (
            read.cluster_ip_v4.map(|a| a.to_string()),
            read.cluster_ip_v6.map(|a| a.to_string()),
        )
    };
    let v4 = || Some("10.96.0.10".to_owned());
    let v6 = || Some("fd00:96::10".to_owned());
    let both = |a: &str, b: &str, f: &str, g: &str| json!({"clusterIP": a, "clusterIPs": [a, b], "ipFamilies": [f, g]});
    assert_eq!(ips(json!({})), (v4(), None));
    assert_eq!(
        ips(both("10.96.0.10", "fd00:96::10", "IPv4", "IPv6")),
        (v4(), v6())
    );
    assert_eq!(
        ips(both("fd00:96::10", "10.96.0.10", "IPv6", "IPv4")),
        (v4(), v6())
    );
    assert_eq!(ips(json!({"ipFamilies": null})), (v4(), None));
    assert_eq!(
        ips(json!({"ipFamilies": [], "clusterIP": "fd00:96::10", "clusterIPs": ["fd00:96::10"]})),
        (None, v6())
    );
    assert_eq!(ips(json!({"ipFamilies": ["IPv4", "IPv6"]})), (v4(), None));
}

#[test]
fn ds_3_a_cluster_ip_of_the_wrong_family_is_a_fault() {
    let (read, faults) = service_and_faults(&json!({"spec": {"ipFamilies": ["IPv6"]}}));
    assert_eq!(read, None);
    assert_eq!(faults, ["spec.clusterIPs[0]"]);
    let (read, faults) = service_and_faults(&json!({"spec": {"ipFamilies": ["IPv4", "IPv9"]}}));
    assert!(read.is_some());
    assert_eq!(faults, ["spec.ipFamilies[1]"]);
}

#[test]
fn lb_1_ingress_addresses_of_mode_vip_are_captured() {
    let read = service(&json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": null}
    ]}}}));
    assert_eq!(
        addresses(&read.load_balancer_ips),
        ["203.0.113.1", "203.0.113.2", "203.0.113.3"]
    );
}

#[test]
fn lb_2_ingress_addresses_of_mode_proxy_are_not_captured() {
    let read = service(
        &json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "Proxy"}]}}}),
    );
    assert_eq!(read.load_balancer_ips.len(), 0);
}

#[test]
fn lb_3_ingress_with_only_a_host_name_is_ignored() {
    let read = service(
        &json!({"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example"}, {"ip": ""}]}}}),
    );
    assert_eq!(read.load_balancer_ips.len(), 0);
}

#[test]
fn fw_5_source_ranges_are_trimmed_and_bad_ones_ignored() {
    let (read, faults) = service_and_faults(&json!({"spec": {"loadBalancerSourceRanges":
        [" 203.0.113.0/25", "2001:db8::/32\t", "1.2.3.4", 7]}}));
    let ranges: Vec<_> = read
        .expect("a Service")
        .source_ranges
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ranges, ["203.0.113.0/25", "2001:db8::/32"]);
    assert_eq!(
        faults,
        [
            "spec.loadBalancerSourceRanges[3]",
            "spec.loadBalancerSourceRanges[2]"
        ]
    );
}

#[test]
fn unknown_words_have_the_meaning_of_their_absence() {
    let (read, faults) = service_and_faults(&json!({"spec": {
        "type": "Cloud", "internalTrafficPolicy": "Near", "externalTrafficPolicy": 7,
        "sessionAffinity": "Cookie", "healthCheckNodePort": -1
    }}));
    let read = read.expect("a Service");
    assert_eq!(read.kind, ServiceKind::ClusterIp);
    assert_eq!(read.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(read.external_policy, TrafficPolicy::Cluster);
    assert_eq!((read.affinity, read.health_check_port), (None, None));
    assert_eq!(faults.len(), 5);
}

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
fn svc_15_names_of_63_characters_are_kept_in_full() {
    let name = "x".repeat(63);
    let read = service(&json!({"metadata": {"name": name, "namespace": name},
        "spec": {"ports": [{"name": name, "port": 80}]}}));
    assert_eq!(read.name.to_string(), format!("{name}/{name}"));
    assert_eq!(read.ports[0].name.as_ref(), name);
}

#[test]
fn a_file_may_leave_out_what_the_api_server_fills_in() {
    let minimal = json!({
        "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]}
    });
    let decoded = decode_as(Author::File, ObjectKind::Service, &minimal);
    assert_eq!(decoded.diagnostics, []);
    let Value::Service(service) = decoded.value else {
        panic!("{:?}", decoded.value)
    };
    assert_eq!(service.name.to_string(), "default/web");
    assert!(service.cluster_ip_v4.is_some());
    let nameless = with(&web_slice(), &json!({"ports": [{"port": 8080}]}));
    let decoded = decode_as(Author::File, ObjectKind::EndpointSlice, &nameless);
    let Value::EndpointSlice(slice) = decoded.value else {
        panic!("{:?}", decoded.value)
    };
    assert_eq!(slice.ports[0].name.as_ref(), "");
}

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
    let Value::EndpointSlice(slice) = decoded.value else {
        panic!("{:?}", decoded.value)
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
        let Value::EndpointSlice(slice) = decoder.decode(ObjectKind::EndpointSlice, &object).value
        else {
            panic!("no slice")
        };
        Arc::clone(slice.endpoints[0].node.as_ref().expect("a node"))
    };
    assert!(Arc::ptr_eq(&node(), &node()));
}

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
    match decoded.value {
        Value::Node(node) => node,
        other => panic!("{other:?}"),
    }
}

#[test]
fn node_2_internal_addresses_come_before_external_ones() {
    assert_eq!(
        addresses(&node(&json!({})).addresses),
        ["192.0.2.2", "2001:db8:2::2", "203.0.113.9"]
    );
    assert_eq!(node(&json!({"status": null})).addresses.len(), 0);
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
    assert_eq!(decoded.value, Value::ServiceCidr(Arc::new(expected)));
    assert_eq!(fields(&decoded.diagnostics), ["spec.cidrs[1]"]);
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
    assert_eq!(decoded.diagnostics.len(), super::faults::MAX_FAULTS + 1);
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
