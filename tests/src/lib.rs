//! The harness of the behaviour tests: packets that are sent, and their outcomes.
//!
//! A behaviour test states a world (Services, EndpointSlices, a Node) and packets (client, destination, the server that answers, source
//! kept or masqueraded). It never states rules. In reading order: `address` and `topology` are the test bed of SPEC §0, `world`
//! builds manifests, `daemon` runs the real binary, `datapath` reads the kernel objects and `damage` breaks them, `echo`
//! answers, `client` asks, `flow` compares, `matrix` runs all of it per datapath, family and protocol.
//!
//! Invariants: all traffic stays inside namespaces that this process made; they are gone when it ends; silence is believed only
//! beside a flow that answers.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::exit,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    clippy::needless_pass_by_value,
    clippy::struct_field_names,
    clippy::doc_markdown,
    reason = "this crate is tests and their tools: a broken assumption must stop the test at once"
)]

pub mod address;
pub mod bed;
pub mod client;
pub mod daemon;
pub mod damage;
pub mod datapath;
pub mod dice;
pub mod ebpf;
pub mod echo;
pub mod fake_api;
pub mod flow;
pub mod lab;
pub mod matrix;
pub mod netns;
pub mod oracle;
pub mod reactor;
pub mod sctp;
pub mod seeds;
pub mod segment;
pub mod sender;
pub mod sniff;
pub mod test;
pub mod topology;
pub mod wait;
pub mod world;
