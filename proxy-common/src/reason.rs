//! Why did a packet go the way it went?

/// Declares the reasons, with the name that metrics show.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The reasons that are counted. Each stands for one counter per CPU.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name of the counter.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    /// A packet of a known flow was translated.
    Translated = "translated",
    /// A flow began.
    NewFlow = "new_flow",
    /// Passed: a packet in mid-stream to a frontend, of a flow that is not known.
    MidStream = "mid_stream",
    /// Passed: the packet is cut off, or its headers contradict each other.
    Malformed = "malformed",
    /// Passed: fragments are not translated yet.
    Fragment = "fragment",
    /// Refused: no endpoint is there (REJ-1).
    NoEndpoints = "no_endpoints",
    /// Refused: no Service has this port of the ClusterIP (REJ-5).
    UnknownPort = "unknown_port",
    /// Dropped: the policy is Local, and no endpoint is on this node.
    NoLocalEndpoints = "no_local_endpoints",
    /// Dropped: the source is outside the frontend's source ranges (FW-2).
    SourceRanges = "source_ranges",
    /// Dropped: a table contradicts another one.
    Inconsistent = "inconsistent",
    /// Dropped: no port was free for the flow.
    NoFreePort = "no_free_port",
    /// Dropped: the flow was to be masqueraded, but its interface has no address.
    NoSourceAddress = "no_source_address",
    /// Dropped: an entry of the flow could not be written.
    TableFull = "table_full",
    /// Dropped: part of the flow was lost, and another flow has its place.
    FlowLost = "flow_lost",
    /// Dropped: the flow moves to another mode.
    Held = "held",
    /// Dropped: addressed to a frontend, but not translated when it was about to leave (XM-10).
    Untranslated = "untranslated",
    /// Dropped: the packet could not be changed.
    CannotWrite = "cannot_write",
    /// Dropped: a refusal could not be made or sent.
    CannotRefuse = "cannot_refuse",
    /// Dropped: more refusals were due than are sent in a tick.
    TooManyRefusals = "too_many_refusals",
    /// A lost entry of a flow was written again.
    Healed = "healed",
}
