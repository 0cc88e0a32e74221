//! Which kernel objects do several ServicePorts share, and when is the last use gone?
//!
//! Actions, backend chains, backends and ClusterIPs exist as long as one ServicePort uses them.
//! Invariant: the counts are those of the forwarding state that the kernel was last given.

use super::action::{Action, BackendChain};
use super::codec::{Data, Key};
use super::elements::Elements;
use super::layout::SetId;
use super::render::{Rendered, address_key, hairpin_key};
use crate::datapath::counts::Counts;
use crate::forwarding::Backend;
use crate::net::{Family, L4Proto};

/// Use counts of shared objects, or changes of them.
#[derive(Debug)]
pub(crate) struct Shared<F: Family> {
    actions: Counts<(SetId, Action)>,
    backend_chains: Counts<BackendChain>,
    backends: Counts<(L4Proto, Backend<F>)>,
    cluster_ips: Counts<F::Addr>,
}

impl<F: Family> Default for Shared<F> {
    fn default() -> Self {
        Self {
            actions: Counts::default(),
            backend_chains: Counts::default(),
            backends: Counts::default(),
            cluster_ips: Counts::default(),
        }
    }
}

/// The kernel objects that a change of use counts adds and removes.
#[derive(Debug, Default)]
pub(crate) struct SharedDelta {
    /// Chains to create before elements are added.
    pub(crate) chains_added: Vec<BackendChain>,
    /// Chains to remove after elements were removed.
    pub(crate) chains_removed: Vec<BackendChain>,
    /// Elements to remove.
    pub(crate) removed: Elements,
    /// Elements to add.
    pub(crate) added: Elements,
}

impl<F: Family> Shared<F> {
    /// Counts what was rendered `by` times more.
    pub(crate) fn count(&mut self, rendered: &Rendered<F>, by: i64) {
        let Rendered {
            elements: _,
            actions,
            backends,
            cluster_ips,
        } = rendered;
        let backend_chains: Vec<BackendChain> = actions
            .iter()
            .filter_map(|(_, action)| match action {
                Action::SelectBackend(chain) => Some(*chain),
                Action::Drop
                | Action::Reject
                | Action::CheckSourceRanges
                | Action::BySource { .. } => None,
            })
            .collect();
        self.actions.add(actions, by);
        self.backend_chains.add(&backend_chains, by);
        self.backends.add(backends, by);
        self.cluster_ips.add(cluster_ips, by);
    }

    /// What begins and ceases to be used if `change` is added.
    pub(crate) fn delta(&self, change: &Self) -> SharedDelta {
        let mut delta = SharedDelta::default();
        (delta.chains_added, delta.chains_removed) =
            self.backend_chains.delta(&change.backend_chains);
        let SharedDelta { removed, added, .. } = &mut delta;
        let (begin, cease) = self.actions.delta(&change.actions);
        for (actions, to) in [(cease, &mut *removed), (begin, &mut *added)] {
            for (set, action) in actions {
                let key = action.code().to_ne_bytes();
                to.push(set, Key::Exact(&key), Data::Verdict(&action.verdict()), "");
            }
        }
        let (begin, cease) = self.backends.delta(&change.backends);
        for (backends, to) in [(cease, &mut *removed), (begin, &mut *added)] {
            for (protocol, backend) in backends {
                to.add(SetId::Backends, &hairpin_key(protocol, &backend));
            }
        }
        let (begin, cease) = self.cluster_ips.delta(&change.cluster_ips);
        for (addresses, to) in [(cease, removed), (begin, added)] {
            for address in addresses {
                to.add(SetId::ClusterIps, &address_key::<F>(address));
            }
        }
        delta
    }

    /// Adds a change that the kernel has taken.
    pub(crate) fn merge(&mut self, change: Self) {
        let Self {
            actions,
            backend_chains,
            backends,
            cluster_ips,
        } = change;
        self.actions.merge(actions);
        self.backend_chains.merge(backend_chains);
        self.backends.merge(backends);
        self.cluster_ips.merge(cluster_ips);
    }

    /// The backend chains in use.
    pub(crate) fn backend_chains(&self) -> impl Iterator<Item = &BackendChain> {
        self.backend_chains.keys()
    }
}
