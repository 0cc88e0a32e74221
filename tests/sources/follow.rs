//! How a test follows a fake API server, and waits.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proxy_daemon::model::{Service, ServiceName, SliceName};
use proxy_daemon::watch::kubernetes::{ApiServer, Kubernetes, Pace, Timing};
use proxy_daemon::watch::{Drained, Shared, Store};
use proxy_tests::fake_api::{FakeApi, Streaming};
use serde_json::{Value, json};

/// The node that the tests run on.
pub(crate) const NODE: &str = "n";

/// Times that make a bad day short.
pub(crate) fn timing() -> Timing {
    Timing {
        watch: (Duration::from_secs(20), Duration::from_secs(30)),
        slack: Duration::from_millis(300),
        plain_watch: (Duration::from_secs(20), Duration::from_secs(30)),
        silence: Duration::from_secs(20),
        ping: (Duration::from_millis(300), Duration::from_millis(300)),
        head: Duration::from_millis(500),
        answer: Duration::from_secs(2),
        piece: Duration::from_millis(800),
        first_wait: Duration::from_millis(5),
        longest_wait: Duration::from_millis(100),
        denied_wait: Duration::from_millis(100),
        asked_wait: Duration::from_secs(8),
        absent_wait: Duration::from_millis(300),
        lists: brisk(),
        watches: brisk(),
    }
}

/// A pace that a test is not held up by.
fn brisk() -> Pace {
    Pace {
        burst: 5,
        first: Duration::from_millis(10),
        longest: Duration::from_millis(100),
        cooling: Duration::from_millis(100),
    }
}

/// Runs a test on a runtime of its own.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test);
}

/// A store that follows a server; it stops when dropped.
pub(crate) struct Followed {
    pub(crate) shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    pub(crate) async fn start(api: &FakeApi) -> Self {
        Self::start_with(api, timing()).await
    }

    pub(crate) async fn start_with(api: &FakeApi, timing: Timing) -> Self {
        let server = ApiServer {
            kubeconfig: None,
            master: Some(api.url()),
        };
        Self::start_at(&server, timing).await
    }

    pub(crate) async fn start_at(server: &ApiServer, timing: Timing) -> Self {
        let source = Kubernetes::open(server.clone(), NODE.into(), timing)
            .await
            .expect("a client");
        let shared = Arc::new(Shared::default());
        let followed = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            source.run(followed).await;
        });
        Self { shared, task }
    }

    /// Waits until the store looks like this.
    #[track_caller]
    pub(crate) fn until(
        &self,
        what: &str,
        holds: impl Fn(&Store) -> bool,
    ) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let mut bell = self.shared.subscribe();
            let wait = async {
                while !self.shared.with(|store| holds(store)) {
                    bell.changed().await.expect("a bell");
                }
            };
            let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
            assert!(
                waited.is_ok(),
                "{caller}: never: {what}: {:?}",
                self.faults()
            );
        }
    }

    pub(crate) async fn complete(&self) {
        self.until("complete", Store::is_complete).await;
    }

    /// Everything that changed since the last call.
    pub(crate) fn drain(&self) -> Drained {
        self.shared.with(Store::drain)
    }

    /// The names of the Services that changed since the last call.
    pub(crate) fn dirty(&self) -> Vec<String> {
        self.drain()
            .services
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    pub(crate) fn faults(&self) -> Vec<String> {
        let current = self.shared.diagnostics().current();
        current.iter().map(ToString::to_string).collect()
    }
}

/// Waits until the server was asked so that this holds.
pub(crate) async fn until_asked(api: &FakeApi, what: &str, holds: impl Fn(&FakeApi) -> bool) {
    let mut bell = api.subscribe();
    let wait = async {
        while !holds(api) {
            bell.changed().await.expect("a bell");
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
    assert!(waited.is_ok(), "never asked: {what}: {:#?}", api.requests());
}

pub(crate) fn name(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

pub(crate) fn get<'a>(store: &'a Store, of: &str) -> Option<&'a Arc<Service>> {
    store.service(&name(of))
}

/// The Service's ClusterIP ends so.
pub(crate) fn is_at(store: &Store, of: &str, last: u8) -> bool {
    get(store, of).is_some_and(|service| {
        service
            .cluster_ip_v4
            .is_some_and(|address| address.octets()[3] == last)
    })
}

pub(crate) fn has_slice(store: &Store, of: &str) -> bool {
    let name = SliceName::new("default", of);
    store.slice_names().any(|known| *known == name)
}

pub(crate) fn service(name: &str, last: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "ClusterIP", "clusterIP": format!("10.96.0.{last}"),
            "clusterIPs": [format!("10.96.0.{last}")], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80}]}
    })
}

pub(crate) fn slice(name: &str, service: &str, last: u8) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [format!("10.244.1.{last}")], "nodeName": NODE}]
    })
}

pub(crate) fn node(name: &str, zone: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}
    })
}

pub(crate) fn service_cidr(name: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": name}, "spec": {"cidrs": [cidr]}
    })
}

/// A small cluster: Services `a` and `b` with a slice each, our Node and one more, a ServiceCIDR.
pub(crate) fn small() -> FakeApi {
    small_of(FakeApi::start())
}

/// The same over TLS, which makes it HTTP/2.
pub(crate) fn small_tls() -> FakeApi {
    small_of(FakeApi::start_tls())
}

fn small_of(api: anyhow::Result<FakeApi>) -> FakeApi {
    let api = api.expect("a server");
    api.put_all([
        service("a", 1),
        service("b", 2),
        slice("a-1", "a", 11),
        slice("b-1", "b", 12),
        node(NODE, "zone-a"),
        node("other", "zone-b"),
        service_cidr("kubernetes", "10.96.0.0/16"),
    ]);
    api
}

/// The small cluster, and a store that has all of it.
pub(crate) async fn follow_small(streaming: Streaming) -> (FakeApi, Followed) {
    let api = small();
    api.set_streaming(streaming);
    let followed = Followed::start(&api).await;
    followed.complete().await;
    (api, followed)
}

/// A directory that is removed when dropped.
pub(crate) struct Temporary(PathBuf);

impl Temporary {
    pub(crate) fn new() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("pd-{}-sources-{serial}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            assert!(std::thread::panicking(), "{error}");
        }
    }
}
