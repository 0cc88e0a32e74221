//! Why does the process exit, other than by a signal?

use crate::config::{Fault, raw};
use crate::datapath::{DatapathError, DatapathKind};
use crate::debug::ExplainError;
use crate::health::BindError;
use crate::net::IpFamily;
use crate::watch::kubernetes::ConnectError;
use crate::watch::manifests::ManifestsError;

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// A flag is known and does nothing yet.
    #[error("{0} is not implemented yet")]
    NotThereYet(&'static str),
    /// The configuration file cannot be used.
    #[error(transparent)]
    ConfigFile(raw::FileError),
    /// The configuration has faults.
    #[error("the configuration has {} fault{}:{}", .0.len(), plural(.0), list(.0))]
    Config(Vec<Fault>),
    /// The capability to change the network is missing.
    #[error(
        "missing capability CAP_NET_ADMIN; run as root, or give the container the capability NET_ADMIN"
    )]
    NoNetAdmin,
    /// Another proxy-daemon runs in this network namespace.
    #[error("another proxy-daemon runs here already; stop it first")]
    Locked,
    /// The directory of manifests cannot be used.
    #[error(transparent)]
    Manifests(ManifestsError),
    /// No API server is configured.
    #[error(transparent)]
    ApiServer(ConnectError),
    /// A kernel parameter cannot be written.
    #[error(
        "cannot write {value} to /proc/sys/{name}; allow it, or set the flag or field that asks for it to 0"
    )]
    Sysctl {
        /// Its name.
        name: &'static str,
        /// What was to be written.
        value: u64,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The kernel cannot carry a family that the node needs.
    #[error("cannot serve {family}")]
    Family {
        /// The family.
        family: IpFamily,
        /// The cause.
        #[source]
        source: DatapathError,
    },
    /// The kernel lacks a feature that the mode needs, as the first sync showed.
    #[error("this kernel lacks a feature that the mode needs")]
    Unusable(#[source] DatapathError),
    /// The node lacks the primary family.
    #[error("the node's primary family is {0}, which this network namespace does not have")]
    NoFamily(IpFamily),
    /// `--cleanup` failed for these modes and families; the causes were logged.
    #[error("cannot clean up {}", names(.0))]
    Cleanup(Vec<(DatapathKind, IpFamily)>),
    /// The Node has no pod networks, which detect-local mode `NodeCIDR` needs. Spec: NODE-3.
    #[error("our Node has no spec.podCIDRs, which detectLocalMode NodeCIDR needs")]
    NoPodCidrs,
    /// The Node's pod networks changed. Spec: NODE-5.
    #[error("our Node's spec.podCIDRs changed; exiting, a restart applies them")]
    PodCidrsChanged,
    /// The configuration file changed. Spec: CFG-3.
    #[error("the configuration file changed; exiting, a restart applies it")]
    ConfigChanged,
    /// A packet cannot be explained.
    #[error(transparent)]
    Explain(ExplainError),
    /// The running daemon does not answer.
    #[error(
        "got no answer from a proxy-daemon at {address}; does it run here, and is it busy? Its log says more (proxy-daemon --manifests DIR dump asks none)"
    )]
    NoDaemon {
        /// The address of the request.
        address: std::net::SocketAddr,
        /// Why there was no answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An address cannot be listened on, and the configuration makes that fatal.
    #[error(transparent)]
    Bind(BindError),
    /// The operating system refused a thread, a signal handler or a runtime.
    #[error("the operating system refused a resource")]
    Runtime(#[source] std::io::Error),
    /// The sync thread ended, which is a bug.
    #[error("the sync thread ended unexpectedly (a bug); exiting")]
    SyncEnded,
}

impl AppError {
    /// 2 if the command line or the configuration must change, else 1.
    pub const fn exit_code(&self) -> u8 {
        let is_about_input = matches!(
            self,
            Self::Usage(_)
                | Self::NotThereYet(_)
                | Self::ConfigFile(_)
                | Self::Config(_)
                | Self::Manifests(_)
                | Self::ApiServer(_)
                | Self::Explain(_)
        );
        if is_about_input { 2 } else { 1 }
    }
}

const fn plural(faults: &[Fault]) -> &'static str {
    if faults.len() == 1 { "" } else { "s" }
}

fn names(left: &[(DatapathKind, IpFamily)]) -> String {
    let names = left
        .iter()
        .map(|(kind, family)| format!("{} {family}", kind.name()));
    names.collect::<Vec<_>>().join(", ")
}

fn list(faults: &[Fault]) -> String {
    let lines = faults.iter().map(|fault| format!("\n  {fault}"));
    lines.collect::<Vec<_>>().concat()
}
