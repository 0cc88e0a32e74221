//! Does another one of us run here?
//!
//! An abstract Unix socket is the lock: it belongs to the network namespace, as what we program does,
//! and goes with the process whatever ends it. Spec: LIFE-11.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use super::AppError;

const NAME: &[u8] = b"proxy-daemon";
const ATTEMPTS: u32 = 25;
const PAUSE: Duration = Duration::from_millis(200);

/// Takes the lock, which is held as long as the value lives; waits 5 s for one who is just ending.
///
/// # Errors
/// [`AppError::Locked`] if another holds it.
pub(super) async fn take() -> Result<UnixListener, AppError> {
    for _ in 0..ATTEMPTS {
        let bound = SocketAddr::from_abstract_name(NAME)
            .and_then(|address| UnixListener::bind_addr(&address));
        match bound {
            Ok(lock) => return Ok(lock),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(AppError::Runtime(error)),
        }
    }
    Err(AppError::Locked)
}
