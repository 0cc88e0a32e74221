//! How do we speak HTTP with the API server?
//!
//! `kube` reads kubeconfigs, tokens and certificates; the connections are ours, so that a peer that is
//! gone is noticed in seconds. Invariants: a request either has a successful answer or is a
//! [`Failure`] that says what to do; nothing waits for ever.

use std::path::PathBuf;
use std::time::Duration;

use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ConfigExt};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower::ServiceExt;
use tower::util::MapErrLayer;

use crate::model::from_k8s::wire::Object;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an idle peer is trusted before the kernel asks it, how often, and how many times.
///
/// A cut is noticed after 20 s; kube-proxy's HTTP/2 pings take 45 s.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 2);

/// How much of a refusal is read.
///
/// Unit: bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// Where the API server is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiServer {
    /// A kubeconfig file; without it and without a URL, the in-cluster configuration holds.
    pub kubeconfig: Option<PathBuf>,
    /// The server's URL, stronger than the kubeconfig's. Source: `--master`. Spec: API-1.
    pub master: Option<String>,
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be read or understood.
    #[error("the kubeconfig {} cannot be used", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// There is no kubeconfig, and this is no pod.
    #[error("there is neither --kubeconfig nor --master nor an in-cluster configuration")]
    InCluster {
        /// Why not.
        source: Box<InClusterError>,
    },
    /// `--master` is no URL.
    #[error("--master={text} is no URL such as https://192.0.2.1:6443")]
    Master {
        /// What it is.
        text: String,
    },
    /// Certificates or credentials cannot be used.
    #[error("the credentials for {server} cannot be used")]
    Credentials {
        /// The server.
        server: Uri,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// Why a request had no successful answer, or an answer no good end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server answered with an error.
    #[error("the API server answers {status}: {message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
        /// What it says, quoted and cut.
        message: String,
    },
    /// The server no longer has the version that we continue from.
    #[error("the API server no longer has the version that the watch would continue from")]
    Gone,
    /// The connection could not be made or broke.
    #[error("the connection to the API server failed")]
    Connection(#[source] Box<kube::Error>),
    /// Nothing came for too long.
    #[error("the API server sent nothing for {0:?}")]
    Silence(Duration),
    /// The answer ended before it was complete.
    #[error("the API server's answer ended too early")]
    Cut,
    /// The answer is not what an API server sends.
    #[error("the API server's answer cannot be read: {0}")]
    Garbled(String),
}

impl ApiServer {
    /// Makes a client; nothing is sent yet.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(super) async fn client(&self) -> Result<Client, ConnectError> {
        let mut config = match (&self.kubeconfig, &self.master) {
            (Some(path), _) => read_kubeconfig(path).await?,
            (None, Some(_)) => kube::Config::new(Uri::default()),
            (None, None) => {
                kube::Config::incluster().map_err(|source| ConnectError::InCluster {
                    source: Box::new(source),
                })?
            }
        };
        if let Some(master) = &self.master {
            let has_tls = config.root_cert.is_some()
                || config.root_cert_file.is_some()
                || config.accept_invalid_certs
                || config.cluster_url.scheme() == Some(&http::uri::Scheme::HTTPS);
            config.cluster_url =
                parse_master(master, has_tls).ok_or_else(|| ConnectError::Master {
                    text: master.clone(),
                })?;
        }
        let server = config.cluster_url.clone();
        connect(&config).map_err(|source| ConnectError::Credentials {
            server,
            source: Box::new(source),
        })
    }
}

async fn read_kubeconfig(path: &std::path::Path) -> Result<kube::Config, ConnectError> {
    let fault = |source| ConnectError::Kubeconfig {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(fault)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(fault)
}

/// Compat: like client-go, a URL without a scheme is HTTPS if there is a reason to think so.
fn parse_master(text: &str, has_tls: bool) -> Option<Uri> {
    let text = text.trim();
    let has_scheme = text.contains("://");
    let text = text.strip_suffix('/').unwrap_or(text);
    let uri: Uri = if has_scheme {
        text.parse().ok()?
    } else {
        let scheme = if has_tls { "https" } else { "http" };
        format!("{scheme}://{text}").parse().ok()?
    };
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    (is_web && has_host).then_some(uri)
}

fn connect(config: &kube::Config) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    let (idle, interval, n_probes) = KEEPALIVE;
    connector.set_keepalive(Some(idle));
    connector.set_keepalive_interval(Some(interval));
    connector.set_keepalive_retries(Some(n_probes));
    connector.set_tcp_user_timeout(Some(idle + interval * n_probes));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .build::<_, Body>(connector);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .layer(MapErrLayer::new(tower::BoxError::from))
        .service(client);
    Ok(Client::new(
        service.boxed(),
        config.default_namespace.clone(),
    ))
}

/// Asks for something and returns the answer if it is a success.
pub(super) async fn get(
    client: &Client,
    url: &str,
    patience: Duration,
) -> Result<Response<Body>, Failure> {
    let request = Request::get(url)
        .header(header::ACCEPT, "application/json")
        .header(
            header::USER_AGENT,
            concat!("proxy-daemon/", env!("CARGO_PKG_VERSION")),
        )
        .body(Body::empty())
        .map_err(|error| Failure::Connection(Box::new(kube::Error::HttpError(error))))?;
    let response = tokio::time::timeout(patience, client.send(request))
        .await
        .map_err(|_elapsed| Failure::Silence(patience))?
        .map_err(|error| Failure::Connection(Box::new(error)))?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refusal(response, patience).await)
}

/// What a server's error says.
async fn refusal(response: Response<Body>, patience: Duration) -> Failure {
    let status = response.status();
    if status == StatusCode::GONE {
        return Failure::Gone;
    }
    // Compat: seconds only; the API server writes no dates.
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let body = http_body_util::Limited::new(response.into_body(), MAX_REFUSAL).collect();
    let message = match tokio::time::timeout(patience, body).await {
        Ok(Ok(body)) => message(&body.to_bytes()),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    Failure::Refused {
        status,
        retry_after,
        message,
    }
}

/// The message of a `Status`, or the beginning of whatever it is.
fn message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let said = serde_json::from_str::<Object<'_>>(&text)
        .ok()
        .and_then(|status| {
            status
                .message
                .value()
                .map(|message| message.clone().into_owned())
        });
    let said = said.unwrap_or_else(|| text.into_owned());
    let line = said.lines().next().unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_1_master_is_a_url_or_an_address() {
        for (text, has_tls, uri) in [
            ("https://192.0.2.1:6443", false, "https://192.0.2.1:6443/"),
            ("http://192.0.2.1:8080/", true, "http://192.0.2.1:8080/"),
            ("192.0.2.1:6443", true, "https://192.0.2.1:6443/"),
            ("api.example", false, "http://api.example/"),
            (
                "https://[2001:db8::1]:6443/k8s/clusters/c",
                false,
                "https://[2001:db8::1]:6443/k8s/clusters/c",
            ),
        ] {
            assert_eq!(parse_master(text, has_tls).expect(text).to_string(), uri);
        }
        for text in ["", "https://", "a b", "https://:", "ftp://192.0.2.1"] {
            assert_eq!(parse_master(text, true), None, "{text}");
        }
    }

    #[test]
    fn api_1_an_unusable_kubeconfig_is_an_error_that_names_it() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let server = ApiServer {
            kubeconfig: Some("/nonexistent/kubeconfig".into()),
            master: Some("https://192.0.2.1".to_owned()),
        };
        let error = runtime.block_on(server.client()).err().expect("an error");
        assert_eq!(
            error.to_string(),
            "the kubeconfig /nonexistent/kubeconfig cannot be used"
        );
    }

    #[test]
    fn api_1_https_needs_no_further_setup() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut config = kube::Config::new(Uri::from_static("https://127.0.0.1:1"));
            config.accept_invalid_certs = true;
            let client = connect(&config).expect("a client");
            let failure = get(&client, "/version", CONNECT).await.err();
            assert!(
                matches!(failure, Some(Failure::Connection(_))),
                "{failure:?}"
            );
        });
    }

    #[test]
    fn a_refusal_is_quoted_in_one_line() {
        assert_eq!(
            message(br#"{"kind":"Status","message":"no\u0007 way\nat all"}"#),
            "no way"
        );
        assert_eq!(message(b"<html>\nbad gateway"), "<html>");
        assert_eq!(message(&b"x".repeat(10_000)).len(), 300);
    }
}
