//! What the cluster looks like in a test: Services, EndpointSlices, the Node, ServiceCIDRs, as manifests.
//!
//! Invariants: the field names are those of the Kubernetes API, so that the daemon reads what a real cluster would give it; a
//! builder fills in everything that a test does not mention; one world serves any family and protocol.

use std::collections::BTreeMap;

use anyhow::Result;
use proxy_daemon::watch::Drained;
use serde_json::{Value, json};

use crate::address::{Family, Protocol};
use crate::daemon::Directory;
use crate::reactor;

pub mod many;
mod node;
mod read;
mod service;
mod slice;

pub use node::Node;
pub use read::read;
pub use service::Service;
pub use slice::{Endpoint, Slice};

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
        let cidrs = self.cidrs.iter();
        let cidrs = cidrs.map(|(name, cidrs)| service_cidr(name, cidrs));
        let items: Vec<Value> = nodes.chain(cidrs).chain(services).chain(slices).collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items})
    }

    /// What the daemon reads of it.
    ///
    /// # Errors
    /// When the file system refuses, or it takes too long.
    pub fn read(&self, node: &str) -> Result<Drained> {
        let directory = Directory::new()?;
        directory.write("cluster.yaml", &self.manifest().to_string())?;
        let (path, node) = (directory.path().to_owned(), node.to_owned());
        reactor::block(async move { read(&path, &node).await })
    }
}

/// A ServiceCIDR, as a manifest.
pub fn service_cidr<S: AsRef<str>>(name: &str, cidrs: &[S]) -> Value {
    let cidrs: Vec<&str> = cidrs.iter().map(AsRef::as_ref).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": cidrs},
    })
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
