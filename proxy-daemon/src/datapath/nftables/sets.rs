//! Which sets and maps does our table have?
//!
//! Invariant: their number is constant; Services and endpoints are elements.

use super::ruleset::{CLIENT, FRONTEND, Field, NODE_PORT, Set, SetKind, Value};
use crate::forwarding::{BackendSet, SourceClass};

/// Maximum number of clients with session affinity, over all ServicePorts.
///
/// Kernel: a set with a size gets its hash table at once, here 4 MiB.
const AFFINITY_SIZE: u32 = 1 << 18;

/// The least and the greatest size that is declared for other sets.
const MIN_SIZE: u32 = 1 << 10;
const MAX_SIZE: u32 = 1 << 28;

/// Whether a set of this size may hold `n` elements.
pub(crate) fn has_room(size: u32, n: usize) -> bool {
    usize::try_from(size).is_ok_and(|size| n <= size)
}

const ADDRESS: &[Field] = &[Field::Destination];
/// The code of an action or of a backend.
const CODE: &[Field] = &[Field::Priority];
/// A ServicePort and the number of a backend; the modulus is that of no rule in particular.
const NUMBERED: &[Field] = &[
    Field::Destination,
    Field::Protocol,
    Field::DestinationPort,
    Field::Random(2),
];
/// A ServicePort and the code of a backend.
const CODED: &[Field] = &[
    Field::Destination,
    Field::Protocol,
    Field::DestinationPort,
    Field::Priority,
];
const NO_VALUE: Value = Value::None;
const TO_VERDICT: Value = Value::Verdict;
const TO_CODE: Value = Value::Data(CODE);
const TO_ADDRESS: Value = Value::Data(ADDRESS);
const TO_PORT: Value = Value::Data(&[Field::DestinationPort]);
const TO_BACKEND: Value = Value::Data(&[Field::Destination, Field::DestinationPort]);

macro_rules! sets {
    ($($variant:ident = $name:literal, $key:expr, $value:expr, $comment:literal;)*) => {
        /// The sets and maps of our table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum SetId { $(#[doc = $comment] $variant),* }

        impl SetId {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// The set's name in the kernel.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The types of its keys and values, and its comment.
            const fn types(self) -> (&'static [Field], Value, &'static str) {
                match self { $(Self::$variant => ($key, $value, $comment)),* }
            }
        }
    };
}

sets! {
    Frontends = "frontends", FRONTEND, TO_CODE, "frontend : kind of treatment";
    NodePorts = "node-ports", NODE_PORT, TO_CODE, "node port : kind of treatment";
    FrontendActions = "frontend-kinds", CODE, TO_VERDICT, "kinds of @frontends and @node-ports";
    SourceRestricted = "firewalled", FRONTEND, TO_CODE, "frontend with source ranges : kind of treatment";
    SourceRestrictedActions = "firewalled-kinds", CODE, TO_VERDICT, "kinds of @firewalled";
    SourceRanges = "source-ranges", CLIENT, NO_VALUE, "frontend . sources it accepts";
    PodFrontends = "pod-frontends", FRONTEND, TO_CODE, "frontend : kind of treatment of pods";
    HostFrontends = "host-frontends", FRONTEND, TO_CODE, "frontend : kind of treatment of this node";
    ExtnFrontends = "extn-frontends", FRONTEND, TO_CODE, "frontend : kind of treatment of others";
    PodNodePorts = "pod-node-ports", NODE_PORT, TO_CODE, "node port : kind of treatment of pods";
    HostNodePorts = "host-node-ports", NODE_PORT, TO_CODE, "node port : kind of treatment of this node";
    ExtnNodePorts = "extn-node-ports", NODE_PORT, TO_CODE, "node port : kind of treatment of others";
    SourceActions = "source-kinds", CODE, TO_VERDICT, "kinds of the maps by source";
    FrontendOwners = "frontend-owners", FRONTEND, TO_ADDRESS, "frontend : address that names its ServicePort";
    NodePortOwners = "node-port-owners", NODE_PORT, TO_ADDRESS, "node port : address that names its ServicePort";
    NodePortOwnerPorts = "node-port-owner-ports", NODE_PORT, TO_PORT, "node port : port that names its ServicePort";
    ClusterBackends = "cluster-backends", NUMBERED, TO_BACKEND, "ServicePort . number : backend";
    LocalBackends = "local-backends", NUMBERED, TO_BACKEND, "ServicePort . number : backend on this node";
    ClusterCodes = "cluster-codes", NUMBERED, TO_CODE, "ServicePort with affinity . number : backend's code";
    LocalCodes = "local-codes", NUMBERED, TO_CODE, "ServicePort with affinity . number : code of backend on this node";
    ClusterByCode = "cluster-by-code", CODED, TO_BACKEND, "ServicePort with affinity . code : backend";
    LocalByCode = "local-by-code", CODED, TO_BACKEND, "ServicePort with affinity . code : backend on this node";
    Affinity = "affinity", CLIENT, TO_CODE, "ServicePort . client : code of the backend it had last";
    NodePortAddresses = "node-port-addresses", ADDRESS, NO_VALUE, "addresses that accept node ports";
    Backends = "backends", CLIENT, NO_VALUE, "address . protocol . port . address of backends: the other end of a hairpin";
    NoEndpoints = "no-endpoints", FRONTEND, NO_VALUE, "frontends without endpoints";
    NoEndpointNodePorts = "no-endpoint-node-ports", NODE_PORT, NO_VALUE, "node ports without endpoints";
    ExternalFrontends = "external-frontends", FRONTEND, NO_VALUE, "external IPs and load balancer IPs";
    ClusterIps = "cluster-ips", ADDRESS, NO_VALUE, "cluster IPs in use";
    ServiceCidrs = "service-cidrs", ADDRESS, NO_VALUE, "where cluster IPs come from";
    Spared = "spared", ADDRESS, NO_VALUE, "addresses of this node and of endpoints in @service-cidrs";
}

/// The maps of one of a ServicePort's sets of backends.
#[derive(Clone, Copy)]
pub(crate) struct BackendMaps {
    /// Number to backend.
    pub(crate) by_number: SetId,
    /// Number to code.
    pub(crate) codes: SetId,
    /// Code to backend.
    pub(crate) by_code: SetId,
}

impl BackendMaps {
    /// The maps of this set.
    pub(crate) const fn of(set: BackendSet) -> Self {
        let (by_number, codes, by_code) = match set {
            BackendSet::Cluster => (
                SetId::ClusterBackends,
                SetId::ClusterCodes,
                SetId::ClusterByCode,
            ),
            BackendSet::Local => (SetId::LocalBackends, SetId::LocalCodes, SetId::LocalByCode),
        };
        Self {
            by_number,
            codes,
            by_code,
        }
    }
}

impl SetId {
    /// The declaration of the set.
    pub(crate) fn declaration(self) -> Set {
        let (key, value, comment) = self.types();
        let kind = if matches!(self, Self::SourceRanges | Self::ServiceCidrs) {
            SetKind::Interval
        } else if self == Self::Affinity {
            SetKind::Dynamic
        } else {
            SetKind::Exact
        };
        Set {
            name: self.name(),
            comment,
            key,
            value,
            kind,
            size: (kind == SetKind::Dynamic).then_some(AFFINITY_SIZE),
        }
    }

    /// Whether its hash table is sized for its elements: those of frontends and backends are.
    const fn is_sized(self) -> bool {
        !matches!(
            self,
            Self::FrontendActions
                | Self::SourceRestrictedActions
                | Self::SourceActions
                | Self::SourceRanges
                | Self::ServiceCidrs
                | Self::Affinity
        )
    }

    /// The size to declare for a set that shall hold `n` elements now: they may double.
    ///
    /// Kernel: the hash table of a set without a size grows while it is filled, in a work queue that
    /// contends with the filling; one with a size gets its table at once, 11 to 21 bytes an element.
    pub(crate) fn size_for(self, n: usize) -> Option<u32> {
        let doubled = u32::try_from(n.saturating_mul(2)).unwrap_or(u32::MAX);
        let size = doubled.clamp(MIN_SIZE, MAX_SIZE).next_power_of_two();
        self.is_sized().then_some(size)
    }

    /// Whether a set of this size can be kept for `n` elements.
    ///
    /// It is replaced if it is nearly full, or eight times as large as a new one.
    pub(crate) fn fits(self, size: Option<u32>, n: usize) -> bool {
        match (size, self.size_for(n)) {
            (Some(size), Some(wanted)) => {
                let holds = has_room(size, n);
                holds
                    && size.is_power_of_two()
                    && (MIN_SIZE..=wanted.saturating_mul(4)).contains(&size)
            }
            (size, None) => size == (self == Self::Affinity).then_some(AFFINITY_SIZE),
            (None, Some(_)) => false,
        }
    }

    /// Whether a change of it is written by writing all of it: its elements are ends of intervals.
    ///
    /// `SourceRanges` has whole intervals as elements, since its key is concatenated.
    pub(crate) const fn is_written_whole(self) -> bool {
        matches!(self, Self::ServiceCidrs)
    }

    /// The map with a frontend's action for a source class.
    pub(crate) const fn by_source(class: SourceClass, node_port: bool) -> Self {
        match (class, node_port) {
            (SourceClass::Pod, false) => Self::PodFrontends,
            (SourceClass::Host, false) => Self::HostFrontends,
            (SourceClass::Extn, false) => Self::ExtnFrontends,
            (SourceClass::Pod, true) => Self::PodNodePorts,
            (SourceClass::Host, true) => Self::HostNodePorts,
            (SourceClass::Extn, true) => Self::ExtnNodePorts,
        }
    }
}
