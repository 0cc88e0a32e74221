//! What must the kernel hold? Whatever a daemon writes into a node of its own, from the same cluster, to which nothing happened.

use std::collections::BTreeSet;

use anyhow::Result;
use proxy_tests::address::Site;
use proxy_tests::daemon::{Daemon, LOCAL_SERVER, http};
use proxy_tests::datapath::everything_of_ours;
use proxy_tests::netns::Netns;
use proxy_tests::topology::{Pods, Topology};
use proxy_tests::world::World;

/// A node with the addresses of the other, and its daemon.
pub(crate) struct Reference {
    daemon: Daemon,
    topology: Topology,
}

/// What a node shows.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Contents(BTreeSet<String>);

impl Contents {
    /// Reads a node.
    pub(crate) fn of(node: &Netns) -> Result<Self> {
        let mut lines = everything_of_ours(node);
        let (_, forwarding) = http(node, LOCAL_SERVER, "/debug/forwarding")?;
        // Kernel: link-local addresses follow from hardware addresses, which are drawn for each namespace.
        let without_link_local = |line: &str| {
            let words = line.split(' ').filter(|word| !word.starts_with("fe80:"));
            words.collect::<Vec<_>>().join(" ")
        };
        let lines_of = forwarding.lines().map(without_link_local);
        lines.extend(lines_of.map(|line| format!("/debug/forwarding: {line}")));
        Ok(Self(lines))
    }

    /// The differences from `other`.
    pub(crate) fn differs(&self, wanted: &Self) -> String {
        let list = |sign: &str, from: &Self, without: &Self| {
            let lines = from.0.difference(&without.0).take(10);
            let lines: Vec<String> = lines.map(|line| format!("  {sign} {line}")).collect();
            lines.join("\n")
        };
        list("missing", wanted, self) + "\n" + &list("too much", self, wanted)
    }
}

impl Reference {
    pub(crate) fn new(mode: &str, flags: &[String]) -> Result<Self> {
        Ok(Self {
            daemon: Daemon::new(mode, flags)?,
            topology: Topology::build(Pods::PointToPoint)?,
        })
    }

    /// What the kernel must hold for this cluster.
    pub(crate) fn contents(&mut self, world: &World) -> Result<Contents> {
        let node = self.topology.site(Site::N);
        self.daemon.publish(world)?;
        if !self.daemon.is_started() {
            self.daemon.start(node)?;
        }
        self.daemon.settle(node)?;
        Contents::of(node)
    }
}
