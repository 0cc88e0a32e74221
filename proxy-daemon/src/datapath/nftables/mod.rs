//! How do `nf_tables` carry a forwarding state?
//!
//! One table per family, `ip proxy-daemon` and `ip6 proxy-daemon`, written over netlink. How do we
//! recognise our objects after a restart or an upgrade? Everything in the table of that name is ours;
//! unwanted objects in it are removed, and nothing outside is touched. `layout` has the chains that are
//! always there, `action` those that depend on the Services, `render` turns a ServicePort into elements,
//! `apply` writes.
//!
//! # The way of a packet
//!
//! In the nat chains, which only the first packet of a flow meets:
//!
//! ```text
//! prerouting, output (nat, -100) ─▶ nat-prerouting, nat-output ─▶ services
//!    daddr . protocol . dport in @frontends ─▶ code ─▶ @frontend-kinds ─▶ next
//!    daddr in @node-port-addresses, and protocol . dport in @node-ports
//!                                           ─▶ code ─▶ @frontend-kinds ─▶ next
//!    neither: not for a Service
//!
//! next is one of
//!  ├▶ firewall: daddr . protocol . dport . saddr in @source-ranges, else drop;
//!  │    @firewalled ─▶ code ─▶ @firewalled-kinds ─▶ next
//!  ├▶ by-source, by-source-node-port: from a pod, from this node, or else:
//!  │    @pod-…, @host-…, @extn-frontends or -node-ports ─▶ code ─▶ @source-kinds ─▶ next
//!  ├▶ a backend chain, such as vip-cluster-3-masquerade-affinity-10800s:
//!  │    …-masquerade…: mark the packet
//!  │    vip-…: write the address that names the ServicePort into the packet, from @frontend-owners
//!  │    node-port-…: address and port, from @node-port-owners and @node-port-owner-ports
//!  │    …-affinity-…: client in @affinity ─▶ code ─▶ @cluster-by-code or @local-by-code ─▶ dnat;
//!  │         else random number ─▶ @cluster-codes or @local-codes ─▶ code, put into @affinity ─▶ dnat
//!  │    random number ─▶ @cluster-backends or @local-backends ─▶ dnat
//!  ├▶ drop: no endpoint on this node, and the policy is Local
//!  └▶ accept: no endpoint at all; the filter chains reject it
//!
//! postrouting (nat, 100) ─▶ nat-postrouting
//!    marked ─▶ masquerade-marked
//!    translated, and saddr . protocol . dport . daddr in @backends (a hairpin): masquerade
//! ```
//!
//! In the filter chains, where established, related and translated packets (and untracked ones of the
//! node itself) are accepted by the first two rules:
//!
//! ```text
//! input (filter, -10) ─▶ filter-input
//!    @no-endpoints ─▶ refuse
//!    daddr in @node-port-addresses, and @no-endpoint-node-ports ─▶ refuse
//! forward (filter, -10) ─▶ filter-forward
//!    INVALID TCP from @backends: drop, unless conntrack is liberal (CT-7)
//!    ─▶ unserved
//! output (filter, -10) ─▶ filter-output ─▶ unserved
//!
//! unserved: @no-endpoints ─▶ refuse
//!           @external-frontends: drop
//!           @cluster-ips ─▶ refuse
//!           @service-cidrs, not in @spared: drop
//! refuse:   INVALID: drop, else reject with port-unreachable
//! ```
//!
//! Invariants: Services and endpoints are elements of a constant number of sets; a change costs what
//! changed; packets of established flows meet one rule.
//!
//! `nft list table ip proxy-daemon` (1.0.6 and later) shows all of it, in words that `nft` also takes.
//! `text` writes the same words without a kernel. Two limits of 1.0.6: it does not read the line
//! `gc-interval` of a map, and has too few registers for IPv6 rules with session affinity. Never write a
//! rule that `nft` cannot list: 1.0.6 dies of some.

mod action;
mod affinity;
mod apply;
mod clashes;
mod codec;
mod desired;
mod elements;
mod layout;
mod render;
mod repair;
mod resync;
mod ruleset;
mod sets;
mod shared;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeSet;

use super::{DatapathError, Descriptor, FailureCounter, Needs, Plane, Rules, SyncReport, Tables};
use crate::forwarding::{Changes, ForwardingState};
use crate::net::{Family, IpFamily, V4, V6};
use apply::Installed;
use codec::Kernel;

/// What is known of this datapath before it is opened.
pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "nftables",
    mode: "nftables",
    backend: None,
    failures: &[FailureCounter {
        name: "sync_proxy_rules_nftables_sync_failures",
        help: "Syncs that failed",
        only_partial: false,
    }],
    needs: Needs {
        capabilities: &[],
        loads_modules: false,
        conntrack: true,
        affinity_limit: None,
    },
    rules: Rules {
        v4: rules,
        v6: rules,
    },
    open: |_options| Ok(Box::new(NftablesPlane)),
};

/// The two families have nothing in common.
struct NftablesPlane;

impl Plane for NftablesPlane {
    fn tables_v4(&self) -> Result<Box<dyn Tables<V4>>, DatapathError> {
        Ok(Box::new(Nftables::open()?))
    }

    fn tables_v6(&self) -> Result<Box<dyn Tables<V6>>, DatapathError> {
        Ok(Box::new(Nftables::open()?))
    }

    fn cleanup(&self, family: IpFamily) -> Result<(), DatapathError> {
        match family {
            IpFamily::V4 => Nftables::<V4>::open()?.cleanup(),
            IpFamily::V6 => Nftables::<V6>::open()?.cleanup(),
        }
    }
}

/// The nftables datapath of one family, in the network namespace it was opened in.
#[derive(Debug)]
pub struct Nftables<F: Family> {
    kernel: Kernel,
    /// `None` if the next sync must read back first.
    installed: Option<Installed<F>>,
    /// The kernel's generation minus our commits, taken after a full read. If it grows, someone else
    /// committed.
    ///
    /// Kernel: `nf_tables_commit()` adds one to the namespace's generation.
    others: Option<u32>,
    /// Checks in a row that compared the generation only.
    n_unseen: u32,
}

/// After so many checks of the generation alone, the table is read: a transaction of ours without effect
/// does not raise the generation, and would hide one of others.
const UNSEEN: u32 = 10;

impl<F: Family> Nftables<F> {
    /// Opens the kernel's `nf_tables` in the network namespace of the calling thread. Writes nothing.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if the kernel has no `nf_tables`, or does not let us use it.
    pub fn open() -> Result<Self, DatapathError> {
        let mut kernel = Kernel::open(F::FAMILY, layout::TABLE)?;
        kernel.generation()?;
        Ok(Self {
            kernel,
            installed: None,
            others: None,
            n_unseen: 0,
        })
    }
}

/// The rules of a state, as `nft -f` takes them. Needs no privilege and no kernel.
pub fn rules<F: Family>(state: &ForwardingState<F>) -> String {
    text::table(&desired::Desired::render(state, &BTreeSet::new()))
}

impl<F: Family> Nftables<F> {
    fn ahead(&mut self) -> Result<u32, DatapathError> {
        Ok(self
            .kernel
            .generation()?
            .wrapping_sub(self.kernel.n_commits()))
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.installed = None;
        self.others = None;
        apply::cleanup::<F>(&mut self.kernel)
    }
}

impl<F: Family> Tables<F> for Nftables<F> {
    fn sync(
        &mut self,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<Option<SyncReport>, DatapathError> {
        match self.installed.take() {
            Some(mut installed) if installed.can_follow(desired, changes) => {
                let report = installed.follow(&mut self.kernel, desired, changes)?;
                if report.is_some() {
                    self.installed = Some(installed);
                }
                Ok(report)
            }
            Some(_) | None => Ok(None),
        }
    }

    fn resync(&mut self, desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError> {
        self.installed = None;
        self.others = None;
        let others = self.ahead()?;
        let (installed, report) = resync::resync(&mut self.kernel, desired)?;
        self.installed = Some(installed);
        self.others = Some(others);
        Ok(report)
    }

    fn changed_by_others(&mut self) -> Result<bool, DatapathError> {
        let ahead = self.ahead()?;
        let Some(installed) = &self.installed else {
            return Ok(true);
        };
        if self.others == Some(ahead) && self.n_unseen < UNSEEN {
            self.n_unseen += 1;
            return Ok(false);
        }
        self.n_unseen = 0;
        let is_intact = installed.is_intact(&mut self.kernel)?;
        if is_intact {
            self.others = Some(ahead);
        }
        Ok(!is_intact)
    }
}
