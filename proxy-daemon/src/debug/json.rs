//! How does a program read a forwarding state?

use serde_json::{Map, Value, json};

use super::Inside;
use crate::forwarding::{
    Backend, BackendSet, Detector, ForwardingState, Frontend, FrontendAddress, FrontendKey,
    Globals, Route, ServicePort,
};
use crate::net::Family;

/// Both forwarding states, by family.
pub fn json(inside: &Inside) -> Value {
    let mut families = Map::new();
    if let Some(state) = &inside.v4 {
        families.insert("IPv4".to_owned(), of_state(state));
    }
    if let Some(state) = &inside.v6 {
        families.insert("IPv6".to_owned(), of_state(state));
    }
    json!({"families": families, "diagnostics": inside.diagnostics})
}

fn of_state<F: Family>(state: &ForwardingState<F>) -> Value {
    let ForwardingState {
        globals,
        service_ports,
    } = state;
    let ports: Vec<Value> = service_ports.values().map(|port| of_port(port)).collect();
    json!({"globals": of_globals(globals), "servicePorts": ports})
}

fn of_globals<F: Family>(globals: &Globals<F>) -> Value {
    let Globals {
        detector,
        masquerade_bit,
        node_port_addresses,
        service_cidrs,
        spared,
        drop_invalid,
    } = globals;
    let detector = match detector {
        None => Value::Null,
        Some(Detector::Network(network)) => json!({"network": network.to_string()}),
        Some(Detector::Interface(name)) => json!({"interface": name.as_str()}),
        Some(Detector::InterfacePrefix(prefix)) => json!({"interfacePrefix": prefix.as_str()}),
    };
    json!({
        "detector": detector,
        "masqueradeBit": masquerade_bit.bit(),
        "nodePortAddresses": texts(node_port_addresses.iter()),
        "serviceCIDRs": texts(service_cidrs.iter()),
        "spared": texts(spared.iter()),
        "dropInvalid": drop_invalid,
    })
}

fn of_port<F: Family>(port: &ServicePort<F>) -> Value {
    let ServicePort {
        id,
        protocol,
        cluster_ip,
        affinity,
        cluster,
        local,
        live,
        frontends,
    } = port;
    let frontends: Vec<Value> = frontends
        .iter()
        .map(|(key, frontend)| of_frontend(key, frontend))
        .collect();
    json!({
        "id": id.as_str(),
        "protocol": protocol.name(),
        "clusterIP": cluster_ip.to_string(),
        "affinitySeconds": affinity,
        "cluster": backends(cluster),
        "local": backends(local),
        "live": backends(live),
        "frontends": frontends,
    })
}

fn of_frontend<F: Family>(key: &FrontendKey<F>, frontend: &Frontend<F>) -> Value {
    let Frontend {
        exposure,
        routes,
        source_ranges,
    } = frontend;
    let address = match key.address {
        FrontendAddress::Vip(address) => json!(address.to_string()),
        FrontendAddress::Node => Value::Null,
    };
    json!({
        "exposure": exposure.to_string(),
        "address": address,
        "port": key.port.get(),
        "routes": {"pod": route(routes.pod), "host": route(routes.host), "extn": route(routes.extn)},
        "sourceRanges": source_ranges.as_ref().map(|ranges| texts(ranges.iter())),
    })
}

fn route(route: Route) -> Value {
    match route {
        Route::Forward { to, masquerade } => {
            let to = match to {
                BackendSet::Cluster => "cluster",
                BackendSet::Local => "local",
            };
            json!({"to": to, "masquerade": masquerade})
        }
        Route::Reject => json!("reject"),
        Route::Drop => json!("drop"),
    }
}

fn backends<F: Family>(backends: &[Backend<F>]) -> Vec<String> {
    texts(backends.iter())
}

fn texts<T: ToString>(things: impl Iterator<Item = T>) -> Vec<String> {
    things.map(|thing| thing.to_string()).collect()
}
