//! How do our types become `nf_tables` messages, and what the kernel prints our types?
//!
//! Written in safe Rust over a plain netlink socket, not over libnftnl: that library (and the nftnl
//! crate over it) lacks maps, verdict maps, concatenated data, dynset and timeouts in safe form, costs
//! an allocation and a list node per element where we write forty bytes, and is GPL. The layout of a
//! message is a few numbers from a stable kernel header; what they mean is checked by reading back.
//!
//! Invariants: a [`Transaction`] is all or nothing; nothing outside our table is named in it; reading
//! is consistent or fails (the kernel says when objects changed during a dump, and we ask again).

use std::io;

mod element;
mod expr;
mod printed;
mod set;
mod socket;
mod transaction;
mod wire;

pub(crate) use element::{Data, Key, Printed, write_element, write_timed};
pub(crate) use printed::{PrintedChain, PrintedSet, PrintedTable, TableIs};
pub(crate) use transaction::Transaction;
pub(crate) use wire::Writer;

use super::ruleset::Set;
use crate::datapath::DatapathError;
use crate::net::IpFamily;
use printed::PrintedRule;
use socket::Channel;
use wire::{Attr, Attrs};

/// What to tell a person whose kernel lacks something.
pub(crate) const NEEDS: &str = "the kernel lacks a part of nf_tables: CONFIG_NF_TABLES, and \
    CONFIG_NFT_NAT, _MASQ, _FIB, _CT, _NUMGEN, _REJECT are needed; Linux 5.13 or later has what we use";

/// `NFPROTO_IPV4`
pub(super) const NFPROTO_IPV4: u8 = 2;
/// `NFPROTO_IPV6`
pub(super) const NFPROTO_IPV6: u8 = 10;

const MSG_NEWTABLE: u16 = 0;
const MSG_GETTABLE: u16 = 1;
const MSG_DELTABLE: u16 = 2;
const MSG_NEWCHAIN: u16 = 3;
const MSG_GETCHAIN: u16 = 4;
const MSG_DELCHAIN: u16 = 5;
const MSG_NEWRULE: u16 = 6;
const MSG_GETRULE: u16 = 7;
const MSG_DELRULE: u16 = 8;
const MSG_NEWSET: u16 = 9;
const MSG_GETSET: u16 = 10;
const MSG_DELSET: u16 = 11;
const MSG_NEWSETELEM: u16 = 12;
const MSG_GETSETELEM: u16 = 13;
const MSG_DELSETELEM: u16 = 14;
const MSG_GETGEN: u16 = 16;

/// How often a read that others disturbed is tried again.
const READ_ATTEMPTS: u32 = 20;

/// The family in the language of `nft`.
const fn word(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

const fn nfproto(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => NFPROTO_IPV4,
        IpFamily::V6 => NFPROTO_IPV6,
    }
}

/// The `nf_tables` of one network namespace, seen through one family.
#[derive(Debug)]
pub(crate) struct Kernel {
    channel: Channel,
    family: IpFamily,
    table: &'static str,
    n_commits: u32,
    refused: Option<Refused>,
}

/// The element for which the kernel refused a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// In which set.
    pub(crate) set: &'static str,
    /// As [`write_element`] wrote it.
    pub(crate) element: Vec<u8>,
}

impl Kernel {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if there is no netlink to `nf_tables`.
    pub(crate) fn open(family: IpFamily, table: &'static str) -> Result<Self, DatapathError> {
        let channel = Channel::open().map_err(|source| {
            DatapathError::lacking(
                "opening a netlink socket to nf_tables",
                "the kernel needs CONFIG_NETFILTER_NETLINK and CONFIG_NF_TABLES",
                source,
            )
        })?;
        Ok(Self {
            channel,
            family,
            table,
            n_commits: 0,
            refused: None,
        })
    }

    /// Applies a transaction; one that is empty costs nothing.
    ///
    /// # Errors
    /// What the kernel refused; nothing of the transaction is in force then.
    pub(crate) fn commit(&mut self, mut transaction: Transaction) -> Result<(), DatapathError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let last = transaction.finish();
        self.refused = None;
        match self.channel.transact(transaction.as_slice(), last) {
            Ok(Ok(())) => {
                self.n_commits = self.n_commits.wrapping_add(1);
                Ok(())
            }
            Ok(Err(refusal)) => {
                self.refused = transaction.element_at(refusal.seq, refusal.offset);
                let (operation, object) = transaction.label(refusal.seq);
                Err(error(
                    operation,
                    &format!("{} {}", self.table, object),
                    refusal.source,
                ))
            }
            Err(source) => Err(error("sending a transaction", self.table, source)),
        }
    }

    /// Applies a transaction that was made for this generation, and may change nothing at all.
    ///
    /// Kernel: a transaction without effect leaves the generation as it is.
    ///
    /// # Errors
    /// As [`Kernel::commit`].
    pub(crate) fn commit_for(
        &mut self,
        transaction: Transaction,
        generation: u32,
    ) -> Result<(), DatapathError> {
        if transaction.is_empty() {
            return Ok(());
        }
        self.commit(transaction)?;
        if self.generation()? == generation {
            self.n_commits = self.n_commits.wrapping_sub(1);
        }
        Ok(())
    }

    /// Which element the last transaction was refused for, if it was and the kernel said so.
    pub(crate) const fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }

    /// How many transactions were applied through this value; each moves the generation by one.
    pub(crate) const fn n_commits(&self) -> u32 {
        self.n_commits
    }

    /// The generation of the namespace's rules: it moves with every change by anyone.
    pub(crate) fn generation(&mut self) -> Result<u32, DatapathError> {
        let mut generation = 0;
        self.ask(MSG_GETGEN, false, |_| {}, &mut |attrs| {
            generation = attrs.get(1).and_then(Attr::u32).unwrap_or(0);
        })
        .map_err(|source| error(READING, "the generation", source))?;
        Ok(generation)
    }

    /// Our table, if it is there.
    ///
    /// # Errors
    /// [`DatapathError::Held`] if another program alone may write to it.
    pub(crate) fn table(&mut self) -> Result<Option<PrintedTable>, DatapathError> {
        let mut table = None;
        match self.ask(MSG_GETTABLE, false, |_| {}, &mut |attrs| {
            table = Some(PrintedTable::new(attrs));
        }) {
            Ok(()) => {}
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error(READING, self.table, source)),
        }
        match table.as_ref().and_then(|table| table.owner) {
            Some(port) => Err(DatapathError::Held {
                object: format!("table {} {}", word(self.family), self.table),
                port,
            }),
            None => Ok(table),
        }
    }

    /// The chains of our table with their rules.
    pub(crate) fn chains(&mut self) -> Result<Vec<PrintedChain>, DatapathError> {
        let mut chains: Vec<PrintedChain> = Vec::new();
        self.retry("reading the chains", |kernel| {
            chains.clear();
            let table = kernel.table;
            kernel.ask(MSG_GETCHAIN, true, |_| {}, &mut |attrs| {
                if attrs.get(1).and_then(Attr::str).as_deref() == Some(table) {
                    chains.extend(PrintedChain::new(attrs));
                }
            })?;
            kernel.ask(MSG_GETRULE, true, |_| {}, &mut |attrs| {
                let chain = attrs.get(2).and_then(Attr::str);
                if let Some(chain) = chains.iter_mut().find(|c| Some(&c.name) == chain.as_ref()) {
                    chain.rules.push(PrintedRule::new(attrs));
                }
            })
        })?;
        Ok(chains)
    }

    /// Our table's sets, compared with what is expected.
    pub(crate) fn sets(&mut self, expected: &[Set]) -> Result<Vec<PrintedSet>, DatapathError> {
        let mut sets = Vec::new();
        self.retry("reading the sets", |kernel| {
            sets.clear();
            let (table, family) = (kernel.table, kernel.family);
            kernel.ask(MSG_GETSET, true, |_| {}, &mut |attrs| {
                if attrs.get(1).and_then(Attr::str).as_deref() != Some(table) {
                    return;
                }
                if let Some(name) = attrs.get(2).and_then(Attr::str) {
                    let known = expected.iter().find(|set| set.name == name);
                    sets.push(PrintedSet {
                        name,
                        is_same: known.map(|known| set::is_same(attrs, known, family)),
                        is_anonymous: set::is_anonymous(attrs),
                        n_elements: set::n_elements(attrs),
                    });
                }
            })
        })?;
        Ok(sets)
    }

    /// Hands each element of a set to `each`, with what `new` made; begins anew if disturbed.
    pub(crate) fn elements<T>(
        &mut self,
        set: &'static str,
        new: impl Fn() -> T,
        mut each: impl FnMut(&mut T, Printed<'_>),
    ) -> Result<T, DatapathError> {
        let mut result = new();
        self.retry("reading a set", |kernel| {
            result = new();
            kernel.ask(MSG_GETSETELEM, true, |w| w.attr_str(2, set), &mut |attrs| {
                let list = attrs.get(3).map_or(&[][..], |attr| attr.payload);
                for element in Attrs(list) {
                    each(&mut result, Printed(Attrs(element.payload)));
                }
            })
        })?;
        Ok(result)
    }

    fn ask(
        &mut self,
        message: u16,
        dump: bool,
        fill: impl FnOnce(&mut Writer),
        each: &mut dyn FnMut(Attrs<'_>),
    ) -> io::Result<()> {
        let table = self.table;
        let fill = |w: &mut Writer| {
            if message != MSG_GETGEN {
                w.attr_str(1, table);
            }
            fill(w);
        };
        self.channel
            .ask(message, nfproto(self.family), dump, fill, each)
    }

    fn retry(
        &mut self,
        operation: &'static str,
        mut read: impl FnMut(&mut Self) -> io::Result<()>,
    ) -> Result<(), DatapathError> {
        for _ in 0..READ_ATTEMPTS {
            match read(self) {
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(error(operation, self.table, source)),
                Ok(()) => return Ok(()),
            }
        }
        let source = io::ErrorKind::Interrupted.into();
        Err(error(operation, self.table, source))
    }
}

const READING: &str = "reading";

/// Says what a person can do about an answer of the kernel, where that is known.
fn error(operation: &'static str, object: &str, source: io::Error) -> DatapathError {
    // Kernel: a write to a table that another program owns is not permitted either, and that passes.
    let is_denied = source.kind() == io::ErrorKind::PermissionDenied && operation == READING;
    let advice = if is_denied {
        Some("run as root, or with the capability CAP_NET_ADMIN")
    } else if source.kind() == io::ErrorKind::Unsupported {
        Some(NEEDS)
    } else {
        None
    };
    match advice {
        Some(advice) => DatapathError::Unusable {
            operation,
            advice,
            source,
        },
        None => DatapathError::Refused {
            operation,
            object: object.to_owned(),
            source,
        },
    }
}
