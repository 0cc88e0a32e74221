//! Where does a ServicePort answer, and where does each source class go from there?
//!
//! This is SPEC's table M1, with the rows of M2 that belong to a frontend.

use std::sync::Arc;

use super::backends::Sets;
use super::context::Context;
use crate::forwarding::{
    Affinity, BackendSet, Exposure, Frontend, FrontendAddress, FrontendKey, Frontends, Route,
    Routes, ServicePort, ServicePortId,
};
use crate::model::{Service, ServiceKind, ServicePortSpec, TrafficPolicy};
use crate::net::{Family, Networks};

/// Compiles one port of a Service that has a ClusterIP in the family, with every frontend it claims.
pub(super) fn compile_port<F: Family>(
    service: &Service,
    port: &ServicePortSpec,
    cluster_ip: F::Addr,
    sets: Sets<F>,
    context: &Context<F>,
) -> ServicePort<F> {
    let frontends = compile_frontends(service, port, cluster_ip, &sets, context);
    let uses_local = frontends
        .values()
        .any(|frontend| uses_local(frontend.routes));
    let Sets {
        cluster,
        local,
        live,
    } = sets;
    ServicePort {
        id: ServicePortId::new(&service.name, &port.name, port.protocol),
        protocol: port.protocol,
        cluster_ip,
        affinity: service.affinity.map_or(Affinity::Off, |timeout| {
            Affinity::Seconds(timeout.seconds())
        }),
        cluster,
        local: if uses_local { local } else { Box::default() },
        live,
        frontends,
    }
}

fn compile_frontends<F: Family>(
    service: &Service,
    port: &ServicePortSpec,
    cluster_ip: F::Addr,
    sets: &Sets<F>,
    context: &Context<F>,
) -> Frontends<F> {
    let vip = |address: F::Addr| FrontendKey {
        address: FrontendAddress::Vip(address),
        protocol: port.protocol,
        port: port.port,
    };
    let routes = external_routes(service, sets, context);
    let external = |exposure| Frontend { exposure, routes };
    // The last one with an address counts: a ClusterIP before a LoadBalancer address, and that before an
    // externalIP, so that an address that is both is guarded by the source ranges (FW-1).
    let mut frontends = Vec::new();
    if let Some(number) = port.node_port {
        let key = FrontendKey {
            address: FrontendAddress::Node,
            protocol: port.protocol,
            port: number,
        };
        frontends.push((key, external(Exposure::NodePort)));
    }
    if context.allow_external_ips {
        let addresses = service.external_ips.iter().copied().filter_map(F::addr);
        frontends.extend(addresses.map(|a| (vip(a), external(Exposure::ExternalIp))));
    }
    let source_ranges = compile_source_ranges(service, context);
    let addresses = service.load_balancer_ips.iter().copied();
    frontends.extend(addresses.filter_map(F::addr).map(|address| {
        let source_ranges = source_ranges.clone();
        (
            vip(address),
            external(Exposure::LoadBalancer { source_ranges }),
        )
    }));
    let frontend = Frontend {
        exposure: Exposure::ClusterIp,
        routes: cluster_ip_routes(service, sets, context),
    };
    frontends.push((vip(cluster_ip), frontend));
    frontends.into_iter().collect()
}

/// Rows 1 to 3 of M1: the internal traffic policy alone decides.
fn cluster_ip_routes<F: Family>(service: &Service, sets: &Sets<F>, context: &Context<F>) -> Routes {
    let to = match service.internal_policy {
        TrafficPolicy::Cluster => BackendSet::Cluster,
        TrafficPolicy::Local => BackendSet::Local,
    };
    let others = route(sets, to, context.masquerade_others);
    context.told_apart(Routes {
        pod: route(sets, to, context.masquerade_pods),
        host: others,
        extn: others,
    })
}

/// Rows 4 to 8 of M1: the external traffic policy alone decides.
fn external_routes<F: Family>(service: &Service, sets: &Sets<F>, context: &Context<F>) -> Routes {
    // Spec: SVC-9. A policy left over on a Service that can have no external frontend does not count.
    let is_external = service.kind != ServiceKind::ClusterIp || !service.external_ips.is_empty();
    if service.external_policy == TrafficPolicy::Local && is_external {
        context.told_apart(Routes {
            pod: route(sets, BackendSet::Cluster, false),
            host: route(sets, BackendSet::Cluster, true),
            extn: route(sets, BackendSet::Local, false),
        })
    } else {
        Routes::all(route(sets, BackendSet::Cluster, true))
    }
}

/// C is empty only if ANY is false: reject; an empty L with ANY: drop (M2).
fn route<F: Family>(sets: &Sets<F>, to: BackendSet, masquerade: bool) -> Route {
    let is_empty = match to {
        BackendSet::Cluster => sets.cluster.is_empty(),
        BackendSet::Local => sets.local.is_empty(),
    };
    if sets.cluster.is_empty() {
        Route::Reject
    } else if is_empty {
        Route::Drop
    } else {
        Route::Forward { to, masquerade }
    }
}

fn uses_local(routes: Routes) -> bool {
    let is_local = |route| {
        matches!(
            route,
            Route::Forward {
                to: BackendSet::Local,
                ..
            }
        )
    };
    [routes.pod, routes.host, routes.extn]
        .into_iter()
        .any(is_local)
}

/// The sources that may use the LoadBalancer addresses; `None`: all. Spec: FW-2 to FW-5.
fn compile_source_ranges<F: Family>(
    service: &Service,
    context: &Context<F>,
) -> Option<Arc<Networks<F>>> {
    let ranges = service.source_ranges.iter().copied().filter_map(F::net);
    let mut ranges: Vec<F::Net> = ranges.collect();
    if ranges.is_empty() {
        return None;
    }
    let in_range = |address| ranges.iter().any(|range| F::contains(range, address));
    if context.node_ip.is_some_and(in_range) {
        let own = service.load_balancer_ips.iter().copied();
        ranges.extend(own.filter_map(F::addr).map(F::host_net));
    }
    let ranges: Networks<F> = ranges.into_iter().collect();
    (!ranges.is_everything()).then(|| ranges.into())
}
