//! Are we allowed to do what we must do?

use caps::{CapSet, Capability};

/// Whether this process may change the network of its namespace.
///
/// Asked before anything is opened, since the kernel's own answer later is a bare "Operation not
/// permitted". If the kernel does not say, the answer is yes, and the first operation will tell.
pub fn has_net_admin() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(true)
}

/// Whether this process may open raw sockets, over which iptables and its match of sets ask the kernel.
pub fn has_net_raw() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_RAW).unwrap_or(true)
}
