//! How does one kind in the store stay equal to what the API server has?
//!
//! Invariants: the version moves only past what the store has taken in; a list replaces what was there
//! by difference, so that unchanged objects are not touched (LIFE-4); nothing is removed unless a
//! complete list lacks it; whatever happens, the store keeps its last good state and we ask again, but
//! neither lists nor watches more often than [`Pace`](super::Pace) allows; failures in a row make the waits
//! longer, but never longer than its longest.

mod read;
mod take;

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::failure::Failure;
use super::link::Link;
use super::pace::{RateLimiter, random_within};
use super::report::Reports;
use super::resource::Resource;
use crate::model::from_k8s::{Decoder, ObjectKind};
use crate::watch::Shared;

/// The longest wait after a lost connection or an error of the server, which all nodes of a cluster meet at
/// one moment; it doubles with each further failure in a row.
const RECONNECT: Duration = Duration::from_millis(100);

/// The parts that all kinds share.
pub(super) struct Context<'a> {
    pub(super) link: &'a Link,
    pub(super) shared: &'a Shared,
    /// One for all kinds, so that they share names.
    pub(super) decoder: &'a Mutex<Decoder>,
    pub(super) node: &'a str,
}

/// Follows one kind.
pub(super) struct Reflector<'a> {
    context: &'a Context<'a>,
    resource: Resource,
    /// Where the next watch continues; `None` asks for a list.
    version: Option<String>,
    /// The newest version that we had, also while a list is asked for.
    newest: Option<String>,
    /// Whether `version` may be one that the server never reached, because its state was replaced.
    is_doubtful: bool,
    /// Whether the last answer came over HTTP/2, where a silent peer is pinged.
    is_multiplexed: bool,
    /// How the next list is asked for.
    style: ListStyle,
    progress: Progress,
    /// Whether a list was ever complete.
    was_listed: bool,
    /// How rarely an optional kind is asked for that is not there or stays refused.
    absent_wait: Duration,
    lists: RateLimiter,
    watches: RateLimiter,
    /// How many requests in a row failed before they brought the store up to date.
    n_failed: u32,
    /// How often in a row an answer could not be read.
    n_garbled: u32,
    /// How often in a row a streaming list did not come to its end.
    n_broken_streams: u32,
    reports: Reports,
}

/// How far the last request came, however it ended.
#[derive(Debug, Default)]
struct Progress {
    /// Whether anything came that could be read.
    has_data: bool,
    /// Whether the store was up to date then.
    is_watching: bool,
    /// Whether there was a successful answer.
    is_answered: bool,
}

/// How a list is asked for; each is the fallback of the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListStyle {
    /// As the beginning of a watch.
    Streaming,
    /// Page by page.
    Pages,
    /// In one piece, once.
    Whole,
}

impl<'a> Reflector<'a> {
    /// Follows the objects of a kind.
    pub(super) fn new(context: &'a Context<'a>, kind: ObjectKind) -> Self {
        let resource = Resource::of(kind, context.node);
        let (timing, now) = (context.link.timing(), Instant::now());
        Self {
            context,
            reports: Reports::new(resource.plural),
            resource,
            version: None,
            newest: None,
            is_doubtful: false,
            is_multiplexed: false,
            style: ListStyle::Streaming,
            progress: Progress::default(),
            was_listed: false,
            absent_wait: Duration::ZERO,
            lists: RateLimiter::new(&timing.lists, now),
            watches: RateLimiter::new(&timing.watches, now),
            n_failed: 0,
            n_garbled: 0,
            n_broken_streams: 0,
        }
    }

    /// Lists and watches for ever.
    pub(super) async fn follow(mut self) -> Infallible {
        let mut wait = Duration::ZERO;
        loop {
            let wait_now = wait.max(self.pace());
            if !wait_now.is_zero() {
                tokio::time::sleep(wait_now).await;
            }
            self.progress = Progress::default();
            wait = match self.ask().await {
                Ok(()) => {
                    self.n_failed = 0;
                    Duration::ZERO
                }
                Err(failure) => {
                    self.is_doubtful = true;
                    let n_before = if self.progress.is_watching {
                        0
                    } else {
                        self.n_failed
                    };
                    self.n_failed = n_before.saturating_add(1);
                    let wait = self.handle(&failure);
                    self.reread(&failure).await;
                    wait
                }
            };
        }
    }

    /// Asks for what is needed next.
    async fn ask(&mut self) -> Result<(), Failure> {
        let Some(version) = self.version.clone() else {
            return match self.style {
                ListStyle::Streaming => self.watch(None).await,
                ListStyle::Pages | ListStyle::Whole => self.list().await,
            };
        };
        if self.is_doubtful {
            self.check(&version).await?;
        }
        self.watch(Some(&version)).await
    }

    /// How long the next request has to wait because of those before it.
    fn pace(&mut self) -> Duration {
        let now = Instant::now();
        let is_list = self.version.is_none();
        let paced = if is_list {
            &mut self.lists
        } else {
            &mut self.watches
        };
        let wait = paced.next(now);
        if paced.is_exhausted() {
            self.reports.throttled(now);
        }
        wait
    }

    /// Reads addresses and credentials again if the server refuses them or cannot be reached.
    async fn reread(&self, failure: &Failure) {
        let is_denied = matches!(failure, Failure::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED);
        let is_cut_off = matches!(failure, Failure::Connection(_)) && !self.progress.is_answered;
        if is_denied || is_cut_off {
            let link = self.context.link;
            if tokio::time::timeout(link.timing().head, link.reread())
                .await
                .is_err()
            {
                tracing::debug!("reading the credentials again took too long");
            }
        }
    }

    /// Decides what to do after a failure, and how long to wait before it, if longer than the pace says.
    fn handle(&mut self, failure: &Failure) -> Duration {
        let timing = self.context.link.timing();
        let is_streaming = self.version.is_none() && self.style == ListStyle::Streaming;
        match failure {
            Failure::Gone => {
                self.reports.note(failure);
                // A token of a page that ran out: the next list comes in one piece.
                if self.version.take().is_none() && self.style == ListStyle::Pages {
                    self.style = ListStyle::Whole;
                }
            }
            // Our version belongs to a history that the server no longer has.
            Failure::Rewound { .. } => {
                self.reports.rewound(failure);
                self.version = None;
                self.newest = None;
            }
            Failure::Refused {
                status,
                retry_after,
                message,
            } => {
                let wait = self.refused(failure, *status, message);
                let longest = timing.asked_wait;
                return wait.max(match *retry_after {
                    // Nobody can ask us to stay away for longer than LIFE-3 allows.
                    Some(asked) if asked > longest => random_within((longest * 3 / 4, longest)),
                    Some(asked) => asked,
                    None if is_busy(*status) => self.backoff(),
                    None => Duration::ZERO,
                });
            }
            Failure::Garbled(_) => {
                self.reports.failure(failure);
                self.n_garbled += 1;
                // Perhaps one object cannot be read: a list reads each for itself.
                if self.n_garbled >= 2 {
                    self.version = None;
                    self.style = ListStyle::Pages;
                }
            }
            Failure::PlainWatch => self.list_in_pages(failure),
            // A server that ignores what it does not know never ends a streaming list.
            Failure::Silence(_) if is_streaming && self.progress.is_answered => {
                self.list_in_pages(failure);
            }
            Failure::Connection(_) | Failure::Silence(_) | Failure::Cut => {
                if is_streaming {
                    self.n_broken_streams += 1;
                    if self.n_broken_streams >= 3 {
                        self.style = ListStyle::Pages;
                    }
                }
                // Watches break now and then; a warning is logged only if the next one fails too.
                if self.progress.is_watching {
                    self.reports.note(failure);
                } else {
                    self.reports.failure(failure);
                }
                return self.backoff();
            }
        }
        Duration::ZERO
    }

    /// A wait after failures in a row, spread over the nodes.
    fn backoff(&self) -> Duration {
        let doubled = RECONNECT * 2_u32.pow(self.n_failed.saturating_sub(1).min(10));
        let longest = doubled.min(self.context.link.timing().watches.longest);
        random_within((Duration::ZERO, longest))
    }

    fn list_in_pages(&mut self, failure: &Failure) {
        self.reports.note(failure);
        self.style = ListStyle::Pages;
    }

    /// The same for an error of the server.
    fn refused(&mut self, failure: &Failure, status: StatusCode, message: &str) -> Duration {
        let is_busy = is_busy(status);
        let is_denied = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
        let is_absent = status == StatusCode::NOT_FOUND;
        let is_streaming = self.version.is_none() && self.style == ListStyle::Streaming;
        if is_absent {
            self.version = None;
            if self.resource.older_version() {
                return Duration::ZERO;
            }
        } else if is_streaming && !is_busy && !is_denied {
            self.list_in_pages(failure);
            return Duration::ZERO;
        } else if !is_busy && !is_denied || message.contains("Too large resource version") {
            // A server that was restored from a backup has not reached our version yet.
            self.version = None;
        }
        self.reports.failure(failure);
        // A kind that was listed before is asked for again soon: a server that starts does not know all kinds.
        let is_optional = self.resource.kind == ObjectKind::ServiceCidr && !self.was_listed;
        if is_optional && (is_absent || is_denied) {
            // A server that starts may refuse what it permits soon.
            if is_absent || self.lists.is_exhausted() {
                self.absent_wait = self.context.link.timing().absent_wait;
            }
            random_within((self.absent_wait * 3 / 4, self.absent_wait))
        } else {
            Duration::ZERO
        }
    }
}

fn is_busy(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}
