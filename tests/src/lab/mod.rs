//! What do the demo and the benchmarks need beyond the tests' harness: servers that say who they are, and clients that time it.
//!
//! Invariants: sockets are made inside a namespace of the test bed and nowhere else; every wait has an end.

pub mod ask;
pub mod mode;
pub mod serve;
pub mod stats;
