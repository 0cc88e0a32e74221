//! What the daemon and its eBPF programs must agree on: the layout of every map's keys and values.
//!
//! Invariants: each layout is written here once, without padding, and its size and offsets are asserted
//! when it is compiled, for the host and for the kernel alike; [`ABI_VERSION`] grows with every change of a
//! layout or of what a value means.
#![no_std]

mod address;
mod flow;
mod node;
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya asks for a promise about each layout")]
mod pod;
mod reason;
mod service;

pub use address::{Address, BITMAP_WORDS, Port, Protocol};
pub use flow::{Direction, Flow, FlowFlags, FlowKey};
pub use node::{Detector, Interface, InterfaceFlags, LocalAddress, Settings};
pub use reason::Reason;
pub use service::{
    Backend, Exposure, Frontend, FrontendKey, Record, Route, Routes, SetRange, SourceRangeKey,
};

/// The version of all layouts together; pinned maps of another version are not used.
pub const ABI_VERSION: u32 = 1;

/// Asserts the size of a layout and the offsets of its fields. Unit: bytes.
macro_rules! assert_layout {
    ($layout:ty, $size:expr $(, $field:ident: $offset:expr)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$layout>() == $size);
            $(assert!(core::mem::offset_of!($layout, $field) == $offset);)*
        };
    };
}
pub(crate) use assert_layout;
