//! How a test describes the Node.

use serde_json::{Value, json};

use super::merge;
use crate::address::{Family, NODE, NODE_NAME};

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

    /// The object, as a manifest.
    pub fn to_json(&self) -> Value {
        self.object.clone()
    }
}
