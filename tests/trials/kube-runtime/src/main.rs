//! Would the watcher of kube-runtime do, in place of our own list and watch?
//!
//! `cargo run --release --manifest-path tests/trials/kube-runtime/Cargo.toml` prints the figures; what was
//! concluded is in the module `watch::kubernetes` of the daemon.

use std::borrow::Cow;
use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use kube::api::ObjectMeta;
use kube::core::{ClusterResourceScope, DeserializeGuard};
use kube::{Api, Client, Config, Resource};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{self, Error, Event, watcher};
use proxy_daemon::watch::kubernetes::{ApiServer, Kubernetes, Timing};
use proxy_daemon::watch::{ObjectKind, Shared};
use proxy_tests::fake_api::{Ahead, FakeApi, Fault, RequestKind, Streaming};
use proxy_tests::world::many::Size;
use serde::Deserialize;
use serde_json::{Value, json};

/// How long each server's bad day lasts.
const DAY: Duration = Duration::from_secs(20);

/// The fields of an EndpointSlice that forwarding needs.
#[derive(Clone, Debug, Deserialize)]
struct SlimSlice {
    metadata: ObjectMeta,
    #[serde(default)]
    endpoints: Vec<SlimEndpoint>,
    #[serde(default)]
    ports: Vec<SlimPort>,
}

#[derive(Clone, Debug, Deserialize)]
struct SlimEndpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: SlimConditions,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct SlimConditions {
    ready: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct SlimPort {
    name: Option<String>,
    port: Option<u16>,
}

impl Resource for SlimSlice {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "EndpointSlice".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "discovery.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "endpointslices".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

type Slices = Api<DeserializeGuard<SlimSlice>>;
type Seen = Result<Event<DeserializeGuard<SlimSlice>>, Error>;

fn slices(api: &FakeApi) -> Slices {
    let url = api.url().parse().expect("an address");
    Api::all(Client::try_from(Config::new(url)).expect("a client"))
}

/// Passes a watcher's events to `each` until it returns true or the time is over; whether it did.
async fn until(
    events: impl Stream<Item = Seen>,
    time: Duration,
    mut each: impl FnMut(Seen) -> bool,
) -> bool {
    let mut events = std::pin::pin!(events.default_backoff());
    let wait = async {
        while let Some(event) = events.next().await {
            if each(event) {
                return;
            }
        }
    };
    tokio::time::timeout(time, wait).await.is_ok()
}

/// Unit: MiB.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse::<usize>().ok());
    pages.expect("pages") * 4096 / (1024 * 1024)
}

fn slice(name: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "a"}},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.1"], "nodeName": "n"}]
    })
}

fn small() -> FakeApi {
    let api = FakeApi::start().expect("a server");
    api.put_all([slice("a-1"), slice("a-2")]);
    api
}

/// Our own source: all four kinds, into the store.
async fn fill_ours(api: &FakeApi) {
    let server = ApiServer {
        kubeconfig: None,
        master: Some(api.url()),
    };
    let source = Kubernetes::open(server, "n".into(), Timing::default()).await;
    let shared = Arc::new(Shared::default());
    let mut bell = shared.subscribe();
    let (before, began) = (resident(), Instant::now());
    let complete = async {
        while !shared.with(|store| store.is_complete()) {
            bell.changed().await.expect("a bell");
        }
    };
    tokio::select! {
        _ = source.expect("a client").run(Arc::clone(&shared)) => {}
        () = complete => {}
    }
    println!(
        "ours, Services and EndpointSlices: {:?}, {} MiB more",
        began.elapsed(),
        resident() - before
    );
}

/// The watcher of kube-runtime: EndpointSlices only, into a map.
async fn fill_theirs(api: &FakeApi, config: watcher::Config) {
    let strategy = format!("{:?}", config.initial_list_strategy);
    let (before, began) = (resident(), Instant::now());
    let mut store: HashMap<String, SlimSlice> = HashMap::new();
    let is_complete = until(watcher(slices(api), config), DAY, |event| match event {
        Ok(Event::InitApply(DeserializeGuard(Ok(mut slice)))) => {
            // What forwarding needs of the metadata is in the labels.
            slice.metadata.managed_fields = None;
            slice.metadata.annotations = None;
            store.insert(slice.metadata.name.clone().unwrap_or_default(), slice);
            false
        }
        event => matches!(event, Ok(Event::InitDone)),
    })
    .await;
    let took = began.elapsed();
    let addresses = store.values().flat_map(|slice| &slice.endpoints);
    let ready = addresses.filter(|endpoint| endpoint.conditions.ready != Some(false));
    let n_ready: usize = ready.map(|endpoint| endpoint.addresses.len()).sum();
    let ports = store.values().flat_map(|slice| &slice.ports);
    let n_ports = ports.filter(|port| port.port.is_some() || port.name.is_some());
    println!(
        "kube-runtime, EndpointSlices alone, {strategy}: {took:?}, {} MiB more (complete: {is_complete}, \
        {n_ready} addresses, {} ports)",
        resident() - before,
        n_ports.count()
    );
}

/// What the watcher does with a server that a test of ours has.
async fn bad_days() {
    let api = small();
    api.set_streaming(Streaming::Refused);
    let config = watcher::Config::default().streaming_lists();
    let lists = until(watcher(slices(&api), config), DAY, |event| {
        matches!(event, Ok(Event::InitDone))
    });
    println!(
        "kube-runtime lists where streaming lists are refused: {}",
        lists.await
    );

    // What it watches from is a version that the server has not reached.
    for ahead in [Ahead::Refused, Ahead::Accepted, Ahead::Silent] {
        let api = small();
        let mut was_listed = false;
        let config = watcher::Config::default().timeout(3);
        let lists = until(watcher(slices(&api), config), DAY, |event| {
            if matches!(event, Ok(Event::InitDone)) && !was_listed {
                was_listed = true;
                api.rewind(1, ahead);
                api.cut();
                return false;
            }
            was_listed && matches!(event, Ok(Event::InitDone))
        });
        println!(
            "kube-runtime lists again after the server was restored from a backup ({ahead:?}): {}",
            lists.await
        );
    }

    let api = small();
    let config = watcher::Config::default();
    until(watcher(slices(&api), config), DAY, |event| {
        if matches!(event, Ok(Event::InitDone)) {
            api.faults(
                ObjectKind::EndpointSlice,
                RequestKind::Watch,
                Fault::OneBookmark,
                u32::MAX,
            );
            api.cut();
        }
        false
    })
    .await;
    println!(
        "watches of kube-runtime in {} s, of a server that ends each at once: {}",
        DAY.as_secs(),
        api.n_requests(ObjectKind::EndpointSlice, RequestKind::Watch)
    );

    let api = small();
    let mut bad = slice("bad");
    bad["endpoints"] = json!("none");
    api.put(bad);
    let (mut n_good, mut n_bad) = (0, 0);
    let config = watcher::Config::default();
    until(watcher(slices(&api), config), DAY, |event| {
        match &event {
            Ok(Event::InitApply(DeserializeGuard(Ok(_)))) => n_good += 1,
            Ok(Event::InitApply(DeserializeGuard(Err(_)))) => n_bad += 1,
            Ok(_) | Err(_) => {}
        }
        matches!(event, Ok(Event::InitDone))
    })
    .await;
    println!("kube-runtime beside a slice that cannot be read: {n_good} good, {n_bad} bad");
}

/// Each part has a process of its own, so that none sees the memory of another.
const PARTS: [&str; 4] = ["ours", "list", "stream", "bad-days"];

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Some(part) = std::env::args().nth(1) else {
        let program = std::env::current_exe().expect("a program");
        for part in PARTS {
            let status = Command::new(&program).arg(part).status();
            assert!(status.is_ok_and(|status| status.success()), "{part} failed");
        }
        return;
    };
    if part == "bad-days" {
        return bad_days().await;
    }
    let api = FakeApi::start().expect("a server");
    let size = Size {
        services: 10_000,
        endpoints: 10,
    };
    api.put_all(size.objects("n"));
    match part.as_str() {
        "ours" => fill_ours(&api).await,
        "list" => fill_theirs(&api, watcher::Config::default()).await,
        _ => fill_theirs(&api, watcher::Config::default().streaming_lists()).await,
    }
}
