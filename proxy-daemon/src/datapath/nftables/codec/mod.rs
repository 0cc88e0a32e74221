//! How do our types become `nf_tables` messages, and what the kernel prints our types?
//!
//! Written in safe Rust over a plain netlink socket, not over libnftnl: that library (and the nftnl
//! crate over it) lacks maps, verdict maps, concatenated data, dynset and timeouts in safe form, costs
//! an allocation and a list node per element where we write forty bytes, and is GPL. The layout of a
//! message is a few numbers from a stable kernel header; what they mean is checked by reading back.
//!
//! Invariants: a [`Transaction`] is all or nothing; nothing outside our table is named in it; reading
//! is consistent or fails (the kernel says when objects changed during a dump, and we ask again).

use std::borrow::Cow;
use std::io;

mod element;
mod expr;
mod set;
mod socket;
mod wire;

pub(crate) use element::{Data, Key, Printed, write_element, write_timed};
pub(crate) use wire::Writer;

use super::ruleset::{Chain, Hook, Rule, Set};
use crate::datapath::DatapathError;
use crate::net::IpFamily;
use expr::{LIST_ELEM, write_expressions};
use socket::Channel;
use wire::{
    Attr, Attrs, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFTABLES, NLM_F_ACK, NLM_F_APPEND,
    NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
};

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

/// First sequence number of a transaction's messages; requests that read count from 1.
const FIRST_SEQ: u32 = 1 << 31;
/// A message's list of elements is one attribute, which cannot be longer than 65,535 bytes.
const MAX_ELEMENT_BYTES: usize = 60_000;
/// How often a read that others disturbed is tried again.
const READ_ATTEMPTS: u32 = 20;

const fn nfproto(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => NFPROTO_IPV4,
        IpFamily::V6 => NFPROTO_IPV6,
    }
}

/// Changes to our table that take effect together or not at all.
#[derive(Debug)]
pub(crate) struct Transaction {
    family: IpFamily,
    table: &'static str,
    w: Writer,
    last: usize,
    labels: Vec<(&'static str, Cow<'static, str>)>,
    elements: Option<OpenElements>,
}

/// The message that takes elements at the moment.
#[derive(Debug)]
struct OpenElements {
    kind: u16,
    set: &'static str,
    message: usize,
    list: usize,
}

impl Transaction {
    /// No changes yet. With a generation, the kernel refuses if anything changed since that one.
    pub(crate) fn new(family: IpFamily, table: &'static str, generation: Option<u32>) -> Self {
        let mut w = Writer::new();
        let begin = w.open_message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, FIRST_SEQ, 0, NFTABLES);
        if let Some(generation) = generation {
            w.attr_u32(1, generation);
        }
        w.close_message(begin);
        Self {
            family,
            table,
            w,
            last: 0,
            labels: vec![("beginning", Cow::Borrowed("transaction"))],
            elements: None,
        }
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.len() == 1
    }

    /// How many bytes there are to send.
    pub(crate) fn len(&self) -> usize {
        self.w.len()
    }

    /// Creates the table, if it is not there.
    pub(crate) fn create_table(&mut self, comment: &str) {
        self.message(
            MSG_NEWTABLE,
            NLM_F_CREATE,
            "creation",
            "table".into(),
            |w| {
                w.attr_u32(2, 0);
                w.nest(6, |w| element::write_comment(w, comment));
            },
        );
    }

    /// Removes the table with all that is in it.
    pub(crate) fn delete_table(&mut self) {
        self.message(MSG_DELTABLE, 0, "removal", "table".into(), |_| {});
    }

    /// Creates a set or map.
    pub(crate) fn create_set(&mut self, set: &Set) {
        let family = self.family;
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.message(MSG_NEWSET, flags, "creation", set.name.into(), |w| {
            set::write_set(w, set, family);
        });
    }

    /// Removes a set or map by name.
    pub(crate) fn delete_set(&mut self, name: &str) {
        self.message(MSG_DELSET, 0, "removal", name.to_owned().into(), |w| {
            w.attr_str(2, name);
        });
    }

    /// Creates a chain without its rules.
    pub(crate) fn create_chain(&mut self, chain: &Chain) {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.message(MSG_NEWCHAIN, flags, "creation", chain.name.clone(), |w| {
            w.attr_str(3, &chain.name);
            if let Some(hook) = chain.hook {
                w.nest(4, |w| {
                    w.attr_u32(1, hook.number);
                    w.attr(2, &hook.priority.to_be_bytes());
                });
                w.attr_u32(5, 1);
                w.attr_str(7, hook.chain_type);
            }
            if !chain.comment.is_empty() {
                w.nest(12, |w| element::write_comment(w, chain.comment));
            }
        });
    }

    /// Removes an empty chain by name.
    pub(crate) fn delete_chain(&mut self, name: &str) {
        self.message(MSG_DELCHAIN, 0, "removal", name.to_owned().into(), |w| {
            w.attr_str(3, name);
        });
    }

    /// Adds the rules of a chain behind those it has.
    pub(crate) fn create_rules(&mut self, chain: &Chain) {
        let family = self.family;
        for rule in &chain.rules {
            let flags = NLM_F_CREATE | NLM_F_APPEND;
            self.message(
                MSG_NEWRULE,
                flags,
                "creation of a rule",
                chain.name.clone(),
                |w| {
                    w.attr_str(2, &chain.name);
                    w.nest(4, |w| write_expressions(w, rule, family));
                    if let Some(comment) = rule.comment {
                        w.nest(7, |w| element::write_comment(w, comment));
                    }
                },
            );
        }
    }

    /// Removes all rules of a chain.
    pub(crate) fn flush_chain(&mut self, name: &str) {
        self.message(
            MSG_DELRULE,
            0,
            "removal of the rules",
            name.to_owned().into(),
            |w| {
                w.attr_str(2, name);
            },
        );
    }

    /// Adds an element, given as [`write_element`] wrote it.
    pub(crate) fn add_element(&mut self, set: &'static str, element: &[u8]) {
        self.element(MSG_NEWSETELEM, set, element);
    }

    /// Removes an element, given the bytes of its key as [`write_element`] wrote it.
    pub(crate) fn delete_element(&mut self, set: &'static str, key: &[u8]) {
        self.element(MSG_DELSETELEM, set, key);
    }

    fn element(&mut self, kind: u16, set: &'static str, element: &[u8]) {
        if let Some(open) = &self.elements {
            let full = self.w.len() - open.list + element.len() + 4 > MAX_ELEMENT_BYTES;
            if full || open.kind != kind || open.set != set {
                self.close_elements();
            }
        }
        if self.elements.is_none() {
            let (flags, operation) = if kind == MSG_NEWSETELEM {
                (NLM_F_CREATE, "addition of elements")
            } else {
                (0, "removal of elements")
            };
            let message = self.open(kind, flags, operation, set.into());
            self.w.attr_str(2, set);
            let list = self.w.open(3);
            self.elements = Some(OpenElements {
                kind,
                set,
                message,
                list,
            });
        }
        self.w.attr(LIST_ELEM, element);
    }

    fn close_elements(&mut self) {
        if let Some(open) = self.elements.take() {
            self.w.close(open.list);
            self.w.close_message(open.message);
        }
    }

    fn open(
        &mut self,
        kind: u16,
        flags: u16,
        operation: &'static str,
        object: Cow<'static, str>,
    ) -> usize {
        let seq = FIRST_SEQ + u32::try_from(self.labels.len()).unwrap_or(0);
        self.labels.push((operation, object));
        let start = self.w.open_message(
            NFTABLES << 8 | kind,
            NLM_F_REQUEST | flags,
            seq,
            nfproto(self.family),
            0,
        );
        self.last = start;
        self.w.attr_str(1, self.table);
        start
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        operation: &'static str,
        object: Cow<'static, str>,
        fill: impl FnOnce(&mut Writer),
    ) {
        self.close_elements();
        let start = self.open(kind, flags, operation, object);
        fill(&mut self.w);
        self.w.close_message(start);
    }

    /// Ends the batch; answers the sequence number that the kernel will acknowledge.
    fn finish(&mut self) -> u32 {
        self.close_elements();
        self.w.add_flags(self.last, NLM_F_ACK);
        let n = u32::try_from(self.labels.len()).unwrap_or(0);
        let end = self.w.open_message(
            NFNL_MSG_BATCH_END,
            NLM_F_REQUEST,
            FIRST_SEQ + n,
            0,
            NFTABLES,
        );
        self.w.close_message(end);
        FIRST_SEQ + n.saturating_sub(1)
    }
}

/// A chain that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrintedChain {
    /// Its name.
    pub(crate) name: String,
    /// Set for base chains: type, hook number, priority and policy.
    pub(crate) hook: Option<(String, u32, u32, u32)>,
    /// The payload of `NFTA_RULE_EXPRESSIONS` of each of its rules.
    pub(crate) rules: Vec<Vec<u8>>,
}

impl PrintedChain {
    /// Whether it is called where `hook` says, and accepts what no rule decides.
    pub(crate) fn has_hook(&self, hook: Option<Hook>) -> bool {
        let want = hook.map(|hook| {
            let priority = u32::from_be_bytes(hook.priority.to_be_bytes());
            (hook.chain_type.to_owned(), hook.number, priority, 1)
        });
        self.hook == want
    }

    /// Whether it has just these rules.
    pub(crate) fn has_rules(&self, rules: &[Rule], family: IpFamily) -> bool {
        self.rules.len() == rules.len()
            && self.rules.iter().zip(rules).all(|(printed, rule)| {
                let mut w = Writer::new();
                write_expressions(&mut w, rule, family);
                wire::same_expressions(printed, w.as_slice())
            })
    }
}

/// A set that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrintedSet {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is declared as we would; `None` if we would not have it at all.
    pub(crate) is_same: Option<bool>,
    /// How many elements it has; newer kernels say so.
    pub(crate) n_elements: Option<usize>,
}

/// The `nf_tables` of one network namespace, seen through one family.
#[derive(Debug)]
pub(crate) struct Kernel {
    channel: Channel,
    family: IpFamily,
    table: &'static str,
    n_commits: u32,
}

impl Kernel {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if there is no netlink to `nf_tables`.
    pub(crate) fn open(family: IpFamily, table: &'static str) -> Result<Self, DatapathError> {
        let channel = Channel::open().map_err(|source| DatapathError::Unusable {
            operation: "opening a netlink socket to nf_tables",
            advice: "the kernel needs CONFIG_NETFILTER_NETLINK and CONFIG_NF_TABLES",
            source,
        })?;
        Ok(Self {
            channel,
            family,
            table,
            n_commits: 0,
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
        let label = |seq: u32| {
            let index = usize::try_from(seq.wrapping_sub(FIRST_SEQ)).unwrap_or(usize::MAX);
            transaction
                .labels
                .get(index)
                .cloned()
                .unwrap_or(("commit", "transaction".into()))
        };
        match self.channel.transact(transaction.w.as_slice(), last) {
            Ok(Ok(())) => {
                self.n_commits = self.n_commits.wrapping_add(1);
                Ok(())
            }
            Ok(Err(refusal)) => {
                let (operation, object) = label(refusal.seq);
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
        .map_err(|source| error("reading", "the generation", source))?;
        Ok(generation)
    }

    /// Whether our table exists.
    pub(crate) fn has_table(&mut self) -> Result<bool, DatapathError> {
        match self.ask(MSG_GETTABLE, false, |_| {}, &mut |_| {}) {
            Ok(()) => Ok(true),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(error("reading", self.table, source)),
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
                    chains.extend(printed_chain(attrs));
                }
            })?;
            kernel.ask(MSG_GETRULE, true, |_| {}, &mut |attrs| {
                let chain = attrs.get(2).and_then(Attr::str);
                let exprs = attrs.get(4).map_or(&[][..], |attr| attr.payload);
                if let Some(chain) = chains.iter_mut().find(|c| Some(&c.name) == chain.as_ref()) {
                    chain.rules.push(exprs.to_vec());
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

fn printed_chain(attrs: Attrs<'_>) -> Option<PrintedChain> {
    let hook = attrs.get(4).and_then(|hook| {
        let number = |kind| Attrs(hook.payload).get(kind)?.u32();
        Some((
            attrs.get(7)?.str()?,
            number(1)?,
            number(2)?,
            attrs.get(5)?.u32()?,
        ))
    });
    Some(PrintedChain {
        name: attrs.get(3)?.str()?,
        hook,
        rules: Vec::new(),
    })
}

/// Says what a person can do about an answer of the kernel, where that is known.
fn error(operation: &'static str, object: &str, source: io::Error) -> DatapathError {
    let advice = if source.kind() == io::ErrorKind::PermissionDenied {
        Some("run as root, or with the capability CAP_NET_ADMIN")
    } else if source.kind() == io::ErrorKind::Unsupported {
        Some(
            "the kernel lacks a part of nf_tables: CONFIG_NF_TABLES, and CONFIG_NFT_NAT, _MASQ, _FIB, \
             _CT, _NUMGEN, _REJECT are needed; Linux 5.13 or later has what we use",
        )
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
