//! Which datapaths are there, and what is known of each before it is opened?
//!
//! Invariant: [`DatapathKind::ALL`] is the only list. The command line, the configuration, metrics,
//! capabilities, sysctls, the removal of other modes and the tests are derived from it.

use std::fmt;
use std::io;

use super::DatapathError;
use super::plane::{Plane, PlaneOptions};
use crate::forwarding::{AffinityLimit, ForwardingState};
use crate::net::{V4, V6};
use crate::sys::capabilities::{self, Capability};

/// One of the datapaths: its descriptor.
#[derive(Clone, Copy)]
pub struct DatapathKind(pub(super) &'static Descriptor);

/// What is known of a datapath before it is opened.
pub struct Descriptor {
    /// Its name in logs and tests, unlike any other's.
    pub name: &'static str,
    /// The mode that it belongs to: the word of `--mode`, `/proxyMode` and the configuration file.
    pub mode: &'static str,
    /// Its word among the datapaths of its mode, if there are several.
    pub backend: Option<Backend>,
    /// The counters of failed syncs, which kube-proxy names after its modes. Spec: MET-4.
    pub failures: &'static [FailureCounter],
    /// What must be true of the node.
    pub needs: Needs,
    /// What it makes of a state, in the words of its own tools; without a privilege, and equal for equal states.
    pub rules: Rules,
    /// Opens it in the network namespace of the calling thread. Writes nothing.
    pub open: fn(&PlaneOptions) -> Result<Box<dyn Plane>, DatapathError>,
}

/// A datapath's writer of rules as text, for each family.
pub struct Rules {
    /// For IPv4.
    pub v4: fn(&ForwardingState<V4>) -> String,
    /// For IPv6.
    pub v6: fn(&ForwardingState<V6>) -> String,
}

/// One of several datapaths of a mode.
#[derive(Clone, Copy)]
pub struct Backend {
    /// The word of `--iptables-backend`.
    pub name: &'static str,
    /// Finds the datapath of the mode that this node uses already. Writes nothing.
    pub detect: fn() -> DatapathKind,
}

/// A counter of failed syncs.
#[derive(Clone, Copy, Debug)]
pub struct FailureCounter {
    /// Its name, without the prefix `kubeproxy_` and the suffix `_total`.
    pub name: &'static str,
    /// Its help text.
    pub help: &'static str,
    /// Whether only syncs count that were to write what changed.
    pub only_partial: bool,
}

/// What a datapath needs of the node.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The capabilities that it needs besides `NET_ADMIN`, each with what it is needed for. Spec: LIFE-15.
    pub capabilities: &'static [(Capability, &'static str)],
    /// Whether it may have to load kernel modules, which takes `SYS_MODULE`.
    pub loads_modules: bool,
    /// Whether its packets are tracked by conntrack.
    ///
    /// If so, conntrack is loaded at the start, its sysctls are written (CT-8 to CT-11), what it calls
    /// INVALID is dropped (CT-7), and stale UDP flows are deleted from it after syncs (CT-1). If not,
    /// its sysctls are written only where it is loaded already, and a datapath that has flows of its own
    /// forgets them itself.
    pub conntrack: bool,
    /// How much kernel memory session affinity may take, if each of its Services takes memory of its own.
    pub affinity_limit: Option<AffinityLimit>,
}

impl Needs {
    /// That every capability is held.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] for the first that is not.
    pub(super) fn check(self) -> Result<(), DatapathError> {
        let missing = |(capability, _): &&(Capability, _)| !capabilities::has(*capability);
        match self.capabilities.iter().find(missing) {
            None => Ok(()),
            Some((_, advice)) => Err(DatapathError::Unusable {
                operation: "checking capabilities",
                advice,
                source: io::ErrorKind::PermissionDenied.into(),
            }),
        }
    }
}

impl DatapathKind {
    /// The datapath of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Its name in logs and tests.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// Its mode, as `/proxyMode` shows it. Spec: MET-1.
    pub const fn mode(self) -> &'static str {
        self.0.mode
    }

    /// Its word among the datapaths of its mode, if there are several.
    pub fn backend(self) -> Option<&'static str> {
        self.0.backend.map(|backend| backend.name)
    }

    /// What it needs of the node.
    pub const fn needs(self) -> Needs {
        self.0.needs
    }

    /// Its counters of failed syncs.
    pub const fn failures(self) -> &'static [FailureCounter] {
        self.0.failures
    }

    /// What it makes of the states, in the words of its own tools.
    pub fn rules(
        self,
        v4: Option<&ForwardingState<V4>>,
        v6: Option<&ForwardingState<V6>>,
    ) -> String {
        let Rules {
            v4: write_v4,
            v6: write_v6,
        } = &self.0.rules;
        let texts = [v4.map(write_v4), v6.map(write_v6)];
        texts.into_iter().flatten().collect()
    }

    /// All but this one.
    pub fn others(self) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |kind| *kind != self)
    }

    /// The modes, in the order of the list; the first is the default.
    pub fn modes() -> Vec<&'static str> {
        let mut modes: Vec<_> = Self::ALL.iter().map(|kind| kind.mode()).collect();
        modes.dedup();
        modes
    }

    /// The words of `--iptables-backend` besides `auto`.
    pub fn backends() -> Vec<&'static str> {
        Self::ALL.iter().filter_map(|kind| kind.backend()).collect()
    }
}

impl PartialEq for DatapathKind {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for DatapathKind {}

impl fmt::Debug for DatapathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The datapath that the configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatapathChoice {
    /// This one.
    Fixed(DatapathKind),
    /// Of the datapaths of this one's mode, the one that the node uses already.
    Detect(DatapathKind),
}

impl DatapathChoice {
    /// The one of this mode and backend; without a backend, the mode's only one, or the one in use.
    ///
    /// `None` if there is no such mode or backend.
    pub fn of(mode: &str, backend: Option<&str>) -> Option<Self> {
        let mut of_mode = DatapathKind::ALL.iter().filter(|kind| kind.mode() == mode);
        match backend {
            Some(_) => of_mode
                .find(|kind| kind.backend() == backend)
                .map(|kind| Self::Fixed(*kind)),
            None => of_mode.next().map(|kind| match kind.backend() {
                Some(_) => Self::Detect(*kind),
                None => Self::Fixed(*kind),
            }),
        }
    }

    /// The mode, which is known before the datapath is.
    pub const fn mode(self) -> &'static str {
        self.any().mode()
    }

    /// A datapath of the mode: for what is the same for all of them.
    pub const fn any(self) -> DatapathKind {
        let (Self::Fixed(kind) | Self::Detect(kind)) = self;
        kind
    }

    /// The datapath. Runs programs if it must be detected.
    pub fn kind(self) -> DatapathKind {
        match self {
            Self::Fixed(kind) => kind,
            Self::Detect(kind) => kind.0.backend.map_or(kind, |backend| (backend.detect)()),
        }
    }

    /// What the datapath needs, or may need if it is not known yet.
    pub fn may_need(self, is_needed: impl Fn(Needs) -> bool) -> bool {
        match self {
            Self::Fixed(kind) => is_needed(kind.needs()),
            Self::Detect(kind) => DatapathKind::ALL
                .iter()
                .any(|other| other.mode() == kind.mode() && is_needed(other.needs())),
        }
    }
}
