//! How do iptables and ipset carry a forwarding state?
//!
//! Chains of ours in the tables nat and filter, hooked in by one rule in each built-in chain, written by
//! `iptables-restore --noflush`; sets of ours, written by `ipset restore`. How do we recognise them after
//! a restart or an upgrade? By the prefix of their names: what has it and is not wanted goes, and nothing
//! else is touched. `layout` has the chains that are always there, `tree` leads a packet to its frontend,
//! `render` turns a ServicePort into chains and elements, `apply` writes.
//!
//! # The way of a packet
//!
//! In `nat`, which only the first packet of a flow meets; sets are written `@name` for `PROXYD4-name` or
//! `PROXYD6-name`:
//!
//! ```text
//! PREROUTING, OUTPUT ─▶ PROXYD-SERVICES
//!    destination in @guarded, and destination and source not in @source-ranges: ACCEPT, untranslated
//!    ─▶ PROXYD-VIPS ─▶ PROXYD-T-… by bits of address, protocol and port ─▶ rules of the frontend
//!    destination in @node-addresses
//!    ─▶ PROXYD-NODE-PORTS ─▶ PROXYD-T-… by bits of protocol and port ─▶ rules of the frontend
//!    neither: not for a Service
//!
//! the rules of a frontend mark the packet for masquerading, if that is asked, and go to one of
//!  ├▶ PROXYD-C-… or PROXYD-L-…, the ServicePort's backends in the cluster or on this node:
//!  │    without affinity: DNAT to a random one
//!  │    with affinity: client in @A-… ─▶ that backend's PROXYD-B-…; else a random PROXYD-B-…
//!  │    PROXYD-B-…: add the client to @A-…, DNAT
//!  ├▶ PROXYD-cCl-… and the like, a letter each for pods, this node and others: ─▶ PROXYD-C-… or -L-…,
//!  │    after a mark where the letter is a capital; x is ACCEPT
//!  └▶ ACCEPT: the packet is not translated; the filter chains reject or drop it
//!
//! POSTROUTING ─▶ PROXYD-POSTROUTING
//!    marked ─▶ PROXYD-MASQUERADE
//!    translated, source = destination (a hairpin): MASQUERADE
//! ```
//!
//! In `filter`, where established, related and translated packets (and untracked ones of the node itself)
//! return by the first two rules:
//!
//! ```text
//! INPUT ─▶ PROXYD-INPUT ─▶ PROXYD-UNSERVED; to @node-addresses ─▶ PROXYD-UNSERVED-NODE
//! FORWARD ─▶ PROXYD-FORWARD: INVALID TCP from @tcp-backends: DROP, unless conntrack is liberal (CT-7)
//!                            ─▶ PROXYD-UNSERVED ─▶ PROXYD-UNKNOWN
//! OUTPUT ─▶ PROXYD-OUTPUT ─▶ PROXYD-UNSERVED ─▶ PROXYD-UNKNOWN
//!
//! PROXYD-UNSERVED:      in @guarded, source not in @source-ranges: DROP
//!                       @refused ─▶ PROXYD-REFUSE; @dropped: DROP
//! PROXYD-UNSERVED-NODE: @refused-node-ports ─▶ PROXYD-REFUSE; @dropped-node-ports: DROP
//! PROXYD-UNKNOWN:       @cluster-ips ─▶ PROXYD-REFUSE; @service-cidrs, not in @spared: DROP
//! PROXYD-REFUSE:        INVALID: DROP, else REJECT with port-unreachable
//! ```
//!
//! Invariants: what can be an element of a set is one, since a change of it costs the same among 10
//! rules and 100,000; only chains that changed are written; a new flow meets some twenty rules, whichever
//! Service it is for; packets of established flows meet one.

mod affinity_set;
mod affinity_sets;
mod apply;
mod bits;
mod chain;
mod drift;
mod flavour;
mod layout;
mod lock;
mod names;
pub(crate) mod readback;
mod render;
mod script;
mod sets;
mod stale;
#[cfg(test)]
mod tests;
mod text;
mod tool;
mod tree;

pub use affinity_set::AFFINITY_LIMIT;
pub use flavour::Flavour;
pub use text::rules;

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    Backend, DatapathError, DatapathKind, Descriptor, FailureCounter, Needs, Plane, Rules,
    SyncReport, Tables,
};
use crate::forwarding::{Changes, ForwardingState};
use crate::net::{Family, IpFamily, V4, V6};
use crate::sys::capabilities::Capability;
use apply::Installed;
use readback::Reading;
use tool::Tools;

/// What is known of iptables-nft before it is opened.
pub(super) const NFT: Descriptor = Descriptor {
    name: "iptables-nft",
    backend: Some(Backend {
        name: "nft",
        detect,
    }),
    needs: Needs {
        loads_modules: false,
        ..LEGACY.needs
    },
    open: |_options| Ok(Box::new(IptablesPlane(Flavour::Nft))),
    ..LEGACY
};

/// What is known of iptables-legacy before it is opened.
pub(super) const LEGACY: Descriptor = Descriptor {
    name: "iptables-legacy",
    mode: "iptables",
    backend: Some(Backend {
        name: "legacy",
        detect,
    }),
    failures: &[
        FailureCounter {
            name: "sync_proxy_rules_iptables_restore_failures",
            help: "Syncs that failed",
            only_partial: false,
        },
        FailureCounter {
            name: "sync_proxy_rules_iptables_partial_restore_failures",
            help: "Syncs that failed to write what changed",
            only_partial: true,
        },
    ],
    needs: Needs {
        capabilities: &[(
            Capability::CAP_NET_RAW,
            "add the capability NET_RAW: iptables and ipset use raw sockets",
        )],
        // iptables-legacy loads ip_tables by itself.
        loads_modules: true,
        conntrack: true,
        affinity_limit: Some(AFFINITY_LIMIT),
    },
    rules: Rules {
        v4: rules,
        v6: rules,
    },
    open: |_options| Ok(Box::new(IptablesPlane(Flavour::Legacy))),
};

fn detect() -> DatapathKind {
    let (flavour, because) = Flavour::detect();
    tracing::info!(
        backend = flavour.name(),
        because,
        "selected the iptables backend"
    );
    DatapathKind(match flavour {
        Flavour::Nft => &NFT,
        Flavour::Legacy => &LEGACY,
    })
}

/// The two families have nothing in common.
struct IptablesPlane(Flavour);

impl Plane for IptablesPlane {
    fn tables_v4(&self) -> Result<Box<dyn Tables<V4>>, DatapathError> {
        Ok(Box::new(Iptables::open(self.0)?))
    }

    fn tables_v6(&self) -> Result<Box<dyn Tables<V6>>, DatapathError> {
        Ok(Box::new(Iptables::open(self.0)?))
    }

    fn cleanup(&self, family: IpFamily) -> Result<(), DatapathError> {
        match family {
            IpFamily::V4 => Iptables::<V4>::open(self.0)?.cleanup(),
            IpFamily::V6 => Iptables::<V6>::open(self.0)?.cleanup(),
        }
    }
}

/// The iptables datapath of one family, in the network namespace it was opened in.
#[derive(Debug)]
pub struct Iptables<F: Family> {
    tools: Tools,
    /// `None` if the next sync must read back first.
    installed: Option<Installed<F>>,
    /// How many read-backs failed in a row.
    n_failed: u32,
}

impl<F: Family> Iptables<F> {
    /// Looks for the programs of this flavour. Writes nothing.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if a program is missing or too old.
    pub fn open(flavour: Flavour) -> Result<Self, DatapathError> {
        let tools = Tools::open(F::FAMILY, flavour)?;
        Ok(Self {
            tools,
            installed: None,
            n_failed: 0,
        })
    }

    fn write_all(&mut self, desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError> {
        self.installed = None;
        // What is printed may not be what is there. If it was of no use twice, all is written anew once.
        let reading = if self.n_failed % 3 == 2 {
            Reading::Names
        } else {
            Reading::Printed
        };
        self.n_failed = self.n_failed.wrapping_add(1);
        let (installed, report) = apply::resync(&self.tools, desired, reading)?;
        self.n_failed = 0;
        self.installed = Some(installed);
        Ok(report)
    }

    fn cleanup(&mut self) -> Result<(), DatapathError> {
        self.installed = None;
        apply::cleanup::<F>(&self.tools)
    }
}

/// Keeps the other flavour's removal from destroying sets that are made and not used by a rule yet: both
/// flavours have the same sets.
fn sets_of<F: Family>() -> MutexGuard<'static, ()> {
    static V4: Mutex<()> = Mutex::new(());
    static V6: Mutex<()> = Mutex::new(());
    let sets = match F::FAMILY {
        IpFamily::V4 => &V4,
        IpFamily::V6 => &V6,
    };
    sets.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Family> Tables<F> for Iptables<F> {
    fn sync(
        &mut self,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<Option<SyncReport>, DatapathError> {
        let _sets = sets_of::<F>();
        let installed = self.installed.take();
        let Some(mut installed) = installed.filter(|it| it.can_follow(desired)) else {
            return Ok(None);
        };
        let report = installed.follow(&self.tools, desired, changes)?;
        self.installed = Some(installed);
        Ok(Some(report))
    }

    fn resync(&mut self, desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError> {
        let _sets = sets_of::<F>();
        self.write_all(desired)
    }

    fn changed_by_others(&mut self) -> Result<bool, DatapathError> {
        let installed = self.installed.as_mut();
        installed.map_or(Ok(true), |it| it.has_drifted(&self.tools))
    }
}
