//! Where does a plane's work run that must not wait for a sync?
//!
//! On a thread of its own, with a routing socket of its own. Invariants: a plane without a worker has no such
//! thread; the thread ends when its handle is dropped, after the call that it is in, and changes nothing then;
//! a panic in a worker ends neither the thread nor a sync.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::plane::Worker;
use crate::sys::{Clock as _, Interfaces, SystemClock, interfaces};

/// How long interfaces are left alone after they could not be followed.
const RESTART: Duration = Duration::from_secs(1);

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct WorkerThread {
    _stop: oneshot::Sender<()>,
}

impl WorkerThread {
    /// Starts the thread in the network namespace of the calling one.
    ///
    /// # Errors
    /// The operating system's, if there is no thread or no descriptor for it.
    pub(super) fn start(worker: Box<dyn Worker>) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new().name("plane".to_owned());
        thread.spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _dropped = stopped => {}
                    () = run(worker) => {}
                }
            });
        })?;
        Ok(Self { _stop: stop })
    }
}

async fn run(mut worker: Box<dyn Worker>) {
    let (sender, mut receiver) = watch::channel(Interfaces::default());
    let follow = async {
        loop {
            let Err(error) = interfaces::follow(|now| drop(sender.send_replace(now))).await;
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot follow network interfaces, will retry");
            tokio::time::sleep(RESTART).await;
        }
    };
    let work = async {
        let mut next = Some(SystemClock.now());
        // Whether a call that was to take the interfaces in panicked.
        let mut is_owed = false;
        loop {
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let has_changed = tokio::select! {
                changed = receiver.changed() => changed.is_ok(),
                () = due => false,
            };
            let interfaces = (has_changed || is_owed).then(|| receiver.borrow_and_update().clone());
            let called = catch_unwind(AssertUnwindSafe(|| {
                if let Some(interfaces) = &interfaces {
                    worker.interfaces_changed(interfaces);
                }
                worker.tick(SystemClock.now())
            }));
            is_owed = called.is_err() && interfaces.is_some();
            next = called.unwrap_or_else(|_panic| {
                tracing::error!("the datapath's worker panicked, will retry");
                Some(SystemClock.now() + RESTART)
            });
        }
    };
    tokio::select! {
        () = follow => {}
        () = work => {}
    }
}
