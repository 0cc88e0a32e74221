//! Which flows are stale, which messages say so, and when is the table listed?

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::*;
use crate::forwarding::{
    Backend, BackendSet, Change, Exposure, Frontend, FrontendAddress, FrontendKey, Globals,
    MarkBit, Route, Routes, ServicePort, ServicePortId,
};
use crate::net::{L4Proto, Port, V4};
use crate::sys::{Clock, SystemClock};

mod passes;
mod stale;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const P1: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 11);
const P2: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 12);

fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

fn service_port(protocol: L4Proto, live: &[Ipv4Addr]) -> Arc<ServicePort<V4>> {
    let backend = |&address| Backend {
        address,
        port: port(5353),
    };
    let backends: Box<[Backend<V4>]> = live.iter().map(backend).collect();
    let route = if live.is_empty() {
        Route::Reject
    } else {
        Route::Forward {
            to: BackendSet::Cluster,
            masquerade: false,
        }
    };
    let frontend = |exposure| Frontend {
        exposure,
        routes: Routes::all(route),
        source_ranges: None,
    };
    let key = |address, number| FrontendKey {
        address,
        protocol,
        port: port(number),
    };
    Arc::new(ServicePort {
        id: ServicePortId::new(&"ns/dns", "dns", protocol),
        protocol,
        cluster_ip: VIP,
        affinity: None,
        cluster: backends.clone(),
        local: Box::default(),
        live: backends,
        frontends: [
            (
                key(FrontendAddress::Vip(VIP), 53),
                frontend(Exposure::ClusterIp),
            ),
            (
                key(FrontendAddress::Node, 30053),
                frontend(Exposure::NodePort),
            ),
        ]
        .into(),
    })
}

fn state(ports: &[Arc<ServicePort<V4>>]) -> ForwardingState<V4> {
    ForwardingState {
        globals: Globals {
            detector: None,
            masquerade_bit: MarkBit::DEFAULT,
            node_port_addresses: [NODE].into(),
            service_cidrs: BTreeSet::new(),
            spared: BTreeSet::new(),
            drop_invalid: true,
        },
        service_ports: ports
            .iter()
            .map(|port| (port.id.clone(), Arc::clone(port)))
            .collect(),
    }
}

fn flow(destination: (Ipv4Addr, u16), answered_by: (Ipv4Addr, u16)) -> Flow<V4> {
    Flow {
        destination,
        answered_by,
        handle: Box::default(),
    }
}

fn changes(old: Option<&Arc<ServicePort<V4>>>, new: Option<&Arc<ServicePort<V4>>>) -> Changes<V4> {
    let id = old.or(new).unwrap().id.clone();
    Changes {
        globals: None,
        service_ports: [(
            id,
            Change {
                old: old.cloned(),
                new: new.cloned(),
            },
        )]
        .into(),
    }
}

#[test]
fn hostile_datagrams_are_not_believed() {
    let mut bytes = message::list::<V4>(true);
    for cut in 0..bytes.len() {
        assert!(message::answers::<V4>(&bytes[..cut]).count() < 100);
    }
    for at in 0..bytes.len() {
        bytes[at] ^= 0xff;
        assert!(message::answers::<V4>(&bytes).count() < 100);
    }
}
