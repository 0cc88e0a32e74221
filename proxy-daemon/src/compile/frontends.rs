//! Where does a ServicePort answer, and where does each source class go from there?
//!
//! This is SPEC's table M1, with the rows of M2 that belong to a frontend.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::backends::Sets;
use super::context::Context;
use crate::forwarding::{
    BackendSet, Exposure, Frontend, FrontendAddress, FrontendKey, Route, Routes, ServicePort,
    ServicePortId,
};
use crate::model::{AffinityTimeout, Service, ServiceKind, ServicePortSpec, TrafficPolicy};
use crate::net::Family;

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
        affinity: service.affinity.map(AffinityTimeout::seconds),
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
) -> BTreeMap<FrontendKey<F>, Frontend<F>> {
    let vip = |address: F::Addr| FrontendKey {
        address: FrontendAddress::Vip(address),
        protocol: port.protocol,
        port: port.port,
    };
    let external_routes = external_routes(service, sets);
    let external = |exposure| Frontend {
        exposure,
        routes: external_routes,
        source_ranges: None,
    };
    let mut frontends = BTreeMap::new();

    if let Some(number) = port.node_port {
        let key = FrontendKey {
            address: FrontendAddress::Node,
            protocol: port.protocol,
            port: number,
        };
        frontends.insert(key, external(Exposure::NodePort));
    }
    if context.allow_external_ips {
        for address in service.external_ips.iter().copied().filter_map(F::addr) {
            frontends.insert(vip(address), external(Exposure::ExternalIp));
        }
    }
    // After the externalIPs: an address that is both is guarded by the source ranges (FW-1).
    let source_ranges = compile_source_ranges(service, context);
    for address in service
        .load_balancer_ips
        .iter()
        .copied()
        .filter_map(F::addr)
    {
        let source_ranges = source_ranges.clone();
        let frontend = Frontend {
            source_ranges,
            ..external(Exposure::LoadBalancer)
        };
        frontends.insert(vip(address), frontend);
    }
    let frontend = Frontend {
        exposure: Exposure::ClusterIp,
        routes: cluster_ip_routes(service, sets, context),
        source_ranges: None,
    };
    frontends.insert(vip(cluster_ip), frontend);
    frontends
}

/// Rows 1 to 3 of M1: the internal traffic policy alone decides.
fn cluster_ip_routes<F: Family>(service: &Service, sets: &Sets<F>, context: &Context<F>) -> Routes {
    let to = match service.internal_policy {
        TrafficPolicy::Cluster => BackendSet::Cluster,
        TrafficPolicy::Local => BackendSet::Local,
    };
    let others = route(sets, to, context.masquerade_others);
    Routes {
        pod: route(sets, to, context.masquerade_pods),
        host: others,
        extn: others,
    }
}

/// Rows 4 to 8 of M1: the external traffic policy alone decides.
fn external_routes<F: Family>(service: &Service, sets: &Sets<F>) -> Routes {
    // Spec: SVC-9. A policy left over on a Service that can have no external frontend does not count.
    let is_external = service.kind != ServiceKind::ClusterIp || !service.external_ips.is_empty();
    if service.external_policy == TrafficPolicy::Local && is_external {
        Routes {
            pod: route(sets, BackendSet::Cluster, false),
            host: route(sets, BackendSet::Cluster, true),
            extn: route(sets, BackendSet::Local, false),
        }
    } else {
        Routes::all(route(sets, BackendSet::Cluster, true))
    }
}

/// C is empty only if ANY is false, which refuses; an empty L with ANY is silence (M2).
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

/// Who may use the LoadBalancer addresses; `None` is everyone. Spec: FW-2 to FW-5.
fn compile_source_ranges<F: Family>(
    service: &Service,
    context: &Context<F>,
) -> Option<Arc<[F::Net]>> {
    let mut ranges: Vec<F::Net> = service
        .source_ranges
        .iter()
        .copied()
        .filter_map(F::net)
        .collect();
    if ranges.is_empty() {
        return None;
    }
    let in_range = |address| ranges.iter().any(|range| F::contains(range, address));
    if context.node_ip.is_some_and(in_range) {
        let own = service
            .load_balancer_ips
            .iter()
            .copied()
            .filter_map(F::addr);
        ranges.extend(own.map(F::host_net));
    }
    let ranges: Vec<IpNet> = ranges.into_iter().map(Into::into).collect();
    let ranges: Vec<F::Net> = IpNet::aggregate(&ranges)
        .into_iter()
        .filter_map(F::net)
        .collect();
    let is_everyone = ranges.iter().any(|range| F::prefix(range).1 == 0);
    (!is_everyone).then(|| {
        let mut ranges = ranges;
        ranges.sort_unstable();
        ranges.into()
    })
}
