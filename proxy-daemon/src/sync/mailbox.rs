//! How do other threads wake the sync thread?
//!
//! Invariants: messages are merged and never queue up (only the newest addresses count); a writer never waits
//! for the sync thread.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

use super::View;
use crate::sys::Clock;

/// A function that reads the sync thread's state, called on that thread between two syncs.
pub type Question = Box<dyn FnOnce(&View<'_>) + Send>;

/// Messages of other threads to the sync thread.
#[derive(Default)]
pub struct Mailbox {
    mail: Mutex<Mail>,
    bell: Condvar,
}

/// What arrived since the thread last woke up.
#[derive(Default)]
pub(super) struct Mail {
    /// When the first of the changes was announced.
    pub(super) changed_since: Option<Instant>,
    pub(super) local_addresses: Option<BTreeSet<IpNet>>,
    pub(super) questions: Vec<Question>,
    stop: bool,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.changed_since.is_none() && self.local_addresses.is_none() && self.questions.is_empty()
    }
}

impl Mailbox {
    fn write(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.mail.lock().unwrap_or_else(PoisonError::into_inner));
        self.bell.notify_one();
    }

    /// The store changed.
    pub fn changed(&self, now: Instant) {
        self.write(|mail| mail.changed_since = mail.changed_since.or(Some(now)));
    }

    /// The node's addresses, all of them, each with the prefix of its network.
    pub fn set_local_addresses(&self, addresses: BTreeSet<IpNet>) {
        self.write(|mail| mail.local_addresses = Some(addresses));
    }

    /// Has the sync thread call this.
    pub fn ask(&self, question: Question) {
        self.write(|mail| mail.questions.push(question));
    }

    /// Stops the thread after the current sync.
    pub fn stop(&self) {
        self.write(|mail| mail.stop = true);
    }

    /// Waits for a message or for the deadline; `None` if the thread must stop.
    pub(super) fn wait(&self, deadline: Instant, clock: &dyn Clock) -> Option<Mail> {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if mail.stop {
                return None;
            }
            let now = clock.now();
            if !mail.is_empty() || now >= deadline {
                return Some(std::mem::take(&mut mail));
            }
            let left = deadline.saturating_duration_since(now);
            (mail, _) = self
                .bell
                .wait_timeout(mail, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
