//! What does the server do wrong, when, and how often?
//!
//! Invariants: faults are taken in the order in which they were set, the first that fits; what was asked is recorded whether or not
//! it was answered.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_daemon::watch::ObjectKind;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A list, or the first page of one.
    List,
    /// A further page of a list.
    Page,
    /// A watch from a version on.
    Watch,
    /// A watch that begins with a list.
    StreamingList,
    /// A list of one object, for its version.
    Check,
}

/// A fault of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status instead of an answer, perhaps with `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// No answer at all; the connection stays open.
    Withhold,
    /// The answer begins so late.
    Late(Duration),
    /// The connection breaks after so many bytes of the answer.
    Cut(usize),
    /// The answer comes in pieces of so many bytes, with a pause after each.
    Slow(usize, Duration),
    /// This instead of the answer, with status 200.
    Instead(String),
    /// This before the answer.
    Before(String),
    /// A watch is accepted and then silent, as if the peer were gone.
    Silent,
    /// A watch begins with an event of type ERROR and this code.
    ErrorEvent(u16),
    /// A watch ends after one bookmark.
    OneBookmark,
    /// This status and message instead of an answer.
    Says(u16, String),
}

/// What happens to a watch from a version that the server has not reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ahead {
    /// It is refused with 504, as where the server waits for its cache.
    #[default]
    Refused,
    /// It is accepted, and events and bookmarks carry the versions that there are.
    Accepted,
    /// It is accepted and silent until it ends, as with the API server's cache.
    Silent,
}

/// How the server treats streaming lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streaming {
    /// It has them.
    #[default]
    On,
    /// It knows them and refuses with 422, as servers before 1.32 do.
    Refused,
    /// It ignores the parameter, as servers before 1.27 do.
    Ignored,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The query, decoded.
    pub query: BTreeMap<String, String>,
    /// The kind, if it was about one of ours.
    pub kind: Option<ObjectKind>,
    /// What was asked for, if it was a list or a watch.
    pub ask: Option<RequestKind>,
}

#[derive(Debug, Default)]
pub(super) struct Script {
    /// Kind and request (any if `None`), the fault, and how often.
    faults: Vec<(Option<ObjectKind>, Option<RequestKind>, Fault, u32)>,
    pub(super) streaming: Streaming,
    pub(super) ahead: Ahead,
    /// Kinds that the server does not have.
    pub(super) absent: Vec<(ObjectKind, String)>,
    pub(super) requests: Vec<Request>,
    /// Events that were posted.
    pub(super) events: Vec<serde_json::Value>,
    /// Continue tokens from before this number have expired.
    pub(super) tokens_from: u64,
    /// How often a bookmark is sent on every watch.
    pub(super) bookmark_every: Option<Duration>,
}

impl Script {
    pub(super) fn add(
        &mut self,
        kind: Option<ObjectKind>,
        ask: Option<RequestKind>,
        fault: Fault,
        times: u32,
    ) {
        self.faults.push((kind, ask, fault, times));
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    /// The fault of the next answer.
    pub(super) fn take(&mut self, kind: ObjectKind, ask: RequestKind) -> Option<Fault> {
        let at = self.faults.iter().position(|(of, on, _, times)| {
            *times > 0 && of.is_none_or(|of| of == kind) && on.is_none_or(|on| on == ask)
        })?;
        let (_, _, fault, times) = &mut self.faults[at];
        let fault = fault.clone();
        if *times != u32::MAX {
            *times -= 1;
        }
        if *times == 0 {
            self.faults.remove(at);
        }
        Some(fault)
    }
}
