//! Do the two sources fill the store with the same, and does the API server's bad day not matter?
//!
//! A test is a fake cluster, what goes wrong, and what the store holds in the end. Invariants: a test
//! waits for a condition, with a deadline, and for time only where something must not happen; none of this needs root.
#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests: a broken assumption must stop the test at once"
)]

mod equal;
mod failures;
mod faults;
mod follow;
mod history;
mod lists;
mod measure;
mod misbehaviour;
mod permissions;
mod silence;
