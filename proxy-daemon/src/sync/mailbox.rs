//! How is the sync thread woken, and by whom?
//!
//! Invariants: mail never queues up, it is merged (a change is a change, the newest addresses count);
//! whoever writes never waits for the thread.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

use super::View;
use crate::sys::Clock;

/// A look at the sync thread's state, taken on that thread between two syncs.
pub type Question = Box<dyn FnOnce(&View<'_>) + Send>;

/// Where others leave word for the sync thread.
#[derive(Default)]
pub struct Mailbox {
    mail: Mutex<Mail>,
    bell: Condvar,
}

/// What arrived since the thread last looked.
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

    /// Asks the thread for a look at its state.
    pub fn ask(&self, question: Question) {
        self.write(|mail| mail.questions.push(question));
    }

    /// Ends the thread after the sync that it is in.
    pub fn stop(&self) {
        self.write(|mail| mail.stop = true);
    }

    /// Waits for mail or for the deadline; `None` if the thread is to end.
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
