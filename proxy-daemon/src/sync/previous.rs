//! When are the rules of previously used modes cleaned up?
//!
//! Invariants: after the first successful sync of the family, and not before (LIFE-9); on a thread of their
//! own, because the programs of other modes can hang and no sync needs them; a failed cleanup is retried with
//! the backoff of a failed sync.

use std::time::Duration;

use super::backoff::Backoff;
use super::family::guarded;
use crate::datapath::DatapathError;
use crate::net::IpFamily;
use crate::sys::{Clock as _, SystemClock};

type Retire = Box<dyn Fn() -> Result<(), DatapathError> + Send>;

/// A mode that may have been used before, which is opened only to clean up a family.
pub struct PreviousMode {
    name: &'static str,
    retire: Retire,
}

impl PreviousMode {
    /// A mode of this name, and how a family of it is cleaned up.
    pub fn new(
        name: &'static str,
        retire: impl Fn() -> Result<(), DatapathError> + Send + 'static,
    ) -> Self {
        Self {
            name,
            retire: Box::new(retire),
        }
    }

    /// Whether the cleanup succeeded or is not needed; logs a warning for the first failure.
    fn remove(&self, family: IpFamily, is_first: bool) -> bool {
        let (family, mode) = (family.name(), self.name);
        match guarded(&self.retire) {
            Ok(()) => {
                tracing::debug!(family, mode, "cleaned up previous mode");
                true
            }
            // Where a mode cannot work, nothing of it can have come to be.
            Err(error) if error.means_absent() => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(
                    family,
                    mode,
                    error,
                    "previous mode is not available on this node"
                );
                true
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                if is_first {
                    tracing::warn!(
                        family,
                        mode,
                        error,
                        "cannot clean up previous mode, will retry"
                    );
                } else {
                    tracing::debug!(
                        family,
                        mode,
                        error,
                        "still cannot clean up previous mode, will retry"
                    );
                }
                false
            }
        }
    }
}

/// Starts the cleanup of a family on a thread; to be called after its first successful sync.
pub(super) fn remove(family: IpFamily, of: Vec<PreviousMode>, longest: Duration) {
    if of.is_empty() {
        return;
    }
    let thread = std::thread::Builder::new().name("previous-modes".to_owned());
    let spawned = thread.spawn(move || remove_all(family, of, longest, &std::thread::sleep));
    if let Err(error) = spawned {
        tracing::error!(
            family = family.name(),
            %error,
            "cannot start the thread that cleans up previous modes; run proxy-daemon --cleanup before the next start"
        );
    }
}

/// Cleans up until all succeeded; the process exits without waiting for it.
fn remove_all(
    family: IpFamily,
    mut of: Vec<PreviousMode>,
    longest: Duration,
    pause: &dyn Fn(Duration),
) {
    let mut now = SystemClock.now();
    let mut backoff = Backoff::due(now);
    let mut is_first = true;
    loop {
        of.retain(|previous| !previous.remove(family, is_first));
        if of.is_empty() {
            return;
        }
        is_first = false;
        backoff = backoff.failed(now, longest);
        pause(backoff.at() - now);
        now = backoff.at();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    fn error(kind: std::io::ErrorKind, is_absent: bool) -> DatapathError {
        let (operation, source) = ("test", kind.into());
        if is_absent {
            DatapathError::Unusable {
                operation,
                advice: "none",
                source,
            }
        } else {
            DatapathError::Refused {
                operation,
                object: "test".to_owned(),
                source,
            }
        }
    }

    /// The pauses between so many failures, until the mode turns out to be absent.
    fn pauses(n_failures: usize) -> Vec<Duration> {
        let n_opened = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&n_opened);
        let previous = PreviousMode::new("test", move || {
            let mut n = counted.lock().unwrap();
            *n += 1;
            assert_ne!(*n, 2, "a bug, for the test");
            let is_absent = *n > n_failures;
            let kind = std::io::ErrorKind::NotFound;
            drop(n);
            Err(error(kind, is_absent))
        });
        let pauses = Mutex::new(Vec::new());
        remove_all(IpFamily::V4, vec![previous], PERIOD, &|pause| {
            n_opened.clear_poison();
            pauses.lock().unwrap().push(pause);
        });
        assert_eq!(*n_opened.lock().unwrap(), n_failures + 1);
        pauses.into_inner().unwrap()
    }

    #[test]
    fn life_9_what_cannot_be_removed_is_tried_ever_later() {
        assert!(pauses(0).is_empty());
        let pauses = pauses(20);
        assert_eq!(pauses.len(), 20);
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!(pauses[0], Duration::from_millis(100));
        assert_eq!(*pauses.last().unwrap(), PERIOD);
    }
}
