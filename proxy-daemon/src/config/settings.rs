//! Which settings does the daemon run with, after checks and defaults?
//!
//! Invariants: a [`Config`] can be acted on without asking again; it holds no default that still
//! depends on something, but the node's own addresses.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Policy;
use crate::datapath::DatapathChoice;

/// Everything that flags and the configuration file decide.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which datapath.
    pub datapath: DatapathChoice,
    /// Where the cluster's objects come from.
    pub source: Source,
    /// What `compile` reads.
    pub policy: Policy,
    /// Our Node's name. Spec: NODE-1.
    pub node_name: Arc<str>,
    /// Replaces the node IP of its family, and makes that family primary. Spec: NODE-2.
    pub node_ip_override: Option<IpAddr>,
    /// Where `/healthz` is served; `None` is nowhere. Spec: §15.
    pub healthz_address: Option<SocketAddr>,
    /// Where the node-local server listens; `None` is nowhere. Spec: §16.
    pub metrics_address: Option<SocketAddr>,
    /// Whether an address that cannot be bound ends the process. Spec: HZ-8.
    pub bind_address_hard_fail: bool,
    /// How fast to sync.
    pub periods: Periods,
    /// The sysctls to write. Spec: CT-8 to CT-11.
    pub conntrack: ConntrackSettings,
    /// Our own `oom_score_adj`. Spec: LIFE-12.
    pub oom_score_adj: i32,
    /// How to log.
    pub log: LogSettings,
}

/// Where the cluster's objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server; in-cluster configuration if neither is set. Spec: API-1.
    Kubernetes {
        /// A kubeconfig file.
        kubeconfig: Option<PathBuf>,
        /// The server's URL, stronger than the kubeconfig's.
        master: Option<String>,
    },
}

/// How fast to sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periods {
    /// Least time from the end of one sync to the start of the next. Spec: SYNC-1.
    pub min_sync: Duration,
    /// Longest delay of a retry, interval of the look for foreign changes, base of health. Spec: SYNC-3.
    pub sync: Duration,
}

impl Periods {
    /// The defaults.
    ///
    /// `min_sync` is 10 ms where kube-proxy waits 1 s: a sync of ours costs what changed, not what
    /// exists, so that merging changes for longer buys little and delays each of them. At 100 changes a
    /// second, 10 ms keep the loop from running more than once per change.
    pub const DEFAULT: Self = Self {
        min_sync: Duration::from_millis(10),
        sync: Duration::from_secs(30),
    };
}

/// The conntrack sysctls; zero leaves one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackSettings {
    /// Entries per CPU; 0 leaves the maximum alone. Spec: CT-9.
    pub max_per_core: u32,
    /// Least maximum. Spec: CT-9.
    pub min: u32,
    /// Spec: CT-10.
    pub tcp_established_timeout: Duration,
    /// Spec: CT-10.
    pub tcp_close_wait_timeout: Duration,
    /// Whether packets outside the window are tracked. Spec: CT-8.
    pub tcp_be_liberal: bool,
    /// Spec: CT-10.
    pub udp_timeout: Duration,
    /// Spec: CT-10.
    pub udp_stream_timeout: Duration,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// Whether each line is a JSON object.
    pub json: bool,
    /// As `-v`: 0 to 3 is info, 4 and 5 debug, above is trace.
    pub verbosity: u32,
}
