//! What is in a directory, whatever happens to its name meanwhile?
//!
//! Invariants: everything is looked up in the directory that was opened, so that one look never sees
//! two directories; nothing is waited for, also not by opening a pipe.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, stat};

/// A directory that is held open.
pub(super) struct Held(OwnedFd);

/// What changes when a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

/// What is under a name.
pub(super) enum Found {
    /// A file.
    File(Identity),
    /// Something that is no file.
    Other,
    /// Nothing.
    Nothing,
}

impl Held {
    /// Opens a directory; links on the way to it are followed.
    ///
    /// # Errors
    /// When it is not there, is no directory or must not be read.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open(path, flags, Mode::empty())?))
    }

    /// Whether the directory is the one that the path leads to now.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        match (fstat(&self.0), stat(path)) {
            (Ok(held), Ok(now)) => (held.st_dev, held.st_ino) == (now.st_dev, now.st_ino),
            (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
        }
    }

    /// The names in it, but those that are no UTF-8.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut directory = Dir::openat(&self.0, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// What is under a name, links followed.
    ///
    /// # Errors
    /// When that cannot be said, also of a link that leads nowhere: who replaces what it leads to makes
    /// it such for a moment.
    pub(super) fn find(&self, name: &str) -> io::Result<Found> {
        match fstatat(&self.0, name, AtFlags::empty()) {
            Ok(stat) if is_file(&stat) => Ok(Found::File(Identity::of(&stat))),
            Ok(_) => Ok(Found::Other),
            Err(Errno::ENOENT) => match fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => Ok(Found::Nothing),
                Ok(_) => Err(io::Error::other("it is a symbolic link that leads nowhere")),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a file and says which one it is; `None` if it is no file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open_file(&self, name: &str) -> io::Result<Option<(File, Identity)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.0, name, flags, Mode::empty())?);
        let stat = fstat(&file)?;
        Ok(is_file(&stat).then(|| (file, Identity::of(&stat))))
    }
}

fn is_file(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}
