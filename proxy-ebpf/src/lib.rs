//! What happens to a packet?
//!
//! The packet code of the eBPF datapath, generic over where the packet lies ([`Packet`]) and where the tables
//! are ([`Tables`]): the programs for TC and XDP and the tests on the host run the same source.
//!
//! A packet is translated at four edges, so that the routing and the netfilter rules between them see the
//! client and the backend, in both directions:
//!
//! ```text
//! client ─► in  E1: destination becomes the backend ─► routing ─► out E2: source becomes the node's ─► backend
//! client ◄─ out E4: source becomes the frontend     ◄─ routing ◄─ in  E3: destination becomes the client ◄─ backend
//! ```
//! E2 and E3 belong to masqueraded flows only. Which edge a packet is at follows from the flow table, not
//! from the interface, and a packet that was translated already matches nothing more.
//!
//! Invariants: no panic, no recursion, no unbounded loop; each packet that is dropped is counted under a
//! [`Reason`](proxy_common::Reason); what is not understood passes unchanged.
#![no_std]
#![forbid(unsafe_code)]
#![expect(
    clippy::inline_always,
    reason = "the stack of a program has 512 bytes: where calls are, is decided here"
)]

mod checksum;
mod connect;
mod crc32c;
mod egress;
mod family;
mod headers;
mod ingress;
mod masquerade;
mod packet;
mod parse;
mod refuse;
mod tables;
mod translate;

pub use checksum::Sum;
pub use egress::egress;
pub use family::{Family, V4, V6};
pub use ingress::ingress;
pub use packet::{Checksum, Packet, Part, Verdict};
pub use parse::Headers;
pub use tables::{Tables, Unwritten};

use proxy_common::{Flow, FlowKey, Frontend};

/// The working memory of one packet. It does not fit on the stack of an eBPF program.
#[derive(Clone, Copy, Debug)]
pub struct Scratch<const WORDS: usize> {
    headers: Headers<WORDS>,
    /// The entry that the packet matched, or the one that is being made for it.
    key: FlowKey<WORDS>,
    flow: Flow<WORDS>,
    /// Another entry of the same flow.
    sibling_key: FlowKey<WORDS>,
    sibling: Flow<WORDS>,
    frontend: Frontend,
    quote: [u32; refuse::QUOTE_WORDS],
}

impl<const WORDS: usize> Scratch<WORDS> {
    /// Nothing yet.
    pub const EMPTY: Self = Self {
        headers: Headers::EMPTY,
        key: FlowKey::EMPTY,
        flow: Flow::EMPTY,
        sibling_key: FlowKey::EMPTY,
        sibling: Flow::EMPTY,
        frontend: Frontend::EMPTY,
        quote: [0; refuse::QUOTE_WORDS],
    };
}
