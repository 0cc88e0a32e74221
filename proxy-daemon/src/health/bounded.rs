//! How many connections, and for how long, can clients hold?
//!
//! Invariants: connections have places ([`Places`]) and a new one always gets one, so that accepting
//! never stops; each carries one request, whose head must come within [`HEAD`], and is over within
//! [`LIFETIME`]. So clients that say nothing, talk slowly or do not read cost neither the descriptors
//! that syncs need nor the answers that others wait for (HZ-9).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tower::ServiceExt as _;

use super::places::{Place, Places};
use crate::sys::{Clock as _, Limiter, SystemClock};

/// Longest time until the head of a request is complete.
const HEAD: Duration = Duration::from_secs(3);
/// Largest head of a request, in bytes.
const HEAD_SIZE: usize = 16 << 10;
const LIFETIME: Duration = Duration::from_secs(15);
/// How many connections the kernel keeps for us until they are accepted; it may have a lower limit.
const BACKLOG: u32 = 4096;
/// Pause in accepting when the process has no descriptor or memory left.
const PAUSE: Duration = Duration::from_millis(50);
/// How many connections are closed before that is logged, and how often it is logged.
const MANY: u64 = 100;
const NEWS: Duration = Duration::from_secs(60);

/// Listens on an address.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers all who connect. The places may be those of other listeners, too.
pub(super) async fn answer_all(
    listener: TcpListener,
    router: Router,
    places: Places,
) -> Infallible {
    // They limit what is logged.
    let [mut cut, mut shortage] = [Limiter::new(1, NEWS); 2];
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // It is gone already.
                let Ok(own) = stream.local_addr() else {
                    continue;
                };
                let (place, goes) = places.take(peer, own);
                tokio::spawn(answer(stream, peer, router.clone(), place, goes));
                // So that one that has asked already is answered before others can take its place, and
                // one that was cut is gone before the next comes.
                tokio::task::yield_now().await;
            }
            Err(error) if is_shortage(&error) => {
                places.give_way();
                if shortage.allows(SystemClock.now()) {
                    tracing::warn!(
                        %error,
                        "cannot accept connections, will retry; raise the limit of open files, or find what uses them"
                    );
                }
                tokio::time::sleep(PAUSE).await;
            }
            // Of this one connection.
            Err(_) => {}
        }
        let is_due = |n_cut| n_cut >= MANY && cut.allows(SystemClock.now());
        if let Some(n_cut) = places.take_cut(is_due) {
            tracing::warn!(
                n_cut,
                "closed connections, as there were too many; find who opens them (ss -tn)"
            );
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let shortages = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS];
    errno.is_some_and(|errno| shortages.contains(&errno))
}

/// Answers one request, unless something ends the connection before.
async fn answer(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    place: Place,
    goes: oneshot::Receiver<()>,
) {
    let place = Arc::new(place);
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        place.asks();
        let extensions = request.extensions_mut();
        extensions.insert(ConnectInfo(peer));
        extensions.insert(Arc::clone(&place));
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_SIZE)
        .half_close(true)
        // The client that keeps a connection for later holds a place meanwhile.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Errors of the client are answered by hyper.
        _ended = connection => {}
        _cut = goes => {}
        () = tokio::time::sleep(LIFETIME) => {}
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    fn server() -> SocketAddr {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "yes" }));
        tokio::spawn(answer_all(listener, router, Places::default()));
        address
    }

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn hz_9_a_connection_carries_one_request() {
        let address = server();
        let answer = ask(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("yes"), "{answer}");
    }

    #[tokio::test]
    async fn hz_9_one_who_says_nothing_or_too_much_is_cut_off() {
        let address = server();
        let started = Instant::now();
        assert_eq!(ask(address, b"").await, "");
        assert!(started.elapsed() >= HEAD);
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(2 * HEAD_SIZE));
        let answer = tokio::time::timeout(HEAD * 10, ask(address, long.as_bytes())).await;
        assert!(answer.unwrap().starts_with("HTTP/1.1 431"));
    }

    #[tokio::test]
    async fn hz_9_the_half_that_is_open_is_answered() {
        let mut stream = TcpStream::connect(server()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("yes"), "{answer}");
    }
}
