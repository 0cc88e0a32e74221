//! Why does the process end, other than by a signal?

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
    #[error("{0} is not there yet")]
    NotThereYet(&'static str),
    /// The configuration file cannot be used.
    #[error(transparent)]
    ConfigFile(raw::FileError),
    /// The configuration has faults.
    #[error("the configuration has {} fault{}:{}", .0.len(), plural(.0), list(.0))]
    Config(Vec<Fault>),
    /// We may not change the network.
    #[error(
        "this needs the capability CAP_NET_ADMIN; run it as root, or give the container the capability NET_ADMIN"
    )]
    NoNetAdmin,
    /// Another one of us runs in this network namespace.
    #[error(
        "another proxy-daemon runs here already; stop it first (two would undo each other's work)"
    )]
    Locked,
    /// The directory of manifests cannot be used.
    #[error(transparent)]
    Manifests(ManifestsError),
    /// It is not said how to reach the API server.
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
        /// Which.
        family: IpFamily,
        /// Why.
        #[source]
        source: DatapathError,
    },
    /// The kernel lacks what the mode needs, which only the first sync could tell.
    #[error("this kernel cannot do what the mode needs")]
    Unusable(#[source] DatapathError),
    /// The node lacks the primary family.
    #[error("the node's primary family is {0}, which this network namespace does not have")]
    NoFamily(IpFamily),
    /// `--cleanup` left something; why was logged.
    #[error("could not clean up {}", names(.0))]
    Cleanup(Vec<(DatapathKind, IpFamily)>),
    /// The Node has no pod networks, which detect-local mode `NodeCIDR` needs. Spec: NODE-3.
    #[error("our Node has no spec.podCIDRs, which detectLocalMode NodeCIDR needs")]
    NoPodCidrs,
    /// They changed. Spec: NODE-5.
    #[error("our Node's spec.podCIDRs changed; ending so that the next start takes them in")]
    PodCidrsChanged,
    /// The configuration file changed. Spec: CFG-3.
    #[error("the configuration file changed; ending so that the next start takes it in")]
    ConfigChanged,
    /// A packet cannot be explained.
    #[error(transparent)]
    Explain(ExplainError),
    /// The running daemon does not show itself.
    #[error(
        "got no answer from a proxy-daemon at {address}; does it run here, and is it busy? Its log says more (proxy-daemon --manifests DIR dump asks none)"
    )]
    NoDaemon {
        /// Where it was asked.
        address: std::net::SocketAddr,
        /// What came instead.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An address cannot be listened on, and that was to be fatal.
    #[error(transparent)]
    Bind(BindError),
    /// Something of the operating system is missing.
    #[error("the process cannot get what it needs from the operating system")]
    Runtime(#[source] std::io::Error),
    /// A bug.
    #[error("the sync thread ended, which is a bug; ending so that a new start mends it")]
    SyncEnded,
}

impl AppError {
    /// 2 if the command line or the configuration must change, else 1.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::NotThereYet(_)
            | Self::ConfigFile(_)
            | Self::Config(_)
            | Self::Manifests(_)
            | Self::ApiServer(_)
            | Self::Explain(_) => 2,
            Self::NoNetAdmin
            | Self::Locked
            | Self::Sysctl { .. }
            | Self::Family { .. }
            | Self::NoFamily(_)
            | Self::Unusable(_)
            | Self::Cleanup(_)
            | Self::NoDaemon { .. }
            | Self::NoPodCidrs
            | Self::PodCidrsChanged
            | Self::ConfigChanged
            | Self::Bind(_)
            | Self::Runtime(_)
            | Self::SyncEnded => 1,
        }
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
