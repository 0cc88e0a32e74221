//! Do our sets have as many entries as we put into them?
//!
//! Invariants: the numbers come from what we wrote, never from the kernel; a set that is there is not
//! destroyed by others as long as a rule names it, but it may be flushed; a set whose kernel does not
//! count its entries is only looked for.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;

use crate::sys::netfilter::attributes::{Attrs, Writer};
use crate::sys::netfilter::{IPSET, Netfilter};

/// `IPSET_CMD_LIST`
const LIST: u16 = IPSET | 7;
/// Kernel: ipset looks at the family of a set, not of a question; this is `NFPROTO_IPV4`.
const ANY_FAMILY: u8 = 2;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_FLAGS: u16 = 6;
const IPSET_ATTR_DATA: u16 = 7;
const IPSET_ATTR_ELEMENTS: u16 = 24;
const IPSET_ATTR_REFERENCES: u16 = 25;
/// Kernel: the oldest that it still accepts (`IPSET_PROTOCOL_MIN`), 2.6.39 and later.
const PROTOCOL: u8 = 6;
/// `IPSET_FLAG_LIST_HEADER`: without the entries.
const HEADER_ONLY: u32 = 1 << 2;

/// A check ends once the kernel has counted this many entries, and for each so many one of the next checks
/// is skipped: counting some 20,000 costs a millisecond.
const COUNTED: usize = 8_192;
/// At most so many checks are skipped, so that every set is checked soon.
const MOST_SKIPPED: usize = 12;

/// How many entries sets must have.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    sets: BTreeMap<String, usize>,
    /// The set that was checked last.
    last: String,
    /// How many of the next checks to skip.
    n_skipped: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Absent,
    Uncounted,
    Has(usize),
}

impl Sizes {
    /// Records entries that we added and removed, or a set that we created.
    pub(super) fn wrote(&mut self, name: &str, n_added: usize, n_removed: usize) {
        let n = self.sets.entry(name.to_owned()).or_default();
        *n = (*n + n_added).saturating_sub(n_removed);
    }

    /// The first difference among the sets that are next to be checked.
    ///
    /// Kernel: to say how many entries a set has, it counts them. So a question does not ask for all of
    /// them where they are large.
    pub(super) fn difference(&mut self) -> io::Result<Option<String>> {
        if self.n_skipped > 0 {
            self.n_skipped -= 1;
            return Ok(None);
        }
        let mut n_counted = 0;
        for _ in 0..self.sets.len() {
            let after = (Bound::Excluded(&self.last), Bound::Unbounded);
            let next = self.sets.range::<String, _>(after).next();
            let Some((name, expected)) = next.or_else(|| self.sets.first_key_value()) else {
                break;
            };
            let found = look(name)?;
            let difference = match found {
                Set::Absent => Some(format!("the set {name} is gone")),
                Set::Has(n) if n != *expected => Some(format!(
                    "the set {name} has {n} entries, expected {expected}"
                )),
                Set::Uncounted | Set::Has(_) => None,
            };
            n_counted += expected;
            self.last = name.clone();
            if difference.is_some() {
                return Ok(difference);
            }
            if n_counted >= COUNTED {
                break;
            }
        }
        self.n_skipped = (n_counted / COUNTED).min(MOST_SKIPPED);
        Ok(None)
    }
}

/// Calls `each` with the name of each set with this prefix, and whether rules use it.
///
/// # Errors
/// What the kernel answers; `Unsupported` if it has no sets.
pub(super) fn uses(prefix: &str, mut each: impl FnMut(&str, bool)) -> io::Result<()> {
    list(None, &mut |set| {
        let Some(name) = set.str(IPSET_ATTR_SETNAME) else {
            return;
        };
        let references = set.inside(IPSET_ATTR_DATA).u32(IPSET_ATTR_REFERENCES);
        if name.starts_with(prefix) {
            each(name, references != Some(0));
        }
    })
}

/// Asks for a set, or for all, without their entries.
fn list(name: Option<&str>, each: &mut dyn FnMut(Attrs<'_>)) -> io::Result<()> {
    let mut w = Writer::new();
    w.attr(IPSET_ATTR_PROTOCOL, &[PROTOCOL]);
    if let Some(name) = name {
        w.attr_str(IPSET_ATTR_SETNAME, name);
    }
    w.attr_u32(IPSET_ATTR_FLAGS, HEADER_ONLY);
    Netfilter::open()?.list(LIST, ANY_FAMILY, &w, each)
}

fn look(name: &str) -> io::Result<Set> {
    let mut set = Set::Absent;
    let asked = list(Some(name), &mut |attributes| {
        let n = attributes.inside(IPSET_ATTR_DATA).u32(IPSET_ATTR_ELEMENTS);
        let n = n.and_then(|n| usize::try_from(n).ok());
        set = n.map_or(Set::Uncounted, Set::Has);
    });
    match asked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Set::Absent),
        Err(error) => Err(error),
        Ok(()) => Ok(set),
    }
}
