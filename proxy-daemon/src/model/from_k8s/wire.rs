//! Which fields of Kubernetes objects do we read at all?
//!
//! One struct stands for all four kinds: a field that a kind does not have is simply missing.
//! Invariants: nothing is validated here; strings borrow from the text where it allows: `borrow` on one
//! field of a struct holds for all of them.
//! Spec: SVC-6; what is not named here is ignored.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::field::{Field, Str, Typed};

pub(crate) type Text<'a> = Field<Str<'a>>;
pub(crate) type Texts<'a> = List<Str<'a>>;
pub(crate) type List<T> = Field<Vec<Field<T>>>;

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
    pub(crate) kind: Text<'a>,
    pub(crate) metadata: Field<Metadata<'a>>,
    pub(crate) spec: Field<Spec<'a>>,
    pub(crate) status: Field<Status<'a>>,
    // What an EndpointSlice has at its top level.
    pub(crate) address_type: Text<'a>,
    pub(crate) endpoints: List<Endpoint<'a>>,
    pub(crate) ports: List<Port<'a>>,
    // What the `Status` has that a server answers with.
    pub(crate) code: Field<i64>,
    pub(crate) message: Text<'a>,
    // What a list has.
    pub(crate) items: I,
}

impl Object<'_> {
    /// The labels, if there are any.
    pub(crate) fn labels(&self) -> Option<&Labels<'_>> {
        self.metadata.value()?.labels.value()
    }
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
    pub(crate) object: Field<Object<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata<'a> {
    #[serde(borrow)]
    pub(crate) name: Text<'a>,
    pub(crate) namespace: Text<'a>,
    pub(crate) labels: Field<Labels<'a>>,
    pub(crate) annotations: Field<Annotations<'a>>,
    pub(crate) resource_version: Text<'a>,
    pub(crate) creation_timestamp: Text<'a>,
    pub(crate) deletion_timestamp: Text<'a>,
    // What the metadata of a page of a list has.
    #[serde(rename = "continue")]
    pub(crate) continue_token: Text<'a>,
}

/// The labels that mean something to us.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Labels<'a> {
    #[serde(borrow, rename = "service.kubernetes.io/service-proxy-name")]
    pub(crate) service_proxy_name: Text<'a>,
    #[serde(rename = "service.kubernetes.io/headless")]
    pub(crate) headless: Text<'a>,
    #[serde(rename = "kubernetes.io/service-name")]
    pub(crate) service_name: Text<'a>,
    #[serde(rename = "topology.kubernetes.io/zone")]
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
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Text<'a>,
    #[serde(rename = "clusterIPs")]
    pub(crate) cluster_ips: Texts<'a>,
    pub(crate) ip_families: Texts<'a>,
    pub(crate) ports: List<Port<'a>>,
    #[serde(rename = "externalIPs")]
    pub(crate) external_ips: Texts<'a>,
    pub(crate) session_affinity: Text<'a>,
    pub(crate) session_affinity_config: Field<AffinityConfig>,
    pub(crate) external_traffic_policy: Text<'a>,
    pub(crate) internal_traffic_policy: Text<'a>,
    pub(crate) health_check_node_port: Field<i64>,
    pub(crate) load_balancer_source_ranges: Texts<'a>,
    // Node.
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Text<'a>,
    #[serde(rename = "podCIDRs")]
    pub(crate) pod_cidrs: Texts<'a>,
    pub(crate) taints: List<Taint<'a>>,
    // ServiceCIDR.
    pub(crate) cidrs: Texts<'a>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct AffinityConfig {
    #[serde(rename = "clientIP")]
    pub(crate) client_ip: Field<ClientIpConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClientIpConfig {
    pub(crate) timeout_seconds: Field<i64>,
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
    pub(crate) ip_mode: Text<'a>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct NodeAddress<'a> {
    #[serde(borrow, rename = "type")]
    pub(crate) kind: Text<'a>,
    pub(crate) address: Text<'a>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Endpoint<'a> {
    #[serde(borrow)]
    pub(crate) addresses: Texts<'a>,
    pub(crate) conditions: Field<Conditions>,
    pub(crate) node_name: Text<'a>,
    pub(crate) hints: Field<Hints<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Conditions {
    pub(crate) ready: Field<bool>,
    pub(crate) serving: Field<bool>,
    pub(crate) terminating: Field<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Hints<'a> {
    #[serde(borrow)]
    pub(crate) for_zones: List<Hint<'a>>,
    pub(crate) for_nodes: List<Hint<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Hint<'a> {
    #[serde(borrow)]
    pub(crate) name: Text<'a>,
}

impl Typed for Object<'_> {}
impl Typed for Metadata<'_> {}
impl Typed for Labels<'_> {}
impl Typed for Annotations<'_> {}
impl Typed for Spec<'_> {}
impl Typed for AffinityConfig {}
impl Typed for ClientIpConfig {}
impl Typed for Taint<'_> {}
impl Typed for Port<'_> {}
impl Typed for Status<'_> {}
impl Typed for LoadBalancer<'_> {}
impl Typed for Ingress<'_> {}
impl Typed for NodeAddress<'_> {}
impl Typed for Endpoint<'_> {}
impl Typed for Conditions {}
impl Typed for Hints<'_> {}
impl Typed for Hint<'_> {}
