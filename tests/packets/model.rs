//! Flows at random: does anybody ever get what was meant for somebody else?
//!
//! Clients send datagrams to frontends, backends answer each with what it said, in any order, twice or never.
//! Between rounds each flow may lose one of its entries. Invariant: what reaches a client's socket answers
//! what that socket sent, to the frontend that it sent it to.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proptest::prelude::*;
use proxy_common::{Exposure, Route};
use proxy_ebpf::Verdict;

use crate::frame::{Frame, UDP};
use crate::host::Host;
use crate::node::{Hook, Node};
use crate::world::{BACKEND, CLIENT, Service, UPLINK, World};

const CLIENTS: [&str; 4] = [
    "10.1.0.5:4000",
    "10.1.0.5:8080",
    "10.1.0.7:4000",
    "203.0.113.9:4000",
];
const FRONTENDS: [&str; 4] = [
    "10.96.0.1:80",
    "10.96.0.2:80",
    "192.0.2.2:30080",
    "10.96.0.3:53",
];

fn world() -> World {
    let backends = &[("10.1.0.7", 8080), ("10.1.0.5", 8080)];
    let mut world = World::new();
    for (address, port, exposure, route) in [
        ("10.96.0.1", 80, Exposure::INTERNAL, Route::CLUSTER),
        ("10.96.0.2", 80, Exposure::INTERNAL, Route::CLUSTER),
        (
            "0.0.0.0",
            30_080,
            Exposure::EXTERNAL,
            Route::CLUSTER.masqueraded(),
        ),
        (
            "10.96.0.3",
            53,
            Exposure::INTERNAL,
            Route::CLUSTER.masqueraded(),
        ),
    ] {
        world = world.with(&Service {
            protocol: 17,
            frontends: &[(address, port, exposure)],
            backends,
            internal: route,
            external: route,
            source_range: None,
        });
    }
    world
}

/// What happens in a round.
#[derive(Clone, Debug)]
enum Step {
    /// A client sends to a frontend.
    Send(usize, usize),
    /// One of the answers on their way arrives, and stays on its way as well.
    Answer(usize),
}

/// Some steps; then one entry is lost; then more steps.
type Round = (Vec<Step>, Option<usize>, Vec<Step>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..CLIENTS.len(), 0..FRONTENDS.len())
            .prop_map(|(client, frontend)| Step::Send(client, frontend)),
        any::<prop::sample::Index>().prop_map(|at| Step::Answer(at.index(1000))),
    ];
    prop::collection::vec(step, 0..24)
}

/// The network around the node.
struct Net {
    node: Host,
    /// What backends have answered.
    on_their_way: Vec<Frame>,
    sent: BTreeSet<(usize, usize)>,
    delivered: u32,
}

impl Net {
    fn interface_of(address: SocketAddr) -> u32 {
        match address.ip().to_string().as_str() {
            "10.1.0.5" => CLIENT,
            "10.1.0.7" => BACKEND,
            _ => UPLINK,
        }
    }

    fn send(&mut self, client: usize, frontend: usize) {
        let (source, destination) = (CLIENTS[client], FRONTENDS[frontend]);
        let mut sent = Frame::new(source, destination, UDP);
        sent.payload = format!("{source} {destination}").into_bytes();
        self.sent.insert((client, frontend));
        let Some(arrived) = self.crosses(Self::interface_of(sent.source), &sent) else {
            return;
        };
        assert_eq!(
            arrived.destination.port(),
            8080,
            "no frontend leaves the node: {arrived:?}"
        );
        self.on_their_way.push(Frame {
            source: arrived.destination,
            destination: arrived.source,
            ..arrived
        });
    }

    fn answer(&mut self, at: usize) {
        if self.on_their_way.is_empty() {
            return;
        }
        let answer = self.on_their_way[at % self.on_their_way.len()].clone();
        let from = Self::interface_of(answer.source);
        let Some(arrived) = self.crosses(from, &answer) else {
            return;
        };
        let said = String::from_utf8(arrived.payload.clone()).expect("text");
        let socket = format!("{} {}", arrived.destination, arrived.source);
        let is_frontend = FRONTENDS.contains(&arrived.source.to_string().as_str());
        // From a backend itself nobody expects anything.
        if is_frontend && CLIENTS.contains(&arrived.destination.to_string().as_str()) {
            assert_eq!(said, socket, "an answer of another flow");
            self.delivered += 1;
        }
    }

    /// Through the node: in by one interface, out by the one towards the destination.
    fn crosses(&mut self, interface: u32, frame: &Frame) -> Option<Frame> {
        let outcome = self.node.pass(Hook::In, interface, 0, &frame.bytes());
        let routed = (outcome.verdict == Verdict::Pass).then(|| Frame::read(&outcome.bytes))?;
        let towards = Self::interface_of(routed.destination);
        let outcome = self.node.pass(Hook::Out, towards, 0, &routed.bytes());
        (outcome.verdict == Verdict::Pass).then(|| Frame::read(&outcome.bytes))
    }

    fn take(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Send(client, frontend) => self.send(*client, *frontend),
                Step::Answer(at) => self.answer(*at),
            }
        }
    }

    /// Time passes, every flow sends again, and every answer arrives.
    fn settle(&mut self) {
        self.node.age();
        for (client, frontend) in self.sent.clone() {
            self.send(client, frontend);
        }
        for at in 0..self.on_their_way.len() {
            self.answer(at);
        }
        self.on_their_way.clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn eb_44_no_packet_ever_reaches_the_wrong_socket(
        seed: u32,
        rounds in prop::collection::vec((steps(), proptest::option::of(0_usize..40), steps()), 1..6),
    ) {
        let mut net = Net {
            node: Host::new(&world(), seed),
            on_their_way: Vec::new(),
            sent: BTreeSet::new(),
            delivered: 0,
        };
        let rounds: Vec<Round> = rounds;
        for (before, lost, after) in &rounds {
            net.take(before);
            if let Some(nth) = lost {
                let n_flows = net.node.v4().n_flows();
                if n_flows > 0 {
                    net.node.forget(nth % n_flows);
                }
            }
            net.take(after);
            net.settle();
        }
        // After it all, every flow still gets its answers: nothing was merely silent.
        net.settle();
        let before = net.delivered;
        net.settle();
        prop_assert_eq!((net.delivered - before) as usize, net.sent.len());
    }
}
