//! How is a list or a watch read?
//!
//! Invariants: an answer that pauses for too long is dropped; a list has a bounded number of pages.

use std::ops::Deref;
use std::time::Duration;

use http::Version;
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::{Instant, timeout_at};

use super::take::Batch;
use super::{ListStyle, Reflector};
use crate::watch::kubernetes::failure::Failure;
use crate::watch::kubernetes::lines::Lines;
use crate::watch::kubernetes::pace::random_within;
use crate::watch::kubernetes::page::{self, Page};
use crate::watch::kubernetes::version::is_older;

/// The largest page that is read.
///
/// Unit: bytes.
const MAX_PAGE: usize = 1024 * 1024 * 1024;

/// How many pages a list may have, and how many in a row without a new object.
const MAX_PAGES: (u32, u32) = (100_000, 10);

impl Reflector<'_> {
    /// Reads a list page by page; what it holds is put in the store page by page.
    pub(super) async fn list(&mut self) -> Result<(), Failure> {
        let mut batch = Batch::list();
        let mut continue_token = None;
        let (mut n_pages, mut n_empty) = (0, 0);
        loop {
            let is_paged = self.style != ListStyle::Whole;
            let url = self.resource.list(continue_token.as_deref(), is_paged);
            let text = self.read_page(&url).await?;
            let n_seen = batch
                .seen
                .as_ref()
                .map_or(0, std::collections::BTreeSet::len);
            let page = {
                let mut decoder = self.decoder();
                page::read(&text, |object| match object {
                    Ok(object) => self.put(&mut decoder, object, &mut batch),
                    Err(error) => self.unreadable(&error, &mut batch),
                })
                .map_err(Failure::Garbled)?
            };
            drop(text);
            let is_new = batch.seen.as_ref().is_some_and(|seen| seen.len() > n_seen);
            n_pages += 1;
            n_empty = if is_new { 0 } else { n_empty + 1 };
            continue_token = page.continue_token;
            if continue_token.is_none() {
                batch.version = Some(page.version);
                batch.is_complete = true;
            } else if n_pages >= MAX_PAGES.0 || n_empty >= MAX_PAGES.1 {
                return Err(Failure::Garbled("the list has no end".to_owned()));
            }
            self.flush(&mut batch);
            if continue_token.is_none() {
                self.style = ListStyle::Pages;
                return Ok(());
            }
        }
    }

    /// Asks whether the server's state is still that of which `known` is a version.
    ///
    /// A server whose state was replaced by an older one accepts a watch from a version that it has not
    /// reached, and sends nothing until it has. A list without a version is never older than what any
    /// server of the cluster knew before, and with one object it costs next to nothing.
    pub(super) async fn check(&mut self, known: &str) -> Result<(), Failure> {
        let text = self.read_page(&self.resource.newest()).await?;
        let Page { version, .. } = page::read(&text, |_| {}).map_err(Failure::Garbled)?;
        if is_older(&version, known) {
            return Err(Failure::Rewound {
                known: known.to_owned(),
                found: version,
            });
        }
        self.is_doubtful = false;
        Ok(())
    }

    async fn read_page(&mut self, url: &str) -> Result<Vec<u8>, Failure> {
        let link = self.context.link;
        let patience = link.timing().piece;
        let mut body = link.get(url).await?.into_body();
        self.progress.is_answered = true;
        let mut text = Vec::new();
        while let Some(data) = next_data(&mut body, Instant::now() + patience).await? {
            if text.len() + data.len() > MAX_PAGE {
                return Err(Failure::Garbled("the list is too large".to_owned()));
            }
            text.extend_from_slice(&data);
        }
        Ok(text)
    }

    /// Follows a watch from a version on until it ends; without one it begins with a list.
    pub(super) async fn watch(&mut self, version: Option<&str>) -> Result<(), Failure> {
        let link = self.context.link;
        let timing = link.timing();
        let range = match version {
            Some(_) if !self.is_multiplexed => timing.plain_watch,
            Some(_) | None => timing.watch,
        };
        let asked = random_within(range);
        let seconds = asked.as_secs().max(1);
        let (url, mut batch) = if let Some(version) = version {
            (self.resource.watch(version, seconds), Batch::default())
        } else {
            (self.resource.streaming_list(seconds), Batch::list())
        };
        let response = link.get(&url).await?;
        let mut deadline = Instant::now() + asked.max(Duration::from_secs(1)) + timing.slack;
        self.progress.is_answered = true;
        self.is_multiplexed = response.version() >= Version::HTTP_2;
        if version.is_some() {
            self.progress.is_watching = true;
            self.reports.success();
        }
        let mut body = response.into_body();
        let mut lines = Lines::default();
        loop {
            let is_list = batch.seen.is_some();
            let patience = if is_list {
                timing.piece
            } else {
                timing.silence
            };
            let until = deadline.min(Instant::now() + patience);
            let Some(data) = next_data(&mut body, until).await? else {
                if is_list {
                    return Err(Failure::Cut);
                }
                // The server sends a bookmark before it ends a watch: one that was silent may have been
                // asked from a version that does not exist any more.
                self.is_doubtful |= !self.progress.has_data;
                return Ok(());
            };
            let read = {
                let mut decoder = self.decoder();
                lines.take(&data, |line| self.event(&mut decoder, line, &mut batch))
            };
            // Lines before a bad one are kept.
            self.flush(&mut batch);
            read?;
            self.progress.has_data = true;
            if is_list && batch.seen.is_none() && !self.is_multiplexed {
                // The list was requested before we knew that the connection is HTTP/1, which has no pings.
                deadline = Instant::now() + random_within(timing.plain_watch);
            }
            if lines.n_overlong > 0 {
                self.unreadable("it is larger than any object may be", &mut batch);
                lines.n_overlong = 0;
            }
        }
    }
}

/// The next piece of an answer; `None` at its end.
async fn next_data(
    body: &mut Body,
    until: Instant,
) -> Result<Option<impl Deref<Target = [u8]> + use<>>, Failure> {
    let began = Instant::now();
    loop {
        let frame = timeout_at(until, body.frame())
            .await
            .map_err(|_elapsed| Failure::Silence(began.elapsed()))?;
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
