//! Do the frontends that never change answer, at any time?
//!
//! Clients ask all of them again and again, in both families and over every protocol, from before the first fault to the end of the
//! run. Invariants: an answer that is missing is a failure unless somebody else has damaged the rules and the time to repair them
//! is not over; a client that keeps its UDP port is among them, because conntrack remembers where its packets went. Clients over TCP
//! come from new ports: until conntrack forgets one whose packets passed untranslated, it belongs to a connection that failed.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use proxy_tests::address::{
    EXTERNAL_IP, EXTERNAL_IP2, Family, HOST, LB_VIP, LB_VIP2, NODE, P1, P2, Protocol, R, R2,
    UNALLOCATED, VIP, VIP2, VIP3, X, X2,
};
use proxy_tests::flow::{Flow, Setting, flow, kept, masqueraded};
use proxy_tests::topology::Topology;

use crate::cluster::PAIR;

/// How long answers may take while damage is repaired: long enough for one that comes, so that the time is measured sharply.
const SHORT: Duration = Duration::from_millis(800);

/// What all clients ask; one keeps this UDP port.
fn flows(kept_port: u16) -> Vec<Flow> {
    let mut flows = Vec::new();
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let answered = [
                flow(P1, VIP, 80).reaches([kept(P2)]),
                flow(HOST, VIP, 80).reaches([masqueraded(P2)]),
                flow(X, NODE, 30_080).reaches([masqueraded(P2)]),
                flow(X, EXTERNAL_IP, 80).reaches([masqueraded(P2)]),
                flow(X, LB_VIP, 80).reaches([masqueraded(P2)]),
                flow(P1, VIP2, 80).reaches([kept(R)]),
                flow(X, NODE, 30_082).reaches([kept(P1)]),
                flow(X, LB_VIP2, 80).reaches([masqueraded(P2)]),
                flow(P1, VIP3, 80).is_rejected(),
                flow(X, NODE, 30_083).is_rejected(),
                flow(X, EXTERNAL_IP2, 80).is_rejected(),
                flow(X2, LB_VIP2, 80).is_dropped(),
            ];
            let once = answered.map(|flow| flow.over(protocol).family(family).times(1));
            flows.extend(once);
        }
        flows.push(
            flow(P1, UNALLOCATED, 80)
                .is_dropped()
                .family(family)
                .times(1),
        );
        flows.push(
            flow(P1, PAIR, 80)
                .reaches([kept(R), kept(R2)])
                .family(family),
        );
        let keeps_port = flow(P1, VIP, 80).from_port(kept_port).reaches([kept(P2)]);
        flows.push(keeps_port.over(Protocol::Udp).family(family).times(1));
    }
    flows
}

/// What the clients know.
#[derive(Default)]
struct State {
    /// Whether answers may be missing.
    excused: bool,
    /// Counts the changes of that: a round during which it changed proves nothing.
    epoch: u64,
    /// When the last round began in which everything came out as it must.
    good: Option<Instant>,
    /// Why the last round did not, if it did not.
    missing: Option<String>,
    /// Missing answers without an excuse since the last call.
    unexcused: Vec<String>,
    n_rounds: u64,
    over: bool,
}

/// The clients.
#[derive(Default)]
pub(crate) struct Witnesses {
    state: Mutex<State>,
    asked: Condvar,
}

impl Witnesses {
    /// Asks until it is stopped.
    pub(crate) fn ask(&self, topology: &Topology) {
        let setting = Setting {
            topology,
            family: Family::V4,
            protocol: Protocol::Tcp,
        };
        loop {
            let (excused, epoch, over) = {
                let state = self.state.lock().unwrap();
                (state.excused, state.epoch, state.over)
            };
            if over {
                return;
            }
            // One that begins while packets pass untranslated must get answers when they are translated again.
            let mut flows = flows(40_000 + (epoch % 10_000) as u16);
            if excused {
                flows = flows.into_iter().map(|flow| flow.within(SHORT)).collect();
            }
            let began = Instant::now();
            let outcome = setting.try_all(&flows);
            let mut state = self.state.lock().unwrap();
            state.n_rounds += 1;
            match &outcome {
                Ok(()) => state.good = Some(began),
                Err(report) if !state.excused && state.epoch == epoch => {
                    state.unexcused.push(report.clone());
                }
                Err(_) => {}
            }
            state.missing = outcome.err();
            self.asked.notify_all();
        }
    }

    /// From now on answers may be missing.
    pub(crate) fn excuse(&self) {
        self.set_excused(true);
    }

    /// From now on none may be missing.
    pub(crate) fn expect(&self) {
        self.set_excused(false);
    }

    fn set_excused(&self, excused: bool) {
        let mut state = self.state.lock().unwrap();
        state.excused = excused;
        state.epoch += 1;
    }

    /// Waits until everything is answered in a round that began after this moment; how long after it that was.
    pub(crate) fn all_answered(&self, since: Instant, limit: Duration) -> Result<Duration, String> {
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(good) = state.good.filter(|good| *good >= since) {
                return Ok(good - since);
            }
            if since.elapsed() > limit {
                let missing = state.missing.clone().unwrap_or_default();
                return Err(format!("not all answer after {limit:?}:\n{missing}"));
            }
            state = self
                .asked
                .wait_timeout(state, Duration::from_secs(1))
                .unwrap()
                .0;
        }
    }

    /// What was missing without an excuse since the last call.
    pub(crate) fn unexcused(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().unexcused)
    }

    /// How often all were asked.
    pub(crate) fn n_rounds(&self) -> u64 {
        self.state.lock().unwrap().n_rounds
    }

    /// Ends [`Witnesses::ask`].
    pub(crate) fn end(&self) {
        self.state.lock().unwrap().over = true;
    }
}
