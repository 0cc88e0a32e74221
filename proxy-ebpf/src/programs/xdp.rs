//! What does the packet code do at the XDP hook?
//!
//! It translates with the tables of TC and passes the packet on to the stack, where TC finds nothing more to
//! do. Sums that the sender left to its device cannot be told from whole ones here: such devices are not used.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_xdp_adjust_tail;
use proxy_ebpf::{Checksum, Family, Packet, Part, Sum, V4, V6, Verdict, ingress};

use crate::maps;

/// The length of an Ethernet header, the only one that is read here. Unit: bytes.
const ETHERNET: u32 = 14;

/// A packet that arrives.
#[inline(always)]
pub(crate) fn arrives(context: *mut xdp_md) -> u32 {
    let mut packet = Frame(context);
    let ether_type = packet.at::<[u8; 14]>(0).map(|header| {
        let [.., high, low] = *header;
        u16::from_be_bytes([high, low])
    });
    match ether_type {
        Some(V4::ETHER_TYPE) => arrives_v4(&mut packet),
        Some(V6::ETHER_TYPE) => arrives_v6(&mut packet),
        _ => XDP_PASS,
    }
}

/// The two ways in, each of which the verifier goes through once.
macro_rules! entry {
    ($name:ident, $family:ty, $maps:ident) => {
        #[inline(never)]
        fn $name(packet: &mut Frame) -> u32 {
            let Some(scratch) = maps::$maps::scratch() else {
                return XDP_PASS;
            };
            match ingress::<$family, _, _, _>(packet, &mut maps::$maps::Kernel, scratch, ETHERNET) {
                Verdict::Pass => XDP_PASS,
                Verdict::Drop => XDP_DROP,
                Verdict::Bounce => XDP_TX,
            }
        }
    };
}

entry!(arrives_v4, V4, v4);
entry!(arrives_v6, V6, v6);

/// A packet in a driver's buffer.
struct Frame(*mut xdp_md);

impl Frame {
    /// Where it begins and ends.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the kernel gave us the context.
        let start = unsafe { (*self.0).data };
        // SAFETY: as above.
        let end = unsafe { (*self.0).data_end };
        (start as usize, end as usize)
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn at<T: Part>(&mut self, offset: u32) -> Option<&mut T> {
        let (start, end) = self.bounds();
        maps::within(start, end, offset)
    }

    #[inline(always)]
    fn fix_checksum(&mut self, checksum: Checksum, change: Sum) -> Option<()> {
        let sum = self.at::<u16>(checksum.offset)?;
        checksum.apply(sum, change);
        Some(())
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        let (start, end) = self.bounds();
        u32::try_from(end.saturating_sub(start)).unwrap_or_default()
    }

    #[inline(always)]
    fn resize(&mut self, length: u32) -> Option<()> {
        let now = i32::try_from(self.length()).ok()?;
        let change = i32::try_from(length).ok()?.checked_sub(now)?;
        // SAFETY: the helper checks the change.
        let code = unsafe { bpf_xdp_adjust_tail(self.0, change) };
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the kernel gave us the context.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn is_from_this_node(&self) -> bool {
        false
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn set_mark(&mut self, _mark: u32) {}
}
