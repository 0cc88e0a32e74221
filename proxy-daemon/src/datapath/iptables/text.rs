//! What is the programs' input for a state, on a node that has nothing of ours?
//!
//! Input for `ipset restore`, then for `iptables-restore --noflush`. Both flavours take the same: they
//! differ only in how many lines are committed at once. Invariants: pure; equal states give equal text.

use std::collections::BTreeSet;

use super::chain::{Chain, Table};
use super::flavour::Flavour;
use super::layout::{self, Hook};
use super::names;
use super::render::{Rendered, render_globals, render_service_port, render_spared};
use super::script::{Lines, Script};
use super::sets::{self, SetId};
use super::tree::Tree;
use crate::forwarding::ForwardingState;
use crate::net::{Family, IpFamily};

/// The sets and rules of a state. Needs no privilege and no kernel.
pub fn rules<F: Family>(state: &ForwardingState<F>) -> String {
    let globals = &state.globals;
    let mut rendered = Rendered::default();
    for service_port in state.service_ports.values() {
        render_service_port(service_port, globals, &mut rendered);
    }
    render_globals(globals, &mut rendered.elements);
    render_spared::<F>(&state.spared, &mut rendered.elements);
    let sets = sets::<F>(&rendered, globals.netfilter.drop_invalid);

    let mut nat = Script::new(Table::Nat, Flavour::Legacy);
    rendered.chains.iter().for_each(|chain| nat.chain(chain));
    for (root, has_address, entries) in [
        (names::VIPS, true, rendered.vips),
        (names::NODE_PORTS, false, rendered.node_ports),
    ] {
        let mut tree = Tree::<F>::new(root, has_address);
        for (bits, rules) in entries {
            tree.insert(bits, rules);
        }
        tree.chains(&mut |chain| nat.chain(&chain));
    }
    let nat = finish(nat, Table::Nat, &layout::chains(Table::Nat, globals));
    let filter = Script::new(Table::Filter, Flavour::Legacy);
    let filter = finish(
        filter,
        Table::Filter,
        &layout::chains(Table::Filter, globals),
    );
    let program = match F::FAMILY {
        IpFamily::V4 => "iptables-restore",
        IpFamily::V6 => "ip6tables-restore",
    };
    format!("# ipset restore\n{sets}# {program} --noflush\n{nat}{filter}")
}

/// Makes the sets, and adds their elements.
fn sets<F: Family>(rendered: &Rendered<F>, drop_invalid: bool) -> String {
    let mut lines = Lines::default();
    for id in SetId::used(drop_invalid) {
        lines.push(format_args!("{}", id.declaration::<F>()));
    }
    for set in &rendered.affinity_sets {
        lines.push(format_args!("{}", set.declaration(&set.name)));
    }
    let cluster_ips: BTreeSet<F::Addr> = rendered.cluster_ips.iter().copied().collect();
    let cluster_ips = cluster_ips.iter().map(ToString::to_string);
    let backends = rendered.backends.iter().filter(|_| drop_invalid);
    let elements: BTreeSet<(SetId, String)> = rendered
        .elements
        .iter()
        .cloned()
        .chain(cluster_ips.map(|address| (SetId::ClusterIps, address)))
        .chain(backends.map(|backend| (SetId::Backends, sets::backend(backend))))
        .collect();
    for (id, element) in elements {
        lines.push(format_args!("add {} {element}", id.name::<F>()));
    }
    lines.text().to_owned()
}

/// Adds the chains that are always there, and the rules that lead to them.
fn finish(mut script: Script, table: Table, chains: &[Chain]) -> String {
    for chain in chains {
        script.chain(chain);
    }
    for hook in Hook::ALL.iter().filter(|hook| hook.table == table) {
        script.insert(hook.chain, &hook.rule());
    }
    script.finish().unwrap_or_default()
}
