//! How a test follows a fake API server, and waits.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proxy_daemon::model::{Service, ServiceName, SliceName};
use proxy_daemon::watch::kubernetes::{ApiServer, Kubernetes, Pace, Timing};
use proxy_daemon::watch::{Drained, Shared, Store};
use proxy_tests::address::{Addr, Family, Protocol};
use proxy_tests::daemon::Directory;
use proxy_tests::fake_api::{FakeApi, Streaming};
use proxy_tests::world::{self, Endpoint, Node, Slice, TARGET_PORT, service_cidr};
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

    /// Follows a server until the store is complete.
    pub(crate) async fn whole(api: &FakeApi, timing: Timing) -> Self {
        let followed = Self::start_with(api, timing).await;
        followed.complete().await;
        followed
    }

    pub(crate) fn n_services(&self) -> usize {
        self.shared.with(|store| store.service_names().count())
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

/// What leads to a server through this address, as long as the directory is there.
pub(crate) fn by_kubeconfig(api: &FakeApi, through: SocketAddr) -> (ApiServer, Directory) {
    let directory = Directory::new().expect("a directory");
    let path = directory.path().join("kubeconfig");
    api.write_kubeconfig_through(through, &path)
        .expect("written");
    let server = ApiServer {
        kubeconfig: Some(path),
        master: None,
    };
    (server, directory)
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

/// A Service `10.96.0.LAST`, with the port `http`.
pub(crate) fn service(name: &str, last: u8) -> Value {
    world::Service::new(name, Family::V4, Protocol::Tcp)
        .cluster_ip(Addr::twin([10, 96, 0, last]))
        .named_port("http", 80)
        .to_json()
}

/// A slice with the endpoint `10.244.1.LAST`.
pub(crate) fn slice(name: &str, service: &str, last: u8) -> Value {
    Slice::new(service, name, Family::V4, Protocol::Tcp)
        .port("http", TARGET_PORT)
        .endpoint(Endpoint::at(Addr::twin([10, 244, 1, last]), NODE))
        .to_json()
}

pub(crate) fn node(name: &str, zone: &str) -> Value {
    let named = json!({"metadata": {"name": name}});
    Node::default().zone(Some(zone)).patch(named).to_json()
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
        service_cidr("kubernetes", &["10.96.0.0/16"]),
    ]);
    api
}

/// The small cluster, and a store that has all of it.
pub(crate) async fn follow_small(streaming: Streaming) -> (FakeApi, Followed) {
    let api = small();
    api.set_streaming(streaming);
    let followed = Followed::whole(&api, timing()).await;
    (api, followed)
}
