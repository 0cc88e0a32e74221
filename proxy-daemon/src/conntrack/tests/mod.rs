//! Which flows are stale, which messages say so, and when is the table listed?

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::*;
use crate::forwarding::{
    Affinity, Backend, BackendSet, Change, Changes, Exposure, Frontend, FrontendAddress,
    FrontendKey, Globals, MarkBit, Netfilter, Route, Routes, ServicePort, ServicePortId,
};
use crate::net::{L4Proto, Networks, Port, V4};
use crate::sys::SystemClock;
use crate::sys::netfilter::attributes::{Attrs, Writer};

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
        affinity: Affinity::Off,
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
        .into_iter()
        .collect(),
    })
}

fn state(ports: &[Arc<ServicePort<V4>>]) -> ForwardingState<V4> {
    ForwardingState {
        globals: Globals {
            detector: None,
            local_addresses: [NODE].into(),
            node_port_addresses: [NODE].into(),
            service_cidrs: Networks::default(),
            netfilter: Netfilter {
                masquerade_bit: MarkBit::DEFAULT,
                drop_invalid: true,
            },
        },
        spared: BTreeSet::new(),
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
        service_ports: [(
            id,
            Change {
                old: old.cloned(),
                new: new.cloned(),
            },
        )]
        .into(),
        ..Changes::default()
    }
}

/// A flow as the kernel lists it.
fn listed() -> Writer {
    let tuple = |w: &mut Writer, kind, (source, destination): (Ipv4Addr, Ipv4Addr)| {
        w.nest(kind, |w| {
            w.nest(1, |w| {
                w.attr(1, &source.octets());
                w.attr(2, &destination.octets());
            });
            w.nest(2, |w| {
                w.attr(1, &[17]);
                w.attr(2, &53_u16.to_be_bytes());
                w.attr(3, &54_u16.to_be_bytes());
            });
        });
    };
    let mut w = Writer::new();
    tuple(&mut w, 1, (NODE, VIP));
    tuple(&mut w, 2, (P1, NODE));
    w.attr_u32(12, 7);
    w
}

#[test]
fn a_listed_flow_is_understood_and_named_by_its_own_attributes() {
    let bytes = listed();
    let flow = message::flow::<V4>(Attrs(bytes.as_slice())).unwrap();
    assert_eq!((flow.destination, flow.answered_by), ((VIP, 54), (P1, 53)));
    let named: Vec<u16> = Attrs(&flow.handle).map(|attr| attr.kind).collect();
    assert_eq!(named, [1, 12]);
}

#[test]
fn hostile_datagrams_are_not_believed() {
    let mut bytes = listed().as_slice().to_vec();
    let len = bytes.len();
    let read = |bytes: &[u8]| {
        let flow = message::flow::<V4>(Attrs(bytes));
        assert!(flow.is_none_or(|flow| flow.handle.len() <= len));
    };
    for cut in 0..len {
        read(&bytes[..cut]);
    }
    for at in 0..len {
        bytes[at] ^= 0xff;
        read(&bytes);
    }
}
