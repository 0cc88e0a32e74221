//! Clients that never stop sending from their port, for CT-3 and CT-4.

use std::net::IpAddr;
use std::time::Duration;

use proxy_tests::address::{
    Addr, EXTERNAL_IP, Family, HOST, Host, LB_VIP, NODE, P1, P2, Protocol, VIP, X,
};
use proxy_tests::matrix::Test;
use proxy_tests::sender::Sender;
use proxy_tests::wait::within;
use proxy_tests::world::TARGET_PORT;

use crate::common::PORT;

/// Where the endpoint that never answers listens.
pub(crate) const SILENT: u16 = 9999;
/// How many datagrams must be sent before silence is believed.
pub(crate) const ENOUGH: usize = 20;
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// Until others' damage is noticed and repaired. Spec: SYNC-9.
pub(crate) const REPAIRED: Duration = Duration::from_secs(15);

/// A client that never stops, and whom it sends to.
pub(crate) struct Client {
    from: Host,
    pub(crate) to: Addr,
    port: u16,
    pub(crate) number: u32,
    pub(crate) sender: Sender,
}

impl Client {
    pub(crate) fn start(t: &Test, from: Host, to: Addr, port: u16, number: u32) -> Self {
        let own = if from.kernel_picks_source {
            t.ip(NODE)
        } else {
            t.ip(from.addr)
        };
        let source_port = 30_000 + u16::try_from(number).unwrap();
        let (source, destination) = ((own, source_port).into(), (t.ip(to), port).into());
        let sender = Sender::start(t.ns(from.site), source, destination, number);
        Self {
            from,
            to,
            port,
            number,
            sender,
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("{} → {}:{}", self.from.name(), self.to.name, self.port)
    }

    /// The identifiers of its conntrack entries that are answered by this address.
    pub(crate) fn entries(&self, t: &Test, answered_by: IpAddr) -> Vec<String> {
        let family = if t.family == Family::V4 {
            "ipv4"
        } else {
            "ipv6"
        };
        let (to, by) = (t.ip(self.to).to_string(), answered_by.to_string());
        let own = (30_000 + self.number).to_string();
        let mut words = vec!["-L", "-o", "id", "-f", family, "-p", "udp"];
        words.extend(["-d", &to, "-r", &by, "--orig-port-src", &own]);
        let output = t.node_ns().run("conntrack", &words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let id = |line: &str| {
            line.split(' ')
                .find_map(|word| word.strip_prefix("id="))
                .map(str::to_owned)
        };
        text.lines().filter_map(id).collect()
    }

    /// How many those are.
    pub(crate) fn n_entries(&self, t: &Test, answered_by: IpAddr) -> usize {
        self.entries(t, answered_by).len()
    }
}

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn await_that(t: &Test, patience: Duration, what: &str, is_so: impl FnMut() -> bool) {
    assert!(
        within(patience, is_so),
        "not within {patience:?}: {what}{}",
        t.state()
    );
}

/// Waits until a client sent so much more that silence means something.
#[track_caller]
pub(crate) fn await_more(t: &Test, clients: &[Client]) {
    let n_sent = |client: &Client| client.sender.tally().n_sent;
    let before: Vec<usize> = clients.iter().map(n_sent).collect();
    await_that(t, SOON, "the clients send", || {
        let mut pairs = clients.iter().zip(&before);
        pairs.all(|(client, before)| n_sent(client) >= before + ENOUGH)
    });
}

/// Waits until this server answers every client.
#[track_caller]
pub(crate) fn await_answers(
    t: &Test,
    clients: &[Client],
    server: Host,
    patience: Duration,
    after: &str,
) {
    for client in clients {
        let what = format!(
            "{} answered by {} after {after}",
            client.name(),
            server.name()
        );
        let before = client.sender.tally().n_answers(server.name());
        await_that(t, patience, &what, || {
            client.sender.tally().n_answers(server.name()) >= before + ENOUGH
        });
    }
}

/// Starts clients of every kind of frontend of [`web`], with numbers from this one on.
pub(crate) fn clients(t: &Test, first: u32) -> Vec<Client> {
    let whom = [
        (P1, VIP, 80),
        (HOST, VIP, 80),
        (X, NODE, PORT),
        (X, EXTERNAL_IP, 80),
        (X, LB_VIP, 80),
    ];
    let numbered = (first..).zip(whom);
    numbered
        .map(|(number, (from, to, port))| Client::start(t, from, to, port, number))
        .collect()
}

/// A Service of both protocols, with every kind of frontend.
pub(crate) fn web(t: &mut Test, datagram_port: u16) {
    // As if it were new: the former one may be gone, or have been changed.
    t.service("web");
    t.delete_service("web");
    t.service("web")
        .cluster_ip(VIP)
        .port_of("stream", 443, Protocol::Tcp)
        .named_port("datagram", 80)
        .node_port(PORT)
        .external_ip(EXTERNAL_IP);
    t.service("web").load_balancer(LB_VIP);
    t.endpoints("web")
        .clear()
        .no_ports()
        .ready(P2)
        .port_of("stream", TARGET_PORT, Protocol::Tcp)
        .port("datagram", datagram_port);
}

/// The fate of a client that no longer reaches the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Stays,
    Refused,
    Silence,
    /// The real owner of the address answers.
    Owner,
}

/// Demands that the next datagrams of a client meet their fate.
#[track_caller]
pub(crate) fn meets(t: &Test, client: &Client, fate: Fate, what: &str) {
    let before = client.sender.tally();
    let what = format!("{what}: {} meets {fate:?}", client.name());
    match fate {
        Fate::Stays => {}
        Fate::Refused => await_that(t, SOON, &what, || {
            client.sender.tally().n_refused >= before.n_refused + ENOUGH
        }),
        Fate::Owner => await_that(t, SOON, &what, || {
            let now = client.sender.tally();
            now.n_answers("OUT") >= before.n_answers("OUT") + ENOUGH
        }),
        Fate::Silence => {
            await_that(t, SOON, &what, || {
                client.sender.tally().n_sent >= before.n_sent + ENOUGH
            });
            let now = client.sender.tally();
            let same = now.n_refused == before.n_refused && now.answers == before.answers;
            assert!(same, "{what}: {before:?}, then {now:?}");
        }
    }
}
