//! How do the parts become a daemon?
//!
//! Invariants: the start order is LIFE-1's; nothing of the kernel's forwarding is touched before a
//! sync; the rules stay active when the process exits (LIFE-6).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use config_file::Watched;

use crate::cli::Cli;
use crate::config::{
    Config, DetectLocal, ExtraSettings, LogSettings, Resolved, Source, raw, resolve,
};
use crate::debug::DebugState;
use crate::health::{self, DebugHandler, Health};
use crate::net::IpFamily;
use crate::sync::{Mailbox, Surroundings, SyncLoop};
use crate::sys::capabilities::{self, Capability};
use crate::sys::{Clock, Sysctls, SystemClock, addresses, host, process};
use crate::watch::{self, Drained, Shared};

mod cleanup;
mod config_file;
mod error;
mod families;
mod feed;
mod inspect;
mod lock;
mod node;
mod own;
mod sysctls;

pub use error::AppError;

/// Pause before a failed task is restarted.
const RESTART: Duration = Duration::from_secs(1);

/// The lock against a second daemon; drop it last, because threads may still write when [`start`] has
/// returned.
#[derive(Debug, Default)]
pub struct Held(Option<lock::Lock>);

/// Runs what the command line asks for.
///
/// # Errors
/// [`AppError`], whose exit code tells wrong usage (2) from a machine it cannot run on (1).
pub fn start(cli: &Cli, held: &mut Held) -> Result<(), AppError> {
    if cli.flags.cleanup == Some(true) {
        // Spec: LIFE-7. No configuration is read, so that no fault of it keeps us here.
        crate::telemetry::start(LogSettings {
            json: cli.flags.logging_format.as_deref() == Some("json"),
            verbosity: cli.verbosity.unwrap_or_default(),
        })
        .map_err(AppError::Runtime)?;
        check_privilege()?;
        held.0 = Some(lock::Lock::take()?);
        return cleanup::run();
    }
    let watched = cli.flags.config.as_deref().map(Watched::read).transpose()?;
    let Resolved { config, warnings } = read_config(cli, watched.as_ref())?;
    if let Some(command) = &cli.command {
        return inspect::run(&config, command);
    }
    let is_init = cli.flags.init_only == Some(true);
    let own = (!is_init).then(|| own::Own::settle(&config));
    crate::telemetry::start(config.log).map_err(AppError::Runtime)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    check_privilege()?;
    if let Some(own) = own {
        own.tell();
    } else {
        // Spec: LIFE-8.
        return sysctls::apply_all(&config);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    let outcome = runtime.block_on(run(config, watched, held));
    // A thread that blocks, such as a look-up of a name, must not keep the process.
    runtime.shutdown_background();
    process::end_all();
    outcome
}

fn check_privilege() -> Result<(), AppError> {
    if capabilities::has(Capability::CAP_NET_ADMIN) {
        Ok(())
    } else {
        Err(AppError::NoNetAdmin)
    }
}

fn read_config(cli: &Cli, file: Option<&Watched>) -> Result<Resolved, AppError> {
    let flags = &cli.flags;
    if flags.write_config_to.is_some() {
        return Err(AppError::NotThereYet("--write-config-to"));
    }
    let mut warnings = Vec::new();
    let raw = match file {
        None => cli.as_configuration().map_err(AppError::Usage)?,
        Some(file) => {
            let name = file.name();
            if !file.is_regular {
                warnings.push(format!("{name} is not a regular file: it is not watched"));
            }
            let (file, about_file) = raw::parse(&name, &file.text).map_err(AppError::ConfigFile)?;
            warnings.extend(about_file);
            let overruled = cli.overruled_by_file();
            if !overruled.is_empty() {
                let names = overruled.join(", --");
                warnings.push(format!("ignored, since --config is given: --{names}"));
            }
            cli.over(file)
        }
    };
    let extra = ExtraSettings {
        manifests: flags.manifests.clone(),
        master: flags.master.clone(),
        iptables_backend: flags.iptables_backend.clone(),
        healthz_port: flags.healthz_port,
        metrics_port: flags.metrics_port,
        os_hostname: host::hostname(),
        tcp_is_liberal: sysctls::is_liberal(&Sysctls::default()),
    };
    let mut resolved = resolve(&raw, &extra).map_err(AppError::Config)?;
    warnings.append(&mut resolved.warnings);
    Ok(Resolved {
        warnings,
        ..resolved
    })
}

/// The daemon, from the first connection to the last signal.
async fn run(config: Config, watched: Option<Watched>, held: &mut Held) -> Result<(), AppError> {
    // From here on it does not end the process; below it is looked at.
    let hang_up = signal(SignalKind::hangup()).map_err(AppError::Runtime)?;
    let taking = tokio::task::spawn_blocking(lock::Lock::take);
    let lock = taking
        .await
        .map_err(|error| AppError::Runtime(error.into()))??;
    held.0 = Some(lock);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = config.datapath.mode(),
        node = &*config.node_name,
        source = %feed::describe(&config.source),
        "starting"
    );
    let shared = Arc::new(Shared::default());
    let feed = feed::open(&config).await?;
    let mailbox = Arc::new(Mailbox::default());
    let mut config_changed = std::pin::pin!(config_file::changed(watched));
    let ended = tokio::select! {
        signal = end_signal(hang_up) => signal,
        Err(error) = feed.run(Arc::clone(&shared)) => Err(error),
        error = &mut config_changed => Err(error),
        Err(error) = serve(&config, &shared, &mailbox) => Err(error),
    };
    // The thread may be in a sync: each of its transactions is whole or nothing, so that the process can
    // end at any moment (LIFE-6).
    mailbox.stop();
    ended
}

/// Waits for SIGTERM or SIGINT; SIGHUP is only logged.
async fn end_signal(mut hang_up: Signal) -> Result<(), AppError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Runtime)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("received SIGTERM, exiting; rules stay active"),
            _ = interrupt.recv() => tracing::info!("received SIGINT, exiting; rules stay active"),
            _ = hang_up.recv() => {
                tracing::info!(
                    "ignored SIGHUP; the configuration file is watched, changed flags need a restart"
                );
                continue;
            }
        }
        return Ok(());
    }
}

/// Runs everything that needs the source; returns only on failure.
async fn serve(
    config: &Config,
    shared: &Arc<Shared>,
    mailbox: &Arc<Mailbox>,
) -> Result<Infallible, AppError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let is_manifests = matches!(config.source, Source::Manifests(_));
    let wants_pod_cidrs = config.policy.detect_local == DetectLocal::NodeCidr;
    let node = node::discover(shared, is_manifests, wants_pod_cidrs).await?;

    sysctls::apply_all(config)?;

    // Without a Node object in the manifests there is none that could be ineligible.
    let health = Arc::new(Health::new(config.periods.sync, is_manifests));
    let surroundings = Surroundings::new(
        config.policy.clone(),
        Arc::clone(&config.node_name),
        config.node_ip_override,
    );
    let primary = config
        .node_ip_override
        .or(node.as_ref().and_then(|node| node.addresses().next()))
        .map_or(IpFamily::V4, IpFamily::of);
    let sync = SyncLoop::new(
        Intake(Arc::clone(shared)),
        Arc::clone(mailbox),
        surroundings,
        config.periods,
        Arc::clone(&clock),
        Arc::clone(&health),
    )
    .with_diagnostics(Arc::clone(shared.diagnostics()));
    let (datapath, sync_period, now) = (config.datapath, config.periods.sync, clock.now());
    // Programs are run for it, which can hang, and a signal must not wait for them.
    let opening = tokio::task::spawn_blocking(move || {
        families::open(sync, datapath.kind(), primary, sync_period, now)
    });
    let (sync, opener) = opening
        .await
        .map_err(|error| AppError::Runtime(error.into()))??;

    let handler = debug_handler(mailbox, shared);
    let healthz = health::healthz_router(Arc::clone(&health), Arc::clone(&clock));
    let local = health::local_router(opener, Arc::clone(&health), Arc::clone(&clock), &handler);
    let hard_fail = config.bind_address_hard_fail;
    tokio::select! {
        Err(error) = listen(config.healthz_address, healthz, hard_fail) => Err(error),
        Err(error) = listen(config.metrics_address, local, hard_fail) => Err(error),
        Err(error) = sync_thread(sync, mailbox) => Err(error),
        never = forward_changes(shared, mailbox, &health, &*clock) => Ok(never),
        error = node::pod_cidrs_changed(shared, wants_pod_cidrs) => Err(error),
    }
}

async fn listen(
    address: Option<std::net::SocketAddr>,
    router: axum::Router,
    hard_fail: bool,
) -> Result<Infallible, AppError> {
    match address {
        Some(address) => health::serve(address, router, hard_fail)
            .await
            .map_err(AppError::Bind),
        None => std::future::pending().await,
    }
}

/// Runs the loop on its thread once the node's addresses are known, and keeps them up to date.
async fn sync_thread<I: crate::sync::Intake + 'static>(
    mut sync: SyncLoop<I>,
    mailbox: &Arc<Mailbox>,
) -> Result<Infallible, AppError> {
    let (first, known) = oneshot::channel();
    let mut first = Some(first);
    let follow = async {
        loop {
            let told = |addresses: std::collections::BTreeSet<ipnet::IpNet>| match first.take() {
                Some(first) => drop(first.send(addresses)),
                None => mailbox.set_local_addresses(addresses),
            };
            let Err(error) = addresses::follow(told).await;
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot watch the node's addresses, will retry");
            tokio::time::sleep(RESTART).await;
        }
    };
    let thread = async {
        if let Ok(addresses) = known.await {
            sync.set_local_addresses(addresses);
        }
        let _stop = StopOnDrop(mailbox);
        let (result, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || drop(result.send(sync.run())))
            .map_err(AppError::Runtime)?;
        match ended.await {
            Ok(Err(source)) => Err(AppError::Unusable(source)),
            Ok(Ok(())) | Err(_) => Err(AppError::SyncEnded),
        }
    };
    tokio::select! {
        never = follow => never,
        ended = thread => ended,
    }
}

/// Stops the thread after the current sync.
struct StopOnDrop<'a>(&'a Mailbox);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Tells the sync thread whenever the store changed.
async fn forward_changes(
    shared: &Shared,
    mailbox: &Mailbox,
    health: &Health,
    clock: &dyn Clock,
) -> Infallible {
    let mut bell = shared.subscribe();
    loop {
        if shared.with(|store| store.is_complete()) {
            let now = clock.now();
            // Here rather than on the thread, so that a thread that hangs is noticed (HZ-3).
            health.queued(now, clock);
            mailbox.changed(now);
        }
        if bell.changed().await.is_err() {
            // The store is gone, and so will we be.
            std::future::pending::<()>().await;
        }
    }
}

/// How the debug pages get the sync thread's state.
fn debug_handler(mailbox: &Arc<Mailbox>, shared: &Arc<Shared>) -> DebugHandler {
    let (mailbox, shared) = (Arc::clone(mailbox), Arc::clone(shared));
    Arc::new(move |sender: oneshot::Sender<DebugState>| {
        let shared = Arc::clone(&shared);
        mailbox.ask(Box::new(move |compiler| {
            if !sender.is_closed() {
                // Whoever asked may have given up.
                drop(sender.send(inspect::debug_state(compiler, &shared)));
            }
        }));
    })
}

/// The store, as the sync loop sees it.
struct Intake(Arc<Shared>);

impl crate::sync::Intake for Intake {
    fn take(&mut self, everything: bool) -> Option<Drained> {
        self.0.with(|store: &mut watch::Store| {
            store.is_complete().then(|| {
                if everything {
                    store.mark_all();
                }
                store.drain()
            })
        })
    }
}
