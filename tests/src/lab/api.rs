//! A light API server for measurements: real HTTP, list and watch, objects that were rendered beforehand.
//!
//! It serves four kinds and believes whoever asks: no selectors, no authentication; posts are accepted and forgotten.
//! Invariants: a watch from a list's resourceVersion sees every later event once and in order; what a client is sent was
//! rendered before it asked, so that the server's own work stays small beside what is measured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt as _;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::netns::Netns;

/// What the server can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// v1 Node.
    Node,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
}

impl Kind {
    fn of_path(path: &str) -> Option<Self> {
        Some(match path {
            "/api/v1/services" => Self::Service,
            "/apis/discovery.k8s.io/v1/endpointslices" => Self::EndpointSlice,
            "/api/v1/nodes" => Self::Node,
            "/apis/networking.k8s.io/v1/servicecidrs" => Self::ServiceCidr,
            _ => return None,
        })
    }

    /// `apiVersion` and `kind`.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Service => ("v1", "Service"),
            Self::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice"),
            Self::Node => ("v1", "Node"),
            Self::ServiceCidr => ("networking.k8s.io/v1", "ServiceCIDR"),
        }
    }
}

type Line = Result<Bytes, std::convert::Infallible>;

/// The objects of one kind, and who watches them.
#[derive(Default)]
struct Store {
    /// JSON without `apiVersion` and `kind`, by name.
    objects: BTreeMap<String, String>,
    /// Every event, with its resourceVersion.
    log: Vec<(u64, Bytes)>,
    watchers: Vec<UnboundedSender<Line>>,
    /// The last list that was rendered, and its resourceVersion.
    rendered: Option<(u64, Bytes)>,
    /// The same as the initial events of a streaming list.
    streamed: Option<Bytes>,
}

#[derive(Default)]
struct Shared {
    version: u64,
    stores: BTreeMap<Kind, Store>,
}

/// A running server; it ends with the process.
#[derive(Clone)]
pub struct Api {
    shared: Arc<Mutex<Shared>>,
    /// Where it listens, inside its namespace.
    pub address: SocketAddr,
}

impl Api {
    /// Starts a server on a loopback port of `ns`, with objects by kind and name.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(ns: &Netns, objects: BTreeMap<Kind, BTreeMap<String, String>>) -> Result<Self> {
        let listener = ns
            .enter(|| std::net::TcpListener::bind("127.0.0.1:0"))
            .context("the API server cannot listen")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let mut shared = Shared {
            version: 1000,
            ..Shared::default()
        };
        for (kind, objects) in objects {
            shared.stores.insert(
                kind,
                Store {
                    objects,
                    ..Store::default()
                },
            );
        }
        for kind in [
            Kind::Service,
            Kind::EndpointSlice,
            Kind::Node,
            Kind::ServiceCidr,
        ] {
            shared.list(kind);
            shared.initial_events(kind);
        }
        let api = Self {
            shared: Arc::new(Mutex::new(shared)),
            address,
        };
        let served = api.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let listener =
                    listener.tap_io(|stream| stream.set_nodelay(true).expect("TCP_NODELAY"));
                let router = Router::new().fallback(answer).with_state(served);
                axum::serve(listener, router)
                    .await
                    .expect("serving does not end");
            });
        });
        Ok(api)
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: bench\n\
             clusters: [{{name: bench, cluster: {{server: \"http://{}\"}}}}]\n\
             users: [{{name: bench, user: {{}}}}]\n\
             contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]\n",
            self.address
        )
    }

    /// Replaces an object and tells the watchers; when that was.
    ///
    /// # Panics
    /// When a thread panicked in here before.
    pub fn modify(&self, kind: Kind, name: &str, object: String) -> Instant {
        let mut shared = self.shared.lock().unwrap();
        shared.version += 1;
        let version = shared.version;
        let line = event(kind, "MODIFIED", &object, version);
        let store = shared.stores.entry(kind).or_default();
        store.objects.insert(name.to_owned(), object);
        store.rendered = None;
        store.streamed = None;
        store.log.push((version, line.clone()));
        let at = Instant::now();
        store
            .watchers
            .retain(|watcher| watcher.send(Ok(line.clone())).is_ok());
        at
    }

    /// How many watches of a kind are open.
    ///
    /// # Panics
    /// When a thread panicked in here before.
    pub fn n_watchers(&self, kind: Kind) -> usize {
        let mut shared = self.shared.lock().unwrap();
        let store = shared.stores.entry(kind).or_default();
        store.watchers.retain(|watcher| !watcher.is_closed());
        store.watchers.len()
    }
}

impl Shared {
    /// The list of a kind, rendered once per version.
    fn list(&mut self, kind: Kind) -> Bytes {
        let version = self.version;
        let store = self.stores.entry(kind).or_default();
        if let Some((_, bytes)) = &store.rendered {
            return bytes.clone();
        }
        let (api, name) = kind.names();
        let mut text = format!(
            "{{\"kind\":\"{name}List\",\"apiVersion\":\"{api}\",\"metadata\":{{\"resourceVersion\":\"{version}\"}},\"items\":["
        );
        for (at, object) in store.objects.values().enumerate() {
            if at > 0 {
                text.push(',');
            }
            text.push_str(&object.replacen("\"VERSION\"", &format!("\"{version}\""), 1));
        }
        text.push_str("]}\n");
        let bytes = Bytes::from(text);
        store.rendered = Some((version, bytes.clone()));
        bytes
    }

    /// What a streaming list begins with: all objects, and a bookmark that says so.
    fn initial_events(&mut self, kind: Kind) -> Bytes {
        let version = self.version;
        let store = self.stores.entry(kind).or_default();
        if let Some(bytes) = &store.streamed {
            return bytes.clone();
        }
        let mut text = Vec::new();
        for object in store.objects.values() {
            text.extend_from_slice(&event(kind, "ADDED", object, version));
        }
        let (api, name) = kind.names();
        text.extend_from_slice(
            format!(
                "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"{name}\",\"apiVersion\":\"{api}\",\"metadata\":{{\
                 \"resourceVersion\":\"{version}\",\"annotations\":{{\"k8s.io/initial-events-end\":\"true\"}}}}}}}}\n"
            )
            .as_bytes(),
        );
        let bytes = Bytes::from(text);
        store.streamed = Some(bytes.clone());
        bytes
    }

    fn watch(&mut self, kind: Kind, from: Option<u64>, initial: bool) -> UnboundedReceiver<Line> {
        let (send, receive) = unbounded_channel();
        let first = if initial {
            vec![self.initial_events(kind)]
        } else {
            Vec::new()
        };
        let store = self.stores.entry(kind).or_default();
        let missed = store
            .log
            .iter()
            .filter(|(at, _)| !initial && from.is_some_and(|from| *at > from));
        for line in first
            .into_iter()
            .chain(missed.map(|(_, line)| line.clone()))
        {
            drop(send.send(Ok(line)));
        }
        store.watchers.push(send);
        receive
    }
}

fn event(kind: Kind, what: &str, object: &str, version: u64) -> Bytes {
    let (api, name) = kind.names();
    let object = object.replacen("\"VERSION\"", &format!("\"{version}\""), 1);
    let fields = object.strip_prefix('{').unwrap_or(&object);
    Bytes::from(format!(
        "{{\"type\":\"{what}\",\"object\":{{\"kind\":\"{name}\",\"apiVersion\":\"{api}\",{fields}}}\n"
    ))
}

async fn answer(State(api): State<Api>, uri: Uri) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    let Some(kind) = Kind::of_path(uri.path()) else {
        return match uri.path().strip_prefix("/api/v1/nodes/") {
            Some(name) => node(&api, name),
            // Events are posted; whoever else asks for something is told that it is not there.
            None if uri.path().contains("/events") => {
                (StatusCode::CREATED, json, "{}").into_response()
            }
            None => not_found(),
        };
    };
    // What matters here needs no decoding.
    let query: BTreeMap<&str, &str> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let is = |name: &str| matches!(query.get(name), Some(&("true" | "1")));
    let mut shared = api.shared.lock().unwrap();
    if is("watch") {
        let from = query.get("resourceVersion").and_then(|v| v.parse().ok());
        let receive = shared.watch(kind, from, is("sendInitialEvents"));
        let lines = futures::stream::unfold(receive, |mut receive| async {
            Some((receive.recv().await?, receive))
        });
        return (json, Body::from_stream(lines)).into_response();
    }
    (json, shared.list(kind)).into_response()
}

fn node(api: &Api, name: &str) -> Response {
    let mut shared = api.shared.lock().unwrap();
    let version = shared.version;
    let store = shared.stores.entry(Kind::Node).or_default();
    match store.objects.get(name) {
        Some(object) => {
            let object = object.replacen("\"VERSION\"", &format!("\"{version}\""), 1);
            let fields = object.strip_prefix('{').unwrap_or(&object);
            let body = format!("{{\"kind\":\"Node\",\"apiVersion\":\"v1\",{fields}");
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        None => not_found(),
    }
}

fn not_found() -> Response {
    let body = "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"status\":\"Failure\",\"reason\":\"NotFound\",\"code\":404}";
    (
        StatusCode::NOT_FOUND,
        [(header::CONTENT_TYPE, "application/json")],
        body,
    )
        .into_response()
}
