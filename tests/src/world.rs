//! What the cluster looks like in a test: Services, EndpointSlices, the Node, ServiceCIDRs, as manifests.
//!
//! Invariants: the field names are those of the Kubernetes API, so that the daemon reads what a real cluster would give it; a
//! builder fills in everything that a test does not mention; one world serves any family and protocol.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::address::{Addr, Family, Host, NODE, NODE_NAME, Protocol};

/// The port that echo servers listen on, unless a test says otherwise.
pub const TARGET_PORT: u16 = 8080;

/// The cluster of a test.
#[derive(Clone, Debug)]
pub struct World {
    /// The family of everything that does not say otherwise.
    pub family: Family,
    /// The protocol of every port that does not say otherwise.
    pub protocol: Protocol,
    services: BTreeMap<String, Service>,
    slices: BTreeMap<String, Slice>,
    node: Option<Node>,
    cidrs: BTreeMap<String, Vec<String>>,
}

impl World {
    /// A cluster with a Node and its ServiceCIDR, and no Services.
    pub fn new(family: Family, protocol: Protocol) -> Self {
        let cidrs = vec!["10.96.0.0/16".to_owned(), "fd00:96::/112".to_owned()];
        Self {
            family,
            protocol,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            node: Some(Node::default()),
            cidrs: [("kubernetes".to_owned(), cidrs)].into(),
        }
    }

    /// The Service of this name, made if it is not there.
    pub fn service(&mut self, name: &str) -> &mut Service {
        let (family, protocol) = (self.family, self.protocol);
        self.services
            .entry(name.into())
            .or_insert_with(|| Service::new(name, family, protocol))
    }

    /// Deletes a Service.
    pub fn delete_service(&mut self, name: &str) {
        self.services.remove(name).expect("there is such a Service");
    }

    /// The first slice of a Service, made if it is not there.
    pub fn endpoints(&mut self, service: &str) -> &mut Slice {
        self.slice(service, &format!("{service}-1"))
    }

    /// A slice of a Service by its own name, made if it is not there.
    pub fn slice(&mut self, service: &str, name: &str) -> &mut Slice {
        let (family, protocol) = (self.family, self.protocol);
        self.slices
            .entry(name.into())
            .or_insert_with(|| Slice::new(service, name, family, protocol))
    }

    /// Deletes a slice by its own name.
    pub fn delete_slice(&mut self, name: &str) {
        self.slices.remove(name).expect("there is such a slice");
    }

    /// Deletes the first slice of a Service.
    pub fn delete_endpoints(&mut self, service: &str) {
        self.delete_slice(&format!("{service}-1"));
    }

    /// The Node under test, made if it is not there.
    pub fn node(&mut self) -> &mut Node {
        self.node.get_or_insert_default()
    }

    /// Deletes the Node under test.
    pub fn delete_node(&mut self) {
        self.node = None;
    }

    /// Makes or replaces a ServiceCIDR.
    pub fn service_cidr(&mut self, name: &str, cidrs: &[&str]) {
        let cidrs = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
        self.cidrs.insert(name.into(), cidrs);
    }

    /// Deletes a ServiceCIDR.
    pub fn delete_service_cidr(&mut self, name: &str) {
        self.cidrs
            .remove(name)
            .expect("there is such a ServiceCIDR");
    }

    /// Everything, as a List.
    pub fn manifest(&self) -> Value {
        let services = self.services.values().map(Service::to_json);
        let slices = self.slices.values().map(Slice::to_json);
        let nodes = self.node.iter().map(Node::to_json);
        let cidrs = self.cidrs.iter().map(|(name, cidrs)| {
            json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": name},
                "spec": {"cidrs": cidrs},
            })
        });
        let items: Vec<Value> = nodes.chain(cidrs).chain(services).chain(slices).collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items})
    }
}

/// Lays one JSON object over another, the way `kubectl patch --type=merge` does.
fn merge(base: &mut Value, patch: &Value) {
    if let (Value::Object(base), Value::Object(patch)) = (&mut *base, patch) {
        for (key, value) in patch {
            if value.is_null() {
                base.remove(key);
            } else {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    } else {
        *base = patch.clone();
    }
}

/// A Service.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    families: Vec<Family>,
    protocol: Protocol,
    cluster_ip: Option<Addr>,
    ports: Vec<Port>,
    external_ips: Vec<Value>,
    ingress: Vec<Value>,
    ranges: Option<Vec<String>>,
    spec: Map<String, Value>,
    patch: Value,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    protocol: Protocol,
    port: u16,
    node_port: u16,
}

impl Service {
    fn new(name: &str, family: Family, protocol: Protocol) -> Self {
        Self {
            name: name.into(),
            families: vec![family],
            protocol,
            cluster_ip: None,
            ports: Vec::new(),
            external_ips: Vec::new(),
            ingress: Vec::new(),
            ranges: None,
            spec: Map::new(),
            patch: json!({}),
        }
    }

    fn text(&self, address: Addr) -> Value {
        address.of(self.families[0]).to_string().into()
    }

    /// Sets the ClusterIP.
    pub fn cluster_ip(&mut self, address: Addr) -> &mut Self {
        self.cluster_ip = Some(address);
        self
    }

    /// Sets the families, the first of which is the primary one.
    pub fn families(&mut self, families: &[Family]) -> &mut Self {
        self.families = families.to_vec();
        self
    }

    /// Adds the unnamed port.
    pub fn port(&mut self, port: u16) -> &mut Self {
        self.named_port("", port)
    }

    /// Adds a port.
    pub fn named_port(&mut self, name: &str, port: u16) -> &mut Self {
        self.port_of(name, port, self.protocol)
    }

    /// Adds a port of another protocol than the test's.
    pub fn port_of(&mut self, name: &str, port: u16, protocol: Protocol) -> &mut Self {
        self.ports.push(Port {
            name: name.into(),
            protocol,
            port,
            node_port: 0,
        });
        self
    }

    /// Takes all ports away.
    pub fn no_ports(&mut self) -> &mut Self {
        self.ports.clear();
        self
    }

    /// Gives the last port a nodePort.
    pub fn node_port(&mut self, port: u16) -> &mut Self {
        self.ports.last_mut().expect("a port first").node_port = port;
        self
    }

    /// Adds an externalIP.
    pub fn external_ip(&mut self, address: Addr) -> &mut Self {
        let text = self.text(address);
        self.external_ip_text(text.as_str().unwrap_or_default())
    }

    /// Adds an externalIP as it stands.
    pub fn external_ip_text(&mut self, text: &str) -> &mut Self {
        self.external_ips.push(text.into());
        self
    }

    /// Takes the externalIPs away.
    pub fn no_external_ips(&mut self) -> &mut Self {
        self.external_ips.clear();
        self
    }

    /// Adds a load balancer's address.
    pub fn load_balancer(&mut self, address: Addr) -> &mut Self {
        let ip = self.text(address);
        self.ingress(json!({ "ip": ip }))
    }

    /// Adds a load balancer's address with an ipMode.
    pub fn load_balancer_mode(&mut self, address: Addr, mode: &str) -> &mut Self {
        let ip = self.text(address);
        self.ingress(json!({ "ip": ip, "ipMode": mode }))
    }

    /// Adds an entry of `status.loadBalancer.ingress` as it stands.
    pub fn ingress(&mut self, entry: Value) -> &mut Self {
        self.ingress.push(entry);
        self
    }

    /// Takes the load balancer's addresses away.
    pub fn no_load_balancer(&mut self) -> &mut Self {
        self.ingress.clear();
        self
    }

    /// Sets `externalTrafficPolicy: Local`.
    pub fn external_local(&mut self) -> &mut Self {
        self.set("externalTrafficPolicy", json!("Local"))
    }

    /// Sets `internalTrafficPolicy: Local`.
    pub fn internal_local(&mut self) -> &mut Self {
        self.set("internalTrafficPolicy", json!("Local"))
    }

    /// Sets ClientIP affinity.
    pub fn affinity(&mut self, seconds: u32) -> &mut Self {
        self.set("sessionAffinity", json!("ClientIP"));
        self.set(
            "sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": seconds}}),
        )
    }

    /// Restricts the load balancer's clients.
    pub fn source_ranges(&mut self, ranges: &[&str]) -> &mut Self {
        self.ranges = Some(ranges.iter().map(|range| (*range).to_owned()).collect());
        self
    }

    /// Sets a field of the spec as it stands; null takes it out.
    pub fn set(&mut self, field: &str, value: Value) -> &mut Self {
        self.spec.insert(field.into(), value);
        self
    }

    /// Lays a merge patch over the finished object.
    pub fn patch(&mut self, patch: Value) -> &mut Self {
        self.patch = patch;
        self
    }

    fn service_type(&self) -> &'static str {
        if !self.ingress.is_empty() {
            "LoadBalancer"
        } else if self.ports.iter().any(|port| port.node_port != 0) {
            "NodePort"
        } else {
            "ClusterIP"
        }
    }

    fn to_json(&self) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(Port::to_json).collect();
        let families: Vec<&str> = self.families.iter().map(|f| f.api_name()).collect();
        let mut spec = json!({
            "type": self.service_type(),
            "ports": ports,
            "ipFamilies": families,
            "ipFamilyPolicy": if families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "selector": {"app": self.name},
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
        });
        if let Some(address) = self.cluster_ip {
            let addresses: Vec<String> = self
                .families
                .iter()
                .map(|family| address.of(*family).to_string())
                .collect();
            spec["clusterIP"] = json!(addresses[0]);
            spec["clusterIPs"] = json!(addresses);
        }
        if !self.external_ips.is_empty() {
            spec["externalIPs"] = json!(self.external_ips);
        }
        if let Some(ranges) = &self.ranges {
            spec["loadBalancerSourceRanges"] = json!(ranges);
        }
        merge(&mut spec, &Value::Object(self.spec.clone()));
        let mut service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": self.name,
                "namespace": "default",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": spec,
            "status": {"loadBalancer": {"ingress": self.ingress}},
        });
        merge(&mut service, &self.patch);
        service
    }
}

impl Port {
    fn to_json(&self) -> Value {
        let mut port = json!({
            "name": self.name,
            "protocol": self.protocol.api_name(),
            "port": self.port,
            "targetPort": TARGET_PORT,
        });
        if self.name.is_empty() {
            merge(&mut port, &json!({"name": null}));
        }
        if self.node_port != 0 {
            port["nodePort"] = json!(self.node_port);
        }
        port
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug)]
pub struct Slice {
    service: String,
    name: String,
    family: Family,
    protocol: Protocol,
    ports: Vec<Value>,
    endpoints: Vec<Value>,
    patch: Value,
}

impl Slice {
    fn new(service: &str, name: &str, family: Family, protocol: Protocol) -> Self {
        Self {
            service: service.into(),
            name: name.into(),
            family,
            protocol,
            ports: Vec::new(),
            endpoints: Vec::new(),
            patch: json!({}),
        }
    }

    /// Makes it a slice of this family.
    pub fn family(&mut self, family: Family) -> &mut Self {
        self.family = family;
        self
    }

    /// Adds a port; without any, a slice has the unnamed one, at [`TARGET_PORT`].
    pub fn port(&mut self, name: &str, port: u16) -> &mut Self {
        self.port_of(name, port, self.protocol)
    }

    /// Adds a port of another protocol than the test's.
    pub fn port_of(&mut self, name: &str, port: u16, protocol: Protocol) -> &mut Self {
        self.raw_port(json!({"name": name, "protocol": protocol.api_name(), "port": port}))
    }

    /// Adds a port as it stands.
    pub fn raw_port(&mut self, port: Value) -> &mut Self {
        self.ports.push(port);
        self
    }

    /// Takes all ports away.
    pub fn no_ports(&mut self) -> &mut Self {
        self.ports.clear();
        self
    }

    /// Adds an endpoint that is ready and serving.
    pub fn ready(&mut self, host: Host) -> &mut Self {
        self.endpoint(Endpoint::new(host).conditions(true, true, false))
    }

    /// Adds an endpoint that terminates and still serves.
    pub fn terminating(&mut self, host: Host) -> &mut Self {
        self.endpoint(Endpoint::new(host).conditions(false, true, true))
    }

    /// Adds an endpoint that terminates and does not serve any more.
    pub fn gone(&mut self, host: Host) -> &mut Self {
        self.endpoint(Endpoint::new(host).conditions(false, false, true))
    }

    /// Adds an endpoint that is neither ready nor serving nor terminating.
    pub fn unready(&mut self, host: Host) -> &mut Self {
        self.endpoint(Endpoint::new(host).conditions(false, false, false))
    }

    /// Adds an endpoint.
    pub fn endpoint(&mut self, endpoint: Endpoint) -> &mut Self {
        self.endpoints.push(endpoint.to_json(self.family));
        self
    }

    /// Takes all endpoints away.
    pub fn clear(&mut self) -> &mut Self {
        self.endpoints.clear();
        self
    }

    /// Lays a merge patch over the finished object.
    pub fn patch(&mut self, patch: Value) -> &mut Self {
        self.patch = patch;
        self
    }

    fn to_json(&self) -> Value {
        let ports = if self.ports.is_empty() {
            let protocol = self.protocol.api_name();
            vec![json!({"name": "", "protocol": protocol, "port": TARGET_PORT})]
        } else {
            self.ports.clone()
        };
        let mut slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": self.name,
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": self.service},
            },
            "addressType": self.family.api_name(),
            "ports": ports,
            "endpoints": self.endpoints,
        });
        merge(&mut slice, &self.patch);
        slice
    }
}

/// An endpoint of a slice.
#[derive(Clone, Debug)]
pub struct Endpoint {
    addresses: Vec<Addr>,
    rest: Value,
}

impl Endpoint {
    /// An endpoint at this host, on its node, without conditions.
    pub fn new(host: Host) -> Self {
        let node = host.node;
        let rest = if node.is_empty() {
            json!({})
        } else {
            json!({ "nodeName": node })
        };
        Self {
            addresses: vec![host.addr],
            rest,
        }
    }

    /// Sets ready, serving and terminating.
    #[must_use]
    pub fn conditions(self, ready: bool, serving: bool, terminating: bool) -> Self {
        self.patch(json!({"conditions": {
            "ready": ready, "serving": serving, "terminating": terminating
        }}))
    }

    /// Says that it belongs to no node.
    #[must_use]
    pub fn without_node(self) -> Self {
        self.patch(json!({"nodeName": null}))
    }

    /// Hints at zones.
    #[must_use]
    pub fn for_zones(self, zones: &[&str]) -> Self {
        let zones: Vec<Value> = zones.iter().map(|zone| json!({ "name": zone })).collect();
        self.patch(json!({"hints": {"forZones": zones}}))
    }

    /// Hints at nodes.
    #[must_use]
    pub fn for_nodes(self, nodes: &[&str]) -> Self {
        let nodes: Vec<Value> = nodes.iter().map(|node| json!({ "name": node })).collect();
        self.patch(json!({"hints": {"forNodes": nodes}}))
    }

    /// Adds another address.
    #[must_use]
    pub fn also(mut self, address: Addr) -> Self {
        self.addresses.push(address);
        self
    }

    /// Lays a merge patch over it.
    #[must_use]
    pub fn patch(mut self, patch: Value) -> Self {
        merge(&mut self.rest, &patch);
        self
    }

    fn to_json(&self, family: Family) -> Value {
        let addresses: Vec<String> = self
            .addresses
            .iter()
            .map(|address| address.of(family).to_string())
            .collect();
        let mut endpoint = json!({ "addresses": addresses });
        merge(&mut endpoint, &self.rest);
        endpoint
    }
}

/// The Node under test.
#[derive(Clone, Debug)]
pub struct Node {
    object: Value,
}

impl Default for Node {
    fn default() -> Self {
        let mut node = Self {
            object: json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": NODE_NAME,
                    "labels": {
                        "kubernetes.io/hostname": NODE_NAME,
                        "topology.kubernetes.io/zone": "zone-a",
                    },
                },
                "spec": {
                    "podCIDR": "10.244.1.0/24",
                    "podCIDRs": ["10.244.1.0/24", "fd00:244:0:1::/64"],
                },
                "status": {},
            }),
        };
        node.internal_ips(&[
            &NODE.of(Family::V4).to_string(),
            &NODE.of(Family::V6).to_string(),
        ]);
        node
    }
}

impl Node {
    /// Sets the InternalIPs.
    pub fn internal_ips(&mut self, addresses: &[&str]) -> &mut Self {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}))
            .collect();
        self.patch(json!({"status": {"addresses": addresses}}))
    }

    /// Sets the zone label; `None` takes it out.
    pub fn zone(&mut self, zone: Option<&str>) -> &mut Self {
        self.patch(json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}))
    }

    /// Lays a merge patch over it.
    pub fn patch(&mut self, patch: Value) -> &mut Self {
        merge(&mut self.object, &patch);
        self
    }

    fn to_json(&self) -> Value {
        self.object.clone()
    }
}
