//! What is answered besides lists and watches: single objects, events, discovery, errors.

use axum::body::Bytes;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use proxy_daemon::watch::ObjectKind;
use serde_json::{Value, json};

use super::State;
use super::cluster::{group_of, key_of};
use super::serve::Target;

/// What is asked of one object.
pub(super) fn single(state: &State, method: &Method, target: &Target, body: &[u8]) -> Response {
    let json = |code: StatusCode, body: Bytes| {
        (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    };
    let key = match (&target.namespace, &target.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (_, name) => name.clone().unwrap_or_default(),
    };
    let mut cluster = state.cluster.lock().unwrap();
    let response = match method.as_str() {
        "GET" => match cluster.get(target.kind, &key) {
            Some(object) => json(StatusCode::OK, object),
            None => status(404, "there is no such object"),
        },
        "DELETE" => {
            let was_there = cluster.delete(target.kind, &key);
            status(
                if was_there { 200 } else { 404 },
                "deleted, if it was there",
            )
        }
        "POST" | "PUT" | "PATCH" => {
            let Ok(mut object) = serde_json::from_slice::<Value>(body) else {
                return status(400, "the object cannot be read");
            };
            if method == Method::PATCH {
                let Some(mut old) = cluster.source(target.kind, &key) else {
                    return status(404, "there is no such object");
                };
                merge(&mut old, object);
                object = old;
            }
            if let (Some(namespace), true) = (&target.namespace, object["metadata"].is_object()) {
                object["metadata"]["namespace"] = json!(namespace);
            }
            let key = key_of(target.kind, &object);
            cluster.put(target.kind, object);
            let created = method == Method::POST;
            let code = if created {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            json(code, cluster.get(target.kind, &key).unwrap_or_default())
        }
        _ => status(405, "the method is not known"),
    };
    drop(cluster);
    state.changed.send_replace(());
    response
}

/// A JSON merge patch. Source: RFC 7396.
fn merge(into: &mut Value, patch: Value) {
    match patch {
        Value::Object(patch) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (key, value) in patch {
                if value.is_null() {
                    into.as_object_mut().expect("an object").remove(&key);
                } else {
                    merge(&mut into[key], value);
                }
            }
        }
        other => *into = other,
    }
}

/// Everything that is about no object of ours: events, discovery, health.
pub(super) fn other(state: &State, method: &Method, path: &str, body: &[u8]) -> Response {
    let json = |code: StatusCode, value: Value| {
        let text = value.to_string();
        (code, [(header::CONTENT_TYPE, "application/json")], text).into_response()
    };
    let ok = |value: Value| json(StatusCode::OK, value);
    if path.contains("/events") && (method == Method::POST || method == Method::PATCH) {
        let event: Value = serde_json::from_slice(body).unwrap_or_default();
        state.script.lock().unwrap().events.push(event.clone());
        return json(StatusCode::CREATED, event);
    }
    let resources = |group: &str| {
        let resources = ObjectKind::ALL.into_iter().filter(|kind| group_of(*kind).0 == group).map(|kind| {
            let namespaced = matches!(kind, ObjectKind::Service | ObjectKind::EndpointSlice);
            json!({"name": group_of(kind).1, "singularName": kind.name().to_lowercase(), "namespaced": namespaced,
                "kind": kind.name(), "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]})
        });
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group,
            "resources": resources.collect::<Vec<_>>()})
    };
    let group = |name: &str| {
        let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
        json!({"name": name, "versions": [version.clone()], "preferredVersion": version})
    };
    match path.trim_end_matches('/') {
        "/version" => ok(
            json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0-fake", "platform": "linux/amd64"}),
        ),
        "/healthz" | "/readyz" | "/livez" => "ok".into_response(),
        "/api" => ok(json!({"kind": "APIVersions", "versions": ["v1"]})),
        "/apis" => ok(json!({"kind": "APIGroupList", "apiVersion": "v1",
            "groups": [group("discovery.k8s.io"), group("networking.k8s.io"), group("events.k8s.io")]})),
        "/api/v1" => ok(resources("v1")),
        "/apis/discovery.k8s.io/v1" => ok(resources("discovery.k8s.io/v1")),
        "/apis/networking.k8s.io/v1" => ok(resources("networking.k8s.io/v1")),
        "/apis/events.k8s.io/v1" => ok(resources("events.k8s.io/v1")),
        _ => status(404, "the server could not find the requested resource"),
    }
}

pub(super) fn status_body(code: u16, message: &str) -> Vec<u8> {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        504 => "Timeout",
        _ => "Unknown",
    };
    let outcome = if code < 300 { "Success" } else { "Failure" };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": outcome,
        "message": message, "reason": reason, "code": code})
    .to_string()
    .into_bytes()
}

pub(super) fn status(code: u16, message: &str) -> Response {
    let code = StatusCode::from_u16(code).expect("a status");
    let body = status_body(code.as_u16(), message);
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
