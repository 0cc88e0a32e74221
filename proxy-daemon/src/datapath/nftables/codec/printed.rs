//! What does the kernel say of our objects, and is it all that was wanted, and no more?
//!
//! Invariants: every attribute that we know is compared, also those that we never write: what is set
//! there was set by others, and may switch the rest off. Attributes that we do not know are passed
//! over, so that a newer kernel is no damage. Spec: SYNC-9, LIFE-17.
//!
//! What was wanted is written as it would be sent and compared attribute by attribute, so that there is
//! one description of each object and not one for writing and one for reading.
//! Source: `include/uapi/linux/netfilter/nf_tables.h` of Linux 6.18.

use super::Transaction;
use super::element::comment_bytes;
use crate::datapath::nftables::ruleset::Chain;
use crate::net::IpFamily;
use crate::sys::netfilter::attributes::{Attr, Attrs};
use crate::sys::netfilter::contents;

/// `NFT_TABLE_F_DORMANT`: none of its base chains is called.
const DORMANT: u32 = 1;

/// The attributes of the messages that `fill` writes.
pub(super) fn written(family: IpFamily, fill: impl FnOnce(&mut Transaction)) -> Vec<Vec<u8>> {
    let mut transaction = Transaction::new(family, "", None);
    fill(&mut transaction);
    let (batch, ..) = transaction.finish();
    contents(batch)
}

/// Whether an attribute that was read is what was written.
///
/// Kernel: `nf_tables` does not say of an attribute that it is nested; libnftnl does.
pub(super) fn is_same(read: Option<Attr<'_>>, written: Option<Attr<'_>>) -> bool {
    match (read, written) {
        (Some(read), Some(written)) if written.is_nested => {
            let (mut all_read, mut all_written) = (read.inside(), written.inside());
            loop {
                match (all_read.next(), all_written.next()) {
                    (None, None) => return true,
                    (Some(r), Some(w)) if r.kind == w.kind && is_same(Some(r), Some(w)) => {}
                    _ => return false,
                }
            }
        }
        (read, written) => read.map(|attr| attr.payload) == written.map(|attr| attr.payload),
    }
}

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
        Self {
            flags: attrs.u32(FLAGS).unwrap_or(0),
            comment: attrs.payload(USERDATA).to_vec(),
            owner: attrs.u32(OWNER),
            n_objects: attrs.u32(USE).and_then(|n| usize::try_from(n).ok()),
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
    /// The attributes of its declaration.
    declaration: Vec<u8>,
    /// The attributes of each of its rules.
    pub(super) rules: Vec<Vec<u8>>,
}

impl PrintedChain {
    pub(super) fn new(attrs: Attrs<'_>) -> Option<Self> {
        Some(Self {
            name: attrs.str(super::CHAIN_NAME)?.to_owned(),
            declaration: attrs.0.to_vec(),
            rules: Vec::new(),
        })
    }

    /// Whether it is declared as `chain`; its rules apart. A base chain accepts what no rule decides.
    pub(crate) fn is_declared_as(&self, chain: &Chain) -> bool {
        /// Policy, type, counters, user data.
        const COMPARED: [u16; 4] = [5, 7, 8, 12];
        const HOOK: u16 = 4;
        /// Number, priority, device, devices.
        const OF_HOOK: [u16; 4] = [1, 2, 3, 4];
        const FLAGS: u16 = 10;
        /// `NFT_CHAIN_HW_OFFLOAD`, `NFT_CHAIN_BINDING`
        const NOT_OURS: u32 = 2 | 4;
        let read = Attrs(&self.declaration);
        let written = written(IpFamily::V4, |transaction| transaction.create_chain(chain));
        let written = Attrs(written.first().map_or(&[], |attributes| attributes));
        let (read_hook, written_hook) = (read.inside(HOOK), written.inside(HOOK));
        read.u32(FLAGS).unwrap_or(0) & NOT_OURS == 0
            && COMPARED
                .iter()
                .all(|kind| is_same(read.get(*kind), written.get(*kind)))
            && OF_HOOK
                .iter()
                .all(|kind| is_same(read_hook.get(*kind), written_hook.get(*kind)))
    }

    /// Whether it has just the rules of `chain`.
    pub(crate) fn has_rules_of(&self, chain: &Chain, family: IpFamily) -> bool {
        /// `NFTA_RULE_EXPRESSIONS`
        const EXPRESSIONS: u16 = 4;
        /// `NFTA_RULE_USERDATA`
        const USERDATA: u16 = 7;
        let written = written(family, |transaction| transaction.create_rules(chain));
        self.rules.len() == written.len()
            && self.rules.iter().zip(&written).all(|(read, written)| {
                let (read, written) = (Attrs(read), Attrs(written));
                read.payload(USERDATA) == written.payload(USERDATA)
                    && same_expressions(read.inside(EXPRESSIONS), written.inside(EXPRESSIONS))
            })
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
    /// Whether it belongs to a rule, and is deleted with it.
    pub(crate) is_anonymous: bool,
    /// How many elements it may have.
    pub(crate) size: Option<u32>,
    /// How many elements it has; newer kernels say so.
    pub(crate) n_elements: Option<usize>,
}

/// What the kernel prints of an attribute that was not written.
#[derive(Clone, Copy)]
enum Filled {
    /// This number.
    Number(u32),
    /// No time.
    NoTime,
    /// What was written as this other attribute.
    SameAs(u16),
}
use Filled::{NoTime, Number, SameAs};

/// An expression, the highest of its attributes that we know, and those that are printed although not
/// written.
type Known = (&'static str, u16, &'static [(u16, Filled)]);

const KNOWN: &[Known] = &[
    ("payload", 8, &[]),
    ("meta", 3, &[]),
    ("ct", 4, &[]),
    ("cmp", 3, &[]),
    // The operation: by mask and xor.
    ("bitwise", 8, &[(6, Number(0))]),
    ("lookup", 5, &[]),
    ("immediate", 2, &[]),
    ("numgen", 6, &[]),
    ("fib", 3, &[]),
    ("masq", 3, &[]),
    ("reject", 2, &[]),
    // Ranges of one address and port, and the flags that say that there are some.
    ("nat", 7, &[(4, SameAs(3)), (6, SameAs(5)), (7, Number(3))]),
    ("dynset", 10, &[(6, NoTime), (9, Number(0))]),
];

/// Whether what was read of an expression is what was written, and otherwise what the kernel fills in by
/// itself.
fn same_expression(name: &str, mut read: Attrs<'_>, mut written: Attrs<'_>) -> bool {
    let Some((_, max, defaults)) = KNOWN.iter().find(|(known, ..)| *known == name) else {
        return false;
    };
    let (all_read, all_written) = (read, written);
    let is_default = |attr: Attr<'_>| {
        let mut defaults = defaults.iter().filter(|(kind, _)| *kind == attr.kind);
        defaults.any(|(_, default)| match default {
            Number(number) => attr.u32() == Some(*number),
            NoTime => attr.u64() == Some(0),
            SameAs(other) => is_same(Some(attr), all_written.get(*other)),
        })
    };
    written.all(|attr| is_same(all_read.get(attr.kind), Some(attr)))
        && read.all(|attr| {
            attr.kind > *max || all_written.get(attr.kind).is_some() || is_default(attr)
        })
}

/// Whether the expressions that were read are those that were written.
fn same_expressions(mut read: Attrs<'_>, mut written: Attrs<'_>) -> bool {
    /// `NFTA_EXPR_NAME`
    const NAME: u16 = 1;
    /// `NFTA_EXPR_DATA`
    const DATA: u16 = 2;
    let all = written.all(|want| {
        let (want, got) = (want.inside(), read.next().map(Attr::inside));
        let name = want.str(NAME).unwrap_or_default();
        got.is_some_and(|got| {
            got.get(DATA).is_some()
                && got.str(NAME) == Some(name)
                && same_expression(name, got.inside(DATA), want.inside(DATA))
        })
    });
    all && read.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netfilter::attributes::Writer;

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
            assert_eq!(
                same_expressions(Attrs(&read), Attrs(&written)),
                same,
                "{more:?}"
            );
        }
        let twice = [written.clone(), expression("counter", &[])].concat();
        assert!(!same_expressions(Attrs(&twice), Attrs(&written)));
        assert!(!same_expressions(Attrs(&[]), Attrs(&written)));
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
