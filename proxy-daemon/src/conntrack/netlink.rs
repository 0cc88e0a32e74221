//! How is the kernel's conntrack table listed, and an entry deleted?
//!
//! Invariants: blocking, on the sync thread; one socket per pass, which no one else sees; an interrupted
//! listing is repeated a few times and then used as it is (CT-12).

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::message::{self, Answer};
use super::{ConntrackError, Flow, FlowTable};
use crate::net::Family;

const LISTINGS: usize = 5;

/// The kernel's table, in the network namespace of the calling thread.
#[derive(Debug, Default)]
pub struct Netlink {
    socket: Option<Socket>,
}

impl Netlink {
    fn socket(&mut self) -> Result<&Socket, ConntrackError> {
        if self.socket.is_none() {
            let open = || {
                let mut socket = Socket::new(NETLINK_NETFILTER)?;
                socket.bind_auto()?;
                socket.connect(&SocketAddr::new(0, 0))?;
                Ok(socket)
            };
            self.socket = Some(open().map_err(ConntrackError::Open)?);
        }
        self.socket
            .as_ref()
            .ok_or_else(|| ConntrackError::Open(io::ErrorKind::NotConnected.into()))
    }

    /// One listing, and whether it was interrupted.
    fn list_once<F: Family>(
        socket: &Socket,
        filter: bool,
        most: usize,
        wanted: &dyn Fn(&Flow<F>) -> bool,
    ) -> io::Result<(Vec<Flow<F>>, bool)> {
        socket.send(&message::list::<F>(filter), 0)?;
        let mut flows = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = socket.recv_from_full()?;
            for answer in message::answers::<F>(&datagram) {
                match answer {
                    Answer::Flow(flow) if flows.len() < most && wanted(&flow) => flows.push(flow),
                    Answer::Flow(_) | Answer::Other => {}
                    Answer::Interrupted => interrupted = true,
                    Answer::Done(0) => return Ok((flows, interrupted)),
                    Answer::Done(number) => return Err(io::Error::from_raw_os_error(number)),
                }
            }
        }
    }
}

impl<F: Family> FlowTable<F> for Netlink {
    fn list(
        &mut self,
        most: usize,
        wanted: &dyn Fn(&Flow<F>) -> bool,
    ) -> Result<Vec<Flow<F>>, ConntrackError> {
        let socket = self.socket()?;
        let mut filter = true;
        let mut last = Vec::new();
        for _ in 0..LISTINGS {
            match Self::list_once(socket, filter, most, wanted) {
                Ok((flows, false)) => return Ok(flows),
                Ok((flows, true)) => last = flows,
                // A kernel that knows the attribute but not this use of it.
                Err(_) if filter => filter = false,
                Err(error) => {
                    // What is left unread would be taken for the answer to the next question.
                    self.socket = None;
                    return Err(ConntrackError::List(error));
                }
            }
        }
        Ok(last)
    }

    fn delete(&mut self, flow: &Flow<F>) -> Result<(), ConntrackError> {
        let socket = self.socket()?;
        let ask = || {
            socket.send(&message::delete(flow), 0)?;
            let (datagram, _) = socket.recv_from_full()?;
            let done = message::answers::<F>(&datagram).find_map(|answer| match answer {
                Answer::Done(number) => Some(number),
                Answer::Flow(_) | Answer::Other | Answer::Interrupted => None,
            });
            match done {
                Some(0) => Ok(()),
                Some(number) => Err(io::Error::from_raw_os_error(number)),
                None => Err(io::ErrorKind::InvalidData.into()),
            }
        };
        match ask() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ConntrackError::Delete {
                flow: flow.to_string(),
                source: error,
            }),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
