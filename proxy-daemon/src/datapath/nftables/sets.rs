//! Which sets and maps does our table have?
//!
//! Invariant: their number is constant; Services and endpoints are elements.

use super::ruleset::{DataType, Set, SetKind, Value};
use crate::forwarding::{BackendSet, SourceClass};
use crate::net::IpFamily;

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

macro_rules! sets {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// The sets and maps of our table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum SetId { $($(#[$doc])* $variant),* }

        impl SetId {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// The set's name in the kernel.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

sets! {
    /// VIP frontends: the code of their action.
    Frontends = "frontends",
    /// NodePort frontends: the code of their action.
    NodePorts = "node-ports",
    /// The verdicts of actions in `Frontends` and `NodePorts`.
    FrontendActions = "frontend-kinds",
    /// VIP frontends with source ranges: the action for sources inside.
    SourceRestricted = "firewalled",
    /// The verdicts of actions in `SourceRestricted`.
    SourceRestrictedActions = "firewalled-kinds",
    /// VIP frontends and the sources they accept.
    SourceRanges = "source-ranges",
    /// VIP frontends that distinguish sources: the action for POD.
    PodFrontends = "pod-frontends",
    /// The same for HOST.
    HostFrontends = "host-frontends",
    /// The same for EXTN.
    ExtnFrontends = "extn-frontends",
    /// NodePort frontends that distinguish sources: the action for POD.
    PodNodePorts = "pod-node-ports",
    /// The same for HOST.
    HostNodePorts = "host-node-ports",
    /// The same for EXTN.
    ExtnNodePorts = "extn-node-ports",
    /// The verdicts of actions in the six maps above.
    SourceActions = "source-kinds",
    /// VIP frontends other than the one that names their ServicePort: the address of that one.
    FrontendOwners = "frontend-owners",
    /// NodePort frontends: the address of the frontend that names their ServicePort.
    NodePortOwners = "node-port-owners",
    /// NodePort frontends: the port of the frontend that names their ServicePort.
    NodePortOwnerPorts = "node-port-owner-ports",
    /// Backends of the set C of each ServicePort, numbered from 0.
    ClusterBackends = "cluster-backends",
    /// Backends of the set L of each ServicePort, numbered from 0.
    LocalBackends = "local-backends",
    /// With session affinity: the codes of backends of the set C, numbered from 0.
    ClusterCodes = "cluster-codes",
    /// With session affinity: the codes of backends of the set L, numbered from 0.
    LocalCodes = "local-codes",
    /// With session affinity: backends of the set C by code.
    ClusterByCode = "cluster-by-code",
    /// With session affinity: backends of the set L by code.
    LocalByCode = "local-by-code",
    /// The code of the last backend of a ServicePort's client.
    Affinity = "affinity",
    /// Addresses of this node that accept NodePort traffic.
    NodePortAddresses = "node-port-addresses",
    /// All backends: address, protocol, port, and the address again.
    Backends = "backends",
    /// VIP frontends to be rejected.
    NoEndpoints = "no-endpoints",
    /// NodePort frontends to be rejected.
    NoEndpointNodePorts = "no-endpoint-node-ports",
    /// VIP frontends that are no ClusterIP.
    ExternalFrontends = "external-frontends",
    /// Live ClusterIPs.
    ClusterIps = "cluster-ips",
    /// Networks whose other addresses are dropped.
    ServiceCidrs = "service-cidrs",
    /// Addresses in these networks that are not dropped.
    Spared = "spared",
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
    #[expect(clippy::too_many_lines, reason = "a table, one line per set")]
    pub(crate) fn declaration(self, family: IpFamily) -> Set {
        use DataType::{
            ClassId as Code, InetProto as Proto, InetService as Service, Integer, Ipv4Addr as V4,
            Ipv6Addr as V6,
        };
        let of_family = |v4: &'static [DataType], v6: &'static [DataType]| match family {
            IpFamily::V4 => v4,
            IpFamily::V6 => v6,
        };
        let address = of_family(&[V4], &[V6]);
        let frontend = of_family(&[V4, Proto, Service], &[V6, Proto, Service]);
        let numbered = of_family(
            &[V4, Proto, Service, Integer],
            &[V6, Proto, Service, Integer],
        );
        let client = of_family(&[V4, Proto, Service, V4], &[V6, Proto, Service, V6]);
        let backend = of_family(&[V4, Service], &[V6, Service]);
        let coded = of_family(&[V4, Proto, Service, Code], &[V6, Proto, Service, Code]);
        let node_port: &[DataType] = &[Proto, Service];
        let code = Value::Data(&[Code]);
        let action: &[DataType] = &[Code];

        let (key, value, comment) = match self {
            Self::Frontends => (frontend, code, "frontend : kind of treatment"),
            Self::NodePorts => (node_port, code, "node port : kind of treatment"),
            Self::FrontendActions => (
                action,
                Value::Verdict,
                "kinds of @frontends and @node-ports",
            ),
            Self::SourceRestricted => (
                frontend,
                code,
                "frontend with source ranges : kind of treatment",
            ),
            Self::SourceRestrictedActions => (action, Value::Verdict, "kinds of @firewalled"),
            Self::SourceRanges => (client, Value::None, "frontend . sources it accepts"),
            Self::PodFrontends => (frontend, code, "frontend : kind of treatment of pods"),
            Self::HostFrontends => (frontend, code, "frontend : kind of treatment of this node"),
            Self::ExtnFrontends => (frontend, code, "frontend : kind of treatment of others"),
            Self::PodNodePorts => (node_port, code, "node port : kind of treatment of pods"),
            Self::HostNodePorts => (
                node_port,
                code,
                "node port : kind of treatment of this node",
            ),
            Self::ExtnNodePorts => (node_port, code, "node port : kind of treatment of others"),
            Self::SourceActions => (action, Value::Verdict, "kinds of the maps by source"),
            Self::FrontendOwners => (
                frontend,
                Value::Data(address),
                "frontend : address that names its ServicePort",
            ),
            Self::NodePortOwners => (
                node_port,
                Value::Data(address),
                "node port : address that names its ServicePort",
            ),
            Self::NodePortOwnerPorts => (
                node_port,
                Value::Data(&[Service]),
                "node port : port that names its ServicePort",
            ),
            Self::ClusterBackends => (
                numbered,
                Value::Data(backend),
                "ServicePort . number : backend",
            ),
            Self::LocalBackends => (
                numbered,
                Value::Data(backend),
                "ServicePort . number : backend on this node",
            ),
            Self::ClusterCodes => (
                numbered,
                code,
                "ServicePort with affinity . number : backend's code",
            ),
            Self::LocalCodes => (
                numbered,
                code,
                "ServicePort with affinity . number : code of backend on this node",
            ),
            Self::ClusterByCode => (
                coded,
                Value::Data(backend),
                "ServicePort with affinity . code : backend",
            ),
            Self::LocalByCode => (
                coded,
                Value::Data(backend),
                "ServicePort with affinity . code : backend on this node",
            ),
            Self::Affinity => (
                client,
                code,
                "ServicePort . client : code of the backend it had last",
            ),
            Self::NodePortAddresses => (address, Value::None, "addresses that accept node ports"),
            Self::Backends => (
                client,
                Value::None,
                "address . protocol . port . address of backends: the other end of a hairpin",
            ),
            Self::NoEndpoints => (frontend, Value::None, "frontends without endpoints"),
            Self::NoEndpointNodePorts => (node_port, Value::None, "node ports without endpoints"),
            Self::ExternalFrontends => {
                (frontend, Value::None, "external IPs and load balancer IPs")
            }
            Self::ClusterIps => (address, Value::None, "cluster IPs in use"),
            Self::ServiceCidrs => (address, Value::None, "where cluster IPs come from"),
            Self::Spared => (
                address,
                Value::None,
                "addresses of this node and of endpoints in @service-cidrs",
            ),
        };
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
