//! What is the programs' input for a state, on a node that has nothing of ours?
//!
//! Input for `ipset restore`, then for `iptables-restore --noflush`. Both flavours take the same: they
//! differ only in how many lines are committed at once. Invariants: pure; equal states give equal text.

use super::chain::Table;
use super::flavour::Flavour;
use super::layout::Hook;
use super::render::render_state;
use super::script::Script;
use super::sets::SetId;
use crate::forwarding::ForwardingState;
use crate::net::{Family, IpFamily};

/// The sets and rules of a state. Needs no privilege and no kernel.
pub fn rules<F: Family>(state: &ForwardingState<F>) -> String {
    let [mut nat, mut filter] = Table::ALL.map(|table| Script::new(table, Flavour::Legacy));
    let (all, _) = render_state(state, &mut |table, chain| match table {
        Table::Nat => nat.chain(chain),
        Table::Filter => filter.chain(chain),
    });
    for (script, table) in [(&mut nat, Table::Nat), (&mut filter, Table::Filter)] {
        for hook in Hook::of(table) {
            script.insert(hook.chain, &hook.rule());
        }
    }
    let fixed = SetId::used(state.globals.netfilter.drop_invalid).map(SetId::declaration::<F>);
    let affinity_sets = all
        .affinity_sets
        .iter()
        .map(|set| set.declaration(&set.name));
    let elements = all.elements.iter();
    let elements = elements.map(|(id, element)| format!("add {} {element}", id.name::<F>()));
    let sets = fixed.chain(affinity_sets).chain(elements);
    let sets: String = sets.map(|line| line + "\n").collect();
    let program = match F::FAMILY {
        IpFamily::V4 => "iptables-restore",
        IpFamily::V6 => "ip6tables-restore",
    };
    let (nat, filter) = (nat.finish(), filter.finish());
    format!("# ipset restore\n{sets}# {program} --noflush\n{nat}{filter}")
}
