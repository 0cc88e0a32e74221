//! How a test describes a Service.

use serde_json::{Map, Value, json};

use super::{TARGET_PORT, merge};
use crate::address::{Addr, Family, Protocol};

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
    /// A Service without ports.
    pub fn new(name: &str, family: Family, protocol: Protocol) -> Self {
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

    /// The object, as a manifest.
    pub fn to_json(&self) -> Value {
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
