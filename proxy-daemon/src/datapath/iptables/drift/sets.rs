//! Do our sets have as many entries as we put into them?
//!
//! Invariants: the numbers come from what we wrote, never from the kernel; a set that is there is not
//! destroyed by others as long as a rule names it, but it may be flushed; a set whose kernel does not
//! count its entries is only looked for.

use std::collections::BTreeMap;
use std::io;

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

/// For each so many entries one of the next checks is skipped: the kernel counts some 20,000 in a
/// millisecond.
const COUNTED: usize = 8_192;
/// At most so many checks are skipped, so that every set is checked soon.
const MOST_SKIPPED: usize = 20;

/// How many entries sets must have.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    sets: BTreeMap<String, usize>,
    /// How many of the next checks to skip.
    n_skipped: usize,
}

impl Sizes {
    /// Records entries that we added and removed, or a set that we created.
    pub(crate) fn wrote(&mut self, name: &str, n_added: usize, n_removed: usize) {
        let n = self.sets.entry(name.to_owned()).or_default();
        *n = (*n + n_added).saturating_sub(n_removed);
    }

    /// The first difference.
    ///
    /// Kernel: to say how many entries a set has, it counts them. So large sets are checked more rarely.
    pub(super) fn difference(&mut self, netfilter: &mut Netfilter) -> io::Result<Option<String>> {
        if self.n_skipped > 0 {
            self.n_skipped -= 1;
            return Ok(None);
        }
        for (name, expected) in &self.sets {
            let mut counted = None;
            let asked = list(netfilter, Some(name), &mut |set| {
                counted = set.inside(IPSET_ATTR_DATA).u32(IPSET_ATTR_ELEMENTS);
            });
            match asked {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Some(format!("the set {name} is gone")));
                }
                other => other?,
            }
            if let Some(n) = counted
                && usize::try_from(n) != Ok(*expected)
            {
                let difference = format!("the set {name} has {n} entries, expected {expected}");
                return Ok(Some(difference));
            }
        }
        self.n_skipped = (self.sets.values().sum::<usize>() / COUNTED).min(MOST_SKIPPED);
        Ok(None)
    }
}

/// The names of the sets with this prefix: those that no rule uses, and those that one does.
///
/// # Errors
/// What the kernel answers; `InvalidInput` if it has no sets.
pub(super) fn by_use(prefix: &str) -> io::Result<(Vec<String>, Vec<String>)> {
    let (mut unused, mut used) = (Vec::new(), Vec::new());
    list(&mut Netfilter::open()?, None, &mut |set| {
        let name = set.str(IPSET_ATTR_SETNAME).unwrap_or_default();
        if name.starts_with(prefix) {
            let references = set.inside(IPSET_ATTR_DATA).u32(IPSET_ATTR_REFERENCES);
            let is_unused = references == Some(0);
            let which = if is_unused { &mut unused } else { &mut used };
            which.push(name.to_owned());
        }
    })?;
    Ok((unused, used))
}

/// Asks for a set, or for all, without their entries.
fn list(
    netfilter: &mut Netfilter,
    name: Option<&str>,
    each: &mut dyn FnMut(Attrs<'_>),
) -> io::Result<()> {
    let mut w = Writer::new();
    w.attr(IPSET_ATTR_PROTOCOL, &[PROTOCOL]);
    if let Some(name) = name {
        w.attr_str(IPSET_ATTR_SETNAME, name);
    }
    w.attr_u32(IPSET_ATTR_FLAGS, HEADER_ONLY);
    netfilter.list(LIST, ANY_FAMILY, &w, each)
}
