//! When did the directory change, and which files are being written?
//!
//! Invariants: a file counts as being written from its first change until it is closed, renamed or
//! removed; a directory that was replaced is found again; without any event the directory is looked at
//! every [`POLL`], because a change behind a symbolic link makes no event.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long nothing needs to happen before the directory is looked at all the same.
///
/// Unit: milliseconds.
const POLL: u16 = 10_000;

/// Room for one event of the longest name, many times over.
///
/// Unit: bytes.
const BUFFER: usize = 16 * 1024;

/// What the kernel tells about a directory.
pub(super) struct Changes {
    inotify: Inotify,
    watch: Option<WatchDescriptor>,
    being_written: BTreeSet<String>,
    /// Files that were written since the caller last asked.
    written: BTreeSet<String>,
    /// Files that were closed after writing, or renamed, since the last look.
    finished: BTreeSet<String>,
    /// Whether nothing happened for so long that every file is taken for finished.
    quiet: bool,
    /// Whether an event requires a read of the directory.
    due: bool,
    /// Whether the last look failed.
    has_failed: bool,
}

/// The caller hung up.
#[derive(Debug)]
pub(super) struct Stopped;

impl Changes {
    /// Watches a directory.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut inotify = Inotify::init()?;
        let watch = add(&mut inotify, path)?;
        Ok(Self {
            inotify,
            watch: Some(watch),
            being_written: BTreeSet::new(),
            written: BTreeSet::new(),
            finished: BTreeSet::new(),
            quiet: true,
            due: false,
            has_failed: false,
        })
    }

    /// Files that somebody is writing to now.
    pub(super) fn being_written(&self) -> &BTreeSet<String> {
        &self.being_written
    }

    /// Whether an empty file of this name may be one that was just opened to be written anew.
    ///
    /// Kernel: `do_truncate()` empties the file first and tells of it afterwards.
    pub(super) fn may_be_truncated(&self, name: &str) -> bool {
        !self.quiet && !self.finished.contains(name)
    }

    /// Forgets which files were finished before a look that has seen them.
    pub(super) fn looked(&mut self) {
        self.finished.clear();
        self.quiet = false;
    }

    /// Files that were written to since the last wait.
    pub(super) fn writes_since(&mut self) -> BTreeSet<String> {
        self.take_events();
        std::mem::take(&mut self.written)
    }

    /// Whether something happened that asks for a look.
    pub(super) fn is_due(&self) -> bool {
        self.due
    }

    /// What a wait does before it returns.
    #[cfg(test)]
    pub(super) fn forget_due(&mut self) {
        self.take_events();
        self.due = false;
        self.has_failed = false;
    }

    /// Takes note that the look failed: what was in its way may pass without an event.
    pub(super) fn set_failed(&mut self) {
        self.has_failed = true;
    }

    /// Asks for a look.
    pub(super) fn set_due(&mut self) {
        self.due = true;
    }

    /// Waits until the directory may have changed.
    pub(super) fn wait(&mut self, path: &Path, stop: &UnixStream) -> Result<(), Stopped> {
        loop {
            self.take_events();
            if self.watch.is_none() {
                self.watch_again(path);
                self.due |= self.watch.is_some();
            }
            if std::mem::take(&mut self.due) {
                self.written.clear();
                return Ok(());
            }
            let mut fds = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            // A directory that is gone or cannot be read is looked for more often.
            let timeout = if self.watch.is_some() && !self.has_failed {
                POLL
            } else {
                POLL / 20
            };
            let n_ready = match poll(&mut fds, PollTimeout::from(timeout)) {
                Ok(n_ready) => n_ready,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return Err(Stopped),
            };
            let [_, stopped] = &fds;
            if stopped.revents().is_some_and(|events| !events.is_empty()) {
                return Err(Stopped);
            }
            if n_ready == 0 {
                // Who has written nothing for so long is not writing.
                self.being_written.clear();
                self.quiet = true;
                self.due = true;
                self.watch_again(path);
            }
        }
    }

    /// Watches what the path leads to now, if that is another directory than before.
    fn watch_again(&mut self, path: &Path) {
        let old = self.watch.take();
        self.watch = add(&mut self.inotify, path).ok();
        if let Some(old) = old.filter(|old| self.watch.as_ref() != Some(old)) {
            self.unwatch(old);
        }
    }

    fn unwatch(&self, watch: WatchDescriptor) {
        if let Err(error) = self.inotify.watches().remove(watch) {
            tracing::debug!(%error, "cannot remove the watch of the manifest directory");
        }
    }

    /// Takes the events that are there.
    fn take_events(&mut self) {
        let mut buffer = [0; BUFFER];
        let mut is_gone = false;
        // An error is that there are none.
        while let Ok(events) = self.inotify.read_events(&mut buffer) {
            let mut n_events = 0_usize;
            for event in events {
                n_events += 1;
                let mask = event.mask;
                if mask.contains(EventMask::Q_OVERFLOW) {
                    self.being_written.clear();
                    self.quiet = true;
                    self.due = true;
                }
                if mask
                    .intersects(EventMask::IGNORED | EventMask::MOVE_SELF | EventMask::DELETE_SELF)
                {
                    is_gone = true;
                    self.due = true;
                }
                let Some(name) = event.name.and_then(std::ffi::OsStr::to_str) else {
                    continue;
                };
                if mask.contains(EventMask::MODIFY) {
                    self.being_written.insert(name.to_owned());
                    self.written.insert(name.to_owned());
                } else if mask.contains(EventMask::CREATE) {
                    // A file that is made is closed later; a link or a linked file never is.
                    self.due = true;
                } else {
                    self.being_written.remove(name);
                    self.finished.insert(name.to_owned());
                    self.due = true;
                }
            }
            if n_events == 0 {
                break;
            }
        }
        if is_gone && let Some(watch) = self.watch.take() {
            // A directory that was moved is still watched by this descriptor, and no longer ours.
            self.unwatch(watch);
            self.being_written.clear();
        }
    }
}

fn add(inotify: &mut Inotify, path: &Path) -> io::Result<WatchDescriptor> {
    inotify.watches().add(
        path,
        WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR,
    )
}
