//! How does the daemon say what it does?
//!
//! One line per event on standard error: text for people, JSON for machines. Invariants: our own words
//! follow `-v`, those of libraries appear only as warnings, or when somebody asks for everything; nothing
//! that the daemon does waits for whoever reads them (LIFE-18).

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

/// How long the end of the process waits for the last lines to be read.
const LAST_LINES: Duration = Duration::from_millis(500);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Starts logging; what was logged before is lost. A second call changes nothing.
///
/// # Errors
/// If standard error is closed or there is no thread to be had.
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
        tracing::debug!("logging was started before");
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Writes this line as the last one of the process and waits a moment for everything to be read.
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

/// The usual hook writes to standard error itself and waits for the reader.
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
        "a bug: {}",
        what.unwrap_or("the thread panicked")
    );
}
