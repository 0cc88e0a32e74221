//! What does `nf_tables` say about our chains without showing their rules?
//!
//! The number of transactions that there have been, and for each chain how often it is used: by its own
//! rules, and by jumps to it. Invariants: chains of others do not count.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;

use super::netlink::{Question, ask};
use crate::datapath::iptables::names::CHAIN_PREFIX;
use crate::net::IpFamily;

/// `NFNL_SUBSYS_NFTABLES` with `NFT_MSG_GETGEN`.
const GET_GENERATION: u16 = 10 << 8 | 16;
/// `NFNL_SUBSYS_NFTABLES` with `NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 10 << 8 | 4;
const NFTA_GEN_ID: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_HANDLE: u16 = 2;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_USE: u16 = 6;
/// How often the chains are listed anew because somebody wrote meanwhile.
const LISTINGS: usize = 5;

/// The state of `nf_tables` after a write of ours.
#[derive(Debug)]
pub(super) struct Mark {
    /// When `chains` was last known to be right, or we wrote.
    generation: u32,
    /// A hash of our chains; `None` until it was first asked for after our write.
    chains: Option<u64>,
}

impl Mark {
    /// The state now, in the network namespace of this thread.
    pub(super) fn now() -> io::Result<Self> {
        Ok(Self {
            generation: generation()?,
            chains: None,
        })
    }

    /// Whether something of ours has changed.
    ///
    /// `check` says whether what is important is there.
    pub(super) fn is_disturbed(
        &mut self,
        family: IpFamily,
        check: impl FnOnce() -> bool,
    ) -> io::Result<bool> {
        // Before the chains, so that a write after it is a reason to look again.
        let generation = generation()?;
        let (chains, is_disturbed) = match self.chains {
            Some(_) if generation == self.generation => return Ok(false),
            Some(before) => (before, before != chains(family)?),
            // Even if nobody else wrote since the mark: somebody may have between our write and it.
            None => (chains(family)?, !check()),
        };
        // What is missing is missing until we write it.
        if !is_disturbed {
            *self = Self {
                generation,
                chains: Some(chains),
            };
        }
        Ok(is_disturbed)
    }
}

/// Kernel: `nf_tables_commit()` adds one, in whichever table of the network namespace.
pub(super) fn generation() -> io::Result<u32> {
    let mut generation = None;
    ask(GET_GENERATION, Question::One, 0, &[], &mut |attributes| {
        generation = attributes.number(NFTA_GEN_ID);
    })?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A hash of our chains' names, handles and uses.
fn chains(family: IpFamily) -> io::Result<u64> {
    let family = match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    };
    for _ in 0..LISTINGS {
        let mut hasher = DefaultHasher::new();
        let listed = ask(GET_CHAIN, Question::All, family, &[], &mut |attributes| {
            let is_ours = attributes
                .get(NFTA_CHAIN_NAME)
                .is_some_and(|name| name.starts_with(CHAIN_PREFIX.as_bytes()));
            if is_ours {
                for kind in [
                    NFTA_CHAIN_TABLE,
                    NFTA_CHAIN_NAME,
                    NFTA_CHAIN_HANDLE,
                    NFTA_CHAIN_USE,
                ] {
                    attributes.get(kind).hash(&mut hasher);
                }
            }
        });
        match listed {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(hasher.finish()),
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}
