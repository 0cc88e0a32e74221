//! Where do the objects of a fake cluster come from?

use std::path::Path;

use anyhow::{Context, Result};
use proxy_daemon::watch::Kind;
use serde_json::{Value, json};

/// The kind of an object, if it is one of ours.
pub(super) fn kind_of(object: &Value) -> Option<Kind> {
    let kind = object["kind"].as_str()?;
    match object["apiVersion"].as_str() {
        Some(version) => Kind::of(version, kind),
        None => Kind::ALL.into_iter().find(|known| known.name() == kind),
    }
}

/// The objects in the manifests of a directory; lists are taken apart.
///
/// # Errors
/// When a file cannot be read or is no YAML.
pub fn read_directory(path: &Path) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    let entries = std::fs::read_dir(path).with_context(|| format!("{}", path.display()))?;
    let mut paths: Vec<_> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    for path in paths {
        let extension = path.extension().unwrap_or_default();
        if !["yaml", "yml", "json"]
            .iter()
            .any(|known| extension == *known)
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let documents: Vec<Value> = if let Ok(object) = serde_json::from_str(&text) {
            vec![object]
        } else {
            let options = serde_saphyr::options! {
                budget: serde_saphyr::budget! {
                    max_events: usize::MAX,
                    max_nodes: usize::MAX,
                    max_documents: usize::MAX,
                    max_total_scalar_bytes: usize::MAX,
                },
                strict_booleans: true,
            };
            serde_saphyr::from_multiple_with_options(&text, options)
                .with_context(|| format!("{}", path.display()))?
        };
        for document in documents {
            match document["items"].as_array() {
                Some(items) => objects.extend(items.iter().cloned()),
                None if document.is_object() => objects.push(document),
                None => {}
            }
        }
    }
    Ok(objects)
}

/// So many Services with so many endpoints each, and the Node and the ServiceCIDR they need.
///
/// Service `svc-i` has the ClusterIP 10.96.0.0 + 256 + i; endpoints are spread over 100 nodes, `node` among them.
pub fn generate(n_services: u32, n_endpoints: u32, node: &str) -> Vec<Value> {
    let address = |base: u32, offset: u32| std::net::Ipv4Addr::from(base + offset).to_string();
    let (vips, pods) = (0x0A60_0100, 0x0AF4_0000);
    let mut objects = vec![
        json!({"kind": "Node", "metadata": {"name": node, "labels": {"topology.kubernetes.io/zone": "zone-a"}},
            "spec": {"podCIDRs": ["10.244.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}}),
        json!({"kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}}),
    ];
    for service in 0..n_services {
        let name = format!("svc-{service}");
        let vip = address(vips, service);
        objects.push(json!({
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "uid": format!("00000000-0000-4000-8000-{service:012}"),
                "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": name}},
            "spec": {"type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "selector": {"app": name},
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]},
            "status": {"loadBalancer": {}}
        }));
        let endpoints = (0..n_endpoints).map(|endpoint| {
            let serial = service * n_endpoints + endpoint;
            let on = if serial.is_multiple_of(100) { node.to_owned() } else { format!("node-{}", serial % 100) };
            json!({
                "addresses": [address(pods, serial)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": on, "zone": "zone-a",
                "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("{name}-{endpoint}"),
                    "uid": format!("00000000-0000-4000-9000-{serial:012}")}
            })
        });
        objects.push(json!({
            "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-abcde"), "namespace": "default",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": endpoints.collect::<Vec<_>>()
        }));
    }
    objects
}
