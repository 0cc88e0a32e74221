//! Which fields of Kubernetes objects do we read at all?
//!
//! One struct stands for all four kinds: a field that a kind does not have is simply missing.
//! Invariants: nothing is validated here; strings borrow from the text where it allows.
//! Spec: SVC-6; what is not named here is ignored.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::field::{Field, mapping_slot};

type Text<'a> = Field<Cow<'a, str>>;
type Texts<'a> = Field<Vec<Field<Cow<'a, str>>>>;
type List<T> = Field<Vec<Field<T>>>;

/// A Service, EndpointSlice, Node or ServiceCIDR as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(
    default,
    rename_all = "camelCase",
    bound(deserialize = "I: Default + Deserialize<'de>")
)]
pub(crate) struct Object<'a, I = IgnoredAny> {
    #[serde(borrow)]
    pub(crate) api_version: Text<'a>,
    #[serde(borrow)]
    pub(crate) kind: Text<'a>,
    #[serde(borrow)]
    pub(crate) metadata: Field<Metadata<'a>>,
    #[serde(borrow)]
    pub(crate) spec: Field<Spec<'a>>,
    #[serde(borrow)]
    pub(crate) status: Field<Status<'a>>,
    // What an EndpointSlice has at its top level.
    #[serde(borrow)]
    pub(crate) address_type: Text<'a>,
    #[serde(borrow)]
    pub(crate) endpoints: List<Endpoint<'a>>,
    #[serde(borrow)]
    pub(crate) ports: List<Port<'a>>,
    // What the `Status` has that a server answers with.
    pub(crate) code: Field<i64>,
    #[serde(borrow)]
    pub(crate) message: Text<'a>,
    // What a list has.
    pub(crate) items: I,
}

/// An object, or a list of objects; lists in lists are not read, so that no text makes us recurse.
pub(crate) type Document<'a> = Object<'a, List<Object<'a>>>;

impl<'a> Document<'a> {
    /// The document as an object, and the items that it has as a list.
    pub(crate) fn into_parts(self) -> (Object<'a>, List<Object<'a>>) {
        let object = Object {
            api_version: self.api_version,
            kind: self.kind,
            metadata: self.metadata,
            spec: self.spec,
            status: self.status,
            address_type: self.address_type,
            endpoints: self.endpoints,
            ports: self.ports,
            code: self.code,
            message: self.message,
            items: IgnoredAny,
        };
        (object, self.items)
    }
}

/// One line of a watch.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Event<'a> {
    #[serde(borrow, rename = "type")]
    pub(crate) kind: Text<'a>,
    #[serde(borrow)]
    pub(crate) object: Field<Object<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata<'a> {
    #[serde(borrow)]
    pub(crate) name: Text<'a>,
    #[serde(borrow)]
    pub(crate) namespace: Text<'a>,
    #[serde(borrow)]
    pub(crate) labels: Field<Labels<'a>>,
    #[serde(borrow)]
    pub(crate) annotations: Field<Annotations<'a>>,
    #[serde(borrow)]
    pub(crate) resource_version: Text<'a>,
    #[serde(borrow)]
    pub(crate) creation_timestamp: Text<'a>,
    #[serde(borrow)]
    pub(crate) deletion_timestamp: Text<'a>,
    // What the metadata of a page of a list has.
    #[serde(borrow, rename = "continue")]
    pub(crate) continue_token: Text<'a>,
}

/// The labels that mean something to us.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Labels<'a> {
    #[serde(borrow, rename = "service.kubernetes.io/service-proxy-name")]
    pub(crate) service_proxy_name: Text<'a>,
    #[serde(borrow, rename = "service.kubernetes.io/headless")]
    pub(crate) headless: Text<'a>,
    #[serde(borrow, rename = "kubernetes.io/service-name")]
    pub(crate) service_name: Text<'a>,
    #[serde(borrow, rename = "topology.kubernetes.io/zone")]
    pub(crate) zone: Text<'a>,
}

/// The annotations that mean something to us.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Annotations<'a> {
    #[serde(borrow, rename = "k8s.io/initial-events-end")]
    pub(crate) initial_events_end: Text<'a>,
}

/// `spec` of a Service, a Node or a ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Spec<'a> {
    // Service.
    #[serde(borrow, rename = "type")]
    pub(crate) kind: Text<'a>,
    #[serde(borrow, rename = "clusterIP")]
    pub(crate) cluster_ip: Text<'a>,
    #[serde(borrow, rename = "clusterIPs")]
    pub(crate) cluster_ips: Texts<'a>,
    #[serde(borrow)]
    pub(crate) ip_families: Texts<'a>,
    #[serde(borrow)]
    pub(crate) ports: List<Port<'a>>,
    #[serde(borrow, rename = "externalIPs")]
    pub(crate) external_ips: Texts<'a>,
    #[serde(borrow)]
    pub(crate) session_affinity: Text<'a>,
    #[serde(borrow)]
    pub(crate) session_affinity_config: Field<AffinityConfig<'a>>,
    #[serde(borrow)]
    pub(crate) external_traffic_policy: Text<'a>,
    #[serde(borrow)]
    pub(crate) internal_traffic_policy: Text<'a>,
    pub(crate) health_check_node_port: Field<i64>,
    #[serde(borrow)]
    pub(crate) load_balancer_source_ranges: Texts<'a>,
    // Node.
    #[serde(borrow, rename = "podCIDR")]
    pub(crate) pod_cidr: Text<'a>,
    #[serde(borrow, rename = "podCIDRs")]
    pub(crate) pod_cidrs: Texts<'a>,
    #[serde(borrow)]
    pub(crate) taints: List<Taint<'a>>,
    // ServiceCIDR.
    #[serde(borrow)]
    pub(crate) cidrs: Texts<'a>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct AffinityConfig<'a> {
    #[serde(borrow, rename = "clientIP")]
    pub(crate) client_ip: Field<ClientIpConfig<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClientIpConfig<'a> {
    pub(crate) timeout_seconds: Field<i64>,
    #[serde(skip)]
    text: std::marker::PhantomData<&'a str>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Taint<'a> {
    #[serde(borrow)]
    pub(crate) key: Text<'a>,
}

/// A port of a Service or of an EndpointSlice.
#[expect(clippy::struct_field_names, reason = "the names are those of the API")]
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Port<'a> {
    #[serde(borrow)]
    pub(crate) name: Text<'a>,
    #[serde(borrow)]
    pub(crate) protocol: Text<'a>,
    pub(crate) port: Field<i64>,
    pub(crate) node_port: Field<i64>,
}

/// `status` of a Service or of a Node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status<'a> {
    #[serde(borrow)]
    pub(crate) load_balancer: Field<LoadBalancer<'a>>,
    #[serde(borrow)]
    pub(crate) addresses: List<NodeAddress<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancer<'a> {
    #[serde(borrow)]
    pub(crate) ingress: List<Ingress<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Ingress<'a> {
    #[serde(borrow)]
    pub(crate) ip: Text<'a>,
    #[serde(borrow)]
    pub(crate) ip_mode: Text<'a>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct NodeAddress<'a> {
    #[serde(borrow, rename = "type")]
    pub(crate) kind: Text<'a>,
    #[serde(borrow)]
    pub(crate) address: Text<'a>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Endpoint<'a> {
    #[serde(borrow)]
    pub(crate) addresses: Texts<'a>,
    #[serde(borrow)]
    pub(crate) conditions: Field<Conditions<'a>>,
    #[serde(borrow)]
    pub(crate) node_name: Text<'a>,
    #[serde(borrow)]
    pub(crate) hints: Field<Hints<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Conditions<'a> {
    pub(crate) ready: Field<bool>,
    pub(crate) serving: Field<bool>,
    pub(crate) terminating: Field<bool>,
    #[serde(skip)]
    text: std::marker::PhantomData<&'a str>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Hints<'a> {
    #[serde(borrow)]
    pub(crate) for_zones: List<Hint<'a>>,
    #[serde(borrow)]
    pub(crate) for_nodes: List<Hint<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Hint<'a> {
    #[serde(borrow)]
    pub(crate) name: Text<'a>,
}

mapping_slot!(
    Object,
    Metadata,
    Labels,
    Annotations,
    Spec,
    AffinityConfig,
    ClientIpConfig,
    Taint,
    Port,
    Status,
    LoadBalancer,
    Ingress,
    NodeAddress,
    Endpoint,
    Conditions,
    Hints,
    Hint
);
