//! Who holds the lock of iptables-legacy?
//!
//! Every iptables-legacy takes it (`flock`) for a change, in whichever network namespace. Invariants:
//! it is looked at and never taken here.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The variable that names another file.
pub(super) const VARIABLE: &str = "XTABLES_LOCKFILE";
const FILE: &str = "/run/xtables.lock";

/// The file whose lock it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct XtablesLock {
    file: PathBuf,
}

/// Who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// The process that was asked about.
    Itself,
    /// Another one, with its name if it can be read.
    Other {
        /// Its id, as our /proc has it.
        pid: u32,
        /// What the kernel calls it.
        name: Option<String>,
    },
    /// One whom we cannot see: the process that was asked about waits for it.
    Unseen,
    /// Nobody, as far as we can see.
    Nobody,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("itself"),
            Self::Other {
                pid,
                name: Some(name),
            } => write!(f, "process {pid} ({name})"),
            Self::Other { pid, name: None } => {
                write!(f, "process {pid} (gone, but not all of its children)")
            }
            Self::Unseen => f.write_str("a process outside of our PID namespace"),
            Self::Nobody => f.write_str("nobody that is to be seen"),
        }
    }
}

impl XtablesLock {
    /// The lock at this place, or where it is by default.
    pub(super) fn new(file: Option<&OsStr>) -> Self {
        Self {
            file: file.map_or_else(|| FILE.into(), Into::into),
        }
    }

    /// Where it is.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Who holds it, from the view of the process `asking`, which may be one of ours that waits for it.
    pub(super) fn holder(&self, asking: u32) -> Holder {
        let inode = fs::metadata(&self.file).map(|file| {
            let (major, minor) = (
                nix::sys::stat::major(file.dev()),
                nix::sys::stat::minor(file.dev()),
            );
            format!("{major:02x}:{minor:02x}:{}", file.ino())
        });
        let (Ok(inode), Ok(locks)) = (inode, fs::read_to_string("/proc/locks")) else {
            return Holder::Nobody;
        };
        match holder(&locks, &inode) {
            // Kernel: of a lock whose holder is in another PID namespace /proc/locks shows nothing.
            None if waits_for_a_lock(asking) => Holder::Unseen,
            None => Holder::Nobody,
            Some(pid) if pid == asking => Holder::Itself,
            Some(pid) => Holder::Other {
                pid,
                name: fs::read_to_string(format!("/proc/{pid}/comm"))
                    .ok()
                    .map(|name| name.trim_end().to_owned()),
            },
        }
    }
}

/// Whether this process is inside of `flock`.
///
/// Kernel: /proc/PID/syscall begins with the number of the system call that it sleeps in.
fn waits_for_a_lock(pid: u32) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|n| n.parse().ok());
    number == Some(nix::libc::SYS_flock)
}

/// The process that holds the `flock` of this file, in the text of `/proc/locks`.
///
/// Kernel: `1: FLOCK  ADVISORY  WRITE 17710 fe:00:10010642 0 EOF`, and `1: -> FLOCK …` for those who wait.
fn holder(locks: &str, inode: &str) -> Option<u32> {
    locks
        .lines()
        .find_map(|line| match *line.split_whitespace().collect::<Vec<_>>() {
            [_, "FLOCK", _, _, pid, file, ..] if file == inode => pid.parse().ok(),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 11 fe:00:10010642 0 EOF
2: FLOCK  ADVISORY  WRITE 17710 fe:00:10010642 0 EOF
2: -> FLOCK  ADVISORY  WRITE 17719 fe:00:10010642 0 EOF
3: -> FLOCK  ADVISORY  WRITE 4 fe:00:7 0 EOF
";

    #[test]
    fn the_holder_is_not_one_who_waits() {
        assert_eq!(holder(LOCKS, "fe:00:10010642"), Some(17710));
        assert_eq!(holder(LOCKS, "fe:00:7"), None);
        assert_eq!(holder(LOCKS, "fe:00:8"), None);
    }

    #[test]
    fn a_lock_of_this_process_is_found() {
        let file = std::env::temp_dir().join(format!("{}-lock", std::process::id()));
        let lock = XtablesLock::new(Some(file.as_os_str()));
        assert_eq!(lock.holder(1), Holder::Nobody);
        let held = nix::fcntl::Flock::lock(
            fs::File::create(&file).expect("a file"),
            nix::fcntl::FlockArg::LockExclusive,
        )
        .expect("nobody has it");
        let me = std::process::id();
        assert_eq!(lock.holder(me), Holder::Itself);
        let other = lock.holder(1);
        assert!(
            matches!(&other, Holder::Other { pid, name: Some(_) } if *pid == me),
            "{other:?}"
        );
        drop(held);
        assert_eq!(lock.holder(me), Holder::Nobody);
        fs::remove_file(&file).expect("the file is there");
    }
}
