//! Does the packet code of the eBPF datapath do what SPEC asks, packet by packet?
//!
//! `lives` and `refusals` tell the life of a packet step by step; each is run on the host, in the kernel at TC, and in the
//! kernel with packets that arrive at XDP (as root), for both families and every protocol. `model` draws
//! flows, losses and delays at random and looks at who gets whose packets.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "tests: a broken assumption must stop the test at once"
)]

mod cast;
mod frame;
mod host;
mod kernel;
mod lives;
mod model;
mod node;
mod refusals;
mod world;
