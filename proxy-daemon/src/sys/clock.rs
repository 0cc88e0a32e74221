//! What time is it?
//!
//! Invariants: the only place that asks the system, so that everything with a deadline can be tested.

use std::time::{Instant, SystemTime};

/// A source of time.
pub trait Clock: Send + Sync {
    /// The time that only goes forward.
    fn now(&self) -> Instant;
    /// The time of day.
    fn wall(&self) -> SystemTime;
}

/// The machine's own time.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}
