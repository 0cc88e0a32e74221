//! Which files of the directory may have changed, and which are being written?
//!
//! Invariants: a file is due when it was closed after writing, made, renamed or removed, and not while it
//! is being written: from its first change until it is closed, renamed or removed. Every file is due at
//! first, after the directory was replaced or events were lost, and [`POLL`] after the last event or
//! with the first event after [`POLL`], because a change behind a symbolic link makes no event.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::time::Instant;

use super::directory::{TOKEN, is_manifest};

/// After so long every file is due, and after so long without an event no file is being written.
///
/// Unit: milliseconds.
const POLL: u16 = 10_000;

/// Room for one event of the longest name, many times over.
///
/// Unit: bytes.
const BUFFER: usize = 16 * 1024;

/// The link that the kubelet replaces when a mounted ConfigMap changes; the files are links through it.
const CONFIG_MAP: &str = "..data";

/// The kernel's events of a directory, by file.
pub(super) struct Changes {
    inotify: Inotify,
    watch: Option<WatchDescriptor>,
    being_written: BTreeSet<String>,
    /// Files that were written to since the last scan began.
    written: BTreeSet<String>,
    due: BTreeSet<String>,
    is_all_due: bool,
    /// When every file was last taken.
    all_taken_at: Instant,
}

/// The caller closed its end of `stop`.
#[derive(Debug)]
pub(super) struct Stopped;

impl Changes {
    /// Watches a directory.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut changes = Self {
            inotify: Inotify::init()?,
            watch: None,
            being_written: BTreeSet::new(),
            written: BTreeSet::new(),
            due: BTreeSet::new(),
            is_all_due: true,
            all_taken_at: Instant::now(),
        };
        changes.watch(path)?;
        Ok(changes)
    }

    /// Files that a process is writing to now.
    pub(super) fn being_written(&self) -> &BTreeSet<String> {
        &self.being_written
    }

    /// Files that were written to since the last scan began, also if they are closed by now.
    pub(super) fn written(&self) -> &BTreeSet<String> {
        &self.written
    }

    /// Makes a file due.
    pub(super) fn set_due(&mut self, name: &str) {
        self.due.insert(name.to_owned());
    }

    /// The token is about to be read: what is known of it by now needs no other scan.
    pub(super) fn take_token(&mut self) {
        self.take_events();
        self.due.remove(TOKEN);
        self.written.remove(TOKEN);
    }

    /// Takes the files that are due; `all` lists every file.
    ///
    /// The token stays due if it was replaced after [`Self::take_token`].
    pub(super) fn take_due(
        &mut self,
        all: impl FnOnce() -> io::Result<BTreeSet<String>>,
    ) -> io::Result<BTreeSet<String>> {
        self.take_events();
        self.written.retain(|name| name == TOKEN);
        if self.is_all_due {
            self.due.extend(all()?);
            self.is_all_due = false;
            self.all_taken_at = Instant::now();
        }
        let mut due = std::mem::take(&mut self.due);
        self.due.extend(due.take(TOKEN));
        // They are due again when they are closed.
        due.retain(|name| !self.being_written.contains(name));
        Ok(due)
    }

    /// Waits until a file is due, or for a short time if the directory could not be read.
    pub(super) fn wait(&mut self, has_failed: bool, stop: &UnixStream) -> Result<(), Stopped> {
        // A failure may pass without an event, and without a watch there are none.
        let (n_fds, timeout) = if has_failed || self.watch.is_none() {
            (1, POLL / 20)
        } else {
            (2, POLL)
        };
        loop {
            self.take_events();
            let is_due = self.is_all_due || !self.due.is_empty();
            if is_due && !has_failed {
                return Ok(());
            }
            let mut fds = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            ];
            let watched = fds.get_mut(..n_fds).unwrap_or_default();
            let n_ready = match poll(watched, PollTimeout::from(timeout)) {
                Ok(n_ready) => n_ready,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return Err(Stopped),
            };
            let [stopped, _] = &fds;
            if stopped.revents().is_some_and(|events| !events.is_empty()) {
                return Err(Stopped);
            }
            if n_ready == 0 {
                // A writer that has written nothing for so long has gone away.
                self.being_written.clear();
                self.is_all_due = true;
                return Ok(());
            }
        }
    }

    /// Watches the directory at the path; if that fails, as when the kernel has no more watches, it is polled.
    pub(super) fn watch_or_poll(&mut self, path: &Path) {
        if let Err(error) = self.watch(path) {
            self.unwatch();
            tracing::debug!(%error, "cannot watch the manifest directory, will poll it");
        }
    }

    /// Watches the directory at the path, unless it is the one that is watched already.
    pub(super) fn watch(&mut self, path: &Path) -> io::Result<()> {
        if self.watch.is_some() && !self.is_all_due {
            return Ok(());
        }
        let added = self.inotify.watches().add(
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
        );
        if added.as_ref().ok() != self.watch.as_ref() {
            self.unwatch();
        }
        self.watch = Some(added?);
        Ok(())
    }

    /// The directory is another one: it has to be watched anew, and every file is due.
    pub(super) fn unwatch(&mut self) {
        self.being_written.clear();
        self.is_all_due = true;
        if let Some(watch) = self.watch.take()
            && let Err(error) = self.inotify.watches().remove(watch)
        {
            tracing::debug!(%error, "cannot remove the watch of the manifest directory");
        }
    }

    /// Takes the events that are there; returns whether one of them makes a file due.
    pub(super) fn take_events(&mut self) -> bool {
        let mut buffer = [0; BUFFER];
        let mut is_replaced = false;
        let mut has_due = false;
        // An error says that there are none.
        while let Ok(events) = self.inotify.read_events(&mut buffer) {
            let mut n_events = 0_usize;
            for event in events {
                n_events += 1;
                let mask = event.mask;
                if mask.contains(EventMask::Q_OVERFLOW) {
                    self.being_written.clear();
                    self.is_all_due = true;
                    has_due = true;
                }
                if Some(&event.wd) != self.watch.as_ref() {
                    continue;
                }
                is_replaced |= mask.intersects(
                    EventMask::MOVE_SELF
                        | EventMask::DELETE_SELF
                        | EventMask::UNMOUNT
                        | EventMask::IGNORED,
                );
                let Some(name) = event.name.and_then(OsStr::to_str) else {
                    continue;
                };
                if name == CONFIG_MAP {
                    self.is_all_due = true;
                    has_due = true;
                } else if name == TOKEN || is_manifest(name) {
                    if mask.contains(EventMask::MODIFY) {
                        self.being_written.insert(name.to_owned());
                        self.written.insert(name.to_owned());
                        continue;
                    }
                    if !mask.contains(EventMask::CREATE) {
                        self.being_written.remove(name);
                    }
                    self.due.insert(name.to_owned());
                    has_due = true;
                }
            }
            if n_events == 0 {
                break;
            }
        }
        // In a busy directory no wait comes to its end.
        self.is_all_due |= self.all_taken_at.elapsed() >= Duration::from_millis(POLL.into());
        if is_replaced {
            self.unwatch();
        }
        has_due || is_replaced
    }
}
