//! What a test expects of packets, and whether it came so.
//!
//! Invariants: every backend that may be chosen is named, with what happens to the source; enough flows are opened to see each of
//! them, so that a missing one and an unnamed one both fail; silence counts only if a direct flow of the same client is answered
//! within the same time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::address::{Addr, Family, Host, P1, Protocol, R, Site};
use crate::client::{Attempt, Opened, Outcome};
use crate::reactor;
use crate::topology::Topology;
use crate::world::TARGET_PORT;

/// How long silence lasts before it is believed.
pub const SILENCE: Duration = Duration::from_millis(400);
/// How many large datagrams are under way at once.
const N_LARGE: usize = 3;
/// How long "no route" may take.
///
/// Kernel: `ip_error()` tells one client at most five times at once that there is no route, and then once a second
/// (`net.ipv4.route.error_cost`, which no other than the initial namespace has): both attempts of a flow must be told, and TCP asks
/// again only after one and three seconds.
const NO_ROUTE: Duration = Duration::from_secs(4);
/// How long an answer may take.
pub const ANSWER: Duration = Duration::from_secs(3);

/// Whom the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The client's own address.
    Kept,
    /// N's address on the way to the server.
    Masqueraded,
    /// This one.
    Address(Addr),
}

/// Where a flow may end: a server, and whom it sees.
#[derive(Clone, Copy, Debug)]
pub struct Landing {
    pub(crate) host: Host,
    pub(crate) source: Source,
    pub(crate) port: Option<u16>,
}

impl Landing {
    /// Demands that the server was reached on this port.
    #[must_use]
    pub fn on(self, port: u16) -> Self {
        Self {
            port: Some(port),
            ..self
        }
    }
}

/// This server, which sees the client's own address.
pub fn kept(host: Host) -> Landing {
    Landing {
        host,
        source: Source::Kept,
        port: None,
    }
}

/// This server, which sees N's address on the way to it.
pub fn masqueraded(host: Host) -> Landing {
    Landing {
        host,
        source: Source::Masqueraded,
        port: None,
    }
}

/// This server, which sees a given address.
pub fn seen_as(host: Host, address: Addr) -> Landing {
    Landing {
        host,
        source: Source::Address(address),
        port: None,
    }
}

/// The expected outcome of a flow.
#[derive(Clone, Debug)]
pub enum Expect {
    /// One of these, at random; all of them over time.
    Reaches(Vec<Landing>),
    /// ICMP port unreachable, at once.
    Rejected,
    /// Silence.
    Dropped,
    /// Nobody captures it: there is no such listener, and the kernel says so (TCP resets, UDP is refused; SCTP is not asked).
    Closed,
    /// An ICMP error other than port unreachable: it was routed on and came to nothing.
    Unroutable,
}

/// A client, a destination, and the expected outcome.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The client.
    pub client: Host,
    /// The address it asks.
    pub to: Addr,
    /// The port it asks.
    pub port: u16,
    /// The expected outcome.
    pub expect: Expect,
    bytes: usize,
    attempts: Option<usize>,
    source_port: u16,
    patience: Option<Duration>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) family: Option<Family>,
    pub(crate) oracle_knows: bool,
}

/// A flow without its expectation.
pub fn flow(client: Host, to: Addr, port: u16) -> Flow {
    Flow {
        client,
        to,
        port,
        expect: Expect::Dropped,
        bytes: 0,
        attempts: None,
        source_port: 0,
        patience: None,
        protocol: None,
        family: None,
        oracle_knows: true,
    }
}

impl Flow {
    /// It reaches one of these, at random.
    #[must_use]
    pub fn reaches(self, landings: impl IntoIterator<Item = Landing>) -> Self {
        Self {
            expect: Expect::Reaches(landings.into_iter().collect()),
            ..self
        }
    }

    /// It is rejected.
    #[must_use]
    pub fn is_rejected(self) -> Self {
        Self {
            expect: Expect::Rejected,
            ..self
        }
    }

    /// It is dropped.
    #[must_use]
    pub fn is_dropped(self) -> Self {
        Self {
            expect: Expect::Dropped,
            ..self
        }
    }

    /// It finds a closed port.
    #[must_use]
    pub fn finds_nobody(self) -> Self {
        Self {
            expect: Expect::Closed,
            ..self
        }
    }

    /// It is routed on, to nowhere.
    #[must_use]
    pub fn is_unroutable(self) -> Self {
        Self {
            expect: Expect::Unroutable,
            ..self
        }
    }

    /// It carries this many bytes each way.
    #[must_use]
    pub fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// It is tried this often.
    #[must_use]
    pub fn times(self, attempts: usize) -> Self {
        Self {
            attempts: Some(attempts),
            ..self
        }
    }

    /// It comes from this port each time, as a client does that keeps its socket; not for clients whose source the kernel picks.
    #[must_use]
    pub fn from_port(self, source_port: u16) -> Self {
        Self {
            source_port,
            ..self
        }
    }

    /// It must be answered within this time.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self {
            patience: Some(patience),
            ..self
        }
    }

    /// It speaks this protocol instead of the test's.
    #[must_use]
    pub fn over(self, protocol: Protocol) -> Self {
        Self {
            protocol: Some(protocol),
            ..self
        }
    }

    /// It uses this family instead of the test's.
    #[must_use]
    pub fn family(self, family: Family) -> Self {
        Self {
            family: Some(family),
            ..self
        }
    }

    /// Its outcome depends on memory, time or other programs, which the oracle does not know.
    #[must_use]
    pub fn beyond_the_oracle(self) -> Self {
        Self {
            oracle_knows: false,
            ..self
        }
    }

    /// How often it must be tried so that each backend is missed with a probability below one in a hundred million.
    fn n_attempts(&self) -> usize {
        if let Some(attempts) = self.attempts {
            return attempts;
        }
        match &self.expect {
            Expect::Reaches(landings) => match landings.len() {
                0 | 1 => 10,
                2 => 30,
                3 => 50,
                n => n * 18,
            },
            Expect::Rejected | Expect::Closed | Expect::Unroutable | Expect::Dropped => 2,
        }
    }
}

/// What a set of flows is tried in.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The network.
    pub topology: &'a Topology,
    /// The family of flows that do not say otherwise.
    pub family: Family,
    /// The protocol of flows that do not say otherwise.
    pub protocol: Protocol,
}

/// Why flows did not come out as expected.
enum Failure {
    /// The network itself was too slow to tell silence.
    OnlyControls(String),
    /// Flows of the test.
    Flows(String),
}

type Tally = BTreeMap<Outcome, usize>;

impl Setting<'_> {
    /// Tries all flows at once.
    ///
    /// # Errors
    /// The expected and the actual outcome of every flow that differs.
    pub fn try_all(self, flows: &[Flow]) -> Result<(), String> {
        // Where even a direct flow is slow, silence must last longer to mean something.
        match self.try_with(flows, SILENCE) {
            Err(Failure::OnlyControls(_)) => match self.try_with(flows, SILENCE * 4) {
                Err(Failure::OnlyControls(report) | Failure::Flows(report)) => Err(report),
                Ok(()) => Ok(()),
            },
            Err(Failure::Flows(report)) => Err(report),
            Ok(()) => Ok(()),
        }
    }

    fn try_with(self, flows: &[Flow], silence: Duration) -> Result<(), Failure> {
        let mut opened = Vec::new();
        for (index, flow) in flows.iter().enumerate() {
            let ns = self.topology.site(flow.client.site);
            let mut attempt = self.attempt(flow);
            if matches!(flow.expect, Expect::Dropped) {
                attempt.patience = silence;
            }
            opened.extend((0..flow.n_attempts()).map(|_| (index, attempt.open(ns))));
        }
        let controls: Vec<Flow> = Self::controls(flows);
        for (index, control) in controls.iter().enumerate() {
            let ns = self.topology.site(control.client.site);
            let attempt = Attempt {
                patience: silence,
                ..self.attempt(control)
            };
            opened.push((flows.len() + index, attempt.open(ns)));
        }
        let outcomes = reactor::block(async move {
            // Kernel: a burst of fragmented datagrams overflows queues on the way (netdev_max_backlog).
            let few = Arc::new(Semaphore::new(N_LARGE));
            let start = |opened: Opened| {
                let few = Arc::clone(&few);
                tokio::spawn(async move {
                    let large = opened.is_large_datagram();
                    let _turn = if large {
                        few.acquire_owned().await.ok()
                    } else {
                        None
                    };
                    opened.finish().await
                })
            };
            let tasks: Vec<_> = opened
                .into_iter()
                .map(|(index, opened)| (index, start(opened)))
                .collect();
            let mut outcomes = Vec::new();
            for (index, task) in tasks {
                outcomes.push((index, task.await.expect("a flow does not panic")));
            }
            outcomes
        });
        let mut tallies = vec![Tally::new(); flows.len() + controls.len()];
        for (index, mut outcome) in outcomes {
            if let Outcome::Reached(greeting) = &mut outcome {
                // Random, and no test expects a particular one.
                greeting.source_port = 0;
            }
            *tallies[index].entry(outcome).or_default() += 1;
        }
        let mut report = String::new();
        let mut only_controls = true;
        for (n, (flow, tally)) in flows.iter().chain(&controls).zip(&tallies).enumerate() {
            if let Err(why) = self.judge(flow, tally) {
                self.explain(&mut report, flow, tally, &why);
                only_controls &= n >= flows.len();
            }
        }
        match (report.is_empty(), only_controls) {
            (true, _) => Ok(()),
            (false, true) => Err(Failure::OnlyControls(report)),
            (false, false) => Err(Failure::Flows(report)),
        }
    }

    /// Direct flows by the clients that expect silence.
    fn controls(flows: &[Flow]) -> Vec<Flow> {
        let mut clients: Vec<Host> = flows
            .iter()
            .filter(|flow| matches!(flow.expect, Expect::Dropped))
            .map(|flow| flow.client)
            .collect();
        clients.sort();
        clients.dedup();
        let control = |client: Host| {
            let server = match client.site {
                Site::R | Site::X => P1,
                Site::N | Site::P1 | Site::P2 | Site::Outside | Site::Upstream => R,
            };
            flow(client, server.addr, TARGET_PORT).reaches([kept(server)])
        };
        clients.into_iter().map(control).collect()
    }

    /// One attempt at a flow.
    pub fn attempt(self, flow: &Flow) -> Attempt {
        let family = flow.family.unwrap_or(self.family);
        let patience = match flow.expect {
            Expect::Dropped => SILENCE,
            Expect::Unroutable => NO_ROUTE,
            _ if flow.patience.is_some() => flow.patience.unwrap_or(ANSWER),
            _ if flow.bytes > 100_000 => ANSWER * 5,
            _ => ANSWER,
        };
        let own = SocketAddr::new(flow.client.addr.of(family), flow.source_port);
        Attempt {
            protocol: flow.protocol.unwrap_or(self.protocol),
            source: (!flow.client.kernel_picks_source).then_some(own),
            destination: SocketAddr::new(flow.to.of(family), flow.port),
            patience,
            bytes: flow.bytes,
            asks_again: matches!(flow.expect, Expect::Unroutable),
        }
    }

    fn judge(self, flow: &Flow, tally: &Tally) -> Result<(), String> {
        let protocol = flow.protocol.unwrap_or(self.protocol);
        let all = |wanted: &[Outcome]| {
            if tally.keys().all(|outcome| wanted.contains(outcome)) {
                Ok(())
            } else {
                Err("another outcome".to_owned())
            }
        };
        match &flow.expect {
            Expect::Rejected => all(&[Outcome::Refused]),
            Expect::Dropped => all(&[Outcome::Timeout]),
            Expect::Closed => match protocol {
                Protocol::Tcp => all(&[Outcome::Reset]),
                Protocol::Udp => all(&[Outcome::Refused]),
                Protocol::Sctp => Err("SCTP has no closed ports in this harness".into()),
            },
            Expect::Unroutable => {
                if tally
                    .keys()
                    .all(|outcome| matches!(outcome, Outcome::Unreachable(_)))
                {
                    Ok(())
                } else {
                    Err("another outcome".into())
                }
            }
            Expect::Reaches(landings) => {
                for outcome in tally.keys() {
                    let Outcome::Reached(to) = outcome else {
                        return Err("not always reached".into());
                    };
                    let allowed = landings.iter().any(|landing| {
                        to.backend == landing.host.name()
                            && to.source == self.source(flow, *landing)
                            && landing.port.is_none_or(|port| port == to.port)
                    });
                    if !allowed {
                        return Err("a landing that is not named".into());
                    }
                }
                for landing in landings {
                    let met = tally.keys().any(|outcome| {
                        matches!(outcome, Outcome::Reached(to) if to.backend == landing.host.name()
                            && landing.port.is_none_or(|port| port == to.port))
                    });
                    if !met {
                        return Err(format!("{} was never chosen", landing.host.name()));
                    }
                }
                Ok(())
            }
        }
    }

    /// The address that a landing demands.
    fn source(self, flow: &Flow, landing: Landing) -> IpAddr {
        let family = flow.family.unwrap_or(self.family);
        let address = match landing.source {
            Source::Address(address) => address,
            Source::Masqueraded => landing.host.gateway,
            Source::Kept => flow.client.source_towards(flow.to),
        };
        address.of(family)
    }

    fn explain(self, report: &mut String, flow: &Flow, tally: &Tally, why: &str) {
        let family = flow.family.unwrap_or(self.family);
        let protocol = flow.protocol.unwrap_or(self.protocol).label();
        let to = SocketAddr::new(flow.to.of(family), flow.port);
        let mut line = |text: String| {
            writeln!(report, "{text}").expect("writing to a String");
        };
        let (client, name) = (flow.client.name(), flow.to.name);
        line(format!(
            "{client} → {name}:{} ({protocol} {to}): {why}",
            flow.port
        ));
        match &flow.expect {
            Expect::Reaches(landings) => {
                for landing in landings {
                    let saw = self.source(flow, *landing);
                    let port = landing.port.map_or("*".to_owned(), |port| port.to_string());
                    line(format!(
                        "  expected: {}:{port}, which sees {saw}",
                        landing.host.name()
                    ));
                }
            }
            other => line(format!("  expected: {other:?}")),
        }
        for (outcome, n) in tally {
            line(format!("  observed: {n} × {outcome}"));
        }
    }
}
