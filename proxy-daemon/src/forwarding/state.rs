//! The types of the forwarding state.
//!
//! Invariants, upheld by `compile` and relied on by every datapath:
//! - a [`FrontendKey`] belongs to at most one [`ServicePort`] of a state (SVC-14 is decided already);
//! - a frontend is at [`FrontendAddress::Node`] if and only if its exposure is [`Exposure::NodePort`];
//! - backend lists are sorted and free of duplicates;
//! - a [`Route::Forward`] names a set of its ServicePort that is not empty;
//! - without a detector, POD has the route of EXTN (DL-5).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{InterfaceName, Netfilter};
use crate::net::{Family, L4Proto, Networks, Port};

/// What must happen to the packets of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardingState<F: Family> {
    /// What is the same for all ServicePorts.
    pub globals: Globals<F>,
    /// The addresses in [`Globals::service_cidrs`] that are not dropped: this node's and endpoints'.
    pub spared: BTreeSet<F::Addr>,
    /// Every ServicePort that exists in this family, also those that forward nothing.
    pub service_ports: BTreeMap<ServicePortId, Arc<ServicePort<F>>>,
}

/// What is the same for all ServicePorts of a family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct Globals<F: Family> {
    /// How sources are classified as POD; `None`: none is. Spec: DL-5.
    pub detector: Option<Detector<F>>,
    /// Every address of this node, loopback too: the sources that count as HOST.
    pub local_addresses: BTreeSet<F::Addr>,
    /// The addresses of this node that accept NodePort traffic. Spec: NP-2.
    pub node_port_addresses: BTreeSet<F::Addr>,
    /// Where addresses that are no live ClusterIP are dropped. Spec: REJ-6.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: Networks<F>,
    /// What only datapaths of netfilter need.
    #[serde(flatten)]
    pub netfilter: Netfilter,
}

/// The rule that says which packets come from a pod.
///
/// Spec: DL-1 to DL-4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub enum Detector<F: Family> {
    /// Those whose source address lies in this network.
    Network(F::Net),
    /// Those that entered through this interface.
    Interface(InterfaceName),
    /// Those that entered through an interface whose name starts so.
    InterfacePrefix(InterfaceName),
}

/// The name of a ServicePort: `namespace/name:port/protocol`, `namespace/name/protocol` if unnamed.
///
/// Unique within a state, sorted by namespace and name first. For people and as a key; nobody parses it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServicePortId(Arc<str>);

impl ServicePortId {
    /// The name of a port of the Service `namespace/name`.
    pub fn new(service: &dyn fmt::Display, port: &str, protocol: L4Proto) -> Self {
        if port.is_empty() {
            Self(format!("{service}/{protocol}").into())
        } else {
            Self(format!("{service}:{port}/{protocol}").into())
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that sorts before all others, for ranges.
    pub fn lowest() -> Self {
        Self(Arc::default())
    }
}

impl fmt::Display for ServicePortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One ServicePort in one family: our unit of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct ServicePort<F: Family> {
    /// Its name.
    pub id: ServicePortId,
    /// Its protocol, that of all its frontends.
    pub protocol: L4Proto,
    /// The ClusterIP of its Service, live even if another Service won the frontend. Spec: REJ-5.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: F::Addr,
    /// Whether clients keep their backend.
    #[serde(flatten)]
    pub affinity: Affinity,
    /// The set C of SPEC §0, sorted.
    pub cluster: Box<[Backend<F>]>,
    /// The set L of SPEC §0, sorted; empty if no frontend uses it.
    pub local: Box<[Backend<F>]>,
    /// Endpoints whose UDP flows are kept: serving or ready ones, sorted; empty unless UDP. Spec: CT-2.
    pub live: Box<[Backend<F>]>,
    /// Its frontends, without those that another ServicePort won.
    pub frontends: Frontends<F>,
}

impl<F: Family> ServicePort<F> {
    /// The backends of one of its sets.
    pub fn backends(&self, set: BackendSet) -> &[Backend<F>] {
        match set {
            BackendSet::Cluster => &self.cluster,
            BackendSet::Local => &self.local,
        }
    }
}

/// Whether clients of a ServicePort keep their backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "AffinityText")]
pub enum Affinity {
    /// Not requested.
    Off,
    /// For so long after the last new connection. Unit: seconds. Spec: AFF-1.
    Seconds(u32),
    /// Requested, but disabled: the memory limit of the mode is reached.
    OverLimit,
}

impl Affinity {
    /// How long they keep it, if they do. Unit: seconds.
    pub const fn timeout(self) -> Option<u32> {
        match self {
            Self::Seconds(seconds) => Some(seconds),
            Self::Off | Self::OverLimit => None,
        }
    }
}

/// What a packet must be addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(bound = "")]
pub struct FrontendKey<F: Family> {
    /// The destination address.
    pub address: FrontendAddress<F>,
    /// The protocol.
    pub protocol: L4Proto,
    /// The destination port.
    pub port: Port,
}

impl<F: Family> fmt::Display for FrontendKey<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            FrontendAddress::Vip(address) => {
                write!(
                    f,
                    "{} {}",
                    self.protocol,
                    std::net::SocketAddr::new(address.into(), self.port.get())
                )
            }
            FrontendAddress::Node => write!(f, "{} node:{}", self.protocol, self.port),
        }
    }
}

/// The destination address of a frontend. VIPs are matched before NodePorts (SVC-14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(untagged, bound = "")]
pub enum FrontendAddress<F: Family> {
    /// A ClusterIP, ExternalIP or LoadBalancer address.
    Vip(F::Addr),
    /// Any of [`Globals::node_port_addresses`].
    Node,
}

/// The frontends of a ServicePort, sorted by key.
///
/// A slice, because most have one or two, and a tree would take ten times the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontends<F: Family>(Box<[(FrontendKey<F>, Frontend<F>)]>);

impl<F: Family> FromIterator<(FrontendKey<F>, Frontend<F>)> for Frontends<F> {
    /// Of several with the same key, the last counts.
    fn from_iter<I: IntoIterator<Item = (FrontendKey<F>, Frontend<F>)>>(frontends: I) -> Self {
        let frontends: BTreeMap<_, _> = frontends.into_iter().collect();
        Self(frontends.into_iter().collect())
    }
}

impl<F: Family> Frontends<F> {
    /// Each frontend with its key, in the order of keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&FrontendKey<F>, &Frontend<F>)> {
        self.0.iter().map(|(key, frontend)| (key, frontend))
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &FrontendKey<F>> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The frontends, in the order of keys.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Frontend<F>> {
        self.0.iter().map(|(_, frontend)| frontend)
    }

    /// The frontend with this key.
    pub fn get(&self, key: &FrontendKey<F>) -> Option<&Frontend<F>> {
        let found = self.0.binary_search_by_key(key, |(key, _)| *key);
        found
            .ok()
            .and_then(|at| self.0.get(at))
            .map(|(_, frontend)| frontend)
    }

    /// Whether there is a frontend with this key.
    pub fn contains_key(&self, key: &FrontendKey<F>) -> bool {
        self.get(key).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How a frontend treats the packets addressed to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend<F: Family> {
    /// Why it exists, and what that asks for.
    pub exposure: Exposure<F>,
    /// Where packets of each source class go.
    pub routes: Routes,
}

/// Why a frontend exists, strongest claim first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposure<F: Family> {
    /// It is the Service's ClusterIP.
    ClusterIp,
    /// It is one of `spec.externalIPs`.
    ExternalIp,
    /// It is one of `status.loadBalancer.ingress`, the only ones that source ranges apply to (FW-1).
    LoadBalancer {
        /// If set, packets from other sources are dropped before anything else. Never empty.
        ///
        /// Spec: FW-2 to FW-7; the addresses of FW-3 are in it already.
        source_ranges: Option<Arc<Networks<F>>>,
    },
    /// It is the port's `nodePort`.
    NodePort,
}

impl<F: Family> fmt::Display for Exposure<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer { .. } => "LoadBalancer",
            Self::NodePort => "NodePort",
        })
    }
}

/// Where a packet comes from; tested in this order.
///
/// Spec: §0, source classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceClass {
    /// By the detector.
    Pod,
    /// Its source address is one of this node's.
    Host,
    /// Everything else.
    Extn,
}

/// The rows of SPEC's table M1 for one frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Routes {
    /// For POD.
    pub pod: Route,
    /// For HOST.
    pub host: Route,
    /// For EXTN.
    pub extn: Route,
}

impl Routes {
    /// The same route for everyone.
    pub const fn all(route: Route) -> Self {
        Self {
            pod: route,
            host: route,
            extn: route,
        }
    }

    /// The route of a source class.
    pub const fn of(self, class: SourceClass) -> Route {
        match class {
            SourceClass::Pod => self.pod,
            SourceClass::Host => self.host,
            SourceClass::Extn => self.extn,
        }
    }
}

/// What happens to packets of one source class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "RouteText")]
pub enum Route {
    /// One of the backends of the set, each equally likely.
    Forward {
        /// Which backends.
        to: BackendSet,
        /// Whether the source becomes this node's address. A hairpin is masqueraded anyway (SRC-9).
        masquerade: bool,
    },
    /// No endpoint anywhere: refuse at once, so that clients fail fast.
    Reject,
    /// `Local` policy without a local endpoint: dropped, so that the load balancer uses another node.
    Drop,
}

/// One of a ServicePort's two sets of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendSet {
    /// C: after topology.
    Cluster,
    /// L: on this node.
    Local,
}

/// An endpoint that was chosen: address and port, no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend<F: Family> {
    /// Its address.
    pub address: F::Addr,
    /// Its port.
    pub port: Port,
}

impl<F: Family> fmt::Display for Backend<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address.into(), self.port.get()).fmt(f)
    }
}

impl<F: Family> Serialize for Backend<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What differs between two forwarding states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes<F: Family> {
    /// The globals before, if they changed.
    pub globals: Option<Globals<F>>,
    /// The addresses that came to [`ForwardingState::spared`].
    pub spared_added: BTreeSet<F::Addr>,
    /// The addresses that went from there.
    pub spared_removed: BTreeSet<F::Addr>,
    /// The ServicePorts that changed.
    pub service_ports: BTreeMap<ServicePortId, Change<F>>,
}

impl<F: Family> Default for Changes<F> {
    fn default() -> Self {
        Self {
            globals: None,
            spared_added: BTreeSet::new(),
            spared_removed: BTreeSet::new(),
            service_ports: BTreeMap::new(),
        }
    }
}

impl<F: Family> Changes<F> {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One ServicePort before and after; never both `None`, never equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<F: Family> {
    /// Before; `None` if it is new.
    pub old: Option<Arc<ServicePort<F>>>,
    /// After; `None` if it is gone.
    pub new: Option<Arc<ServicePort<F>>>,
}

/// A [`Route`] as JSON: `{"to": "cluster", "masquerade": true}`, `"reject"` or `"drop"`.
#[derive(Serialize)]
#[serde(untagged)]
enum RouteText {
    Forward { to: BackendSet, masquerade: bool },
    Word(&'static str),
}

impl From<Route> for RouteText {
    fn from(route: Route) -> Self {
        match route {
            Route::Forward { to, masquerade } => Self::Forward { to, masquerade },
            Route::Reject => Self::Word("reject"),
            Route::Drop => Self::Word("drop"),
        }
    }
}

/// The values of a map whose keys are in them.
fn values<S: Serializer, K, V: Serialize>(
    map: &BTreeMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map.values())
}

/// An [`Affinity`] as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AffinityText {
    affinity_seconds: Option<u32>,
    affinity_over_limit: bool,
}

impl From<Affinity> for AffinityText {
    fn from(affinity: Affinity) -> Self {
        Self {
            affinity_seconds: affinity.timeout(),
            affinity_over_limit: affinity == Affinity::OverLimit,
        }
    }
}

/// The spared addresses are shown with the networks that they are in.
impl<F: Family> Serialize for ForwardingState<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(bound = "")]
        struct All<'a, F: Family> {
            #[serde(flatten)]
            globals: &'a Globals<F>,
            spared: &'a BTreeSet<F::Addr>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase", bound = "")]
        struct State<'a, F: Family> {
            globals: All<'a, F>,
            #[serde(serialize_with = "values")]
            service_ports: &'a BTreeMap<ServicePortId, Arc<ServicePort<F>>>,
        }
        let Self {
            globals,
            spared,
            service_ports,
        } = self;
        let globals = All { globals, spared };
        State {
            globals,
            service_ports,
        }
        .serialize(serializer)
    }
}

/// Each frontend as one object.
impl<F: Family> Serialize for Frontends<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase", bound = "")]
        struct Entry<'a, F: Family> {
            #[serde(flatten)]
            key: &'a FrontendKey<F>,
            exposure: String,
            routes: Routes,
            source_ranges: Option<&'a Networks<F>>,
        }
        serializer.collect_seq(self.iter().map(|(key, frontend)| Entry {
            key,
            exposure: frontend.exposure.to_string(),
            routes: frontend.routes,
            source_ranges: match &frontend.exposure {
                Exposure::LoadBalancer { source_ranges } => source_ranges.as_deref(),
                Exposure::ClusterIp | Exposure::ExternalIp | Exposure::NodePort => None,
            },
        }))
    }
}
