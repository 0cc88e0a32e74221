//! Who and where are we?

use std::path::Path;

/// The name that the operating system has for this host; empty if it has none.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// How many CPUs we may run on, as kube-proxy counts them for CT-9.
pub fn n_cpus() -> u32 {
    std::thread::available_parallelism()
        .ok()
        .and_then(|n| u32::try_from(n.get()).ok())
        .unwrap_or(1)
}

/// Whether this network namespace can carry IPv6.
///
/// Spec: DS-2.
pub fn has_ipv6() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    Path::new("/proc/net/if_inet6").exists() && disabled.map_or(true, |value| value.trim() != "1")
}

/// Tells the kernel how gladly to end us when memory is short.
///
/// Spec: LIFE-12.
///
/// # Errors
/// Whatever the kernel says to the write; lowering the score needs `CAP_SYS_RESOURCE`.
pub fn set_oom_score_adj(score: i32) -> std::io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
}
