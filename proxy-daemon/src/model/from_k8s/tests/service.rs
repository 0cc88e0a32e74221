//! What do Services say?

use serde_json::{Value as Json, json};

use super::*;

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
fn api_5_the_service_of_the_api_server_is_read_like_any_other() {
    let read = decode(
        ObjectKind::Service,
        &json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default", "uid": "x", "resourceVersion": "200",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
                "sessionAffinity": "None",
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": 6443}]},
            "status": {"loadBalancer": {}}
        }),
    );
    assert_eq!(read.diagnostics, []);
    let Some(Update::Service(_, Some(service))) = read.update else {
        panic!("{:?}", read.update)
    };
    assert_eq!(service.cluster_ip_v4, Some([10, 96, 0, 1].into()));
    assert_eq!(service.ports.len(), 1);
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
    let Some(Update::Service(_, Some(service))) = decoded.update else {
        panic!("{:?}", decoded.update)
    };
    assert_eq!(service.name.to_string(), "default/web");
    assert!(service.cluster_ip_v4.is_some());
    let nameless = with(&web_slice(), &json!({"ports": [{"port": 8080}]}));
    let decoded = decode_as(Author::File, ObjectKind::EndpointSlice, &nameless);
    let Some(Update::EndpointSlice(_, Some(slice))) = decoded.update else {
        panic!("{:?}", decoded.update)
    };
    assert_eq!(slice.ports[0].name.as_ref(), "");
}
