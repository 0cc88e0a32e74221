//! Which elements should be in our sets, and what differs between two answers?
//!
//! Invariants: an element is its bytes on the wire, so comparing is comparing bytes; a set's elements
//! lie in one run of bytes, so that 100,000 of them cost no allocation each.

use super::codec::{Data, Key, Printed, Writer, write_element};
use super::layout::SetId;

/// The elements of all our sets.
#[derive(Debug)]
pub(crate) struct Elements(Vec<(SetId, SetElements)>);

/// The elements of one set.
#[derive(Debug, Default)]
pub(crate) struct SetElements {
    w: Writer,
    items: Vec<Item>,
}

/// Where an element lies.
#[derive(Clone, Copy, Debug)]
struct Item {
    start: u32,
    key_len: u16,
    len: u16,
}

impl Default for Elements {
    fn default() -> Self {
        Self(
            SetId::ALL
                .iter()
                .map(|id| (*id, SetElements::default()))
                .collect(),
        )
    }
}

impl Elements {
    /// Adds an element.
    pub(crate) fn push(&mut self, set: SetId, key: Key<'_>, data: Data<'_>, comment: &str) {
        if let Some((_, elements)) = self.0.get_mut(set as usize) {
            elements.push(|w| write_element(w, key, data, comment));
        }
    }

    /// Adds an element that holds nothing.
    pub(crate) fn add(&mut self, set: SetId, key: &[u8]) {
        self.push(set, Key::Exact(key), Data::None, "");
    }

    /// Adds all of `other`.
    pub(crate) fn append(&mut self, other: Self) {
        for ((_, to), (_, from)) in self.0.iter_mut().zip(other.0) {
            for element in from.iter() {
                to.push(|w| {
                    w.raw(element.bytes());
                    element.key_len
                });
            }
        }
    }

    /// Each set with its elements.
    pub(crate) fn sets(&self) -> impl Iterator<Item = (SetId, &SetElements)> {
        self.0.iter().map(|(id, elements)| (*id, elements))
    }

    /// The elements of one set.
    pub(crate) fn of(&self, id: SetId) -> Option<&SetElements> {
        self.0.get(id as usize).map(|(_, elements)| elements)
    }

    /// How many elements there are in all sets.
    pub(crate) fn n_elements(&self) -> usize {
        self.0
            .iter()
            .map(|(_, elements)| elements.items.len())
            .sum()
    }

    /// Sorts each set by key, as [`SetElements::find`] and [`difference`] want it.
    pub(crate) fn sort(&mut self) {
        for (_, elements) in &mut self.0 {
            elements.sort();
        }
    }
}

impl SetElements {
    /// Adds an element that `write` writes; `write` returns the length of the key.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Writer) -> usize) {
        let start = self.w.len();
        let key_len = write(&mut self.w);
        let item = Item {
            start: u32::try_from(start).unwrap_or(u32::MAX),
            key_len: u16::try_from(key_len).unwrap_or(u16::MAX),
            len: u16::try_from(self.w.len() - start).unwrap_or(u16::MAX),
        };
        self.items.push(item);
    }

    fn bytes_of(&self, item: Item, len: u16) -> &[u8] {
        let start = usize::try_from(item.start).unwrap_or(usize::MAX);
        self.w
            .as_slice()
            .get(start..start + usize::from(len))
            .unwrap_or(&[])
    }

    fn element(&self, item: Item) -> Element<'_> {
        Element {
            bytes: self.bytes_of(item, item.len),
            key_len: usize::from(item.key_len),
        }
    }

    /// Every element.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Element<'_>> {
        self.items.iter().map(|item| self.element(*item))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    fn sort(&mut self) {
        let mut items = std::mem::take(&mut self.items);
        items.sort_unstable_by(|a, b| {
            self.bytes_of(*a, a.key_len)
                .cmp(self.bytes_of(*b, b.key_len))
        });
        self.items = items;
    }

    /// The index and the element with this key; the set must be sorted.
    pub(crate) fn find(&self, key: &[u8]) -> Option<(usize, Element<'_>)> {
        let index = self
            .items
            .binary_search_by(|item| self.bytes_of(*item, item.key_len).cmp(key))
            .ok()?;
        Some((index, self.element(*self.items.get(index)?)))
    }
}

/// One element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    bytes: &'a [u8],
    key_len: usize,
}

impl<'a> Element<'a> {
    /// All of it.
    pub(crate) const fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Its key.
    pub(crate) fn key(self) -> &'a [u8] {
        self.bytes.get(..self.key_len).unwrap_or(&[])
    }
}

/// Elements to remove and to add, for one set.
#[derive(Debug, Default)]
pub(crate) struct Difference<'a> {
    /// Keys to remove, first.
    pub(crate) removed: Vec<&'a [u8]>,
    /// Elements to add, then.
    pub(crate) added: Vec<&'a [u8]>,
    /// If set, the set is emptied instead and gets all of these.
    pub(crate) whole: Option<&'a SetElements>,
}

impl<'a> Difference<'a> {
    /// Writes `id` whole if anything differs and the ends of its intervals cannot be changed one by one.
    ///
    /// Kernel: ends of intervals are elements. Two new ends inside an interval that stays are refused
    /// (`EEXIST`), as are ends that match in another way than those before; what is written into an empty
    /// set is not compared with what was in it.
    pub(crate) fn of_set(self, id: SetId, wanted: &'a SetElements) -> Self {
        let whole = (id.is_written_whole() && !self.is_empty()).then_some(wanted);
        Self { whole, ..self }
    }

    /// Whether there is nothing to do.
    pub(crate) const fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }
}

/// What differs between two sorted sets.
pub(crate) fn difference<'a>(old: &'a SetElements, new: &'a SetElements) -> Difference<'a> {
    let mut difference = Difference::default();
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return difference,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(old), Some(new)) => old.key().cmp(new.key()),
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        if old != new {
            difference.removed.extend(old.map(Element::key));
            difference.added.extend(new.map(Element::bytes));
        }
    }
}

/// Missing and surplus elements of a set in the kernel.
///
/// The wanted elements must be sorted. Elements are fed in one by one, in any order, and not kept.
#[derive(Debug)]
pub(crate) struct Comparison {
    seen: Vec<bool>,
    scratch: Writer,
    /// Printed elements that are to go.
    pub(crate) surplus: SetElements,
}

impl Comparison {
    /// Nothing was printed yet.
    pub(crate) fn new(wanted: &SetElements) -> Self {
        Self {
            seen: vec![false; wanted.len()],
            scratch: Writer::new(),
            surplus: SetElements::default(),
        }
    }

    /// Takes an element that the kernel printed.
    pub(crate) fn take(&mut self, wanted: &SetElements, printed: Printed<'_>) {
        self.scratch.clear();
        let key_len = printed.write_normal(&mut self.scratch);
        let bytes = self.scratch.as_slice();
        let found = wanted.find(bytes.get(..key_len).unwrap_or(&[]));
        if let Some((index, element)) = found
            && element.bytes() == bytes
            && let Some(seen) = self.seen.get_mut(index)
        {
            *seen = true;
        } else {
            self.surplus.push(|w| printed.write_normal(w));
        }
    }

    /// What must go and what must come.
    pub(crate) fn difference<'a>(&'a self, wanted: &'a SetElements) -> Difference<'a> {
        let missing = wanted.iter().zip(&self.seen).filter(|(_, seen)| !**seen);
        Difference {
            removed: self.surplus.iter().map(Element::key).collect(),
            added: missing.map(|(element, _)| element.bytes()).collect(),
            whole: None,
        }
    }
}
