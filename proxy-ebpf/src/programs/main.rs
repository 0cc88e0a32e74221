//! The programs: where the packet code meets the kernel.
//!
//! `proxy_in` and `proxy_out` for TC, on every interface; `proxy_xdp` for XDP, on those that were named.
//!
//! Invariants: nothing is decided here; all `unsafe` code of this crate is here, for the raw pointers and
//! calls that the kernel's interface consists of, and the verifier proves each access anew when it loads them.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "maps, helpers and packets are reached by raw pointers only"
)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the macros that declare programs make others beside them"
)]

mod maps;
mod tc;
mod xdp;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

/// Packets that arrive at an interface.
#[classifier]
pub fn proxy_in(context: TcContext) -> i32 {
    tc::arrives(context.skb.skb)
}

/// Packets that leave by an interface.
#[classifier]
pub fn proxy_out(context: TcContext) -> i32 {
    tc::leaves(context.skb.skb)
}

/// Packets that arrive at an interface with XDP.
#[xdp]
pub fn proxy_xdp(context: XdpContext) -> u32 {
    xdp::arrives(context.ctx)
}

/// Helpers that are not under an open license ask for this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: an object with a path to here is not accepted.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
