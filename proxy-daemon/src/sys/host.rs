//! What are the host's name, CPUs, families and limits?

use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The name that the operating system has for this host; empty if it has none.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Source: `Documentation/admin-guide/cputopology.rst` of the kernel.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// How many CPUs the machine has online; if it does not say, how many we may run on.
///
/// A limit on what we may use does not make the node's traffic less. Spec: CT-9.
pub fn n_cpus() -> u32 {
    let online = std::fs::read_to_string(ONLINE).ok();
    online
        .and_then(|list| count_cpus(list.trim()))
        .or_else(|| {
            let usable = std::thread::available_parallelism().ok()?;
            u32::try_from(usable.get()).ok()
        })
        .unwrap_or(1)
}

/// How many CPUs a list such as `0-3,5` names; `None` if it is no such list, or empty.
fn count_cpus(online: &str) -> Option<u32> {
    online.split(',').try_fold(0_u32, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        let n = last.checked_sub(first)?.checked_add(1)?;
        sum.checked_add(n)
    })
}

/// Whether this network namespace can carry IPv6.
///
/// Spec: DS-2.
pub fn has_ipv6() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    Path::new("/proc/net/if_inet6").exists() && disabled.map_or(true, |value| value.trim() != "1")
}

/// Sets `oom_score_adj`.
///
/// Spec: LIFE-12.
///
/// # Errors
/// Whatever the kernel says to the write; lowering the score needs `CAP_SYS_RESOURCE`.
pub fn set_oom_score_adj(score: i32) -> std::io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
}

/// Raises the limit of open files to the hard limit; returns the limit before and now.
///
/// # Errors
/// If the kernel refuses.
pub fn raise_open_files() -> std::io::Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok((soft, hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ct_9_the_kernel_s_list_of_cpus_is_counted() {
        for (list, n) in [
            ("0", Some(1)),
            ("0-3", Some(4)),
            ("0-3,5", Some(5)),
            ("0,2,4-7,64-127", Some(70)),
            ("", None),
            ("0-", None),
            ("3-0", None),
            ("0-4294967295", None),
            ("0-3,", None),
            ("-1", None),
            ("0-6:2/4", None),
        ] {
            assert_eq!(count_cpus(list), n, "{list:?}");
        }
        assert!(n_cpus() >= 1);
    }
}
