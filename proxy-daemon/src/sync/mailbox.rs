//! How do other threads wake the sync thread?
//!
//! Invariants: messages are merged and never queue up (only the newest addresses count, and questions are few); a
//! writer never waits for the sync thread.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

use crate::compile::Compiler;
use crate::sys::Clock;

/// A function that reads the forwarding states, called on the sync thread between two syncs; without a compiler
/// nothing was compiled yet.
pub type Question = Box<dyn FnOnce(Option<&Compiler>) + Send>;

/// How many questions wait at most while a sync takes its time.
const MAX_QUESTIONS: usize = 8;

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

    /// Has the sync thread call this; drops it if [`MAX_QUESTIONS`] wait already.
    pub fn ask(&self, question: Question) {
        self.write(|mail| {
            if mail.questions.len() < MAX_QUESTIONS {
                mail.questions.push(question);
            }
        });
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sys::SystemClock;

    #[test]
    fn questions_are_bounded_and_whoever_asks_one_too_many_hears_of_it_at_once() {
        let mailbox = Mailbox::default();
        let asked = Arc::new(());
        for _ in 0..100 {
            let asked = Arc::clone(&asked);
            mailbox.ask(Box::new(move |_| drop(asked)));
        }
        // All others are gone, and with them what they would answer through.
        assert_eq!(Arc::strong_count(&asked), 1 + MAX_QUESTIONS);
        let mail = mailbox.wait(SystemClock.now(), &SystemClock).unwrap();
        assert_eq!(mail.questions.len(), MAX_QUESTIONS);
        mailbox.ask(Box::new(|_| ()));
        let mail = mailbox.wait(SystemClock.now(), &SystemClock).unwrap();
        assert_eq!(mail.questions.len(), 1);
    }
}
