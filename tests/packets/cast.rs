//! Who takes part in the lives of packets, and how is one told?

use std::net::{IpAddr, SocketAddr};

use proxy_common::{Exposure, Route};

use crate::frame::{ACK, DATA, Frame, INIT, SYN, Transport};
use crate::host::Host;
use crate::kernel::{Arrival, Kernel};
use crate::node::Node;
use crate::world::{Service, World};

/// Addresses and ports of one family.
pub(crate) struct Names {
    /// A pod, and a port of its own.
    pub(crate) client: &'static str,
    /// Somebody outside.
    pub(crate) outside: &'static str,
    pub(crate) vip: &'static str,
    pub(crate) other_vip: &'static str,
    pub(crate) backend: &'static str,
    pub(crate) node: &'static str,
    /// The node's address on the pods' side.
    pub(crate) pod_side: &'static str,
    pub(crate) any: &'static str,
}

pub(crate) const V4: Names = Names {
    client: "10.1.0.5",
    outside: "203.0.113.9",
    vip: "10.96.0.1",
    other_vip: "10.96.0.2",
    backend: "10.1.0.7",
    node: "192.0.2.2",
    pod_side: "10.1.0.1",
    any: "0.0.0.0",
};
pub(crate) const V6: Names = Names {
    client: "fd00:1::5",
    outside: "2001:db8:9::9",
    vip: "fd00:96::1",
    other_vip: "fd00:96::2",
    backend: "fd00:1::7",
    node: "2001:db8::2",
    pod_side: "fd00:1::1",
    any: "::",
};

/// Makes a node with these tables.
pub(crate) type NewNode = Box<dyn Fn(&World) -> Box<dyn Node>>;

/// What a life is told with.
pub(crate) struct Cast<'a> {
    pub(crate) node: NewNode,
    pub(crate) names: &'a Names,
    /// What the client sends first, and what it is answered.
    pub(crate) opening: Transport,
    pub(crate) answer: Transport,
}

impl Cast<'_> {
    pub(crate) fn frame(
        source: (&str, u16),
        destination: (&str, u16),
        transport: Transport,
    ) -> Frame {
        let address =
            |(ip, port): (&str, u16)| SocketAddr::new(ip.parse().expect("an address"), port);
        Frame {
            source: address(source),
            destination: address(destination),
            transport,
            payload: b"from one end to the other".to_vec(),
        }
    }

    /// A ClusterIP on port 80 with one backend on port 8080, and the same port as a NodePort.
    pub(crate) fn service(&self) -> World {
        self.world(&[(self.names.backend, 8080)], Route::CLUSTER)
    }

    pub(crate) fn world(&self, backends: &[(&str, u16)], internal: Route) -> World {
        World::new().with(&Service {
            protocol: self.opening.number(),
            frontends: &[
                (self.names.vip, 80, Exposure::INTERNAL),
                (self.names.vip, 0, Exposure::UNKNOWN_PORT),
                (self.names.any, 30_080, Exposure::EXTERNAL),
            ],
            backends,
            internal,
            external: match internal {
                Route::CLUSTER => Route::CLUSTER.masqueraded(),
                other => other,
            },
            source_range: None,
        })
    }

    /// What comes after the first packet.
    pub(crate) fn next(&self) -> Transport {
        match self.opening {
            SYN => ACK,
            INIT => DATA,
            other => other,
        }
    }
}

/// Tells a life on every node, in both families, with each protocol.
pub(crate) fn tell(life: impl Fn(&Cast<'_>)) {
    for names in [&V4, &V6] {
        for (opening, answer) in Transport::OPENINGS {
            let nodes: [NewNode; 3] = [
                Box::new(|world| Box::new(Host::new(world, 7))),
                Box::new(|world| Box::new(Kernel::new(world, Arrival::Tc))),
                Box::new(|world| Box::new(Kernel::new(world, Arrival::Xdp))),
            ];
            for node in nodes {
                life(&Cast {
                    node,
                    names,
                    opening,
                    answer,
                });
            }
        }
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
