//! The types of the forwarding state.
//!
//! Invariants, upheld by `compile` and relied on by every datapath:
//! - a [`FrontendKey`] belongs to at most one [`ServicePort`] of a state (SVC-14 is decided already);
//! - backend lists are sorted and free of duplicates;
//! - a [`Route::Forward`] names a set of its ServicePort that is not empty.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::net::{Family, L4Proto, Port};

/// What must happen to the packets of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct ForwardingState<F: Family> {
    /// What is the same for all ServicePorts.
    pub globals: Globals<F>,
    /// Every ServicePort that exists in this family, also those that forward nothing.
    #[serde(serialize_with = "values")]
    pub service_ports: BTreeMap<ServicePortId, Arc<ServicePort<F>>>,
}

/// What is the same for all ServicePorts of a family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct Globals<F: Family> {
    /// Who counts as POD; `None` if there is no detector, and so no POD. Spec: DL-5.
    pub detector: Option<Detector<F>>,
    /// The mark that asks for masquerading. Spec: SRC-10.
    pub masquerade_bit: MarkBit,
    /// The addresses of this node that accept NodePort traffic. Spec: NP-2.
    pub node_port_addresses: BTreeSet<F::Addr>,
    /// Where addresses that are no live ClusterIP are dropped. Spec: REJ-6.
    #[serde(rename = "serviceCIDRs")]
    pub service_cidrs: BTreeSet<F::Net>,
    /// Addresses in these networks that are not: this node's and endpoints'.
    pub spared: BTreeSet<F::Addr>,
    /// Whether packets of endpoints that conntrack calls INVALID must be dropped. Spec: CT-7.
    pub drop_invalid: bool,
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

/// A network interface's name, or the beginning of one.
///
/// Unit: 1 to 15 bytes, no slash and no white space.
/// Source: `dev_valid_name()` and `IFNAMSIZ` in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct InterfaceName(Arc<str>);

impl InterfaceName {
    /// The name, or `None` if no interface can have it.
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=15).contains(&name.len());
        let clean = !name
            .bytes()
            .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
        (fits && clean && name != "." && name != "..").then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One bit of the packet mark.
///
/// Unit: bit number, 0 to 31. Default 14, the mark 0x4000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct MarkBit(u8);

impl MarkBit {
    /// kube-proxy's default.
    pub const DEFAULT: Self = Self(14);

    /// The bit with this number; `None` above 31.
    pub const fn new(bit: u8) -> Option<Self> {
        if bit < 32 { Some(Self(bit)) } else { None }
    }

    /// The mark with just this bit set.
    pub const fn mask(self) -> u32 {
        1 << self.0
    }

    /// The bit's number.
    pub const fn bit(self) -> u8 {
        self.0
    }
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
    /// How long clients keep their backend, in seconds; `None` without session affinity. Spec: AFF-1.
    #[serde(rename = "affinitySeconds")]
    pub affinity: Option<u32>,
    /// The set C of SPEC §0, sorted.
    pub cluster: Box<[Backend<F>]>,
    /// The set L of SPEC §0, sorted; empty if no frontend uses it.
    pub local: Box<[Backend<F>]>,
    /// Endpoints whose UDP flows are kept: serving or ready ones, sorted; empty unless UDP. Spec: CT-2.
    pub live: Box<[Backend<F>]>,
    /// Where it answers, without the frontends that another ServicePort won.
    #[serde(serialize_with = "entries")]
    pub frontends: BTreeMap<FrontendKey<F>, Frontend<F>>,
}

impl<F: Family> ServicePort<F> {
    /// The frontend that names this ServicePort in the kernel: its ClusterIP's if it has it, else its first.
    ///
    /// No two ServicePorts of a state have the same one. `None` if it has no frontend at all.
    pub fn key_frontend(&self) -> Option<FrontendKey<F>> {
        self.frontends
            .iter()
            .find(|(_, frontend)| frontend.exposure == Exposure::ClusterIp)
            .or_else(|| self.frontends.first_key_value())
            .map(|(key, _)| *key)
    }

    /// The backends of one of its sets.
    pub fn backends(&self, set: BackendSet) -> &[Backend<F>] {
        match set {
            BackendSet::Cluster => &self.cluster,
            BackendSet::Local => &self.local,
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

/// How a frontend treats the packets addressed to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct Frontend<F: Family> {
    /// Why it exists.
    pub exposure: Exposure,
    /// Where packets of each source class go.
    pub routes: Routes,
    /// If set, packets from other sources are dropped before anything else. Sorted, never empty.
    ///
    /// Spec: FW-1 to FW-7; the addresses of FW-3 are in it already.
    pub source_ranges: Option<Arc<[F::Net]>>,
}

/// Why a frontend exists, strongest claim first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Exposure {
    /// It is the Service's ClusterIP.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// It is one of `spec.externalIPs`.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    /// It is one of `status.loadBalancer.ingress`.
    LoadBalancer,
    /// It is the port's `nodePort`.
    NodePort,
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
        })
    }
}

/// Where a packet comes from; tested in this order.
///
/// Spec: §0, source classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceClass {
    /// The detector says so.
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
    /// `Local` policy without a local endpoint: silence, so that the load balancer looks elsewhere.
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
    /// The ServicePorts that changed.
    pub service_ports: BTreeMap<ServicePortId, Change<F>>,
}

impl<F: Family> Default for Changes<F> {
    fn default() -> Self {
        Self {
            globals: None,
            service_ports: BTreeMap::new(),
        }
    }
}

impl<F: Family> Changes<F> {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.globals.is_none() && self.service_ports.is_empty()
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

/// Each key with its value as one object.
fn entries<S: Serializer, K: Serialize, V: Serialize>(
    map: &BTreeMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Entry<K, V> {
        #[serde(flatten)]
        key: K,
        #[serde(flatten)]
        value: V,
    }
    serializer.collect_seq(map.iter().map(|(key, value)| Entry { key, value }))
}
