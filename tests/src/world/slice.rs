//! How a test describes an EndpointSlice.

use serde_json::{Value, json};

use super::{TARGET_PORT, merge};
use crate::address::{Addr, Family, Host, Protocol};

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
    /// A slice of a Service, without endpoints.
    pub fn new(service: &str, name: &str, family: Family, protocol: Protocol) -> Self {
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

    /// The object, as a manifest.
    pub fn to_json(&self) -> Value {
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
        Self::at(host.addr, host.node)
    }

    /// An endpoint at this address, on this node if it has a name, without conditions.
    pub fn at(addr: Addr, node: &str) -> Self {
        let rest = if node.is_empty() {
            json!({})
        } else {
            json!({ "nodeName": node })
        };
        Self {
            addresses: vec![addr],
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
