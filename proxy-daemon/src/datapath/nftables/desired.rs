//! What is our whole table for a forwarding state?
//!
//! Invariants: pure; a ServicePort that is left out has no object at all.

use std::collections::BTreeSet;

use super::action::BackendChain;
use super::codec::Transaction;
use super::elements::Elements;
use super::layout::{self, TABLE, TABLE_COMMENT};
use super::render::{Rendered, render_globals, render_service_port, render_spared};
use super::ruleset::{Chain, Set};
use super::shared::Shared;
use crate::forwarding::{ForwardingState, Globals, ServicePort, ServicePortId};
use crate::net::Family;

/// A whole state, rendered.
pub(super) struct Desired<F: Family> {
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<Chain>,
    pub(super) elements: Elements,
    pub(super) shared: Shared<F>,
}

/// All chains, base chains last.
pub(super) fn all_chains<'a, F: Family>(
    globals: &Globals<F>,
    backend_chains: impl Iterator<Item = &'a BackendChain>,
) -> Vec<Chain> {
    backend_chains
        .map(|chain| chain.render(globals))
        .chain(layout::chains(globals))
        .collect()
}

impl<F: Family> Desired<F> {
    /// All of a state but these ServicePorts.
    pub(super) fn render(state: &ForwardingState<F>, left_out: &BTreeSet<ServicePortId>) -> Self {
        let ForwardingState {
            globals,
            spared,
            service_ports,
        } = state;
        let mut rendered = Rendered::default();
        for service_port in service_ports.values() {
            if left_out.is_empty() || !left_out.contains(&service_port.id) {
                render_service_port(service_port, &mut rendered);
            }
        }
        render_globals(globals, &mut rendered.elements);
        render_spared::<F>(spared, &mut rendered.elements);
        let mut shared = Shared::default();
        shared.count(&rendered, 1);
        let delta = Shared::default().delta(&shared);
        let mut elements = rendered.elements;
        elements.append(delta.added);
        let declared = elements.sets().map(|(id, elements)| {
            let set = id.declaration();
            let size = id.size_for(elements.len()).or(set.size);
            Set { size, ..set }
        });
        Self {
            sets: declared.collect(),
            chains: all_chains(globals, shared.backend_chains()),
            elements,
            shared,
        }
    }

    /// Everything but base chains and elements.
    pub(super) fn create_unhooked(&self, transaction: &mut Transaction) {
        transaction.create_table(TABLE_COMMENT);
        for set in &self.sets {
            transaction.create_set(set);
        }
        // Rules and map elements may refer to any chain: all chains come first.
        let unhooked = || self.chains.iter().filter(|chain| chain.hook.is_none());
        for chain in unhooked() {
            transaction.create_chain(chain);
        }
        for chain in unhooked() {
            transaction.create_rules(chain);
        }
    }

    pub(super) fn create_hooked(&self, transaction: &mut Transaction) {
        for chain in self.chains.iter().filter(|chain| chain.hook.is_some()) {
            transaction.create_chain(chain);
            transaction.create_rules(chain);
        }
    }

    pub(super) fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// The number of objects in a new table.
    pub(super) fn n_objects(&self) -> usize {
        let n_rules: usize = self.chains.iter().map(|chain| chain.rules.len()).sum();
        1 + self.sets.len() + self.chains.len() + n_rules + self.elements.n_elements()
    }
}

pub(super) fn transaction<F: Family>(generation: Option<u32>) -> Transaction {
    Transaction::new(F::FAMILY, TABLE, generation)
}

/// Whether the ServicePort has this element, alone or shared.
pub(super) fn has_element<F: Family>(
    service_port: &ServicePort<F>,
    set: &str,
    bytes: &[u8],
) -> bool {
    let mut rendered = Rendered::default();
    render_service_port(service_port, &mut rendered);
    let mut shared = Shared::default();
    shared.count(&rendered, 1);
    let delta = Shared::default().delta(&shared);
    let holds = |elements: &Elements| {
        let mut sets = elements.sets().filter(|(id, _)| id.name() == set);
        sets.any(|(_, elements)| elements.iter().any(|element| element.bytes() == bytes))
    };
    holds(&rendered.elements) || holds(&delta.added)
}
