//! Random choices, the same for the same seed.
//!
//! Invariant: a test that fails prints its seed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// The seed in this environment variable, or another one each time.
///
/// # Panics
/// When it is no number.
pub fn seed(variable: &str) -> u64 {
    let Ok(value) = std::env::var(variable) else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        return now.unwrap_or_default().as_millis() as u64;
    };
    value
        .parse()
        .unwrap_or_else(|_| panic!("{variable}={value}: not a number"))
}

/// A random number generator with a fixed seed.
#[derive(Debug)]
pub struct Dice(TestRunner);

impl Dice {
    /// From this seed.
    pub fn new(seed: u64) -> Self {
        Self(TestRunner::new(Config {
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            ..Config::default()
        }))
    }

    /// A number below this one.
    ///
    /// # Panics
    /// When there is none.
    pub fn below(&mut self, n: usize) -> usize {
        (0..n)
            .new_tree(&mut self.0)
            .expect("a range has values")
            .current()
    }

    /// One of these.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// True with this probability, in percent.
    pub fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    /// A time between these.
    pub fn millis(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from)) as u64)
    }

    /// All of these in another order.
    pub fn shuffled<T>(&mut self, mut from: Vec<T>) -> Vec<T> {
        for n in (1..from.len()).rev() {
            from.swap(n, self.below(n + 1));
        }
        from
    }
}
