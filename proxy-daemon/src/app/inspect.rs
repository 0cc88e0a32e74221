//! How do `dump` and `explain` get their answers?
//!
//! Without `--manifests` the running daemon is asked; with it, the directory is read and compiled here,
//! which needs neither a cluster nor a privilege. There, the node's addresses are those that its Node
//! object names, so that a cluster can be replayed on any machine.
//!
//! `dump --rules` prints what the datapath makes of the state, not what the kernel holds: a running daemon
//! prints it of the state that it compiled last, in its own mode, whether or not it is written already.

use std::error::Error;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::{AppError, feed};
use crate::cli::Command;
use crate::compile::Compiler;
use crate::config::{Config, Source};
use crate::debug::{DebugState, DumpQuery, ExplainError};
use crate::model::Services;
use crate::sync::Surroundings;
use crate::watch::{Shared, Store};

/// How long an answer of the running daemon may take; its server ends a connection after 15 s.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers one question on standard output.
///
/// # Errors
/// [`AppError::Explain`] if there is no answer; [`AppError::NoDaemon`] if nobody answers it;
/// [`AppError::Manifests`] if there is no such directory.
pub(super) fn run(config: &Config, command: &Command) -> Result<(), AppError> {
    if let Command::Explain(query) = command
        && query.from.is_ipv4() != query.to.is_ipv4()
    {
        return Err(AppError::Explain(ExplainError::Families));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    let text = match &config.source {
        Source::Manifests(_) => {
            let state = runtime.block_on(read(config))?;
            match command {
                Command::Dump(DumpQuery { rules: true, .. }) => config
                    .datapath
                    .any()
                    .rules(state.v4.as_ref(), state.v6.as_ref()),
                Command::Dump(query) => state.dump(*query),
                Command::Explain(query) => state.explain(query).map_err(AppError::Explain)?,
            }
        }
        Source::Kubernetes { .. } => runtime.block_on(ask(config, command))?,
    };
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(AppError::Runtime)
}

/// Compiles the manifests as they are now.
async fn read(config: &Config) -> Result<DebugState, AppError> {
    let shared = Arc::new(Shared::default());
    let feed = feed::open(config).await?;
    let mut bell = shared.subscribe();
    let complete = async {
        while !shared.with(|store| store.is_complete()) {
            if bell.changed().await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        Err(error) = feed.run(Arc::clone(&shared)) => return Err(error),
        () = complete => {}
    }
    let drained = shared.with(Store::drain);
    let mut surroundings = Surroundings::new(
        config.policy.clone(),
        Arc::clone(&config.node_name),
        config.node_ip_override,
    );
    let own = drained
        .node
        .as_ref()
        .map(|node| node.addresses().collect::<Vec<_>>());
    let loopback = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ];
    let own = own.into_iter().flatten().chain(config.node_ip_override);
    // What networks these are in is known on the node only.
    surroundings.set_local_addresses(own.chain(loopback).map(Into::into).collect());
    surroundings.take_in(drained.node, drained.service_cidrs);
    let environment = surroundings.environment();
    let mut compiler = Compiler::new(environment);
    let mut news = compiler.apply(&Services::All(drained.services), environment);
    shared.diagnostics().set_compiled(news.take_diagnostics());
    Ok(debug_state(Some(&compiler), &shared))
}

/// What this compiler holds, with the diagnostics of the objects in force.
pub(super) fn debug_state(compiler: Option<&Compiler>, shared: &Shared) -> DebugState {
    let diagnostics = shared.diagnostics().current();
    DebugState {
        v4: compiler.map(|compiler| compiler.v4().clone()),
        v6: compiler.map(|compiler| compiler.v6().clone()),
        diagnostics: diagnostics.iter().map(ToString::to_string).collect(),
    }
}

/// Asks the running daemon.
async fn ask(config: &Config, command: &Command) -> Result<String, AppError> {
    let address = config
        .metrics_address
        .unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 10249)));
    let path = match command {
        Command::Dump(DumpQuery { rules: true, .. }) => "/debug/rules",
        Command::Dump(_) => "/debug/forwarding",
        Command::Explain(_) => "/debug/explain",
    };
    let answer = async {
        let query = command.query()?;
        let uri = format!("http://{address}{path}?{query}").parse()?;
        get(uri).await
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    answer
        .unwrap_or_else(|elapsed| Err(elapsed.into()))
        .map_err(|source| AppError::NoDaemon { address, source })
}

async fn get(uri: http::Uri) -> Result<String, Box<dyn Error + Send + Sync>> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let response = client.get(uri).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() {
        Ok(text)
    } else {
        Err(text.trim().into())
    }
}
