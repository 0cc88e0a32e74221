//! Do a test's expectations match the oracle's verdicts, without a kernel?
//!
//! The manifests go through the daemon's own source, store and `compile`; `forwarding::eval` is asked about the first packet of
//! each flow. Invariant: an expectation that holds in the kernel and not here, or the other way round, fails the test.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Result, bail};
use ipnet::IpNet;
use proxy_daemon::cli::Cli;
use proxy_daemon::compile::compile;
use proxy_daemon::config::{Config, ExtraSettings, resolve};
use proxy_daemon::forwarding::{ForwardingState, Hop, Oracle, Packet, Transport, Verdict};
use proxy_daemon::net::{Family as FamilyTypes, L4Proto, Port, V4, V6};
use proxy_daemon::sync::Surroundings;

use crate::address::{
    Addr, EXTERNAL_IP, EXTERNAL_IP2, Family, Host, LB_VIP, LB_VIP2, LOOPBACK, NODE, NODE_ALT,
    NODE_NAME, OTHER, OUT, POD_GATEWAY, Protocol, Site,
};
use crate::flow::{Expect, Flow, Landing, Source};
use crate::topology::{BRIDGE, Pods, UPLINK};
use crate::world::World;

/// The forwarding states of a world.
#[derive(Debug)]
pub struct Judgement {
    v4: ForwardingState<V4>,
    v6: ForwardingState<V6>,
    pods: Pods,
}

impl Judgement {
    /// Compiles a world as the daemon with these flags would.
    ///
    /// # Errors
    /// When flags or manifests cannot be read.
    pub fn of(world: &World, flags: &[String], pods: Pods) -> Result<Self> {
        let config = configuration(flags)?;
        let drained = world.read(&config.node_name)?;
        let mut surroundings =
            Surroundings::new(config.policy, config.node_name, config.node_ip_override);
        surroundings.take_in(drained.node, drained.service_cidrs);
        surroundings.set_local_addresses(own_addresses());
        let (v4, v6, _) = compile(&drained.services, surroundings.environment());
        Ok(Self { v4, v6, pods })
    }

    /// Compares the oracle's verdicts with the expected outcomes of flows.
    ///
    /// # Errors
    /// Every flow on which they differ.
    pub fn check(&self, flows: &[Flow], family: Family, protocol: Protocol) -> Result<(), String> {
        let mut report = String::new();
        for flow in flows.iter().filter(|flow| flow.oracle_knows) {
            let family = flow.family.unwrap_or(family);
            let protocol = flow.protocol.unwrap_or(protocol);
            let told = match family {
                Family::V4 => self.ask(&self.v4, flow, family, protocol),
                Family::V6 => self.ask(&self.v6, flow, family, protocol),
            };
            if let Err(why) = told {
                let _infallible = writeln!(
                    report,
                    "the oracle on {} → {}:{} ({} {}): {why}\n  expected: {}",
                    flow.client.name(),
                    flow.to.name,
                    flow.port,
                    family.label(),
                    protocol.label(),
                    expected(&flow.expect)
                );
            }
        }
        if report.is_empty() {
            Ok(())
        } else {
            Err(report)
        }
    }

    fn ask<F: FamilyTypes>(
        &self,
        state: &ForwardingState<F>,
        flow: &Flow,
        family: Family,
        protocol: Protocol,
    ) -> Result<(), String> {
        let address = |address: Addr| F::addr(address.of(family)).expect("its own family");
        let source = flow.client.source_towards(flow.to);
        let packet = Packet::<F> {
            source: address(source),
            ingress: self.ingress(flow.client),
            destination: address(flow.to),
            transport: Transport::Ports(
                match protocol {
                    Protocol::Tcp => L4Proto::Tcp,
                    Protocol::Udp => L4Proto::Udp,
                    Protocol::Sctp => L4Proto::Sctp,
                },
                Port::new(flow.port).expect("no flow goes to port 0"),
            ),
        };
        let decision = Oracle::new(state).eval(&packet);
        let told = match &decision.verdict {
            Verdict::Forward(hops) => {
                let hop = |hop: &Hop<F>| {
                    let masquerade = if hop.masquerade { " masqueraded" } else { "" };
                    format!(
                        "{}:{}{masquerade}",
                        hop.backend.address,
                        hop.backend.port.get()
                    )
                };
                hops.iter().map(hop).collect::<Vec<_>>().join(", ")
            }
            verdict => format!("{verdict:?}"),
        };
        let told = format!(
            "{told} ({:?}, {})",
            decision.class,
            decision.because.rule().0
        );
        let agree = match (&flow.expect, &decision.verdict) {
            (Expect::Rejected, Verdict::Reject)
            | (Expect::Dropped, Verdict::Drop)
            | (Expect::Closed | Expect::Unroutable, Verdict::Pass) => true,
            (Expect::Reaches(landings), Verdict::Pass) => landings
                .iter()
                .all(|landing| passes(*landing, flow.to) && landing.source != Source::Masqueraded),
            (Expect::Reaches(landings), Verdict::Forward(hops)) => {
                let fits = |landing: &Landing, hop: &Hop<F>| {
                    hop.backend.address == address(landing.host.addr)
                        && landing
                            .port
                            .is_none_or(|port| hop.backend.port.get() == port)
                        && match landing.source {
                            Source::Kept => !hop.masquerade,
                            Source::Masqueraded => hop.masquerade,
                            Source::Address(_) => true,
                        }
                };
                hops.iter()
                    .all(|hop| landings.iter().any(|landing| fits(landing, hop)))
                    && landings
                        .iter()
                        .all(|landing| hops.iter().any(|hop| fits(landing, hop)))
            }
            _ => false,
        };
        if agree { Ok(()) } else { Err(told) }
    }

    fn ingress(&self, client: Host) -> Option<&'static str> {
        match (client.site, self.pods) {
            (Site::N, _) => None,
            (Site::P1 | Site::P2, Pods::Bridge) => Some(BRIDGE),
            (Site::P1, Pods::PointToPoint) => Some("p1"),
            (Site::P2, Pods::PointToPoint) => Some("p2"),
            (Site::R | Site::X | Site::Outside | Site::Upstream, _) => Some(UPLINK),
        }
    }
}

/// The addresses of the node's interfaces.
fn own_addresses() -> BTreeSet<IpNet> {
    let uplink = [(NODE, [24, 64])];
    let others = [NODE_ALT, POD_GATEWAY, LOOPBACK].map(|address| (address, [32, 128]));
    let addresses = uplink.into_iter().chain(others);
    let prefixed = |(address, prefixes): (Addr, [u8; 2])| {
        let of_family = Family::ALL.into_iter().zip(prefixes);
        of_family.map(move |(family, prefix)| {
            IpNet::new(address.of(family), prefix).expect("a prefix of the family")
        })
    };
    addresses.flat_map(prefixed).collect()
}

fn expected(expect: &Expect) -> String {
    let Expect::Reaches(landings) = expect else {
        return format!("{expect:?}");
    };
    let landing = |landing: &Landing| format!("{} {:?}", landing.host.name(), landing.source);
    landings.iter().map(landing).collect::<Vec<_>>().join(", ")
}

/// Whether an untranslated packet ends there.
fn passes(landing: Landing, to: Addr) -> bool {
    let external = [EXTERNAL_IP, EXTERNAL_IP2, LB_VIP, LB_VIP2];
    match landing.host {
        host if host == OUT => external.iter().any(|own| own.name == to.name),
        host if host == OTHER => to.of(Family::V4) == OTHER.addr.of(Family::V4),
        host => host.addr.of(Family::V4) == to.of(Family::V4),
    }
}

fn configuration(flags: &[String]) -> Result<Config> {
    let name = "proxy-daemon".to_owned();
    let cli = Cli::read(
        std::iter::once(name)
            .chain(flags.iter().cloned())
            .map(Into::into),
    )?;
    let raw = cli.as_configuration().map_err(anyhow::Error::msg)?;
    let extra = ExtraSettings {
        manifests: cli.flags.manifests.clone(),
        os_hostname: NODE_NAME.into(),
        ..ExtraSettings::default()
    };
    match resolve(&raw, &extra) {
        Ok(resolved) => Ok(resolved.config),
        Err(faults) => {
            let faults: BTreeSet<String> = faults.iter().map(ToString::to_string).collect();
            bail!("{faults:?}")
        }
    }
}
