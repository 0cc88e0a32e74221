//! How do our types become `nf_tables` messages, and what the kernel prints our types?
//!
//! Tables, chains, sets, rules and the batch are objects of libnftnl, through the nftnl crate and, for
//! what it lacks, through `sys::netfilter::library`: its names for attributes and its layout of messages
//! are the ones that `nft` itself uses. Elements are bytes of our own, because they are many: a batch of
//! 100,000 of them takes 1.3 ms to build as bytes and 8.2 ms as objects of the library, 6 times as long
//! (the best of 60 rounds each), and objects cost a few allocations for each element.
//! `cargo test --release -p proxy-daemon --lib elements_as_bytes -- --ignored --nocapture` measures both.
//!
//! Invariants: a [`Transaction`] is all or nothing; nothing outside our table is named in it; reading
//! is consistent or fails (the kernel says when objects changed during a dump, and we ask again).

use std::io;

mod element;
mod expr;
mod printed;
mod set;
mod transaction;

pub(crate) use crate::sys::netfilter::attributes::Writer;
pub(crate) use element::{Data, Key, Printed, write_element, write_timed};
pub(crate) use printed::{PrintedChain, PrintedSet, PrintedTable, TableIs};
pub(crate) use transaction::Transaction;

use super::ruleset::Set;
use crate::datapath::DatapathError;
use crate::net::IpFamily;
use crate::sys::netfilter::attributes::Attrs;
use crate::sys::netfilter::{self, NFTABLES, Netfilter, family_number};
use nftnl_sys::libc;
use printed::written;

/// What to tell a person whose kernel lacks something.
pub(crate) const NEEDS: &str = "the kernel lacks a part of nf_tables: CONFIG_NF_TABLES, and \
    CONFIG_NFT_NAT, _MASQ, _FIB, _CT, _NUMGEN, _REJECT are needed; Linux 5.13 or later has what we use";

/// `NFTA_TABLE_NAME`; all other objects name their table by an attribute of the same number.
const TABLE_NAME: u16 = 1;
/// `NFTA_SET_TABLE`, and `NFTA_SET_ELEM_LIST_TABLE` for elements.
const SET_TABLE: u16 = 1;
/// `NFTA_SET_NAME`, and `NFTA_SET_ELEM_LIST_SET` for elements.
const SET_NAME: u16 = 2;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`
const ELEMENTS: u16 = 3;
/// `NFTA_CHAIN_NAME`
const CHAIN_NAME: u16 = 3;
/// `NFTA_RULE_CHAIN`
const RULE_CHAIN: u16 = 2;

/// How often a read that others disturbed is tried again.
const READ_ATTEMPTS: usize = 20;

/// The family in the language of `nft`.
const fn word(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

/// The `nf_tables` of one network namespace, seen through one family.
#[derive(Debug)]
pub(crate) struct Kernel {
    netfilter: Netfilter,
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
        let netfilter = Netfilter::open().map_err(|source| {
            DatapathError::lacking(
                "opening a netlink socket to nf_tables",
                "the kernel needs CONFIG_NETFILTER_NETLINK and CONFIG_NF_TABLES",
                source,
            )
        })?;
        Ok(Self {
            netfilter,
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
    pub(crate) fn commit(&mut self, transaction: Transaction) -> Result<(), DatapathError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let (batch, generation, labels) = transaction.finish();
        self.refused = None;
        match self.netfilter.commit(batch, generation) {
            Ok(Ok(())) => {
                self.n_commits = self.n_commits.wrapping_add(1);
                Ok(())
            }
            Ok(Err(refusal)) => {
                let ((operation, object), element) = labels.explain(&refusal);
                self.refused = element;
                let object = format!("{} {object}", self.table);
                Err(error(operation, &object, refusal.source))
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

    /// The element for which the last transaction was refused, if the kernel named it.
    pub(crate) const fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }

    /// How many transactions were applied through this value; each moves the generation by one.
    pub(crate) const fn n_commits(&self) -> u32 {
        self.n_commits
    }

    /// The generation of the namespace's rules: it moves with every change by anyone.
    pub(crate) fn generation(&mut self) -> Result<u32, DatapathError> {
        netfilter::generation(&mut self.netfilter)
            .map_err(|source| error(READING, "the generation", source))
    }

    /// Our table, if it is there.
    ///
    /// # Errors
    /// [`DatapathError::Held`] if another program alone may write to it.
    pub(crate) fn table(&mut self) -> Result<Option<PrintedTable>, DatapathError> {
        let name = self.name();
        let table = self
            .find(libc::NFT_MSG_GETTABLE, &name, PrintedTable::new)
            .map_err(|source| error(READING, self.table, source))?;
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
        self.read("reading the chains", |kernel| {
            let mut chains: Vec<PrintedChain> = Vec::new();
            let table = kernel.table;
            kernel.list(libc::NFT_MSG_GETCHAIN, None, &mut |attrs| {
                if attrs.str(TABLE_NAME) == Some(table) {
                    chains.extend(PrintedChain::new(attrs));
                }
            })?;
            kernel.list(libc::NFT_MSG_GETRULE, None, &mut |attrs| {
                let chain = attrs.str(RULE_CHAIN);
                if let Some(chain) = chains.iter_mut().find(|c| Some(&*c.name) == chain) {
                    chain.rules.push(attrs.0.to_vec());
                }
            })?;
            Ok(chains)
        })
    }

    /// Our table's sets, compared with what is expected.
    pub(crate) fn sets(&mut self, expected: &[Set]) -> Result<Vec<PrintedSet>, DatapathError> {
        let written = written(self.family, |transaction| {
            for set in expected {
                transaction.create_set(set);
            }
        });
        self.read("reading the sets", |kernel| {
            let mut sets = Vec::new();
            let table = kernel.table;
            kernel.list(libc::NFT_MSG_GETSET, None, &mut |attrs| {
                if attrs.str(SET_TABLE) != Some(table) {
                    return;
                }
                if let Some(name) = attrs.str(SET_NAME) {
                    let mut known = expected.iter().zip(&written);
                    let known = known.find(|(set, _)| set.name == name);
                    sets.push(PrintedSet {
                        name: name.to_owned(),
                        is_same: known.map(|(_, written)| set::is_same(attrs, Attrs(written))),
                        is_anonymous: set::is_anonymous(attrs),
                        size: set::size(attrs),
                        n_elements: set::n_elements(attrs),
                    });
                }
            })?;
            Ok(sets)
        })
    }

    /// Reads the element with this key, given as [`write_element`] wrote it; `None` if there is none.
    pub(crate) fn element<T>(
        &mut self,
        set: &'static str,
        key: &[u8],
        read: impl Fn(Printed<'_>) -> T,
    ) -> Result<Option<T>, DatapathError> {
        let mut w = self.name();
        w.attr_str(SET_NAME, set);
        w.nest(ELEMENTS, |w| w.attr(element::LIST_ELEM, key));
        let found = self.find(libc::NFT_MSG_GETSETELEM, &w, |attrs| {
            let first = attrs.inside(ELEMENTS).next();
            first.map(|element| read(Printed(element.inside())))
        });
        found
            .map(Option::flatten)
            .map_err(|source| error("reading an element", self.table, source))
    }

    /// Asks for one object; `None` if there is none.
    fn find<T>(
        &mut self,
        kind: libc::c_int,
        which: &Writer,
        read: impl Fn(Attrs<'_>) -> T,
    ) -> io::Result<Option<T>> {
        let mut found = None;
        let family = family_number(self.family);
        let result = self
            .netfilter
            .get(message(kind), family, which, &mut |attrs| {
                found = Some(read(attrs));
            });
        match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// Hands each element of a set to `each`, with what `new` made; begins anew if disturbed.
    pub(crate) fn elements<T>(
        &mut self,
        set: &'static str,
        new: impl Fn() -> T,
        mut each: impl FnMut(&mut T, Printed<'_>),
    ) -> Result<T, DatapathError> {
        self.read("reading a set", |kernel| {
            let mut result = new();
            kernel.list(libc::NFT_MSG_GETSETELEM, Some(set), &mut |attrs| {
                for element in attrs.inside(ELEMENTS) {
                    each(&mut result, Printed(element.inside()));
                }
            })?;
            Ok(result)
        })
    }

    /// The attribute that names our table.
    fn name(&self) -> Writer {
        let mut w = Writer::new();
        w.attr_str(TABLE_NAME, self.table);
        w
    }

    /// Lists objects of our table, or the elements of a set of it.
    fn list(
        &mut self,
        kind: libc::c_int,
        set: Option<&str>,
        each: &mut dyn FnMut(Attrs<'_>),
    ) -> io::Result<()> {
        let mut w = self.name();
        if let Some(set) = set {
            w.attr_str(SET_NAME, set);
        }
        let family = family_number(self.family);
        self.netfilter.list(message(kind), family, &w, each)
    }

    fn read<T>(
        &mut self,
        operation: &'static str,
        mut read: impl FnMut(&mut Self) -> io::Result<T>,
    ) -> Result<T, DatapathError> {
        netfilter::undisturbed(READ_ATTEMPTS, || read(self))
            .map_err(|source| error(operation, self.table, source))
    }
}

/// The type of a question to `nf_tables`.
fn message(kind: libc::c_int) -> u16 {
    u16::try_from(kind).map_or(u16::MAX, |kind| NFTABLES | kind)
}

const READING: &str = "reading";

/// Adds advice to a known error of the kernel.
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
