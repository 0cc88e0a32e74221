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

use nftnl::Hook as At;

use super::ruleset::{
    CLIENT, Chain, Expr, FRONTEND, Field, Hook, NODE_PORT, Rule, Target, Verdict,
};
pub(crate) use super::sets::{BackendMaps, SetId};
use crate::forwarding::{Detector, Globals, SourceClass};
use crate::net::{Family, L4Proto};

/// Our table's name, in both families.
pub(crate) const TABLE: &str = "proxy-daemon";
/// Its comment in `nft list`.
pub(crate) const TABLE_COMMENT: &str =
    "Kubernetes Services; written by proxy-daemon, which repairs changes by others";
/// Chains that other chains jump to: their names, and their comments in `nft list`.
pub(crate) mod chains {
    pub(crate) type Named = (&'static str, &'static str);
    pub(crate) const FIREWALL: Named = ("firewall", "frontends with source ranges");
    pub(crate) const BY_SOURCE: Named = ("by-source", "frontends that distinguish sources");
    pub(crate) const BY_SOURCE_NODE_PORT: Named =
        ("by-source-node-port", "node ports that distinguish sources");
    pub(super) const SERVICES: Named = ("services", "first packets of flows");
    pub(super) const UNSERVED: Named =
        ("unserved", "packets to frontends that were not translated");
    pub(super) const REJECT: Named = (
        "refuse",
        "no such port: say so, but never to packets of a flow that may live",
    );
    pub(super) const MASQUERADE: Named =
        ("masquerade-marked", "marked flows get this node's address");
}

/// A rule of these steps.
pub(crate) fn rule(exprs: impl Into<Vec<Expr>>) -> Rule {
    Rule {
        exprs: exprs.into(),
        comment: None,
    }
}

/// Goes on only for packets of class POD, or only for all others.
pub(crate) fn from_pod<F: Family>(detector: &Detector<F>, yes: bool) -> Expr {
    let interface = |to| Expr::Compare {
        field: Field::Interface,
        equal: yes,
        to,
    };
    match detector {
        Detector::Network(network) => {
            let (address, prefix) = F::prefix(network);
            let mut first = Vec::with_capacity(F::ADDR_LEN);
            F::write_addr(address, &mut first);
            Expr::Network {
                field: Field::Source,
                inside: yes,
                first,
                prefix,
            }
        }
        Detector::Interface(name) => {
            let mut bytes = name.as_str().as_bytes().to_vec();
            bytes.resize(16, 0);
            interface(bytes)
        }
        Detector::InterfacePrefix(name) => interface(name.as_str().as_bytes().to_vec()),
    }
}

/// Marks for masquerading; other bits of the mark are kept. Spec: SRC-10.
pub(crate) fn mark_for_masquerade<F: Family>(globals: &Globals<F>) -> Expr {
    let set = globals.netfilter.masquerade_bit.mask();
    Expr::SetMark { keep: !set, set }
}

const INVALID: u32 = 1;
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
/// What the node itself sends or receives past conntrack was taken out of tracking by its owner: a
/// node-local cache of DNS does so with the ClusterIP that it has.
const ESTABLISHED_OR_UNTRACKED: u32 = ESTABLISHED_OR_RELATED | 64;

/// Goes on only for flows whose destination was translated.
const TRANSLATED: Expr = Expr::AnyBit(Field::CtStatus, 0x20);
const ACCEPT: Expr = Expr::Verdict(Verdict::Accept);
pub(crate) const DROP: Expr = Expr::Verdict(Verdict::Drop);

const fn goto(chain: chains::Named) -> Expr {
    Expr::Verdict(Verdict::Goto(Cow::Borrowed(chain.0)))
}

/// Looks up the action of a frontend in `map`, and applies it.
fn apply_action(map: SetId, key: &[Field], actions: SetId) -> [Expr; 2] {
    [
        Expr::Set(Target::Priority, map, key.into()),
        Expr::VerdictMap(actions, vec![Field::Priority]),
    ]
}

fn commented(comment: &'static str, rule: Rule) -> Rule {
    Rule {
        comment: Some(comment),
        ..rule
    }
}

/// The chains that our table always has; base chains last.
pub(crate) fn chains<F: Family>(globals: &Globals<F>) -> Vec<Chain> {
    let plain = |(name, comment): chains::Named, rules| Chain {
        name: Cow::Borrowed(name),
        comment,
        hook: None,
        rules,
    };
    let mut all = vec![
        plain(chains::REJECT, reject()),
        plain(chains::MASQUERADE, masquerade(globals)),
        plain(chains::FIREWALL, firewall()),
        plain(chains::BY_SOURCE, by_source(globals, false)),
        plain(chains::BY_SOURCE_NODE_PORT, by_source(globals, true)),
        plain(chains::SERVICES, services()),
        plain(chains::UNSERVED, unserved()),
    ];
    all.extend(base_chains(globals));
    all
}

fn reject() -> Vec<Rule> {
    vec![
        rule([Expr::AnyBit(Field::CtState, INVALID), DROP]),
        rule([Expr::Reject]),
    ]
}

fn masquerade<F: Family>(globals: &Globals<F>) -> Vec<Rule> {
    let unmark = Expr::SetMark {
        keep: !globals.netfilter.masquerade_bit.mask(),
        set: 0,
    };
    vec![rule([unmark, Expr::Masquerade])]
}

fn firewall() -> Vec<Rule> {
    let (map, actions) = (SetId::SourceRestricted, SetId::SourceRestrictedActions);
    let mut exprs = vec![Expr::In(SetId::SourceRanges, CLIENT.into())];
    exprs.extend(apply_action(map, FRONTEND, actions));
    vec![rule(exprs), rule([DROP])]
}

fn by_source<F: Family>(globals: &Globals<F>, node_port: bool) -> Vec<Rule> {
    let key = if node_port { NODE_PORT } else { FRONTEND };
    let dispatch = |only: Option<Expr>, class| {
        let map = SetId::by_source(class, node_port);
        let actions = apply_action(map, key, SetId::SourceActions);
        rule(only.into_iter().chain(actions).collect::<Vec<_>>())
    };
    // Kernel: RTN_LOCAL.
    let from_host = Expr::Compare {
        field: Field::SourceType,
        equal: true,
        to: 2_u32.to_ne_bytes().to_vec(),
    };
    let detector = globals.detector.as_ref();
    let pods = detector.map(|detector| from_pod(detector, true));
    pods.map(|from_pod| dispatch(Some(from_pod), SourceClass::Pod))
        .into_iter()
        .chain([
            dispatch(Some(from_host), SourceClass::Host),
            dispatch(None, SourceClass::Extn),
        ])
        .collect()
}

fn to_node_port_address() -> Expr {
    Expr::In(SetId::NodePortAddresses, vec![Field::Destination])
}

fn services() -> Vec<Rule> {
    let [look_up, follow] = apply_action(SetId::NodePorts, NODE_PORT, SetId::FrontendActions);
    vec![
        rule(apply_action(
            SetId::Frontends,
            FRONTEND,
            SetId::FrontendActions,
        )),
        rule([to_node_port_address(), look_up, follow]),
    ]
}

fn reject_no_endpoints() -> Rule {
    rule([
        Expr::In(SetId::NoEndpoints, FRONTEND.into()),
        goto(chains::REJECT),
    ])
}

fn unserved() -> Vec<Rule> {
    let destination = || vec![Field::Destination];
    vec![
        reject_no_endpoints(),
        // INVALID, or of a flow that is older than the frontend: drop rather than leak it (XM-10).
        rule([Expr::In(SetId::ExternalFrontends, FRONTEND.into()), DROP]),
        rule([
            Expr::In(SetId::ClusterIps, destination()),
            goto(chains::REJECT),
        ]),
        rule([
            Expr::In(SetId::ServiceCidrs, destination()),
            Expr::NotIn(SetId::Spared, destination()),
            DROP,
        ]),
    ]
}

fn base_chains<F: Family>(globals: &Globals<F>) -> Vec<Chain> {
    let base = |name: &'static str, chain_type, at, priority, rules| Chain {
        name: Cow::Borrowed(name),
        comment: "",
        hook: Some(Hook {
            chain_type,
            at,
            priority,
        }),
        rules,
    };
    // Before the host's firewall at 0: its default policy would drop what we reject.
    let filter = |name, at, rules| base(name, "filter", at, -10, rules);
    let jump = Verdict::Jump(Cow::Borrowed(chains::SERVICES.0));
    let to_services = || vec![rule([Expr::Verdict(jump.clone())])];
    let served = |states| {
        vec![
            rule([Expr::AnyBit(Field::CtState, states), ACCEPT]),
            rule([TRANSLATED, ACCEPT]),
        ]
    };
    let mut forward = served(ESTABLISHED_OR_RELATED);
    if globals.netfilter.drop_invalid {
        forward.push(invalid_of_backends());
    }
    forward.push(rule([goto(chains::UNSERVED)]));
    let mut output = served(ESTABLISHED_OR_UNTRACKED);
    output.push(rule([goto(chains::UNSERVED)]));
    vec![
        filter(
            "filter-input",
            At::In,
            [served(ESTABLISHED_OR_UNTRACKED), unserved_input()].concat(),
        ),
        filter("filter-forward", At::Forward, forward),
        filter("filter-output", At::Out, output),
        base(
            "nat-postrouting",
            "nat",
            At::PostRouting,
            100,
            postrouting(globals),
        ),
        base("nat-prerouting", "nat", At::PreRouting, -100, to_services()),
        base("nat-output", "nat", At::Out, -100, to_services()),
    ]
}

fn unserved_input() -> Vec<Rule> {
    vec![
        reject_no_endpoints(),
        rule([
            to_node_port_address(),
            Expr::In(SetId::NoEndpointNodePorts, NODE_PORT.into()),
            goto(chains::REJECT),
        ]),
    ]
}

/// Spec: CT-7. Both ends of the key are the source: it is a backend, and sends from the backend's port.
fn invalid_of_backends() -> Rule {
    let is_tcp = Expr::Compare {
        field: Field::Protocol,
        equal: true,
        to: vec![L4Proto::Tcp.number()],
    };
    let ends = vec![
        Field::Source,
        Field::Protocol,
        Field::SourcePort,
        Field::Source,
    ];
    commented(
        "out of window: the client must not see the endpoint's address",
        rule([
            Expr::AnyBit(Field::CtState, INVALID),
            is_tcp,
            Expr::In(SetId::Backends, ends),
            DROP,
        ]),
    )
}

fn postrouting<F: Family>(globals: &Globals<F>) -> Vec<Rule> {
    let marked = Expr::AnyBit(Field::Mark, globals.netfilter.masquerade_bit.mask());
    let ends = vec![
        Field::Source,
        Field::Protocol,
        Field::DestinationPort,
        Field::Destination,
    ];
    let is_hairpin = Expr::In(SetId::Backends, ends);
    vec![
        rule([marked, goto(chains::MASQUERADE)]),
        commented("hairpin", rule([TRANSLATED, is_hairpin, Expr::Masquerade])),
    ]
}
