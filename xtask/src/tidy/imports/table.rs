//! Which modules and crates may each module of the daemon use? ARCHITECTURE.md explains it.

use Crates::{Any, NoKubernetes, Pure};

/// Which crates of Cargo.toml a module may use.
#[derive(Clone, Copy)]
pub(super) enum Crates {
    Any,
    NoKubernetes,
    /// Only words for networks, and derives for errors and for what is printed.
    Pure,
}

impl Crates {
    pub(super) fn contain(self, name: &str) -> bool {
        match self {
            Any => true,
            NoKubernetes => !["k8s_openapi", "kube"].contains(&name),
            Pure => ["ipnet", "serde", "thiserror"].contains(&name),
        }
    }
}

/// A module, the modules that it may use besides itself and `net` (`*`: all), and the crates. For a file, the longest module holds.
/// The crate's root and the binary are the module without a name.
#[rustfmt::skip]
pub(super) const RULES: &[(&str, &str, Crates)] = &[
    ("net", "", Pure),
    ("config", "model forwarding datapath sys", NoKubernetes),
    ("model", "", Pure),
    ("model::from_k8s", "model", Any),
    ("diagnostics", "model sys", NoKubernetes),
    ("watch", "model config diagnostics sys", Any),
    ("compile", "model forwarding config", Pure),
    ("forwarding", "", Pure),
    ("datapath", "forwarding sys", NoKubernetes),
    ("datapath::nftables", "datapath forwarding sys", NoKubernetes),
    ("datapath::iptables", "datapath forwarding sys", NoKubernetes),
    ("conntrack", "forwarding sys", NoKubernetes),
    // Of `watch` only `Drained`: what changed, taken through a trait of its own.
    ("sync", "compile config conntrack datapath diagnostics forwarding health model sys watch", NoKubernetes),
    ("health", "datapath debug forwarding sys", NoKubernetes),
    ("telemetry", "config", NoKubernetes),
    ("debug", "config forwarding model", NoKubernetes),
    ("sys", "", NoKubernetes),
    ("cli", "config datapath debug", NoKubernetes),
    ("app", "*", NoKubernetes),
    // Compiled for tests and fuzzing only.
    ("fuzzing", "*", NoKubernetes),
    ("", "*", NoKubernetes),
];
