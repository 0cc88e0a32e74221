//! Who holds the lock of iptables-legacy?
//!
//! Every iptables-legacy takes it (`flock`) for a change, in whichever network namespace. Invariants:
//! it is only read here, never taken.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::stat::{major, minor};

/// The variable that names another file.
pub(super) const VARIABLE: &str = "XTABLES_LOCKFILE";
/// The file whose lock it is.
pub(super) const FILE: &str = "/run/xtables.lock";

/// The process that holds it, for a message.
///
/// Kernel: of a lock whose holder is in another PID namespace /proc/locks shows nothing.
pub(super) fn holder(file: &Path) -> String {
    let pid = || {
        let file = fs::metadata(file).ok()?;
        let (major, minor) = (major(file.dev()), minor(file.dev()));
        let inode = format!("{major:02x}:{minor:02x}:{}", file.ino());
        find(&fs::read_to_string("/proc/locks").ok()?, &inode)
    };
    match pid() {
        Some(pid) => match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => format!("process {pid} ({})", name.trim_end()),
            Err(_) => format!("process {pid} (ended, but not all of its children)"),
        },
        None => "a process that /proc/locks does not show".to_owned(),
    }
}

/// The process that holds the `flock` of this file, in the text of `/proc/locks`.
///
/// Kernel: `1: FLOCK  ADVISORY  WRITE 17710 fe:00:10010642 0 EOF`, and `1: -> FLOCK …` for those who wait.
fn find(locks: &str, inode: &str) -> Option<u32> {
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
        assert_eq!(find(LOCKS, "fe:00:10010642"), Some(17710));
        assert_eq!(find(LOCKS, "fe:00:7"), None);
        assert_eq!(find(LOCKS, "fe:00:8"), None);
    }

    #[test]
    fn a_lock_of_this_process_is_found() {
        let file = std::env::temp_dir().join(format!("{}-lock", std::process::id()));
        let me = format!("process {} (", std::process::id());
        assert!(!holder(&file).contains(&me));
        let held = nix::fcntl::Flock::lock(
            fs::File::create(&file).expect("a file"),
            nix::fcntl::FlockArg::LockExclusive,
        )
        .expect("nobody has it");
        assert!(holder(&file).starts_with(&me), "{}", holder(&file));
        drop(held);
        assert!(!holder(&file).contains(&me));
        fs::remove_file(&file).expect("the file is there");
    }
}
