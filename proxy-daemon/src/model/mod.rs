//! What does the cluster look like, in our words?
//!
//! Slim structs that hold only what SPEC's SVC-6 and the EndpointSlice areas read. Invariants: no
//! Kubernetes type outside [`from_k8s`], no I/O; a value that exists is valid, what could not be used
//! was a diagnostic of whoever made it. Next: [`crate::compile`] turns these into a forwarding state.

mod diagnostic;
mod endpoint;
pub mod from_k8s;
mod ids;
mod node;
mod service;
mod snapshot;

pub use diagnostic::{Diagnostic, Subject};
pub use endpoint::{Endpoint, EndpointSlice, Hints, SlicePort};
pub use ids::{ServiceName, SliceName};
pub use node::{Node, ServiceCidr};
pub use service::{AffinityTimeout, Service, ServiceKind, ServicePortSpec, TrafficPolicy};
pub use snapshot::{ServiceInput, Services};
