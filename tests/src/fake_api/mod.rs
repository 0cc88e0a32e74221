//! A scripted API server: real HTTP, list and watch, and whatever can go wrong with them.
//!
//! It serves Services, EndpointSlices, Nodes and ServiceCIDRs with selectors, versions, bookmarks, streaming lists and pages, well
//! enough for the daemon, kube-proxy and kubectl. Invariants: a watch from a list's version sees every later change once and in
//! order; everything runs on a thread of its own and ends with the value.
//!
//! In reading order: `cluster` holds the objects, `script` the faults, `serve` and `single` speak HTTP, `load` reads manifests.

mod cluster;
mod load;
mod relay;
mod script;
mod selector;
mod serve;
mod single;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proxy_daemon::watch::ObjectKind;
use rcgen::{CertifiedKey, KeyPair};
use serde_json::Value;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::netns::Netns;
use cluster::Cluster;
pub use load::read_directory;
pub use relay::Relay;
use script::Script;
pub use script::{Ahead, Fault, Request, RequestKind, Streaming};

/// What the connections share.
struct State {
    cluster: Mutex<Cluster>,
    script: Mutex<Script>,
    /// Rings when there is something new to send.
    changed: watch::Sender<()>,
    /// Rings when every watch must send a bookmark.
    bookmark: watch::Sender<()>,
    /// Rings when every request was recorded.
    recorded: watch::Sender<()>,
    /// Goes up when every connection must break; odd while connections are refused.
    generation: watch::Sender<u64>,
}

/// A running server.
pub struct FakeApi {
    state: Arc<State>,
    address: SocketAddr,
    has_tls: bool,
    /// Ends the server's thread when dropped.
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FakeApi {
    /// Starts a server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is none.
    pub fn start() -> Result<Self> {
        Self::start_at(anywhere)
    }

    /// Starts a server on a free port of 127.0.0.1 that speaks TLS, and HTTP/2 where it is asked for.
    ///
    /// # Errors
    /// When there is none.
    pub fn start_tls() -> Result<Self> {
        Self::launch(anywhere, Some(tls()?))
    }

    /// Starts a server on a listener that is made by `bind`: at first anywhere, later, after [`FakeApi::down`], where it was before.
    /// A closure that enters a network namespace puts the server there.
    ///
    /// # Errors
    /// When the listener cannot be made.
    pub fn start_at(
        bind: impl Fn(Option<SocketAddr>) -> io::Result<TcpListener> + Send + 'static,
    ) -> Result<Self> {
        Self::launch(bind, None)
    }

    /// Starts a server on a loopback port of a network namespace.
    ///
    /// # Errors
    /// When there is none.
    pub fn start_in(ns: &Arc<Netns>) -> Result<Self> {
        let ns = Arc::clone(ns);
        Self::start_at(move |address| ns.enter(|| anywhere(address)))
    }

    fn launch(
        bind: impl Fn(Option<SocketAddr>) -> io::Result<TcpListener> + Send + 'static,
        tls: Option<TlsAcceptor>,
    ) -> Result<Self> {
        let has_tls = tls.is_some();
        let listener = bind(None).context("the API server cannot listen")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            cluster: Mutex::new(Cluster::new()),
            script: Mutex::default(),
            changed: watch::Sender::new(()),
            bookmark: watch::Sender::new(()),
            recorded: watch::Sender::new(()),
            generation: watch::Sender::new(0),
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("fake-api".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    tokio::select! {
                        () = serve::accept(served, listener, bind, address, tls) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            state,
            address,
            has_tls,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.url_through(self.address)
    }

    /// Its URL if it is reached through another address.
    pub fn url_through(&self, address: SocketAddr) -> String {
        let scheme = if self.has_tls { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// Writes a kubeconfig that leads here.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<()> {
        self.write_kubeconfig_through(self.address, path)
    }

    /// Writes a kubeconfig that leads here through another address.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig_through(&self, address: SocketAddr, path: &Path) -> Result<()> {
        let url = self.url_through(address);
        let authority = path.with_extension("crt");
        let mut trust = String::new();
        if self.has_tls {
            std::fs::write(&authority, CERTIFIED.cert.pem())
                .with_context(|| format!("{}", authority.display()))?;
            trust = format!(", certificate-authority: \"{}\"", authority.display());
        }
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: fake\n\
             clusters:\n- name: fake\n  cluster: {{server: \"{url}\"{trust}}}\n\
             users:\n- name: fake\n  user: {{token: fake}}\n\
             contexts:\n- name: fake\n  context: {{cluster: fake, user: fake}}\n"
        );
        std::fs::write(path, text).with_context(|| format!("{}", path.display()))
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.state.cluster.lock().unwrap()
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.state.script.lock().unwrap()
    }

    /// Puts an object of one of our kinds; returns when the watches were notified.
    pub fn put(&self, object: Value) -> Instant {
        self.put_all([object])
    }

    /// Puts many objects at one moment; other kinds are ignored.
    pub fn put_all(&self, objects: impl IntoIterator<Item = Value>) -> Instant {
        let mut cluster = self.cluster();
        for object in objects {
            if let Some(kind) = load::kind_of(&object) {
                cluster.put(kind, object);
            }
        }
        drop(cluster);
        let told = Instant::now();
        self.state.changed.send_replace(());
        told
    }

    /// Replaces all objects by these: puts those that differ, deletes those that are missing.
    pub fn replace_all(&self, objects: Vec<Value>) {
        let keys: std::collections::BTreeSet<_> = objects
            .iter()
            .filter_map(|object| {
                let kind = load::kind_of(object)?;
                Some((kind, cluster::key_of(kind, object)))
            })
            .collect();
        for kind in ObjectKind::ALL {
            let gone = self
                .keys(kind)
                .into_iter()
                .filter(|key| !keys.contains(&(kind, key.clone())));
            for key in gone {
                self.delete(kind, &key);
            }
        }
        self.put_all(objects);
    }

    /// Deletes an object by `namespace/name` or, where there is no namespace, name.
    pub fn delete(&self, kind: ObjectKind, key: &str) {
        self.cluster().delete(kind, key);
        self.state.changed.send_replace(());
    }

    /// The names of the objects there are.
    pub fn keys(&self, kind: ObjectKind) -> Vec<String> {
        self.cluster().keys(kind)
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.cluster().version()
    }

    /// Forgets the history: watches from older versions end with 410, now and later.
    pub fn compact(&self) {
        self.cluster().compact();
        self.state.changed.send_replace(());
    }

    /// Goes back to a version, as after a restore from a backup, for which it must be [`FakeApi::down`]; the
    /// objects stay. Watches from later versions are then treated like this.
    pub fn rewind(&self, version: u64, ahead: Ahead) {
        self.script().ahead = ahead;
        self.cluster().rewind(version);
    }

    /// Makes the tokens for further pages that were given out so far expire.
    pub fn expire_pages(&self) {
        let version = self.version() + 1;
        self.script().tokens_from = version;
    }

    /// Sends a bookmark on every watch.
    pub fn bookmark(&self) {
        self.state.bookmark.send_replace(());
    }

    /// Sends bookmarks on every watch from now on, so often.
    pub fn bookmark_every(&self, interval: Duration) {
        self.script().bookmark_every = Some(interval);
    }

    /// Makes an answer go wrong, once; `None` stands for any kind or anything asked.
    pub fn fault(
        &self,
        kind: impl Into<Option<ObjectKind>>,
        ask: impl Into<Option<RequestKind>>,
        fault: Fault,
    ) {
        self.faults(kind, ask, fault, 1);
    }

    /// Makes answers go wrong so many times; [`u32::MAX`] is for ever.
    pub fn faults(
        &self,
        kind: impl Into<Option<ObjectKind>>,
        ask: impl Into<Option<RequestKind>>,
        fault: Fault,
        times: u32,
    ) {
        self.script().add(kind.into(), ask.into(), fault, times);
    }

    /// Makes lists of a kind go wrong, whole and streamed ones.
    pub fn fault_lists(&self, kind: ObjectKind, fault: Fault, times: u32) {
        for ask in [RequestKind::List, RequestKind::StreamingList] {
            self.faults(kind, ask, fault.clone(), times);
        }
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.script().clear();
    }

    /// Says how streaming lists are treated.
    pub fn set_streaming(&self, streaming: Streaming) {
        self.script().streaming = streaming;
    }

    /// Takes one version of a kind's API away, such as `v1`; answers 404.
    pub fn set_absent(&self, kind: ObjectKind, version: &str) {
        self.script().absent.push((kind, version.to_owned()));
    }

    /// Brings everything back that was taken away.
    pub fn clear_absent(&self) {
        self.script().absent.clear();
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.state
            .generation
            .send_modify(|generation| *generation += 2);
    }

    /// Breaks every connection and refuses new ones, until [`FakeApi::up`].
    pub fn down(&self) {
        self.state
            .generation
            .send_modify(|generation| *generation |= 1);
    }

    /// Accepts connections again, at the same address.
    pub fn up(&self) {
        self.state
            .generation
            .send_modify(|generation| *generation = (*generation | 1) + 1);
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.script().requests.clone()
    }

    /// How many lists of this kind were asked for, whole or streamed.
    pub fn n_lists(&self, kind: ObjectKind) -> usize {
        self.n_requests(kind, RequestKind::List) + self.n_requests(kind, RequestKind::StreamingList)
    }

    /// How many requests were for this.
    pub fn n_requests(&self, kind: ObjectKind, ask: RequestKind) -> usize {
        let asked = |request: &&Request| request.kind == Some(kind) && request.ask == Some(ask);
        self.script().requests.iter().filter(asked).count()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.script().requests.clear();
    }

    /// A bell that rings after every request.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.state.recorded.subscribe()
    }

    /// The events that clients have posted.
    pub fn events(&self) -> Vec<Value> {
        self.script().events.clone()
    }
}

/// The certificate of 127.0.0.1, signed by itself, and its key: others in each process.
static CERTIFIED: LazyLock<CertifiedKey<KeyPair>> = LazyLock::new(|| {
    rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a key and a certificate")
});

fn anywhere(address: Option<SocketAddr>) -> io::Result<TcpListener> {
    TcpListener::bind(address.unwrap_or(([127, 0, 0, 1], 0).into()))
}

fn tls() -> Result<TlsAcceptor> {
    let certificate = CERTIFIED.cert.der().clone();
    let key = PrivateKeyDer::try_from(CERTIFIED.signing_key.serialize_der())
        .map_err(anyhow::Error::msg)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the fake API server has panicked");
        }
    }
}
