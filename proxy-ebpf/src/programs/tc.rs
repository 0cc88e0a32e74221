//! What does the packet code do at a TC hook?

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_pull_data,
};
use proxy_ebpf::{Checksum, Family, Packet, Part, Sum, V4, V6, Verdict, egress, ingress};

use crate::maps;

/// The packet goes on to the next program at this hook.
const NEXT: i32 = -1;
/// The checksum is of IPv6 (Linux 6.16).
const BPF_F_IPV6: u64 = 1 << 7;
/// How much of a packet must be in one piece. Unit: bytes.
const HEADERS: u32 = 128;
/// The same for packets that are cut up later: the headers without options. Unit: bytes.
const LEAST: u32 = 74;

/// A packet that arrives.
#[inline(always)]
pub(crate) fn arrives(skb: *mut __sk_buff) -> i32 {
    let mut packet = Skb(skb);
    packet.pull_headers();
    match packet.ether_type() {
        V4::ETHER_TYPE => arrives_v4(&mut packet),
        V6::ETHER_TYPE => arrives_v6(&mut packet),
        _ => NEXT,
    }
}

/// A packet that leaves.
#[inline(always)]
pub(crate) fn leaves(skb: *mut __sk_buff) -> i32 {
    let mut packet = Skb(skb);
    packet.pull_headers();
    match packet.ether_type() {
        V4::ETHER_TYPE => leaves_v4(&mut packet),
        V6::ETHER_TYPE => leaves_v6(&mut packet),
        _ => NEXT,
    }
}

/// The four ways in, each of which the verifier goes through once.
macro_rules! entry {
    ($name:ident, $edge:ident, $family:ty, $maps:ident) => {
        #[inline(never)]
        fn $name(packet: &mut Skb) -> i32 {
            let (Some(l3), Some(scratch)) = (packet.l2_length(), maps::$maps::scratch()) else {
                return NEXT;
            };
            let verdict = $edge::<$family, _, _, _>(packet, &mut maps::$maps::Kernel, scratch, l3);
            packet.finish(verdict)
        }
    };
}

entry!(arrives_v4, ingress, V4, v4);
entry!(arrives_v6, ingress, V6, v6);
entry!(leaves_v4, egress, V4, v4);
entry!(leaves_v6, egress, V6, v6);

/// A packet in a socket buffer.
struct Skb(*mut __sk_buff);

impl Skb {
    /// Brings the headers into one piece if they are not. Large packets are not touched needlessly.
    #[inline(always)]
    fn pull_headers(&mut self) {
        let (start, end) = self.bounds();
        // SAFETY: the kernel gave us the context.
        let is_gso = unsafe { (*self.0).gso_size } != 0;
        // Kernel: a list of whole packets must not be pulled in part; before 6.16 that crashes later. Its
        // headers are in one piece.
        let least = if is_gso { LEAST } else { HEADERS };
        if start + (least.min(self.length()) as usize) > end {
            let wanted = if is_gso {
                self.length()
            } else {
                HEADERS.min(self.length())
            };
            // SAFETY: the helper checks the length. If it fails, the headers cannot be read, and the packet
            // passes.
            unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
    }

    /// Where the linear part begins and ends.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the kernel gave us the context.
        let start = unsafe { (*self.0).data };
        // SAFETY: as above.
        let end = unsafe { (*self.0).data_end };
        (start as usize, end as usize)
    }

    /// Byte order: the host's. Zero for what has a VLAN tag: its own interface sees it again.
    #[inline(always)]
    fn ether_type(&self) -> u16 {
        // SAFETY: as above.
        let has_tag = unsafe { (*self.0).vlan_present };
        if has_tag != 0 {
            return 0;
        }
        // SAFETY: as above.
        let protocol = unsafe { (*self.0).protocol };
        #[expect(clippy::cast_possible_truncation, reason = "16 bits of the network")]
        {
            u16::from_be(protocol as u16)
        }
    }

    /// How long the link-layer header is; `None` if the interface is not known. Unit: bytes.
    #[inline(always)]
    fn l2_length(&self) -> Option<u32> {
        let interface = maps::interface(self.interface())?;
        Some(u32::from(interface.l2_length) & 15)
    }

    #[inline(always)]
    fn finish(&self, verdict: Verdict) -> i32 {
        match verdict {
            Verdict::Pass => NEXT,
            Verdict::Drop => TC_ACT_SHOT,
            Verdict::Bounce => {
                // SAFETY: the helper checks the index.
                let code = unsafe { bpf_redirect(self.interface(), 0) };
                #[expect(clippy::cast_possible_truncation, reason = "an action code")]
                {
                    code as i32
                }
            }
        }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn at<T: Part>(&mut self, offset: u32) -> Option<&mut T> {
        let (start, end) = self.bounds();
        maps::within(start, end, offset)
    }

    #[inline(always)]
    fn fix_checksum(&mut self, checksum: Checksum, change: Sum) -> Option<()> {
        let mut flags = 0;
        if checksum.is_pseudo {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if checksum.is_optional {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        if checksum.is_pseudo && checksum.is_ipv6 && maps::has_ipv6_checksums() {
            flags |= BPF_F_IPV6;
        }
        let change = u64::from(change.folded());
        // SAFETY: the helper checks the offset.
        let code = unsafe { bpf_l4_csum_replace(self.0, checksum.offset, 0, change, flags) };
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the kernel gave us the context.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn resize(&mut self, length: u32) -> Option<()> {
        // SAFETY: the helper checks the length.
        let code = unsafe { bpf_skb_change_tail(self.0, length, 0) };
        (code == 0).then_some(())
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the kernel gave us the context.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn is_from_this_node(&self) -> bool {
        // SAFETY: as above.
        let arrived_at = unsafe { (*self.0).ingress_ifindex };
        arrived_at == 0
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).mark }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: as above; the field may be written.
        unsafe { (*self.0).mark = mark };
    }
}
