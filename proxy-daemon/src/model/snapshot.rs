//! What of the cluster is handed from the store to `compile`?

use std::sync::Arc;

use super::{EndpointSlice, Service};

/// One Service as it is now: its object, if it exists, and its slices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceInput {
    /// The Service; `None` if it is not there, or is one that we do not serve.
    pub service: Option<Arc<Service>>,
    /// Its EndpointSlices, by name.
    pub slices: Vec<Arc<EndpointSlice>>,
}
