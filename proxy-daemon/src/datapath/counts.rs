//! How often is each kernel object used that several ServicePorts share?
//!
//! Invariant: an object is in the kernel as long as its count is above zero.

use std::collections::BTreeMap;

/// Use counts, or changes of them.
#[derive(Debug)]
pub(crate) struct Counts<T>(BTreeMap<T, i64>);

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord + Copy> Counts<T> {
    /// Adds `by` to the count of each.
    pub(crate) fn add(&mut self, used: &[T], by: i64) {
        for thing in used {
            *self.0.entry(*thing).or_insert(0) += by;
        }
    }

    fn get(&self, thing: &T) -> i64 {
        self.0.get(thing).copied().unwrap_or(0)
    }

    /// What begins and what ceases to be used if `change` is added.
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

    /// Counts `old` once less and `new` once more; answers which begin and which cease to be used.
    pub(crate) fn replace(&mut self, old: &[T], new: &[T]) -> (Vec<T>, Vec<T>) {
        let mut change = Self::default();
        change.add(old, -1);
        change.add(new, 1);
        let delta = self.delta(&change);
        self.merge(change);
        delta
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

    /// Everything in use.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }
}
