//! What drives the sockets? One thread with an event loop, shared by all servers and clients of the run.
//!
//! Invariant: sockets are created by the test's own thread, inside the right namespace (a socket belongs to the namespace it was
//! created in, whoever uses it), and only used here.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::{LazyLock, mpsc};
use std::thread;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Handle};

static HANDLE: LazyLock<Handle> = LazyLock::new(|| {
    let (send, receive) = mpsc::channel();
    thread::Builder::new()
        .name("reactor".into())
        .spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            send.send(runtime.handle().clone()).unwrap();
            runtime.block_on(std::future::pending::<()>());
        })
        .unwrap();
    receive.recv().unwrap()
});

/// The event loop, for starting tasks.
pub fn handle() -> &'static Handle {
    &HANDLE
}

/// Runs a future on the event loop and waits for its value.
pub fn block<F>(future: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (send, receive) = mpsc::channel();
    handle().spawn(async move {
        drop(send.send(future.await));
    });
    receive.recv().expect("the task ended without panicking")
}

/// Lets the event loop watch a socket; only from within a task.
#[expect(
    deprecated,
    reason = "its successor is unsafe, for types whose descriptor may change; an OwnedFd's cannot"
)]
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> AsyncFd<OwnedFd> {
    AsyncFd::with_interest(fd, interest).expect("the event loop takes sockets")
}
