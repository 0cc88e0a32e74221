//! Does the fate of each probe match the oracle's verdict?

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proxy_daemon::compile::Compiler;
use proxy_daemon::datapath::{Opener, PlaneFamily};
use proxy_daemon::forwarding::{Hop, Oracle, Packet, Transport, Verdict, table};
use proxy_daemon::model::Services;
use proxy_daemon::net::{Family, Port, V4, V6};
use proxy_tests::datapath::Datapath;

use crate::cluster::{self, From, LOCAL, Pool, Probe, Step};
use crate::lab::Lab;
use crate::probe::{self, Fate};

/// Finds its family's state.
pub(crate) trait States: Family {
    fn state(compiler: &Compiler) -> &proxy_daemon::forwarding::ForwardingState<Self>;
    fn changes(
        compiled: &proxy_daemon::compile::Compiled,
    ) -> &proxy_daemon::forwarding::Changes<Self>;
}

macro_rules! states {
    ($family:ident, $field:ident) => {
        impl States for $family {
            fn state(compiler: &Compiler) -> &proxy_daemon::forwarding::ForwardingState<Self> {
                compiler.$field()
            }
            fn changes(
                compiled: &proxy_daemon::compile::Compiled,
            ) -> &proxy_daemon::forwarding::Changes<Self> {
                &compiled.$field
            }
        }
    };
}

states!(V4, v4);
states!(V6, v6);

/// Programs the steps one after the other and sends their probes.
pub(crate) fn check<F: PlaneFamily + Pool + States>(
    datapath: Datapath,
    steps: &[Step],
) -> Result<(), String> {
    let lab = Lab::new::<F>().map_err(|error| format!("{error:#}"))?;
    let node = &lab.node;
    let opener = Opener::new(datapath.kind(), [F::FAMILY]);
    let mut tables = node
        .enter(|| opener.tables::<F>())
        .map_err(|error| format!("{error}: {error:?}"))?;
    let Some(first) = steps.first() else {
        return Ok(());
    };
    let mut compiler = Compiler::new(&cluster::environment::<F>(&first.settings));

    for (n, step) in steps.iter().enumerate() {
        let environment = Arc::new(cluster::environment::<F>(&step.settings));
        let now = Services::All(cluster::services::<F>(&step.services));
        let outcome = compiler.apply(&now, &environment);
        let state = F::state(&compiler);
        let synced = node.enter(|| {
            if n == 0 || step.resync {
                return tables.resync(state);
            }
            match tables.sync(state, F::changes(&outcome))? {
                Some(report) => Ok(report),
                None => tables.resync(state),
            }
        });
        synced.map_err(|error| format!("step {n}: {error}: {:?}\n{}", error, table(state)))?;
        node.check_run("conntrack", &["-F"])
            .map_err(|error| format!("{error:#}"))?;

        let oracle = Oracle::new(state);
        let describe = |complaint: String| {
            let rules = datapath.show(F::OURS, node);
            format!("step {n}: {complaint}\n{}\n{rules}", table(state))
        };
        let fates = send::<F>(&lab, &step.probes).map_err(describe)?;
        for (number, probe) in number(&step.probes) {
            let fates = fates.get(&number).map_or(&[][..], Vec::as_slice);
            judge::<F>(&oracle, probe, fates)
                .map_err(|complaint| describe(format!("{probe:?}\n{complaint}")))?;
        }
    }
    Ok(())
}

fn number(probes: &[Probe]) -> impl Iterator<Item = (u16, &Probe)> {
    (20_000..).zip(probes)
}

fn send<F: Pool>(lab: &Lab, probes: &[Probe]) -> Result<BTreeMap<u16, Vec<Fate>>, String> {
    for (number, probe) in number(probes) {
        let to = F::address(probe.to);
        let bytes = probe::encode(number, F::address(probe.source), to, probe.transport);
        lab.send(probe.from, &bytes, to);
    }
    lab.settle::<F>().map_err(|error| format!("{error:#}"))
}

/// Compares the fates of a probe with the oracle's verdict.
fn judge<F: Pool>(oracle: &Oracle<'_, F>, probe: &Probe, fates: &[Fate]) -> Result<(), String> {
    let address = |twin| F::addr(F::address(twin)).unwrap();
    let packet = Packet {
        source: address(probe.source),
        ingress: match probe.from {
            From::Pods => Some("pods"),
            From::Uplink => Some("up0"),
            From::Node => None,
        },
        destination: address(probe.to),
        transport: probe
            .transport
            .map_or(Transport::Other, |(protocol, port)| {
                Transport::Ports(protocol, Port::new(port).unwrap())
            }),
    };
    let decision = oracle.eval(&packet);
    let untranslated = probe.transport.map_or(0, |(_, port)| port);
    let fits = match &decision.verdict {
        Verdict::Forward(hops) => hops.iter().any(|hop| arrived_at::<F>(probe, hop, fates)),
        Verdict::Reject => fates == [Fate::Refused],
        Verdict::Drop => fates.is_empty(),
        Verdict::Pass => {
            let to = SocketAddr::new(F::address(probe.to), untranslated);
            arrived::<F>(probe, to, false, fates)
        }
    };
    if fits {
        Ok(())
    } else {
        Err(format!("expected {decision:?}\nseen {fates:?}"))
    }
}

fn arrived_at<F: Pool>(probe: &Probe, hop: &Hop<F>, fates: &[Fate]) -> bool {
    let to = SocketAddr::new(hop.backend.address.into(), hop.backend.port.get());
    arrived::<F>(probe, to, hop.masquerade, fates)
}

/// Whether the probe came out once, at `to`, with the right source.
fn arrived<F: Pool>(probe: &Probe, to: SocketAddr, masquerade: bool, fates: &[Fate]) -> bool {
    let is_own = |address: IpAddr| LOCAL.iter().any(|own| F::address(*own) == address);
    let is_right = |source: IpAddr| {
        if masquerade {
            is_own(source)
        } else {
            source == F::address(probe.source)
        }
    };
    // The node itself refuses a port without a listener, after it received the packet.
    let fates: Vec<Fate> = if is_own(to.ip()) {
        fates
            .iter()
            .copied()
            .filter(|fate| *fate != Fate::Refused)
            .collect()
    } else {
        fates.to_vec()
    };
    match fates[..] {
        [Fate::Left { source, to: seen }] => !is_own(to.ip()) && seen == to && is_right(source),
        // Kernel: a packet delivered locally never passes the postrouting hook, so it keeps its source.
        [Fate::Delivered { source, port }] => {
            is_own(to.ip()) && port == to.port() && (masquerade || is_right(source))
        }
        _ => false,
    }
}
