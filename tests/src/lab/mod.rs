//! What do the demo and the benchmarks need beyond the tests' harness: servers that answer with their
//! name, and clients that measure the time.
//!
//! Invariants: sockets are made inside a namespace of the test bed and nowhere else; every wait has an end.

pub mod ask;
pub mod mode;
pub mod serve;
pub mod stats;
