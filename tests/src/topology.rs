//! What the test bed of SPEC §0 looks like: seven namespaces, their links, addresses and routes.
//!
//! ```text
//!   P1 ──┐                     ┌── R  (other node's pods)
//!        ├── N ──── Upstream ──┼── X  (off-cluster clients)
//!   P2 ──┘      192.0.2.0/24   └── Outside (owns external addresses that are not captured)
//! ```
//!
//! Invariant: whatever R or X sends goes to N first, also answers, so that a connection works whether or not N masqueraded it, and
//! only the address the server saw tells. Nothing is answered twice: no DAD, no redirects, no ICMP rate limits, no reverse-path
//! filter.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use anyhow::Result;

use crate::address::{
    Addr, EXTERNAL_IP, EXTERNAL_IP2, Family, Host, LB_VIP, LB_VIP2, NODE, NODE_ALT, OTHER_NODE, P1,
    P2, POD_GATEWAY, R, R2, R3, Site, X, X2,
};
use crate::netns::Netns;

/// How the local pods hang off the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pods {
    /// Each on a link of its own.
    PointToPoint,
    /// Behind bridge `cbr0`, in hairpin mode, with bridge-nf-call on.
    Bridge,
}

/// N's interface to the upstream router.
pub const UPLINK: &str = "up0";
/// The bridge of [`Pods::Bridge`].
pub const BRIDGE: &str = "cbr0";

/// The namespaces of one test bed.
#[derive(Debug)]
pub struct Topology {
    sites: BTreeMap<Site, Arc<Netns>>,
    /// How the local pods hang off the node.
    pub pods: Pods,
}

impl Topology {
    /// Builds the whole test bed.
    ///
    /// # Errors
    /// When the kernel refuses a namespace, a link, an address or a route.
    pub fn build(pods: Pods) -> Result<Self> {
        let labels: Vec<&str> = Site::ALL.iter().map(|site| site.label()).collect();
        let spaces = Netns::create(&labels)?.into_iter().map(Arc::new);
        let sites = Site::ALL.into_iter().zip(spaces).collect();
        let topology = Self { sites, pods };
        for site in Site::ALL {
            topology.sysctls(site)?;
        }
        for (site, script) in topology.scripts() {
            topology.site(site).feed("ip", &["-batch", "-"], &script)?;
        }
        let rules = "rule add iif r0 lookup 100\nrule add iif x0 lookup 100\n";
        topology
            .site(Site::Upstream)
            .feed("ip", &["-batch", "-"], rules)?;
        topology
            .site(Site::Upstream)
            .feed("ip", &["-6", "-batch", "-"], rules)?;
        Ok(topology)
    }

    /// One namespace.
    pub fn site(&self, site: Site) -> &Arc<Netns> {
        &self.sites[&site]
    }

    fn sysctls(&self, site: Site) -> Result<()> {
        let ns = self.site(site);
        for scope in ["all", "default"] {
            ns.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
            ns.sysctl(&format!("net.ipv6.conf.{scope}.accept_redirects"), "0")?;
            ns.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
            ns.sysctl(&format!("net.ipv4.conf.{scope}.send_redirects"), "0")?;
            ns.sysctl(&format!("net.ipv4.conf.{scope}.accept_redirects"), "0")?;
        }
        ns.sysctl("net.ipv4.icmp_ratelimit", "0")?;
        ns.sysctl("net.ipv6.icmp.ratelimit", "0")?;
        // The reason of a failed connect is read from the error queue, whose length the kernel bounds per burst.
        for name in ["net.ipv4.icmp_msgs_per_sec", "net.ipv4.icmp_msgs_burst"] {
            drop(ns.sysctl(name, "1000000"));
        }
        if matches!(site, Site::N | Site::Upstream) {
            ns.sysctl("net.ipv4.ip_forward", "1")?;
            ns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        }
        if site == Site::N && self.pods == Pods::Bridge {
            for name in ["iptables", "ip6tables"] {
                ns.sysctl(&format!("net.bridge.bridge-nf-call-{name}"), "1")?;
            }
        }
        Ok(())
    }

    fn scripts(&self) -> Vec<(Site, String)> {
        vec![
            (Site::N, self.node()),
            (Site::P1, self.pod(P1)),
            (Site::P2, self.pod(P2)),
            (Site::Upstream, self.upstream()),
            (Site::R, edge(&[R.addr, R2.addr, R3.addr], REMOTE_GATEWAY)),
            (Site::X, edge(&[X.addr, X2.addr], CLIENT_GATEWAY)),
            (
                Site::Outside,
                edge(
                    &[EXTERNAL_IP, EXTERNAL_IP2, LB_VIP, LB_VIP2],
                    OUTSIDE_GATEWAY,
                ),
            ),
        ]
    }

    fn name(&self, site: Site) -> String {
        self.site(site).name()
    }

    fn node(&self) -> String {
        let mut s = Script::default();
        s.line("link set lo up");
        s.address(NODE_ALT, "lo");
        for (device, site, peer) in [
            (UPLINK, Site::Upstream, "n0"),
            ("p1", Site::P1, "eth0"),
            ("p2", Site::P2, "eth0"),
        ] {
            s.line(format!(
                "link add {device} type veth peer name {peer} netns {}",
                self.name(site)
            ));
        }
        s.line(format!("addr add {}/24 dev {UPLINK}", NODE.of(Family::V4)));
        s.line(format!(
            "addr add {}/64 dev {UPLINK} nodad",
            NODE.of(Family::V6)
        ));
        s.up(UPLINK);
        s.via("0.0.0.0/0", OTHER_NODE.of(Family::V4), UPLINK);
        s.via("::/0", OTHER_NODE.of(Family::V6), UPLINK);
        match self.pods {
            Pods::PointToPoint => {
                for (pod, device) in [(P1, "p1"), (P2, "p2")] {
                    s.address(POD_GATEWAY, device);
                    s.up(device);
                    for family in Family::ALL {
                        s.line(format!(
                            "route add {} dev {device}",
                            pod.addr.prefix(family)
                        ));
                    }
                }
            }
            Pods::Bridge => {
                s.line(format!("link add {BRIDGE} type bridge"));
                s.line(format!(
                    "addr add {}/24 dev {BRIDGE}",
                    POD_GATEWAY.of(Family::V4)
                ));
                s.line(format!(
                    "addr add {}/64 dev {BRIDGE} nodad",
                    POD_GATEWAY.of(Family::V6)
                ));
                s.up(BRIDGE);
                for device in ["p1", "p2"] {
                    s.line(format!("link set {device} master {BRIDGE}"));
                    s.line(format!("link set {device} type bridge_slave hairpin on"));
                    s.up(device);
                }
            }
        }
        s.text
    }

    fn pod(&self, pod: Host) -> String {
        let mut s = Script::default();
        s.line("link set lo up");
        match self.pods {
            Pods::PointToPoint => s.address(pod.addr, "eth0"),
            Pods::Bridge => {
                s.line(format!("addr add {}/24 dev eth0", pod.addr.of(Family::V4)));
                s.line(format!(
                    "addr add {}/64 dev eth0 nodad",
                    pod.addr.of(Family::V6)
                ));
            }
        }
        s.up("eth0");
        s.via("0.0.0.0/0", POD_GATEWAY.of(Family::V4), "eth0");
        s.via("::/0", POD_GATEWAY.of(Family::V6), "eth0");
        s.text
    }

    fn upstream(&self) -> String {
        let mut s = Script::default();
        s.line("link set lo up");
        s.line(format!("addr add {}/24 dev n0", OTHER_NODE.of(Family::V4)));
        s.line(format!(
            "addr add {}/64 dev n0 nodad",
            OTHER_NODE.of(Family::V6)
        ));
        s.up("n0");
        let edges = [
            (Site::R, REMOTE_GATEWAY, &[R.addr, R2.addr, R3.addr][..]),
            (Site::X, CLIENT_GATEWAY, &[X.addr, X2.addr][..]),
            (
                Site::Outside,
                OUTSIDE_GATEWAY,
                &[EXTERNAL_IP, EXTERNAL_IP2, LB_VIP, LB_VIP2][..],
            ),
        ];
        for (site, gateway, addresses) in edges {
            let device = format!("{}0", site.label());
            let device = device.as_str();
            s.line(format!(
                "link add {device} type veth peer name eth0 netns {}",
                self.name(site)
            ));
            s.address(gateway, device);
            s.up(device);
            for family in Family::ALL {
                for address in addresses {
                    s.line(format!("route add {} dev {device}", address.prefix(family)));
                }
            }
        }
        for (prefix, via) in [
            ("10.244.1.0/24", NODE.of(Family::V4)),
            ("fd00:244:0:1::/64", NODE.of(Family::V6)),
            ("198.51.100.2/32", NODE.of(Family::V4)),
            ("2001:db8:5100::2/128", NODE.of(Family::V6)),
            ("0.0.0.0/0 table 100", NODE.of(Family::V4)),
            ("::/0 table 100", NODE.of(Family::V6)),
        ] {
            s.via(prefix, via, "n0");
        }
        s.text
    }
}

const REMOTE_GATEWAY: Addr = Addr::new(
    "REMOTE_GATEWAY",
    [10, 244, 2, 1],
    ([0xfd00, 0x244, 0, 2], 1),
);
const CLIENT_GATEWAY: Addr = Addr::new(
    "CLIENT_GATEWAY",
    [203, 0, 113, 1],
    ([0x2001, 0xdb8, 0x203, 0], 1),
);
const OUTSIDE_GATEWAY: Addr = Addr::new(
    "OUTSIDE_GATEWAY",
    [203, 0, 113, 2],
    ([0x2001, 0xdb8, 0x203, 0], 2),
);

/// A namespace with some addresses and one way out.
fn edge(addresses: &[Addr], gateway: Addr) -> String {
    let mut s = Script::default();
    s.line("link set lo up");
    for address in addresses {
        s.address(*address, "eth0");
    }
    s.up("eth0");
    s.via("0.0.0.0/0", gateway.of(Family::V4), "eth0");
    s.via("::/0", gateway.of(Family::V6), "eth0");
    s.text
}

/// Lines for `ip -batch`.
#[derive(Default)]
struct Script {
    text: String,
}

impl Script {
    fn line(&mut self, line: impl AsRef<str>) {
        writeln!(self.text, "{}", line.as_ref()).expect("writing to a String");
    }

    fn address(&mut self, address: Addr, device: &str) {
        self.line(format!(
            "addr add {} dev {device}",
            address.prefix(Family::V4)
        ));
        self.line(format!(
            "addr add {} dev {device} nodad",
            address.prefix(Family::V6)
        ));
    }

    fn up(&mut self, device: &str) {
        self.line(format!("link set {device} up"));
    }

    fn via(&mut self, prefix: &str, gateway: std::net::IpAddr, device: &str) {
        self.line(format!(
            "route add {prefix} via {gateway} dev {device} onlink"
        ));
    }
}
