//! What must happen to a packet? The contract between `compile` and the datapaths.
//!
//! A [`ForwardingState`] says everything, for one family: who counts as a pod, which frontends there
//! are, where each source class goes and whether its source is masqueraded. Invariants: it depends on
//! no neighbour, holds no Kubernetes object, and leaves no decision to a datapath. [`Oracle`] gives it
//! its meaning: what it says of a packet, every datapath must do.

mod eval;
mod explain;
mod packet;
mod settings;
mod state;
mod table;

pub use eval::Oracle;
pub use explain::explain;
pub use packet::{Because, Decision, Hop, Packet, Transport, Verdict};
pub use settings::{AffinityLimit, InterfaceName, MarkBit, Netfilter};
pub use state::{
    Affinity, Backend, BackendSet, Change, Changes, Detector, Exposure, ForwardingState, Frontend,
    FrontendAddress, FrontendKey, Frontends, Globals, Route, Routes, ServicePort, ServicePortId,
    SourceClass,
};
pub use table::table;
