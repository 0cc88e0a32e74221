//! What does the machine we run on offer?
//!
//! Clock, capabilities, sysctls, addresses, name, programs. Invariants: nothing here knows Services or a
//! datapath; whoever needs the time asks a [`Clock`].

pub mod addresses;
pub mod capabilities;
mod clock;
pub mod host;
pub(crate) mod process;
mod sysctl;

pub use clock::{Clock, SystemClock};
pub use sysctl::Sysctls;
