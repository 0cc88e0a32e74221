//! How does the server answer over HTTP?
//!
//! Source: "Kubernetes API Concepts" and KEP-3157.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream, StreamExt};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use proxy_daemon::watch::ObjectKind;
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;

use super::State;
use super::cluster::{View, group_of, line};
use super::script::{Ahead, Fault, Request, RequestKind, Streaming};
use super::selector::Selector;
use super::single::{other, single, status, status_body};

type Piece = io::Result<Bytes>;
type Pieces = std::pin::Pin<Box<dyn Stream<Item = Piece> + Send>>;

/// Accepts connections for ever; while the generation is odd there is no listener.
pub(super) async fn accept(
    state: Arc<State>,
    listener: TcpListener,
    bind: impl Fn(Option<SocketAddr>) -> io::Result<TcpListener>,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
) {
    let mut generation = state.generation.subscribe();
    let mut open = Some(listener);
    loop {
        if *generation.borrow_and_update() % 2 == 1 {
            open = None;
            generation.changed().await.expect("the state is ours");
            continue;
        }
        let listener = match open.take() {
            Some(listener) => listener,
            None => bind(Some(address)).expect("the address is still ours"),
        };
        listener.set_nonblocking(true).expect("a listener");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        loop {
            tokio::select! {
                changed = generation.changed() => {
                    changed.expect("the state is ours");
                    if *generation.borrow_and_update() % 2 == 1 {
                        break;
                    }
                }
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        stream.set_nodelay(true).expect("a socket");
                        tokio::spawn(connection(Arc::clone(&state), stream, tls.clone()));
                    }
                }
            }
        }
    }
}

async fn connection(state: Arc<State>, stream: tokio::net::TcpStream, tls: Option<TlsAcceptor>) {
    let mut generation = state.generation.subscribe();
    let router = axum::Router::new().fallback(move |method, uri, headers, body| {
        answer(Arc::clone(&state), method, uri, headers, body)
    });
    let service = TowerToHyperService::new(router);
    // Whether a connection ended well is the client's business.
    let connection = async {
        let Some(tls) = tls else {
            let stream = TokioIo::new(stream);
            let http = hyper::server::conn::http1::Builder::new();
            drop(http.serve_connection(stream, service).await);
            return;
        };
        let Ok(stream) = tls.accept(stream).await else {
            return;
        };
        let has_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        if has_http2 {
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(http.serve_connection(stream, service).await);
        } else {
            let http = hyper::server::conn::http1::Builder::new();
            drop(http.serve_connection(stream, service).await);
        }
    };
    tokio::select! {
        () = connection => {}
        _ = generation.changed() => {}
    }
}

/// Where a request leads.
pub(super) struct Target {
    pub(super) kind: ObjectKind,
    /// The version of the API in the path.
    version: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

fn target(path: &str) -> Option<Target> {
    let parts: Vec<_> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => {
            (Some((*namespace).to_owned()), rest)
        }
        rest => (None, rest),
    };
    let (plural, name) = match rest {
        [plural] => (plural, None),
        [plural, name] => (plural, Some((*name).to_owned())),
        _ => return None,
    };
    let group = group.replace("networking.k8s.io/v1beta1", "networking.k8s.io/v1");
    let kind = ObjectKind::ALL
        .into_iter()
        .find(|kind| group_of(*kind) == (group.as_str(), plural))?;
    let version = if path.contains("/v1beta1/") {
        "v1beta1"
    } else {
        "v1"
    };
    Some(Target {
        kind,
        version: version.to_owned(),
        namespace,
        name,
    })
}

async fn answer(
    state: Arc<State>,
    method: Method,
    uri: Uri,
    _headers: HeaderMap,
    body: Bytes,
) -> Response {
    let query = parse_query(uri.query().unwrap_or_default());
    let target = target(uri.path());
    let ask = match &target {
        Some(target) if target.name.is_none() && method == Method::GET => Some(ask_of(&query)),
        _ => None,
    };
    let (fault, streaming, is_absent) = {
        let mut script = state.script.lock().unwrap();
        script.requests.push(Request {
            method: method.to_string(),
            path: uri.path().to_owned(),
            query: query.clone(),
            kind: target.as_ref().map(|target| target.kind),
            ask,
        });
        let is_absent = target.as_ref().is_some_and(|target| {
            script
                .absent
                .contains(&(target.kind, target.version.clone()))
        });
        let fault = match (&target, ask) {
            (Some(target), Some(ask)) if !is_absent => script.take(target.kind, ask),
            _ => None,
        };
        (fault, script.streaming, is_absent)
    };
    state.recorded.send_replace(());
    let Some(target) = target.filter(|_| !is_absent) else {
        return other(&state, &method, uri.path(), &body);
    };
    let Some(ask) = ask else {
        return single(&state, &method, &target, &body);
    };
    match &fault {
        Some(Fault::Status(code, retry_after)) => {
            let mut response = status(*code, "this is what the script says");
            if let Some(seconds) = retry_after {
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, (*seconds).into());
            }
            return response;
        }
        Some(Fault::Says(code, message)) => return status(*code, message),
        Some(Fault::Withhold) => std::future::pending().await,
        Some(Fault::Late(time)) => sleep_until(Instant::now() + *time).await,
        Some(Fault::Instead(text)) => return text.clone().into_response(),
        _ => {}
    }
    if ask == RequestKind::StreamingList && streaming == Streaming::Refused {
        return status(
            422,
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        );
    }
    let Some(view) = view(&target, &query) else {
        return status(400, "a selector cannot be read");
    };
    let pieces = match pieces(&state, &target, ask, view, &query, fault.as_ref()) {
        Ok(pieces) => pieces,
        Err(response) => return *response,
    };
    let body = Body::from_stream(spoil(pieces, fault));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// What a query asks for.
fn ask_of(query: &BTreeMap<String, String>) -> RequestKind {
    let is = |key: &str| query.get(key).is_some_and(|v| v == "true" || v == "1");
    if is("watch") && is("sendInitialEvents") {
        RequestKind::StreamingList
    } else if is("watch") {
        RequestKind::Watch
    } else if query.contains_key("continue") {
        RequestKind::Page
    } else if query.get("limit").is_some_and(|limit| limit == "1") {
        RequestKind::Check
    } else {
        RequestKind::List
    }
}

/// The answer, piece by piece.
fn pieces(
    state: &Arc<State>,
    target: &Target,
    ask: RequestKind,
    view: View,
    query: &BTreeMap<String, String>,
    fault: Option<&Fault>,
) -> Result<Pieces, Box<Response>> {
    if matches!(
        ask,
        RequestKind::List | RequestKind::Page | RequestKind::Check
    ) {
        let text = list(state, target, &view, query)?;
        return Ok(Box::pin(stream::once(async { Ok(text) })));
    }
    let mut watch = Watch::new(state, target.kind, view, query)?;
    match fault {
        Some(Fault::ErrorEvent(code)) => {
            let error = line("ERROR", &status_body(*code, "this is what the script says"));
            watch.queue = [error].into();
            watch.until = Instant::now();
        }
        Some(Fault::Silent) => watch.course = Course::Silent,
        Some(Fault::OneBookmark) => {
            watch.push_bookmark(false);
            watch.until = Instant::now();
        }
        _ => {}
    }
    Ok(Box::pin(stream::unfold(watch, Watch::next)))
}

/// Makes an answer go wrong on its way.
fn spoil(pieces: Pieces, fault: Option<Fault>) -> Pieces {
    match fault {
        Some(Fault::Cut(n_bytes)) => Box::pin(
            pieces
                .scan(Some(n_bytes), |left, piece| {
                    let Some(n_left) = *left else {
                        return std::future::ready(None);
                    };
                    std::future::ready(Some(match piece {
                        Ok(piece) if piece.len() < n_left => {
                            *left = Some(n_left - piece.len());
                            vec![Ok(piece)]
                        }
                        Ok(piece) => {
                            *left = None;
                            vec![
                                Ok(piece.slice(..n_left)),
                                Err(io::ErrorKind::ConnectionReset.into()),
                            ]
                        }
                        Err(error) => vec![Err(error)],
                    }))
                })
                .flat_map(|pieces| {
                    stream::iter(pieces).then(|piece| async {
                        // What was sent before the cut must have left.
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        piece
                    })
                }),
        ),
        Some(Fault::Slow(n_bytes, pause)) => Box::pin(
            pieces
                .flat_map(move |piece| {
                    let piece = piece.unwrap_or_default();
                    let parts: Vec<_> = piece
                        .chunks(n_bytes.max(1))
                        .map(Bytes::copy_from_slice)
                        .collect();
                    stream::iter(parts)
                })
                .then(move |part| async move {
                    tokio::time::sleep(pause).await;
                    Ok(part)
                }),
        ),
        Some(Fault::Before(text)) => {
            Box::pin(stream::once(async { Ok(Bytes::from(text)) }).chain(pieces))
        }
        _ => pieces,
    }
}

fn view(target: &Target, query: &BTreeMap<String, String>) -> Option<View> {
    let selector = |key: &str| Selector::parse(query.get(key).map_or("", String::as_str));
    Some(View {
        namespace: target.namespace.clone(),
        labels: selector("labelSelector")?,
        fields: selector("fieldSelector")?,
    })
}

fn list(
    state: &State,
    target: &Target,
    view: &View,
    query: &BTreeMap<String, String>,
) -> Result<Bytes, Box<Response>> {
    let limit = query.get("limit").and_then(|limit| limit.parse().ok());
    let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let tokens_from = state.script.lock().unwrap().tokens_from;
    let cluster = state.cluster.lock().unwrap();
    let (version, after) = match query
        .get("continue")
        .and_then(|token| token.split_once('|'))
    {
        Some((version, after)) => {
            let version = version.parse().unwrap_or(0);
            if version < tokens_from {
                return Err(status(410, "the continue token has expired").into());
            }
            (version, Some(after.to_owned()))
        }
        None => (cluster.version(), None),
    };
    let (objects, more) = cluster.list(target.kind, view, after.as_deref(), limit);
    drop(cluster);
    let (api_version, _) = group_of(target.kind);
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(last) = more {
        metadata["continue"] = json!(format!("{version}|{last}"));
    }
    let mut text = Vec::with_capacity(objects.iter().map(Bytes::len).sum::<usize>() + 512);
    text.extend_from_slice(
        format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[",
            target.kind
        )
        .as_bytes(),
    );
    for (n, object) in objects.iter().enumerate() {
        if n > 0 {
            text.push(b',');
        }
        text.extend_from_slice(object);
    }
    text.extend_from_slice(b"]}");
    Ok(text.into())
}

/// The course of a watch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    /// It is sent.
    Sent,
    /// Nothing comes, as if the peer were gone.
    Silent,
    /// It was asked from a version that does not exist yet: nothing comes, and it ends in time.
    Ahead,
}

/// A watch that is being sent.
struct Watch {
    state: Arc<State>,
    kind: ObjectKind,
    view: View,
    /// The newest version that was sent.
    at: u64,
    queue: VecDeque<Bytes>,
    until: Instant,
    next_bookmark: Option<Instant>,
    /// Whether a bookmark is due as soon as everything before it was sent.
    owes_bookmark: bool,
    course: Course,
    /// Of which generation of connections it is: a later one has cut it already.
    generation: u64,
    wants_bookmarks: bool,
    changed: tokio::sync::watch::Receiver<()>,
    bookmark: tokio::sync::watch::Receiver<()>,
}

impl Watch {
    fn new(
        state: &Arc<State>,
        kind: ObjectKind,
        view: View,
        query: &BTreeMap<String, String>,
    ) -> Result<Self, Box<Response>> {
        let seconds = query
            .get("timeoutSeconds")
            .and_then(|s| s.parse().ok())
            .unwrap_or(1800);
        let asked = query.get("resourceVersion").map_or("", String::as_str);
        // Listening begins before looking, so that nothing is missed between.
        let (changed, bookmark) = (state.changed.subscribe(), state.bookmark.subscribe());
        let (every, streaming, ahead) = {
            let script = state.script.lock().unwrap();
            (script.bookmark_every, script.streaming, script.ahead)
        };
        let mut watch = Self {
            state: Arc::clone(state),
            kind,
            view,
            at: 0,
            queue: VecDeque::new(),
            until: Instant::now() + Duration::from_secs(seconds),
            next_bookmark: every.map(|every| Instant::now() + every),
            owes_bookmark: false,
            course: Course::Sent,
            generation: *state.generation.borrow(),
            wants_bookmarks: query
                .get("allowWatchBookmarks")
                .is_some_and(|v| v == "true"),
            changed,
            bookmark,
        };
        let cluster = state.cluster.lock().unwrap();
        if asked.is_empty() || asked == "0" {
            watch.at = cluster.version();
            let (objects, _) = cluster.list(kind, &watch.view, None, usize::MAX);
            // One piece for many lines, as a busy socket would have it.
            let mut text = Vec::new();
            for object in objects {
                text.extend_from_slice(&line("ADDED", &object));
                if text.len() > 64 * 1024 {
                    watch.queue.push_back(std::mem::take(&mut text).into());
                }
            }
            watch.queue.push_back(text.into());
            if query.contains_key("sendInitialEvents") && streaming == Streaming::On {
                watch.push_bookmark(true);
            }
        } else {
            let Ok(at) = asked.parse::<u64>() else {
                return Err(status(400, "the resourceVersion cannot be read").into());
            };
            watch.at = at;
            if at > cluster.version() {
                match ahead {
                    Ahead::Refused => return Err(status(504, "Too large resource version").into()),
                    Ahead::Accepted => watch.at = cluster.version(),
                    Ahead::Silent => watch.course = Course::Ahead,
                }
            }
        }
        drop(cluster);
        Ok(watch)
    }

    fn push_bookmark(&mut self, ends_list: bool) {
        let (api_version, _) = group_of(self.kind);
        let mut object = json!({"kind": self.kind.name(), "apiVersion": api_version,
            "metadata": {"resourceVersion": self.at.to_string()}});
        if ends_list {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.queue
            .push_back(line("BOOKMARK", object.to_string().as_bytes()));
    }

    async fn next(mut self) -> Option<(Piece, Self)> {
        loop {
            if let Some(piece) = self.queue.pop_front() {
                return Some((Ok(piece), self));
            }
            if self.course == Course::Silent || self.generation != *self.state.generation.borrow() {
                std::future::pending::<()>().await;
            }
            if self.until <= Instant::now() {
                return None;
            }
            if self.course == Course::Ahead {
                sleep_until(self.until).await;
                return None;
            }
            let missed = {
                let cluster = self.state.cluster.lock().unwrap();
                let missed = cluster.since(self.kind, &self.view, self.at);
                self.at = cluster.version();
                missed
            };
            match missed {
                Some(lines) if !lines.is_empty() => {
                    self.queue.extend(lines);
                    continue;
                }
                Some(_) => {}
                None => {
                    let gone = status_body(410, "too old resource version");
                    self.queue.push_back(line("ERROR", &gone));
                    self.until = Instant::now();
                    continue;
                }
            }
            if std::mem::take(&mut self.owes_bookmark) {
                self.push_bookmark(false);
                continue;
            }
            let wake = self
                .next_bookmark
                .map_or(self.until, |at| at.min(self.until));
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                rung = self.bookmark.changed() => {
                    rung.ok()?;
                    self.owes_bookmark = self.wants_bookmarks;
                }
                () = sleep_until(wake) => {
                    let every = self.state.script.lock().unwrap().bookmark_every;
                    if self.next_bookmark.take_if(|at| *at <= Instant::now()).is_some() {
                        self.next_bookmark = every.map(|every| Instant::now() + every);
                        self.owes_bookmark = self.wants_bookmarks;
                    }
                }
            }
        }
    }
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// Undoes percent-encoding, and plus signs for spaces as Go writes them.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                let digits = std::str::from_utf8(&digits).unwrap_or("0");
                u8::from_str_radix(digits, 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
