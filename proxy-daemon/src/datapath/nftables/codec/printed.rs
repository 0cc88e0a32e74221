//! What does the kernel say of our objects, and is it all that was wanted, and no more?
//!
//! Invariants: every attribute that we know is compared, also those that we never write: what is set
//! there was set by others, and may switch the rest off. Attributes that we do not know are passed
//! over, so that a newer kernel is no damage. Spec: SYNC-9, LIFE-17.
//! Source: `include/uapi/linux/netfilter/nf_tables.h` of Linux 6.18.

use super::element::comment_bytes;
use super::expr::write_expressions;
use super::wire::{Attr, Attrs, Writer};
use crate::datapath::nftables::ruleset::{Chain, Rule};
use crate::net::IpFamily;

/// `NFT_TABLE_F_DORMANT`: none of its base chains is called.
const DORMANT: u32 = 1;

/// Our table, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrintedTable {
    /// `enum nft_table_flags`; we set none.
    flags: u32,
    comment: Vec<u8>,
    /// The netlink port that alone may write to it.
    pub(crate) owner: Option<u32>,
    /// How many chains, sets, objects and flowtables it has.
    pub(crate) n_objects: Option<usize>,
}

/// How a table differs from what was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableIs {
    /// Not at all.
    Same,
    /// Switched off, and nothing else.
    Dormant,
    /// By what only a new table can mend.
    Other,
}

impl PrintedTable {
    pub(super) fn new(attrs: Attrs<'_>) -> Self {
        const FLAGS: u16 = 2;
        const USE: u16 = 3;
        const USERDATA: u16 = 6;
        const OWNER: u16 = 7;
        let number = |kind| attrs.get(kind).and_then(Attr::u32);
        Self {
            flags: number(FLAGS).unwrap_or(0),
            comment: payload(attrs, USERDATA),
            owner: number(OWNER),
            n_objects: number(USE).and_then(|n| usize::try_from(n).ok()),
        }
    }

    /// Compares it with a table that has this comment.
    pub(crate) fn is(&self, comment: &str) -> TableIs {
        if self.comment != comment_bytes(comment) || self.flags & !DORMANT != 0 {
            TableIs::Other
        } else if self.flags == DORMANT {
            TableIs::Dormant
        } else {
            TableIs::Same
        }
    }
}

/// A chain that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrintedChain {
    /// Its name.
    pub(crate) name: String,
    /// Set for base chains: type, hook number, priority and policy.
    hook: Option<(String, u32, u32, u32)>,
    comment: Vec<u8>,
    /// Whether something is set that we never set: devices, offloading, counters.
    has_more: bool,
    /// Its rules.
    pub(super) rules: Vec<PrintedRule>,
}

/// A rule that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PrintedRule {
    /// The payload of `NFTA_RULE_EXPRESSIONS`.
    exprs: Vec<u8>,
    comment: Vec<u8>,
}

impl PrintedRule {
    pub(super) fn new(attrs: Attrs<'_>) -> Self {
        const EXPRESSIONS: u16 = 4;
        const USERDATA: u16 = 7;
        Self {
            exprs: payload(attrs, EXPRESSIONS),
            comment: payload(attrs, USERDATA),
        }
    }

    fn is(&self, rule: &Rule, family: IpFamily) -> bool {
        let mut w = Writer::new();
        write_expressions(&mut w, rule, family);
        self.comment == comment_bytes(rule.comment.unwrap_or_default())
            && same_expressions(&self.exprs, w.as_slice())
    }
}

impl PrintedChain {
    pub(super) fn new(attrs: Attrs<'_>) -> Option<Self> {
        const NAME: u16 = 3;
        const HOOK: u16 = 4;
        const POLICY: u16 = 5;
        const TYPE: u16 = 7;
        const COUNTERS: u16 = 8;
        const FLAGS: u16 = 10;
        const USERDATA: u16 = 12;
        const HOOK_NUMBER: u16 = 1;
        const HOOK_PRIORITY: u16 = 2;
        const HOOK_DEVICE: u16 = 3;
        const HOOK_DEVICES: u16 = 4;
        /// `NFT_CHAIN_HW_OFFLOAD`, `NFT_CHAIN_BINDING`
        const NOT_OURS: u32 = 2 | 4;
        let hook_attrs = attrs.get(HOOK).map(|hook| Attrs(hook.payload));
        let hook = hook_attrs.and_then(|hook| {
            Some((
                attrs.get(TYPE)?.str()?,
                hook.get(HOOK_NUMBER)?.u32()?,
                hook.get(HOOK_PRIORITY)?.u32()?,
                attrs.get(POLICY)?.u32()?,
            ))
        });
        let has_device = hook_attrs.is_some_and(|hook| {
            hook.get(HOOK_DEVICE).is_some() || hook.get(HOOK_DEVICES).is_some()
        });
        let flags = attrs.get(FLAGS).and_then(Attr::u32).unwrap_or(0);
        Some(Self {
            name: attrs.get(NAME)?.str()?,
            hook,
            comment: payload(attrs, USERDATA),
            has_more: has_device || flags & NOT_OURS != 0 || attrs.get(COUNTERS).is_some(),
            rules: Vec::new(),
        })
    }

    /// Whether it is declared as `chain`; its rules apart. A base chain accepts what no rule decides.
    pub(crate) fn is_declared_as(&self, chain: &Chain) -> bool {
        let hook = chain.hook.map(|hook| {
            let priority = u32::from_be_bytes(hook.priority.to_be_bytes());
            (hook.chain_type.to_owned(), hook.number, priority, 1)
        });
        self.hook == hook && !self.has_more && self.comment == comment_bytes(chain.comment)
    }

    /// Whether it has just these rules.
    pub(crate) fn has_rules(&self, rules: &[Rule], family: IpFamily) -> bool {
        self.rules.len() == rules.len()
            && self
                .rules
                .iter()
                .zip(rules)
                .all(|(printed, rule)| printed.is(rule, family))
    }

    /// How many rules it has.
    pub(crate) fn n_rules(&self) -> usize {
        self.rules.len()
    }
}

/// A set that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrintedSet {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is declared as we would; `None` if we would not have it at all.
    pub(crate) is_same: Option<bool>,
    /// Whether it is part of a rule, and goes with it.
    pub(crate) is_anonymous: bool,
    /// How many elements it has; newer kernels say so.
    pub(crate) n_elements: Option<usize>,
}

fn payload(attrs: Attrs<'_>, kind: u16) -> Vec<u8> {
    attrs
        .get(kind)
        .map_or_else(Vec::new, |attr| attr.payload.to_vec())
}

/// The attributes of an expression that we know, and what the kernel prints of those that we leave out.
struct Known {
    name: &'static str,
    /// The highest that we know.
    max: u16,
    /// Printed although not written, and with which value.
    defaults: &'static [(u16, Default)],
}

/// What the kernel prints of an attribute that was not written.
#[derive(Clone, Copy)]
enum Default {
    /// This number.
    Number(u32),
    /// No time.
    NoTime,
    /// What was written as this other attribute.
    SameAs(u16),
}

const KNOWN: &[Known] = &[
    known("payload", 8, &[]),
    known("meta", 3, &[]),
    known("ct", 4, &[]),
    known("cmp", 3, &[]),
    // The operation: by mask and xor.
    known("bitwise", 8, &[(6, Default::Number(0))]),
    known("lookup", 5, &[]),
    known("immediate", 2, &[]),
    known("numgen", 6, &[]),
    known("fib", 3, &[]),
    known("masq", 3, &[]),
    known("reject", 2, &[]),
    // Ranges of one address and port, and the flags that say that there are some.
    known(
        "nat",
        7,
        &[
            (4, Default::SameAs(3)),
            (6, Default::SameAs(5)),
            (7, Default::Number(3)),
        ],
    ),
    known(
        "dynset",
        10,
        &[(6, Default::NoTime), (9, Default::Number(0))],
    ),
];

const fn known(name: &'static str, max: u16, defaults: &'static [(u16, Default)]) -> Known {
    Known {
        name,
        max,
        defaults,
    }
}

impl Known {
    fn of(name: &[u8]) -> Option<&'static Self> {
        let name = name.strip_suffix(&[0]).unwrap_or(name);
        KNOWN.iter().find(|known| known.name.as_bytes() == name)
    }

    /// Whether what was read is what was written, and otherwise what the kernel fills in by itself.
    fn is_same(&self, read: Attrs<'_>, written: Attrs<'_>) -> bool {
        let mut all_written = written;
        let mut all_read = read;
        all_written.all(|attr| read.get(attr.kind) == Some(attr))
            && all_read.all(|attr| {
                attr.kind > self.max
                    || written.get(attr.kind).is_some()
                    || self.defaults.iter().any(|(kind, default)| {
                        *kind == attr.kind
                            && match default {
                                Default::Number(number) => attr.u32() == Some(*number),
                                Default::NoTime => attr.u64() == Some(0),
                                Default::SameAs(other) => written
                                    .get(*other)
                                    .is_some_and(|other| other.payload == attr.payload),
                            }
                    })
            })
    }
}

/// Whether the expressions that were read are those that were written.
///
/// Both arguments are the payload of `NFTA_RULE_EXPRESSIONS`.
fn same_expressions(read: &[u8], written: &[u8]) -> bool {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    fn payload(expr: Attr<'_>, kind: u16) -> Option<&[u8]> {
        Attrs(expr.payload).get(kind).map(|attr| attr.payload)
    }
    let mut read = Attrs(read);
    let all = Attrs(written).all(|want| {
        read.next().is_some_and(|got| {
            let (Some(got_data), Some(want_data)) = (payload(got, DATA), payload(want, DATA))
            else {
                return false;
            };
            let name = payload(want, NAME);
            payload(got, NAME) == name
                && name
                    .and_then(Known::of)
                    .is_some_and(|known| known.is_same(Attrs(got_data), Attrs(want_data)))
        })
    });
    all && read.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(name: &str, attrs: &[(u16, u32)]) -> Vec<u8> {
        let mut w = Writer::new();
        w.nest(1, |w| {
            w.attr_str(1, name);
            w.nest(2, |w| attrs.iter().for_each(|(k, n)| w.attr_u32(*k, *n)));
        });
        w.as_slice().to_vec()
    }

    #[test]
    fn life_17_attributes_that_we_do_not_know_are_passed_over_and_those_that_we_know_are_not() {
        let nat = [(1, 1), (2, 2), (3, 1), (5, 9)];
        let written = expression("nat", &nat);
        for (more, same) in [
            (&[][..], true),
            (&[(4, 1), (6, 9), (7, 3)], true),
            // From a newer kernel.
            (&[(4, 1), (6, 9), (7, 3), (8, 1)], true),
            // Persistent.
            (&[(4, 1), (6, 9), (7, 0xb)], false),
            // A range.
            (&[(4, 2), (6, 9), (7, 3)], false),
        ] {
            let read = expression("nat", &[&nat[..], more].concat());
            assert_eq!(same_expressions(&read, &written), same, "{more:?}");
        }
        let twice = [written.clone(), expression("counter", &[])].concat();
        assert!(!same_expressions(&twice, &written));
        assert!(!same_expressions(&[], &written));
    }

    fn table(attrs: &[(u16, u32)]) -> TableIs {
        let mut w = Writer::new();
        for (k, n) in attrs {
            w.attr_u32(*k, *n);
        }
        w.attr(6, &comment_bytes("ours"));
        PrintedTable::new(Attrs(w.as_slice())).is("ours")
    }

    #[test]
    fn sync_9_flags_of_a_table_count_and_unknown_attributes_do_not() {
        assert_eq!(table(&[(2, 0)]), TableIs::Same);
        assert_eq!(table(&[(2, 0), (20, 7)]), TableIs::Same);
        assert_eq!(table(&[(2, 1)]), TableIs::Dormant);
        assert_eq!(table(&[(2, 2)]), TableIs::Other);
        assert_eq!(table(&[(2, 5)]), TableIs::Other);
    }
}
