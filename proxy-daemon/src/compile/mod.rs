//! What do the cluster's objects mean for packets?

mod environment;

pub use environment::Environment;
