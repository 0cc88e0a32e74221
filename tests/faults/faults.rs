//! Which faults can a daemon and its node have, besides damaged rules?
//!
//! A fault is one function and one line in [`all`]. Invariants: when a function returns, the fault is over, and what happens from then
//! on is measured; an error is something that must not happen while the fault lasts.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use proxy_tests::address::{Family, NODE, Site};
use proxy_tests::daemon::http;
use proxy_tests::damage;
use proxy_tests::datapath::Datapath;
use serde_json::json;

use crate::run::{HEALTH, LIFE_3, SYNC_9, Scene};
use crate::servers;

/// How a fault comes about; it is over when this returns.
type Inflict = fn(&mut Scene<'_>) -> Result<()>;

/// What happens.
#[derive(Clone, Copy)]
pub(crate) enum What {
    /// Others damage the rules: answers may be missing until they are repaired.
    Damage(damage::DamageKind),
    /// Anything else: no answer may be missing.
    Other(Inflict),
}

/// A kind of fault.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) what: What,
    /// How soon after it everything must be as it should be.
    pub(crate) limit: Duration,
    /// Whether it takes so long that only long runs have time for it.
    pub(crate) is_rare: bool,
}

pub(crate) const fn fault(name: &'static str, limit: Duration, inflict: Inflict) -> Fault {
    Fault {
        name,
        what: What::Other(inflict),
        limit,
        is_rare: false,
    }
}

impl Fault {
    pub(crate) const fn rare(self) -> Self {
        Self {
            is_rare: true,
            ..self
        }
    }
}

/// Every kind of fault.
pub(crate) fn all(datapath: Datapath) -> Vec<Fault> {
    let damages = damage::kinds(datapath).into_iter().map(|kind| Fault {
        name: kind.name,
        what: What::Damage(kind),
        limit: SYNC_9,
        is_rare: false,
    });
    let mut faults: Vec<Fault> = damages.collect();
    faults.extend(servers::all());
    faults.extend([
        fault("SIGKILL", SYNC_9, killed),
        fault("SIGKILL again and again", SYNC_9, killed_often),
        fault("SIGTERM", SYNC_9, terminated),
        fault("SIGSTOP for a while", SYNC_9, stopped),
        fault("node addresses come and go", SYNC_9, addresses),
        fault("Node without addresses", SYNC_9, node_without_addresses),
        fault("ServiceCIDRs come and go", SYNC_9, service_cidrs),
        fault("silent connections to the health port", SYNC_9, health_port),
        fault("log unread", SYNC_9, log_unread),
        fault("programs hang at start", SYNC_9, programs_hang),
        fault(
            "start beside a rule that iptables cannot print",
            SYNC_9,
            unprintable,
        ),
    ]);
    if datapath.takes_xtables_lock() {
        faults.push(fault("xtables lock held", SYNC_9, lock_held));
    }
    faults
}

fn killed(scene: &mut Scene<'_>) -> Result<()> {
    scene.restart(Signal::SIGKILL)
}

fn killed_often(scene: &mut Scene<'_>) -> Result<()> {
    for _ in 0..3 + scene.dice.below(5) {
        scene.restart(Signal::SIGKILL)?;
        scene.pass(0, 700);
    }
    scene.restart(Signal::SIGKILL)
}

fn terminated(scene: &mut Scene<'_>) -> Result<()> {
    let started = Instant::now();
    scene.daemon.signal(Signal::SIGTERM)?;
    let took = started.elapsed();
    scene.pass(0, 1500);
    scene.daemon.start(scene.node)?;
    ensure!(took < Duration::from_secs(5), "SIGTERM took {took:?}");
    Ok(())
}

fn stopped(scene: &mut Scene<'_>) -> Result<()> {
    scene.daemon.pause(true);
    scene.pass(500, 5000);
    scene.daemon.pause(false);
    Ok(())
}

fn addresses(scene: &mut Scene<'_>) -> Result<()> {
    let n = 1 + scene.dice.below(4);
    let addresses = |verb: &str| -> Result<()> {
        for n in 0..n {
            for address in [
                format!("192.0.2.{}/32", 70 + n),
                format!("2001:db8:2::7{n}/128"),
            ] {
                scene
                    .node
                    .check_run("ip", &["addr", verb, &address, "dev", "lo"])?;
            }
        }
        Ok(())
    };
    addresses("add")?;
    let pause = scene.dice.millis(0, 1500);
    std::thread::sleep(pause);
    addresses("del")
}

fn node_without_addresses(scene: &mut Scene<'_>) -> Result<()> {
    let addresses = scene.dice.pick(&[
        json!([]),
        json!(null),
        json!([{"type": "Hostname", "address": "node-n"}]),
    ]);
    scene.say(&addresses.to_string());
    scene.cluster.change(|world| {
        world
            .node()
            .patch(json!({"status": {"addresses": addresses}}));
    });
    scene.pass(1000, 2500);
    scene.cluster.change(|world| {
        let both = Family::ALL.map(|family| NODE.of(family).to_string());
        world.node().internal_ips(&[&both[0], &both[1]]);
    });
    Ok(())
}

/// Networks that touch, so that a set that keeps where they begin and end has to tell them apart.
fn service_cidrs(scene: &mut Scene<'_>) -> Result<()> {
    const N: usize = 4;
    let name = |n: usize| format!("more-{n}");
    let cidrs = |n: usize| [format!("10.100.{n}.0/24"), format!("fd00:100:0:{n}::/64")];
    for _ in 0..=scene.dice.below(3) {
        scene.cluster.change(|world| {
            for n in 0..N {
                let [v4, v6] = cidrs(n);
                world.service_cidr(&name(n), &[&v4, &v6]);
            }
        });
        scene.pass(0, 1500);
        let stays: Vec<bool> = (0..N).map(|_| scene.dice.percent(60)).collect();
        scene.say(&format!("{stays:?} stay"));
        scene.cluster.change(|world| {
            for n in (0..N).filter(|n| !stays[*n]) {
                world.delete_service_cidr(&name(n));
            }
        });
        scene.pass(0, 1500);
    }
    Ok(())
}

/// Strangers connect to the health port and say nothing; kubelet must get its answers.
fn health_port(scene: &mut Scene<'_>) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let n = scene.dice.pick(&[160, 400]);
    let to = SocketAddr::new(NODE.of(Family::V4), 10_256);
    let connect = |_| TcpStream::connect_timeout(&to, PATIENCE).ok();
    let silent: Vec<_> = scene
        .topology
        .site(Site::X)
        .enter(|| (0..n).map_while(connect).collect());
    let n_asked = 10;
    let mut n_answered = 0;
    for _ in 0..n_asked {
        n_answered += usize::from(matches!(http(scene.node, HEALTH, "/livez"), Ok((200, _))));
        scene.pass(50, 300);
    }
    scene.say(&format!(
        "{} connections, {n_answered} answers",
        silent.len()
    ));
    ensure!(
        n_answered * 2 > n_asked,
        "beside {} silent connections /livez answered {n_answered} of {n_asked} times",
        silent.len()
    );
    Ok(())
}

fn log_unread(scene: &mut Scene<'_>) -> Result<()> {
    scene.log.hang()?;
    scene.pass(1000, 3000);
    let in_step = scene.in_step(Instant::now(), LIFE_3);
    scene.log.go_on();
    in_step.map(drop)
}

fn programs_hang(scene: &mut Scene<'_>) -> Result<()> {
    scene.programs.hang(scene.daemon)?;
    scene.restart(Signal::SIGKILL)?;
    let outcome = if scene.datapath.programs(Family::V4).is_empty() {
        // It needs none of them.
        scene.in_step(Instant::now(), SYNC_9).map(drop)
    } else {
        scene.pass(1000, 4000);
        Ok(())
    };
    scene.programs.go_on(scene.daemon);
    outcome
}

fn unprintable(scene: &mut Scene<'_>) -> Result<()> {
    damage::unprintable(scene.node, true);
    let outcome = scene
        .restart(Signal::SIGKILL)
        .and_then(|()| scene.in_step(Instant::now(), SYNC_9));
    damage::unprintable(scene.node, false);
    outcome.map(drop)
}

/// Somebody else's iptables takes long: all of the machine waits for it.
fn lock_held(scene: &mut Scene<'_>) -> Result<()> {
    let lock = File::options()
        .create(true)
        .append(true)
        .open("/run/xtables.lock")?;
    lock.lock()?;
    scene.pass(500, 3000);
    Ok(())
}
