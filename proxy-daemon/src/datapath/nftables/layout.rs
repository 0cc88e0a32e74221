//! Which chains does our table always have?
//!
//! [`super`] draws the way of a packet through them.
//!
//! Invariants:
//! - the number of sets is constant: Services and endpoints are elements;
//! - only the few `*-kinds` maps hold verdicts. The kernel walks every element of every verdict map
//!   when one gets a new jump (19 ms with 44,000 of them), so frontends hold the *code* of an action, which
//!   goes through the packet's priority (`skb->priority`) to the verdict: `nft` cannot feed one map's
//!   result into another, and `meta priority` is the only carrier; 1.0.6 crashes when it lists rules that
//!   do without (assertion `consumed > 0`). Only first packets of flows to frontends are touched: the
//!   priority is cleared again, except of those with session affinity. `ip_forward()` sets its own;
//!   what is lost is the `SO_PRIORITY` of a local client's first packet;
//! - a VIP or NodePort that shares its ServicePort's backends gets the address and port that name the
//!   ServicePort written into its first packet just before dnat. conntrack knows the packet by what it
//!   was before, so replies come from where the client sent to;
//! - packets of flows that conntrack knows meet no rule in nat chains and one in filter chains;
//! - every frontend must get a verdict in the nat chains: a packet to a VIP must not be taken for a
//!   NodePort packet (FW-8).

use std::borrow::Cow;

use super::ruleset::{Chain, Expr, Hook, Reg, Rule, Verdict};
pub(crate) use super::sets::{BackendMaps, SetId};
use crate::forwarding::{Detector, Globals, SourceClass};
use crate::net::{Family, IpFamily};

/// Our table's name, in both families.
pub(crate) const TABLE: &str = "proxy-daemon";
/// Its comment in `nft list`.
pub(crate) const TABLE_COMMENT: &str =
    "Kubernetes Services; written by proxy-daemon, which repairs changes by others";
/// Names of chains that other chains jump to.
pub(crate) mod chains {
    /// Frontends with source ranges.
    pub(crate) const FIREWALL: &str = "firewall";
    /// VIP frontends that distinguish sources.
    pub(crate) const BY_SOURCE: &str = "by-source";
    /// NodePort frontends that distinguish sources.
    pub(crate) const BY_SOURCE_NODE_PORT: &str = "by-source-node-port";
    /// First packets of flows.
    pub(super) const SERVICES: &str = "services";
    /// Packets that were not translated.
    pub(super) const UNSERVED: &str = "unserved";
    /// Rejects with port-unreachable.
    pub(super) const REJECT: &str = "refuse";
    /// Gives marked flows this node's address.
    pub(super) const MASQUERADE: &str = "masquerade-marked";
}

/// Number of 32-bit registers that an address takes.
pub(crate) const fn words<F: Family>() -> u8 {
    match F::FAMILY {
        IpFamily::V4 => 1,
        IpFamily::V6 => 4,
    }
}

/// Loads the source address.
pub(crate) const fn load_source<F: Family>(to: Reg) -> Expr {
    match F::FAMILY {
        IpFamily::V4 => Expr::Network {
            offset: 12,
            len: 4,
            to,
        },
        IpFamily::V6 => Expr::Network {
            offset: 8,
            len: 16,
            to,
        },
    }
}

/// Loads the destination address.
pub(crate) const fn load_destination<F: Family>(to: Reg) -> Expr {
    match F::FAMILY {
        IpFamily::V4 => Expr::Network {
            offset: 16,
            len: 4,
            to,
        },
        IpFamily::V6 => Expr::Network {
            offset: 24,
            len: 16,
            to,
        },
    }
}

/// Loads protocol and destination port: the key of a NodePort frontend.
pub(crate) fn load_node_port(to: u8) -> Vec<Expr> {
    vec![
        Expr::L4Proto { to: Reg(to) },
        Expr::DestinationPort { to: Reg(to + 1) },
    ]
}

/// Loads destination address, protocol and destination port: the key of a VIP frontend.
pub(crate) fn load_frontend<F: Family>(to: u8) -> Vec<Expr> {
    let mut exprs = vec![load_destination::<F>(Reg(to))];
    exprs.extend(load_node_port(to + words::<F>()));
    exprs
}

/// A rule of concatenated expressions.
pub(crate) fn rule(parts: impl IntoIterator<Item = Vec<Expr>>) -> Rule {
    Rule {
        exprs: parts.into_iter().flatten().collect(),
        comment: None,
    }
}

/// Goes on only for packets of class POD, or only for all others.
pub(crate) fn from_pod<F: Family>(detector: &Detector<F>, yes: bool) -> Vec<Expr> {
    let reg = Reg(0);
    let test = |bytes: Vec<u8>| {
        if yes {
            Expr::Equal { reg, to: bytes }
        } else {
            Expr::NotEqual { reg, to: bytes }
        }
    };
    match detector {
        Detector::Network(network) => {
            let (first, prefix) = F::prefix(network);
            let mut bytes = Vec::with_capacity(F::ADDR_LEN);
            F::write_addr(first, &mut bytes);
            let mask = prefix_mask(prefix, F::ADDR_LEN);
            let mut exprs = vec![load_source::<F>(reg)];
            if usize::from(prefix) < F::ADDR_LEN * 8 {
                let xor = vec![0; mask.len()];
                exprs.push(Expr::Bitwise { reg, mask, xor });
            }
            exprs.push(test(bytes));
            exprs
        }
        Detector::Interface(name) => {
            let mut bytes = name.as_str().as_bytes().to_vec();
            bytes.resize(16, 0);
            vec![Expr::InterfaceName { to: reg }, test(bytes)]
        }
        Detector::InterfacePrefix(name) => {
            vec![
                Expr::InterfaceName { to: reg },
                test(name.as_str().as_bytes().to_vec()),
            ]
        }
    }
}

/// The mask of a prefix, in bytes.
fn prefix_mask(prefix: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|byte| {
            let bits = usize::from(prefix).saturating_sub(byte * 8).min(8);
            u8::try_from(0xff00_u16 >> bits & 0xff).unwrap_or(0)
        })
        .collect()
}

/// `meta mark set (meta mark & mask) ^ xor`.
fn change_mark(mask: u32, xor: u32) -> Vec<Expr> {
    let reg = Reg(0);
    vec![
        Expr::Mark { to: reg },
        Expr::Bitwise {
            reg,
            mask: mask.to_ne_bytes().to_vec(),
            xor: xor.to_ne_bytes().to_vec(),
        },
        Expr::SetMark { from: reg },
    ]
}

/// Marks for masquerading; other bits of the mark are kept. Spec: SRC-10.
pub(crate) fn mark_for_masquerade<F: Family>(globals: &Globals<F>) -> Vec<Expr> {
    let bit = globals.netfilter.masquerade_bit.mask();
    change_mark(!bit, bit)
}

/// Goes on only if any of the bits is set in what `load` loads.
fn any_bit(load: Expr, bits: u32) -> Vec<Expr> {
    let reg = Reg(0);
    let zero = vec![0; 4];
    vec![
        load,
        Expr::Bitwise {
            reg,
            mask: bits.to_ne_bytes().to_vec(),
            xor: zero.clone(),
        },
        Expr::NotEqual { reg, to: zero },
    ]
}

/// Goes on only in one of these conntrack states.
fn ct_state(bits: u32) -> Vec<Expr> {
    any_bit(Expr::CtState { to: Reg(0) }, bits)
}

const INVALID: u32 = 1;
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
/// What the node itself sends or receives past conntrack was taken out of tracking by its owner: a
/// node-local cache of DNS does so with the ClusterIP that it has.
const ESTABLISHED_OR_UNTRACKED: u32 = ESTABLISHED_OR_RELATED | 64;

/// Goes on only for flows whose destination was translated.
fn translated() -> Vec<Expr> {
    any_bit(Expr::CtStatus { to: Reg(0) }, 0x20)
}

fn verdict(verdict: Verdict) -> Vec<Expr> {
    vec![Expr::Verdict(verdict)]
}

fn goto(chain: &'static str) -> Vec<Expr> {
    verdict(Verdict::Goto(chain.into()))
}

fn jump(chain: &'static str) -> Vec<Expr> {
    verdict(Verdict::Jump(chain.into()))
}

/// Looks up the action of the key at register 0 in `map`, and applies it.
fn apply_action(map: SetId, actions: SetId) -> Vec<Expr> {
    let (key, to) = (Reg(0), Reg(0));
    vec![
        Expr::Map {
            set: map.name(),
            key,
            to,
        },
        Expr::SetPriority { from: to },
        Expr::Priority { to },
        Expr::VerdictMap {
            set: actions.name(),
            key,
        },
    ]
}

fn is_in(set: SetId) -> Vec<Expr> {
    vec![Expr::In {
        set: set.name(),
        key: Reg(0),
    }]
}

fn not_in(set: SetId) -> Vec<Expr> {
    vec![Expr::NotIn {
        set: set.name(),
        key: Reg(0),
    }]
}

fn commented(comment: &'static str, rule: Rule) -> Rule {
    Rule {
        comment: Some(comment),
        ..rule
    }
}

/// The chains that our table always has; base chains last.
pub(crate) fn chains<F: Family>(globals: &Globals<F>) -> Vec<Chain> {
    let plain = |name: &'static str, comment, rules| Chain {
        name: Cow::Borrowed(name),
        comment,
        hook: None,
        rules,
    };
    let mut all = vec![
        plain(
            chains::REJECT,
            "no such port: say so, but never to packets of a flow that may live",
            reject(),
        ),
        plain(
            chains::MASQUERADE,
            "marked flows get this node's address",
            masquerade(globals),
        ),
        plain(
            chains::FIREWALL,
            "frontends with source ranges",
            firewall::<F>(),
        ),
        plain(
            chains::BY_SOURCE,
            "frontends that distinguish sources",
            by_source(globals, false),
        ),
        plain(
            chains::BY_SOURCE_NODE_PORT,
            "node ports that distinguish sources",
            by_source(globals, true),
        ),
        plain(chains::SERVICES, "first packets of flows", services::<F>()),
        plain(
            chains::UNSERVED,
            "packets to frontends that were not translated",
            unserved::<F>(),
        ),
    ];
    all.extend(base_chains(globals));
    all
}

fn reject() -> Vec<Rule> {
    vec![
        rule([ct_state(INVALID), verdict(Verdict::Drop)]),
        rule([vec![Expr::Reject]]),
    ]
}

fn masquerade<F: Family>(globals: &Globals<F>) -> Vec<Rule> {
    vec![rule([
        change_mark(!globals.netfilter.masquerade_bit.mask(), 0),
        vec![Expr::Masquerade],
    ])]
}

fn firewall<F: Family>() -> Vec<Rule> {
    let source = vec![load_source::<F>(Reg(words::<F>() + 2))];
    let dispatch = apply_action(SetId::SourceRestricted, SetId::SourceRestrictedActions);
    vec![
        rule([
            load_frontend::<F>(0),
            source,
            is_in(SetId::SourceRanges),
            dispatch,
        ]),
        rule([verdict(Verdict::Drop)]),
    ]
}

fn by_source<F: Family>(globals: &Globals<F>, node_port: bool) -> Vec<Rule> {
    let dispatch = |class| {
        let key = if node_port {
            load_node_port(0)
        } else {
            load_frontend::<F>(0)
        };
        [
            key,
            apply_action(SetId::by_source(class, node_port), SetId::SourceActions),
        ]
        .concat()
    };
    // Kernel: RTN_LOCAL.
    let is_local = Expr::Equal {
        reg: Reg(0),
        to: 2_u32.to_ne_bytes().to_vec(),
    };
    let from_host = vec![Expr::SourceAddressType { to: Reg(0) }, is_local];
    let mut rules = Vec::new();
    if let Some(detector) = &globals.detector {
        rules.push(rule([from_pod(detector, true), dispatch(SourceClass::Pod)]));
    }
    rules.push(rule([from_host, dispatch(SourceClass::Host)]));
    rules.push(rule([dispatch(SourceClass::Extn)]));
    rules
}

fn to_node_port_address<F: Family>() -> Vec<Expr> {
    let mut exprs = vec![load_destination::<F>(Reg(0))];
    exprs.extend(is_in(SetId::NodePortAddresses));
    exprs
}

fn services<F: Family>() -> Vec<Rule> {
    vec![
        rule([
            load_frontend::<F>(0),
            apply_action(SetId::Frontends, SetId::FrontendActions),
        ]),
        rule([
            to_node_port_address::<F>(),
            load_node_port(0),
            apply_action(SetId::NodePorts, SetId::FrontendActions),
        ]),
    ]
}

fn reject_no_endpoints<F: Family>() -> Rule {
    rule([
        load_frontend::<F>(0),
        is_in(SetId::NoEndpoints),
        goto(chains::REJECT),
    ])
}

fn unserved<F: Family>() -> Vec<Rule> {
    let destination = || vec![load_destination::<F>(Reg(0))];
    let drop = || verdict(Verdict::Drop);
    vec![
        reject_no_endpoints::<F>(),
        // INVALID, or of a flow that is older than the frontend: drop rather than leak it (XM-10).
        rule([
            load_frontend::<F>(0),
            is_in(SetId::ExternalFrontends),
            drop(),
        ]),
        rule([
            destination(),
            is_in(SetId::ClusterIps),
            goto(chains::REJECT),
        ]),
        rule([
            destination(),
            is_in(SetId::ServiceCidrs),
            not_in(SetId::Spared),
            drop(),
        ]),
    ]
}

fn base_chains<F: Family>(globals: &Globals<F>) -> Vec<Chain> {
    const PREROUTING: u32 = 0;
    const INPUT: u32 = 1;
    const FORWARD: u32 = 2;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    let base = |name: &'static str, chain_type, number, priority, rules| Chain {
        name: Cow::Borrowed(name),
        comment: "",
        hook: Some(Hook {
            chain_type,
            number,
            priority,
        }),
        rules,
    };
    // Before the host's firewall at 0: its default policy would drop what we reject.
    let filter = |name, number, rules| base(name, "filter", number, -10, rules);
    let to_services = || vec![rule([jump(chains::SERVICES)])];
    let served = |states| {
        vec![
            rule([ct_state(states), verdict(Verdict::Accept)]),
            rule([translated(), verdict(Verdict::Accept)]),
        ]
    };
    let mut forward = served(ESTABLISHED_OR_RELATED);
    if globals.netfilter.drop_invalid {
        forward.push(invalid_of_backends::<F>());
    }
    forward.push(rule([goto(chains::UNSERVED)]));
    let mut output = served(ESTABLISHED_OR_UNTRACKED);
    output.push(rule([goto(chains::UNSERVED)]));
    vec![
        filter(
            "filter-input",
            INPUT,
            [served(ESTABLISHED_OR_UNTRACKED), unserved_input::<F>()].concat(),
        ),
        filter("filter-forward", FORWARD, forward),
        filter("filter-output", OUTPUT, output),
        base(
            "nat-postrouting",
            "nat",
            POSTROUTING,
            100,
            postrouting(globals),
        ),
        base("nat-prerouting", "nat", PREROUTING, -100, to_services()),
        base("nat-output", "nat", OUTPUT, -100, to_services()),
    ]
}

fn unserved_input<F: Family>() -> Vec<Rule> {
    vec![
        reject_no_endpoints::<F>(),
        rule([
            to_node_port_address::<F>(),
            load_node_port(0),
            is_in(SetId::NoEndpointNodePorts),
            goto(chains::REJECT),
        ]),
    ]
}

/// Spec: CT-7. Both ends of the key are the source: it is a backend, and sends from the backend's port.
fn invalid_of_backends<F: Family>() -> Rule {
    const TCP: u8 = 6;
    let is_tcp = Expr::Equal {
        reg: Reg(0),
        to: vec![TCP],
    };
    let exprs = rule([
        ct_state(INVALID),
        vec![Expr::L4Proto { to: Reg(0) }, is_tcp],
        vec![
            load_source::<F>(Reg(0)),
            Expr::L4Proto {
                to: Reg(words::<F>()),
            },
            Expr::SourcePort {
                to: Reg(words::<F>() + 1),
            },
            load_source::<F>(Reg(words::<F>() + 2)),
        ],
        is_in(SetId::Backends),
        verdict(Verdict::Drop),
    ]);
    commented(
        "out of window: the client must not see the endpoint's address",
        exprs,
    )
}

fn postrouting<F: Family>(globals: &Globals<F>) -> Vec<Rule> {
    let marked = any_bit(
        Expr::Mark { to: Reg(0) },
        globals.netfilter.masquerade_bit.mask(),
    );
    let ends = [
        vec![load_source::<F>(Reg(0))],
        load_node_port(words::<F>()),
        vec![load_destination::<F>(Reg(words::<F>() + 2))],
    ]
    .concat();
    vec![
        rule([marked, goto(chains::MASQUERADE)]),
        commented(
            "hairpin",
            rule([
                translated(),
                ends,
                is_in(SetId::Backends),
                vec![Expr::Masquerade],
            ]),
        ),
    ]
}
