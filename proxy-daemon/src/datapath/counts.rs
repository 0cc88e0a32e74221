//! What do several ServicePorts share in the kernel, and when does the last of them let go?
//!
//! Invariant: a thing is in the kernel as long as its count is above zero.

use std::collections::BTreeMap;

/// How often each thing is used; or by how much that changes.
#[derive(Debug)]
pub(crate) struct Counts<T>(BTreeMap<T, i64>);

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord + Copy> Counts<T> {
    /// Counts each of the things `by` times more.
    pub(crate) fn add(&mut self, things: &[T], by: i64) {
        for thing in things {
            *self.0.entry(*thing).or_insert(0) += by;
        }
    }

    fn get(&self, thing: &T) -> i64 {
        self.0.get(thing).copied().unwrap_or(0)
    }

    /// Which things begin and cease to be used if `change` is added.
    pub(crate) fn delta(&self, change: &Self) -> (Vec<T>, Vec<T>) {
        let (mut begin, mut cease) = (Vec::new(), Vec::new());
        for (thing, by) in &change.0 {
            let old = self.get(thing);
            match (old > 0, old + by > 0) {
                (false, true) => begin.push(*thing),
                (true, false) => cease.push(*thing),
                (true, true) | (false, false) => {}
            }
        }
        (begin, cease)
    }

    /// Adds a change.
    pub(crate) fn merge(&mut self, change: Self) {
        for (thing, by) in change.0 {
            let count = self.0.entry(thing).or_insert(0);
            *count += by;
            if *count == 0 {
                self.0.remove(&thing);
            }
        }
    }

    /// The things in use.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }
}
