//! What does the machine we run on offer?
//!
//! Clock, limiter, memory, capabilities, sysctls, addresses, name, programs, netfilter. Invariants: nothing here knows Services or a
//! datapath; whoever needs the time asks a [`Clock`].

pub mod addresses;
pub mod capabilities;
mod clock;
pub mod host;
mod limiter;
pub(crate) mod memory;
pub mod netfilter;
pub(crate) mod process;
mod sysctl;

pub use clock::{Clock, SystemClock};
pub use limiter::Limiter;
pub use sysctl::Sysctls;
