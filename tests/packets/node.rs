//! Who runs the packet code?

use proxy_common::Reason;
use proxy_ebpf::Verdict;

use crate::frame::{Frame, Refusal};

/// Where a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// It arrives at an interface.
    In,
    /// It leaves by one.
    Out,
}

/// What came of a packet.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) bytes: Vec<u8>,
    pub(crate) mark: u32,
}

/// A node whose hooks can be given packets one by one.
pub(crate) trait Node {
    /// What becomes of a packet.
    fn pass(&mut self, hook: Hook, interface: u32, mark: u32, bytes: &[u8]) -> Outcome;

    /// The shortest packet that can be given to it. Unit: bytes.
    fn shortest(&self) -> usize;

    /// Loses the nth entry of each flow table; whether there was one.
    fn forget(&mut self, nth: usize) -> bool;

    /// Lets so much time pass that flows look for their entries.
    fn age(&mut self);

    /// How often a reason was counted.
    fn counted(&mut self, reason: Reason) -> u64;

    /// The packet after the hook; it must have passed.
    fn forwards(&mut self, hook: Hook, interface: u32, frame: &Frame) -> Frame {
        let outcome = self.pass(hook, interface, 0, &frame.bytes());
        assert_eq!(
            outcome.verdict,
            Verdict::Pass,
            "{hook:?} {interface} {frame:?}"
        );
        Frame::read(&outcome.bytes)
    }

    /// The refusal that a packet turned into.
    fn refuses(&mut self, interface: u32, frame: &Frame) -> Refusal {
        let outcome = self.pass(Hook::In, interface, 0, &frame.bytes());
        assert_eq!(outcome.verdict, Verdict::Bounce, "{interface} {frame:?}");
        Refusal::read(&outcome.bytes)
    }

    /// The packet must have been dropped, for this reason.
    fn drops(&mut self, hook: Hook, interface: u32, frame: &Frame, reason: Reason) {
        let before = self.counted(reason);
        let outcome = self.pass(hook, interface, 0, &frame.bytes());
        assert_eq!(
            outcome.verdict,
            Verdict::Drop,
            "{hook:?} {interface} {frame:?}"
        );
        assert_eq!(self.counted(reason), before + 1, "{reason:?} is counted");
    }
}
