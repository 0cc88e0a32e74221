//! What does the machine provide?
//!
//! Clock, limiter, memory, capabilities, sysctls, addresses, interfaces, name, programs, netfilter. Invariants: nothing here knows Services or a
//! datapath; whoever needs the time asks a [`Clock`].

pub mod addresses;
pub mod capabilities;
mod clock;
pub mod host;
pub mod interfaces;
mod limiter;
pub(crate) mod memory;
pub mod netfilter;
pub(crate) mod process;
mod sysctl;

pub use clock::{Clock, SystemClock};
pub use interfaces::{Interface, Interfaces};
pub use limiter::Limiter;
pub use sysctl::Sysctls;
