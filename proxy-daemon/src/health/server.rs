//! Which paths are answered, and to whom?

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get};
use axum::{Extension, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::bounded;
use super::metrics;
use super::places::{Place, Places};
use super::{Answer, Health};
use crate::datapath::Opener;
use crate::debug::{DebugState, DumpQuery, ExplainQuery, Output};
use crate::sys::Clock;

/// Pause between two attempts to listen on an address. Spec: HZ-8.
const REBIND: Duration = Duration::from_secs(5);
/// How long the sync thread may take to answer: it may be busy with a large sync.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a large page waits for others that are being made or read: each takes the memory of the cluster.
const TURN: Duration = Duration::from_secs(3);

const TEXT: &str = "text/plain; charset=utf-8";

/// Asks the sync thread for its state.
pub type DebugHandler = Arc<dyn Fn(oneshot::Sender<DebugState>) + Send + Sync>;

#[derive(Clone)]
struct Shared {
    health: Arc<Health>,
    clock: Arc<dyn Clock>,
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Answers on an address for as long as the process runs; one that is taken is tried again (HZ-8).
///
/// # Errors
/// [`BindError`] if the address cannot be bound and `hard_fail` asks to end then.
pub async fn serve(
    address: SocketAddr,
    router: Router,
    hard_fail: bool,
) -> Result<Infallible, BindError> {
    loop {
        match bounded::bind(address) {
            Ok(listener) => {
                return Ok(bounded::answer_all(listener, router, Places::default()).await);
            }
            Err(source) if hard_fail => return Err(BindError { address, source }),
            Err(error) => {
                tracing::error!(%address, %error, "cannot listen, will retry");
            }
        }
        tokio::time::sleep(REBIND).await;
    }
}

/// `/healthz` and `/livez`. Spec: HZ-1.
pub fn healthz_router(health: Arc<Health>, clock: Arc<dyn Clock>) -> Router {
    let healthz = |State(s): State<Shared>| async move { probe(&s.health.healthz(&*s.clock)) };
    let livez = |State(s): State<Shared>| async move { probe(&s.health.livez(&*s.clock)) };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .with_state(Shared { health, clock })
}

/// The node-local server: `/proxyMode`, `/healthz`, `/metrics` and `/debug`.
pub fn local_router(
    datapath: Arc<Opener>,
    health: Arc<Health>,
    clock: Arc<dyn Clock>,
    handler: &DebugHandler,
) -> Router {
    let sync = |State(s): State<Shared>| async move {
        let body = format!("{:#}\n", s.health.report(&*s.clock));
        answer(StatusCode::OK, "application/json", body)
    };
    let forwarding = debug_route(handler, |state, query: DumpQuery| {
        let content_type = match query.output {
            Output::Text => TEXT,
            Output::Json => "application/json",
        };
        answer(StatusCode::OK, content_type, state.dump(query))
    });
    let kind = datapath.kind();
    let rules = debug_route(handler, move |state, _: NoQuery| {
        text(kind.rules(state.v4.as_ref(), state.v6.as_ref()))
    });
    let diagnostics = debug_route(handler, |state, _: NoQuery| text(state.diagnostics()));
    let explain = debug_route(handler, |state, query: ExplainQuery| {
        match state.explain(&query) {
            Ok(explanation) => text(explanation),
            Err(error) => plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    });
    let mode = kind.mode();
    let scrape = move |State(s): State<Shared>| async move {
        let page = s.health.metrics(kind, datapath.figures());
        answer(StatusCode::OK, metrics::CONTENT_TYPE, page)
    };
    let debug = Router::new()
        .route("/debug/sync", get(sync))
        .route("/debug/forwarding", forwarding)
        .route("/debug/rules", rules)
        .route("/debug/diagnostics", diagnostics)
        .route("/debug/explain", explain)
        .route_layer(middleware::from_fn(only_loopback))
        .route("/metrics", get(scrape))
        .with_state(Shared { health, clock });
    Router::new()
        .route(
            "/proxyMode",
            get(move || async move { text(mode.to_owned()) }),
        )
        .route("/healthz", get(|| async { text("ok".to_owned()) }))
        .merge(debug)
}

async fn only_loopback(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if peer.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    let refusal = "answered on loopback only\n".to_owned();
    plain(StatusCode::FORBIDDEN, refusal)
}

/// A query without fields.
#[derive(Deserialize)]
struct NoQuery {}

/// Answers a query from the sync thread's state.
fn debug_route<Q: DeserializeOwned + Send + 'static>(
    handler: &DebugHandler,
    show: impl Fn(&DebugState, Q) -> Response + Clone + Send + Sync + 'static,
) -> MethodRouter<Shared> {
    let handler = Arc::clone(handler);
    get(
        move |Extension(place): Extension<Arc<Place>>, RawQuery(query): RawQuery| async move {
            let query = match serde_urlencoded::from_str(&query.unwrap_or_default()) {
                Ok(query) => query,
                Err(error) => return plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
            };
            let turn = tokio::time::timeout(TURN, place.become_large()).await;
            if turn.is_err() {
                let refusal = "busy with other pages of /debug, ask again in a second\n";
                let refusal = plain(StatusCode::SERVICE_UNAVAILABLE, refusal.to_owned());
                return ([(header::RETRY_AFTER, "1")], refusal).into_response();
            }
            let (sender, receiver) = oneshot::channel();
            handler(sender);
            let state = match tokio::time::timeout(ANSWER, receiver).await {
                Ok(Ok(state)) => state,
                Ok(Err(_)) => {
                    let refusal =
                        "busy: the sync thread has too many requests to answer, or ended\n";
                    return plain(StatusCode::SERVICE_UNAVAILABLE, refusal.to_owned());
                }
                Err(_) => {
                    let refusal = "the sync thread does not answer\n".to_owned();
                    return plain(StatusCode::SERVICE_UNAVAILABLE, refusal);
                }
            };
            // Rendering takes long in a large cluster, and must not delay `/livez` (HZ-9). The place is
            // taken until it ends, whether or not the client waits for it.
            let render = move || (show(&state, query), place).0;
            let rendered = tokio::task::spawn_blocking(render).await;
            rendered.unwrap_or_else(|error| {
                plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
            })
        },
    )
}

fn probe(probe: &Answer) -> Response {
    let status = if probe.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer(status, "application/json", probe.body.to_string())
}

fn text(body: String) -> Response {
    plain(StatusCode::OK, body)
}

fn plain(status: StatusCode, body: String) -> Response {
    answer(status, TEXT, body)
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt as _;

    use super::*;
    use crate::sys::SystemClock;

    #[tokio::test]
    async fn hz_9_a_large_page_beside_two_others_is_put_off() {
        let places = Places::default();
        let peer = "127.0.0.1:1".parse().unwrap();
        let place = || Arc::new(places.take(peer, peer).0);
        let held = [place(), place()];
        for place in &held {
            place.become_large().await;
        }
        let handler: DebugHandler = Arc::new(|sender| drop(sender.send(DebugState::default())));
        let page = debug_route(&handler, |_, _: NoQuery| text("page".to_owned()));
        let health = Arc::new(Health::new(Duration::ZERO, true));
        let clock = Arc::new(SystemClock);
        let router = Router::new().route("/", page);
        let router = router.with_state(Shared { health, clock });
        let ask = || {
            let mut request = Request::new(Body::empty());
            request.extensions_mut().insert(place());
            router.clone().oneshot(request)
        };
        let refused = ask().await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
        drop(held);
        assert_eq!(ask().await.unwrap().status(), StatusCode::OK);
    }
}
