//! Which system packages does the project need, and how do they get here?
//!
//! Invariants: idempotent; takes a few milliseconds when nothing is missing; installs nothing but the packages named here.

use crate::sh;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;

/// Debian's name of each package, and the program whose presence shows on other systems that it is installed.
const PACKAGES: &[(&str, &str)] = &[
    ("nftables", "nft"),
    ("iptables", "iptables-legacy-restore"),
    ("ipset", "ipset"),
    ("conntrack", "conntrack"),
    ("iproute2", "ip"),
    ("iputils-ping", "ping"),
    ("ethtool", "ethtool"),
    ("pkg-config", "pkg-config"),
];

/// Libraries that the daemon is linked with: Debian's name of each package, and pkg-config's.
const LIBRARIES: &[(&str, &str)] = &[("libmnl-dev", "libmnl"), ("libnftnl-dev", "libnftnl")];

/// The verb: installs what is missing and says so.
pub(crate) fn run() -> Result<bool> {
    ensure()?;
    println!("everything the project needs is installed");
    Ok(true)
}

/// Installs what is missing; silent and quick when nothing is.
pub(crate) fn ensure() -> Result<()> {
    let debian = is_debian(&std::fs::read_to_string("/etc/os-release").unwrap_or_default())
        && sh::which("apt-get").is_some();
    let mut missing = if debian {
        missing_on_debian()?
    } else {
        missing_elsewhere()
    };
    if sh::which("cc").is_none() {
        missing.extend(["gcc", "libc6-dev"]);
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !debian {
        bail!(
            "missing: {}\nThis is not Debian or Ubuntu, so please install them by hand, for example\n  \
             Fedora:  dnf install gcc nftables iptables-nft iptables-legacy ipset conntrack-tools iproute iputils ethtool \
             pkgconf-pkg-config libmnl-devel libnftnl-devel\n  \
             Arch:    pacman -S gcc nftables iptables ipset conntrack-tools iproute2 iputils ethtool pkgconf libmnl libnftnl\n  \
             Alpine:  apk add gcc musl-dev nftables iptables iptables-legacy ipset conntrack-tools iproute2 iputils ethtool \
             pkgconf libmnl-dev libnftnl-dev",
            missing.join(" ")
        );
    }
    install(&missing)
}

/// Installs those of Debian's packages that are missing; for what only one verb needs.
pub(crate) fn ensure_packages(wanted: &[&'static str]) -> Result<()> {
    if !is_debian(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()) {
        bail!(
            "this needs packages of Debian or Ubuntu: {}\nBuild in a container of debian:12, for example",
            wanted.join(" ")
        );
    }
    let missing = missing_among(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

fn install(missing: &[&str]) -> Result<()> {
    eprintln!("installing what is missing: {}", missing.join(" "));
    let sudo = if sh::is_root() {
        None
    } else {
        Some(sh::which("sudo").with_context(|| {
            format!(
                "not root, and no sudo here; run as root: apt-get update && apt-get install {}",
                missing.join(" ")
            )
        })?)
    };
    let apt = || {
        let mut command = sh::program(sudo.as_deref().unwrap_or_else(|| Path::new("env")));
        if sudo.is_some() {
            command.arg("env");
        }
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        // Another apt may be at work, as on a machine that has just booted: wait for it rather than fail.
        command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
        command
    };
    // Our packages may not need a source that cannot be reached; the install below fails if they do.
    if !sh::echo_run(apt().arg("update"))? {
        eprintln!("apt-get update failed; trying with the lists as they are");
    }
    sh::must_run(
        apt()
            .args(["install", "-y", "--no-install-recommends"])
            .args(missing),
    )
}

fn is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|l| l.strip_prefix("ID=").or_else(|| l.strip_prefix("ID_LIKE=")))
        .flat_map(|v| v.trim_matches('"').split_whitespace())
        .any(|id| id == "debian" || id == "ubuntu")
}

fn missing_on_debian() -> Result<Vec<&'static str>> {
    missing_among(&packages().collect::<Vec<_>>())
}

fn missing_among(wanted: &[&'static str]) -> Result<Vec<&'static str>> {
    let output = sh::program("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
        .args(wanted)
        .output()
        .context("cannot start dpkg-query")?;
    // It exits with 1 when it does not know one of the names, and still lists the others.
    let installed = installed(&String::from_utf8_lossy(&output.stdout));
    let missing = wanted.iter().filter(|name| !installed.contains(**name));
    Ok(missing.copied().collect())
}

/// Debian's names of all packages.
fn packages() -> impl Iterator<Item = &'static str> {
    PACKAGES.iter().chain(LIBRARIES).map(|(name, _)| *name)
}

fn installed(dpkg_query: &str) -> BTreeSet<String> {
    dpkg_query
        .lines()
        .filter_map(|l| l.strip_suffix(" installed"))
        .map(str::to_owned)
        .collect()
}

fn missing_elsewhere() -> Vec<&'static str> {
    let programs = PACKAGES
        .iter()
        .filter(|(_, program)| sh::which(program).is_none());
    let libraries = LIBRARIES.iter().filter(|(_, library)| {
        let mut pkg_config = sh::program("pkg-config");
        let found = pkg_config.args(["--exists", library]).status();
        !found.is_ok_and(|status| status.success())
    });
    programs.chain(libraries).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_what_is_like_it_are_recognised() {
        assert!(is_debian("PRETTY_NAME=\"x\"\nID=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian("ID=fedora\nVERSION_ID=42\n"));
        assert!(!is_debian(""));
    }

    #[test]
    fn what_the_daemon_links_with_is_installed_before_it_is_built() {
        let names: Vec<_> = packages().collect();
        for name in ["pkg-config", "libmnl-dev", "libnftnl-dev"] {
            assert!(names.contains(&name), "{names:?}");
        }
    }

    #[test]
    fn only_installed_packages_count() {
        let listed =
            installed("nftables installed\nconntrack config-files\niproute2 not-installed\n");
        assert_eq!(listed.into_iter().collect::<Vec<_>>(), ["nftables"]);
    }
}
