//! What does chance say? The same after the same seed.

use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Chance, from a seed.
pub(crate) struct Dice(TestRunner);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(TestRunner::new(Config {
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            ..Config::default()
        }))
    }

    /// A number below this one.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (0..n)
            .new_tree(&mut self.0)
            .expect("a range has values")
            .current()
    }

    /// One of these.
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// Whether something comes true that does so many times in a hundred.
    pub(crate) fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    /// A time between these.
    pub(crate) fn millis(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from)) as u64)
    }

    /// All of these in another order.
    pub(crate) fn shuffled<T>(&mut self, mut from: Vec<T>) -> Vec<T> {
        for n in (1..from.len()).rev() {
            from.swap(n, self.below(n + 1));
        }
        from
    }
}
