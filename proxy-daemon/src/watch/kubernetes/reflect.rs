//! How does one kind in the store stay equal to what the API server has?
//!
//! Invariants: the version moves only past what the store has taken in; a list replaces what was there
//! by difference, so that unchanged objects are not touched (LIFE-4); nothing is removed unless a
//! complete list lacks it; whatever happens, the store keeps its last good state and we ask again.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use tokio::time::{Instant, timeout_at};

use super::backoff::{Backoff, Timing, random_within};
use super::client::{Failure, get};
use super::lines::Lines;
use super::page;
use super::report::Reports;
use super::resource::Resource;
use crate::diagnostics::About;
use crate::model::Diagnostic;
use crate::model::from_k8s::wire::{Event, Object};
use crate::model::from_k8s::{Decoder, ObjectKey, ObjectKind, Value};
use crate::watch::{Shared, Store};

/// The largest page that is read.
///
/// Unit: bytes.
const MAX_PAGE: usize = 1024 * 1024 * 1024;

/// A watch that ends sooner than this counts as a failure.
const HASTY: Duration = Duration::from_secs(1);

/// What all kinds have in common.
pub(super) struct Context<'a> {
    pub(super) client: &'a Client,
    pub(super) shared: &'a Shared,
    /// One for all kinds, so that they share names.
    pub(super) decoder: &'a Mutex<Decoder>,
    pub(super) timing: &'a Timing,
    pub(super) node: &'a str,
}

/// Follows one kind.
pub(super) struct Reflector<'a> {
    context: &'a Context<'a>,
    resource: Resource,
    /// Where the next watch continues; `None` asks for a list.
    version: Option<String>,
    /// How the next list is asked for.
    style: ListStyle,
    /// Whether anything came since the last failure.
    has_progress: bool,
    /// Whether the store was up to date when the last answer broke off.
    is_watching: bool,
    /// How often in a row an answer could not be read.
    n_garbled: u32,
    /// How often in a row a streaming list did not come to its end.
    n_broken_streams: u32,
    reports: Reports,
}

/// How a list is asked for; each is the way out if the one before it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListStyle {
    /// As the beginning of a watch.
    Streaming,
    /// Page by page.
    Pages,
    /// In one piece, once.
    Whole,
}

/// What ended as it should.
enum Ended {
    /// A list was read to its end.
    List,
    /// The server ended a watch.
    Watch,
}

/// What was read and is not in the store yet.
#[derive(Default)]
struct Batch {
    changes: Vec<(ObjectKey, Value)>,
    /// The names of a list as far as it was read; `None` outside lists.
    seen: Option<BTreeSet<ObjectKey>>,
    /// What the list calls objects without a usable name.
    unnamed: BTreeSet<String>,
    /// Whether the list in `seen` is complete.
    is_complete: bool,
    version: Option<String>,
    has_bookmarks: bool,
}

impl<'a> Reflector<'a> {
    /// Follows the objects of a kind.
    pub(super) fn new(context: &'a Context<'a>, kind: ObjectKind) -> Self {
        let resource = Resource::of(kind, context.node);
        Self {
            context,
            reports: Reports::new(resource.plural),
            resource,
            version: None,
            style: ListStyle::Streaming,
            has_progress: false,
            is_watching: false,
            n_garbled: 0,
            n_broken_streams: 0,
        }
    }

    /// Lists and watches for ever.
    pub(super) async fn follow(mut self) -> Infallible {
        let timing = self.context.timing;
        let mut backoff = Backoff::new(timing.first_wait);
        loop {
            let began = Instant::now();
            self.has_progress = false;
            self.is_watching = false;
            let result = match self.version.take() {
                Some(version) => {
                    let url = self.resource.watch(&version, self.watch_seconds());
                    self.version = Some(version);
                    self.watch(&url, None).await
                }
                None if self.style == ListStyle::Streaming => {
                    let url = self.resource.streaming_list(self.watch_seconds());
                    self.watch(&url, Some(BTreeSet::new())).await
                }
                None => self.list().await,
            };
            let lasted = self.has_progress || began.elapsed() >= HASTY;
            if lasted {
                backoff.reset();
            }
            let wait = match result {
                Ok(Ended::List) => Duration::ZERO,
                Ok(Ended::Watch) if lasted => Duration::ZERO,
                Ok(Ended::Watch) => backoff.next(timing.longest_wait),
                Err(failure) => self.mend(&failure, &mut backoff),
            };
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    fn watch_seconds(&self) -> u64 {
        random_within(self.context.timing.watch).as_secs().max(1)
    }

    /// Decides what to do after a failure, and how long to wait before it.
    fn mend(&mut self, failure: &Failure, backoff: &mut Backoff) -> Duration {
        let timing = self.context.timing;
        let is_streaming = self.version.is_none() && self.style == ListStyle::Streaming;
        match failure {
            Failure::Gone => {
                self.reports.note(failure);
                // A token of a page that ran out: the next list comes in one piece.
                if self.version.take().is_none() && self.style == ListStyle::Pages {
                    self.style = ListStyle::Whole;
                }
                if self.has_progress {
                    Duration::ZERO
                } else {
                    backoff.next(timing.longest_wait)
                }
            }
            Failure::Refused {
                status,
                retry_after,
                message,
            } => {
                let wait = self.refused(failure, *status, message, backoff);
                let asked = retry_after.unwrap_or_default().min(timing.absent_wait);
                wait.max(asked)
            }
            Failure::Garbled(_) => {
                self.reports.failure(failure);
                self.n_garbled += 1;
                // Perhaps one object cannot be read: a list reads each for itself.
                if self.n_garbled >= 2 {
                    self.version = None;
                    self.style = ListStyle::Pages;
                }
                backoff.next(timing.longest_wait)
            }
            Failure::Connection(_) | Failure::Silence(_) | Failure::Cut => {
                // A server that ignores what it does not know never ends a streaming list.
                if is_streaming && matches!(failure, Failure::Silence(_)) {
                    self.reports.note(failure);
                    self.style = ListStyle::Pages;
                    return Duration::ZERO;
                }
                if is_streaming {
                    self.n_broken_streams += 1;
                    if self.n_broken_streams >= 3 {
                        self.style = ListStyle::Pages;
                    }
                }
                // Watches break now and then; only if the next one fails is there something to tell.
                if self.is_watching {
                    self.reports.note(failure);
                } else {
                    self.reports.failure(failure);
                }
                backoff.next(timing.longest_wait)
            }
        }
    }

    /// The same for an error of the server.
    fn refused(
        &mut self,
        failure: &Failure,
        status: StatusCode,
        message: &str,
        backoff: &mut Backoff,
    ) -> Duration {
        let timing = self.context.timing;
        let is_optional = self.resource.kind == ObjectKind::ServiceCidr;
        let is_busy = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
        let is_streaming = self.version.is_none() && self.style == ListStyle::Streaming;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.reports.failure(failure);
                backoff.next(if is_optional {
                    timing.absent_wait
                } else {
                    timing.denied_wait
                })
            }
            StatusCode::NOT_FOUND => {
                self.version = None;
                if self.resource.older_version() {
                    return Duration::ZERO;
                }
                self.reports.failure(failure);
                if is_optional {
                    timing.absent_wait
                } else {
                    backoff.next(timing.longest_wait)
                }
            }
            _ if is_streaming && !is_busy => {
                self.reports.note(failure);
                self.style = ListStyle::Pages;
                Duration::ZERO
            }
            _ => {
                // A server that was restored from a backup has not reached our version yet.
                if !is_busy || message.contains("Too large resource version") {
                    self.version = None;
                }
                self.reports.failure(failure);
                backoff.next(timing.longest_wait)
            }
        }
    }

    /// Reads a list page by page; what it holds is put in the store page by page.
    async fn list(&mut self) -> Result<Ended, Failure> {
        let mut batch = Batch {
            seen: Some(BTreeSet::new()),
            ..Batch::default()
        };
        let mut continue_token = None;
        loop {
            let url = self
                .resource
                .list(continue_token.as_deref(), self.style != ListStyle::Whole);
            let patience = self.context.timing.answer;
            let mut body = get(self.context.client, &url, patience).await?.into_body();
            let mut text = Vec::new();
            while let Some(data) = next_data(&mut body, Instant::now() + patience, patience).await?
            {
                if text.len() + data.len() > MAX_PAGE {
                    return Err(Failure::Garbled("the list is too large".to_owned()));
                }
                text.extend_from_slice(&data);
            }
            let page = {
                let mut decoder = self.decoder();
                page::read(&text, |object| match object {
                    Ok(object) => self.put(&mut decoder, object, &mut batch),
                    Err(error) => self.unreadable(&error, &mut batch),
                })
                .map_err(Failure::Garbled)?
            };
            continue_token = page.continue_token;
            if continue_token.is_none() {
                batch.version = Some(page.version);
                batch.is_complete = true;
            }
            self.flush(&mut batch);
            if continue_token.is_none() {
                self.style = ListStyle::Pages;
                return Ok(Ended::List);
            }
        }
    }

    /// Follows a watch until it ends; with `seen` it begins with a list.
    async fn watch(
        &mut self,
        url: &str,
        seen: Option<BTreeSet<ObjectKey>>,
    ) -> Result<Ended, Failure> {
        let timing = self.context.timing;
        let deadline = Instant::now() + timing.watch.1 + timing.slack;
        let mut body = get(self.context.client, url, timing.answer)
            .await?
            .into_body();
        if seen.is_none() {
            self.is_watching = true;
            self.reports.success();
        }
        let mut lines = Lines::default();
        let mut batch = Batch {
            seen,
            ..Batch::default()
        };
        loop {
            let patience = if batch.seen.is_some() {
                timing.stream
            } else if batch.has_bookmarks {
                timing.silence
            } else {
                timing.watch.1 + timing.slack
            };
            let until = deadline.min(Instant::now() + patience);
            let Some(data) = next_data(&mut body, until, patience).await? else {
                return if batch.seen.is_some() {
                    Err(Failure::Cut)
                } else {
                    Ok(Ended::Watch)
                };
            };
            let read = {
                let mut decoder = self.decoder();
                lines.take(&data, |line| self.event(&mut decoder, line, &mut batch))
            };
            // What came before a bad line counts.
            self.flush(&mut batch);
            read?;
            self.has_progress = true;
            if lines.n_overlong > 0 {
                self.unreadable("it is larger than any object may be", &mut batch);
                lines.n_overlong = 0;
            }
        }
    }

    fn decoder(&self) -> std::sync::MutexGuard<'a, Decoder> {
        let context = self.context;
        context
            .decoder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in one line of a watch.
    fn event(&self, decoder: &mut Decoder, line: &[u8], batch: &mut Batch) -> Result<(), Failure> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let event: Event<'_> =
            serde_json::from_slice(line).map_err(|error| Failure::Garbled(error.to_string()))?;
        let kind = event.kind.value().map_or("", AsRef::as_ref);
        let Some(object) = event.object.value() else {
            return Err(Failure::Garbled(format!(
                "an event {kind:.20?} without object"
            )));
        };
        match kind {
            "ADDED" | "MODIFIED" => self.put(decoder, object, batch),
            "DELETED" => match decoder.key(self.resource.kind, object) {
                Ok(key) => {
                    if matches!(&key, ObjectKey::Node(name) if name.as_ref() == self.context.node) {
                        tracing::warn!("our Node was deleted; what it said last stays in force");
                    }
                    self.about(&key, Vec::new());
                    batch.changes.push((key, Value::None));
                }
                Err(fault) => self.about_unnamed(fault.object, Vec::new(), batch),
            },
            "BOOKMARK" => batch.has_bookmarks = true,
            "ERROR" => return Err(error_event(object)),
            other => return Err(Failure::Garbled(format!("an event {other:.20?}"))),
        }
        let metadata = object.metadata.value();
        if let Some(version) = metadata.and_then(|m| m.resource_version.value()) {
            batch.version = Some(version.as_ref().to_owned());
        }
        let ends_list = kind == "BOOKMARK"
            && metadata
                .and_then(|m| m.annotations.value())
                .and_then(|annotations| annotations.initial_events_end.value())
                .is_some_and(|value| value == "true");
        if ends_list && batch.seen.is_some() {
            batch.is_complete = true;
        }
        Ok(())
    }

    /// Takes in an object.
    fn put(&self, decoder: &mut Decoder, object: &Object<'_>, batch: &mut Batch) {
        let read = decoder.decode(self.resource.kind, object);
        let Some(key) = read.key else {
            for diagnostic in read.diagnostics {
                self.about_unnamed(diagnostic.object.clone(), vec![diagnostic], batch);
            }
            return;
        };
        // The server was asked for our Node only; this is for servers that do not select.
        if let ObjectKey::Node(name) = &key
            && name.as_ref() != self.context.node
        {
            return;
        }
        self.about(&key, read.diagnostics);
        if let Some(seen) = &mut batch.seen {
            seen.insert(key.clone());
        }
        batch.changes.push((key, read.value));
    }

    fn about(&self, key: &ObjectKey, diagnostics: Vec<Diagnostic>) {
        self.context
            .shared
            .diagnostics()
            .set_object(key, diagnostics);
    }

    fn about_unnamed(&self, object: String, diagnostics: Vec<Diagnostic>, batch: &mut Batch) {
        if !diagnostics.is_empty() && batch.seen.is_some() {
            batch.unnamed.insert(object.clone());
        }
        let about = About::Unnamed(self.resource.kind, object);
        self.context.shared.diagnostics().set(about, diagnostics);
    }

    fn unreadable(&self, why: &str, batch: &mut Batch) {
        let object = format!("{} without a name", self.resource.kind);
        let diagnostic = Diagnostic {
            object: object.clone(),
            field: String::new(),
            message: format!("cannot be read and is ignored: {why}"),
        };
        self.about_unnamed(object, vec![diagnostic], batch);
    }

    /// Puts a batch in the store; a list that is complete also removes what it lacks.
    fn flush(&mut self, batch: &mut Batch) {
        let kind = self.resource.kind;
        let ends_list = std::mem::take(&mut batch.is_complete);
        if batch.changes.is_empty() && !ends_list {
            self.advance(batch);
            return;
        }
        let seen = ends_list.then(|| batch.seen.take().unwrap_or_default());
        let changes = std::mem::take(&mut batch.changes);
        let shared = self.context.shared;
        if let Some(seen) = &seen {
            let unnamed = std::mem::take(&mut batch.unnamed);
            shared.diagnostics().keep_listed(kind, seen, &unnamed);
        }
        let gone = shared.update(|store| {
            let gone = seen.map_or_else(Vec::new, |seen| names_without(store, kind, &seen));
            for key in &gone {
                store.put(key, Value::None);
            }
            for (key, value) in changes {
                store.put(&key, value);
            }
            if ends_list {
                store.set_listed(kind);
            }
            gone
        });
        if ends_list {
            tracing::debug!(kind = kind.name(), n_gone = gone.len(), "list is complete");
        }
        self.advance(batch);
    }

    /// The store has taken in everything up to here.
    fn advance(&mut self, batch: &mut Batch) {
        // Inside a list, versions of objects are older than that of the list.
        if batch.seen.is_some() {
            return;
        }
        if let Some(version) = batch.version.take() {
            self.version = Some(version);
            self.is_watching = true;
            self.n_garbled = 0;
            self.n_broken_streams = 0;
            self.reports.success();
        }
    }
}

/// The names in the store that a complete list lacks. The Node stays (HZ-5).
fn names_without(store: &Store, kind: ObjectKind, seen: &BTreeSet<ObjectKey>) -> Vec<ObjectKey> {
    let names: Vec<_> = match kind {
        ObjectKind::Service => store
            .service_names()
            .map(|name| ObjectKey::Service(name.clone()))
            .collect(),
        ObjectKind::EndpointSlice => store
            .slice_names()
            .map(|name| ObjectKey::EndpointSlice(name.clone()))
            .collect(),
        ObjectKind::Node => Vec::new(),
        ObjectKind::ServiceCidr => store
            .service_cidr_names()
            .map(|name| ObjectKey::ServiceCidr(name.clone()))
            .collect(),
    };
    names
        .into_iter()
        .filter(|key| !seen.contains(key))
        .collect()
}

fn error_event(status: &Object<'_>) -> Failure {
    let code = status.code.value().copied().unwrap_or(500);
    if code == 410 {
        return Failure::Gone;
    }
    let code = u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok());
    let message = status.message.value().map_or("", AsRef::as_ref);
    Failure::Refused {
        status: code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        retry_after: None,
        message: message
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect(),
    }
}

/// The next piece of an answer; `None` at its end.
async fn next_data(
    body: &mut Body,
    until: Instant,
    patience: Duration,
) -> Result<Option<impl Deref<Target = [u8]> + use<>>, Failure> {
    loop {
        let frame = timeout_at(until, body.frame())
            .await
            .map_err(|_elapsed| Failure::Silence(patience))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(Failure::Connection(Box::new(error))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
