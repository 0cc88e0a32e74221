//! Do our sets have as many entries as we put into them?
//!
//! Invariants: a set that is there is not destroyed by others as long as a rule names it, but it may be
//! flushed; a set whose kernel does not count its entries is only looked for.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;

use super::netlink::{Question, ask, attribute};

/// `NFNL_SUBSYS_IPSET` with `IPSET_CMD_LIST`.
const LIST: u16 = 6 << 8 | 7;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_FLAGS: u16 = 6;
const IPSET_ATTR_DATA: u16 = 7;
const IPSET_ATTR_ELEMENTS: u16 = 24;
/// Kernel: the oldest that it still accepts (`IPSET_PROTOCOL_MIN`), 2.6.39 and later.
const PROTOCOL: u8 = 6;
/// `IPSET_FLAG_LIST_HEADER`: without the entries.
const HEADER_ONLY: u32 = 1 << 2;

/// How many entries sets have.
#[derive(Debug)]
pub(super) struct Sizes {
    sets: BTreeMap<String, Set>,
    /// Which of them was asked for last.
    last: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Absent,
    Uncounted,
    Has(usize),
}

impl Sizes {
    /// How many the sets of these names have now, in the network namespace of this thread.
    pub(super) fn now(names: impl IntoIterator<Item = String>) -> io::Result<Self> {
        let sets = names
            .into_iter()
            .map(|name| look(&name).map(|set| (name, set)))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            sets,
            last: String::new(),
        })
    }

    /// Takes note of a change that we made.
    pub(super) fn wrote(&mut self, name: &str, n_added: usize, n_removed: usize) {
        if let Some(Set::Has(n)) = self.sets.get_mut(name) {
            *n = (*n + n_added).saturating_sub(n_removed);
        }
    }

    /// Whether the next of them has another number now: each question asks for one, in turns.
    ///
    /// Kernel: to say how many entries a set has, it counts them.
    pub(super) fn have_changed(&mut self) -> io::Result<bool> {
        let after = (Bound::Excluded(&self.last), Bound::Unbounded);
        let next = self.sets.range::<String, _>(after).next();
        let Some((name, set)) = next.or_else(|| self.sets.first_key_value()) else {
            return Ok(false);
        };
        let is_changed = look(name)? != *set;
        self.last = name.clone();
        Ok(is_changed)
    }
}

fn look(name: &str) -> io::Result<Set> {
    let request = [
        attribute(IPSET_ATTR_PROTOCOL, &[PROTOCOL]),
        attribute(IPSET_ATTR_SETNAME, &[name.as_bytes(), &[0]].concat()),
        attribute(IPSET_ATTR_FLAGS, &HEADER_ONLY.to_be_bytes()),
    ]
    .concat();
    let mut set = Set::Absent;
    let asked = ask(LIST, Question::All, 2, &request, &mut |attributes| {
        let n = attributes
            .nested(IPSET_ATTR_DATA)
            .and_then(|data| data.number(IPSET_ATTR_ELEMENTS))
            .and_then(|n| usize::try_from(n).ok());
        set = n.map_or(Set::Uncounted, Set::Has);
    });
    match asked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Set::Absent),
        Err(error) => Err(error),
        Ok(()) => Ok(set),
    }
}
