//! Where is the API server, and how do we connect to it?
//!
//! `kube` reads kubeconfigs, tokens and certificates; the connections are ours, so that a peer that is
//! gone is noticed in seconds. Invariants: HTTP/2 where the server offers it, so that one connection
//! serves all watches and can be pinged; the files are read anew for each client, because they are
//! rotated.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::{Body, ConfigExt};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower::ServiceExt;
use tower::util::MapErrLayer;

use super::timing::Timing;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(4);

/// How long an idle peer is trusted before the kernel asks it, how often, and how many times.
///
/// A cut is noticed after 20 s.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 2);

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
    #[error("cannot use the kubeconfig {}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// There is no kubeconfig, and this is no pod.
    #[error(
        "no API server configured: no --kubeconfig, no --master, and no in-cluster configuration"
    )]
    InCluster {
        /// Why not.
        source: Box<InClusterError>,
    },
    /// `--master` is not a URL.
    #[error("--master={text} is not a URL such as https://192.0.2.1:6443")]
    Master {
        /// What it is.
        text: String,
    },
    /// The certificates or credentials are unusable.
    #[error("cannot use the credentials for {server}")]
    Credentials {
        /// The server.
        server: Uri,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl ApiServer {
    /// Makes a client; nothing is sent yet.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(super) async fn client(&self, timing: &Timing) -> Result<Client, ConnectError> {
        let config = self.config().await?;
        // A credential plugin may take its time, and so may reading the system's certificates.
        let timing = timing.clone();
        let server = config.cluster_url.clone();
        let client = tokio::task::spawn_blocking(move || connect(&config, &timing));
        let client = client.await.unwrap_or_else(|error| {
            let stopped = Box::new(error);
            Err(kube::Error::Service(stopped))
        });
        client.map_err(|source| ConnectError::Credentials {
            server,
            source: Box::new(source),
        })
    }

    /// Reads the server's address and our credentials, as they are now.
    async fn config(&self) -> Result<kube::Config, ConnectError> {
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
        Ok(config)
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

/// Makes connections as they are needed, each with these credentials.
///
/// Blocks while a credential plugin of the kubeconfig runs.
fn connect(config: &kube::Config, timing: &Timing) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    let (idle, interval, n_probes) = KEEPALIVE;
    connector.set_keepalive(Some(idle));
    connector.set_keepalive_interval(Some(interval));
    connector.set_keepalive_retries(Some(n_probes));
    connector.set_tcp_user_timeout(Some(idle + interval * n_probes));
    let mut builder = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name
            .clone()
            .try_into()
            .map_err(|error| kube::Error::Service(Box::new(error)))?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    // Kernel: TCP keep-alive only says that the peer's kernel lives; pings ask the server itself.
    let (interval, timeout) = timing.ping;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(interval)
        .http2_keep_alive_timeout(timeout)
        .build::<_, Body>(builder.enable_all_versions().wrap_connector(connector));
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
        let error = runtime
            .block_on(server.client(&Timing::default()))
            .err()
            .expect("an error");
        assert_eq!(
            error.to_string(),
            "cannot use the kubeconfig /nonexistent/kubeconfig"
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
            let client = connect(&config, &Timing::default()).expect("a client");
            let request = http::Request::get("/version").body(Body::empty());
            let answer = client.send(request.expect("a request")).await;
            assert!(answer.is_err(), "{answer:?}");
        });
    }
}
