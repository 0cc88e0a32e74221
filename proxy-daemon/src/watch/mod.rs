//! Where does the cluster's state come from?
//!
//! Two sources of the same events, the Kubernetes API and a directory of manifests, fill one
//! [`Store`]; the sync thread drains what changed. Invariants: nothing is drained before every kind was
//! listed once (SYNC-12); a source never decides what an object means.

pub mod kubernetes;
pub mod manifests;
mod shared;
mod store;

pub use crate::model::from_k8s::ObjectKind;
pub use shared::Shared;
pub use store::{Changed, Drained, Store};
