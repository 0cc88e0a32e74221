//! How does the daemon log?
//!
//! One line per event on standard error, as text or JSON. Invariants: our own events follow `-v`, those of
//! libraries are logged from warning on, or with the highest `-v`; logging never blocks the daemon (LIFE-18).

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal as _};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::config::LogSettings;
use queue::Queue;

mod queue;

/// How long the exit of the process waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_millis(500);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Starts logging; what was logged before is lost. A second call changes nothing.
///
/// # Errors
/// If standard error is closed or no thread can be started.
pub fn start(settings: LogSettings) -> io::Result<()> {
    let (ours, theirs) = match settings.verbosity {
        0..=3 => (LevelFilter::INFO, LevelFilter::WARN),
        4..=5 => (LevelFilter::DEBUG, LevelFilter::WARN),
        _ => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    let filter = Targets::new()
        .with_default(theirs)
        .with_target("proxy_daemon", ours);
    let queue = queue()?;
    let lines = tracing_subscriber::fmt::layer()
        // It would write to standard error itself.
        .log_internal_errors(false)
        .with_writer(move || queue.clone());
    let lines = if settings.json {
        lines.json().flatten_event(true).boxed()
    } else {
        lines
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .boxed()
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("logging is already started");
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Writes the last line of the process and waits a moment until everything is written.
pub fn end(last: Option<&str>) {
    if let Some(last) = last {
        match queue() {
            Ok(queue) => queue.add(format!("{last}\n").as_bytes()),
            // Nobody is left to tell.
            Err(_) => return,
        }
    }
    if let Some(queue) = QUEUE.get() {
        queue.flush(LAST_LINES);
    }
}

fn queue() -> io::Result<&'static Queue> {
    if let Some(queue) = QUEUE.get() {
        return Ok(queue);
    }
    let started = Queue::start()?;
    Ok(QUEUE.get_or_init(|| started))
}

/// The default panic hook writes to standard error itself and can block.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let payload = panic.payload();
    let what = payload.downcast_ref::<String>().map(String::as_str);
    let what = what.or_else(|| payload.downcast_ref::<&str>().copied());
    tracing::error!(
        thread = thread.name(),
        location = panic.location().map(tracing::field::display),
        backtrace = (backtrace.status() == BacktraceStatus::Captured)
            .then(|| tracing::field::display(&backtrace)),
        "panic: {}",
        what.unwrap_or("the thread panicked")
    );
}
