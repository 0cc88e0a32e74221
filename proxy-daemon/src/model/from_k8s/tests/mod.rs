//! Does decoding mean what SPEC says, and does it survive everything else?
//!
//! A test takes an ordinary object and lays over it what differs.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one variant and fails on all others"
)]

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::wire::Object;
use super::{Author, Decoded, Decoder, ObjectKind, Update};
use crate::model::{
    AffinityTimeout, EndpointSlice, Node, Service, ServiceCidr, ServiceKind, TrafficPolicy,
};
use crate::net::{IpFamily, L4Proto};

mod hostile;
mod node;
mod service;
mod slice;

pub(super) fn decode_as(author: Author, kind: ObjectKind, json: &Json) -> Decoded {
    let text = json.to_string();
    let object: Object<'_> = serde_json::from_str(&text).expect("JSON");
    Decoder::new(author).decode(kind, &object)
}

pub(super) fn decode(kind: ObjectKind, json: &Json) -> Decoded {
    decode_as(Author::ApiServer, kind, json)
}

/// The object with these fields laid over it; `null` takes a field away.
pub(super) fn with(base: &Json, over: &Json) -> Json {
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

pub(super) fn web() -> Json {
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

pub(super) fn web_slice() -> Json {
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

pub(super) fn service_and_faults(over: &Json) -> (Option<Arc<Service>>, Vec<String>) {
    let decoded = decode(ObjectKind::Service, &with(&web(), over));
    let service = match decoded.update {
        Some(Update::Service(_, service)) => service,
        _ => None,
    };
    (service, fields(&decoded.diagnostics))
}

pub(super) fn fields(diagnostics: &[crate::model::Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(|d| d.field.clone()).collect()
}

/// A Service that must be served without complaint.
#[track_caller]
pub(super) fn service(over: &Json) -> Arc<Service> {
    let (service, faults) = service_and_faults(over);
    assert_eq!(faults, Vec::<String>::new());
    service.expect("a Service")
}

pub(super) fn slice_and_faults(over: &Json) -> (Option<Arc<EndpointSlice>>, Vec<String>) {
    let decoded = decode(ObjectKind::EndpointSlice, &with(&web_slice(), over));
    let slice = match decoded.update {
        Some(Update::EndpointSlice(_, slice)) => slice,
        _ => None,
    };
    (slice, fields(&decoded.diagnostics))
}

#[track_caller]
pub(super) fn slice(over: &Json) -> Arc<EndpointSlice> {
    let (slice, faults) = slice_and_faults(over);
    assert_eq!(faults, Vec::<String>::new());
    slice.expect("an EndpointSlice")
}

pub(super) fn addresses(list: &[IpAddr]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}
