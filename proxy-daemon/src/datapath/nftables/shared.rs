//! What do several ServicePorts share in the kernel, and when does the last of them let go?
//!
//! Kinds, pick chains, backends and ClusterIPs are there as long as one ServicePort uses them.
//! Invariant: the counts are those of the forwarding state that the kernel was last given.

use super::codec::{Data, Key};
use super::elements::Elements;
use super::kind::{Kind, Pick};
use super::layout::SetId;
use super::render::{Rendered, address_key, hairpin_key};
use crate::datapath::counts::Counts;
use crate::forwarding::Backend;
use crate::net::{Family, L4Proto};

/// How often each shared thing is used; or by how much that changes.
#[derive(Debug)]
pub(crate) struct Shared<F: Family> {
    kinds: Counts<(SetId, Kind)>,
    picks: Counts<Pick>,
    backends: Counts<(L4Proto, Backend<F>)>,
    cluster_ips: Counts<F::Addr>,
}

impl<F: Family> Default for Shared<F> {
    fn default() -> Self {
        Self {
            kinds: Counts::default(),
            picks: Counts::default(),
            backends: Counts::default(),
            cluster_ips: Counts::default(),
        }
    }
}

/// What a change of use means for the kernel.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Chains to make before elements are added.
    pub(crate) chains_added: Vec<Pick>,
    /// Chains to remove after elements were removed.
    pub(crate) chains_removed: Vec<Pick>,
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
            kinds,
            backends,
            cluster_ips,
        } = rendered;
        let picks: Vec<Pick> = kinds
            .iter()
            .filter_map(|(_, kind)| match kind {
                Kind::Pick(pick) => Some(*pick),
                Kind::Drop | Kind::Reject | Kind::Firewall | Kind::BySource { .. } => None,
            })
            .collect();
        self.kinds.add(kinds, by);
        self.picks.add(&picks, by);
        self.backends.add(backends, by);
        self.cluster_ips.add(cluster_ips, by);
    }

    /// What begins and ceases to be used if `change` is added.
    pub(crate) fn turns(&self, change: &Self) -> Turns {
        let mut turns = Turns::default();
        (turns.chains_added, turns.chains_removed) = self.picks.turns(&change.picks);
        let (begin, cease) = self.kinds.turns(&change.kinds);
        for (kinds, to) in [(cease, &mut turns.removed), (begin, &mut turns.added)] {
            for (set, kind) in kinds {
                let key = kind.code().to_ne_bytes();
                to.push(set, Key::Exact(&key), Data::Verdict(&kind.verdict()), "");
            }
        }
        let (begin, cease) = self.backends.turns(&change.backends);
        for (backends, to) in [(cease, &mut turns.removed), (begin, &mut turns.added)] {
            for (protocol, backend) in backends {
                let key = hairpin_key(protocol, &backend);
                to.push(SetId::Backends, Key::Exact(&key), Data::None, "");
            }
        }
        let (begin, cease) = self.cluster_ips.turns(&change.cluster_ips);
        for (addresses, to) in [(cease, &mut turns.removed), (begin, &mut turns.added)] {
            for address in addresses {
                to.push(
                    SetId::ClusterIps,
                    Key::Exact(&address_key::<F>(address)),
                    Data::None,
                    "",
                );
            }
        }
        turns
    }

    /// Adds a change that the kernel has taken.
    pub(crate) fn merge(&mut self, change: Self) {
        let Self {
            kinds,
            picks,
            backends,
            cluster_ips,
        } = change;
        self.kinds.merge(kinds);
        self.picks.merge(picks);
        self.backends.merge(backends);
        self.cluster_ips.merge(cluster_ips);
    }

    /// The pick chains in use.
    pub(crate) fn picks(&self) -> impl Iterator<Item = &Pick> {
        self.picks.keys()
    }
}
