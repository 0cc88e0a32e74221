//! How long do we wait for an answer, and before a request?
//!
//! Invariants: whatever the API server does, 10 s after it is well again the store is up to date
//! (LIFE-3); so the waits that can follow each other stay below that in sum.

use std::time::Duration;

use super::pace::Pace;

/// Times that tests make shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The shortest and the longest time that the server is asked to keep a watch open.
    pub watch: (Duration, Duration),
    /// The same over HTTP/1, where a connection cannot be asked whether its peer is alive: the server
    /// ends the watch itself, after a bookmark, and that it does is the sign of life.
    pub plain_watch: (Duration, Duration),
    /// How much longer than asked a watch may last.
    pub slack: Duration,
    /// How long a watch may send nothing. API servers send a bookmark a minute.
    pub silence: Duration,
    /// How often an HTTP/2 peer that sends nothing is pinged, and how long it may take to answer.
    ///
    /// kube-proxy takes 30 s and 15 s.
    pub ping: (Duration, Duration),
    /// How long an answer may take to begin before it is asked for over a new connection as well.
    pub head: Duration,
    /// How long an answer may take to begin at all: a busy server has requests wait.
    pub answer: Duration,
    /// How long a list may pause between two pieces.
    pub piece: Duration,
    /// The longest wait because the server asks for one with `Retry-After`.
    pub asked_wait: Duration,
    /// The wait for an optional kind that the server does not have or does not let us read. Spec: REJ-7.
    pub absent_wait: Duration,
    /// How often lists of one kind are asked for.
    pub lists: Pace,
    /// How often watches of one kind are asked for.
    pub watches: Pace,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            watch: (seconds(300), seconds(600)),
            plain_watch: (seconds(14), seconds(18)),
            slack: seconds(7),
            silence: seconds(100),
            ping: (seconds(10), seconds(15)),
            head: seconds(5),
            answer: seconds(30),
            piece: seconds(5),
            asked_wait: seconds(8),
            absent_wait: seconds(60),
            lists: Pace {
                burst: 3,
                first: Duration::from_millis(250),
                longest: seconds(6),
                cooling: seconds(5),
            },
            watches: Pace {
                burst: 5,
                first: Duration::from_millis(100),
                longest: seconds(4),
                cooling: seconds(3),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_3_the_times_as_shipped_keep_what_is_promised() {
        let timing = Timing::default();
        let (soon, silence) = (Duration::from_secs(10), Duration::from_secs(30));
        for wait in [
            timing.asked_wait,
            timing.lists.longest,
            timing.watches.longest,
        ] {
            assert!(wait < soon, "{wait:?}");
        }
        assert!(timing.head * 2 <= soon);
        assert!(timing.ping.0 + timing.ping.1 <= silence);
        assert!(timing.plain_watch.1 + timing.slack <= silence);
        // Or every watch would end in a pause.
        assert!(timing.watches.cooling < timing.plain_watch.0);
    }
}
