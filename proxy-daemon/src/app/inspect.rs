//! How is the forwarding state looked at from the command line?
//!
//! Without `--manifests` the running daemon is asked; with it, the directory is read and compiled here,
//! which needs neither a cluster nor a privilege. There, the node's addresses are those that its Node
//! object names, so that a cluster can be replayed on any machine.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::{AppError, feed};
use crate::cli::Command;
use crate::compile::{Compiler, Environment};
use crate::config::{Config, Source};
use crate::debug::{ExplainError, Inside, Probe, json};
use crate::diagnostics::About;
use crate::sync::Surroundings;
use crate::watch::{Shared, Store};

const PATIENCE: Duration = Duration::from_secs(15);

/// Answers one question on standard output.
///
/// # Errors
/// [`AppError::Explain`] if the question is not understood; [`AppError::NoDaemon`] if nobody answers it;
/// [`AppError::Manifests`] if there is no such directory.
pub(super) fn run(config: &Config, command: &Command) -> Result<(), AppError> {
    if let Command::Explain { .. } = command {
        let probe = Probe::parse(&command.query()).map_err(AppError::Explain)?;
        if probe.from.is_ipv4() != probe.to.is_ipv4() {
            return Err(AppError::Explain(ExplainError::Families));
        }
    }
    let text = match &config.source {
        Source::Manifests(_) => answer(&read(config)?, command)?,
        Source::Kubernetes { .. } => ask(config, command)?,
    };
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(AppError::Runtime)
}

fn answer(inside: &Inside, command: &Command) -> Result<String, AppError> {
    match command {
        Command::Dump { output } if output == "json" => Ok(format!("{}\n", json(inside))),
        Command::Dump { .. } => Ok(inside.table()),
        Command::Explain { .. } => Probe::parse(&command.query())
            .and_then(|probe| inside.explain(&probe))
            .map_err(AppError::Explain),
    }
}

/// Compiles the manifests as they are now.
fn read(config: &Config) -> Result<Inside, AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    let shared = Arc::new(Shared::default());
    runtime.block_on(async {
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
            Err(error) = feed.run(Arc::clone(&shared)) => Err(error),
            () = complete => Ok(()),
        }
    })?;
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
    let environment: Environment = surroundings.environment();
    let mut compiler = Compiler::new(&environment);
    let news = compiler.apply(drained.services, &environment);
    if let Some(found) = news.overlaps {
        shared
            .diagnostics()
            .set(About::Source("ServiceCIDRs"), found);
    }
    for (service, found) in news.diagnostics {
        shared.diagnostics().set(About::Frontends(service), found);
    }
    let diagnostics = shared.diagnostics().current();
    Ok(Inside {
        v4: Some(compiler.v4().clone()),
        v6: Some(compiler.v6().clone()),
        local_addresses: environment.local_addresses,
        diagnostics: diagnostics.iter().map(ToString::to_string).collect(),
    })
}

/// Asks the running daemon, whose server speaks plain HTTP.
fn ask(config: &Config, command: &Command) -> Result<String, AppError> {
    let address = config
        .metrics_address
        .unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 10249)));
    let path = match command {
        Command::Dump { .. } => "/debug/forwarding",
        Command::Explain { .. } => "/debug/explain",
    };
    get(address, &format!("{path}?{}", command.query()))
        .map_err(|source| AppError::NoDaemon { address, source })
}

fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    if head.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(io::Error::other(body.trim().to_owned()))
    }
}
