//! How is a request answered, and over which connection?
//!
//! Invariants: a request either has a successful answer or is a [`Failure`]; nothing waits for ever; a
//! request that is accepted and not answered is sent over a new connection as well, and a slow peer is not
//! asked twice for long.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response, header};
use kube::Client;
use kube::client::Body;
use tokio::time::{Instant, timeout, timeout_at};

use super::client::{ApiServer, ConnectError};
use super::failure::Failure;
use super::timing::Timing;

/// How often credentials are read again while they do not serve.
const REREAD: Duration = Duration::from_secs(10);

/// The connection to an API server.
pub(super) struct Link {
    server: ApiServer,
    timing: Timing,
    client: Arc<Mutex<Client>>,
    /// When the client was made; locked while the next one is made.
    made: Arc<tokio::sync::Mutex<Instant>>,
}

impl Link {
    /// Prepares to ask a server; nothing is sent yet.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(super) async fn new(server: ApiServer, timing: Timing) -> Result<Self, ConnectError> {
        let client = Arc::new(Mutex::new(server.client(&timing).await?));
        Ok(Self {
            server,
            timing,
            client,
            made: Arc::new(tokio::sync::Mutex::new(Instant::now())),
        })
    }

    /// The time limits.
    pub(super) fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Asks for something and returns the answer if it is a success.
    pub(super) async fn get(&self, url: &str) -> Result<Response<Body>, Failure> {
        let patience = self.timing.answer;
        let until = Instant::now() + patience;
        let mut first = std::pin::pin!(self.send(url));
        let answer = match timeout(self.timing.head, &mut first).await {
            Ok(answer) => answer?,
            Err(_elapsed) => self.get_elsewhere(url, first, until).await?,
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(Failure::of(answer, self.timing.piece).await)
    }

    /// Goes on waiting for the first answer, and asks over new connections meanwhile, one at a time.
    async fn get_elsewhere(
        &self,
        url: &str,
        mut first: Pin<&mut impl Future<Output = Result<Response<Body>, Failure>>>,
        until: Instant,
    ) -> Result<Response<Body>, Failure> {
        tracing::debug!(url, "no answer yet, opening another connection");
        while Instant::now() < until {
            let turn = (Instant::now() + self.timing.head).min(until);
            let second = async {
                self.renew(self.timing.head / 2).await;
                self.send(url).await
            };
            tokio::select! {
                answer = &mut first => return answer,
                answer = timeout_at(turn, second) => if let Ok(Ok(answer)) = answer {
                    return Ok(answer);
                }
            }
            // A connection that is refused is not tried again at once.
            if let Ok(answer) = timeout_at(turn, &mut first).await {
                return answer;
            }
        }
        Err(Failure::Silence(self.timing.answer))
    }

    async fn send(&self, url: &str) -> Result<Response<Body>, Failure> {
        let request = Request::get(url)
            .header(header::ACCEPT, "application/json")
            .header(
                header::USER_AGENT,
                concat!("proxy-daemon/", env!("CARGO_PKG_VERSION")),
            )
            .body(Body::empty())
            .map_err(|error| Failure::Connection(Box::new(kube::Error::HttpError(error))))?;
        let client = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        client
            .send(request)
            .await
            .map_err(|error| Failure::Connection(Box::new(error)))
    }

    /// Reads addresses and credentials again, because what we have does not serve: they may have been
    /// rotated.
    pub(super) async fn reread(&self) {
        self.renew(REREAD).await;
    }

    /// Makes new connections for what is asked from now on, unless that was done so short a time ago.
    /// What is being answered goes on over the old ones.
    async fn renew(&self, age: Duration) {
        // Another task is making one.
        let Ok(mut made) = Arc::clone(&self.made).try_lock_owned() else {
            return;
        };
        if made.elapsed() < age {
            return;
        }
        *made = Instant::now();
        let (server, timing) = (self.server.clone(), self.timing.clone());
        let current = Arc::clone(&self.client);
        // A credential plugin that hangs is started once, however often we come here.
        let making = tokio::spawn(async move {
            match server.client(&timing).await {
                Ok(client) => {
                    *current.lock().unwrap_or_else(PoisonError::into_inner) = client;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot read the credentials again, keeping the connections to the API server");
                }
            }
            drop(made);
        });
        if let Err(error) = making.await {
            tracing::debug!(%error, "cannot open new connections to the API server");
        }
    }
}
