//! Which kinds of treatment are there for a frontend's packets, and what is the chain of each?
//!
//! A kind is what frontends have in common: a chain, not a Service. Invariant: two kinds have neither
//! the same chain nor the same code.

use std::borrow::Cow;
use std::num::NonZeroU32;

use super::layout::{
    SetId, chains, from_pod, load_frontend, load_node_port, load_source, mark_for_masquerade, rule,
    words,
};
use super::ruleset::{Chain, Checksum, Expr, Reg, Rule, Verdict};
pub(crate) use crate::datapath::common::Masquerade;
use crate::forwarding::{BackendSet, Globals};
use crate::net::{Family, L4Proto};

/// What happens to packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Silence.
    Drop,
    /// Nothing here: the filter hooks answer.
    Reject,
    /// Sources outside the source ranges are dropped first.
    Firewall,
    /// Each source class has its own kind.
    BySource {
        /// Whether the frontend is a NodePort.
        node_port: bool,
    },
    /// One backend of a set.
    Pick(Pick),
}

/// One backend of a set, each equally likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pick {
    /// How the ServicePort is found from the packet.
    pub(crate) via: Via,
    /// Which of its sets.
    pub(crate) set: BackendSet,
    /// How many backends that has.
    pub(crate) n: NonZeroU32,
    /// Whose source becomes this node's.
    pub(crate) masquerade: Masquerade,
    /// How long a client keeps its backend, in seconds.
    pub(crate) affinity: Option<u32>,
}

/// How the ServicePort is found from the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Via {
    /// The packet is addressed to the frontend that names it.
    Itself,
    /// By another VIP.
    Vip,
    /// By a NodePort.
    NodePort,
}

impl Kind {
    /// The code that frontends hold.
    ///
    /// `ffff:…` is no pick. Of a pick without affinity, the upper half says which, the lower how many
    /// backends. With affinity there is more to say than fits in two such numbers: the first bit is set
    /// and the rest counts through all of them; beyond 862 backends it is a hash.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Drop => 0xffff_0001,
            Self::Reject => 0xffff_0002,
            Self::Firewall => 0xffff_0003,
            Self::BySource { node_port: false } => 0xffff_0004,
            Self::BySource { node_port: true } => 0xffff_0005,
            Self::Pick(pick) => pick.code(),
        }
    }

    /// Where it goes.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Drop => Verdict::Drop,
            Self::Reject => Verdict::Accept,
            Self::Firewall => Verdict::Goto(chains::FIREWALL.into()),
            Self::BySource { node_port: false } => Verdict::Goto(chains::BY_SOURCE.into()),
            Self::BySource { node_port: true } => Verdict::Goto(chains::BY_SOURCE_NODE_PORT.into()),
            Self::Pick(pick) => Verdict::Goto(pick.chain_name().into()),
        }
    }
}

/// Affinity times are 1 to this many seconds.
const MAX_AFFINITY: u32 = 86_400;

impl Pick {
    /// The name of its chain: says everything.
    pub(crate) fn chain_name(&self) -> String {
        let Self {
            via,
            set,
            n,
            masquerade,
            affinity,
        } = self;
        let via = match via {
            Via::Itself => "",
            Via::Vip => "vip-",
            Via::NodePort => "node-port-",
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
        format!("{via}{set}-{n}{masquerade}{affinity}")
    }

    fn code(&self) -> u32 {
        let Self {
            via,
            set,
            n,
            masquerade,
            affinity,
        } = *self;
        let via: u32 = match via {
            Via::Itself => 0,
            Via::Vip => 1,
            Via::NodePort => 2,
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
        let which = (via * 2 + set) * 3 + masquerade;
        let Some(seconds) = affinity else {
            // 0 means "unset". Counts above 65,535 are hashed instead.
            return match u16::try_from(n.get()) {
                Ok(n) => (which + 1) << 16 | u32::from(n),
                Err(_) => 0x4000_0000 | self.hash() >> 2,
            };
        };
        // 18 kinds, 86,401 times.
        let counted = n.get().checked_mul(18 * (MAX_AFFINITY + 1));
        let first = seconds.min(MAX_AFFINITY) * 18 + which;
        match counted.and_then(|counted| counted.checked_add(first)) {
            Some(code) if code < 0x5000_0000 => 0x8000_0000 | code,
            _ => 0xd000_0000 | self.hash() >> 3,
        }
    }

    /// FNV-1a of the chain's name, the upper bits of it.
    fn hash(&self) -> u32 {
        let hash = self
            .chain_name()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        u32::try_from(hash >> 32).unwrap_or(0)
    }

    /// The set of its backends by number, of their codes by number, and of them by code.
    const fn sets(&self) -> (SetId, SetId, SetId) {
        match self.set {
            BackendSet::Cluster => (
                SetId::ClusterBackends,
                SetId::ClusterCodes,
                SetId::ClusterByCode,
            ),
            BackendSet::Local => (SetId::LocalBackends, SetId::LocalCodes, SetId::LocalByCode),
        }
    }

    /// The chain that frontends of this kind go to.
    pub(crate) fn chain<F: Family>(&self, globals: &Globals<F>) -> Chain {
        let clear = rule([vec![
            Expr::Zero { to: Reg(0) },
            Expr::SetPriority { from: Reg(0) },
        ]]);
        let mut rules = self.masquerade_rules(globals);
        rules.extend(self.owner_rules::<F>());
        rules.extend(
            self.affinity
                .into_iter()
                .flat_map(|seconds| self.affinity_rules::<F>(seconds)),
        );
        rules.push(clear);
        // Kernel: each lookup sees the newest generation. If the last backend goes between the lookup that
        // led here and this one, its number is drawn in vain, so there is a second draw.
        rules.extend([self.pick::<F>(), self.pick::<F>()]);
        // Not reached unless others damage our maps; then silence is better than a packet to the VIP.
        rules.push(rule([vec![Expr::Verdict(Verdict::Drop)]]));
        Chain {
            name: Cow::Owned(self.chain_name()),
            comment: "",
            hook: None,
            rules,
        }
    }

    fn masquerade_rules<F: Family>(&self, globals: &Globals<F>) -> Vec<Rule> {
        let mark = || mark_for_masquerade(globals);
        match (self.masquerade, &globals.detector) {
            (Masquerade::Never, _) => Vec::new(),
            (Masquerade::UnlessPod, Some(detector)) => {
                vec![rule([from_pod(detector, false), mark()])]
            }
            (Masquerade::UnlessPod, None) | (Masquerade::Always, _) => vec![rule([mark()])],
        }
    }

    /// Writes the frontend that names the ServicePort into the packet.
    fn owner_rules<F: Family>(&self) -> Vec<Rule> {
        let map = |set: SetId| Expr::Map {
            set: set.name(),
            key: Reg(0),
            to: Reg(0),
        };
        let set_address = vec![Expr::SetDestination { from: Reg(0) }];
        match self.via {
            Via::Itself => Vec::new(),
            Via::Vip => vec![rule([
                load_frontend::<F>(0),
                vec![map(SetId::FrontendOwners)],
                set_address,
            ])],
            Via::NodePort => {
                let set_port = |protocol: L4Proto, only: Vec<Expr>, checksum| {
                    let is_protocol = Expr::Equal {
                        reg: Reg(0),
                        to: vec![protocol.number()],
                    };
                    let set = Expr::SetDestinationPort {
                        from: Reg(0),
                        checksum,
                    };
                    rule([
                        vec![Expr::L4Proto { to: Reg(0) }, is_protocol],
                        only,
                        load_node_port(0),
                        vec![map(SetId::NodePortOwnerPorts), set],
                    ])
                };
                let (reg, to) = (Reg(0), vec![0; 2]);
                let checksum = Expr::UdpChecksum { to: reg };
                let unsummed = vec![
                    checksum.clone(),
                    Expr::Equal {
                        reg,
                        to: to.clone(),
                    },
                ];
                let summed = vec![checksum, Expr::NotEqual { reg, to }];
                vec![
                    rule([
                        load_node_port(0),
                        vec![map(SetId::NodePortOwners)],
                        set_address,
                    ]),
                    set_port(L4Proto::Tcp, Vec::new(), Checksum::Tcp),
                    // Without a checksum first: the one after it changes the port that is looked up.
                    set_port(L4Proto::Udp, unsummed, Checksum::None),
                    set_port(L4Proto::Udp, summed, Checksum::Udp),
                    set_port(L4Proto::Sctp, Vec::new(), Checksum::Sctp),
                ]
            }
        }
    }

    /// Sends the flow to a random backend.
    fn pick<F: Family>(&self) -> Rule {
        let (by_number, _, _) = self.sets();
        rule([self.load_random::<F>(by_number), dnat::<F>()])
    }

    /// Loads what `map` holds for a random number of the ServicePort's.
    fn load_random<F: Family>(&self, map: SetId) -> Vec<Expr> {
        let below = self.n.get();
        let random = Expr::Random {
            below,
            to: Reg(words::<F>() + 2),
        };
        let map = Expr::Map {
            set: map.name(),
            key: Reg(0),
            to: Reg(0),
        };
        [load_frontend::<F>(0), vec![random, map]].concat()
    }

    /// Spec: AFF-1 to AFF-5. The code of a backend is in the packet's priority.
    fn affinity_rules<F: Family>(&self, seconds: u32) -> Vec<Rule> {
        let (_, codes, by_code) = self.sets();
        let set = SetId::Affinity.name();
        let (key, client) = (Reg(0), words::<F>() + 2);
        // Behind the client, at a multiple of four as `nft` would put it.
        let data = Reg((client + words::<F>()).next_multiple_of(4));
        let load_client = || [load_frontend::<F>(0), vec![load_source::<F>(Reg(client))]].concat();
        let with_code = |expr| [load_client(), vec![Expr::Priority { to: data }, expr]].concat();
        let remember = || {
            with_code(Expr::Remember {
                set,
                key,
                data,
                seconds,
            })
        };
        let to_coded = || {
            let code = Expr::Priority { to: Reg(client) };
            let map = Expr::Map {
                set: by_code.name(),
                key,
                to: Reg(0),
            };
            [load_frontend::<F>(0), vec![code, map], dnat::<F>()].concat()
        };
        let recall = Expr::Map {
            set,
            key,
            to: Reg(0),
        };
        let keep = || vec![Expr::SetPriority { from: Reg(0) }];
        vec![
            // The backend of last time, if it is still in the set; its time begins anew.
            rule([load_client(), vec![recall], keep(), remember(), to_coded()]),
            // Kernel: `update` renews the time of a key that is there, but keeps its data.
            rule([with_code(Expr::Forget { set, key, data })]),
            // If the memory is full, the next rule picks a backend without it.
            rule([self.load_random::<F>(codes), keep(), remember(), to_coded()]),
        ]
    }
}

/// Sends the flow to the address and port at register 0.
fn dnat<F: Family>() -> Vec<Expr> {
    vec![Expr::Dnat {
        address: Reg(0),
        port: Reg(words::<F>()),
    }]
}
