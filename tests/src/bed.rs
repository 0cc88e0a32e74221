//! What a test runs on: a network, its servers, and the daemon on N.
//!
//! Invariant: a bed that passes from one test to the next has no Services, no conntrack entries and no programs of the former.

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::address::{
    Addr, EXTERNAL_IP, EXTERNAL_IP2, Family, HOST, HOST_ALT, Host, LB_VIP, LB_VIP2, OTHER, OUT, P1,
    P2, Protocol, R, R2, R3, X, X2,
};
use crate::daemon::Daemon;
use crate::echo::Echo;
use crate::topology::{Pods, Topology};
use crate::world::{TARGET_PORT, World};

/// A second port that every echo server answers on.
pub const SECOND_PORT: u16 = 8081;

/// What distinguishes beds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BedSpec {
    /// The datapath.
    pub mode: &'static str,
    /// How pods hang off the node.
    pub pods: Pods,
    /// Flags of the daemon besides the usual ones.
    pub flags: Vec<String>,
}

/// A test bed.
#[derive(Debug)]
pub struct Bed {
    /// The daemon; ends before the network is removed.
    pub daemon: Daemon,
    /// The network.
    pub topology: Topology,
    servers: Vec<Echo>,
}

impl Bed {
    /// Builds a bed; the daemon is not started yet.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn build(kind: &BedSpec) -> Result<Self> {
        let topology = Topology::build(kind.pods)?;
        let daemon = Daemon::new(kind.mode, &kind.flags)?;
        let mut bed = Self {
            daemon,
            topology,
            servers: Vec::new(),
        };
        let usual = [TARGET_PORT, SECOND_PORT];
        for host in [P1, P2, R, R2, R3, X, X2, HOST, HOST_ALT] {
            bed.serve(host, host.addr, &usual)?;
        }
        for address in [EXTERNAL_IP, EXTERNAL_IP2, LB_VIP, LB_VIP2] {
            bed.serve(OUT, address, &[80, 81, 443])?;
        }
        bed.serve(OTHER, OTHER.addr, &[80, TARGET_PORT, 30_080])?;
        Ok(bed)
    }

    /// Starts more echo servers, in both families, at an address that the host has; they last as long as the bed.
    ///
    /// # Errors
    /// When the address is not there or a port is taken.
    pub fn serve(&mut self, host: Host, address: Addr, ports: &[u16]) -> Result<()> {
        for family in Family::ALL {
            let ns = self.topology.site(host.site);
            self.servers
                .push(Echo::start(ns, host.name(), address.of(family), ports)?);
        }
        Ok(())
    }

    /// Publishes the world, starts the daemon if there is none, and waits until it is in effect.
    ///
    /// # Errors
    /// When it is not in effect in time.
    pub fn apply(&mut self, world: &World) -> Result<()> {
        self.daemon.publish(world)?;
        self.settle()
    }

    /// Starts the daemon if there is none, and waits until what was published is in effect.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn settle(&mut self) -> Result<()> {
        let ns = self.topology.site(crate::address::Site::N);
        if !self.daemon.is_started() {
            self.daemon.start(ns)?;
        }
        self.daemon.settle(ns)
    }

    /// Makes it as good as new for the next test.
    ///
    /// # Errors
    /// When the daemon does not follow.
    pub fn reset(&mut self) -> Result<()> {
        if self.daemon.is_started() {
            self.apply(&World::new(Family::V4, Protocol::Tcp))?;
        }
        self.topology
            .site(crate::address::Site::N)
            .run("conntrack", &["-F"]);
        Ok(())
    }

    /// Ends the daemon with SIGKILL.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGKILL).map(drop)
    }
}
