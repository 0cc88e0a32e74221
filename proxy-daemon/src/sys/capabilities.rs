//! Which capabilities does the process have, and which does it drop?

use caps::CapSet;
pub use caps::Capability;
use caps::errors::CapsError;

/// Whether this process has a capability.
///
/// Checked before anything is opened, because the kernel's own error later is a bare "Operation not
/// permitted". If it cannot be read, the answer is yes, and the first operation shows it.
pub fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(true)
}

/// Why not all capabilities could be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot reduce the {set:?} set of capabilities")]
pub struct KeepError {
    set: CapSet,
    source: CapsError,
}

/// Capabilities that only some configurations need.
#[derive(Clone, Copy, Debug)]
pub struct Also {
    /// `SYS_MODULE`, since iptables-legacy loads `ip_tables` by itself.
    pub loads_modules: bool,
    /// `NET_BIND_SERVICE`, to listen on a port below 1024.
    pub binds_low_ports: bool,
}

/// Drops the capabilities of this thread that are not needed, for good, and for all threads and programs that it
/// starts later; call it on the first thread, before there is another.
///
/// Needed are `NET_ADMIN`; `NET_RAW`, since removing what an iptables mode left asks over raw sockets;
/// `DAC_READ_SEARCH`, since a kubeconfig may belong to another user; and what `also` says.
///
/// # Errors
/// [`KeepError`] for the first set that stays as it is; those after it were reduced all the same.
pub fn keep_needed(also: Also) -> Result<(), KeepError> {
    let always = [
        Capability::CAP_NET_ADMIN,
        Capability::CAP_NET_RAW,
        Capability::CAP_DAC_READ_SEARCH,
    ];
    let is_needed = |capability: &Capability| {
        always.contains(capability)
            || also.loads_modules && *capability == Capability::CAP_SYS_MODULE
            || also.binds_low_ports && *capability == Capability::CAP_NET_BIND_SERVICE
    };
    let mut outcome = no_new_privileges();
    // In this order: dropping from the bounding set needs another capability itself.
    for set in [
        CapSet::Bounding,
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Permitted,
    ] {
        let reduced = caps::read(None, set).and_then(|held| {
            let (needed, rest): (Vec<_>, Vec<_>) = held.into_iter().partition(&is_needed);
            if matches!(set, CapSet::Bounding) {
                rest.into_iter().try_for_each(|c| caps::drop(None, set, c))
            } else if rest.is_empty() {
                Ok(())
            } else {
                caps::set(None, set, &needed.into_iter().collect())
            }
        });
        outcome = outcome.and(reduced.map_err(|source| KeepError { set, source }));
    }
    outcome
}

/// Programs that we start cannot regain dropped capabilities through set-user-ID bits or file capabilities.
fn no_new_privileges() -> Result<(), KeepError> {
    nix::sys::prctl::set_no_new_privs().map_err(|error| KeepError {
        set: CapSet::Bounding,
        source: CapsError::from(error.to_string()),
    })
}
