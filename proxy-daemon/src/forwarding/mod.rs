//! What must happen to a packet? The contract between `compile` and the datapaths.
//!
//! A [`ForwardingState`] says everything, for one family: who counts as a pod, which frontends there
//! are, where each source class goes and whether its source is masqueraded. Invariants: it depends on
//! no neighbour, holds no Kubernetes object, and leaves no decision to a datapath. [`eval`] gives it
//! its meaning: what `eval` says of a packet, every datapath must do.

mod state;

pub use state::{
    Backend, BackendSet, Change, Changes, Detector, Exposure, ForwardingState, Frontend,
    FrontendAddress, FrontendKey, Globals, InterfaceName, MarkBit, Route, Routes, ServicePort,
    ServicePortId, SourceClass,
};
