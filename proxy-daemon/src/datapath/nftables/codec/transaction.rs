//! How do changes to our table become one batch of messages?
//!
//! Invariants: a batch is all or nothing; each message in it has a label, so that a refusal can say
//! what was refused; elements share messages as far as a message can hold them.

use std::borrow::Cow;

use super::element::write_comment;
use super::expr::{LIST_ELEM, write_expressions};
use super::set::write_set;
use super::wire::{
    Attrs, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFTABLES, NLM_F_ACK, NLM_F_APPEND,
    NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, Writer,
};
use super::{
    MSG_DELCHAIN, MSG_DELRULE, MSG_DELSET, MSG_DELSETELEM, MSG_DELTABLE, MSG_NEWCHAIN, MSG_NEWRULE,
    MSG_NEWSET, MSG_NEWSETELEM, MSG_NEWTABLE, Refused, nfproto,
};
use crate::datapath::nftables::ruleset::{Chain, Set};
use crate::net::IpFamily;

/// First sequence number of a transaction's messages; requests that read count from 1.
const FIRST_SEQ: u32 = 1 << 31;
/// A message's list of elements is one attribute, which cannot be longer than 65,535 bytes.
const MAX_ELEMENT_BYTES: usize = 60_000;

/// What a message that adds elements is to do.
const ADDITION: &str = "addition of elements";

/// Changes to our table that take effect together or not at all.
#[derive(Debug)]
pub(crate) struct Transaction {
    family: IpFamily,
    table: &'static str,
    w: Writer,
    last: usize,
    labels: Vec<Label>,
    elements: Option<OpenElements>,
}

/// What a message is to do.
#[derive(Clone, Debug)]
struct Label {
    operation: &'static str,
    object: Cow<'static, str>,
    /// Where it begins.
    start: usize,
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
            labels: vec![Label {
                operation: "beginning",
                object: Cow::Borrowed("transaction"),
                start: 0,
            }],
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
                w.nest(6, |w| write_comment(w, comment));
            },
        );
    }

    /// Makes sure that there is a table, and changes nothing if there is.
    pub(crate) fn ensure_table(&mut self) {
        let flags = NLM_F_CREATE;
        self.message(MSG_NEWTABLE, flags, "creation", "table".into(), |_| {});
    }

    /// Calls the base chains of a table that others switched off.
    pub(crate) fn wake_table(&mut self) {
        let operation = "clearing the flags";
        self.message(MSG_NEWTABLE, 0, operation, "table".into(), |w| {
            w.attr_u32(2, 0);
        });
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
            write_set(w, set, family);
        });
    }

    /// Creates a set or map with other user data than ours.
    #[cfg(test)]
    pub(crate) fn create_set_with(&mut self, set: &Set, userdata: &[u8]) {
        const USERDATA: u16 = 13;
        let family = self.family;
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.message(MSG_NEWSET, flags, "creation", set.name.into(), |w| {
            write_set(w, set, family);
            // Kernel: the last of several counts.
            w.attr(USERDATA, userdata);
        });
    }

    /// Removes a set or map by name.
    pub(crate) fn delete_set(&mut self, name: &str) {
        self.message(MSG_DELSET, 0, "removal", name.to_owned().into(), |w| {
            w.attr_str(2, name);
        });
    }

    /// Removes all elements of a set or map.
    pub(crate) fn flush_set(&mut self, name: &'static str) {
        self.message(
            MSG_DELSETELEM,
            0,
            "removal of all elements",
            name.into(),
            |w| {
                w.attr_str(2, name);
            },
        );
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
                w.nest(12, |w| write_comment(w, chain.comment));
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
                        w.nest(7, |w| write_comment(w, comment));
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

    /// Adds an element, given as `codec::write_element` wrote it.
    pub(crate) fn add_element(&mut self, set: &'static str, element: &[u8]) {
        self.element(MSG_NEWSETELEM, set, element);
    }

    /// Removes an element, given the bytes of its key as `codec::write_element` wrote it.
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
                (NLM_F_CREATE, ADDITION)
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
        let start = self.w.open_message(
            NFTABLES << 8 | kind,
            NLM_F_REQUEST | flags,
            seq,
            nfproto(self.family),
            0,
        );
        self.last = start;
        self.labels.push(Label {
            operation,
            object,
            start,
        });
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
    pub(super) fn finish(&mut self) -> u32 {
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

    /// The bytes to send.
    pub(super) fn as_slice(&self) -> &[u8] {
        self.w.as_slice()
    }

    /// What the message with this sequence number was to do, and to which object.
    pub(super) fn label(&self, seq: u32) -> (&'static str, Cow<'static, str>) {
        self.find(seq)
            .map_or(("commit", "transaction".into()), |label| {
                (label.operation, label.object.clone())
            })
    }

    fn find(&self, seq: u32) -> Option<&Label> {
        let index = usize::try_from(seq.wrapping_sub(FIRST_SEQ)).ok()?;
        self.labels.get(index)
    }

    /// The element at this byte of a message that adds elements.
    pub(super) fn element_at(&self, seq: u32, offset: Option<usize>) -> Option<Refused> {
        let label = self.find(seq)?;
        let attr = self.w.as_slice().get(label.start + offset?..)?;
        let attr = Attrs(attr).next()?;
        let Cow::Borrowed(set) = label.object else {
            return None;
        };
        (label.operation == ADDITION && attr.kind == LIST_ELEM).then(|| Refused {
            set,
            element: attr.payload.to_vec(),
        })
    }
}
