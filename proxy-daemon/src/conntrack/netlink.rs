//! How is the kernel's conntrack table listed, and an entry deleted?
//!
//! Invariants: blocking, on the thread of the passes; an interrupted listing is repeated a few times and then
//! used as it is (CT-12).

use std::io;

use super::{ConntrackError, Flow, FlowTable, message};
use crate::net::Family;
use crate::sys::netfilter::attributes::Writer;
use crate::sys::netfilter::{Netfilter, family_number};

const LISTINGS: usize = 5;

/// The kernel's table, in the network namespace of the calling thread.
#[derive(Debug, Default)]
pub struct Netlink {
    netfilter: Option<Netfilter>,
}

impl Netlink {
    fn netfilter(&mut self) -> Result<&mut Netfilter, ConntrackError> {
        if self.netfilter.is_none() {
            self.netfilter = Some(Netfilter::open().map_err(ConntrackError::Open)?);
        }
        self.netfilter
            .as_mut()
            .ok_or_else(|| ConntrackError::Open(io::ErrorKind::NotConnected.into()))
    }
}

impl<F: Family> FlowTable<F> for Netlink {
    fn list(
        &mut self,
        most: usize,
        wanted: &dyn Fn(&Flow<F>) -> bool,
    ) -> Result<Vec<Flow<F>>, ConntrackError> {
        let mut filter = message::only_udp();
        let mut flows = Vec::new();
        for _ in 0..LISTINGS {
            flows.clear();
            let family = family_number(F::FAMILY);
            let listed = self
                .netfilter()?
                .list(message::GET, family, &filter, &mut |attrs| {
                    let flow = message::flow(attrs);
                    flows.extend(flow.filter(|flow| flows.len() < most && wanted(flow)));
                });
            match listed {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A kernel that knows the attribute but not this use of it.
                Err(_) if !filter.is_empty() => filter = Writer::new(),
                Err(error) => {
                    // Kernel: a socket on which a listing was left unfinished begins no other (EBUSY).
                    self.netfilter = None;
                    return Err(ConntrackError::List(error));
                }
            }
        }
        Ok(flows)
    }

    fn delete(&mut self, flow: &Flow<F>) -> Result<(), ConntrackError> {
        let family = family_number(F::FAMILY);
        let deleted = self
            .netfilter()?
            .change(message::DELETE, family, &flow.handle);
        match deleted {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ConntrackError::Delete {
                flow: flow.to_string(),
                source: error,
            }),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
