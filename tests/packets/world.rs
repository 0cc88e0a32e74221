//! What is in the tables?
//!
//! A node with two pod interfaces and an uplink, in both families alike. Invariant: the tables hold what the
//! daemon would write; a test names Services, not entries.

use std::net::IpAddr;

use proxy_common::{
    Address, Backend, Detector, Exposure, Frontend, FrontendKey, Interface, InterfaceFlags,
    LocalAddress, Port, Protocol, Record, Route, Routes, SetRange, Settings,
};

/// The interface of the client pod, of the backends' pod, and of the network outside.
pub(crate) const CLIENT: u32 = 1;
pub(crate) const BACKEND: u32 = 2;
pub(crate) const UPLINK: u32 = 3;
/// The mark by which others ask for masquerading.
pub(crate) const MARK: u32 = 0x4000;
/// The ports for masqueraded flows.
pub(crate) const FIRST_PORT: u16 = 10_240;
pub(crate) const N_PORTS: u16 = 20_000;

/// The tables of one family.
#[derive(Clone, Debug)]
pub(crate) struct Family<const WORDS: usize> {
    pub(crate) settings: Settings<WORDS>,
    pub(crate) frontends: Vec<(FrontendKey<WORDS>, Frontend)>,
    /// By the id of the ServicePort.
    pub(crate) records: Vec<Record>,
    pub(crate) slots: Vec<u32>,
    /// By the id of the backend.
    pub(crate) backends: Vec<Backend<WORDS>>,
    pub(crate) local: Vec<(Address<WORDS>, LocalAddress)>,
    /// The id of the set, the prefix and its length.
    pub(crate) source_ranges: Vec<(u32, Address<WORDS>, u32)>,
}

/// The tables of both families.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) interfaces: Vec<(u32, Interface)>,
    pub(crate) v4: Family<1>,
    pub(crate) v6: Family<4>,
}

/// A ServicePort: `fd00::` stands for `10.` in the other family.
#[derive(Clone, Debug)]
pub(crate) struct Service<'a> {
    pub(crate) protocol: u8,
    /// Address and port; the unspecified address is a NodePort.
    pub(crate) frontends: &'a [(&'a str, u16, Exposure)],
    pub(crate) backends: &'a [(&'a str, u16)],
    pub(crate) internal: Route,
    pub(crate) external: Route,
    /// From which sources alone it may be used.
    pub(crate) source_range: Option<(&'a str, u32)>,
}

impl World {
    pub(crate) fn new() -> Self {
        let interface = |v4: &str, v6: &str, flags: InterfaceFlags| Interface {
            flags: InterfaceFlags::KNOWN.with(flags),
            l2_length: 14,
            mac: [2, 0, 0, 0, 0, 0x0e],
            reserved: 0,
            source_v4: v4.parse::<std::net::Ipv4Addr>().expect("IPv4").into(),
            source_v6: v6.parse::<std::net::Ipv6Addr>().expect("IPv6").into(),
        };
        let mut world = Self {
            interfaces: vec![
                (
                    CLIENT,
                    interface("10.1.0.1", "fd00:1::1", InterfaceFlags::POD),
                ),
                (
                    BACKEND,
                    interface("10.1.0.1", "fd00:1::1", InterfaceFlags::POD),
                ),
                (
                    UPLINK,
                    interface("192.0.2.2", "2001:db8::2", InterfaceFlags(0)),
                ),
            ],
            v4: Family::new(),
            v6: Family::new(),
        };
        for (address, node_ports) in [
            ("10.1.0.1", 0),
            ("fd00:1::1", 0),
            ("192.0.2.2", 1),
            ("2001:db8::2", 1),
        ] {
            let local = LocalAddress { node_ports };
            match address.parse().expect("an address") {
                IpAddr::V4(v4) => world.v4.local.push((v4.into(), local)),
                IpAddr::V6(v6) => world.v6.local.push((v6.into(), local)),
            }
        }
        world
    }

    /// With a ServicePort in the family that its addresses are of.
    pub(crate) fn with(mut self, service: &Service<'_>) -> Self {
        let is_v4 = |address: &str| address.parse::<IpAddr>().expect("an address").is_ipv4();
        if is_v4(service.frontends[0].0) {
            let address = |text: &str| text.parse::<std::net::Ipv4Addr>().expect("IPv4").into();
            self.v4.add(service, address);
        } else {
            let address = |text: &str| text.parse::<std::net::Ipv6Addr>().expect("IPv6").into();
            self.v6.add(service, address);
        }
        self
    }
}

impl<const WORDS: usize> Family<WORDS> {
    fn new() -> Self {
        Self {
            settings: Settings {
                detector: Detector::INTERFACE,
                masquerade_mark: MARK,
                first_port: FIRST_PORT,
                n_ports: N_PORTS,
                ..Settings::EMPTY
            },
            frontends: Vec::new(),
            // Entry 0 stands for "none".
            records: vec![record(
                SetRange { first: 0, count: 0 },
                Route::DROP,
                Route::DROP,
            )],
            slots: Vec::new(),
            backends: vec![Backend {
                address: Address::UNSPECIFIED,
                port: Port::NONE,
                epoch: 0,
                service: 0,
                live: 0,
            }],
            local: Vec::new(),
            source_ranges: Vec::new(),
        }
    }

    fn add(&mut self, service: &Service<'_>, address: impl Fn(&str) -> Address<WORDS>) {
        let id = self.records.len() as u32;
        let first = self.slots.len() as u32;
        let set = SetRange {
            first,
            count: service.backends.len() as u32,
        };
        self.records
            .push(record(set, service.internal, service.external));
        for (backend, port) in service.backends {
            self.slots.push(self.backends.len() as u32);
            self.backends.push(Backend {
                address: address(backend),
                port: Port::new(*port),
                epoch: 0,
                service: id,
                live: 1,
            });
        }
        let source_ranges = if let Some((prefix, length)) = service.source_range {
            self.source_ranges.push((id, address(prefix), length));
            id
        } else {
            0
        };
        for (vip, port, exposure) in service.frontends {
            let (port, protocol) = if *exposure == Exposure::UNKNOWN_PORT {
                (Port::NONE, Protocol::NONE)
            } else {
                (Port::new(*port), Protocol(service.protocol))
            };
            let key = FrontendKey {
                address: address(vip),
                port,
                protocol,
                reserved: 0,
            };
            let frontend = Frontend {
                service: id,
                source_ranges,
                exposure: *exposure,
                reserved: [0; 3],
            };
            self.frontends.push((key, frontend));
        }
    }

    /// The addresses that the bitmap names.
    pub(crate) fn of_concern(&self) -> impl Iterator<Item = Address<WORDS>> {
        let frontends = self.frontends.iter().map(|(key, _)| key.address);
        let backends = self.backends.iter().map(|backend| backend.address);
        let local = self.local.iter().map(|(address, _)| *address);
        frontends
            .chain(backends)
            .chain(local)
            .collect::<Vec<_>>()
            .into_iter()
    }
}

fn record(set: SetRange, internal: Route, external: Route) -> Record {
    let all = |route| Routes {
        pod: route,
        host: route,
        extn: route,
    };
    Record {
        cluster: set,
        local: set,
        affinity: 0,
        internal: all(internal),
        external: all(external),
        epoch: 0,
    }
}
