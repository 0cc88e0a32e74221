//! Which flows are stale, which messages say so, and when is the table listed?

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use super::*;
use crate::forwarding::{
    Backend, BackendSet, Change, Exposure, Frontend, FrontendAddress, FrontendKey, Globals,
    MarkBit, Route, Routes, ServicePort,
};
use crate::net::{Port, V4};
use crate::sys::{Clock, SystemClock};

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

fn is_stale(live: &[Ipv4Addr], flow: &Flow<V4>) -> bool {
    let port = service_port(L4Proto::Udp, live);
    let state = state(&[Arc::clone(&port)]);
    let local = [IpAddr::V4(NODE)].into();
    Plan::new(&state, &[port.id.clone()].into(), &local).is_stale(flow)
}

#[test]
fn ct_1_flows_to_backends_that_are_gone_are_stale() {
    let gone = flow((VIP, 53), (P2, 5353));
    assert!(is_stale(&[P1], &gone));
    assert!(!is_stale(&[P1, P2], &gone));
    assert!(
        is_stale(&[P1], &flow((VIP, 53), (P1, 53))),
        "the port changed"
    );
    assert!(
        is_stale(&[P1], &flow((VIP, 53), (VIP, 53))),
        "never translated"
    );
    assert!(is_stale(&[P1], &flow((NODE, 30053), (P2, 5353))));
}

#[test]
fn ct_1_other_flows_are_left_alone() {
    assert!(!is_stale(&[P1], &flow((VIP, 54), (P2, 5353))));
    assert!(!is_stale(&[P1], &flow((P2, 53), (P2, 53))));
    assert!(!is_stale(&[P1], &flow((VIP, 0), (P2, 5353))));
}

#[test]
fn ct_3_without_live_endpoints_flows_stay() {
    assert!(!is_stale(&[], &flow((VIP, 53), (P2, 5353))));
}

#[test]
fn ct_5_a_node_port_number_of_another_node_is_left_alone() {
    let elsewhere = Ipv4Addr::new(203, 0, 113, 7);
    assert!(!is_stale(
        &[P1],
        &flow((elsewhere, 30053), (elsewhere, 30053))
    ));
}

#[derive(Default, Clone)]
struct FakeTable(Arc<Mutex<(Vec<Flow<V4>>, usize)>>);

impl FlowTable<V4> for FakeTable {
    fn list(
        &mut self,
        wanted: &dyn Fn(&Flow<V4>) -> bool,
    ) -> Result<Vec<Flow<V4>>, ConntrackError> {
        let mut table = self.0.lock().unwrap();
        table.1 += 1;
        Ok(table
            .0
            .iter()
            .filter(|flow| wanted(flow))
            .cloned()
            .collect())
    }

    fn delete(&mut self, flow: &Flow<V4>) -> Result<(), ConntrackError> {
        self.0.lock().unwrap().0.retain(|other| other != flow);
        Ok(())
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
fn ct_4_ct_6_only_changes_of_udp_list_the_table() {
    let table = FakeTable::default();
    let mut stale = StaleFlows::new(Box::new(table.clone()));
    let now = SystemClock.now();
    let tcp = service_port(L4Proto::Tcp, &[P1]);
    stale.note(&changes(None, Some(&tcp)));
    assert_eq!(stale.deadline(now), None);
    let udp = service_port(L4Proto::Udp, &[P1]);
    let mut affine = ServicePort::clone(&udp);
    affine.affinity = Some(10);
    stale.note(&changes(Some(&udp), Some(&Arc::new(affine))));
    assert_eq!(stale.deadline(now), None);
    let grown = service_port(L4Proto::Udp, &[P1, P2]);
    stale.note(&changes(Some(&udp), Some(&grown)));
    assert_eq!(stale.deadline(now), None, "nothing can be stale");
    let none = service_port(L4Proto::Udp, &[]);
    stale.note(&changes(Some(&none), Some(&udp)));
    assert_eq!(stale.deadline(now), Some(now), "untranslated flows can");
    stale.note(&changes(Some(&udp), None));
    assert_eq!(stale.deadline(now), None);
    stale.note(&changes(Some(&grown), Some(&udp)));
    assert_eq!(stale.deadline(now), Some(now));
    stale.note(&changes(Some(&udp), None));
    assert_eq!(stale.deadline(now), None, "CT-3: it is gone");
}

#[test]
fn ct_1_a_pass_deletes_what_is_stale_and_nothing_else() {
    let keep = flow((VIP, 53), (P1, 5353));
    let drop = flow((VIP, 53), (P2, 5353));
    let table = FakeTable(Arc::new(Mutex::new((vec![keep.clone(), drop], 0))));
    let mut stale = StaleFlows::new(Box::new(table.clone()));
    let udp = service_port(L4Proto::Udp, &[P1]);
    stale.note(&changes(None, Some(&udp)));
    let pass = stale.clean(&state(&[udp]), &BTreeSet::new(), &SystemClock);
    let pass = pass.unwrap().unwrap();
    assert_eq!((pass.n_deleted, pass.n_failed), (1, 0));
    assert_eq!(table.0.lock().unwrap().0, [keep]);
    assert_eq!(stale.deadline(SystemClock.now()), None);
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

#[test]
fn ct_1_passes_wait_only_when_many_follow_each_other() {
    let mut stale = StaleFlows::<V4>::new(Box::new(FakeTable::default()));
    let udp = service_port(L4Proto::Udp, &[P1]);
    stale.note(&changes(None, Some(&udp)));
    let mut now = SystemClock.now();
    let cost = Duration::from_millis(10);
    let mut n_passes = 0;
    let end = now + Duration::from_secs(60);
    while now < end {
        let due = stale.deadline(now).unwrap();
        assert!(due <= now + PATIENCE);
        now = now.max(due);
        stale.spend(now, now + cost);
        n_passes += 1;
        now += cost;
    }
    assert!((600..700).contains(&n_passes), "{n_passes}");
    stale.not_before = None;
    stale.spend(end + Duration::from_secs(60), end + Duration::from_secs(61));
    assert_eq!(stale.deadline(end), Some(end + Duration::from_secs(64)));
}
