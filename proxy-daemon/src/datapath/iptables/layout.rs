//! Which chains do we always have?
//!
//! [`super`] draws the way of a packet through them.
//!
//! Invariants:
//! - packets of established flows meet no rule in nat chains and one of ours in each filter chain;
//! - the rules of the filter chains are constant: whatever changes there is an element of a set. So a
//!   VIP is rejected before its translation is removed, and no longer after it was added (REJ-9);
//! - foreign packets are left to foreign rules: we return and do not accept them.

use super::chain::{Chain, Table, comment, source_is_destination};
use super::names;
use super::sets::SetId;
use crate::forwarding::Globals;
use crate::net::{Family, IpFamily};

/// A rule in a built-in chain that jumps to a chain of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    table: Table,
    /// The built-in chain.
    pub(crate) chain: &'static str,
    /// Ours.
    pub(crate) target: &'static str,
}

impl Hook {
    const ALL: [Self; 6] = [
        Self::new(Table::Nat, "PREROUTING", names::SERVICES),
        Self::new(Table::Nat, "OUTPUT", names::SERVICES),
        Self::new(Table::Nat, "POSTROUTING", names::POSTROUTING),
        Self::new(Table::Filter, "INPUT", names::INPUT),
        Self::new(Table::Filter, "FORWARD", names::FORWARD),
        Self::new(Table::Filter, "OUTPUT", names::OUTPUT),
    ];

    const fn new(table: Table, chain: &'static str, target: &'static str) -> Self {
        Self {
            table,
            chain,
            target,
        }
    }

    /// Those of a table.
    pub(crate) fn of(table: Table) -> impl Iterator<Item = &'static Self> {
        const ALL: &[Hook] = &Hook::ALL;
        ALL.iter().filter(move |hook| hook.table == table)
    }

    /// The rule, without `-A` and the chain's name.
    pub(crate) fn rule(&self) -> String {
        format!("{} -j {}", comment("Kubernetes Services"), self.target)
    }
}

/// The constant chains of a table, targets before those that go to them.
pub(crate) fn chains<F: Family>(table: Table, globals: &Globals<F>) -> Vec<Chain> {
    match table {
        Table::Nat => nat(globals),
        Table::Filter => filter(globals),
    }
}

/// Matches sources outside the source ranges of the VIP. Spec: FW-2.
fn is_kept_out<F: Family>() -> String {
    format!(
        "{} {}",
        SetId::SourceRestricted.matches::<F>(true),
        SetId::SourceRanges.matches::<F>(false)
    )
}

fn nat<F: Family>(globals: &Globals<F>) -> Vec<Chain> {
    let bit = globals.netfilter.masquerade_bit.mask();
    let masquerade = "-j MASQUERADE --random-fully";
    vec![
        Chain::new(
            names::MASQUERADE,
            vec![
                format!("-j MARK --set-xmark 0x0/{bit:#x}"),
                masquerade.to_owned(),
            ],
        ),
        Chain::new(
            names::POSTROUTING,
            vec![
                format!("-m mark --mark {bit:#x}/{bit:#x} -g {}", names::MASQUERADE),
                format!(
                    "-m conntrack --ctstate DNAT {} {} {masquerade}",
                    source_is_destination(F::FAMILY),
                    comment("hairpin"),
                ),
            ],
        ),
        Chain::new(
            names::SERVICES,
            vec![
                // FW-8: it must not be taken for a NodePort packet.
                format!("{} -j ACCEPT", is_kept_out::<F>()),
                format!("-j {}", names::VIPS),
                format!(
                    "{} -j {}",
                    SetId::NodePortAddresses.matches::<F>(true),
                    names::NODE_PORTS
                ),
            ],
        ),
    ]
}

/// What is returned to the host's own rules, in these states or translated.
fn served(states: &str) -> [String; 2] {
    [states, "DNAT"].map(|states| format!("-m conntrack --ctstate {states} -j RETURN"))
}

fn filter<F: Family>(globals: &Globals<F>) -> Vec<Chain> {
    // What the node itself sends or receives past conntrack was taken out of tracking by its owner: a
    // node-local cache of DNS does so with the ClusterIP that it has.
    let served_here = served("RELATED,ESTABLISHED,UNTRACKED");
    let set = |id: SetId, verdict: &str| format!("{} {verdict}", id.matches::<F>(true));
    let refuse = format!("-g {}", names::REFUSE);
    let jump = |chain: &str| format!("-j {chain}");
    let untranslated = [names::UNSERVED, names::UNKNOWN].map(jump);
    let mut forward = served("RELATED,ESTABLISHED").to_vec();
    if globals.netfilter.drop_invalid {
        forward.push(format!(
            "-p tcp -m conntrack --ctstate INVALID {} {} -j DROP",
            SetId::Backends.matches::<F>(true),
            comment("out of window: the client must not see the backend's address"),
        ));
    }
    forward.extend_from_slice(&untranslated);
    let chain = |name, rules: &[&[String]]| Chain::new(name, rules.concat());
    // Never to packets of a flow that may live.
    let invalid = "-m conntrack --ctstate INVALID -j DROP".to_owned();
    let spared = format!("{} -j DROP", SetId::Spared.matches::<F>(false));
    let unserved = [
        format!("{} -j DROP", is_kept_out::<F>()),
        set(SetId::NoEndpoints, &refuse),
        set(SetId::Dropped, "-j DROP"),
    ];
    let unserved_node_ports = [
        set(SetId::NoEndpointNodePorts, &refuse),
        set(SetId::DroppedNodePorts, "-j DROP"),
    ];
    let unknown = [
        set(SetId::ClusterIps, &refuse),
        set(SetId::ServiceCidrs, &spared),
    ];
    let unserved_node = set(SetId::NodePortAddresses, &jump(names::UNSERVED_NODE));
    let input = [jump(names::UNSERVED), unserved_node];
    vec![
        chain(names::REFUSE, &[&[invalid, reject::<F>()]]),
        chain(names::UNSERVED, &[&unserved]),
        chain(names::UNSERVED_NODE, &[&unserved_node_ports]),
        chain(names::UNKNOWN, &[&unknown]),
        chain(names::INPUT, &[&served_here, &input]),
        chain(names::FORWARD, &[&forward]),
        chain(names::OUTPUT, &[&served_here, &untranslated]),
    ]
}

fn reject<F: Family>() -> String {
    let with = match F::FAMILY {
        IpFamily::V4 => "icmp-port-unreachable",
        IpFamily::V6 => "icmp6-port-unreachable",
    };
    format!("-j REJECT --reject-with {with}")
}
