//! Which files are in a directory, even if the directory is renamed during a scan?
//!
//! Invariants: everything is looked up in the directory that was opened, so that one scan never mixes
//! two directories; no call blocks, not even opening a pipe.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, stat};

/// A directory that is held open.
pub(super) struct OpenDirectory(OwnedFd);

/// The attributes that change when a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified: (i64, i64),
}

impl OpenDirectory {
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
        match (self.identity(), stat(path)) {
            (Ok(held), Ok(now)) => held == (now.st_dev, now.st_ino),
            (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
        }
    }

    /// Its device and inode.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        let found = fstat(&self.0)?;
        Ok((found.st_dev, found.st_ino))
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

    /// Opens a file, links followed, and says which one it is; `None` if there is no regular one
    /// of this name.
    ///
    /// # Errors
    /// When it cannot be opened, also a link that leads nowhere: it does so for a moment when the file
    /// behind it is replaced.
    pub(super) fn open_file(&self, name: &str) -> io::Result<Option<(File, Identity)>> {
        // Kernel: to open a device may have effects, and a socket cannot be opened.
        if let Ok(found) = fstatat(&self.0, name, AtFlags::empty())
            && SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG
        {
            return Ok(None);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.0, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => {
                return match fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Err(Errno::ENOENT) => Ok(None),
                    Ok(_) => Err(io::Error::other("it is a symbolic link that leads nowhere")),
                    Err(error) => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        let identity = Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        Ok(metadata.is_file().then_some((file, identity)))
    }
}
