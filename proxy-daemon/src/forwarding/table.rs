//! How does a person read a forwarding state?
//!
//! One line per frontend, one indented line per set of backends; equal states print equal text, so that
//! two modes, or two sources, can be compared with `diff`. Spec: XM-15.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use super::eval::set_name;
use super::{
    Affinity, BackendSet, Detector, Exposure, ForwardingState, Frontend, FrontendKey, Globals,
    Netfilter, Route, ServicePort,
};
use crate::net::Family;

/// The whole state as text.
pub fn table<F: Family>(state: &ForwardingState<F>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    write_state(&mut text, state).unwrap_or_default();
    text
}

fn write_state<F: Family>(out: &mut String, state: &ForwardingState<F>) -> fmt::Result {
    let ForwardingState {
        globals,
        spared,
        service_ports,
    } = state;
    writeln!(out, "{}", F::FAMILY)?;
    write_globals(out, globals, spared)?;
    for port in service_ports.values() {
        write_port(out, port)?;
    }
    Ok(())
}

fn write_globals<F: Family>(
    out: &mut String,
    globals: &Globals<F>,
    spared: &BTreeSet<F::Addr>,
) -> fmt::Result {
    let Globals {
        detector,
        local_addresses,
        node_port_addresses,
        service_cidrs,
        netfilter: Netfilter {
            masquerade_bit,
            drop_invalid,
        },
    } = globals;
    match detector {
        None => writeln!(out, "  pods: not told apart")?,
        Some(Detector::Network(network)) => writeln!(out, "  pods: from {network}")?,
        Some(Detector::Interface(name)) => writeln!(out, "  pods: through {name}")?,
        Some(Detector::InterfacePrefix(prefix)) => writeln!(out, "  pods: through {prefix}*")?,
    }
    writeln!(out, "  masquerade mark: {:#x}", masquerade_bit.mask())?;
    writeln!(out, "  node addresses: {}", list(local_addresses.iter()))?;
    writeln!(
        out,
        "  NodePort addresses: {}",
        list(node_port_addresses.iter())
    )?;
    writeln!(out, "  ServiceCIDRs: {service_cidrs}")?;
    if !spared.is_empty() {
        writeln!(out, "    but not: {}", list(spared.iter()))?;
    }
    writeln!(
        out,
        "  INVALID packets of endpoints: {}",
        if *drop_invalid { "drop" } else { "pass" }
    )
}

fn write_port<F: Family>(out: &mut String, port: &ServicePort<F>) -> fmt::Result {
    let ServicePort {
        id,
        protocol: _,
        cluster_ip,
        affinity,
        cluster,
        local,
        live: _,
        frontends,
    } = port;
    write!(out, "{id} of {cluster_ip}")?;
    match affinity {
        Affinity::Off => writeln!(out)?,
        Affinity::Seconds(seconds) => writeln!(out, ", affinity {seconds} s")?,
        Affinity::OverLimit => writeln!(out, ", no affinity: over the limit of this mode")?,
    }
    for (key, frontend) in frontends.iter() {
        write_frontend(out, *key, frontend)?;
    }
    for (set, backends) in [(BackendSet::Cluster, cluster), (BackendSet::Local, local)] {
        if !backends.is_empty() {
            writeln!(out, "    {}: {}", set_name(set), list(backends.iter()))?;
        }
    }
    Ok(())
}

fn write_frontend<F: Family>(
    out: &mut String,
    key: FrontendKey<F>,
    frontend: &Frontend<F>,
) -> fmt::Result {
    let Frontend { exposure, routes } = frontend;
    write!(out, "  {exposure} {key}: POD {}", RouteText(routes.pod))?;
    write!(
        out,
        ", HOST {}, EXTN {}",
        RouteText(routes.host),
        RouteText(routes.extn)
    )?;
    if let Exposure::LoadBalancer {
        source_ranges: Some(ranges),
    } = exposure
    {
        write!(out, "; only from {ranges}")?;
    }
    writeln!(out)
}

/// A route in a few words.
struct RouteText(Route);

impl fmt::Display for RouteText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Route::Forward {
                to,
                masquerade: false,
            } => f.write_str(set_name(to)),
            Route::Forward {
                to,
                masquerade: true,
            } => write!(f, "{} masqueraded", set_name(to)),
            Route::Reject => f.write_str("reject"),
            Route::Drop => f.write_str("drop"),
        }
    }
}

fn list<T: fmt::Display>(items: impl Iterator<Item = T>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.join(" ")
    }
}
