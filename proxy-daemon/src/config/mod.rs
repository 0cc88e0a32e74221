//! What was the daemon asked to do?

mod policy;

pub use policy::{DetectLocal, NodePortAddresses, Policy};
