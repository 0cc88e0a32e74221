//! What does the cluster look like, and how does it change?
//!
//! Invariants: the witnesses never change; every other Service and its endpoints change at random, several times a second, unless the
//! cluster is told to stand still; what the API server holds is what the world says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use proxy_tests::address::{
    Addr, EXTERNAL_IP, EXTERNAL_IP2, Family, HOST, Host, LB_VIP, LB_VIP2, P1, P2, Protocol, R, R2,
    R3, VIP, VIP2, VIP3, X,
};
use proxy_tests::fake_api::FakeApi;
use proxy_tests::world::{Endpoint, Service, World};
use serde_json::json;

use proxy_tests::dice::Dice;

/// The ClusterIP of `pair`.
pub(crate) const PAIR: Addr = Addr::new("PAIR", [10, 96, 0, 13], ([0xfd00, 0x96, 0, 0], 0x13));
/// The ClusterIP of `local`.
const LOCAL: Addr = Addr::new("LOCAL", [10, 96, 0, 14], ([0xfd00, 0x96, 0, 0], 0x14));
/// The ClusterIP of `guarded`.
const GUARDED: Addr = Addr::new("GUARDED", [10, 96, 0, 15], ([0xfd00, 0x96, 0, 0], 0x15));
/// Services that change.
const N_CHANGING: usize = 40;

/// The cluster, and the API server that tells of it.
pub(crate) struct Cluster<'a> {
    world: Mutex<World>,
    api: &'a FakeApi,
    over: AtomicBool,
    /// Held while the cluster stands still.
    still: Mutex<()>,
}

impl<'a> Cluster<'a> {
    pub(crate) fn new(api: &'a FakeApi, dice: &mut Dice) -> Self {
        let mut world = World::new(Family::V4, Protocol::Tcp);
        witnesses(&mut world);
        for n in 0..N_CHANGING {
            renew(&mut world, n, dice);
        }
        let cluster = Self {
            world: Mutex::new(world),
            api,
            over: AtomicBool::new(false),
            still: Mutex::new(()),
        };
        cluster.change(|_| {});
        cluster
    }

    /// Changes the world, and has the API server tell.
    pub(crate) fn change(&self, change: impl FnOnce(&mut World)) {
        let mut world = self.world.lock().unwrap();
        change(&mut world);
        let manifest = world.manifest();
        let items = manifest["items"].as_array().cloned().unwrap_or_default();
        self.api.replace_all(items);
    }

    /// The world as it is.
    pub(crate) fn world(&self) -> World {
        self.world.lock().unwrap().clone()
    }

    /// Stops the changes as long as the value is kept; faults go on.
    pub(crate) fn stand_still(&self) -> MutexGuard<'_, ()> {
        self.still.lock().unwrap()
    }

    /// Changes the Services that are not witnesses until it is stopped.
    pub(crate) fn churn(&self, mut dice: Dice) {
        while !self.over.load(Ordering::Relaxed) {
            thread::sleep(dice.millis(20, 160));
            let _turn = self.still.lock().unwrap();
            self.change(|world| {
                for _ in 0..=dice.below(3) {
                    let n = dice.below(N_CHANGING);
                    if dice.percent(70) {
                        new_endpoints(world, n, &mut dice);
                    } else {
                        renew(world, n, &mut dice);
                    }
                }
            });
        }
    }

    /// Ends [`Cluster::churn`].
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Speaks every protocol at this port and NodePort, in both families.
fn ports(service: &mut Service, port: u16, node_port: Option<u16>) {
    service.families(&Family::ALL);
    for protocol in Protocol::ALL {
        service.port_of(protocol.label(), port, protocol);
        if let Some(node_port) = node_port {
            service.node_port(node_port);
        }
    }
}

fn external_ip(service: &mut Service, address: Addr) {
    service.external_ip(address);
    service.external_ip_text(&address.of(Family::V6).to_string());
}

fn load_balancer(service: &mut Service, address: Addr) {
    service.load_balancer(address);
    service.ingress(json!({"ip": address.of(Family::V6)}));
}

fn endpoints(world: &mut World, service: &str, endpoints: &[Endpoint]) {
    for family in Family::ALL {
        let slice = world.slice(service, &format!("{service}-{}", family.label()));
        slice.family(family).clear().no_ports();
        for protocol in Protocol::ALL {
            slice.port_of(protocol.label(), proxy_tests::world::TARGET_PORT, protocol);
        }
        for endpoint in endpoints {
            slice.endpoint(endpoint.clone());
        }
    }
}

fn ready(host: Host) -> Endpoint {
    Endpoint::new(host).conditions(true, true, false)
}

/// The Services of [`crate::witness`].
fn witnesses(world: &mut World) {
    let web = world.service("web");
    web.cluster_ip(VIP);
    ports(web, 80, Some(30_080));
    external_ip(web, EXTERNAL_IP);
    load_balancer(web, LB_VIP);
    endpoints(world, "web", &[ready(P2)]);

    let sticky = world.service("sticky");
    sticky.cluster_ip(VIP2).affinity(600);
    ports(sticky, 80, Some(30_081));
    endpoints(world, "sticky", &[ready(R)]);

    ports(world.service("pair").cluster_ip(PAIR), 80, None);
    endpoints(world, "pair", &[ready(R), ready(R2)]);

    let local = world.service("local");
    local.cluster_ip(LOCAL).external_local();
    ports(local, 80, Some(30_082));
    endpoints(world, "local", &[ready(P1), ready(R)]);

    let guarded = world.service("guarded");
    guarded.cluster_ip(GUARDED);
    let only_x = Family::ALL.map(|family| X.addr.prefix(family));
    guarded.source_ranges(&[&only_x[0], &only_x[1]]);
    ports(guarded, 80, None);
    load_balancer(guarded, LB_VIP2);
    endpoints(world, "guarded", &[ready(P2)]);

    let empty = world.service("empty");
    empty.cluster_ip(VIP3);
    ports(empty, 80, Some(30_083));
    external_ip(empty, EXTERNAL_IP2);
}

fn name(n: usize) -> String {
    format!("changing-{n}")
}

/// Makes a Service another one, or takes it away.
fn renew(world: &mut World, n: usize, dice: &mut Dice) {
    let name = name(n);
    world.service(&name);
    world.delete_service(&name);
    if dice.percent(15) {
        return;
    }
    let low = n as u8 + 1;
    let v6 = ([0xfd00, 0x96, 0, 0], 0x100 + u16::from(low));
    let service = world.service(&name);
    service.cluster_ip(Addr::new("CHANGING", [10, 96, 1, low], v6));
    let node_port = dice.percent(40).then_some(31_000 + n as u16);
    ports(service, 1000 + n as u16, node_port);
    if dice.percent(30) {
        external_ip(service, EXTERNAL_IP2);
    }
    if dice.percent(30) {
        load_balancer(service, LB_VIP2);
        if dice.percent(50) {
            service.source_ranges(&["203.0.113.0/28", "2001:db8:203::/64"]);
        }
    }
    if dice.percent(20) {
        service.affinity(300);
    }
    if dice.percent(20) {
        service.external_local();
    }
    if dice.percent(10) {
        service.internal_local();
    }
    new_endpoints(world, n, dice);
}

/// Gives a Service other endpoints, perhaps none.
fn new_endpoints(world: &mut World, n: usize, dice: &mut Dice) {
    let conditions = [
        (true, true, false),
        (true, true, false),
        (false, true, true),
        (false, false, false),
    ];
    let mut chosen = Vec::new();
    for host in [P1, P2, R, R2, R3, HOST] {
        if dice.percent(40) {
            let (ready, serving, terminating) = dice.pick(&conditions);
            chosen.push(Endpoint::new(host).conditions(ready, serving, terminating));
        }
    }
    endpoints(world, &name(n), &chosen);
}
