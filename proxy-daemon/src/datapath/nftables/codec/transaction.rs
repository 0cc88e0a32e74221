//! How do changes to our table become one batch of messages?
//!
//! The batch, the table, its chains, sets and rules are objects of nftnl. Elements are bytes that
//! `element` wrote, as messages of their own in the same batch, because there are hundreds of
//! thousands of them, and libnftnl wants an object, a list node and a copy of each key. Invariants: a
//! batch is all or nothing; each message in it has a label, so that a refusal can say what was refused;
//! elements share messages as far as a message can hold them.

use std::borrow::Cow;
use std::ffi::{CString, c_int};

use nftnl::{Batch, ChainType, MsgType, NlMsg, Policy, ProtoFamily, Rule, Table};
use nftnl_sys::libc::{self, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};

use super::Refused;
use super::element::{LIST_ELEM, comment_bytes};
use super::expr::expressions;
use super::set::with_nftnl_set;
use crate::datapath::nftables::ruleset::{Chain, Set};
use crate::net::IpFamily;
use crate::sys::netfilter::attributes::{Attrs, Writer};
use crate::sys::netfilter::library::{Header, Message};
use crate::sys::netfilter::{Refusal, new_batch};

/// A message's list of elements is one attribute, which cannot be longer than 65,535 bytes.
const MAX_ELEMENT_BYTES: usize = 60_000;
/// What a message that adds elements is to do.
const ADDITION: &str = "addition of elements";

/// Changes to our table that take effect together or not at all.
pub(crate) struct Transaction {
    table: Table,
    name: &'static str,
    family: IpFamily,
    generation: Option<u32>,
    messages: Messages,
    elements: Elements,
}

/// What a message is to do, and to which object.
type Label = (&'static str, Cow<'static, str>);

/// A batch, and the labels of its messages.
struct Messages {
    batch: Batch,
    labels: Vec<Label>,
    n_element_bytes: usize,
}

impl Messages {
    fn add(
        &mut self,
        object: &impl NlMsg,
        msg_type: MsgType,
        (flags, more): (c_int, &[u8]),
        label: Label,
    ) {
        // One message is acknowledged, for all of them.
        let acknowledge = if self.labels.is_empty() { NLM_F_ACK } else { 0 };
        let flags = flags | acknowledge;
        let message = Message {
            object,
            flags,
            more,
        };
        self.batch.add(&message, msg_type);
        self.labels.push(label);
    }
}

/// The message that takes elements at the moment.
#[derive(Default)]
struct Elements {
    /// Its type and set.
    of: Option<(c_int, &'static str)>,
    w: Writer,
    list: usize,
}

fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

impl Transaction {
    /// No changes yet. With a generation, the kernel refuses if anything changed since that one.
    pub(crate) fn new(family: IpFamily, table: &'static str, generation: Option<u32>) -> Self {
        let protocol = match family {
            IpFamily::V4 => ProtoFamily::Ipv4,
            IpFamily::V6 => ProtoFamily::Ipv6,
        };
        Self {
            table: Table::new(c_string(table), protocol),
            name: table,
            family,
            generation,
            messages: Messages {
                batch: new_batch(),
                labels: Vec::new(),
                n_element_bytes: 0,
            },
            elements: Elements::default(),
        }
    }

    /// Whether there is nothing to do.
    pub(crate) const fn is_empty(&self) -> bool {
        self.messages.labels.is_empty() && self.elements.of.is_none()
    }

    /// How many bytes of elements there are to send.
    pub(crate) fn len(&self) -> usize {
        self.messages.n_element_bytes + self.elements.w.len()
    }

    /// Creates the table, if it is not there.
    pub(crate) fn create_table(&mut self, comment: &str) {
        /// `NFTA_TABLE_USERDATA`
        const USERDATA: u16 = 6;
        let mut w = Writer::new();
        w.attr(USERDATA, &comment_bytes(comment));
        self.close_elements();
        let label = ("creation", "table".into());
        let how = (NLM_F_CREATE, w.as_slice());
        self.messages.add(&self.table, MsgType::Add, how, label);
    }

    /// Makes sure that there is a table, and changes nothing if there is.
    pub(crate) fn ensure_table(&mut self) {
        // The library's message would clear the table's flags.
        let of = [(super::TABLE_NAME, self.name)];
        self.plain(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE, &of, "creation");
    }

    /// Calls the base chains of a table that others switched off.
    pub(crate) fn wake_table(&mut self) {
        self.close_elements();
        let label = ("clearing the flags", "table".into());
        self.messages
            .add(&self.table, MsgType::Add, (0, &[]), label);
    }

    /// Removes the table with all that is in it.
    pub(crate) fn delete_table(&mut self) {
        let of = [(super::TABLE_NAME, self.name)];
        self.plain(libc::NFT_MSG_DELTABLE, 0, &of, "removal");
    }

    /// Creates a set or map.
    pub(crate) fn create_set(&mut self, set: &Set) {
        self.create_set_with(set, &[]);
    }

    /// Creates a set or map with more attributes than ours.
    ///
    /// Kernel: the last of several with the same type counts.
    pub(crate) fn create_set_with(&mut self, set: &Set, more: &[u8]) {
        self.close_elements();
        let messages = &mut self.messages;
        with_nftnl_set(set, &self.table, self.family, |nftnl| {
            let label = ("creation", set.name.into());
            let how = (NLM_F_CREATE | NLM_F_EXCL, more);
            messages.add(nftnl, MsgType::Add, how, label);
        });
    }

    /// Removes a set or map by name.
    pub(crate) fn delete_set(&mut self, name: &str) {
        let of = [(super::SET_TABLE, self.name), (super::SET_NAME, name)];
        self.plain(libc::NFT_MSG_DELSET, 0, &of, "removal");
    }

    /// Removes all elements of a set or map.
    pub(crate) fn flush_set(&mut self, name: &str) {
        let of = [(super::SET_TABLE, self.name), (super::SET_NAME, name)];
        let operation = "removal of all elements";
        self.plain(libc::NFT_MSG_DELSETELEM, 0, &of, operation);
    }

    /// Creates a chain without its rules.
    pub(crate) fn create_chain(&mut self, chain: &Chain) {
        /// `NFTA_CHAIN_USERDATA`
        const USERDATA: u16 = 12;
        self.close_elements();
        let mut nftnl = nftnl::Chain::new(c_string(&chain.name), &self.table);
        if let Some(place) = chain.hook {
            let is_nat = place.chain_type == "nat";
            nftnl.set_hook(place.at, place.priority);
            nftnl.set_policy(Policy::Accept);
            nftnl.set_type(if is_nat {
                ChainType::Nat
            } else {
                ChainType::Filter
            });
        }
        let mut w = Writer::new();
        if !chain.comment.is_empty() {
            w.attr(USERDATA, &comment_bytes(chain.comment));
        }
        let how = (NLM_F_CREATE | NLM_F_EXCL, w.as_slice());
        let label = ("creation", chain.name.clone());
        self.messages.add(&nftnl, MsgType::Add, how, label);
    }

    /// Removes an empty chain by name.
    pub(crate) fn delete_chain(&mut self, name: &str) {
        let of = [(super::TABLE_NAME, self.name), (super::CHAIN_NAME, name)];
        self.plain(libc::NFT_MSG_DELCHAIN, 0, &of, "removal");
    }

    /// Adds the rules of a chain behind those it has.
    pub(crate) fn create_rules(&mut self, chain: &Chain) {
        self.close_elements();
        let of = nftnl::Chain::new(c_string(&chain.name), &self.table);
        for rule in &chain.rules {
            let mut nftnl = Rule::new(&of);
            for expression in expressions(&rule.exprs, self.family) {
                nftnl.add_expr(&expression);
            }
            // It fails for comments over 128 bytes, of which we have none: the rule is shown without it.
            let _is_shown = rule
                .comment
                .map(|comment| nftnl.set_comment(c_string(comment)));
            let label = ("creation of a rule", chain.name.clone());
            let how: (c_int, &[u8]) = (NLM_F_CREATE | NLM_F_APPEND, &[]);
            self.messages.add(&nftnl, MsgType::Add, how, label);
        }
    }

    /// Removes all rules of a chain.
    pub(crate) fn flush_chain(&mut self, name: &str) {
        let of = [(super::TABLE_NAME, self.name), (super::RULE_CHAIN, name)];
        self.plain(libc::NFT_MSG_DELRULE, 0, &of, "removal of the rules");
    }

    /// Adds an element, given as `codec::write_element` wrote it.
    pub(crate) fn add_element(&mut self, set: &'static str, element: &[u8]) {
        self.element(libc::NFT_MSG_NEWSETELEM, set, element);
    }

    /// Removes an element, given the bytes of its key as `codec::write_element` wrote it.
    pub(crate) fn delete_element(&mut self, set: &'static str, key: &[u8]) {
        self.element(libc::NFT_MSG_DELSETELEM, set, key);
    }

    fn element(&mut self, kind: c_int, set: &'static str, element: &[u8]) {
        /// `NFTA_SET_ELEM_LIST_ELEMENTS`
        const ELEMENTS: u16 = 3;
        let is_full = self.elements.w.len() + element.len() + 4 > MAX_ELEMENT_BYTES;
        if is_full || self.elements.of != Some((kind, set)) {
            self.close_elements();
            let w = &mut self.elements.w;
            w.attr_str(super::SET_TABLE, self.name);
            w.attr_str(super::SET_NAME, set);
            self.elements.list = w.open(ELEMENTS);
            self.elements.of = Some((kind, set));
        }
        self.elements.w.attr(LIST_ELEM, element);
    }

    fn close_elements(&mut self) {
        let Some((kind, set)) = self.elements.of.take() else {
            return;
        };
        let (flags, operation) = if kind == libc::NFT_MSG_NEWSETELEM {
            (NLM_F_CREATE, ADDITION)
        } else {
            (0, "removal of elements")
        };
        let Elements { w, list, .. } = &mut self.elements;
        w.close(*list);
        self.messages.n_element_bytes += w.len();
        let header = self.header(kind);
        let how = (flags, self.elements.w.as_slice());
        let label = (operation, set.into());
        self.messages.add(&header, MsgType::Add, how, label);
        self.elements.w.clear();
    }

    fn header(&self, kind: c_int) -> Header {
        Header {
            kind: u16::try_from(kind).unwrap_or(u16::MAX),
            family: self.table.get_family() as u16,
        }
    }

    /// Adds a message with just these names, of which the last is that of the object, or the table's.
    fn plain(&mut self, kind: c_int, flags: c_int, names: &[(u16, &str)], operation: &'static str) {
        self.close_elements();
        let mut w = Writer::new();
        for (attribute, name) in names {
            w.attr_str(*attribute, name);
        }
        let object = match names {
            [_, (_, name)] => (*name).to_owned().into(),
            _ => "table".into(),
        };
        let how = (flags, w.as_slice());
        let header = self.header(kind);
        self.messages
            .add(&header, MsgType::Add, how, (operation, object));
    }

    /// What is to be sent, for which generation, and what each message is to do.
    pub(super) fn finish(mut self) -> (Batch, Option<u32>, Labels) {
        self.close_elements();
        let Messages { batch, labels, .. } = self.messages;
        (batch, self.generation, Labels(labels))
    }
}

/// What each message of a transaction is to do, and to which object.
pub(super) struct Labels(Vec<Label>);

impl Labels {
    /// What was to be done, to which object, and the element at fault, if it is one.
    pub(super) fn explain(&self, refusal: &Refusal) -> (Label, Option<Refused>) {
        let label = refusal.message.and_then(|index| self.0.get(index));
        let Some(label) = label else {
            return (("commit", "transaction".into()), None);
        };
        let attr = Attrs(&refusal.attribute).next();
        let element = match (label, attr) {
            ((ADDITION, Cow::Borrowed(set)), Some(attr)) if attr.kind == LIST_ELEM => {
                Some(Refused {
                    set,
                    element: attr.payload.to_vec(),
                })
            }
            _ => None,
        };
        (label.clone(), element)
    }
}

#[cfg(test)]
mod tests {
    use super::super::element::{Data, Key, write_element};
    use super::*;
    use nftnl::set::{Set as NftnlSet, SetKey};
    use std::io::Write as _;
    use std::time::{Duration, Instant};

    struct Frontend([u8; 16]);

    impl SetKey for Frontend {
        const TYPE: u32 = 7;
        const LEN: u32 = 16;

        fn data(&self) -> Box<[u8]> {
            self.0.into()
        }
    }

    /// Prints how long both ways take; see the module's documentation.
    #[test]
    #[ignore = "a measurement, not a test: build it with --release"]
    #[expect(clippy::disallowed_methods, reason = "a measurement needs the time")]
    fn elements_as_bytes_and_as_objects() {
        const N: u32 = 100_000;
        let key = |number: u32| {
            let mut key = [0; 16];
            key[..4].copy_from_slice(&number.to_be_bytes());
            key
        };
        let table = Table::new(c"measured", ProtoFamily::Ipv4);
        let mut best = [Duration::MAX; 2];
        for _ in 0..60 {
            let start = Instant::now();
            let mut transaction = Transaction::new(IpFamily::V4, "measured", None);
            let mut w = Writer::new();
            for number in 0..N {
                w.clear();
                write_element(&mut w, Key::Exact(&key(number)), Data::None, "");
                transaction.add_element("set", w.as_slice());
            }
            let (batch, ..) = transaction.finish();
            let n_own: usize = batch.finalize().iter().map(<[u8]>::len).sum();
            best[0] = best[0].min(start.elapsed());

            let start = Instant::now();
            let mut set = NftnlSet::<Frontend>::new_named(c"set", 1, &table, ProtoFamily::Ipv4);
            for number in 0..N {
                set.add(&Frontend(key(number)));
            }
            let mut batch = new_batch();
            batch.add_iter(set.elems_iter(), MsgType::Add);
            let n_objects: usize = batch.finalize().iter().map(<[u8]>::len).sum();
            drop(set);
            best[1] = best[1].min(start.elapsed());
            assert!(n_own.abs_diff(n_objects) < n_own / 100);
        }
        let [own, objects] = best;
        let ratio = objects.as_secs_f64() / own.as_secs_f64();
        let mut out = std::io::stdout();
        writeln!(out, "{own:?} as bytes, {objects:?} as objects: {ratio:.1}").unwrap();
    }
}
