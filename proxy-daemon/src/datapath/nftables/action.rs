//! Which actions are there for a frontend's packets, and which chain and code has each?
//!
//! Frontends of many Services share an action. Invariant: two actions never share a chain or a code.

use std::borrow::Cow;
use std::num::NonZeroU32;

use super::layout::{BackendMaps, DROP, SetId, chains, from_pod, mark_for_masquerade, rule};
use super::ruleset::{
    CLIENT, Chain, Checksum, Expr, FRONTEND, Field, NODE_PORT, Rule, Target, Verdict,
};
pub(crate) use crate::datapath::common::Masquerade;
use crate::forwarding::{BackendSet, Globals};
use crate::net::{Family, L4Proto};

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// The packet is dropped.
    Drop,
    /// Accepted in the nat hooks; the filter hooks reject it.
    Reject,
    /// Sources outside the source ranges are dropped first.
    CheckSourceRanges,
    /// Each source class has its own action.
    BySource {
        /// Whether the frontend is a NodePort.
        node_port: bool,
    },
    /// The flow is sent to a backend of a set.
    SelectBackend(BackendChain),
}

/// A chain that sends a flow to a random backend of a set, each equally likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BackendChain {
    pub(crate) lookup: Lookup,
    pub(crate) set: BackendSet,
    /// The number of backends in the set.
    pub(crate) n: NonZeroU32,
    pub(crate) masquerade: Masquerade,
    /// Affinity timeout. Unit: seconds.
    pub(crate) affinity: Option<u32>,
}

/// How the ServicePort is found from the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lookup {
    /// By the packet's destination, which is the frontend that names the ServicePort.
    Direct,
    /// By another VIP, through `FrontendOwners`.
    Vip,
    /// By a NodePort, through `NodePortOwners`.
    NodePort,
}

impl Action {
    /// The code that frontends hold.
    ///
    /// `ffff:…` has no backends. Without affinity, the upper half is lookup, set and masquerade, the lower
    /// half the number of backends. With affinity the first bit is set and the rest enumerates all
    /// combinations; beyond 862 backends it is a hash.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Drop => 0xffff_0001,
            Self::Reject => 0xffff_0002,
            Self::CheckSourceRanges => 0xffff_0003,
            Self::BySource { node_port: false } => 0xffff_0004,
            Self::BySource { node_port: true } => 0xffff_0005,
            Self::SelectBackend(chain) => chain.code(),
        }
    }

    /// Its verdict.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Drop => Verdict::Drop,
            Self::Reject => Verdict::Accept,
            Self::CheckSourceRanges => Verdict::Goto(chains::FIREWALL.0.into()),
            Self::BySource { node_port: false } => Verdict::Goto(chains::BY_SOURCE.0.into()),
            Self::BySource { node_port: true } => {
                Verdict::Goto(chains::BY_SOURCE_NODE_PORT.0.into())
            }
            Self::SelectBackend(chain) => Verdict::Goto(chain.name().into()),
        }
    }
}

/// The greatest affinity timeout. Unit: seconds.
const MAX_AFFINITY: u32 = 86_400;

impl BackendChain {
    /// Its name, unique to its fields.
    pub(crate) fn name(&self) -> String {
        let Self {
            lookup,
            set,
            n,
            masquerade,
            affinity,
        } = self;
        let lookup = match lookup {
            Lookup::Direct => "",
            Lookup::Vip => "vip-",
            Lookup::NodePort => "node-port-",
        };
        let set = match set {
            BackendSet::Cluster => "cluster",
            BackendSet::Local => "local",
        };
        let masquerade = match masquerade {
            Masquerade::Never => "",
            Masquerade::UnlessPod => "-masquerade-unless-pod",
            Masquerade::Always => "-masquerade",
        };
        let affinity = affinity.map_or(String::new(), |seconds| format!("-affinity-{seconds}s"));
        format!("{lookup}{set}-{n}{masquerade}{affinity}")
    }

    fn code(&self) -> u32 {
        let Self {
            lookup,
            set,
            n,
            masquerade,
            affinity,
        } = *self;
        let lookup: u32 = match lookup {
            Lookup::Direct => 0,
            Lookup::Vip => 1,
            Lookup::NodePort => 2,
        };
        let set: u32 = match set {
            BackendSet::Cluster => 0,
            BackendSet::Local => 1,
        };
        let masquerade: u32 = match masquerade {
            Masquerade::Never => 0,
            Masquerade::UnlessPod => 1,
            Masquerade::Always => 2,
        };
        let combination = (lookup * 2 + set) * 3 + masquerade;
        let Some(seconds) = affinity else {
            // 0 means "unset". Counts above 65,535 are hashed instead.
            return match u16::try_from(n.get()) {
                Ok(n) => (combination + 1) << 16 | u32::from(n),
                Err(_) => 0x4000_0000 | self.hash() >> 2,
            };
        };
        // 18 combinations, 86,401 timeouts.
        let counted = n.get().checked_mul(18 * (MAX_AFFINITY + 1));
        let first = seconds.min(MAX_AFFINITY) * 18 + combination;
        match counted.and_then(|counted| counted.checked_add(first)) {
            Some(code) if code < 0x5000_0000 => 0x8000_0000 | code,
            _ => 0xd000_0000 | self.hash() >> 3,
        }
    }

    /// The upper bits of the name's FNV-1a hash.
    fn hash(&self) -> u32 {
        let hash = self
            .name()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        u32::try_from(hash >> 32).unwrap_or(0)
    }

    /// Its rules.
    pub(crate) fn render<F: Family>(&self, globals: &Globals<F>) -> Chain {
        let BackendMaps {
            by_number,
            codes,
            by_code,
        } = BackendMaps::of(self.set);
        let random = || [FRONTEND, &[Field::Random(self.n.get())]].concat();
        let mut rules = self.masquerade_rules(globals);
        rules.extend(self.owner_rules());
        if let Some(seconds) = self.affinity {
            rules.extend(affinity_rules(seconds, (codes, random()), by_code));
        }
        rules.push(rule([Expr::ClearPriority]));
        // Kernel: each lookup sees the newest generation. A commit after the lookup that led here may have
        // removed the last backend, so that its number finds nothing: then a second number is drawn.
        rules.extend([(); 2].map(|()| rule([Expr::Dnat(by_number, random())])));
        // Reached only if others damage our maps: never forward the packet to the VIP.
        rules.push(rule([DROP]));
        Chain {
            name: Cow::Owned(self.name()),
            comment: "",
            hook: None,
            rules,
        }
    }

    fn masquerade_rules<F: Family>(&self, globals: &Globals<F>) -> Vec<Rule> {
        let mark = mark_for_masquerade(globals);
        match (self.masquerade, &globals.detector) {
            (Masquerade::Never, _) => Vec::new(),
            (Masquerade::UnlessPod, Some(detector)) => {
                vec![rule([from_pod(detector, false), mark])]
            }
            (Masquerade::UnlessPod, None) | (Masquerade::Always, _) => vec![rule([mark])],
        }
    }

    /// Rewrites the packet's destination to the frontend that names the ServicePort.
    fn owner_rules(&self) -> Vec<Rule> {
        let set_address =
            |map, key: &[Field]| rule([Expr::Set(Target::Destination, map, key.into())]);
        match self.lookup {
            Lookup::Direct => Vec::new(),
            Lookup::Vip => vec![set_address(SetId::FrontendOwners, FRONTEND)],
            Lookup::NodePort => vec![
                set_address(SetId::NodePortOwners, NODE_PORT),
                set_port(L4Proto::Tcp, None, Checksum::Tcp),
                // Without a checksum first: the one after it changes the port that is looked up.
                set_port(L4Proto::Udp, Some(false), Checksum::None),
                set_port(L4Proto::Udp, Some(true), Checksum::Udp),
                set_port(L4Proto::Sctp, None, Checksum::Sctp),
            ],
        }
    }
}

/// Rewrites the destination port of packets with, without, or with any UDP checksum.
fn set_port(protocol: L4Proto, summed: Option<bool>, checksum: Checksum) -> Rule {
    let compare = |field, equal, to| Expr::Compare { field, equal, to };
    let is_protocol = compare(Field::Protocol, true, vec![protocol.number()]);
    let is_summed = summed.map(|summed| compare(Field::UdpChecksum, !summed, vec![0; 2]));
    let target = Target::DestinationPort(checksum);
    let set = Expr::Set(target, SetId::NodePortOwnerPorts, NODE_PORT.into());
    let only = [is_protocol].into_iter().chain(is_summed);
    rule(only.chain([set]).collect::<Vec<_>>())
}

/// Spec: AFF-1 to AFF-5. The code of a backend is in the packet's priority.
fn affinity_rules(seconds: u32, (codes, random): (SetId, Vec<Field>), by_code: SetId) -> [Rule; 3] {
    let remembered_as = |map, key| {
        rule([
            Expr::Set(Target::Priority, map, key),
            Expr::Update(SetId::Affinity, CLIENT.into(), seconds),
            Expr::Dnat(by_code, [FRONTEND, &[Field::Priority]].concat()),
        ])
    };
    [
        // The client's previous backend, if it is still in the set; restarts the timeout.
        remembered_as(SetId::Affinity, CLIENT.into()),
        // Kernel: `update` restarts the timeout of an existing key, but keeps its data: delete it first.
        rule([Expr::Delete(SetId::Affinity, CLIENT.into())]),
        // If the affinity map is full, the next rule selects a backend without affinity.
        remembered_as(codes, random),
    ]
}
