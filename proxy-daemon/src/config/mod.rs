//! What is the daemon configured to do?
//!
//! Flags and a `KubeProxyConfiguration` file become one [`raw::KubeProxyConfiguration`]; [`resolve()`]
//! turns it into a [`Config`] or into every fault it has. Invariants: nothing here touches the kernel
//! or the network.

mod duration;
mod policy;
pub mod raw;
mod resolve;
mod settings;

pub use duration::{DurationError, GoDuration};
pub use policy::{DetectLocal, NodePortAddresses, Policy};
pub use resolve::{ExtraSettings, Fault, Resolved, resolve};
pub use settings::{Config, ConntrackSettings, LogSettings, Periods, Source};
