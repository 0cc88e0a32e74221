//! How do objects share one copy of a name?
//!
//! Node names, zones, port names and namespaces occur in every endpoint of a cluster. Invariants: equal
//! text is one allocation as long as it is used; unused text is freed.

#[expect(
    clippy::disallowed_types,
    reason = "only looked up: the order of its entries is not visible"
)]
use std::collections::HashSet;
use std::sync::Arc;

/// Below this number of names, none is freed.
const MIN_NAMES: usize = 1024;

/// Names that were seen.
#[derive(Debug)]
#[expect(clippy::disallowed_types, reason = "only looked up")]
pub(crate) struct Interner {
    known: HashSet<Arc<str>>,
    shrink_at: usize,
}

impl Default for Interner {
    #[expect(clippy::disallowed_types, reason = "only looked up")]
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            shrink_at: MIN_NAMES,
        }
    }
}

impl Interner {
    /// The shared copy of this text.
    pub(crate) fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.shrink_at {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.shrink_at = MIN_NAMES.max(self.known.len() * 2);
        }
        let new: Arc<str> = text.into();
        self.known.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_allocation_and_unused_ones_are_forgotten() {
        let mut interner = Interner::default();
        let kept = interner.get("kept");
        assert!(Arc::ptr_eq(&kept, &interner.get("kept")));
        for i in 0..10 * MIN_NAMES {
            interner.get(&i.to_string());
        }
        assert!(interner.known.len() <= MIN_NAMES);
        assert!(Arc::ptr_eq(&kept, &interner.get("kept")));
    }
}
