//! Which sysctls of conntrack are written?
//!
//! Invariants: a sysctl that has its value already is not written; if one cannot be written, the start fails
//! before any rule is written (CT-11).

use std::io;
use std::time::Duration;

use super::AppError;
use crate::config::{Config, ConntrackSettings};
use crate::conntrack::{FlowTable as _, Netlink};
use crate::net::V4;
use crate::sys::{Sysctls, host};

const MAX: &str = "net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "net/netfilter/nf_conntrack_buckets";
const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
const HASHSIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// Upper limit of the product of CPUs and entries per CPU. Spec: CT-9.
const MAX_PRODUCT: u64 = 1_048_576;

/// Writes what the configuration and its mode ask for.
///
/// # Errors
/// As [`apply`].
pub(super) fn apply_all(config: &Config) -> Result<(), AppError> {
    let is_needed = config.datapath.may_need(|needs| needs.conntrack);
    apply(&Sysctls::default(), &config.conntrack, is_needed)
}

/// Writes what the settings ask for; if conntrack is not needed, only where it is loaded already.
/// Spec: CT-8 to CT-11.
///
/// # Errors
/// [`AppError::Sysctl`] for the first one that the kernel refuses.
fn apply(sysctls: &Sysctls, settings: &ConntrackSettings, is_needed: bool) -> Result<(), AppError> {
    if sysctls.read(MAX).is_err() {
        if !is_needed {
            return Ok(());
        }
        load_conntrack();
    }
    if let Some(max) = wanted_max(settings, host::n_cpus()) {
        apply_max(sysctls, max)?;
    }
    for (name, value) in wanted(settings) {
        set(sysctls, name, value)?;
    }
    Ok(())
}

/// Whether conntrack lets packets outside the window pass translated. Spec: CT-7.
pub(super) fn is_liberal(sysctls: &Sysctls) -> bool {
    sysctls.read(LIBERAL).is_ok_and(|value| value == 1)
}

/// Loads conntrack, whose sysctls exist only then, by asking it for its table.
fn load_conntrack() {
    let mut table = Netlink::default();
    if let Err(error) = table.list(0, &|_: &crate::conntrack::Flow<V4>| false) {
        let error = &error as &dyn std::error::Error;
        tracing::debug!(error, "cannot list the conntrack table yet");
    }
}

fn wanted_max(settings: &ConntrackSettings, n_cpus: u32) -> Option<u64> {
    if settings.max_per_core == 0 {
        return None;
    }
    let product = u64::from(settings.max_per_core) * u64::from(n_cpus);
    Some(if product > MAX_PRODUCT {
        MAX_PRODUCT
    } else {
        product.max(settings.min.into())
    })
}

fn wanted(settings: &ConntrackSettings) -> impl Iterator<Item = (&'static str, u64)> {
    let timeouts = [
        (
            "net/netfilter/nf_conntrack_tcp_timeout_established",
            settings.tcp_established_timeout,
        ),
        (
            "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            settings.tcp_close_wait_timeout,
        ),
        (
            "net/netfilter/nf_conntrack_udp_timeout",
            settings.udp_timeout,
        ),
        (
            "net/netfilter/nf_conntrack_udp_timeout_stream",
            settings.udp_stream_timeout,
        ),
    ];
    let liberal = settings.tcp_be_liberal.then_some((LIBERAL, 1));
    timeouts
        .into_iter()
        .filter(|(_, timeout)| *timeout > Duration::ZERO)
        .map(|(name, timeout)| (name, timeout.as_secs()))
        .chain(liberal)
}

/// Raises the limit, and never lowers it.
///
/// Only the initial network namespace can write the limit. In other namespaces a limit that is too low is
/// logged and does not stop the start.
fn apply_max(sysctls: &Sysctls, max: u64) -> Result<(), AppError> {
    let current = sysctls.read(MAX).map_err(|source| AppError::Sysctl {
        name: MAX,
        value: max,
        source,
    })?;
    if current >= max {
        // Whoever chose it chose the number of buckets, too.
        tracing::debug!(current, wanted = max, "nf_conntrack_max is large enough");
        return Ok(());
    }
    if sysctls.is_read_only(MAX) {
        tracing::info!(
            current,
            wanted = max,
            "cannot raise nf_conntrack_max: only the initial network namespace can write it"
        );
        return Ok(());
    }
    set(sysctls, MAX, max)?;
    let n_buckets = sysctls.read(BUCKETS).unwrap_or(u64::MAX);
    if n_buckets < max / 4 {
        // Fewer buckets make the table slower, not smaller, so that this is not worth failing for.
        if let Err(error) = std::fs::write(HASHSIZE, (max / 4).to_string()) {
            tracing::warn!(%error, "cannot write {HASHSIZE}, {n_buckets} buckets remain");
        }
    }
    Ok(())
}

fn set(sysctls: &Sysctls, name: &'static str, value: u64) -> Result<(), AppError> {
    let fail = |source: io::Error| AppError::Sysctl {
        name,
        value,
        source,
    };
    let before = sysctls.read(name).map_err(fail)?;
    if before != value {
        sysctls.write(name, value).map_err(fail)?;
        tracing::info!(name, before, value, "changed sysctl");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const SETTINGS: ConntrackSettings = ConntrackSettings {
        max_per_core: 32_768,
        min: 131_072,
        tcp_established_timeout: Duration::from_secs(86_400),
        tcp_close_wait_timeout: Duration::from_secs(3_600),
        tcp_be_liberal: false,
        udp_timeout: Duration::ZERO,
        udp_stream_timeout: Duration::ZERO,
    };

    #[test]
    fn ct_9_the_limit_grows_with_cpus_between_its_bounds() {
        let with = |max_per_core, min| ConntrackSettings {
            max_per_core,
            min,
            ..SETTINGS
        };
        for (settings, n_cpus, expected) in [
            (SETTINGS, 2, Some(131_072)),
            (SETTINGS, 8, Some(262_144)),
            (SETTINGS, 64, Some(1_048_576)),
            (with(32_768, 2_000_000), 64, Some(1_048_576)),
            (with(1, 2_000_000), 2, Some(2_000_000)),
            (with(0, 2_000_000), 2, None),
        ] {
            assert_eq!(wanted_max(&settings, n_cpus), expected, "{settings:?}");
        }
    }

    #[test]
    fn ct_8_ct_10_zero_and_false_leave_parameters_alone() {
        let names: Vec<&str> = wanted(&SETTINGS).map(|(name, _)| name).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let settings = ConntrackSettings {
            tcp_be_liberal: true,
            udp_timeout: Duration::from_secs(30),
            ..SETTINGS
        };
        assert!(wanted(&settings).any(|pair| pair == (LIBERAL, 1)));
        assert!(wanted(&settings).any(|(_, value)| value == 30));
    }

    fn tree(name: &str) -> (PathBuf, Sysctls) {
        let root = std::env::temp_dir().join(format!("pd-{}-{name}", std::process::id()));
        std::fs::create_dir_all(root.join("net/netfilter")).unwrap();
        (root.clone(), Sysctls::at(root))
    }

    #[test]
    fn ct_11_what_is_right_is_not_written_and_what_is_missing_is_an_error() {
        let (root, sysctls) = tree("ct-11");
        std::fs::write(root.join(LIBERAL), "1\n").unwrap();
        set(&sysctls, LIBERAL, 1).unwrap();
        assert_eq!(std::fs::read_to_string(root.join(LIBERAL)).unwrap(), "1\n");
        assert!(is_liberal(&sysctls));
        assert!(matches!(
            set(&sysctls, MAX, 1),
            Err(AppError::Sysctl { .. })
        ));
        assert!(apply_max(&sysctls, 1).is_err());
        std::fs::write(root.join(MAX), "5\n").unwrap();
        // CT-9: it is never lowered.
        apply_max(&sysctls, 4).unwrap();
        assert_eq!(sysctls.read(MAX).unwrap(), 5);
        let mut permissions = std::fs::metadata(root.join(MAX)).unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(root.join(MAX), permissions).unwrap();
        apply_max(&sysctls, 6).unwrap();
        assert_eq!(sysctls.read(MAX).unwrap(), 5);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
