//! How are iptables and ipset run?
//!
//! By their programs, in the network namespace of the calling thread. Invariants: reading never makes
//! the kernel create a table; an error is what the program said, with the line of our input that it
//! names; the process that holds the lock of iptables-legacy is named.

use std::borrow::Borrow;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::flavour::Flavour;
use super::lock::{self, VARIABLE};
use crate::datapath::DatapathError;
use crate::net::IpFamily;
use crate::sys::process::{Call, Ended, find};

/// How long a program waits for the lock of iptables-legacy, as with kube-proxy; the other family is served
/// between the attempts.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// The first version of iptables-restore that waits for the lock.
const OLDEST: [u32; 3] = [1, 6, 2];

/// The programs of one family and flavour, and ipset.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// Which family these are for.
    pub(crate) family: IpFamily,
    /// Which flavour these are of.
    pub(crate) flavour: Flavour,
    restore: PathBuf,
    save: PathBuf,
    ipset: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    lock: PathBuf,
    lock_wait: Duration,
}

/// What the environment says about iptables and reaches its programs.
const ENVIRONMENT: [&str; 2] = ["XTABLES_LIBDIR", VARIABLE];

impl Tools {
    /// Looks for the programs. Changes nothing in the kernel.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if one is missing or too old.
    pub(crate) fn open(family: IpFamily, flavour: Flavour) -> Result<Self, DatapathError> {
        let missing = |operation, advice| DatapathError::Unusable {
            operation,
            advice,
            source: io::ErrorKind::NotFound.into(),
        };
        let (restore, save) = find_iptables(family, flavour, &find).ok_or_else(|| match flavour {
            Flavour::Nft => missing(
                "finding iptables-nft-restore and iptables-nft-save, or the same for ip6tables",
                "install the package iptables, 1.8 or later (iptables-nft on RHEL)",
            ),
            Flavour::Legacy => missing(
                "finding iptables-legacy-restore and iptables-legacy-save, or the same for ip6tables",
                "install the package iptables, 1.6.2 or later (iptables-legacy on Alpine and RHEL)",
            ),
        })?;
        let ipset =
            find("ipset").ok_or_else(|| missing("finding ipset", "install the package ipset"))?;
        let environment: Vec<(&'static str, OsString)> = ENVIRONMENT
            .into_iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)))
            .collect();
        let file = environment.iter().find(|(name, _)| *name == VARIABLE);
        Ok(Self {
            family,
            flavour,
            restore,
            save,
            ipset,
            lock: file.map_or_else(|| lock::FILE.into(), |(_, file)| file.into()),
            lock_wait: LOCK_WAIT,
            environment,
        })
    }

    /// Gives this to `iptables-restore --noflush`: each table's part is one transaction. Does nothing if it is
    /// empty.
    ///
    /// # Errors
    /// [`DatapathError::Refused`]; tables before the one with the error have been changed.
    pub(crate) fn restore(&self, input: &str) -> Result<(), DatapathError> {
        if input.is_empty() {
            return Ok(());
        }
        let wait = self.lock_wait.as_secs().to_string();
        let arguments: &[&str] = match self.flavour {
            Flavour::Nft => &["--noflush"],
            Flavour::Legacy => &["--noflush", "-w", &wait],
        };
        self.run(
            "writing rules",
            &self.restore,
            arguments,
            input,
            &mut |_| {},
        )
    }

    /// That the lock of iptables-legacy could not be taken.
    fn locked(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "{} is held by {} for more than {} s; cannot write rules, will retry",
                self.lock.display(),
                lock::holder(&self.lock),
                self.lock_wait.as_secs()
            ),
        )
    }

    /// Hands each line of `iptables-save -t table` to `each`; none if the kernel has no such table.
    ///
    /// # Errors
    /// [`DatapathError::Refused`] if it cannot be read.
    pub(crate) fn save(
        &self,
        table: &str,
        each: &mut dyn FnMut(&str),
    ) -> Result<(), DatapathError> {
        if self.flavour == Flavour::Legacy && !has_legacy_table(self.family, table) {
            return Ok(());
        }
        let mut is_readable = true;
        let mut take = |line: &str| {
            // iptables-nft-save says so in a comment, and ends well.
            is_readable &= !(line.starts_with("# Table") && line.contains("incompatible"));
            each(line);
        };
        self.run("reading rules", &self.save, &["-t", table], "", &mut take)?;
        if is_readable {
            return Ok(());
        }
        let advice = format!(
            "the table {table} has rules of others that iptables-nft cannot read; move those to a table of another name, or use --mode=nftables"
        );
        let source = io::Error::other(advice);
        Err(refused("reading rules", &self.save, source))
    }

    /// Gives these lines to `ipset -exist restore`; does nothing if there are none.
    ///
    /// With `-exist` it is fine to create a set that is there with the same parameters, to add an
    /// entry that is there, and to delete one that is not.
    ///
    /// # Errors
    /// [`DatapathError::Refused`]; of the lines before the one with the error some have been carried out.
    pub(crate) fn ipset_restore(&self, lines: &[impl Borrow<str>]) -> Result<(), DatapathError> {
        if lines.is_empty() {
            return Ok(());
        }
        let input = lines.join("\n") + "\n";
        let arguments = &["-exist", "restore"];
        self.run("writing sets", &self.ipset, arguments, &input, &mut |_| {})
    }

    /// Hands each line of `ipset save` to `each`: of all sets, of whatever family and owner, or of one.
    ///
    /// # Errors
    /// [`DatapathError::Refused`] if they cannot be read.
    pub(crate) fn ipset_save(
        &self,
        set: Option<&str>,
        each: &mut dyn FnMut(&str),
    ) -> Result<(), DatapathError> {
        let arguments: Vec<&str> = ["save"].into_iter().chain(set).collect();
        self.run("reading sets", &self.ipset, &arguments, "", each)
    }

    fn run(
        &self,
        operation: &'static str,
        program: &Path,
        arguments: &[&str],
        input: &str,
        each: &mut dyn FnMut(&str),
    ) -> Result<(), DatapathError> {
        let call = Call {
            program,
            arguments,
            environment: &self.environment,
        };
        let refused = |source| refused(operation, program, source);
        let ended = call.run(input.as_bytes(), each).map_err(refused)?;
        if ended.status.success() {
            return Ok(());
        }
        let is_unread = program == self.ipset && input.is_empty();
        Err(if is_unread && lacks_ip_set(&ended.said) {
            no_ip_set(failure(&ended))
        } else if ended.said.contains("holding the xtables lock") {
            refused(self.locked())
        } else {
            refused(failure(&ended))
        })
    }
}

/// What is to be done about a kernel that does not know sets.
pub(super) fn no_ip_set(source: io::Error) -> DatapathError {
    DatapathError::Unusable {
        operation: "reading sets",
        advice: "this kernel has no ip_set; load the module, or use --mode=nftables",
        source,
    }
}

/// Whether `ip_tables` has this table already; asking for one that it has not would create it.
///
/// Kernel: /proc/thread-self/net is of this thread's namespace, /proc/net of the main thread's.
pub(super) fn has_legacy_table(family: IpFamily, table: &str) -> bool {
    let file = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(file).is_ok_and(|names| names.lines().any(|name| name == table))
}

const fn program_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "iptables",
        IpFamily::V6 => "ip6tables",
    }
}

/// `iptables-restore` and `iptables-save` of this family and flavour.
fn find_iptables(
    family: IpFamily,
    flavour: Flavour,
    find: &dyn Fn(&str) -> Option<PathBuf>,
) -> Option<(PathBuf, PathBuf)> {
    let program = program_name(family);
    let flavoured = |what: &str| find(&format!("{program}-{}-{what}", flavour.name()));
    let plain = |what: &str| {
        find(&format!("{program}-{what}")).filter(|file| is_of(&version(file), flavour))
    };
    let flavoured = flavoured("restore").zip(flavoured("save"));
    flavoured.or_else(|| plain("restore").zip(plain("save")))
}

/// What a program says about its version.
fn version(program: &Path) -> String {
    let call = Call {
        program,
        arguments: &["--version"],
        environment: &[],
    };
    let mut text = String::new();
    let ended = call.run(b"", &mut |line| text.push_str(line));
    ended.map_or(String::new(), |_| text)
}

/// Whether a program that says `iptables-restore v1.8.9 (nf_tables)` is of this flavour and new enough.
///
/// Before 1.8 there was only one, which does not say what it is.
fn is_of(version: &str, flavour: Flavour) -> bool {
    let numbers = version.split_whitespace().find_map(|word| {
        Some(
            word.strip_prefix('v')?
                .split('.')
                .map_while(|n| n.parse().ok()),
        )
    });
    let numbers: Vec<u32> = numbers.into_iter().flatten().collect();
    match flavour {
        Flavour::Nft => version.contains("(nf_tables)"),
        Flavour::Legacy => !version.contains("(nf_tables)") && numbers >= OLDEST.to_vec(),
    }
}

fn refused(operation: &'static str, program: &Path, source: io::Error) -> DatapathError {
    let name = program.file_name().unwrap_or(program.as_os_str());
    DatapathError::Refused {
        operation,
        object: name.to_string_lossy().into_owned(),
        source,
    }
}

/// Whether ipset failed to read because the kernel does not know sets.
///
/// Kernel: `nfnetlink_rcv_msg()` answers EINVAL if nobody serves the subsystem.
fn lacks_ip_set(said: &str) -> bool {
    [
        "Kernel error received: Invalid argument",
        "Cannot open session to kernel",
    ]
    .iter()
    .any(|sign| said.contains(sign))
}

/// What a program said about its failure, in one line.
fn failure(ended: &Ended) -> io::Error {
    let said: Vec<&str> = ended
        .said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Try `") && !line.starts_with('#'))
        .take(3)
        .collect();
    io::Error::other(if said.is_empty() {
        format!("it said nothing and ended with {}", ended.status)
    } else {
        said.join("; ")
    })
}

#[cfg(test)]
pub(super) mod tests;
